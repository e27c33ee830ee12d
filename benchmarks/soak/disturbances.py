"""What goes wrong, and how often."""

import asyncio
import os
import random
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from benchmarks.soak.load import Soak
from dev.rabbitmq import RabbitMQ
from dev.servers import RABBITMQ_FOLDER
from tests.support.databases import postgres_server
from tests.support.process import WorkerProcess

PAUSES = (2.0, 6.0)
"""Seconds between faults."""


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
    """Terminate the backends of all workers; an SQLite file is locked for a while, as by a backup."""
    url = urlsplit(soak.database_url)
    if url.scheme == "sqlite":
        await asyncio.to_thread(lock, soak.database_url.removeprefix("sqlite:///"), seconds=3)
        return
    admin = await asyncpg.connect(postgres_server())
    name = url.path.removeprefix("/")
    await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    await admin.close()


def lock(path: str, *, seconds: float) -> None:
    """Hold the write lock of an SQLite file."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")


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
