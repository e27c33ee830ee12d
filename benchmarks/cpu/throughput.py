"""Jobs a second of one process, by the upstream's latency and the number of jobs in flight."""

import os
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from benchmarks.cpu.bench import Bench
from benchmarks.cpu.contender import Contender, Pace, draining, loaded, pace
from benchmarks.cpu.cost import fastest
from benchmarks.cpu.figures import Figure, median
from benchmarks.cpu.machine import Usage, shares
from benchmarks.cpu.messages import SMALL
from benchmarks.cpu.rivals import PEERS, Peer

LATENCIES: Final = (0.0, 0.05, 0.2)
IN_FLIGHT: Final = (64, 256, 1024)
SLOW: Final = (0.2, 256)
"""The cell that must be as fast as its latency, or the processor, allows."""
SHORT: Final = (SLOW,)
"""Cells of a run that is not long; that of 0 ms and 64 in flight is measured with the CPU."""
SHARE: Final = ">= 0.95"
FEW: Final = 2
"""Peers that a run that is not long compares with: those that need least CPU."""
ROUNDS: Final = 4
"""A measurement lasts at least so many times as long as all places take."""
LONG_ROUNDS, LONG_WARM_UP = 16, 8
"""Likewise in the slow cell, and before: all jobs start at once, and take seconds to spread."""


async def throughput(bench: Bench) -> list[Figure]:
    """Measure each cell, ours and the peers in turns."""
    cells = [(latency, count) for latency in LATENCIES for count in IN_FLIGHT] if bench.scale.long else SHORT
    found = []
    for latency, in_flight in cells:
        found += await _cell(bench, latency, in_flight)
    return found


async def _cell(bench: Bench, latency: float, in_flight: int) -> list[Figure]:
    mine: list[Pace] = []
    busy: list[tuple[float, str]] = []
    theirs: dict[str, list[Pace]] = {}
    failed: dict[str, str] = {}
    options: dict[str, Any] = {"latency": latency, "in_flight": in_flight}
    for _ in range(bench.scale.times):
        measured, used, who = await _watched(bench, bench.ours(limits=True, **options), latency)
        mine.append(measured)
        busy.append((used, who))
        for peer in _peers(bench):
            if peer.name in failed:
                continue
            try:
                measured = await _measure(bench, bench.rival(peer, **options), latency, bench.scale.peer_jobs)
            except RuntimeError as error:
                failed[peer.name] = str(error).partition(":")[0]
            else:
                theirs.setdefault(peer.name, []).append(measured)
    name = f"throughput_{1000 * latency:.0f}ms_{in_flight}"
    rates = {other: median(one.rate for one in paces) for other, paces in theirs.items()}
    goal = ">= 1" if latency else ">= 2"
    beside = fastest(f"{name}_vs_best_peer", median(one.rate for one in mine), rates, goal)
    figures = [beside, *(Figure(figure=f"{name}_{other}_failed", value=1, unit="") for other in failed)]
    if (latency, in_flight) == SLOW:
        figures.append(_of_possible(name, mine, busy, in_flight / latency))
    return figures


def _peers(bench: Bench) -> list[Peer]:
    cheapest = bench.cheapest or list(PEERS)
    return cheapest if bench.scale.long else cheapest[:FEW]


async def _measure(
    bench: Bench, opening: AbstractAsyncContextManager[Contender], latency: float, jobs: int
) -> Pace:
    async with opening as contender:
        enough, warm = _lengths(contender, latency, jobs)
        return await pace(contender, bench.load, messages=SMALL, jobs=enough, warm_rounds=warm)


def _lengths(contender: Contender, latency: float, jobs: int) -> tuple[int, int]:
    """Return how many jobs to measure, and how many rounds to get warm."""
    slow = (latency, contender.in_flight) == SLOW
    return max(jobs, (LONG_ROUNDS if slow else ROUNDS) * contender.in_flight), LONG_WARM_UP if slow else 2


async def _watched(
    bench: Bench, opening: AbstractAsyncContextManager[Contender], latency: float
) -> tuple[Pace, float, str]:
    """Return our pace, the cores that were busy meanwhile, and with whom."""
    _, upstream = await bench.upstream(latency)
    async with opening as contender:
        roles = {"upstream": upstream.pid, "load": os.getpid(), "worker": contender.processes[0].pid}
        enough, warm = _lengths(contender, latency, bench.scale.jobs)
        async with loaded(contender, bench.load, messages=SMALL, jobs=enough, warm_rounds=warm) as waiting:
            usage = Usage(roles)
            measured = await draining(contender, waiting)
            cores = usage.cores()
    return measured, sum(cores.values()), shares(cores)


def _of_possible(name: str, mine: list[Pace], busy: list[tuple[float, str]], slots: float) -> Figure:
    """Return our share of what the latency allows, or the processors where that is less.

    They are the limit where one core would be full with the worker, or all of them with everybody.
    """
    cores = os.cpu_count() or 1
    by_cpu = [min(1 / one.cpu, one.rate * cores / used) for one, (used, _) in zip(mine, busy, strict=True)]
    part = [one.rate / min(slots, limit) for one, limit in zip(mine, by_cpu, strict=True)]
    used, who = sorted(busy)[len(busy) // 2]
    note = (
        f"{median(one.rate for one in mine):.0f} jobs/s; possible: {slots:.0f} by the latency,"
        f" {median(by_cpu):.0f} by the processors; {used:.2f} of {cores} cores busy ({who})"
    )
    return Figure(figure=f"{name}_of_possible", value=median(part), unit="x", goal=SHARE, note=note)
