"""The database away, full, or under somebody's hands."""

import asyncio
import os
import resource
import secrets
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from dev.folders import fresh_folder
from tests.support.broker import until
from tests.support.databases import execute, fresh_postgres, postgres_server
from tests.support.scene import Scene, staged
from tests.support.servers import Broker
from tests.support.upstream import ALWAYS, Act

FULL_SECONDS = 30
DISK_BYTES = 12 * 2**20
pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
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
async def test_c03_no_file_may_grow(scene: Scene) -> None:
    """Nothing is called or acknowledged meanwhile; with room again, all is done."""
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


@contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a disk of a few megabytes where every user's servers may write."""
    with fresh_folder() as folder:
        disk = folder / "disk"
        disk.mkdir()
        options = f"size={DISK_BYTES},mode=1777"
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=False)
        if mounted.returncode != 0:
            pytest.skip("needs the right to mount")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "-l", disk], check=True)


@asynccontextmanager
async def database_on(disk: Path, kind: str) -> AsyncIterator[str]:
    """Make a database whose tables lie on that disk."""
    if kind == "sqlite":
        yield f"sqlite:///{disk / 'worker.db'}"
        return
    space = f"disk_{secrets.token_hex(4)}"
    place = disk / "tables"
    place.mkdir()
    admin = await asyncpg.connect(postgres_server())
    try:
        notes = await admin.fetchval("SELECT pg_read_file('postmaster.pid')")
        _give(place, to=int(notes.split()[0]))
        await admin.execute(f"CREATE TABLESPACE {space} LOCATION '{place}'")
        async with fresh_postgres() as url:
            name = urlsplit(url).path.removeprefix("/")
            await admin.execute(f"ALTER DATABASE {name} SET default_tablespace = {space}")
            yield url
        await admin.execute(f"DROP TABLESPACE {space}")
    finally:
        await admin.close()


def _give(place: Path, *, to: int) -> None:
    """Make the user of a process the owner."""
    owner = Path(f"/proc/{to}").stat()
    os.chown(place, owner.st_uid, owner.st_gid)


def fill(disk: Path) -> Path:
    """Write a file until nothing more fits."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_c03_disk_full(broker: Broker, kind: str, tmp_path: Path) -> None:
    """For half a minute the disk is full: no call, nothing lost, nothing among the dead; then all is done."""
    with small_disk() as disk:
        async with database_on(disk, kind) as url, staged(broker, url, tmp_path) as scene:
            workers = [await scene.worker(WORKER_CONCURRENCY=8) for _ in range(2)]
            ballast = fill(disk)
            # Each brings a prompt of its own size: what little room is left in pages is used up.
            for number in range(40):
                await scene.send(f"job-{number}", "x" * 20_000)
            await asyncio.wait(
                [asyncio.create_task(one.logged("server is away", server="database")) for one in workers],
                return_when=asyncio.FIRST_COMPLETED,
            )
            asked = len(scene.upstream.requests)
            await asyncio.sleep(FULL_SECONDS)
            assert len(scene.upstream.requests) == asked < 40
            assert not any(worker.lines("broken") for worker in workers)
            ballast.unlink()
            await scene.replied(40)
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
    """Eight worker processes, 2,000 jobs, one SQLite file: no lock error outside, no row lost or doubled."""
    quiet: dict[str, Any] = {"WORKER_LOG_LEVEL": "info", "OPENAI_LOG": "info", "WORKER_LEASE_SECONDS": 60}
    workers = await asyncio.gather(*(scene.worker(WORKER_CONCURRENCY=8, **quiet) for _ in range(8)))
    for number in range(2000):
        await scene.send(f"job-{number}")
    await scene.replied(2000, within=200)
    assert not [worker for worker in workers if worker.lines("server is away") or worker.lines("broken")]
    assert all(worker.lines("job finished") for worker in workers)
    await scene.holds(within=200)


@ON_SQLITE
async def test_c09_database_of_another_shape(scene: Scene) -> None:
    """Every claim breaks: the deliveries are kept, and not handed back until the broker gives them up."""
    worker = await scene.worker(WORKER_CONCURRENCY=6)
    await execute(scene.database_url, "ALTER TABLE jobs RENAME COLUMN lease_token TO another")
    for number in range(8):
        await scene.send(f"job-{number}")
    # Six at once, then one every ten seconds: handed back, each would be at its second delivery by now.
    await worker.logged("broken", count=6 + 2, where="consumer", within=60)
    async with aiohttp.ClientSession() as session, session.get(f"{worker.http_url}/healthz") as response:
        assert response.status == 503
        assert "error of the program" in await response.text()
    assert len(worker.lines("broken", where="consumer")) < 6 + 5
    assert scene.upstream.requests == []
    assert worker.exit_code is None
    await execute(scene.database_url, "ALTER TABLE jobs RENAME COLUMN another TO lease_token")
    await scene.replied(8)
    await _is_ready(worker.http_url)
    await scene.holds()


async def _is_ready(url: str) -> None:
    """Wait until a worker says so: its last reply may be here before it knows that nothing is broken."""
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


async def test_c09_database_changes_its_shape_during_a_call(scene: Scene) -> None:
    """The answer is kept until the database takes it: neither dropped for a failure nor asked for again."""
    scene.upstream.script(Act(delay=3))
    worker = await scene.worker()
    await scene.send("one")
    await scene.upstream.seen(1)
    await execute(scene.database_url, "ALTER TABLE jobs RENAME COLUMN lease_token TO another")
    await worker.logged("broken", count=2, where="finish")
    await execute(scene.database_url, "ALTER TABLE jobs RENAME COLUMN another TO lease_token")
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["attempts"], reply["usage"]["cost_status"]) == ("succeeded", 1, "priced")
    assert await scene.states() == ["succeeded"]
    await scene.holds()


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


@ON_SQLITE
@pytest.mark.parametrize("kind", ["tool", "completion"])
async def test_c14_refused_between_two_requests(scene: Scene, kind: str) -> None:
    """An outcome that the database refuses is booked with the job's end: that money may be spent."""
    await scene.worker("transaction:before:refuse@RecordProgress")
    job = scene.tool_job("one") if kind == "tool" else {"job_id": "one"}
    calls = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}
    scene.upstream.script(Act(**calls) if kind == "tool" else Act(fault="half"))
    await scene.send(job.pop("job_id"), **job)
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "internal")
    assert reply["usage"]["cost_status"] == "estimated"
    assert await scene.rows("SELECT entry FROM usage_ledger") == [{"entry": "estimated"}]
    await scene.holds(unknown=1)
