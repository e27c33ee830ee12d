"""What is admitted leaves only if nobody was refused before it does: its intent has to be written first."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from typing_extensions import override

from tests.support.databases import Events, a_job
from tests.support.loop_clock import SkippingClock
from tests.support.memory_quota import MemoryQuota
from worker.core.journal import Journal
from worker.core.limiter import SharedLimiter
from worker.core.limits import Limit, LimitBook, Need, Permit, PostponedError
from worker.core.permit import GatePermit
from worker.core.run import JobRun
from worker.core.services import Policy, Services
from worker.core.worktime import StoppedError
from worker.domain.attempt import Account
from worker.domain.events import Broken
from worker.domain.job import JobKey
from worker.domain.outcome import Answered, Outcome
from worker.domain.quota import Glance
from worker.domain.usage import Usage
from worker.ports import Call, Claimed, JobStore, NextAttempt, OpenAI, PriceBook, Progress

ACCOUNT, MODEL = Account(), "gpt-6-luna"
BOOK = LimitBook(default=Limit(requests_per_minute=1200), by_model={})
"""20 requests a second, 10 at once."""
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "model": MODEL,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
NUMBERS = count()


def need() -> Need:
    """Build a need; each comes after the one before."""
    number = next(NUMBERS)
    return Need(
        key=JobKey("t", str(number)),
        account=ACCOUNT,
        model=MODEL,
        input_tokens=1,
        received_at=float(number),
    )


class LookedAt(MemoryQuota):
    """Counts how often somebody looks."""

    looks = 0
    away = hanging = False

    def __init__(self, clock: SkippingClock) -> None:
        super().__init__(clock)
        self.clock = clock

    @override
    async def look(self, account: str, name: str) -> Glance:
        self.looks += 1
        if self.away:
            raise ConnectionError
        if self.hanging:
            await asyncio.Event().wait()
        return await super().look(account, name)


@asynccontextmanager
async def workers(number: int, quota: LookedAt, events: Events) -> AsyncIterator[list[SharedLimiter]]:
    """Open limiters that know of each other."""
    quota.others = number - 1
    if number == 0:
        yield []
        return
    async with (
        SharedLimiter.opened(BOOK, quota, quota.clock, events) as limiter,
        workers(number - 1, quota, events) as others,
    ):
        quota.others = number - 1
        yield [limiter, *others]


@pytest.fixture
def quota() -> LookedAt:
    """Return what limiters share."""
    return LookedAt(SkippingClock())


async def test_what_was_admitted_before_a_refusal_stays(quota: LookedAt) -> None:
    """Even once it is open again: then it was meant for the full speed."""
    async with workers(1, quota, Events()) as (limiter,):
        before = await limiter.admit(need(), patience=5)
        assert await before.holds()
        limiter.close_bucket(ACCOUNT, MODEL, 0.3, "rate_limit_exceeded")
        assert not await before.holds()
        before.cancel()
        after = await limiter.admit(need(), patience=5)
        assert not await before.holds()
        assert await after.holds()


async def test_who_was_let_go_in_the_same_moment_stays(quota: LookedAt) -> None:
    """A start is known, but its task runs only once it is closed."""
    async with workers(1, quota, Events()) as (limiter,):
        (await limiter.admit(need(), patience=5)).settle(used=False)
        task = asyncio.create_task(limiter.admit(need(), patience=5))
        (gate,) = limiter._gates
        while not gate.running:  # noqa: ASYNC110 to the turn of the loop
            await asyncio.sleep(0)
        assert not task.done()
        limiter.close_bucket(ACCOUNT, MODEL, 60, "rate_limit_exceeded")
        with pytest.raises(PostponedError):
            await task


async def test_another_workers_refusal_is_seen_at_the_last_moment(quota: LookedAt) -> None:
    """It is looked up where the last news is old; from then on the gate is closed here too."""
    async with workers(2, quota, Events()) as (one, two):
        permit = await one.admit(need(), patience=5)
        assert await permit.holds()
        two.close_bucket(ACCOUNT, MODEL, 5.0, "rate_limit_exceeded")
        await asyncio.sleep(0.1)
        assert not await permit.holds()
        permit.cancel()
        assert await one.try_admit(need()) is None
    assert quota.looks == 1


async def test_those_who_have_just_come_look_too(quota: LookedAt) -> None:
    """Whoever began at the same time is not counted yet: a lone worker looks for two seconds only."""
    async with workers(2, quota, Events()) as (one, two):
        quota.others = 0
        permit = await one.admit(need(), patience=5)
        two.close_bucket(ACCOUNT, MODEL, 0.3, "rate_limit_exceeded")
        await asyncio.sleep(0.1)
        assert not await permit.holds()
        permit.cancel()
        later = await one.admit(need(), patience=5)
        looks = quota.looks
        await asyncio.sleep(0.1)
        assert await later.holds()
    assert looks == quota.looks == 1


@pytest.mark.parametrize("since", ["before", "after"])
async def test_those_who_were_held_up_do_not_leave_together(quota: LookedAt, since: str) -> None:
    """After a recent refusal the next one is to be heard of before the others leave.

    What held them up, before or after they were admitted, has held up other workers too.
    """
    async with workers(2, quota, Events()) as (one, two):
        one.close_bucket(ACCOUNT, MODEL, 0.3, "rate_limit_exceeded")
        await asyncio.sleep(0.3)
        quota.clock.skip(6)
        permits = [await limiter.admit(need(), patience=5) for limiter in (one, two) for _ in range(4)]
        await asyncio.sleep(0.1 if since == "after" else 0.03)
        for permit in permits:
            assert isinstance(permit, GatePermit)
            permit.due -= 0.1 if since == "before" else 0.0
        times = list[float]()

        async def leave(permit: Permit) -> None:
            assert await permit.holds()
            times.append(asyncio.get_running_loop().time())

        await asyncio.gather(*map(leave, permits))
    assert 0.02 < max(times) - min(times) < 0.3


@pytest.mark.parametrize("limit", [1200, None])
async def test_a_pause_is_seen_after_a_silence(quota: LookedAt, limit: int | None) -> None:
    """A limit that was not used for long hears of nothing: its first requests look, all of them once."""
    book = LimitBook(default=Limit(requests_per_minute=limit), by_model={})
    async with SharedLimiter.opened(book, quota, quota.clock, Events()) as limiter:
        first = await limiter.admit(need(), patience=5)
        assert await first.holds()
        first.settle(used=True)
        (gate,) = limiter._gates
        while limit and not gate.supply.covers(1):  # noqa: ASYNC110 until some are in hand
            await asyncio.sleep(0.01)
        quota.clock.skip(30)
        quota.paused.add(MODEL)
        # From what is in hand; those that come later may hear of it before they look.
        permits = [permit for _ in range(3) if (permit := await limiter.try_admit(need()))]
        assert permits
        assert not any(await asyncio.gather(*(permit.holds() for permit in permits)))
        assert quota.looks <= 1
        for permit in permits:
            permit.cancel()
        with pytest.raises(PostponedError):
            await limiter.admit(need(), patience=5)
        quota.paused.clear()
        quota.clock.skip(30)
        permit = await limiter.admit(need(), patience=5)
        assert await permit.holds()


async def test_while_nobody_was_refused_nobody_looks(quota: LookedAt) -> None:
    """A start asks its draw, and that is enough."""
    async with workers(2, quota, Events()) as (one, _):
        (await one.admit(need(), patience=5)).settle(used=True)
        quota.clock.skip(3)  # by now all are counted
        for number in range(10):
            permit = await one.admit(need(), patience=5)
            await asyncio.sleep(0.1)
            assert await permit.holds()
            permit.settle(used=True)
            if number == 0:
                quota.looks = 0
    assert quota.looks == 0


async def test_who_cannot_look_goes(quota: LookedAt) -> None:
    """A database that does not answer has kept nobody from going before."""
    events = Events()
    async with workers(2, quota, events) as (one, _):
        permit = await one.admit(need(), patience=5)
        await asyncio.sleep(0.1)
        quota.away = True
        assert await permit.holds()
    assert [type(event) for event in events.seen] == [Broken]


async def test_a_look_that_hangs_holds_nobody_up_for_long(quota: LookedAt) -> None:
    """One connection may hang while all else goes on: they go after half a second, all together."""
    events = Events()
    async with workers(2, quota, events) as (one, _):
        permits = [await one.admit(need(), patience=5) for _ in range(4)]
        quota.clock.skip(30)
        quota.hanging = True
        began = asyncio.get_running_loop().time()
        assert all(await asyncio.gather(*(permit.holds() for permit in permits)))
        assert asyncio.get_running_loop().time() - began < 1
    assert (quota.looks, [type(event) for event in events.seen]) == (1, [Broken])


class Store(JobStore):
    """Something happens while the first intent is written."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile
        self.log = list[str]()

    @override
    async def next_attempt(self, attempt: NextAttempt) -> bool:
        self.log.append(f"intent {attempt.attempt_no}")
        if attempt.attempt_no == 1:
            self.meanwhile()
        return True

    @override
    async def progress(self, progress: Progress) -> bool:
        self.log.append(f"{progress.record.error_code} {progress.record.attempt_no}")
        return True


class Answers(OpenAI):
    """Answers well, and notes when."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.at = 0.0

    @override
    async def send(self, call: Call) -> Outcome:
        self.log.append("sent")
        self.at = asyncio.get_running_loop().time()
        return Answered(body=json.dumps(ANSWER).encode(), headers={}, request_id="req")


class NoPrices(PriceBook):
    """Knows no price."""

    @override
    def prices(self, *_: Any) -> None:
        return None


def _reserve(_: Mapping[str, Any]) -> Usage:
    return Usage(input_tokens=1, output_tokens=1)


def a_run(store: Store, openai: Answers, limiter: SharedLimiter, clock: SkippingClock) -> JobRun:
    """Build the run of a job that has just been claimed."""
    services = Services(
        store=store,
        openai=openai,
        limiter=limiter,
        prices=NoPrices(),
        clock=clock,
        observer=Events(),
        random=lambda: 0.5,
        account_of=lambda _: ACCOUNT,
        policy=Policy(max_attempts=1),
    )
    job, claimed = a_job(request={"model": MODEL}), Claimed(attempt_no=0)
    return JobRun(job, claimed, Journal(job, claimed, 1, services), services, None)


async def test_who_is_stopped_before_its_request_has_sent_nothing(quota: LookedAt) -> None:
    """Cancelled during the last look: the attempt is noted as not sent, and nothing is booked."""
    async with workers(1, quota, Events()) as (limiter,):
        store = Store(lambda: run.work.stop())  # noqa: PLW0108 (there is no run yet)
        openai = Answers(store.log)
        run = a_run(store, openai, limiter, quota.clock)
        with pytest.raises(StoppedError):
            await run.call(run.job.request, _reserve)
        run.forgo()
        record = run.journal.take()
    assert record is not None
    assert (record.error_code, record.ledger, openai.at) == ("not_sent", None, 0.0)


async def test_a_request_that_may_not_leave_any_more_stands_in_line_again(quota: LookedAt) -> None:
    """Its attempt is written off as not sent, which counts as no failure; its place goes to another."""
    async with workers(1, quota, Events()) as (limiter,):
        store = Store(lambda: limiter.close_bucket(ACCOUNT, MODEL, 0.3, "rate_limit_exceeded"))
        openai = Answers(store.log)
        run = a_run(store, openai, limiter, quota.clock)
        began = asyncio.get_running_loop().time()
        answer = await run.call(run.job.request, _reserve)
    assert answer.text == "hi"
    assert store.log == ["intent 1", "not_sent 1", "intent 2", "sent"]
    assert openai.at - began > 0.3
    assert run.step_attempts == 0
