"""What a backlog does to a worker: how soon the first job is done after a start, and how fast it goes."""

import time
from contextlib import AbstractAsyncContextManager
from typing import Final

from benchmarks.cpu.bench import Bench
from benchmarks.cpu.contender import Contender, Pace, draining, pace
from benchmarks.cpu.figures import Figure, median
from benchmarks.cpu.messages import TINY

SMALL_BACKLOG: Final = 1_000
LARGE_BACKLOG: Final = 1_000_000
WINDOWS: Final = 5
"""Stretches of jobs of which the median counts, on either backlog."""
DATABASE: Final = "postgresql"
QUEUE: Final = "openai.jobs.completion"
START_SECONDS: Final = "<= 2.5"
RATE: Final = ">= 0.95"


async def backlog(bench: Bench) -> list[Figure]:
    """Measure with a small backlog, and in a long run with a large one."""
    async with _ours(bench) as contender:  # queues and tables are there from now on
        job = contender.job(TINY)
    starts = []
    for _ in range(bench.scale.times):
        await bench.load.publish(job.copies(SMALL_BACKLOG))
        starts.append(await _first_reply(bench, SMALL_BACKLOG))
    figures = [_start(f"start_with_{SMALL_BACKLOG}_waiting", starts)]
    return [*figures, *(await _large(bench))] if bench.scale.long else figures


def _ours(bench: Bench) -> AbstractAsyncContextManager[Contender]:
    return bench.ours(DATABASE, limits=True)


async def _first_reply(bench: Bench, waiting: int) -> float:
    """Return the seconds from the start of the process to its first reply; then let it finish."""
    replies = await bench.load.replies(f"bench.replies.ours.{DATABASE}")
    before, begun = replies.count, time.monotonic()
    replies.first = None
    async with _ours(bench):
        await replies.reach(before + waiting)
    assert replies.first is not None
    return replies.first - begun


async def _large(bench: Bench) -> list[Figure]:
    """Measure the rate with a small backlog, with a large one, and with a small one again."""
    async with _ours(bench) as contender:
        job = contender.job(TINY)
        few = [await pace(contender, bench.load, messages=TINY, jobs=SMALL_BACKLOG) for _ in range(WINDOWS)]
    await bench.load.publish(job.copies(LARGE_BACKLOG))
    replies = await bench.load.replies(f"bench.replies.ours.{DATABASE}")
    replies.first, begun = None, time.monotonic()
    async with _ours(bench) as contender:
        await replies.reach(replies.count + SMALL_BACKLOG)
        assert replies.first is not None
        start = replies.first - begun
        many = [await draining(contender, SMALL_BACKLOG) for _ in range(WINDOWS)]
        await bench.load.purge(QUEUE)
    async with _ours(bench) as contender:
        few += [await pace(contender, bench.load, messages=TINY, jobs=SMALL_BACKLOG) for _ in range(WINDOWS)]
    return [_start(f"start_with_{LARGE_BACKLOG}_waiting", [start]), _beside(many, few)]


def _start(figure: str, seconds: list[float]) -> Figure:
    return Figure(figure=figure, value=median(seconds), unit="s to the first reply", goal=START_SECONDS)


def _beside(many: list[Pace], few: list[Pace]) -> Figure:
    large, small = median(one.rate for one in many), median(one.rate for one in few)
    cpu = [f"{1e6 * median(one.cpu for one in paces):.0f}" for paces in (many, few)]
    note = f"{large:.0f} jobs/s with {LARGE_BACKLOG:,} waiting, {small:.0f} with {SMALL_BACKLOG:,}"
    note += f"; CPU of a job {cpu[0]} and {cpu[1]} us"
    return Figure(figure="backlog_rate", value=large / small, unit="x", goal=RATE, note=note)
