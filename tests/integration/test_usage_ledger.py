"""The ledger read in bulk: summaries, reports, exports, pricing again, erasing content."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.names import Kind
from tests.support.databases import (
    NOON,
    OpenWorker,
    a_claim,
    a_finish,
    a_job,
    a_ledger_entry,
    a_progress,
    a_record,
    a_token,
    a_wait,
    an_intent,
    execute,
    rows,
)
from worker.adapters.database import retention
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.ledger_pages import ledger_pages, settled
from worker.adapters.database.opening import Database
from worker.adapters.database.reports import By, ByLabel, UsageFilter
from worker.adapters.database.repricing import Repricing
from worker.adapters.database.retention import Retention
from worker.adapters.database.summary import Summary
from worker.adapters.database.tables import SUMMED, attempts, requests, results
from worker.cli.ledger_files import CsvFile, LedgerFileError, ParquetFolder
from worker.domain.attempt import Account, AttemptState, Entry
from worker.domain.job import JobKey
from worker.domain.prices import PriceList
from worker.ports import AlreadyDone, Claim

DAY = timedelta(days=1)
CHEAP = PriceList(
    input=Decimal(1), cached_input=Decimal(1), cache_write=Decimal(1), output=Decimal(2), source="by hand"
)


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
    from tests.support.databases import Events, open_database, upgrade  # noqa: PLC0415 used here only

    @asynccontextmanager
    async def both() -> AsyncIterator[tuple[Database, AsyncEngine]]:
        await upgrade(postgres_url)
        engine = open_engine(postgres_url, Use.WRITE)
        async with open_database(postgres_url, observer=Events(), lease_seconds=60) as database:
            yield database, engine
        await engine.dispose()

    return both()


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


class TestExport:
    """Files of ledger rows."""

    async def test_csv_is_stable_and_resumes(
        self, database: Database, engine: AsyncEngine, tmp_path: Path
    ) -> None:
        """The same range gives the same bytes, also where an export was cut off anywhere and went on."""
        await some_of_each(database)
        whole = await to_csv(engine, tmp_path / "whole.csv")
        assert whole == await to_csv(engine, tmp_path / "again.csv")
        assert whole.count(b"\n") == 6
        for cut in range(0, len(whole), 97):
            part = tmp_path / f"{cut}.csv"
            part.write_bytes(whole[:cut])
            assert await to_csv(engine, part, resume=True) == whole
        with pytest.raises(LedgerFileError, match="exists"):
            await to_csv(engine, tmp_path / "whole.csv")
        foreign = tmp_path / "foreign.csv"
        foreign.write_text("name\n1\n")
        with pytest.raises(LedgerFileError, match="no export"):
            await to_csv(engine, foreign, resume=True)

    async def test_rows_that_appear_late_are_exported(
        self, postgres_url: str, open_postgres: Any, tmp_path: Path
    ) -> None:
        """A row whose transaction ends after later ones is waited for, or left for the next time."""
        async with open_postgres as (database, engine):
            await book(database, "first")
            async with slow_booking(engine):
                await book(database, "last")
                assert await settled(engine, patience=0.1) == (0, False)
                waiting = asyncio.ensure_future(settled(engine, patience=30))
                await asyncio.sleep(0)
                assert not waiting.done()
            assert await waiting == (3, True)
            assert (await to_csv(engine, tmp_path / "all.csv")).count(b"\n") == 4

    async def test_no_cell_breaks_a_line(
        self, database: Database, engine: AsyncEngine, tmp_path: Path
    ) -> None:
        """Whatever a model calls itself, a row is a line."""
        await book(database, "a", model="two\nlines", service_tier='quo"te')
        assert (await to_csv(engine, tmp_path / "out.csv")).count(b"\n") == 2

    async def test_parquet_is_stable_and_resumes(
        self, database: Database, engine: AsyncEngine, tmp_path: Path
    ) -> None:
        """Parts of a fixed number of rows: complete ones stay, a short one grows."""
        await some_of_each(database)
        whole = await to_parquet(engine, tmp_path / "whole")
        assert list(whole) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
        assert whole == await to_parquet(engine, tmp_path / "again")
        for lost in whole:
            (tmp_path / "again" / lost).unlink()
            for later in list(whole)[list(whole).index(lost) + 1 :]:
                (tmp_path / "again" / later).unlink(missing_ok=True)
            assert await to_parquet(engine, tmp_path / "again", resume=True) == whole
        await book(database, "more")
        more = await to_parquet(engine, tmp_path / "again", resume=True)
        assert more == await to_parquet(engine, tmp_path / "fresh")
        assert list(more.values())[:2] == list(whole.values())[:2]

    async def test_parquet_holds_the_rows(
        self, database: Database, engine: AsyncEngine, tmp_path: Path
    ) -> None:
        """Numbers are integers, times are UTC, documents are JSON."""
        from pyarrow import parquet  # noqa: PLC0415 an extra

        await some_of_each(database)
        await to_parquet(engine, tmp_path / "out")
        table = parquet.read_table(tmp_path / "out")
        assert table["cost_nano_usd"].to_pylist() == [120_000, 120_000, None, 120_000, 120_000]
        assert table["occurred_at"][0].as_py() == NOON
        assert table["labels"][2].as_py() == r'{"feature":"x\"y"}'


async def to_csv(engine: AsyncEngine, path: Path, *, resume: bool = False) -> bytes:
    """Export everything, two rows a page."""
    with CsvFile(path, resume=resume) as target:
        until = (await settled(engine)).last_id
        async for page in ledger_pages(engine, UsageFilter(), after=target.last_id, until=until, page=2):
            target.write(page)
    return path.read_bytes()  # noqa: ASYNC240 a small file


async def to_parquet(engine: AsyncEngine, folder: Path, *, resume: bool = False) -> dict[str, bytes]:
    """Export everything, two rows a part."""
    with ParquetFolder(folder, resume=resume, rows_a_part=2) as target:
        until = (await settled(engine)).last_id
        async for page in ledger_pages(engine, UsageFilter(), after=target.last_id, until=until, page=3):
            target.write(page)
    return {part.name: part.read_bytes() for part in sorted(folder.iterdir())}  # noqa: ASYNC240 likewise


class TestRepricing:
    """Corrections for prices that were missing or wrong."""

    async def reprice(self, engine: AsyncEngine, *, apply: bool, prices: Any = None) -> list[tuple[Any, ...]]:
        """Price everything again."""
        pages = Repricing(engine, prices or (lambda *_: CHEAP)).run(UsageFilter(), apply=apply)
        return [(one.job_id, one.before, one.after) async for page in pages for one in page]

    async def test_corrects_once_and_rewrites_nothing(
        self, database: Database, engine: AsyncEngine, migrated_url: str
    ) -> None:
        """A dry run only tells; applied, the sums are right, and a second time finds nothing."""
        await book(database, "unpriced", cost_nano_usd=None, prices=None)
        await book(database, "wrong", cost_nano_usd=7, entry=Entry.ESTIMATED)
        await book(database, "right")
        old = "SELECT * FROM usage_ledger WHERE entry <> 'correction' ORDER BY id"
        before = await rows(migrated_url, old)
        told = [("unpriced", None, 120_000), ("wrong", 7, 120_000)]
        assert await self.reprice(engine, apply=False) == told
        assert await rows(migrated_url, "SELECT count(*) FROM usage_ledger") == [(3,)]
        assert await self.reprice(engine, apply=True) == told
        assert await self.reprice(engine, apply=True) == []
        assert await rows(migrated_url, old) == before
        (total,) = await database.queries.usage([])
        assert (total.requests, total.cost_nano_usd, total.unpriced_requests) == (3, 360_000, 0)
        assert (total.estimated_requests, total.estimated_cost_nano_usd) == (1, 120_000)
        assert (total.input_tokens, total.output_tokens) == (240, 60)
        assert await rows(
            migrated_url,
            "SELECT DISTINCT CAST(occurred_at < booked_at OR occurred_at > booked_at AS INTEGER)"
            " FROM usage_ledger WHERE entry = 'correction'",
        ) == [(1,)]

    async def test_after_a_late_outcome(
        self, database: Database, engine: AsyncEngine, open_worker: OpenWorker
    ) -> None:
        """What an attempt comes to, with its corrections, is what is priced."""
        job, old = a_job(), a_token()
        async with open_worker() as dying:
            await dying.store.claim(a_claim(job, old))
        await database.store.claim(a_claim(job, a_token()))
        await database.store.progress(a_progress(job, old))
        assert await self.reprice(engine, apply=True) == []
        dearer = PriceList(
            input=Decimal(2), cached_input=Decimal(2), cache_write=Decimal(2), output=Decimal(4), source="new"
        )
        prices = lambda *_: dearer  # noqa: E731 a stand-in
        assert await self.reprice(engine, apply=True, prices=prices) == [("job", 120_000, 240_000)]
        (total,) = await database.queries.usage([])
        assert (total.cost_nano_usd, total.estimated_requests) == (240_000, 0)

    @pytest.mark.parametrize("reserved", [None, 200_000])
    async def test_before_a_late_outcome(
        self, reserved: int | None, database: Database, engine: AsyncEngine, open_worker: OpenWorker
    ) -> None:
        """An estimate that was priced again is taken back as a whole, from the model asked for."""
        job, old = a_job(), a_token()
        intent = an_intent(reserved_cost_nano_usd=reserved)
        async with open_worker() as dying:
            await dying.store.claim(Claim(job=job, lease_token=old, intent=intent, at=NOON))
        await database.store.claim(a_claim(job, a_token()))
        told = [("job", reserved, 150_000)]
        cheaper = replace(CHEAP, output=Decimal(1))
        assert await self.reprice(engine, apply=True, prices=lambda *_: cheaper) == told
        record = a_record(job.key, ledger=a_ledger_entry(model="gpt-6-luna-2026-08-07"))
        for _ in range(2):
            await database.store.progress(replace(a_progress(job, old), record=record))
        totals = {
            row.group["model"]: (row.requests, row.input_tokens, row.cost_nano_usd)
            for row in await database.queries.usage([By.MODEL])
        }
        assert totals == {"gpt-6-luna": (0, 0, 0), "gpt-6-luna-2026-08-07": (1, 80, 120_000)}
        (total,) = await database.queries.usage([])
        assert (total.unpriced_requests, total.estimated_requests) == (0, 0)
        assert total.estimated_cost_nano_usd == 0

    async def test_corrections_of_corrections(
        self, database: Database, engine: AsyncEngine, migrated_url: str
    ) -> None:
        """However often prices change their mind, an attempt costs what the last ones say."""
        await book(database, "job")
        for price in (3, 1, 3, 2):
            prices = replace(CHEAP, input=Decimal(price), cached_input=Decimal(price), output=Decimal(0))
            await self.reprice(engine, apply=True, prices=lambda *_, now=prices: now)
            (total,) = await database.queries.usage([])
            assert (total.cost_nano_usd, total.requests) == (80_000 * price, 1)
        assert await rows(migrated_url, "SELECT count(*) FROM usage_ledger") == [(5,)]

    async def test_a_price_that_is_gone_changes_nothing(
        self, database: Database, engine: AsyncEngine
    ) -> None:
        """What was priced stays priced, and what has no price stays unpriced; free of charge stays free."""
        await book(database, "priced")
        job, token = a_job("refused"), a_token()
        await database.store.claim(a_claim(job, token))
        await database.store.finish(
            a_finish(job, token, record=a_record(job.key, state=AttemptState.REJECTED, ledger=None))
        )
        assert await self.reprice(engine, apply=True, prices=lambda *_: None) == []

    async def test_two_at_once_correct_once(
        self, database: Database, engine: AsyncEngine, migrated_url: str
    ) -> None:
        """Operators who press the button together do not correct twice."""
        for number in range(5):
            await book(database, f"{number}", cost_nano_usd=None)
        await asyncio.gather(*(self.reprice(engine, apply=True) for _ in range(3)))
        (total,) = await database.queries.usage([])
        assert (total.cost_nano_usd, total.unpriced_requests) == (600_000, 0)
        assert await rows(migrated_url, "SELECT count(*) FROM usage_ledger") == [(10,)]


class TestRetention:
    """Content goes, accounting stays."""

    async def left(self, url: str) -> dict[str, list[str]]:
        """Return what each table still has."""
        return {
            table: [row[0] for row in await rows(url, f"SELECT job_id FROM {table} ORDER BY 1")]  # noqa: S608 names from here
            for table in ("jobs", "usage_ledger", "requests", "results", "attempts")
        }

    async def test_age_limits_by_table(
        self, database: Database, engine: AsyncEngine, migrated_url: str
    ) -> None:
        """Each table has its own limit; jobs that run or owe a reply are left alone."""
        for name, at in (("old", NOON - 10 * DAY), ("new", NOON), ("owed", NOON - 10 * DAY)):
            job, token = a_job(name, received_at=at), a_token()
            await database.store.claim(a_claim(job, token, at=at))
            await database.store.finish(a_finish(job, token, finished_at=at))
        await database.store.claim(a_claim(a_job("runs", received_at=NOON - 10 * DAY), a_token()))
        await execute(migrated_url, "UPDATE jobs SET reply_status = 'sent' WHERE job_id <> 'owed'")
        await Retention(engine).expire({requests: NOON - DAY, results: NOON - 20 * DAY})
        left = await self.left(migrated_url)
        assert left["requests"] == ["new", "owed", "runs"]
        assert left["results"] == ["new", "old", "owed"]
        await Retention(engine).expire({results: NOON - DAY, attempts: NOON - DAY})
        left = await self.left(migrated_url)
        assert left["results"] == ["new", "owed"]
        assert left["attempts"] == ["new", "owed", "runs"]
        assert left["jobs"] == ["new", "old", "owed", "runs"]
        assert left["usage_ledger"] == ["new", "old", "owed"]

    async def test_a_request_to_cancel_what_never_came_is_forgotten(
        self, database: Database, engine: AsyncEngine, migrated_url: str
    ) -> None:
        """In the end, with or without other limits; jobs that wait, and younger requests, stay."""
        long_ago = datetime(2001, 1, 1, tzinfo=UTC)
        await database.store.wait(a_wait(a_job("waits", received_at=long_ago - DAY), None))
        for number in range(450):
            await database.cancels.request_cancel(JobKey("acme", f"typo-{number}"))
        await execute(
            migrated_url, "UPDATE jobs SET received_at = '2000-01-01 00:00:00.000000' WHERE kind IS NULL"
        )
        await database.cancels.request_cancel(JobKey("acme", "young"))
        assert await Retention(engine).forget_cancels(long_ago) == 450
        assert (await self.left(migrated_url))["jobs"] == ["waits", "young"]

    async def test_who_looks_for_something_to_erase_waits_for_nobody(
        self, database: Database, engine: AsyncEngine, migrated_url: str
    ) -> None:
        """However many jobs it looks at, it takes no lock before it has found something."""
        await some_of_each(database)
        writer = open_engine(migrated_url, Use.WRITE)
        async with writer.begin() as writing, asyncio.timeout(10):
            await writing.exec_driver_sql("UPDATE jobs SET labels = labels")
            assert await Retention(engine).expire({requests: NOON - DAY}) == 0
            assert await Retention(engine).erase_tenant("nobody") == 0
        await writer.dispose()

    @pytest.mark.parametrize("stretch", [7, 2_000])
    async def test_many_jobs_in_small_steps(
        self,
        stretch: int,
        database: Database,
        engine: AsyncEngine,
        migrated_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """More jobs than one look or transaction takes are all erased, while others write."""
        monkeypatch.setattr(retention, "_LOOKED_AT", stretch)
        jobs = [a_job(f"{number:03}") for number in range(450)]
        tokens = [a_token() for _ in jobs]
        await asyncio.gather(*(database.store.claim(a_claim(*one)) for one in zip(jobs, tokens, strict=True)))
        await asyncio.gather(
            *(database.store.finish(a_finish(*one)) for one in zip(jobs, tokens, strict=True))
        )
        await execute(migrated_url, "UPDATE jobs SET reply_status = 'sent'")
        erased, _ = await asyncio.gather(
            Retention(engine).expire({requests: NOON + DAY}), book(database, "meanwhile")
        )
        assert erased >= 450
        assert (await self.left(migrated_url))["requests"] in ([], ["meanwhile"])

    async def test_a_tenants_content_is_erased_and_its_bill_stays(
        self, database: Database, engine: AsyncEngine, migrated_url: str
    ) -> None:
        """The other tenants keep theirs; a copy of an erased job is told so, and is not run again."""
        await some_of_each(database)
        await execute(migrated_url, "UPDATE jobs SET reply_status = 'sent'")
        bill = await database.queries.usage([By.TENANT, By.MONTH])
        assert await Retention(engine).erase_tenant("acme", NOON + DAY) == 8
        left = await self.left(migrated_url)
        assert (left["requests"], left["results"]) == (["b"], ["b"])
        assert await database.queries.usage([By.TENANT, By.MONTH]) == bill
        done = await database.store.claim(a_claim(a_job("a"), a_token()))
        assert isinstance(done, AlreadyDone)
        assert done.erased
        assert done.reply.body == b""
