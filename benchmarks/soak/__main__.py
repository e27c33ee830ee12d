"""Load with a random fault every few seconds; a figure a line as JSON, exit code 1 where a goal is missed.

`python -m benchmarks.soak --minutes 10`, below `dev.servers run --rabbitmq --postgres`, runs so long on each
database, one after the other; `--database sqlite` on one. One worker is never killed, though it suffers all
other faults: its memory and open files must stay flat.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.soak.disturbances import disturb
from benchmarks.soak.figures import figure, measure, report
from benchmarks.soak.load import WORKERS, Soak, keep_alive, produce, stay_connected
from dev.rabbitmq import RabbitMQ
from dev.servers import RABBITMQ_FOLDER
from tests.support.broker import Proxy, until
from tests.support.databases import fresh_postgres
from tests.support.invariants import ready_counts
from tests.support.rows import rows
from tests.support.upstream import Upstream

SETTLE_SECONDS = 240.0
DATABASES = ("sqlite", "postgresql")


@contextlib.asynccontextmanager
async def vhost() -> AsyncIterator[str]:
    """Give an empty virtual host, removed afterwards."""
    node = RabbitMQ.attached(Path(os.environ[RABBITMQ_FOLDER]))
    name = f"soak-{os.getpid()}"
    node.ctl("add_vhost", name)
    node.ctl("set_permissions", "-p", name, "worker", ".*", ".*", ".*")
    try:
        yield f"{node.url}{name}"
    finally:
        node.ctl("delete_vhost", name)


@contextlib.asynccontextmanager
async def database(kind: str, folder: Path) -> AsyncIterator[str]:
    """Give an empty database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'worker.db'}"
        return
    async with fresh_postgres() as url:
        yield url


async def settled(soak: Soak) -> None:
    """Wait until every job has its reply and all queues are empty, for as long as is reasonable."""
    with contextlib.suppress(TimeoutError):
        await until(lambda: not soak.unanswered, within=SETTLE_SECONDS)
    query = "SELECT job_id FROM jobs WHERE status IN ('waiting', 'running') OR reply_status = 'pending'"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            while await rows(soak.database_url, query):  # noqa: ASYNC110 (a state of the database)
                await asyncio.sleep(0.5)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            quiet = 0  # between two looks a message may have gone from a room to its lane
            while quiet < 2:
                quiet = 0 if any((await ready_counts(soak.amqp_url)).values()) else quiet + 1
                await asyncio.sleep(0.5)


async def run(minutes: float, kind: str, folder: Path) -> bool:
    """Soak, settle, report."""
    seconds = minutes * 60
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        amqp_url, database_url = await enter(vhost()), await enter(database(kind, folder))
        proxy = await enter(Proxy(amqp_url))
        upstream = await enter(Upstream(gate=lambda seen: soak.act(seen)))  # noqa: PLW0108 (made below)
        soak = Soak(upstream, proxy, amqp_url, database_url, folder, ends=float("inf"))
        soak.workers = [None] * WORKERS  # type: ignore[list-item]
        lives = [asyncio.create_task(keep_alive(soak, place)) for place in range(WORKERS)]
        await until(lambda: all(worker and worker.lines("ready") for worker in soak.workers), within=60)
        connected = asyncio.create_task(stay_connected(soak))
        soak.ends = time.monotonic() + seconds
        await asyncio.gather(produce(soak), disturb(soak), measure(soak, seconds))
        await settled(soak)
        for worker in soak.workers:
            worker.send(signal.SIGTERM)
        await asyncio.wait(lives, timeout=60)
        good = await report(soak)
        for task in (connected, *lives):
            task.cancel()
        await asyncio.gather(connected, *lives, return_exceptions=True)
        return good


def soaked(minutes: float, kinds: Sequence[str]) -> bool:
    """Run on each database; whether all goals are met."""
    good = True
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            good = asyncio.run(run(minutes, kind, Path(folder))) and good
    return good


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--database", choices=DATABASES, action="append", help="both unless given")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    random.seed(seed)
    logging.disable()  # the producer's own connections are cut all the time
    figure("seed", seed, "")
    return 0 if soaked(options.minutes, options.database or DATABASES) else 1


if __name__ == "__main__":
    sys.exit(main())
