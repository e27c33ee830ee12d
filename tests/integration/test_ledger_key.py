"""The key of the ledger: the time of the job in every row, and an index that finds the rows by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.ledger import ledger
from tests.support.databases import (
    NOON,
    OpenWorker,
    a_claim,
    a_finish,
    a_job,
    a_next_attempt,
    a_progress,
    a_token,
    execute,
    rows,
)
from worker.adapters.database.opening import Database
from worker.adapters.database.reports import UsageFilter
from worker.adapters.database.repricing import Repricing
from worker.adapters.database.write_off import WriteOff
from worker.domain.job import Job
from worker.domain.prices import PriceList

ROWS = 20_000
MOMENT = timedelta(seconds=1, microseconds=7)
DEAR = PriceList(
    input=Decimal(9), cached_input=Decimal(9), cache_write=Decimal(9), output=Decimal(9), source="test"
)
BOOKED = (
    "SELECT l.job_id, l.attempt_no, l.entry, j.received_at IS NOT NULL"
    " FROM usage_ledger l LEFT JOIN jobs j"
    " ON j.tenant = l.tenant AND j.job_id = l.job_id AND j.received_at = l.received_at ORDER BY l.id"
)


async def reprice(engine: AsyncEngine) -> None:
    """Correct all rows."""
    async for _ in Repricing(engine, lambda *_: DEAR).run(UsageFilter(), apply=True):
        pass


def copy_of(job: Job, number: int) -> Job:
    """Return the job as it is delivered some time later."""
    return replace(job, received_at=job.received_at + number * MOMENT)


async def test_every_row_has_the_time_of_its_job(
    database: Database, open_worker: OpenWorker, engine: AsyncEngine, migrated_url: str
) -> None:
    """Measured, lost, late, priced again, by whomever it was delivered to: the same to the microsecond."""
    job, old, new = a_job(received_at=NOON + MOMENT), a_token(), a_token()
    await database.cancels.request_cancel(job.key)
    async with open_worker() as dying:
        assert await dying.store.claim(a_claim(job, old, intent=False))
        assert await dying.store.next_attempt(a_next_attempt(job, old, 1))
    await database.store.claim(a_claim(copy_of(job, 2), new))
    await database.store.progress(a_progress(job, old))
    await database.store.next_attempt(a_next_attempt(job, new, 2))
    await database.store.progress(a_progress(copy_of(job, 3), new, 2))
    await database.store.next_attempt(a_next_attempt(job, new, 3))
    for _ in range(2):
        assert await database.store.finish(a_finish(copy_of(job, 4), new, 3))
    await reprice(engine)
    found = await rows(migrated_url, BOOKED)
    assert [(attempt_no, entry) for _, attempt_no, entry, _ in found] == [
        (1, "estimated"),
        (1, "correction"),
        (1, "correction"),
        (2, "measured"),
        (3, "measured"),
        (1, "correction"),
        (2, "correction"),
        (3, "correction"),
    ]
    assert all(same for *_, same in found)
    assert await rows(migrated_url, "SELECT DISTINCT received_at FROM usage_ledger") == await rows(
        migrated_url, "SELECT received_at FROM jobs"
    )


async def test_what_is_written_off_has_the_time_of_its_job(
    database: Database, open_worker: OpenWorker, migrated_url: str
) -> None:
    """Also where nobody takes the job over."""
    job = a_job(received_at=NOON + MOMENT)
    async with open_worker() as dying:
        await dying.store.claim(a_claim(job, a_token()))
    assert await database.writer.submit(WriteOff(job.key, NOON))
    ((*booked, same),) = await rows(migrated_url, BOOKED)
    assert (booked, bool(same)) == (["job", 1, "estimated"], True)


async def test_what_the_job_of_is_lost_is_booked_once_and_corrected_once(
    database: Database, engine: AsyncEngine, migrated_url: str
) -> None:
    """A database that forgot the job takes its bill all the same, however often it is written."""
    for _ in range(2):
        assert not await database.store.finish(a_finish(a_job(), a_token()))
        await reprice(engine)
    assert await rows(migrated_url, "SELECT entry FROM usage_ledger ORDER BY id") == [
        ("measured",),
        ("correction",),
    ]


@contextmanager
def noted(*engines: AsyncEngine) -> Iterator[list[tuple[AsyncEngine, str, Any]]]:
    """Give the queries of the ledger's own rows that these engines are asked."""
    asked: list[tuple[AsyncEngine, str, Any]] = []

    def note(engine: AsyncEngine) -> Any:
        def listen(_c: Any, _cursor: Any, statement: str, parameters: Any, _x: Any, _many: bool) -> None:  # noqa: FBT001 (SQLAlchemy's)
            if statement.startswith("SELECT usage_ledger"):
                asked.append((engine, statement, parameters))

        return listen

    listeners = [(engine, note(engine)) for engine in engines]
    for engine, listen in listeners:
        event.listen(engine.sync_engine, "before_cursor_execute", listen)
    yield asked
    for engine, listen in listeners:
        event.remove(engine.sync_engine, "before_cursor_execute", listen)


async def plan(engine: AsyncEngine, statement: str, parameters: Any) -> str:
    """Return how the database goes about it."""
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql(f"{explain} {statement}", parameters)
        return "\n".join(str(row[-1]) for row in found)


async def test_rows_of_a_job_are_found_by_the_index(
    database: Database, open_worker: OpenWorker, engine: AsyncEngine, migrated_url: str
) -> None:
    """Whoever looks for a job's rows goes down the index by all of its first columns, and scans nothing."""
    async with ledger(migrated_url, ROWS):
        pass
    await execute(
        migrated_url,
        "INSERT INTO jobs (tenant, job_id, received_at, status, labels)"
        " SELECT tenant, job_id, received_at, 'succeeded', labels FROM usage_ledger",
    )
    await execute(migrated_url, "ANALYZE")
    job, old = a_job(), a_token()
    async with open_worker() as dying:
        await dying.store.claim(a_claim(job, old))
    await database.store.claim(a_claim(job, a_token()))
    with noted(engine, database.writer._engine, database.queries._engine) as asked:
        assert not await database.store.progress(a_progress(job, old))
        assert await database.queries.job(job.key)
        pages = Repricing(engine, lambda *_: DEAR).run(UsageFilter(tenant=job.key.tenant), apply=False)
        assert [len(page) async for page in pages] == [1]
    assert len({engine for engine, *_ in asked}) == 3
    for asker, statement, parameters in asked:
        if "usage_ledger.id >" not in statement:
            assert_by_index(await plan(asker, statement, parameters))


def assert_by_index(found: str) -> None:
    """Raise AssertionError where the ledger is not searched by time and key."""
    assert "SCAN usage_ledger" not in found, found
    assert "Seq Scan" not in found, found
    if "SEARCH" in found:
        assert "uq_usage_ledger_attempt (received_at=? AND job_id=? AND tenant=?" in found, found
    else:
        _, _, lookup = found.partition("uq_usage_ledger_attempt")
        condition = lookup.partition("Index Cond: ")[2].partition("\n")[0]
        assert all(f"({name} = " in condition for name in ("received_at", "job_id", "tenant")), found
