"""A job's time: it runs while there is work, over all claims, and can be cut short."""

import asyncio

import pytest

from worker.core.worktime import StoppedError, WorkTime


async def test_only_work_is_counted() -> None:
    """What happens outside of `spending` costs nothing."""
    work = WorkTime(10)
    await asyncio.sleep(0.02)
    assert work.left == 10
    async with work.spending():
        await asyncio.sleep(0.02)
    assert 9 < work.left <= 9.98
    assert work.worked >= 0.02


async def test_the_time_of_earlier_claims_stays_spent() -> None:
    """What was worked before is added to, not forgotten."""
    work = WorkTime(10, worked=290)
    async with work.spending():
        await asyncio.sleep(0)
    assert work.worked >= 290


async def test_the_budget_ends_the_work() -> None:
    """Work that outlasts its time is cut off, and no more can begin."""
    work = WorkTime(0.02)
    with pytest.raises(TimeoutError):
        async with work.spending(bounded=True):
            await asyncio.Event().wait()
    assert work.left <= 0
    with pytest.raises(TimeoutError):
        async with work.spending(bounded=True):
            await asyncio.Event().wait()


async def test_stopping_ends_the_work_that_goes_on() -> None:
    """A cancel request reaches an open call."""
    work = WorkTime(60)

    async def run() -> None:
        async with work.spending():
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    work.stop()
    with pytest.raises(StoppedError):
        await task


async def test_what_is_stopped_does_not_begin() -> None:
    """A cancel request between two steps holds the next one back."""
    work = WorkTime(60)
    work.stop()
    with pytest.raises(StoppedError):
        async with work.spending():
            pytest.fail("it began")


async def test_being_stopped_twice_is_being_stopped() -> None:
    """Also while the first time is still being heeded."""
    work = WorkTime(60)

    async def run() -> None:
        async with work.spending():
            try:
                await asyncio.Event().wait()
            finally:
                work.stop()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    work.stop()
    with pytest.raises(StoppedError):
        await task


async def test_being_cancelled_is_not_being_stopped() -> None:
    """The process's own stop passes through as what it is."""
    work = WorkTime(60)

    async def run() -> None:
        async with work.spending():
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_remainder_of_a_timer_is_no_time() -> None:
    """What the clock's steps leave over starts nothing more; a job that has not worked yet may begin."""
    assert WorkTime(0.0004, worked=0.9996).is_over
    assert not WorkTime(0.1, worked=0.9).is_over
    assert not WorkTime(0.001).is_over
