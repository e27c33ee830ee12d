"""What keeps the ledger fast however large it is; `make bench-ledger` has the figures."""

from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from benchmarks.ledger import BATCH, TENANTS, booked, ledger
from tests.support.databases import NOON, upgrade
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.reports import UsageFilter, summed

ROWS = 20_000


numbers = count(ROWS)


@pytest.mark.parametrize(
    "job_id",
    [lambda: f"job-{next(numbers):010}", lambda: uuid4().hex],
    ids=["that count up", "random"],
)
async def test_rows_are_booked_on_few_pages(job_id: Callable[[], str], sqlite_url: str) -> None:
    """A batch writes its rows and the ends of the indexes: no page for each tenant, or each job."""
    wal = Path(f"{sqlite_url.removeprefix('sqlite:///')}-wal")
    async with ledger(sqlite_url, ROWS) as engine, engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        page_size = (await (await driver.execute("PRAGMA page_size")).fetchone())[0]
        for _ in range(3):
            await driver.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
            await booked(engine, connection, job_id)
            pages = wal.stat().st_size // page_size  # noqa: ASYNC240 a name is looked up
            assert BATCH // 20 < pages < TENANTS // 2, pages


async def test_reports_find_what_is_not_summed_up_by_its_id(sqlite_url: str) -> None:
    """The summary and a few rows by their ids: never all rows of the time asked for."""
    await upgrade(sqlite_url)
    engine = open_engine(sqlite_url, Use.READ)
    only = UsageFilter(tenant="acme", since=NOON, until=NOON + timedelta(days=30))
    query = select(func.count()).select_from(summed(only, "sqlite"))
    text = str(query.compile(engine.sync_engine, compile_kwargs={"literal_binds": True}))
    async with engine.connect() as connection:
        plan = [row[3] for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    await engine.dispose()
    searches = [step for step in plan if "usage_ledger" in step]
    assert searches == ["SEARCH usage_ledger USING INTEGER PRIMARY KEY (rowid>?)"], plan
