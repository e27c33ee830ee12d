"""The ledger priced again: corrections, and nothing rewritten."""

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

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
    an_intent,
    rows,
)
from tests.support.ledger import book
from worker.adapters.database.opening import Database
from worker.adapters.database.reports import By, UsageFilter
from worker.adapters.database.repricing import Repricing
from worker.domain.attempt import AttemptState, Entry
from worker.domain.prices import PriceList
from worker.ports import Claim

CHEAP = PriceList(
    input=Decimal(1), cached_input=Decimal(1), cache_write=Decimal(1), output=Decimal(2), source="by hand"
)


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
