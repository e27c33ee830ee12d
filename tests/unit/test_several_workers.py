"""Several workers on one bucket: what leaves them after a stall, and how fast refunds are used."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import TypeAlias

import pytest
from typing_extensions import override

from tests.support.databases import Events
from tests.support.loop_clock import LoopClock
from tests.support.memory_quota import MemoryQuota
from worker.core.limiter import SharedLimiter
from worker.core.limits import Limit, LimitBook, Need
from worker.domain.attempt import Account
from worker.domain.bucket import Size
from worker.domain.job import JobKey
from worker.domain.quota import Exchange, Exchanged
from worker.domain.usage import Usage

REQUESTS, TOKENS = 600, 60_000
BOOK = LimitBook(
    default=Limit(),
    by_model={"r": Limit(requests_per_minute=REQUESTS), "t": Limit(tokens_per_minute=TOKENS)},
)
RESERVED, USED_TOKENS = 355, 65
NUMBERS = count()


def need(model: str) -> Need:
    """Build a need; each comes after the one before."""
    number = next(NUMBERS)
    return Need(
        key=JobKey("t", str(number)),
        account=Account(),
        model=model,
        input_tokens=0,
        output_tokens=RESERVED,
        received_at=float(number),
    )


class SlowQuota(MemoryQuota):
    """A database that may stand still."""

    until = 0.0

    @override
    async def exchange(self, exchange: Exchange) -> Exchanged:
        await asyncio.sleep(self.until - time.monotonic())
        return await super().exchange(exchange)


async def a_machine(_: SlowQuota, seconds: float) -> None:
    """Let everything stand still."""
    time.sleep(seconds)  # noqa: ASYNC251 - that is what is wanted


async def the_database(quota: SlowQuota, seconds: float) -> None:
    """Let nobody have an answer."""
    quota.until = time.monotonic() + seconds
    await asyncio.sleep(seconds)


Stall: TypeAlias = Callable[[SlowQuota, float], Awaitable[None]]


@asynccontextmanager
async def workers(number: int, quota: MemoryQuota) -> AsyncIterator[Sequence[SharedLimiter]]:
    """Open the limiters of so many workers that know of each other."""
    quota.others = number - 1
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                SharedLimiter.opened(BOOK, quota, LoopClock(), Events(), places=1000)
            )
            for _ in range(number)
        ]


async def send(limiter: SharedLimiter, model: str, starts: list[float]) -> None:
    """Run a job of 0.1 s that uses far less than it reserves."""
    permit = await limiter.admit(need(model), patience=1000)
    starts.append(time.monotonic())
    await asyncio.sleep(0.1)
    permit.answered(Usage(output_tokens=USED_TOKENS))


def least_left(starts: Sequence[float]) -> float:
    """Return the lowest level of a bucket that holds one second's requests."""
    capacity = level = lowest = REQUESTS / 60
    at = starts[0]
    for start in starts:
        level = min(capacity, level + (start - at) * capacity) - 1
        lowest, at = min(lowest, level), start
    return lowest


@pytest.mark.parametrize("stall", [a_machine, the_database])
async def test_after_a_stall_no_more_than_a_burst_leaves(stall: Stall) -> None:
    """All starts come late together, while the bucket has filled: limits by the second hold all the same."""
    quota, starts = SlowQuota(LoopClock()), list[float]()
    async with workers(8, quota) as limiters:
        tasks = [asyncio.create_task(send(one, "r", starts)) for one in limiters for _ in range(20)]
        await asyncio.sleep(1.5)
        await stall(quota, 1.2)
        await asyncio.sleep(1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert least_left(starts) >= 0


async def test_what_comes_back_is_used_at_once() -> None:
    """A backlog that uses a fifth of what it reserves goes hardly slower than what it uses is refilled."""
    jobs, size, starts = 80, Size(TOKENS), list[float]()
    began = time.monotonic()
    async with workers(1, MemoryQuota(LoopClock())) as (limiter,), asyncio.TaskGroup() as group:
        for _ in range(jobs):
            group.create_task(send(limiter, "t", starts))
    assert max(starts) - began < 2 * (jobs * USED_TOKENS - size.burst) / size.rate
