"""Jobs a second of one process, by the upstream's latency and the number of jobs in flight."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from benchmarks.cpu.bench import Bench
from benchmarks.cpu.contender import Contender, Pace, pace
from benchmarks.cpu.cost import fastest
from benchmarks.cpu.figures import Figure, median
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


async def throughput(bench: Bench) -> list[Figure]:
    """Measure each cell, ours and the peers in turns."""
    cells = [(latency, count) for latency in LATENCIES for count in IN_FLIGHT] if bench.scale.long else SHORT
    found = []
    for latency, in_flight in cells:
        found += await _cell(bench, latency, in_flight)
    return found


async def _cell(bench: Bench, latency: float, in_flight: int) -> list[Figure]:
    mine: list[Pace] = []
    theirs: dict[str, list[Pace]] = {}
    failed: dict[str, str] = {}
    options: dict[str, Any] = {"latency": latency, "in_flight": in_flight}
    for _ in range(bench.scale.times):
        mine.append(await _measure(bench, bench.ours(limits=True, **options), bench.scale.jobs))
        for peer in _peers(bench):
            if peer.name in failed:
                continue
            try:
                measured = await _measure(bench, bench.rival(peer, **options), bench.scale.peer_jobs)
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
        figures.append(_of_possible(name, mine, latency, in_flight))
    return figures


def _peers(bench: Bench) -> list[Peer]:
    cheapest = bench.cheapest or list(PEERS)
    return cheapest if bench.scale.long else cheapest[:FEW]


async def _measure(bench: Bench, opening: AbstractAsyncContextManager[Contender], jobs: int) -> Pace:
    async with opening as contender:
        enough = max(jobs, ROUNDS * contender.in_flight)
        return await pace(contender, bench.load, messages=SMALL, jobs=enough)


def _of_possible(name: str, mine: list[Pace], latency: float, in_flight: int) -> Figure:
    """Return our share of what the latency allows, or of a whole core where that is less."""
    slots = in_flight / latency
    part = [one.rate / min(slots, 1 / one.cpu) for one in mine]
    core = median(1 / one.cpu for one in mine)
    note = f"possible: {slots:.0f} jobs/s by the latency, {core:.0f} jobs/s by the CPU of one core"
    return Figure(figure=f"{name}_of_possible", value=median(part), unit="x", goal=SHARE, note=note)
