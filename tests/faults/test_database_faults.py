"""The database away, full, or under somebody's hands."""

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from tests.support.broker import until
from tests.support.databases import execute, postgres_server
from tests.support.scene import Scene
from tests.support.upstream import ALWAYS, Act

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@asynccontextmanager
async def closed(url: str) -> AsyncIterator[None]:
    """Take a PostgreSQL database away: no new connection, and none of the old ones."""
    name = urlsplit(url).path.removeprefix("/")
    admin = await asyncpg.connect(postgres_server())
    try:
        await admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        try:
            yield
        finally:
            await admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    finally:
        await admin.close()


@ON_POSTGRESQL
async def test_c02_backends_killed_again_and_again(scene: Scene) -> None:
    """Connections die in the middle of transactions and commits: each request is booked exactly once."""
    scene.upstream.script(Act(delay=0.05, times=ALWAYS))
    await scene.worker(WORKER_CONCURRENCY=8)
    admin = await asyncpg.connect(postgres_server())
    name = urlsplit(scene.database_url).path.removeprefix("/")
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
    try:
        for number in range(120):
            await scene.send(f"job-{number}")
            if number % 10 == 5:
                await admin.fetch(kill, name)
        await scene.replied(120, within=60)
    finally:
        await admin.close()
    await scene.holds(within=60)


@ON_POSTGRESQL
async def test_c03_database_away_at_the_claim(scene: Scene) -> None:
    """No call without a claim, nothing among the dead, nothing acknowledged; once it is back all goes on."""
    worker = await scene.worker(WORKER_CONCURRENCY=4)
    async with closed(scene.database_url):
        for number in range(12):
            await scene.send(f"job-{number}")
        await worker.logged("server is away", server="database")
        await asyncio.sleep(5)
        assert scene.upstream.requests == []
        assert worker.lines("broken") == []
    await scene.replied(12)
    await scene.holds()


@ON_POSTGRESQL
async def test_c03_database_away_with_answers_in_memory(scene: Scene) -> None:
    """What OpenAI has answered is kept until it can be written: nobody is asked twice."""
    scene.upstream.script(Act(delay=1.5, times=ALWAYS))
    worker = await scene.worker(WORKER_CONCURRENCY=4)
    for number in range(4):
        await scene.send(f"job-{number}")
    await scene.upstream.seen(4)
    async with closed(scene.database_url):
        await until(lambda: all(one.outcome == "answered 200" for one in scene.upstream.requests))
        await worker.logged("server is away", server="database")
        await asyncio.sleep(4)
    await scene.replied(4)
    await scene.holds()


@ON_SQLITE
async def test_c03_disk_full(scene: Scene) -> None:
    """While no file may grow, nothing is called or acknowledged; with room again, all is done."""
    worker = await scene.worker()
    soft = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1024, soft[1]))
    for number in range(5):
        await scene.send(f"job-{number}")
    await worker.logged("server is away", server="database")
    await asyncio.sleep(3)
    assert scene.upstream.requests == []
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, soft)
    await scene.replied(5)
    await scene.holds()


@ON_SQLITE
async def test_c03_file_locked_by_somebody(scene: Scene) -> None:
    """A backup that holds the write lock for some seconds delays jobs and fails none."""
    worker = await scene.worker()
    path = Path(urlsplit(scene.database_url).path.removeprefix("/"))
    backup = sqlite3.connect(f"/{path}", isolation_level=None)
    try:
        backup.execute("BEGIN IMMEDIATE")
        for number in range(5):
            await scene.send(f"job-{number}")
        await asyncio.sleep(3)
        assert scene.upstream.requests == []
        backup.execute("ROLLBACK")
    finally:
        backup.close()
    await scene.replied(5)
    assert worker.lines("broken") == []
    await scene.holds()


@ON_SQLITE
async def test_c04_many_workers_on_one_file(scene: Scene) -> None:
    """Four worker processes, 200 jobs, one SQLite file: no lock error outside, no row lost or doubled."""
    workers = await asyncio.gather(*(scene.worker(WORKER_CONCURRENCY=8) for _ in range(4)))
    for number in range(200):
        await scene.send(f"job-{number}")
    await scene.replied(200, within=60)
    assert not [worker for worker in workers if worker.lines("server is away") or worker.lines("broken")]
    await scene.holds(within=60)


async def test_c05_ledger_cannot_be_rewritten(scene: Scene) -> None:
    """UPDATE and DELETE are refused by the database itself, whoever sends them."""
    await scene.worker()
    await scene.send("one")
    await scene.replied(1)
    before = await scene.rows("SELECT * FROM usage_ledger")
    for statement in (
        "UPDATE usage_ledger SET cost_nano_usd = 0",
        "DELETE FROM usage_ledger",
    ):
        with pytest.raises(DBAPIError):
            await execute(scene.database_url, statement)
    assert await scene.rows("SELECT * FROM usage_ledger") == before
    await scene.holds()


async def test_c08_outcome_that_the_database_refuses(scene: Scene) -> None:
    """The job fails and says so, with its cost as an estimate, instead of staying at work for ever."""
    worker = await scene.worker("transaction:before:refuse@FinishJob")
    await scene.send("one")
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "internal")
    assert (reply["usage"]["requests"], reply["usage"]["cost_status"]) == (1, "estimated")
    assert await scene.states() == ["unknown"]
    assert worker.lines("broken", where="finish")
    await scene.holds(unknown=1)
