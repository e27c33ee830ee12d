"""The ledger read in bulk: what reports say, with and without sums in advance, and by label."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.names import Kind
from tests.support.databases import NOON, OpenWorker, execute, rows
from tests.support.ledger import DAY, book, slow_booking, some_of_each, to_csv
from worker.adapters.database.opening import Database
from worker.adapters.database.reports import By, ByLabel, UsageFilter
from worker.adapters.database.summary import Summary
from worker.adapters.database.tables import SUMMED


def plain_sums(source: str) -> str:
    """Return a query of all sums."""
    sums = ", ".join(f"CAST(coalesce(sum({name}), 0) AS BIGINT)" for name in SUMMED)
    return f"SELECT {sums} FROM {source}"  # noqa: S608 names from the program


class TestSummary:
    """Sums in advance change what reports cost, never what they say."""

    async def test_reports_say_the_same_before_and_after(
        self, database: Database, engine: AsyncEngine
    ) -> None:
        """Each grouping and filter gives the same sums whether rows are summed up, not yet, or half."""
        summary = Summary(engine)
        queries: list[tuple[list[Any], UsageFilter]] = [
            ([by], only)
            for by in By
            for only in (
                UsageFilter(),
                UsageFilter(tenant="acme"),
                UsageFilter(since=NOON.replace(hour=0)),
                UsageFilter(until=(NOON + DAY).replace(hour=0)),
                UsageFilter(since=NOON, model="gpt-6-luna", kind=Kind.COMPLETION, project="proj-1"),
                UsageFilter(organization="org-1", account="main"),
                UsageFilter(organization=""),
            )
        ]
        await some_of_each(database)
        before = [await database.queries.usage(by, only) for by, only in queries]
        while not await summary.catch_up(2):
            pass
        await book(database, "f", occurred_at=NOON + DAY)
        half = [await database.queries.usage(by, only) for by, only in queries]
        while not await summary.catch_up():
            pass
        after = [await database.queries.usage(by, only) for by, only in queries]
        assert half == after != before
        assert sum(row.requests for row in after[0]) == 6

    async def test_rows_for_earlier_days_are_counted_there(
        self, database: Database, engine: AsyncEngine, migrated_url: str, tmp_path: Path
    ) -> None:
        """What comes to a day that was summed up, and exported, long ago is added to both."""
        await book(database, "early")
        await book(database, "later", occurred_at=NOON + DAY)
        await summed_up_to(2, migrated_url, engine)
        export = tmp_path / "ledger.csv"
        exported = await to_csv(engine, export)
        await book(database, "lost and found")
        days = [("2026-11-22", 2, 240_000), ("2026-11-23", 1, 120_000)]
        for _ in range(2):
            found = await database.queries.usage([By.DAY])
            assert [(row.group["day"], row.requests, row.cost_nano_usd) for row in found] == days
            await summed_up_to(3, migrated_url, engine)
        more = await to_csv(engine, export, resume=True)
        assert more.startswith(exported)
        assert more.count(b"\n") == exported.count(b"\n") + 1

    async def test_views_and_ledger_agree_while_workers_write(
        self, database: Database, engine: AsyncEngine, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """However summing and booking overlap, no row is left out or counted twice at any moment."""
        done = asyncio.Event()

        async def sum_up() -> None:
            while not done.is_set():
                await Summary(engine).catch_up(7)
                await asyncio.sleep(0)

        async def look() -> None:
            while not done.is_set():
                both = f"{plain_sums('usage_ledger')} UNION ALL {plain_sums('usage_daily')}"
                ledger, daily = await rows(migrated_url, both)
                assert ledger == daily

        async with open_worker() as other, asyncio.TaskGroup() as group:
            for task in (sum_up(), sum_up(), look()):
                group.create_task(task)
            for part in range(10):
                await asyncio.gather(
                    *(
                        book(worker, f"{part}-{n}-{id(worker)}")
                        for worker in (database, other)
                        for n in range(20)
                    )
                )
            done.set()
        while (await rows(migrated_url, "SELECT ledger_id FROM usage_summary_mark"))[0][0] < 400:
            await Summary(engine).catch_up()
        assert await rows(migrated_url, plain_sums("usage_ledger")) == await rows(
            migrated_url, plain_sums("usage_summary")
        )

    async def test_rows_that_appear_late_are_counted(self, postgres_url: str, open_postgres: Any) -> None:
        """A row whose transaction commits after rows with higher ids is not passed over."""
        async with open_postgres as (database, engine):
            await book(database, "first")
            async with slow_booking(engine):
                await book(database, "last")
                for _ in range(4):
                    await Summary(engine).catch_up()
                assert await rows(postgres_url, "SELECT ledger_id FROM usage_summary_mark") == [(0,)]
            await summed_up_to(3, postgres_url, engine)
            assert await rows(postgres_url, "SELECT sum(requests) FROM usage_summary") == [(3,)]

    async def test_goes_on_where_the_database_was_restored(
        self, postgres_url: str, open_postgres: Any
    ) -> None:
        """On a server that counts its transactions anew, nothing waits for those of the old one."""
        async with open_postgres as (database, engine):
            await book(database, "before")
            await execute(
                postgres_url,
                "UPDATE usage_summary_mark SET next_ledger_id = 1, next_transaction = '99999999999'",
            )
            await book(database, "after")
            await summed_up_to(2, postgres_url, engine)


async def summed_up_to(ledger_id: int, url: str, engine: AsyncEngine) -> None:
    """Sum up until the mark is there: transactions of the server's other databases may hold it up."""
    async with asyncio.timeout(30):
        while await rows(url, "SELECT ledger_id FROM usage_summary_mark") != [(ledger_id,)]:
            await Summary(engine).catch_up()


async def test_reports_by_label(database: Database) -> None:
    """A label is a group and a filter like any other; rows without it are a group of their own."""
    await some_of_each(database)
    by = await database.queries.usage([ByLabel("feature"), By.TENANT])
    assert {(row.group["label:feature"], row.group["tenant"]): row.requests for row in by} == {
        ("summaries", "acme"): 3,
        ("summaries", "globex"): 1,
        ('x"y', "acme"): 1,
    }
    (none,) = await database.queries.usage([ByLabel("no such")])
    assert (none.group, none.requests) == ({"label:no such": None}, 5)
    (total,) = await database.queries.usage([], UsageFilter(labels={"feature": 'x"y'}))
    assert (total.requests, total.unpriced_requests) == (1, 1)


@pytest.mark.parametrize(
    "text",
    ["a.b", "it's", "a%b", "100 %s", "ключ", "日本 語", "$[0]", "0", "a:b=c", "--", "*", "null", ";DROP"],
)
async def test_labels_may_be_any_text(text: str, database: Database) -> None:
    """No name or value of a label means anything to the database."""
    await book(database, "odd", job={"labels": {text: text}})
    await book(database, "plain")
    by = await database.queries.usage([ByLabel(text)])
    assert {row.group[f"label:{text}"]: row.requests for row in by} == {text: 1, None: 1}
    (total,) = await database.queries.usage([], UsageFilter(labels={text: text}))
    assert total.requests == 1
