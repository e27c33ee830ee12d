"""The ledger at size: reports, the day view, and what a row costs to book.

    python -m benchmarks.ledger --rows 10000000

Fills both databases with rows that lead up to now, with the ids of jobs half counted up
and half random, sums them up as the workers' upkeep does, and prints one JSON line for
each figure. Ends with 1 if a goal is missed.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from dev.servers import servers
from worker.adapters.database import running
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.ledger import ledger_row
from worker.adapters.database.opening import open_queries
from worker.adapters.database.reports import By, ByLabel, UsageFilter
from worker.adapters.database.setup import upgrade
from worker.adapters.database.statements import Statements
from worker.adapters.database.summary import Summary
from worker.adapters.database.tables import usage_ledger
from worker.domain.attempt import Account, Entry, LedgerEntry
from worker.domain.job import JobKey
from worker.domain.usage import Usage

SMALL: Final = 10_000
TENANTS, MODELS, DAYS = 100, 4, 90
BATCH, PARTS, ROUNDS, WARM = 128, 4, 50, 10
"""Rows a commit; then how often a small ledger is made anew, lest it grow, and its rounds."""
STEP: Final = 200_000
ACCOUNT = Account(name="main", organization="org-1", project="proj-1")
PRICES = {
    "unit": "USD per million",
    "source": "bench",
    "input": "0.1",
    "cached_input": "0.01",
    "output": "0.5",
}

_COLUMNS = """
    tenant, job_id, received_at, attempt_no, entry, model, service_tier, input_tokens, cached_input_tokens,
    output_tokens, cost_nano_usd, prices, labels, organization, project, occurred_at, booked_at, kind,
    account, requests, unpriced_requests, estimated_requests, estimated_cost_nano_usd
"""
# Seconds, in which others overtake.
_WORKED: Final = "(2 + n % 17)"
_PARAMETERS = {"prices": orjson.dumps(PRICES).decode(), "labels": '{"feature":"summaries"}'}
_LOAD: Final = {
    # Only to get there sooner: what is measured has connections of its own.
    "sqlite": ("PRAGMA synchronous = OFF", "PRAGMA cache_size = -1000000"),
    "postgresql": ("SET synchronous_commit = off",),
}

Fresh = Callable[[], Awaitable[str]]


def _values(number: str, random: str, received: str, at: str) -> str:
    return f"""
        'tenant-' || (n % {TENANTS}),
        CASE n / {TENANTS} % 2 WHEN 0 THEN 'job-' || {number} ELSE {random} END, {received}, 1, 'measured',
        'model-' || (n / {TENANTS} % {MODELS}), 'default', 800 + n % 100, 600, 90 + n % 10, 71100 + n % 1000,
        :prices, :labels, 'org-1', 'proj-1', {at}, {at}, 'completion', 'main', 1, 0, 0, 0
    """


def _fill(dialect: str) -> str:
    """Return the statement that makes rows number `first` to `last` of `rows`."""
    if dialect == "sqlite":
        at = f"strftime('%Y-%m-%d %H:%M:%f000', :start, (n * {DAYS * 86_400.0} / :rows{{}}) || ' seconds')"
        values = _values(
            "printf('%010d', n)",
            "lower(hex(randomblob(16)))",
            at.format(f" - {_WORKED}"),
            at.format(""),
        )
        numbers = "WITH RECURSIVE t(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM t WHERE n < :last)"
        return f"{numbers} INSERT INTO usage_ledger ({_COLUMNS}) SELECT {values} FROM t"  # noqa: S608 (all from here)
    at = f"CAST(CAST(:start AS text) AS timestamptz) + n / CAST(:rows AS float) * interval '{DAYS} days'"
    values = _values(
        "lpad(CAST(n AS text), 10, '0')",
        "replace(CAST(gen_random_uuid() AS text), '-', '')",
        f"{at} - {_WORKED} * interval '1 second'",
        at,
    )
    values = values.replace(":prices, :labels", "CAST(:prices AS jsonb), CAST(:labels AS jsonb)")
    numbers = "generate_series(CAST(:first AS int), CAST(:last AS int))"
    return f"INSERT INTO usage_ledger ({_COLUMNS}) SELECT {values} FROM {numbers} AS n"  # noqa: S608 (likewise)


def say(figure: str, value: float, unit: str, goal: str | None, *, ok: bool = True) -> bool:
    """Print one figure."""
    line = {"figure": figure, "value": value, "unit": unit, "goal": goal, "ok": ok}
    print(orjson.dumps(line).decode(), flush=True)
    return ok


@asynccontextmanager
async def ledger(url: str, rows: int) -> AsyncIterator[AsyncEngine]:
    """Give a ledger of that many rows, summed up."""
    await upgrade(url)
    loader = open_engine(url, Use.MIGRATE)
    dialect = loader.dialect.name
    start = datetime.now(UTC) - timedelta(days=DAYS)
    numbers = {"rows": rows, "start": f"{start:%Y-%m-%d %H:%M:%S}" + "+00" * (dialect != "sqlite")}
    async with loader.connect() as connection:
        for setting in _LOAD[dialect]:
            driver = (await connection.get_raw_connection()).driver_connection
            await driver.execute(setting)  # type: ignore[union-attr]
        for first in range(0, rows, STEP):
            async with connection.begin():
                part = {"first": first, "last": min(first + STEP, rows) - 1}
                await connection.execute(text(_fill(dialect)), numbers | part | _PARAMETERS)
    summary = Summary(loader)
    while (await summary.catch_up(500_000)) or await _behind(loader, rows):
        pass
    if dialect == "postgresql":
        async with loader.connect() as connection:
            plain = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await plain.exec_driver_sql("VACUUM ANALYZE usage_ledger")
    await loader.dispose()
    engine = open_engine(url, Use.WRITE)
    yield engine
    await engine.dispose()


async def _behind(engine: AsyncEngine, rows: int) -> bool:
    async with engine.connect() as connection:
        return int(await connection.scalar(text("SELECT ledger_id FROM usage_summary_mark")) or 0) < rows


def some_rows(job_id: Callable[[], str]) -> list[dict[str, object]]:
    """Return a batch as the writer books it."""
    entry = LedgerEntry(
        entry=Entry.MEASURED,
        model="model-1",
        service_tier="default",
        usage=Usage(input_tokens=812, cached_input_tokens=640, output_tokens=95),
        cost_nano_usd=71_100,
        prices=PRICES,
        occurred_at=datetime.now(UTC),
    )
    keys = [JobKey(f"tenant-{place % TENANTS}", job_id()) for place in range(BATCH)]
    return [
        ledger_row(
            key,
            1,
            entry,
            received_at=entry.occurred_at - timedelta(seconds=2 + place % 17),
            kind="completion",
            labels={"feature": "summaries"},
            account=ACCOUNT,
        )
        for place, key in enumerate(keys)
    ]


async def booked(engine: AsyncEngine, connection: AsyncConnection, job_id: Callable[[], str]) -> float:
    """Return the microseconds a row that one batch takes, its commit included."""
    insert = Statements(engine.dialect).insert[usage_ledger]
    rows = some_rows(job_id)
    start = time.perf_counter()
    async with connection.begin():
        await running.run(connection, list(insert.calls(rows)))
    return (time.perf_counter() - start) / BATCH * 1e6


async def insert_cost(
    fresh: Fresh, few: int, large: AsyncEngine, job_id: Callable[[], str]
) -> tuple[float, float, float]:
    """Return medians for both and of their ratio, taken in turns: the machine's moods hit both alike."""
    costs: tuple[list[float], list[float]] = ([], [])
    for _ in range(PARTS):
        async with (
            ledger(await fresh(), few) as small,
            small.connect() as one,
            large.connect() as other,
        ):
            for place in range(WARM + ROUNDS):
                pair = [(small, one, costs[0]), (large, other, costs[1])]
                for engine, connection, taken in pair if place % 2 else pair[::-1]:
                    cost = await booked(engine, connection, job_id)
                    if place >= WARM:
                        taken.append(cost)
    ratios = [many / few for few, many in zip(*costs, strict=True)]
    return statistics.median(costs[0]), statistics.median(costs[1]), statistics.median(ratios)


async def seconds(do: Callable[[], Awaitable[object]]) -> float:
    """Return the median of three runs."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        await do()
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken), 4)


async def reading(name: str, url: str) -> bool:
    """Measure reports and views."""
    # The last whole month.
    until = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    since = (until - timedelta(days=1)).replace(day=1)
    month = UsageFilter(tenant="tenant-7", since=since, until=until)
    day = f"SELECT * FROM usage_daily WHERE day = '{since:%Y-%m}-15'"  # noqa: S608 (a date)
    fine = []
    async with open_queries(url) as queries, open_engine(url, Use.READ).connect() as reader:
        for figure, do in (
            ("tenant month report", lambda: queries.usage([By.MODEL], month)),
            ("tenant month report by label", lambda: queries.usage([ByLabel("feature")], month)),
            ("day view, all of it", lambda: reader.execute(text("SELECT * FROM usage_daily"))),
            ("day view, one day", lambda: reader.execute(text(day))),
            ("month view", lambda: reader.execute(text("SELECT * FROM usage_monthly"))),
        ):
            taken = await seconds(do)
            fine.append(say(f"{name}: {figure}", taken, "s", "<= 1.0 s", ok=taken <= 1))
    return all(fine)


async def measure(name: str, fresh: Fresh, rows: int) -> bool:
    """Measure one engine."""
    start = time.perf_counter()
    url, few = await fresh(), min(SMALL, rows)
    async with ledger(url, rows) as large:
        say(f"{name}: fill and sum up {rows} rows", round(time.perf_counter() - start, 1), "s", None)
        fine = [await reading(name, url)]
        numbers = iter(range(rows, 10**10))
        for ids, job_id in (
            ("ids that count up", lambda: f"job-{next(numbers):010}"),
            ("random ids", lambda: uuid4().hex),
        ):
            one, other, ratio = await insert_cost(fresh, few, large, job_id)
            say(f"{name}: booking a row at {few} rows, {ids}", round(one, 1), "us", None)
            say(f"{name}: booking a row at {rows} rows, {ids}", round(other, 1), "us", None)
            fine.append(
                say(f"{name}: cost ratio, {ids}", round(ratio, 3), "ratio", "<= 1.10", ok=ratio <= 1.1)
            )
    return all(fine)


@asynccontextmanager
async def files() -> AsyncIterator[Fresh]:
    """Give what names new SQLite files, and delete them."""
    with tempfile.TemporaryDirectory() as folder:

        async def fresh() -> str:
            return f"sqlite:///{Path(folder) / token_hex(6)}.db"

        yield fresh


@asynccontextmanager
async def databases(server: str) -> AsyncIterator[Fresh]:
    """Give what makes new databases on a PostgreSQL server, and drop them."""
    names: list[str] = []
    admin = await asyncpg.connect(server)

    async def fresh() -> str:
        names.append(f"bench_{token_hex(6)}")
        await admin.execute(f"CREATE DATABASE {names[-1]}")
        return urlunsplit(urlsplit(server)._replace(path=f"/{names[-1]}"))

    try:
        yield fresh
    finally:
        for name in names:
            await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()


async def run(rows: int, server: str, engines: list[str]) -> bool:
    """Measure what is asked for."""
    fine = []
    places: dict[str, Callable[[], AbstractAsyncContextManager[Fresh]]] = {
        "sqlite": files,
        "postgresql": lambda: databases(server),
    }
    for name in engines:
        async with places[name]() as fresh:
            fine.append(await measure(name, fresh, rows))
    return all(fine)


def main() -> int:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--engine", action="append", choices=["sqlite", "postgresql"])
    options = parser.parse_args()
    engines = options.engine or ["sqlite", "postgresql"]
    with servers(rabbitmq=False, postgres="postgresql" in engines) as found:
        server = found.get("DATABASE_URL") or os.environ.get("DATABASE_URL", "")
        return 0 if asyncio.run(run(options.rows, server, engines)) else 1


if __name__ == "__main__":
    sys.exit(main())
