"""Two processes beside one, on one database; and who used the processors meanwhile."""

import os
from typing import Any, Final

from benchmarks.cpu.bench import Bench
from benchmarks.cpu.contender import Pace, draining, loaded
from benchmarks.cpu.figures import Figure, median
from benchmarks.cpu.machine import Usage, shares
from benchmarks.cpu.messages import SMALL

BUSY: Final = 0.9
"""Share of all cores above which it is the machine that limits."""
GOAL: Final = ">= 1.8"
WAITING: Final = 0.2
"""Latency of the upstream where the workers wait more than they work."""
IN_FLIGHT: Final = 64


async def two_processes(bench: Bench) -> list[Figure]:
    """Measure with the processors as the limit, and with the places of the workers as the limit."""
    return [
        await _scaling(bench, "two_processes_busy", {}),
        await _scaling(bench, "two_processes_waiting", {"latency": WAITING, "in_flight": IN_FLIGHT}),
    ]


async def _scaling(bench: Bench, name: str, options: dict[str, Any]) -> Figure:
    one: list[Pace] = []
    two: list[Pace] = []
    notes: list[tuple[float, str]] = []
    for _ in range(bench.scale.times):
        one.append((await _measure(bench, 1, options))[0])
        measured, used, who = await _measure(bench, 2, options)
        two.append(measured)
        notes.append((used, who))
    cores = os.cpu_count() or 1
    used, who = sorted(notes)[len(notes) // 2]
    ratio = median(it.rate for it in two) / median(it.rate for it in one)
    costs = median(it.cpu for it in two) / median(it.cpu for it in one)
    limited = used >= BUSY * cores
    limit = (
        f"limited by the machine: {used:.2f} of its {cores} cores busy"
        if limited
        else f"{used:.2f} cores busy"
    )
    return Figure(
        figure=name,
        value=ratio,
        unit="x one",
        goal=GOAL,
        excused=limited and ratio < float(GOAL.split()[1]),
        note=f"{limit} ({who}); CPU of a job x {costs:.2f}",
    )


async def _measure(bench: Bench, processes: int, options: dict[str, Any]) -> tuple[Pace, float, str]:
    """Return the pace, the cores used, and by whom."""
    _, upstream = await bench.upstream(options.get("latency", 0.0))
    async with bench.ours(limits=True, processes=processes, **options) as contender:
        roles = {"upstream": upstream.pid, "load": os.getpid()}
        roles |= {f"worker {number}": one.pid for number, one in enumerate(contender.processes, 1)}
        jobs = bench.scale.jobs * processes
        async with loaded(contender, bench.load, messages=SMALL, jobs=jobs) as waiting:
            usage = Usage(roles)
            measured = await draining(contender, waiting)
            cores = usage.cores()
    return measured, sum(cores.values()), shares(cores)
