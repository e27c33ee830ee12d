"""CPU per job: ours, the peers', and the floor, in turns: a drift of the machine then hits all alike."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

from benchmarks.cpu.bench import Bench
from benchmarks.cpu.contender import IN_FLIGHT, Contender, Pace, pace
from benchmarks.cpu.echo import part
from benchmarks.cpu.figures import Figure, median
from benchmarks.cpu.messages import LARGE, SMALL
from benchmarks.cpu.rivals import PEERS

SIZES: Final = (SMALL, LARGE)
OURS: Final = (("postgresql", False), ("postgresql", True), ("sqlite", True))
"""Databases, and whether limits are configured; limits that OpenAI's headers tell are kept in any case."""
BEST_PEER: Final = {SMALL: "<= 0.5", LARGE: "<= 0.33"}
FLOOR: Final = "<= 1.35"
TWICE: Final = ">= 2"
FINER: Final = 5
"""So many times the jobs for the bare consumer: the kernel counts in 0.01 s, and fewer take but 0.2 s."""

Paces = dict[tuple[str, int], list[Pace]]


async def cost(bench: Bench) -> list[Figure]:
    """Measure with an upstream that answers at once and 64 jobs in flight."""
    mine, theirs, floor = Paces(), Paces(), defaultdict[str, list[float]](list)
    for _ in range(bench.scale.times):
        for contender in _ours(bench):
            await _measure(bench, contender, mine, bench.scale.jobs)
        for contender in _peers(bench):
            await _measure(bench, contender, theirs, bench.scale.peer_jobs)
        await _floor(bench, floor)
    bench.cheapest = sorted(PEERS, key=lambda peer: _cpu(theirs, f"{peer.name}_postgresql", SMALL))
    return [
        *_absolute(mine, "jobs"),
        *_absolute(theirs, "jobs"),
        *_beside_floor(mine, floor),
        *_beside_peers(mine, theirs),
    ]


def databases_of_peers(bench: Bench) -> tuple[str, ...]:
    """Return where the peers store; SQLite, which they write to one by one, only in a long run."""
    return ("postgresql", "sqlite") if bench.scale.long else ("postgresql",)


def _ours(bench: Bench) -> Iterator[AbstractAsyncContextManager[Contender]]:
    for database, limits in OURS:
        yield bench.ours(database, limits=limits)


def _peers(bench: Bench) -> Iterator[AbstractAsyncContextManager[Contender]]:
    for database in databases_of_peers(bench):
        for peer in PEERS:
            yield bench.rival(peer, database)


async def _measure(
    bench: Bench, opening: AbstractAsyncContextManager[Contender], found: Paces, jobs: int
) -> None:
    async with opening as contender:
        for size in SIZES:
            measured = await pace(contender, bench.load, messages=size, jobs=jobs)
            found.setdefault((contender.name, size), []).append(measured)


async def _floor(bench: Bench, found: dict[str, list[float]]) -> None:
    url, _ = await bench.upstream()
    async with bench.echo() as echo:
        for size in SIZES:
            measured = await pace(echo, bench.load, messages=size, jobs=FINER * bench.scale.jobs)
            found[f"broker_{size}"].append(measured.cpu)
    for size in SIZES:
        settings = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-not-a-key", "MESSAGES": str(size)}
        found[f"sdk_{size}"].append(await part("openai", bench.folder, **settings))
        for name, database in bench.databases.items():
            settings = {"DATABASE_URL": database, "MESSAGES": str(size)}
            found[f"{name}_{size}"].append(await part("database", bench.folder, **settings))


def _cpu(paces: Paces, name: str, size: int) -> float:
    return median(one.cpu for one in paces[name, size])


def _rate(paces: Paces, name: str, size: int) -> float:
    return median(one.rate for one in paces[name, size])


def _absolute(paces: Paces, what: str) -> Iterator[Figure]:
    for name, size in sorted(paces, key=lambda key: key[1]):
        spread = [f"{1e6 * one.cpu:.0f}" for one in paces[name, size]]
        yield Figure(
            figure=f"cpu_{size}_messages_{name}",
            value=1e6 * _cpu(paces, name, size),
            unit="us/job",
            note=f"{_rate(paces, name, size):.0f} {what}/s; each {', '.join(spread)}",
        )


def _beside_floor(mine: Paces, floor: Mapping[str, list[float]]) -> Iterator[Figure]:
    middle = {name: 1e6 * median(values) for name, values in floor.items()}
    for name, size in mine:
        database = name.split("_")[1]
        parts = [middle[f"broker_{size}"], middle[f"sdk_{size}"], middle[f"{database}_{size}"]]
        least = sum(parts)
        shown = " + ".join(f"{one:.0f}" for one in parts)
        yield Figure(
            figure=f"cpu_{size}_messages_{name.removeprefix('ours_')}_vs_floor",
            value=1e6 * _cpu(mine, name, size) / least,
            unit="x",
            goal=FLOOR,
            note=f"floor {least:.0f} us: broker, SDK, commits {shown}",
        )


def _beside_peers(mine: Paces, theirs: Paces) -> Iterator[Figure]:
    for name, size in mine:
        database = name.split("_")[1]
        rivals = [other for other, one in theirs if one == size and other.endswith(f"_{database}")]
        if not rivals:
            continue
        variant = name.removeprefix("ours_")
        cheapest = min(rivals, key=lambda other: _cpu(theirs, other, size))
        yield Figure(
            figure=f"cpu_{size}_messages_{variant}_vs_best_peer",
            value=_cpu(mine, name, size) / _cpu(theirs, cheapest, size),
            unit="x",
            goal=BEST_PEER[size],
            note=f"best peer: {cheapest}",
        )
        if size == SMALL:
            yield fastest(
                f"throughput_0ms_{IN_FLIGHT}_{variant}_vs_best_peer",
                _rate(mine, name, size),
                {other: _rate(theirs, other, size) for other in rivals},
                TWICE,
            )


def fastest(figure: str, rate: float, rivals: Mapping[str, float], goal: str) -> Figure:
    """Return the figure of our rate beside the best of the others."""
    best = max(rivals, key=lambda name: rivals[name])
    note = f"{rate:.0f} jobs/s; best peer: {best}, {rivals[best]:.0f} jobs/s"
    return Figure(figure=figure, value=rate / rivals[best], unit="x", goal=goal, note=note)
