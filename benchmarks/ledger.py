"""The ledger at size: reports, the day view, and what a row costs to book.

    python -m benchmarks.ledger --rows 10000000

Loads both databases in bulk, sums them up as the workers' upkeep does, and prints one
JSON line for each figure. Ends with 1 if a goal is missed.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from dev.servers import servers
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

SMALL = 10_000
TENANTS, MODELS, DAYS = 100, 4, 90
FIRST = "2026-09-01"
MONTH = UsageFilter(
    tenant="tenant-7", since=datetime(2026, 10, 1, tzinfo=UTC), until=datetime(2026, 11, 1, tzinfo=UTC)
)
BATCH, ROUNDS = 128, 200
ACCOUNT = Account(name="main", organization="org-1", project="proj-1")
PRICES = {
    "unit": "USD per million",
    "source": "bench",
    "input": "0.1",
    "cached_input": "0.01",
    "output": "0.5",
}

_COLUMNS = """
    tenant, job_id, attempt_no, entry, model, service_tier, input_tokens, cached_input_tokens,
    output_tokens, cost_nano_usd, prices, labels, organization, project, occurred_at, booked_at, kind,
    account, requests, unpriced_requests, estimated_requests, estimated_cost_nano_usd
"""
_PRICES_TEXT = orjson.dumps(PRICES).decode()
_LABELS_TEXT = '{"feature":"summaries"}'


def _values(number: str, at: str) -> str:
    return f"""
        'tenant-' || (n % {TENANTS}), 'job-' || {number}, 1, 'measured',
        'model-' || (n / {TENANTS} % {MODELS}), 'default', 800 + n % 100, 600, 90 + n % 10, 71100 + n % 1000,
        :prices, :labels, 'org-1', 'proj-1', {at}, {at}, 'completion', 'main', 1, 0, 0, 0
    """


def _fill(dialect: str) -> str:
    """Return the statement that makes rows number `first` to `last` of `rows`."""
    if dialect == "sqlite":
        values = _values(
            "printf('%010d', n)",
            f"strftime('%Y-%m-%d %H:%M:%f', '{FIRST}', (n * {DAYS * 86_400.0} / :rows) || ' seconds')",
        )
        numbers = "WITH RECURSIVE t(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM t WHERE n < :last)"
        return f"{numbers} INSERT INTO usage_ledger ({_COLUMNS}) SELECT {values} FROM t"  # noqa: S608 (all from here)
    values = _values(
        "lpad(CAST(n AS text), 10, '0')",
        f"timestamptz '{FIRST} 00:00:00+00' + n / CAST(:rows AS float) * interval '{DAYS} days'",
    )
    values = values.replace(":prices, :labels", "CAST(:prices AS jsonb), CAST(:labels AS jsonb)")
    numbers = "generate_series(CAST(:first AS int), CAST(:last AS int))"
    return f"INSERT INTO usage_ledger ({_COLUMNS}) SELECT {values} FROM {numbers} AS n"  # noqa: S608 (likewise)


def say(figure: str, value: float, unit: str, goal: str | None, *, ok: bool = True) -> bool:
    """Print one figure."""
    print(
        orjson.dumps({"figure": figure, "value": value, "unit": unit, "goal": goal, "ok": ok}).decode(),
        flush=True,
    )
    return ok


@asynccontextmanager
async def ledger(url: str, rows: int) -> AsyncIterator[AsyncEngine]:
    """Give a ledger of that many rows, summed up."""
    await upgrade(url)
    loader = open_engine(url, Use.MIGRATE)
    step = 200_000
    for first in range(0, rows, step):
        async with loader.begin() as connection:
            numbers = {"first": first, "last": min(first + step, rows) - 1, "rows": rows}
            texts = {"prices": _PRICES_TEXT, "labels": _LABELS_TEXT}
            await connection.execute(text(_fill(loader.dialect.name)), numbers | texts)
    summary = Summary(loader)
    while (await summary.catch_up(500_000)) or await _behind(loader, rows):
        pass
    if loader.dialect.name == "postgresql":
        async with loader.connect() as connection:
            await (await connection.execution_options(isolation_level="AUTOCOMMIT")).exec_driver_sql(
                "VACUUM ANALYZE usage_ledger"
            )
    await loader.dispose()
    engine = open_engine(url, Use.WRITE)
    yield engine
    await engine.dispose()


async def _behind(engine: AsyncEngine, rows: int) -> bool:
    async with engine.connect() as connection:
        return int(await connection.scalar(text("SELECT ledger_id FROM usage_summary_mark")) or 0) < rows


def some_rows(number: Callable[[], str]) -> list[dict[str, object]]:
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
    return [
        ledger_row(
            JobKey(f"tenant-{place % TENANTS}", f"job-{number()}"),
            1,
            entry,
            kind="completion",
            labels={"feature": "summaries"},
            account=ACCOUNT,
        )
        for place in range(BATCH)
    ]


async def booked(engine: AsyncEngine, connection: AsyncConnection, number: Callable[[], str]) -> float:
    """Return the microseconds a row that one batch takes, its commit included."""
    insert = Statements(engine.dialect.name).insert[usage_ledger]
    rows = some_rows(number)
    start = time.perf_counter()
    async with connection.begin():
        await connection.execute(insert, rows)
    return (time.perf_counter() - start) / BATCH * 1e6


async def insert_cost(
    small: AsyncEngine, large: AsyncEngine, number: Callable[[], str]
) -> tuple[float, float, float]:
    """Return medians for both and of their ratio, taken in turns: the machine's moods hit both alike."""
    costs: tuple[list[float], list[float]] = ([], [])
    async with small.connect() as one, large.connect() as other:
        for place in range(ROUNDS + 5):
            pair = [(small, one, costs[0]), (large, other, costs[1])]
            for engine, connection, taken in pair if place % 2 else pair[::-1]:
                cost = await booked(engine, connection, number)
                if place >= 5:  # warm by then
                    taken.append(cost)
    ratios = [many / few for few, many in zip(*costs, strict=True)]
    return statistics.median(costs[0]), statistics.median(costs[1]), statistics.median(ratios)


async def seconds(do: Callable[[], object]) -> float:
    """Return the median of three runs."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        await do()  # type: ignore[misc]
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken), 4)


async def measure(name: str, small_url: str, large_url: str, rows: int) -> bool:
    """Measure one engine."""
    start = time.perf_counter()
    async with ledger(small_url, min(SMALL, rows)) as small, ledger(large_url, rows) as large:
        say(f"{name}: load and sum up {rows} rows", round(time.perf_counter() - start, 1), "s", None)
        fine = []
        async with open_queries(large_url) as queries, open_engine(large_url, Use.READ).connect() as reader:
            for figure, do, goal in (
                ("tenant month report", lambda: queries.usage([By.MODEL], MONTH), 1.0),
                ("tenant month report by label", lambda: queries.usage([ByLabel("feature")], MONTH), None),
                ("day view, all of it", lambda: reader.execute(text("SELECT * FROM usage_daily")), 1.0),
                (
                    "day view, one day",
                    lambda: reader.execute(text("SELECT * FROM usage_daily WHERE day = '2026-10-15'")),
                    1.0,
                ),
                ("month view", lambda: reader.execute(text("SELECT * FROM usage_monthly")), 1.0),
            ):
                taken = await seconds(do)
                fine.append(
                    say(
                        f"{name}: {figure}",
                        taken,
                        "s",
                        goal and f"<= {goal} s",
                        ok=goal is None or taken <= goal,
                    )
                )
        numbers = iter(range(rows, 10**9))
        for ids, number, gate in (
            ("ids in order", lambda: f"{next(numbers):010}", True),
            ("random ids", lambda: uuid4().hex, False),
        ):
            few, many, ratio = await insert_cost(small, large, number)
            say(f"{name}: booking a row at {min(SMALL, rows)} rows, {ids}", round(few, 1), "us", None)
            say(f"{name}: booking a row at {rows} rows, {ids}", round(many, 1), "us", None)
            ratio = round(ratio, 3)
            ok = ratio <= 1.1
            fine.append(
                say(
                    f"{name}: cost ratio, {ids}",
                    ratio,
                    "ratio",
                    "<= 1.10" if gate else None,
                    ok=ok or not gate,
                )
            )
    return all(fine)


@asynccontextmanager
async def fresh_databases(server: str) -> AsyncIterator[tuple[str, str]]:
    """Give two empty databases on a PostgreSQL server, and drop them."""
    names = [f"bench_{token_hex(6)}" for _ in range(2)]
    admin = await asyncpg.connect(server)
    try:
        for name in names:
            await admin.execute(f"CREATE DATABASE {name}")
        first, second = (urlunsplit(urlsplit(server)._replace(path=f"/{name}")) for name in names)
        yield first, second
    finally:
        for name in names:
            await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()


async def run(rows: int, server: str, engines: list[str]) -> bool:
    """Measure what is asked for."""
    fine = []
    if "sqlite" in engines:
        with tempfile.TemporaryDirectory() as folder:
            small, large = (f"sqlite:///{Path(folder) / name}.db" for name in ("small", "large"))
            fine.append(await measure("sqlite", small, large, rows))
    if "postgresql" in engines:
        async with fresh_databases(server) as (small, large):
            fine.append(await measure("postgresql", small, large, rows))
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
