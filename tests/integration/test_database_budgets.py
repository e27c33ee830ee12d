"""Budgets: holds, refusals and what becomes of both, on each database."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event

from tests.support.budgets import BUDGET, COST, HELD, holds, spent
from tests.support.databases import (
    NOON,
    OpenWorker,
    a_claim,
    a_finish,
    a_job,
    a_ledger_entry,
    a_next_attempt,
    a_progress,
    a_record,
    a_token,
    a_wait,
    an_intent,
    rows,
)
from worker.adapters.database.opening import Database
from worker.adapters.database.write_off import WriteOff
from worker.domain.attempt import AttemptState
from worker.domain.budget import OverBudgetError, Purse
from worker.ports import Claim, Claimed


@pytest.fixture
async def database(open_worker: OpenWorker) -> AsyncIterator[Database]:
    """Give a worker that knows of a budget for acme."""
    async with open_worker(budgets={"acme": BUDGET}) as opened:
        yield opened


async def use_up(database: Database, jobs: int) -> None:
    """Run so many jobs to their end."""
    for number in range(jobs):
        job, token = a_job(f"used-{number}"), a_token()
        await database.store.claim(a_claim(job, token))
        assert await database.store.finish(a_finish(job, token))


@contextmanager
def months_asked_for(database: Database) -> Iterator[list[str]]:
    """Give the months that the writer locks, in the order in which it does."""
    found: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _x: Any, _many: bool) -> None:  # noqa: FBT001 (SQLAlchemy's)
        if statement.startswith("SELECT budget_months"):
            found.append(parameters[1])

    engine = database.writer._engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


def claimed(result: object) -> Claimed:
    """Return what must be a claim."""
    assert isinstance(result, Claimed)
    return result


class TestHolds:
    """A reservation is held from its intent to its outcome."""

    async def test_taken_with_the_intent_and_settled_with_the_outcome(
        self, database: Database, migrated_url: str
    ) -> None:
        """Commit 1 takes the hold; commit 2 ends it and counts what was really spent."""
        job, token = a_job(), a_token()
        assert claimed(await database.store.claim(a_claim(job, token))).over_budget is None
        assert await holds(migrated_url) == [("job", 1, HELD)]
        await database.store.finish(a_finish(job, token))
        assert (await holds(migrated_url), await spent(migrated_url)) == ([], COST)

    async def test_repeated_writes_count_once(self, database: Database, migrated_url: str) -> None:
        """Claims, intents and outcomes written again after a lost confirmation change nothing."""
        job, token = a_job(), a_token()
        for _ in range(2):
            assert claimed(await database.store.claim(a_claim(job, token))).over_budget is None
        for _ in range(2):
            await database.store.progress(a_progress(job, token))
        for _ in range(2):
            await database.store.next_attempt(a_next_attempt(job, token, 2))
        assert (await holds(migrated_url), await spent(migrated_url)) == ([("job", 2, HELD)], COST)
        for _ in range(2):
            await database.store.finish(a_finish(job, token, 2))
        assert (await holds(migrated_url), await spent(migrated_url)) == ([], 2 * COST)

    @pytest.mark.parametrize("state", [AttemptState.REJECTED, AttemptState.FAILED])
    async def test_what_was_not_billed_is_given_back(
        self, state: AttemptState, database: Database, migrated_url: str
    ) -> None:
        """A refused request holds nothing and costs nothing."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        record = a_record(job.key, state=state, ledger=None)
        await database.store.finish(a_finish(job, token, record=record))
        assert (await holds(migrated_url), await spent(migrated_url)) == ([], 0)

    async def test_waiting_holds_nothing(self, database: Database, migrated_url: str) -> None:
        """A job that goes waiting after its outcome is written keeps no hold."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        await database.store.progress(a_progress(job, token))
        assert await database.store.wait(a_wait(job, token))
        assert (await holds(migrated_url), await spent(migrated_url)) == ([], COST)

    async def test_takeover_settles_the_dead_workers_hold(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """Who takes a job over counts the lost request at its reservation, and a late outcome corrects it."""
        job, old, new = a_job(), a_token(), a_token()
        async with open_worker(budgets={"acme": BUDGET}) as dying:
            await dying.store.claim(a_claim(job, old))
        await database.store.claim(a_claim(job, new))
        assert (await holds(migrated_url), await spent(migrated_url)) == ([("job", 2, HELD)], HELD)
        for _ in range(2):
            await database.store.progress(a_progress(job, old))
        assert await spent(migrated_url) == COST

    async def test_a_request_across_the_turn_of_the_month(
        self, database: Database, migrated_url: str
    ) -> None:
        """It is held in the month in which it began, and spent in the one in which it was answered."""
        end = datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
        start = end + timedelta(microseconds=1)
        months = "SELECT month, spent_nano_usd FROM budget_months ORDER BY 1"
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token, at=end))
        assert await rows(migrated_url, "SELECT month FROM budget_holds") == [("2026-12",)]
        record = a_record(job.key, ledger=a_ledger_entry(occurred_at=start))
        assert await database.store.finish(a_finish(job, token, record=record))
        assert await holds(migrated_url) == []
        assert await rows(migrated_url, months) == [("2026-12", 0), ("2027-01", COST)]
        # A full month refuses, the next one begins with all of its budget.
        for number in range(9):
            job, token = a_job(f"{number}"), a_token()
            await database.store.claim(a_claim(job, token, at=end))
            record = a_record(job.key, ledger=a_ledger_entry(occurred_at=end))
            await database.store.finish(a_finish(job, token, record=record))
        assert await rows(migrated_url, months) == [("2026-12", 9 * COST), ("2027-01", COST)]
        assert claimed(await database.store.claim(a_claim(a_job("late"), a_token(), at=end))).over_budget
        new = claimed(await database.store.claim(a_claim(a_job("new"), a_token(), at=start)))
        assert new.over_budget is None

    @pytest.mark.parametrize("found_by", ["takeover", "waiting", "write-off"])
    async def test_what_was_lost_is_spent_where_it_was_held(
        self, found_by: str, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """A worker dies on the last day of a month; that is the month that pays, whenever it is found."""
        sent = datetime(2026, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC)
        job, old, found = a_job(received_at=NOON), a_token(), sent + timedelta(minutes=5)
        async with open_worker(budgets={"acme": BUDGET}) as dying:
            await dying.store.claim(a_claim(job, old, at=sent))
        match found_by:
            case "takeover":
                await database.store.claim(a_claim(job, a_token(), at=found, intent=False))
            case "waiting":
                assert await database.store.wait(a_wait(job, None, at=found))
            case _:
                assert await database.writer.submit(WriteOff(job.key, found))
        assert (await holds(migrated_url), await spent(migrated_url)) == ([], HELD)
        assert await rows(migrated_url, "SELECT month FROM budget_months") == [("2026-11",)]
        booked = "SELECT month, cost_nano_usd FROM usage_monthly"
        assert await rows(migrated_url, booked) == [("2026-11", HELD)]
        for _ in range(2):
            await database.store.progress(a_progress(job, old))
        assert await spent(migrated_url) == COST
        assert await rows(migrated_url, booked) == [("2026-11", COST)]

    async def test_months_are_locked_in_their_order_before_anything_is_spent(
        self, database: Database, open_worker: OpenWorker
    ) -> None:
        """Who settles in one month and begins in the next locks both, the older first, as all others do."""
        sent = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)
        job, old, new = a_job(received_at=NOON), a_token(), a_token()
        async with open_worker(budgets={"acme": BUDGET}) as dying:
            await dying.store.claim(a_claim(job, old, at=sent))
        with months_asked_for(database) as asked_for:
            await database.store.claim(a_claim(job, new, at=sent + timedelta(minutes=5)))
        # Read first, and summed up where that finds nothing; changed at the end.
        assert list(dict.fromkeys(asked_for)) == ["2026-11", "2026-12"]
        with months_asked_for(database) as asked_for:
            late = a_record(job.key, ledger=a_ledger_entry(occurred_at=sent + timedelta(minutes=6)))
            await database.store.progress(replace(a_progress(job, old), record=late))
        assert list(dict.fromkeys(asked_for)) == ["2026-11", "2026-12"]

    async def test_other_tenants_pay_nothing(self, database: Database, migrated_url: str) -> None:
        """Without a budget there is neither hold nor month."""
        await database.store.claim(a_claim(a_job(tenant="globex"), a_token()))
        assert await rows(migrated_url, "SELECT * FROM budget_holds") == []
        assert await rows(migrated_url, "SELECT * FROM budget_months") == []


class TestRefusals:
    """What is spent is refused; what is only held is waited for."""

    async def test_spent_budget_refuses_the_first_request(
        self, database: Database, migrated_url: str
    ) -> None:
        """The job is claimed, so that it can be failed, but no attempt is written."""
        await use_up(database, 9)
        assert await spent(migrated_url) == 9 * COST > BUDGET
        job, token = a_job(), a_token()
        for _ in range(2):
            result = claimed(await database.store.claim(a_claim(job, token)))
            assert result.attempt_no == 0
            assert result.over_budget is not None
        assert await rows(migrated_url, "SELECT status, attempts FROM jobs WHERE job_id = 'job'") == [
            ("running", 0)
        ]
        assert await rows(migrated_url, "SELECT * FROM attempts WHERE job_id = 'job'") == []
        assert await holds(migrated_url) == []

    async def test_spent_budget_refuses_further_requests(self, database: Database, migrated_url: str) -> None:
        """So does it between the rounds of a job."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        await database.store.progress(a_progress(job, token))
        await use_up(database, 8)
        with pytest.raises(OverBudgetError) as caught:
            await database.store.next_attempt(a_next_attempt(job, token, 2))
        assert caught.value.over.wait_seconds is None
        assert await rows(migrated_url, "SELECT attempts FROM jobs WHERE job_id = 'job'") == [(1,)]

    async def test_held_budget_is_waited_for(self, database: Database) -> None:
        """While requests in flight hold the rest, the next one waits; it is not refused."""
        tokens = [a_token() for _ in range(6)]
        results = [
            claimed(await database.store.claim(a_claim(a_job(f"{number}"), token)))
            for number, token in enumerate(tokens)
        ]
        assert [result.over_budget is None for result in results] == [True] * 5 + [False]
        assert results[5].over_budget is not None
        assert results[5].over_budget.wait_seconds
        await database.store.wait(a_wait(a_job("5"), tokens[5], seconds=0))
        await database.store.finish(a_finish(a_job("0"), tokens[0]))
        again = claimed(await database.store.claim(a_claim(a_job("5"), a_token())))
        assert (again.over_budget, again.attempt_no) == (None, 1)

    async def test_no_price_no_request(self, database: Database) -> None:
        """What nobody can price, no budget can bound."""
        claim = Claim(
            job=a_job(), lease_token=a_token(), intent=an_intent(reserved_cost_nano_usd=None), at=NOON
        )
        over = claimed(await database.store.claim(claim)).over_budget
        assert over is not None
        assert over.wait_seconds is None

    async def test_a_budget_counts_what_was_spent_before_it(
        self, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """A budget introduced in mid-month knows of the ledger's earlier rows."""
        async with open_worker() as before:
            await use_up(before, 9)
        async with open_worker(budgets={"acme": BUDGET}) as after:
            assert claimed(await after.store.claim(a_claim(a_job(), a_token()))).over_budget is not None
        assert await spent(migrated_url) == 9 * COST


async def test_eight_workers_racing(open_worker: OpenWorker, migrated_url: str) -> None:
    """The overshoot is less than one reservation, nobody is refused too early, and no hold is left."""
    refused_at: list[int] = []

    async def run(worker: Database, chance: random.Random, name: str) -> None:
        for number in range(60):
            job, token = a_job(f"{name}-{number}"), a_token()
            while True:
                result = claimed(await worker.store.claim(a_claim(job, token)))
                over = result.over_budget
                if over is None or over.wait_seconds is None:
                    break
                await worker.store.wait(a_wait(job, token, seconds=0))
                await asyncio.sleep(0.001)
            if over is not None:
                refused_at.append(1)
                await worker.store.finish(a_finish(job, token, record=None))
                continue
            cost = chance.randrange(HELD // 4, HELD)
            record = a_record(job.key, ledger=a_ledger_entry(cost_nano_usd=cost))
            await worker.store.finish(a_finish(job, token, record=record))

    budget = 100 * HELD
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        workers = [await enter(open_worker(budgets={"acme": budget})) for _ in range(8)]
        await asyncio.gather(
            *(run(worker, random.Random(place), f"{place}") for place, worker in enumerate(workers))
        )
    total = await spent(migrated_url)
    assert budget <= total < budget + HELD
    assert refused_at
    assert await holds(migrated_url) == []


def test_purse() -> None:
    """A request goes while anything is left, waits for what is held, and is refused once all is spent."""
    purse = Purse(budget=100, spent=0, held=0)
    assert purse.hold(99) is None
    assert purse.hold(99) is None  # 1 was left
    over = purse.hold(1)
    assert over is not None
    assert over.wait_seconds
    purse.held, purse.spent = 0, 100
    over = purse.hold(1)
    assert over is not None
    assert over.wait_seconds is None
