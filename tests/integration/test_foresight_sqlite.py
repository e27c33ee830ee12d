"""Batches decided beforehand, on SQLite: at one turn of its thread, never on a row that has changed."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.support.databases import (
    LEASE_SECONDS,
    NOON,
    Events,
    a_claim,
    a_finish,
    a_job,
    a_next_attempt,
    a_progress,
    a_token,
    execute,
    rows,
    until,
)
from worker.adapters.database.bulk import Call
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.errors import DatabaseClosedError
from worker.adapters.database.opening import Database, open_database
from worker.adapters.database.running import run_if
from worker.adapters.database.setup import upgrade
from worker.adapters.database.sqlite_thread import steps
from worker.adapters.database.statements import EXPECTED, Statements
from worker.ports import AlreadyDone, Claimed

LOOK = "SELECT jobs.tenant, jobs.job_id, jobs.kind"


@pytest.fixture
def sent() -> Iterator[list[str]]:
    """Give what each connection runs from now on."""
    found: list[str] = []

    def trace(connection: Any, _entry: Any) -> None:
        connection.run_async(lambda its: its.set_trace_callback(found.append))

    event.listen(Engine, "connect", trace)
    yield found
    event.remove(Engine, "connect", trace)


@pytest.fixture
async def url(sqlite_url: str) -> str:
    """Give a file with the newest tables."""
    await upgrade(sqlite_url)
    return sqlite_url


@pytest.fixture
async def database(url: str, sent: list[str]) -> AsyncIterator[Database]:
    """Open it for a worker."""
    async with open_database(url, observer=Events(), lease_seconds=LEASE_SECONDS) as opened:
        sent.clear()
        yield opened


def looks(sent: list[str]) -> int:
    """Return how often rows were looked at before anything was decided."""
    return sum(statement.startswith(LOOK) for statement in sent)


async def told(url: str, sql: str) -> bool:
    """Whether a query finds something."""
    return bool(await rows(url, sql))


async def test_no_step_of_a_job_looks_first(database: Database, url: str, sent: list[str]) -> None:
    """Each is a transaction of its own."""
    job, token, store = a_job(), a_token(), database.store
    assert isinstance(await store.claim(a_claim(job, token)), Claimed)
    assert await store.progress(a_progress(job, token, 1, b"state"))
    assert await store.next_attempt(a_next_attempt(job, token, 2))
    assert await store.finish(a_finish(job, token, 2))
    database.outbox.sent(job.key)
    await until(lambda: told(url, "SELECT 1 FROM jobs WHERE reply_status = 'sent'"))
    assert looks(sent) == 0
    assert sent.count("BEGIN IMMEDIATE") == sent.count("COMMIT") == 5
    assert await rows(url, "SELECT attempt_no, state FROM attempts ORDER BY 1") == [
        (1, "succeeded"),
        (2, "succeeded"),
    ]
    assert await rows(url, "SELECT count(*) FROM usage_ledger") == [(2,)]
    assert await rows(url, "SELECT * FROM checkpoints") == []


async def test_many_rows_are_inserted_and_compared_at_a_step(
    database: Database, url: str, sent: list[str]
) -> None:
    """However many there are, a batch takes few steps, and nothing of it is left out."""
    jobs = [(a_job(f"job-{number}"), a_token()) for number in range(201)]
    await asyncio.gather(*(database.store.claim(a_claim(*job)) for job in jobs))
    # 64 + 64 + 64 + 8 + 1
    assert sum(statement.startswith("INSERT INTO jobs") for statement in sent) == 5
    assert all(await asyncio.gather(*(database.store.finish(a_finish(*job)) for job in jobs)))
    assert sum(statement.startswith("SELECT count(*)") for statement in sent) == 5
    assert looks(sent) == 0
    for table in ("jobs", "requests", "attempts", "results", "usage_ledger"):
        assert await rows(url, f"SELECT count(*), count(DISTINCT job_id) FROM {table}") == [(201, 201)]  # noqa: S608


@pytest.mark.parametrize(
    "change",
    [
        "cancel_requested_at = '2026-11-25 12:00:00.000000'",
        "attempts = attempts + 1",
        "step_attempts = step_attempts + 1",
        "takeovers = takeovers + 1",
        "written_off = 1",
        "reply_tries = 1",
    ],
)
async def test_row_that_somebody_changed_is_looked_at(
    database: Database, url: str, sent: list[str], change: str
) -> None:
    """And the neighbours in the batch fare no worse."""
    job, other, token = a_job("changed"), a_job("other"), a_token()
    await database.store.claim(a_claim(job, token))
    await execute(url, f"UPDATE jobs SET {change}")  # noqa: S608  ours
    done = await asyncio.gather(
        database.store.finish(a_finish(job, token)), database.store.claim(a_claim(other, a_token()))
    )
    assert done[0] is True
    assert isinstance(done[1], Claimed)
    assert looks(sent) == 1
    assert await rows(url, "SELECT job_id, status FROM jobs ORDER BY 1") == [
        ("changed", "succeeded"),
        ("other", "running"),
    ]
    assert await rows(url, "SELECT count(*) FROM usage_ledger") == [(1,)]


async def test_job_that_another_has_taken_over(database: Database, url: str) -> None:
    """What its first worker writes is no result, but the money was spent."""
    job, token = a_job(), a_token()
    await database.store.claim(a_claim(job, token))
    await execute(url, "UPDATE workers SET alive_until = '2000-01-01 00:00:00.000000'")
    async with open_database(url, observer=Events(), lease_seconds=LEASE_SECONDS) as another:
        later = a_claim(job, a_token(), at=NOON + timedelta(hours=1), first=False)
        assert isinstance(await another.store.claim(later), Claimed)
        assert await database.store.finish(a_finish(job, token)) is False
    assert await rows(url, "SELECT status FROM jobs") == [("running",)]
    assert await rows(url, "SELECT * FROM results") == []
    # The estimate of the takeover, corrected to what was measured.
    entries = await rows(url, "SELECT entry, count(*) FROM usage_ledger GROUP BY entry ORDER BY entry")
    assert entries == [("correction", 2), ("estimated", 1)]


async def test_copy_of_a_job_that_another_has_done(database: Database, url: str, sent: list[str]) -> None:
    """What looks like the first delivery may not be."""
    async with open_database(url, observer=Events(), lease_seconds=LEASE_SECONDS) as another:
        job, token = a_job(), a_token()
        await another.store.claim(a_claim(job, token))
        await another.store.finish(a_finish(job, token))
    answers = await asyncio.gather(
        database.store.claim(a_claim(job, a_token())), database.store.claim(a_claim(a_job("new"), a_token()))
    )
    assert isinstance(answers[0], AlreadyDone)
    assert isinstance(answers[1], Claimed)
    assert looks(sent) == 1
    assert await rows(url, "SELECT count(*) FROM attempts") == [(2,)]


async def test_nothing_is_written_where_a_check_fails(url: str) -> None:
    """Neither what the check itself inserts, nor what was to follow; nor where a statement fails."""
    worker = Call(
        "INSERT INTO workers (worker_id, host, pid, started_at, alive_until) VALUES (?, ?, ?, ?, ?)",
        [("a", "host", 1, "2026-11-25", "2026-11-25")],
    )
    body = Call("INSERT INTO requests (tenant, job_id, body) VALUES (?, ?, ?)", [("a", "a", b"b")])
    engine = open_engine(url, Use.WRITE)
    async with engine.connect() as connection:
        assert not await run_if(connection, [(worker, 2)], [])
        assert await rows(url, "SELECT worker_id FROM workers") == []
        with pytest.raises(sqlite3.IntegrityError):  # there is no such job
            await run_if(connection, [(worker, 1)], [body])
        assert await rows(url, "SELECT worker_id FROM workers") == []
        assert await run_if(connection, [(worker, 1)], [])
        assert await rows(url, "SELECT worker_id FROM workers") == [("a",)]
    await engine.dispose()


@pytest.mark.parametrize("known", [0, 3, 100])
async def test_rows_are_compared_by_key(url: str, known: int) -> None:
    """Also where statistics say that the table is small: a join might read all of it."""
    engine = open_engine(url, Use.WRITE)
    (compare,) = Statements(engine.dialect).expect_jobs.calls([dict.fromkeys(EXPECTED, 1)] * 64)
    await engine.dispose()
    with closing(sqlite3.connect(Path(url.removeprefix("sqlite:///")))) as connection:
        columns = "tenant, job_id, status, received_at, labels"
        job = f"INSERT INTO jobs ({columns}) VALUES ('a', ?, 'running', ?, '{{}}')"  # noqa: S608
        connection.executemany(job, [(f"{number}", "2026-11-25") for number in range(known)])
        connection.execute("ANALYZE")
        ((sql, parameters),) = steps(compare)
        plan = [step for *_, step in connection.execute("EXPLAIN QUERY PLAN " + sql, parameters)]
    # Newer versions put a word in between.
    assert any(re.match(r"SEARCH jobs .*INDEX sqlite_autoindex_jobs_1", step) for step in plan), plan
    assert not any("SCAN jobs" in step for step in plan), plan


async def test_large_bodies_go_one_by_one() -> None:
    """The driver keeps what was last bound to each statement, so it had better not be much."""
    small = Call("INSERT INTO t (a, b) VALUES (?, ?)", [("a", b"b")] * 65)
    assert [len(parameters) // 2 for _, parameters in steps(small)] == [64, 1]
    large = Call(small.sql, [*small.parameters[:8], ("a", b"b" * 2**16)])
    assert [len(parameters) // 2 for _, parameters in steps(large)] == [2, 2, 2, 2, 1]
    huge = Call(small.sql, [*small.parameters[:2], ("a", b"b" * 2**20)])
    assert [len(parameters) // 2 for _, parameters in steps(huge)] == [1, 1, 1]


async def test_what_was_given_up_is_not_done_once_the_file_is_free(
    url: str, database: Database, sent: list[str]
) -> None:
    """Whoever waited for it was told so."""
    with closing(sqlite3.connect(Path(url.removeprefix("sqlite:///")), isolation_level=None)) as other:
        await database.store.claim(a_claim(a_job("first"), a_token()))
        other.execute("BEGIN IMMEDIATE")
        claiming = asyncio.ensure_future(database.store.claim(a_claim(a_job(), a_token())))
        await until(lambda: sent[-1] == "BEGIN IMMEDIATE")
        end = asyncio.ensure_future(database.writer.close(0))
        for _ in range(20):
            await asyncio.sleep(0)
        other.execute("ROLLBACK")
        await end
        with pytest.raises(DatabaseClosedError):
            await claiming
    assert await rows(url, "SELECT job_id FROM jobs") == [("first",)]
