"""From publish to reply, with half the load that we could bear, beside a consumer that only answers."""

import asyncio
import statistics
import time
from collections import defaultdict
from contextlib import AbstractAsyncContextManager
from typing import Final

from benchmarks.cpu.bench import Bench
from benchmarks.cpu.contender import Contender, pace
from benchmarks.cpu.figures import Figure, median
from benchmarks.cpu.load import Load
from benchmarks.cpu.messages import SMALL

UPSTREAM: Final = 0.05
"""Seconds that the upstream takes; they are subtracted."""
MORE_P50: Final = 0.010
MORE_P99: Final = 0.050
DATABASES: Final = ("sqlite", "postgresql")


async def latency(bench: Bench) -> list[Figure]:
    """Measure in turns: the echo, then ours on both databases."""
    rate = await _half_load(bench)
    p50, p99 = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)

    async def measure(name: str, opening: AbstractAsyncContextManager[Contender], known: float) -> None:
        async with opening as contender:
            await pace(contender, bench.load, messages=SMALL, jobs=contender.in_flight)  # warm
            taken = await _steady(contender, bench.load, rate, bench.scale.seconds)
        cuts = statistics.quantiles(taken, n=100)
        p50[name].append(cuts[49] - known)
        p99[name].append(cuts[98] - known)

    for _ in range(bench.scale.times):
        await measure("echo", bench.echo(), 0.0)
        for name in DATABASES:
            await measure(name, bench.ours(name, latency=UPSTREAM, limits=True), UPSTREAM)
    return [
        *_figures("p50", p50, MORE_P50, rate),
        *_figures("p99", p99, MORE_P99, rate),
    ]


async def _half_load(bench: Bench) -> float:
    rates = []
    for name in DATABASES:
        async with bench.ours(name, latency=UPSTREAM, limits=True) as contender:
            found = await pace(contender, bench.load, messages=SMALL, jobs=bench.scale.jobs)
            rates.append(found.rate)
    return min(rates) / 2


async def _steady(contender: Contender, load: Load, rate: float, seconds: float) -> list[float]:
    """Publish at a steady rate; return the seconds that each reply took."""
    replies = contender.replies
    replies.at, before = {}, replies.count
    sent: dict[str, float] = {}
    jobs = list(contender.job(SMALL).copies(int(rate * seconds)))
    begun = time.monotonic()
    async with asyncio.TaskGroup() as publishes:
        for number, job in enumerate(jobs):
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
            sent[job.job_id] = time.monotonic()
            publishes.create_task(load.send(job))
    await replies.reach(before + len(jobs))
    came, replies.at = replies.at, None
    return [came[job_id] - at for job_id, at in sent.items()]


def _figures(name: str, found: dict[str, list[float]], more: float, rate: float) -> list[Figure]:
    echo = 1000 * median(found["echo"])
    note = f"{rate:.0f} jobs/s; the bare echo on the same broker, plus {1000 * more:.0f} ms"
    return [
        Figure(figure=f"latency_{name}_echo", value=echo, unit="ms"),
        *(
            Figure(
                figure=f"latency_{name}_{database}",
                value=1000 * median(found[database]),
                unit="ms",
                goal=f"<= {echo + 1000 * more:.3g}",
                note=note,
            )
            for database in DATABASES
        ),
    ]
