"""The ledger for tests: an engine on it, rows that are booked, and what an export makes of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.names import Kind
from tests.support.databases import NOON, Events, a_claim, a_finish, a_job, a_ledger_entry, a_record, a_token
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.ledger_pages import ledger_pages, settled
from worker.adapters.database.opening import Database, open_database
from worker.adapters.database.reports import UsageFilter
from worker.adapters.database.setup import upgrade
from worker.cli.ledger_files import CsvFile
from worker.domain.attempt import Account, Entry

DAY = timedelta(days=1)


@pytest.fixture
async def engine(migrated_url: str) -> AsyncIterator[AsyncEngine]:
    """Give an engine as the program's own commands have it."""
    opened = open_engine(migrated_url, Use.WRITE)
    yield opened
    await opened.dispose()


async def book(database: Database, name: str, *, account: Account | None = None, **options: Any) -> None:
    """Run a job to its end, with one ledger row."""
    job = a_job(name, **options.pop("job", {}))
    token = a_token()
    await database.store.claim(a_claim(job, token))
    record = a_record(
        job.key,
        ledger=a_ledger_entry(**options),
        labels=job.labels,
        account=account or Account(name="main", organization="org-1", project="proj-1"),
    )
    assert await database.store.finish(a_finish(job, token, record=record))


async def some_of_each(database: Database) -> None:
    """Leave rows that differ in all that can be asked for."""
    await book(database, "a")
    await book(database, "b", job={"tenant": "globex", "kind": Kind.TOOL}, occurred_at=NOON + DAY)
    await book(database, "c", job={"labels": {"feature": 'x"y'}}, model="gpt-6", cost_nano_usd=None)
    await book(database, "d", account=Account(name="second"), occurred_at=NOON + 30 * DAY)
    await book(database, "e", entry=Entry.ESTIMATED, occurred_at=NOON.replace(hour=0, minute=0))


@asynccontextmanager
async def slow_booking(engine: AsyncEngine) -> AsyncIterator[None]:
    """Book a row for job `first`, in a transaction that is open until the end."""
    async with engine.begin() as slow:
        await slow.exec_driver_sql("UPDATE jobs SET labels = labels WHERE job_id = 'first'")
        await slow.exec_driver_sql(
            "INSERT INTO usage_ledger (tenant, job_id, received_at, attempt_no, entry, model, labels,"
            " occurred_at, account, requests, unpriced_requests, estimated_requests, estimated_cost_nano_usd)"
            " VALUES ('acme', 'late', now(), 1, 'measured', 'm', '{}', now(), 'main', 1, 0, 0, 0)"
        )
        yield


@pytest.fixture
def open_postgres(postgres_url: str) -> Any:
    """Return what opens a worker and an engine on PostgreSQL."""

    @asynccontextmanager
    async def both() -> AsyncIterator[tuple[Database, AsyncEngine]]:
        await upgrade(postgres_url)
        engine = open_engine(postgres_url, Use.WRITE)
        async with open_database(postgres_url, observer=Events(), lease_seconds=60) as database:
            yield database, engine
        await engine.dispose()

    return both()


async def to_csv(engine: AsyncEngine, path: Path, *, resume: bool = False) -> bytes:
    """Export everything, two rows a page."""
    with CsvFile(path, resume=resume) as target:
        until = (await settled(engine)).last_id
        async for page in ledger_pages(engine, UsageFilter(), after=target.last_id, until=until, page=2):
            target.write(page)
    return path.read_bytes()  # noqa: ASYNC240 a small file
