"""What a worker occupies: idle, for each job more in flight, and after many jobs."""

import asyncio
from typing import Final

import aiohttp

from benchmarks.cpu.bench import Bench
from benchmarks.cpu.contender import pace
from benchmarks.cpu.figures import Figure, median
from benchmarks.cpu.messages import SMALL
from benchmarks.cpu.processes import MeasuredProcess

MB: Final = 2**20
IDLE_SECONDS: Final = 2.0
FEW, MANY = 64, 1024
"""Jobs in flight, between which a job's share is measured."""
HELD_SECONDS: Final = 8.0
"""Latency of the upstream while jobs are in flight."""
EARLY, LATE = 20_000, 100_000
"""Jobs after which memory must no longer grow."""
GROWTH_MB: Final = 4
DATABASE: Final = "postgresql"


async def memory(bench: Bench) -> list[Figure]:
    """Measure resident memory."""
    idle = [await _idle(bench) for _ in range(bench.scale.times)]
    each = [await _in_flight(bench) for _ in range(bench.scale.times)]
    figures = [
        Figure(figure="memory_idle", value=median(idle) / MB, unit="MB", goal="<= 120"),
        Figure(
            figure="memory_per_job_in_flight",
            value=median(each) / 1024,
            unit="kB",
            goal="<= 64",
            note=f"from {FEW} to {MANY} jobs in flight, bodies not counted",
        ),
    ]
    return [*figures, await _growth(bench)] if bench.scale.long else figures


async def _idle(bench: Bench) -> float:
    async with bench.ours(DATABASE, limits=True) as contender:
        await asyncio.sleep(IDLE_SECONDS)
        return contender.processes[0].memory()


async def _in_flight(bench: Bench) -> float:
    """Return the bytes of one job more."""
    url, _ = await bench.upstream(HELD_SECONDS)
    async with bench.ours(DATABASE, latency=HELD_SECONDS, in_flight=MANY, limits=True) as contender:
        process, job, answered = contender.processes[0], contender.job(SMALL), contender.replies.count
        served = await _served(url)
        await bench.load.publish(job.copies(FEW))
        few = await _memory_once(process, url, served + FEW)
        await bench.load.publish(job.copies(MANY - FEW))
        many = await _memory_once(process, url, served + MANY)
        await contender.replies.reach(answered + MANY)
        return (many - few) / (MANY - FEW) - len(job.body)


async def _memory_once(process: MeasuredProcess, url: str, served: int) -> float:
    """Return the memory once so many requests have arrived."""
    async with asyncio.timeout(HELD_SECONDS):
        while await _served(url) < served:  # noqa: ASYNC110 (another process counts)
            await asyncio.sleep(0.1)
    return process.memory()


async def _served(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/served") as answer:
        return int(await answer.text())


async def _growth(bench: Bench) -> Figure:
    """Return the megabytes by which a worker grows over many jobs, once it has done enough to be warm."""
    async with bench.ours(DATABASE, limits=True) as contender:
        await pace(contender, bench.load, messages=SMALL, jobs=EARLY)
        early = contender.processes[0].memory()
        for _ in range((LATE - EARLY) // EARLY):
            await pace(contender, bench.load, messages=SMALL, jobs=EARLY)
        late = contender.processes[0].memory()
    return Figure(
        figure="memory_growth",
        value=(late - early) / MB,
        unit="MB",
        goal=f"<= {GROWTH_MB}",
        note=f"from {EARLY:,} to {LATE:,} jobs; {early / MB:.0f} MB, then {late / MB:.0f} MB",
    )
