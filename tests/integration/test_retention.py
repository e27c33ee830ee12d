"""Content that is erased, by age or by tenant, and accounting that stays."""

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.databases import NOON, a_claim, a_finish, a_job, a_token, a_wait, execute, rows
from tests.support.ledger import DAY, book, some_of_each
from worker.adapters.database import retention
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.opening import Database
from worker.adapters.database.reports import By
from worker.adapters.database.retention import Retention
from worker.adapters.database.tables import attempts, requests, results
from worker.domain.job import JobKey
from worker.ports import AlreadyDone


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
