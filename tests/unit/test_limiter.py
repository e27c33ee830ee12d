"""The limiter of one process: order, patience, closing, credentials."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from worker.core.limits import Limit, LimitBook, Need, PostponedError, TooLargeError
from worker.core.local_limiter import LocalLimiter
from worker.domain.attempt import Account
from worker.domain.job import JobKey


class LoopClock:
    """The event loop's own time."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


ACCOUNT = Account()
FAST = Limit(tokens_per_minute=6000)


def need(job_id: str, tokens: int = 10, *, high: bool = False, model: str = "m") -> Need:
    """Build a need."""
    return Need(key=JobKey("t", job_id), account=ACCOUNT, model=model, tokens=tokens, high=high)


@pytest_asyncio.fixture
async def limiter() -> AsyncIterator[LocalLimiter]:
    """100 tokens a second, 6000 at once, for model m; free-* is not limited."""
    book = LimitBook(default=Limit(), by_model={"m": FAST, "one": Limit(max_concurrency=1)})
    async with LocalLimiter.opened(book, LoopClock()) as opened:
        yield opened


async def drain(limiter: LocalLimiter) -> None:
    """Use the bucket of m up."""
    assert await limiter.try_admit(need("drain", 6000))


async def test_a_free_bucket_admits_at_once(limiter: LocalLimiter) -> None:
    """No wait where there is room."""
    assert await limiter.try_admit(need("a", 6000)) is not None
    assert await limiter.try_admit(need("b", 6000)) is None


async def test_larger_than_the_bucket_is_refused_at_once(limiter: LocalLimiter) -> None:
    """It could never be served."""
    with pytest.raises(TooLargeError, match="6001 tokens"):
        await limiter.try_admit(need("a", 6001))


async def test_the_line_is_served_in_order_whatever_the_size(limiter: LocalLimiter) -> None:
    """A large request at the head is not overtaken by small ones."""
    await drain(limiter)
    order = list[str]()

    async def wait_for(job_id: str, tokens: int) -> None:
        await limiter.admit(need(job_id, tokens), patience=5)
        order.append(job_id)

    async with asyncio.TaskGroup() as group:
        for job_id, tokens in (("large", 40), ("small-1", 1), ("small-2", 1)):
            group.create_task(wait_for(job_id, tokens))
    assert order == ["large", "small-1", "small-2"]


async def test_high_goes_first_but_normal_does_not_starve(limiter: LocalLimiter) -> None:
    """After four in a row from the high line, a normal one has its turn."""
    await drain(limiter)
    order = list[str]()

    async def wait_for(job_id: str, *, high: bool) -> None:
        await limiter.admit(need(job_id, 1, high=high), patience=5)
        order.append(job_id)

    async with asyncio.TaskGroup() as group:
        group.create_task(wait_for("normal", high=False))
        for number in range(6):
            group.create_task(wait_for(f"high-{number}", high=True))
    assert order.index("normal") == 4


async def test_a_long_wait_is_not_waited_in_the_process(limiter: LocalLimiter) -> None:
    """Beyond the patience the caller learns how long it would be."""
    await drain(limiter)
    with pytest.raises(PostponedError) as postponed:
        await limiter.admit(need("a", 3000), patience=5)
    assert postponed.value.seconds == pytest.approx(30, abs=1)


async def test_who_waits_outside_keeps_the_place(limiter: LocalLimiter) -> None:
    """A postponed request is served before those who came after it."""
    await drain(limiter)
    with pytest.raises(PostponedError):
        await limiter.admit(need("first", 60), patience=0.01)
    later = asyncio.create_task(limiter.admit(need("later", 1), patience=5))
    await limiter.admit(need("first", 60), patience=5)
    assert not later.done()
    await later


async def test_unused_tokens_come_back(limiter: LocalLimiter) -> None:
    """Settling for less than was reserved makes room at once."""
    permit = await limiter.try_admit(need("a", 6000))
    assert permit is not None
    permit.settle(1000)
    assert await limiter.try_admit(need("b", 5000)) is not None


async def test_a_cancelled_permit_costs_nothing(limiter: LocalLimiter) -> None:
    """What was never sent is given back whole, and only once."""
    permit = await limiter.try_admit(need("a", 6000))
    assert permit is not None
    permit.cancel()
    permit.cancel()
    assert await limiter.try_admit(need("b", 6000)) is not None
    assert await limiter.try_admit(need("c", 6000)) is None


async def test_a_closed_bucket_closes_no_other(limiter: LocalLimiter) -> None:
    """A 429 on one model leaves the others alone."""
    limiter.close_bucket(ACCOUNT, "m", 60, "rate_limit_exceeded")
    assert await limiter.try_admit(need("a")) is None
    assert await limiter.try_admit(need("b", model="free-1")) is not None
    with pytest.raises(PostponedError, match="rate_limit_exceeded"):
        await limiter.admit(need("a"), patience=1)


async def test_closed_credentials_close_everything_until_one_succeeds(limiter: LocalLimiter) -> None:
    """Nothing goes out on credentials that OpenAI does not accept."""
    limiter.close_account(ACCOUNT, 0, "invalid_api_key")
    assert await limiter.try_admit(need("a", model="free-1")) is None
    with pytest.raises(PostponedError, match="invalid_api_key"):
        await limiter.admit(need("a", model="free-1"), patience=5)
    limiter.succeeded(ACCOUNT)
    assert await limiter.try_admit(need("a", model="free-1")) is not None


async def test_concurrency_is_bounded(limiter: LocalLimiter) -> None:
    """The next one starts when one has ended."""
    permit = await limiter.try_admit(need("a", model="one"))
    assert permit is not None
    waiting = asyncio.create_task(limiter.admit(need("b", model="one"), patience=5))
    await asyncio.sleep(0)
    assert not waiting.done()
    permit.settle(1)
    await waiting


async def test_cancelling_a_waiter_leaks_nothing(limiter: LocalLimiter) -> None:
    """Its place is free for the next one."""
    await drain(limiter)
    waiting = asyncio.create_task(limiter.admit(need("a", 50), patience=5))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await limiter.admit(need("b", 1), patience=1)


async def test_stopping_sends_everybody_away(limiter: LocalLimiter) -> None:
    """Nobody is left waiting when the process stops."""
    await drain(limiter)
    waiting = asyncio.create_task(limiter.admit(need("a", 50), patience=5))
    await asyncio.sleep(0)
    limiter.send_everybody_away()
    with pytest.raises(PostponedError, match="stopping"):
        await waiting
