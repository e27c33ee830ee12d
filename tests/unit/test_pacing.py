"""The pace of one process: no burst leaves it, whatever it holds in hand and whatever the database says."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count

import pytest
from typing_extensions import override

from tests.support.broker import until
from tests.support.databases import Events
from tests.support.loop_clock import LoopClock
from tests.support.memory_quota import MemoryQuota
from worker.core.limiter import SharedLimiter
from worker.core.limits import Limit, LimitBook, Need, PostponedError
from worker.core.meter import Meter
from worker.core.pacer import Pacer
from worker.domain.attempt import Account
from worker.domain.bucket import HANDFUL, Size
from worker.domain.job import JobKey
from worker.domain.quota import Exchange, Exchanged
from worker.domain.usage import Usage

SIZE = Size(6000, HANDFUL)
"""100 requests a second, 50 at once."""
BOOK = LimitBook(
    default=Limit(),
    by_model={
        "m": Limit(requests_per_minute=SIZE.limit),
        "narrow": Limit(requests_per_minute=SIZE.limit, max_concurrency=60),
    },
)
NUMBERS = count()


def need(model: str = "m") -> Need:
    """Build a need; each comes after the one before."""
    number = next(NUMBERS)
    return Need(
        key=JobKey("t", str(number)),
        account=Account(),
        model=model,
        input_tokens=1,
        received_at=float(number),
    )


class GenerousQuota(MemoryQuota):
    """A database whose clock jumps forward again and again: its buckets are always full."""

    @override
    async def exchange(self, exchange: Exchange) -> Exchanged:
        found = await super().exchange(exchange)
        full = [replace(grant, requests=replace(grant.requests, level=1e6)) for grant in found.grants]
        return replace(found, grants=full)


@pytest.fixture
async def generous() -> AsyncIterator[SharedLimiter]:
    """Return a limiter on such a database."""
    async with SharedLimiter.opened(BOOK, GenerousQuota(LoopClock()), LoopClock(), Events()) as limiter:
        yield limiter


def most_in_a_window(times: list[float], size: Size) -> float:
    """Return by how many requests a window holds more than burst + rate x its length; below zero: by none."""
    times = sorted(times)
    return max(
        last - first + 1 - size.burst - size.rate * (times[last] - times[first])
        for first in range(len(times))
        for last in range(first, len(times))
    )


async def test_starts_that_come_due_together_leave_at_the_rate(generous: SharedLimiter) -> None:
    """The shared level lets all start at once; this process sends no faster than the bucket refills."""
    times: list[float] = []

    async def send() -> None:
        await generous.admit(need(), patience=5)
        times.append(time.monotonic())

    async with asyncio.TaskGroup() as group:
        for _ in range(150):
            group.create_task(send())
    assert most_in_a_window(times, SIZE) <= 2
    assert times[-1] - times[0] < 1.5


async def test_what_is_in_hand_leaves_at_the_rate() -> None:
    """A pulse after quiet use takes what is in hand and the shared burst, one after the other."""
    times: list[float] = []
    async with SharedLimiter.opened(BOOK, MemoryQuota(LoopClock()), LoopClock(), Events()) as limiter:
        for _ in range(100):
            permit = await limiter.admit(need(), patience=5)
            permit.answered(Usage(input_tokens=1))
        await asyncio.sleep(1.6)  # time for the hand to be filled, and for the shared level to be full again

        async def send() -> None:
            await limiter.admit(need(), patience=5)
            times.append(time.monotonic())

        async with asyncio.TaskGroup() as group:
            for _ in range(120):
                group.create_task(send())
    assert most_in_a_window(times, SIZE) <= 2


async def test_first_in_first_out() -> None:
    """Whoever waits for the pace is let through in the order of arrival."""
    pacer, order = Pacer(Meter(configured=600, handful=HANDFUL)), list[int]()

    async def come(number: int) -> None:
        await pacer.acquire()
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(come(number))
    assert order == [*range(8)]


async def test_a_new_limit_is_a_new_pace() -> None:
    """Headers that name a lower limit slow the process down at once; without a limit there is no pace."""
    requests = Meter(configured=None, handful=HANDFUL)
    pacer = Pacer(requests)
    for _ in range(1000):
        assert pacer.has_capacity()
        await pacer.acquire()
    requests.learn(600)
    for _ in range(5):
        assert pacer.has_capacity()
        await pacer.acquire()
    assert not pacer.has_capacity()


async def test_who_waits_for_the_pace_does_not_go_once_it_is_closed(generous: SharedLimiter) -> None:
    """A 429 holds back those too whose turn it was already."""
    tasks = [asyncio.create_task(generous.admit(need(), patience=1)) for _ in range(80)]
    await until(lambda: sum(task.done() for task in tasks) >= SIZE.burst)
    generous.close_bucket(Account(), "m", 60, "rate_limit_exceeded")
    done_before = sum(task.done() for task in tasks)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(one, PostponedError) for one in found) == len(tasks) - done_before


async def test_giving_up_while_waiting_for_the_pace_costs_nothing(generous: SharedLimiter) -> None:
    """The place of a job that was cancelled is free for another one."""
    tasks = [asyncio.create_task(generous.admit(need("narrow"), patience=1)) for _ in range(60)]
    await until(lambda: sum(task.done() for task in tasks) >= SIZE.burst)
    waiting = [task for task in tasks if not task.done()]
    assert waiting
    for task in waiting:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(1):
        await asyncio.gather(*(generous.admit(need("narrow"), patience=1) for _ in waiting))


async def test_a_pulse_is_admitted_with_one_question() -> None:
    """After an idle time nothing is in hand, but there is room: no job is claimed without its permit."""
    quota = MemoryQuota(LoopClock())
    async with SharedLimiter.opened(BOOK, quota, LoopClock(), Events()) as limiter:
        permits = await asyncio.gather(*(limiter.try_admit(need()) for _ in range(40)))
    assert all(permits)
    assert quota.exchanges <= 2


async def test_where_there_is_no_room_nobody_is_held_up() -> None:
    """The job is claimed at once, and waits in line as its own."""
    async with SharedLimiter.opened(BOOK, MemoryQuota(LoopClock()), LoopClock(), Events()) as limiter:
        tasks = [asyncio.create_task(limiter.admit(need(), patience=5)) for _ in range(100)]
        await until(lambda: sum(task.done() for task in tasks) >= SIZE.burst)
        began = time.monotonic()
        assert await limiter.try_admit(need()) is None
        assert time.monotonic() - began < 0.02
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
