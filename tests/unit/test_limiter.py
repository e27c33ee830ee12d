"""The limiter: order, patience, shares, closing, credentials, learning."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

import pytest

from tests.support.databases import Events
from tests.support.loop_clock import LoopClock
from tests.support.memory_quota import MemoryQuota
from worker.core.limiter import SharedLimiter
from worker.core.limits import Limit, LimitBook, Need, PostponedError, Share, TooLargeError
from worker.domain.attempt import Account
from worker.domain.bucket import Size
from worker.domain.job import JobKey
from worker.domain.usage import Usage

ACCOUNT = Account()
FAST = Limit(tokens_per_minute=6000)
BOOK = LimitBook(
    default=Limit(),
    by_model={"m": FAST, "one": Limit(max_concurrency=1), "r": Limit(requests_per_minute=600)},
)
SHARES = {"heavy": Share(weight=3), "narrow": Share(max_concurrency=1)}
ARRIVALS = count(1.0)


def need(job_id: str, tokens: int = 10, *, tenant: str = "t", high: bool = False, model: str = "m") -> Need:
    """Build a need; each comes after the one before."""
    return Need(
        key=JobKey(tenant, job_id),
        account=ACCOUNT,
        model=model,
        input_tokens=0,
        output_tokens=tokens,
        high=high,
        received_at=next(ARRIVALS),
    )


@pytest.fixture
def quota() -> MemoryQuota:
    """Return what limiters share."""
    return MemoryQuota(LoopClock())


@asynccontextmanager
async def opened(quota: MemoryQuota) -> AsyncIterator[SharedLimiter]:
    """100 tokens a second, 6000 a minute, for model m; 10 requests a second for r; others are not limited."""
    async with SharedLimiter.opened(BOOK, quota, LoopClock(), Events(), shares=SHARES) as limiter:
        yield limiter


@pytest.fixture
async def limiter(quota: MemoryQuota) -> AsyncIterator[SharedLimiter]:
    """One worker's limiter."""
    async with opened(quota) as one:
        yield one


async def owe(limiter: SharedLimiter, tokens: int) -> None:
    """Bring the bucket of m to so many tokens below zero."""
    permit = await limiter.admit(need("debt", tokens + 50), patience=1)
    permit.settle(used=True)


async def test_a_free_bucket_admits_at_once(limiter: SharedLimiter) -> None:
    """No wait where there is room, up to the whole limit at once."""
    async with asyncio.timeout(0.5):
        await limiter.admit(need("a", 6000), patience=1)


async def test_larger_than_the_bucket_is_refused_at_once(limiter: SharedLimiter) -> None:
    """It could never be served."""
    with pytest.raises(TooLargeError, match="6001 tokens"):
        await limiter.try_admit(need("a", 6001))


async def test_the_line_is_served_in_order_whatever_the_size(limiter: SharedLimiter) -> None:
    """A large request at the head is not overtaken by small ones."""
    await owe(limiter, 20)
    order = list[str]()

    async def wait_for(one: Need) -> None:
        await limiter.admit(one, patience=5)
        order.append(one.key.job_id)

    needs = [need("large", 40), need("small-1", 1), need("small-2", 1)]
    async with asyncio.TaskGroup() as group:
        for one in needs:
            group.create_task(wait_for(one))
    assert order == ["large", "small-1", "small-2"]


async def test_high_goes_first_but_normal_does_not_starve(limiter: SharedLimiter) -> None:
    """After four in a row from the high line, a normal one has its turn."""
    await owe(limiter, 100)
    blocked = asyncio.create_task(limiter.admit(need("blocked", 60), patience=5))
    await asyncio.sleep(0.1)
    order = list[str]()

    async def wait_for(one: Need) -> None:
        await limiter.admit(one, patience=5)
        order.append(one.key.job_id)

    async with asyncio.TaskGroup() as group:
        group.create_task(wait_for(need("normal", 30)))
        for number in range(6):
            group.create_task(wait_for(need(f"high-{number}", 30, high=True)))
    await blocked
    assert order.index("normal") == 4


async def test_a_long_wait_is_not_waited_in_the_process(quota: MemoryQuota) -> None:
    """Beyond the patience the job is sent to a waiting room, to be back in good time."""
    async with SharedLimiter.opened(BOOK, quota, LoopClock(), Events(), places=0) as limiter:
        await owe(limiter, 5900)
        seconds = (5900 + 10) / Size(6000).rate
        with pytest.raises(PostponedError, match=f"in about {seconds:.0f} s") as postponed:
            await limiter.admit(need("a", 10), patience=5)
        assert postponed.value.seconds == 5


async def test_who_comes_back_goes_before_those_who_came_later(limiter: SharedLimiter) -> None:
    """A job's first arrival decides, not when it came back from a waiting room."""
    early = need("early", 60)
    await owe(limiter, 30)
    blocked = asyncio.create_task(limiter.admit(need("blocked", 10), patience=5))
    await asyncio.sleep(0.05)
    order = list[str]()

    async def wait_for(one: Need) -> None:
        await limiter.admit(one, patience=5)
        order.append(one.key.job_id)

    async with asyncio.TaskGroup() as group:
        for one in (need("late-1", 60), need("late-2", 60), early):
            group.create_task(wait_for(one))
    await blocked
    assert order == ["early", "late-1", "late-2"]


async def test_tenants_share_by_weight(limiter: SharedLimiter) -> None:
    """On a contended bucket a weight of three gets three of four."""
    await owe(limiter, 30)
    order = list[str]()

    async def wait_for(one: Need) -> None:
        await limiter.admit(one, patience=5)
        order.append(one.key.tenant)

    blocked = asyncio.create_task(limiter.admit(need("blocked", 20), patience=5))
    await asyncio.sleep(0.05)
    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(wait_for(need(f"h{number}", 10, tenant="heavy")))
        for number in range(4):
            group.create_task(wait_for(need(f"t{number}", 10)))
    await blocked
    assert order[:8].count("heavy") == 6


async def test_unused_tokens_come_back(limiter: SharedLimiter) -> None:
    """Settling for less than was reserved makes room."""
    permit = await limiter.admit(need("a", 6000), patience=1)
    permit.answered(Usage(output_tokens=50))
    async with asyncio.timeout(0.5):
        await limiter.admit(need("b", 40), patience=1)


async def test_a_cancelled_permit_costs_nothing(limiter: SharedLimiter) -> None:
    """What was never sent is given back whole, and only once."""
    permit = await limiter.admit(need("a", 6000), patience=1)
    permit.cancel()
    permit.cancel()
    async with asyncio.timeout(0.5):
        await limiter.admit(need("b", 6000), patience=1)
    with pytest.raises(PostponedError):
        await limiter.admit(need("c", 6000), patience=0.1)


async def test_a_closed_bucket_closes_no_other(limiter: SharedLimiter) -> None:
    """A 429 on one model leaves the others alone."""
    limiter.close_bucket(ACCOUNT, "m", 60, "rate_limit_exceeded")
    assert await limiter.try_admit(need("a")) is None
    await limiter.admit(need("b", model="free-1"), patience=1)
    with pytest.raises(PostponedError, match="rate_limit_exceeded"):
        await limiter.admit(need("a"), patience=1)


async def test_a_closed_bucket_is_closed_for_all_workers(limiter: SharedLimiter, quota: MemoryQuota) -> None:
    """Another worker on the same quota finds out before it sends."""
    async with opened(quota) as other:
        limiter.close_bucket(ACCOUNT, "m", 60, "rate_limit_exceeded")
        await asyncio.sleep(0.05)
        with pytest.raises(PostponedError, match="rate_limit_exceeded"):
            await other.admit(need("a"), patience=1)


async def test_closing_sends_those_away_who_wait(limiter: SharedLimiter) -> None:
    """They would hold places that other models' jobs need."""
    await owe(limiter, 300)
    waiting = asyncio.create_task(limiter.admit(need("a"), patience=5))
    await asyncio.sleep(0.05)
    limiter.close_bucket(ACCOUNT, "m", 60, "rate_limit_exceeded")
    with pytest.raises(PostponedError, match="rate_limit_exceeded"):
        await waiting


async def test_closed_credentials_close_everything_until_one_succeeds(
    limiter: SharedLimiter, quota: MemoryQuota
) -> None:
    """Nothing goes out on credentials that OpenAI does not accept, on any worker."""
    async with opened(quota) as other:
        limiter.close_account(ACCOUNT, 0, "invalid_api_key")
        await asyncio.sleep(0.05)
        assert await limiter.try_admit(need("a", model="free-1")) is None
        with pytest.raises(PostponedError, match="invalid_api_key"):
            await limiter.admit(need("a", model="free-1"), patience=5)
        with pytest.raises(PostponedError, match="invalid_api_key"):
            await other.admit(need("a", model="free-1"), patience=5)


async def test_concurrency_is_bounded(limiter: SharedLimiter) -> None:
    """The next one starts when one has ended."""
    permit = await limiter.admit(need("a", model="one"), patience=1)
    waiting = asyncio.create_task(limiter.admit(need("b", model="one"), patience=5))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    permit.settle(used=True)
    await waiting


async def test_a_tenants_concurrency_is_bounded(limiter: SharedLimiter) -> None:
    """Over all models, and others go past."""
    permit = await limiter.admit(need("a", tenant="narrow", model="free-1"), patience=1)
    waiting = asyncio.create_task(limiter.admit(need("b", tenant="narrow", model="r"), patience=5))
    await asyncio.sleep(0.05)
    await limiter.admit(need("c", model="r"), patience=5)
    assert not waiting.done()
    permit.settle(used=True)
    await waiting


async def test_cancelling_a_waiter_leaks_nothing(limiter: SharedLimiter) -> None:
    """Its place, and what was drawn for it, is free for the next one."""
    await owe(limiter, 20)
    waiting = asyncio.create_task(limiter.admit(need("a", 5000), patience=5))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(1):
        await limiter.admit(need("b", 1), patience=1)


async def test_stopping_sends_everybody_away(limiter: SharedLimiter) -> None:
    """Nobody is left waiting when the process stops."""
    await owe(limiter, 300)
    waiting = asyncio.create_task(limiter.admit(need("a", 50), patience=5))
    await asyncio.sleep(0.02)
    limiter.send_everybody_away()
    with pytest.raises(PostponedError, match="stopping"):
        await waiting


async def test_limits_are_discovered(limiter: SharedLimiter) -> None:
    """One request asks first; its headers name the limit that the next ones keep."""
    first = await limiter.admit(need("a", model="free-1"), patience=1)
    assert await limiter.try_admit(need("b", model="free-1")) is None
    first.heard({"x-ratelimit-limit-tokens": "600", "x-ratelimit-remaining-tokens": "590"})
    first.answered(Usage(output_tokens=10))
    with pytest.raises(TooLargeError, match="600 tokens a minute"):
        await limiter.try_admit(need("c", 601, model="free-1"))


async def test_without_headers_there_is_no_limit(limiter: SharedLimiter) -> None:
    """A few answers that name none open the gate wide."""
    for number in range(10):
        permit = await limiter.admit(need(str(number), model="free-1"), patience=1)
        permit.heard({})
        permit.answered(None)
    permits = [await limiter.try_admit(need(f"n{number}", model="free-1")) for number in range(500)]
    assert all(permits)


async def test_openai_counting_more_slows_us_down(limiter: SharedLimiter) -> None:
    """Where hardly anything remains by OpenAI's own count, the next one waits."""
    permit = await limiter.admit(need("a", 10), patience=1)
    permit.heard({"x-ratelimit-limit-tokens": "6000", "x-ratelimit-remaining-tokens": "100"})
    permit.answered(None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await limiter.admit(need("b", 60), patience=5)


async def test_an_idle_limiter_says_nothing(limiter: SharedLimiter, quota: MemoryQuota) -> None:
    """No exchange without work."""
    await asyncio.sleep(0.1)
    assert quota.exchanges == 0


async def test_a_paused_limit_lets_nobody_through(limiter: SharedLimiter, quota: MemoryQuota) -> None:
    """Not even the first request of a worker that has just started; it ends with the next exchange."""
    quota.paused.add("free-1")
    with pytest.raises(PostponedError, match="paused"):
        await limiter.admit(need("a", model="free-1"), patience=1)
    quota.paused.clear()
    await asyncio.sleep(1)
    await limiter.admit(need("b", model="free-1"), patience=1)


async def test_open_ended_requests_reserve_what_is_usual(limiter: SharedLimiter) -> None:
    """Where no maximum is set, settled requests of the model say how much to reserve."""
    for number in range(6):
        permit = await limiter.admit(replace(need(str(number), 100), open_ended=True), patience=5)
        permit.answered(Usage(output_tokens=20))
    limiter.samples.take_in(limiter.samples.news(1e9))
    assert limiter.samples.tokens(replace(need("x", 100), open_ended=True)) == pytest.approx(22)
    assert limiter.samples.tokens(need("x", 100)) == 100
