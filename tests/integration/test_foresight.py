"""Batches decided beforehand, on PostgreSQL: in one statement, and never on a row that has changed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.support.databases import (
    LEASE_SECONDS,
    Events,
    a_claim,
    a_finish,
    a_job,
    a_next_attempt,
    a_progress,
    a_token,
    a_wait,
    execute,
    rows,
    until,
    waiting_for_lock,
)
from worker.adapters.database.bulk import Call
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.opening import Database, open_database
from worker.adapters.database.running import run_if
from worker.adapters.database.setup import upgrade
from worker.ports import AlreadyDone, Claimed


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    """Open a migrated database for a worker."""
    await upgrade(postgres_url)
    async with open_database(postgres_url, observer=Events(), lease_seconds=LEASE_SECONDS) as opened:
        yield opened


@contextmanager
def statements() -> Iterator[list[str]]:
    """Give what is sent to the database meanwhile."""
    found: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, _p: Any, _x: Any, _many: bool) -> None:  # noqa: FBT001 (SQLAlchemy's)
        found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield found
    event.remove(Engine, "before_cursor_execute", note)


async def test_each_step_of_a_job_is_one_statement(database: Database, postgres_url: str) -> None:
    """And a transaction by itself, without a word to begin and to end it."""
    job, token, store = a_job(), a_token(), database.store
    with statements() as sent:
        assert isinstance(await store.claim(a_claim(job, token)), Claimed)
        assert await store.progress(a_progress(job, token, 1, b"state"))
        assert await store.next_attempt(a_next_attempt(job, token, 2))
        assert await store.finish(a_finish(job, token, 2))
        database.outbox.sent(job.key)
        await until(lambda: len(sent) == 5)
    assert all(statement.startswith("WITH w0 AS (") for statement in sent)
    await until(lambda: told(postgres_url, "SELECT 1 FROM jobs WHERE reply_status = 'sent'"))
    assert await rows(postgres_url, "SELECT attempt_no, state FROM attempts ORDER BY 1") == [
        (1, "succeeded"),
        (2, "succeeded"),
    ]
    assert await rows(postgres_url, "SELECT count(*) FROM usage_ledger") == [(2,)]
    assert await rows(postgres_url, "SELECT * FROM checkpoints") == []


async def told(url: str, sql: str) -> bool:
    """Whether a query finds something."""
    return bool(await rows(url, sql))


async def test_finish_of_a_job_that_is_to_be_cancelled(database: Database, postgres_url: str) -> None:
    """A row that somebody else has changed is looked at; the neighbours in the batch fare no worse."""
    job, other, token = a_job("cancelled"), a_job("other"), a_token()
    await database.store.claim(a_claim(job, token))
    await execute(postgres_url, "UPDATE jobs SET cancel_requested_at = now()")
    with statements() as sent:
        done = await asyncio.gather(
            database.store.finish(a_finish(job, token)), database.store.claim(a_claim(other, a_token()))
        )
    assert done[0] is True
    assert isinstance(done[1], Claimed)
    # What was foreseen, then the look in three statements.
    assert len(sent) == 1 + 3
    with statements() as sent:
        await database.store.claim(a_claim(a_job("next"), a_token()))
    assert len(sent) == 1
    assert await rows(postgres_url, "SELECT job_id, status, attempts FROM jobs ORDER BY 1") == [
        ("cancelled", "succeeded", 1),
        ("next", "running", 1),
        ("other", "running", 1),
    ]


async def test_row_that_changes_while_the_statement_waits_for_it(
    database: Database, postgres_url: str
) -> None:
    """It is compared as it is once it is locked, not as it was when the statement began."""
    job, token = a_job(), a_token()
    await database.store.claim(a_claim(job, token))
    other = await asyncpg.connect(postgres_url)
    async with other.transaction():
        await other.execute("UPDATE jobs SET lease_token = lease_token + 1")
        finishing = asyncio.ensure_future(database.store.finish(a_finish(job, token)))
        await until(lambda: waiting_for_lock(other))
    assert await finishing is False
    await other.close()
    assert await rows(postgres_url, "SELECT status FROM jobs") == [("running",)]
    assert await rows(postgres_url, "SELECT * FROM results") == []


async def test_copy_of_a_job_that_another_has_done(database: Database, postgres_url: str) -> None:
    """What looks like the first delivery may not be."""
    async with open_database(postgres_url, observer=Events(), lease_seconds=LEASE_SECONDS) as another:
        job, token = a_job(), a_token()
        await another.store.claim(a_claim(job, token))
        await another.store.finish(a_finish(job, token))
    fresh = a_job("fresh")
    answers = await asyncio.gather(
        database.store.claim(a_claim(job, a_token())), database.store.claim(a_claim(fresh, a_token()))
    )
    assert isinstance(answers[0], AlreadyDone)
    assert isinstance(answers[1], Claimed)
    with statements() as sent:
        assert isinstance(await database.store.claim(a_claim(a_job("next"), a_token())), Claimed)
    # The server logs what was foreseen wrongly: for a while no first row is.
    assert len(sent) == 3
    assert await rows(postgres_url, "SELECT count(*) FROM attempts") == [(3,)]


async def test_job_that_comes_back_from_a_waiting_room(database: Database, postgres_url: str) -> None:
    """Others may have had it meanwhile: it is not foreseen."""
    job, token = a_job(), a_token()
    await database.store.claim(a_claim(job, token))
    assert await database.store.progress(a_progress(job, token))
    assert await database.store.wait(a_wait(job, token, seconds=0))
    with statements() as sent:
        assert isinstance(await database.store.claim(a_claim(job, a_token(), first=False)), Claimed)
    assert not any("expected_status" in statement for statement in sent)


async def test_rows_are_found_by_key_from_the_first_on(postgres_url: str) -> None:
    """Plans are kept: one made while the tables were empty must not read them whole when they are not."""
    await upgrade(postgres_url)
    jobs = [(a_job(f"job-{number}"), a_token()) for number in range(400)]
    async with open_database(postgres_url, observer=Events(), lease_seconds=LEASE_SECONDS) as database:
        for start in range(0, len(jobs), 20):
            some = jobs[start : start + 20]
            # Every other batch looks first.
            first = bool(start % 40)
            await asyncio.gather(*(database.store.claim(a_claim(*job, first=first)) for job in some))
            await asyncio.gather(*(database.store.finish(a_finish(*job)) for job in some))
            for job, _ in some:
                database.outbox.sent(job.key)
    written = "SELECT 1 FROM pg_stat_user_tables WHERE relname = 'jobs' AND n_tup_upd = 800"
    await until(lambda: told(postgres_url, written))
    read = "SELECT relname, seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE n_tup_ins >= 400"
    found = dict(await rows(postgres_url, read))
    assert found == {
        "jobs": pytest.approx(7.5 * len(jobs), rel=0.2),
        "attempts": len(jobs),
        "requests": 0,
        "results": 0,
        "usage_ledger": 0,
    }


async def test_nothing_is_written_where_a_check_fails(database: Database, postgres_url: str) -> None:
    """Neither what the check itself inserts, nor what was to follow."""
    _ = database
    engine = open_engine(postgres_url, Use.WRITE)
    insert = "INSERT INTO {0} (tenant, job_id, {1}) SELECT v, v, {2} FROM unnest($1::text[]) AS v"
    job = Call(
        insert.format("jobs", "received_at, labels, status", "now(), '{}', 'waiting'") + " RETURNING 1",
        [(["a"],)],
    )
    request = Call(insert.format("requests", "body", "'b'"), [(["a"],)])
    async with engine.connect() as connection:
        assert not await run_if(connection, [(job, 2)], [request])
        assert await rows(postgres_url, "SELECT * FROM jobs") == []
        assert await run_if(connection, [(job, 1)], [request])
        assert len(await rows(postgres_url, "SELECT * FROM requests")) == 1
    await engine.dispose()
