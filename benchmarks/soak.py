"""Load with a random fault every few seconds; a figure a line as JSON, exit code 1 where a goal is missed.

`python -m benchmarks.soak --minutes 10`, below `dev.servers run --rabbitmq --postgres`. One worker is never
killed, though it suffers all other faults: its memory and open files must stay flat.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import asyncpg

from dev.rabbitmq import RabbitMQ
from dev.servers import RABBITMQ_FOLDER
from tests.support.broker import Proxy, until
from tests.support.databases import fresh_postgres, postgres_server
from tests.support.invariants import Allowance, Evidence, check
from tests.support.process import WorkerProcess, running
from tests.support.producer import Producer, completion, producing
from tests.support.rows import rows
from tests.support.upstream import Act, Seen, Upstream
from worker.domain.job import JobKey

WORKERS = 3
CONCURRENCY = 16
JOBS_A_SECOND = 12.0
MOST_UNANSWERED = 400
PAUSES = (2.0, 6.0)
"""Seconds between faults."""
SETTLE_SECONDS = 240.0
WARM_UP = 0.25
"""Share of the time after which memory and files are first measured."""
MORE_RSS_MB = 24.0
MORE_FILES = CONCURRENCY + 8
"""Connections to OpenAI that are kept open: as many as there may be calls, and a few for its servers."""
PROMPT = "the-prompt-that-no-log-may-show"
SETTINGS = {
    "WORKER_LEASE_SECONDS": "4",
    "WORKER_CONCURRENCY": str(CONCURRENCY),
    "WORKER_GRACE_SECONDS": "2",
    "WORKER_MAX_ATTEMPTS": "100",
    "WORKER_LANES": "completion",
    "WORKER_LOG_LEVEL": "info",
}


@dataclass
class Soak:
    """The state of a run."""

    upstream: Upstream
    proxy: Proxy
    amqp_url: str
    database_url: str
    folder: Path
    ends: float
    producer: Producer | None = None
    replies: list[aio_pika.abc.AbstractIncomingMessage] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    workers: list[WorkerProcess] = field(default_factory=list)
    logs: list[list[dict[str, Any]]] = field(default_factory=list)
    sent: list[JobKey] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    misbehaving_until: float = 0.0
    measured: list[tuple[float, int]] = field(default_factory=list)
    _counted: int = 0

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.ends

    @property
    def unanswered(self) -> int:
        """How many jobs have no reply yet."""
        for message in self.replies[self._counted :]:
            self.answered.add(json.loads(message.body)["job_id"])
        self._counted = len(self.replies)
        return len(self.sent) - len(self.answered)

    def act(self, _seen: Seen) -> Act:
        """Say how OpenAI answers a request."""
        delay = random.uniform(0.02, 0.4)
        if time.monotonic() > self.misbehaving_until or random.random() < 0.3:
            return Act(delay=delay)
        return random.choice(
            [
                Act(delay=delay, status=500),
                Act(delay=delay, status=503, headers={"retry-after-ms": "300"}),
                Act(delay=delay, status=429, headers={"retry-after-ms": "300"}),
                Act(delay=delay, fault="reset"),
                Act(delay=delay, fault="close"),
                Act(delay=delay, fault="half"),
                Act(delay=delay, body="<html>Bad Gateway</html>"),
            ]
        )


# ---------------------------------------------------------------- workers


async def keep_alive(soak: Soak, place: int) -> None:
    """Run a worker, and another one whenever it ends."""
    while True:
        environment = {
            "AMQP_URL": soak.proxy.url,
            "DATABASE_URL": soak.database_url,
            "OPENAI_BASE_URL": soak.upstream.base_url,
            **SETTINGS,
        }
        async with running("run", folder=soak.folder, settings=environment) as worker:
            soak.workers[place] = worker
            soak.logs.append(worker.log)
            await worker.ended(within=float("inf"))
            if soak.over and worker.exit_code == 0:
                return


async def produce(soak: Soak) -> None:
    """Publish jobs at a steady rate, some of them twice; hold back while too many are unanswered."""
    number = 0
    while not soak.over:
        await asyncio.sleep(1 / JOBS_A_SECOND)
        if soak.unanswered > MOST_UNANSWERED:
            continue
        number += 1
        key = JobKey("acme", f"job-{number}")
        body = completion(key.job_id, f"{PROMPT} <{key.job_id}>")
        soak.sent.append(key)
        for _ in range(2 if number % 20 == 0 else 1):
            await publish(soak, body)


async def publish(soak: Soak, body: dict[str, Any]) -> None:
    """Publish until the broker has confirmed, as the guide asks of producers."""
    while True:
        try:
            async with asyncio.timeout(5):
                await until(lambda: soak.producer)
                assert soak.producer
                await soak.producer.send(body)
        except (
            aio_pika.exceptions.AMQPError,
            RuntimeError,
            OSError,
            TimeoutError,
            asyncio.InvalidStateError,
        ):
            await asyncio.sleep(0.3)
        else:
            return


async def stay_connected(soak: Soak) -> None:
    """Give the producer a new connection whenever its own is lost; what it has received stays."""
    while True:
        with contextlib.suppress(Exception):
            async with producing(soak.amqp_url, queue="replies", replies=soak.replies) as producer:
                soak.producer = producer
                await producer.lost()
        await asyncio.sleep(0.3)


# ---------------------------------------------------------------- faults


def mortal(soak: Soak) -> WorkerProcess:
    """Choose a worker that may be killed."""
    return random.choice(soak.workers[1:])


async def kill(soak: Soak) -> None:
    """Kill -9."""
    mortal(soak).send(signal.SIGKILL)


async def terminate(soak: Soak) -> None:
    """SIGTERM, as in a deployment."""
    mortal(soak).send(signal.SIGTERM)


async def freeze(soak: Soak) -> None:
    """Stand still for longer than the lease."""
    worker = mortal(soak)
    worker.send(signal.SIGSTOP)
    await asyncio.sleep(6)
    worker.send(signal.SIGCONT)


async def cut(soak: Soak) -> None:
    """Reset all links to the broker."""
    soak.proxy.cut()


async def hang(soak: Soak) -> None:
    """Let the links to the broker swallow everything, then break."""
    soak.proxy.hold()
    await asyncio.sleep(4)
    soak.proxy.cut()
    soak.proxy.let_go()


async def misbehave(soak: Soak) -> None:
    """OpenAI fails in all ways."""
    soak.misbehaving_until = time.monotonic() + 4


async def lose_database(soak: Soak) -> None:
    """Terminate the backends of all workers."""
    admin = await asyncpg.connect(postgres_server())
    name = urlsplit(soak.database_url).path.removeprefix("/")
    await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    await admin.close()


async def restart_broker(_soak: Soak) -> None:
    """Stop the broker's application and start it again."""
    node = RabbitMQ.attached(Path(os.environ[RABBITMQ_FOLDER]))
    await asyncio.to_thread(node.ctl, "stop_app")
    await asyncio.to_thread(node.ctl, "start_app")


FAULTS: Sequence[tuple[Callable[[Soak], Awaitable[None]], int]] = (
    (kill, 6),
    (terminate, 3),
    (freeze, 2),
    (cut, 3),
    (hang, 1),
    (misbehave, 4),
    (lose_database, 3),
    (restart_broker, 1),
)
"""With their weights."""


async def disturb(soak: Soak) -> None:
    """Commit a random fault every few seconds; each kind at least once, if there is time."""
    order = [fault for fault, _ in FAULTS]
    random.shuffle(order)
    while not soak.over:
        await asyncio.sleep(random.uniform(*PAUSES))
        fault = order.pop() if order else random.choices(*zip(*FAULTS, strict=True))[0]
        soak.faults[fault.__name__] += 1
        await fault(soak)


# ---------------------------------------------------------------- figures


def size_of(pid: int) -> tuple[float, int]:
    """Return a process's resident memory in MB, and its open files."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return int(kilobytes) / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def measure(soak: Soak, seconds: float) -> None:
    """Measure the worker that is never killed, once it is warm and at the end."""
    await asyncio.sleep(seconds * WARM_UP)
    soak.measured.append(size_of(soak.workers[0].pid))
    await asyncio.sleep(max(0, soak.ends - time.monotonic()))
    soak.measured.append(size_of(soak.workers[0].pid))


def figure(name: str, value: object, unit: str, goal: object = None, *, ok: bool = True) -> bool:
    """Print one."""
    print(json.dumps({"figure": name, "value": value, "unit": unit, "goal": goal, "ok": ok}), flush=True)
    return ok


async def report(soak: Soak) -> bool:
    """Print the figures; False where a goal is missed."""
    url = soak.database_url
    (lost,) = await rows(url, "SELECT count(*) AS n FROM jobs WHERE status IN ('waiting', 'running')")
    known = {row["job_id"] for row in await rows(url, "SELECT job_id FROM jobs")}
    doubled = await rows(
        url,
        "SELECT job_id FROM usage_ledger WHERE entry <> 'correction'"
        " GROUP BY tenant, job_id, attempt_no HAVING count(*) > 1",
    )
    states = Counter(row["state"] for row in await rows(url, "SELECT state FROM attempts"))
    failed = await rows(url, "SELECT job_id FROM jobs WHERE status <> 'succeeded'")
    missing = soak.unanswered
    unseen = len([key for key in soak.sent if key.job_id not in known])
    (first_rss, first_files), (last_rss, last_files) = soak.measured
    goals = [
        figure("jobs", len(soak.sent), "jobs"),
        figure("calls", len(soak.upstream.requests), "requests"),
        figure("faults", sum(soak.faults.values()), "faults"),
        *(figure(f"faults: {name}", count, "faults") for name, count in sorted(soak.faults.items())),
        figure("lost", lost["n"] + unseen, "jobs", 0, ok=lost["n"] + unseen == 0),
        figure("duplicate ledger rows", len(doubled), "rows", 0, ok=not doubled),
        figure("replies missing", missing, "jobs", 0, ok=missing == 0),
        figure("replies received more than once", len(soak.replies) - len(soak.answered), "replies"),
        figure("jobs that failed", len(failed), "jobs"),
        figure("unknown attempts", states["unknown"], "attempts"),
        figure("rss start", round(first_rss, 1), "MB"),
        figure(
            "rss end",
            round(last_rss, 1),
            "MB",
            f"<= start + {MORE_RSS_MB}",
            ok=last_rss <= first_rss + MORE_RSS_MB,
        ),
        figure("open files start", first_files, "files"),
        figure(
            "open files end",
            last_files,
            "files",
            f"<= start + {MORE_FILES}",
            ok=last_files <= first_files + MORE_FILES,
        ),
        await invariants_hold(soak),
    ]
    return all(goals)


async def invariants_hold(soak: Soak) -> bool:
    """Check what the fault tests check, with room for what the faults cost."""
    evidence = Evidence(
        sent=soak.sent,
        replies=soak.replies,
        requests=soak.upstream.requests,
        dead=await soak.producer.dead() if soak.producer else [],
        logs=soak.logs,
        secrets=[PROMPT, "sk-test-not-a-key", urlsplit(soak.amqp_url).password or "?"],
        amqp_url=soak.amqp_url,
        database_url=soak.database_url,
    )
    many = 10**9
    try:
        await check(evidence, Allowance(extra_calls=many, unsent=many, unknown=many, dead=len(evidence.dead)))
    except AssertionError as error:
        return figure("invariants", str(error)[:500], "", "hold", ok=False)
    return figure("invariants", "hold", "", "hold")


# ---------------------------------------------------------------- the whole


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


async def answered(soak: Soak) -> None:
    """Wait until every job has its reply, for as long as is reasonable."""
    with contextlib.suppress(TimeoutError):
        await until(lambda: not soak.unanswered, within=SETTLE_SECONDS)
    query = "SELECT job_id FROM jobs WHERE status IN ('waiting', 'running') OR reply_status = 'pending'"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            while await rows(soak.database_url, query):  # noqa: ASYNC110 (a state of the database)
                await asyncio.sleep(0.5)


async def run(minutes: float, folder: Path) -> bool:
    """Soak, settle, report."""
    seconds = minutes * 60
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        amqp_url, database_url = await enter(vhost()), await enter(fresh_postgres())
        proxy = await enter(Proxy(amqp_url))
        upstream = await enter(Upstream(gate=lambda seen: soak.act(seen)))  # noqa: PLW0108 (made below)
        soak = Soak(upstream, proxy, amqp_url, database_url, folder, ends=0)
        soak.workers = [None] * WORKERS  # type: ignore[list-item]
        lives = [asyncio.create_task(keep_alive(soak, place)) for place in range(WORKERS)]
        await until(lambda: all(worker and worker.lines("ready") for worker in soak.workers), within=60)
        connected = asyncio.create_task(stay_connected(soak))
        soak.ends = time.monotonic() + seconds
        await asyncio.gather(produce(soak), disturb(soak), measure(soak, seconds))
        await answered(soak)
        for worker in soak.workers:
            worker.send(signal.SIGTERM)
        await asyncio.wait(lives, timeout=60)
        good = await report(soak)
        for task in (connected, *lives):
            task.cancel()
        await asyncio.gather(connected, *lives, return_exceptions=True)
        return good


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    random.seed(seed)
    logging.disable()  # the producer's own connections are cut all the time
    figure("seed", seed, "")
    with tempfile.TemporaryDirectory() as folder:
        return 0 if asyncio.run(run(options.minutes, Path(folder))) else 1


if __name__ == "__main__":
    sys.exit(main())
