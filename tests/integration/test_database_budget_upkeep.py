"""What workers look after of budgets: lost holds, warnings, sums."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from tests.support.budgets import BUDGET, COST, HELD, holds, spent
from tests.support.databases import (
    Events,
    OpenWorker,
    a_claim,
    a_finish,
    a_job,
    a_ledger_entry,
    a_next_attempt,
    a_progress,
    a_record,
    a_token,
    rows,
)
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.opening import Database
from worker.adapters.database.reports import UsageFilter
from worker.adapters.database.repricing import Repricing
from worker.adapters.database.upkeep import Upkeep
from worker.domain.attempt import Entry
from worker.domain.events import BudgetSeen, Event
from worker.domain.prices import PriceList


@pytest.fixture
async def database(open_worker: OpenWorker) -> AsyncIterator[Database]:
    """Give a worker that knows of a budget for acme."""
    async with open_worker(budgets={"acme": BUDGET}) as opened:
        yield opened


class TestUpkeep:
    """What workers look after."""

    async def test_sweep_writes_off_what_dead_workers_held(
        self, open_worker: OpenWorker, database: Database, migrated_url: str
    ) -> None:
        """A job that nobody takes over holds nothing for ever: it counts as spent, once."""
        async with open_worker(budgets={"acme": BUDGET}) as dying:
            await dying.store.claim(a_claim(a_job("lost"), a_token()))
            await dying.store.claim(a_claim(a_job("alive"), a_token()))
            assert await asked(migrated_url, database, Upkeep.write_off) == 0
        assert len(await holds(migrated_url)) == 2
        assert await asked(migrated_url, database, Upkeep.write_off) == 2
        assert await asked(migrated_url, database, Upkeep.write_off) == 0
        assert (await holds(migrated_url), await spent(migrated_url)) == ([], 2 * HELD)
        assert await rows(migrated_url, "SELECT DISTINCT state FROM attempts") == [("unknown",)]
        assert await rows(migrated_url, "SELECT DISTINCT entry FROM usage_ledger") == [(Entry.ESTIMATED,)]

    @pytest.mark.parametrize("then", ["goes on", "ends"])
    async def test_who_wakes_up_after_the_sweep_goes_on_and_its_outcome_counts(
        self, then: str, open_worker: OpenWorker, database: Database, migrated_url: str
    ) -> None:
        """A worker taken for dead, whose job nobody took over, ends it; the estimate is taken back."""
        job, token = a_job(), a_token()
        async with open_worker(budgets={"acme": BUDGET}) as stalled:
            await stalled.store.claim(a_claim(job, token))
        assert await asked(migrated_url, database, Upkeep.write_off) == 1
        for _ in range(2):
            if then == "ends":
                assert await database.store.finish(a_finish(job, token))
            else:
                assert await database.store.progress(a_progress(job, token, checkpoint=b"state"))
        assert (await holds(migrated_url), await spent(migrated_url)) == ([], COST)
        entries = "SELECT entry, cost_nano_usd FROM usage_ledger ORDER BY id"
        assert await rows(migrated_url, entries) == [
            ("estimated", HELD),
            ("correction", -HELD),
            ("correction", COST),
        ]
        assert await rows(migrated_url, "SELECT state FROM attempts") == [("succeeded",)]
        if then == "goes on":
            await database.store.next_attempt(a_next_attempt(job, token, 2))
            assert await database.store.finish(a_finish(job, token, 2))
        assert await rows(migrated_url, "SELECT status FROM jobs") == [("succeeded",)]
        assert await spent(migrated_url) == COST * (1 if then == "ends" else 2)

    async def test_warns_once_a_month(self, database: Database, migrated_url: str) -> None:
        """At 80 % operators are told, by one worker and once."""
        now = database.clock.now()
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token, at=now))
        record = a_record(job.key, ledger=a_ledger_entry(cost_nano_usd=BUDGET * 4 // 5, occurred_at=now))
        events = Events()
        async with looked_after(migrated_url, database, events) as upkeep:
            await upkeep.look_after_budgets()
            await database.store.finish(a_finish(job, token, record=record))
            await upkeep.look_after_budgets()
            await upkeep.look_after_budgets()
        seen = [event for event in events.seen if isinstance(event, BudgetSeen)]
        assert [(event.warn, event.spent_nano_usd) for event in seen] == [
            (False, 0),
            (True, 800_000),
            (False, 800_000),
        ]

    async def test_tells_of_answers_that_nobody_can_price(
        self, database: Database, migrated_url: str
    ) -> None:
        """They count for nothing until they are priced; each worker says once that some are missing."""
        now, job, token = database.clock.now(), a_job(), a_token()
        await database.store.claim(a_claim(job, token, at=now))
        unknown = a_ledger_entry(model="gpt-7", cost_nano_usd=None, prices=None, occurred_at=now)
        assert await database.store.finish(a_finish(job, token, record=a_record(job.key, ledger=unknown)))
        assert (await holds(migrated_url), await spent(migrated_url)) == ([], 0)
        events = Events()
        async with looked_after(migrated_url, database, events) as upkeep:
            for _ in range(2):
                await upkeep.look_after_budgets()
            prices = PriceList(
                input=Decimal(1),
                cached_input=Decimal(1),
                cache_write=Decimal(1),
                output=Decimal(2),
                source="new",
            )
            async for _ in Repricing(upkeep._engine, lambda *_: prices).run(UsageFilter(), apply=True):
                pass
            await upkeep.look_after_budgets()
        seen = [one for one in events.seen if isinstance(one, BudgetSeen)]
        assert [(one.incomplete, one.unpriced_requests, one.spent_nano_usd) for one in seen] == [
            (True, 1, 0),
            (False, 1, 0),
            (False, 0, COST),
        ]
        assert await spent(migrated_url) == COST

    async def test_a_warning_outlives_the_worker_that_gives_it(
        self, database: Database, migrated_url: str
    ) -> None:
        """Who dies while telling has told nobody: the next one tells, and only then is it done."""

        def dies(event: object) -> None:
            assert isinstance(event, BudgetSeen)
            if event.warn:
                raise ConnectionAbortedError

        now, job, token = database.clock.now(), a_job(), a_token()
        await database.store.claim(a_claim(job, token, at=now))
        record = a_record(job.key, ledger=a_ledger_entry(cost_nano_usd=BUDGET * 9 // 10, occurred_at=now))
        await database.store.finish(a_finish(job, token, record=record))
        async with looked_after(migrated_url, database, dies) as upkeep:
            with pytest.raises(ConnectionAbortedError):
                await upkeep.look_after_budgets()
        events = Events()
        async with looked_after(migrated_url, database, events) as upkeep:
            await upkeep.look_after_budgets()
            await upkeep.look_after_budgets()
        assert [event.warn for event in events.seen if isinstance(event, BudgetSeen)] == [True, False]

    async def test_holds_of_a_budget_that_only_others_know_stay(
        self, open_worker: OpenWorker, database: Database, migrated_url: str
    ) -> None:
        """While workers are given a new budget one after the other, the old ones leave its holds alone."""
        async with open_worker(budgets={"globex": BUDGET}) as newer:
            await newer.store.claim(a_claim(a_job(tenant="globex"), a_token()))
            await asked(migrated_url, database, Upkeep.write_off)
            assert await holds(migrated_url) == [("job", 1, HELD)]
        await asked(migrated_url, database, Upkeep.write_off)
        assert await holds(migrated_url) == []

    async def test_sums_are_put_right(
        self, open_worker: OpenWorker, database: Database, migrated_url: str
    ) -> None:
        """What a worker without knowledge of the budget has spent is counted at the next look."""
        now = database.clock.now()
        await database.store.claim(a_claim(a_job("first"), a_token(), at=now))
        async with open_worker() as unaware:
            job, token = a_job(), a_token()
            await unaware.store.claim(a_claim(job, token, at=now))
            record = a_record(job.key, ledger=a_ledger_entry(occurred_at=now))
            await unaware.store.finish(a_finish(job, token, record=record))
        await asked(migrated_url, database, Upkeep.look_after_budgets)
        assert await spent(migrated_url) == COST


@asynccontextmanager
async def looked_after(
    url: str, database: Database, events: Callable[[Event], None]
) -> AsyncIterator[Upkeep]:
    """Open an upkeep that knows the budget, and does nothing by itself."""
    engine = open_engine(url, Use.WRITE)
    yield Upkeep(engine, database, budgets={"acme": BUDGET}, keep_days={}, observer=events)
    await engine.dispose()


async def asked(url: str, database: Database, what: Any) -> Any:
    """Have an upkeep do one thing."""
    async with looked_after(url, database, Events()) as upkeep:
        return await what(upkeep)
