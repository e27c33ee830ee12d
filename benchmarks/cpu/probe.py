"""One contender under one load, for a look with a profiler: its process id, and CPU and rate as they come."""

import argparse
from contextlib import AbstractAsyncContextManager

from benchmarks.cpu.bench import Bench
from benchmarks.cpu.contender import Contender, Pace, pace
from benchmarks.cpu.echo import part
from benchmarks.cpu.figures import median
from benchmarks.cpu.rivals import PEERS


async def probe(bench: Bench, options: argparse.Namespace) -> None:
    """Measure what `--only` names: ours, floor, peers, or one of the peers."""
    names = options.only.split(",")
    databases = options.databases.split(",")
    latency, in_flight = options.latency, options.in_flight
    if "floor" in names:
        await _floor(bench, options)
    for database in databases:
        if "ours" in names:
            for limits in options.limits.split(","):
                await _probe(
                    bench.ours(database, latency=latency, in_flight=in_flight, limits=limits == "1"),
                    bench,
                    options,
                )
        for peer in PEERS:
            if "peers" in names or peer.name in names:
                await _probe(
                    bench.rival(peer, database, latency=latency, in_flight=in_flight), bench, options
                )


async def _probe(
    opening: AbstractAsyncContextManager[Contender], bench: Bench, options: argparse.Namespace
) -> None:
    async with opening as contender:
        print(f"# {contender.name}: pid {contender.processes[0].pid}", flush=True)
        for size in map(int, options.messages.split(",")):
            paces = [
                await pace(contender, bench.load, messages=size, jobs=bench.scale.jobs)
                for _ in range(bench.scale.times)
            ]
            _show(f"{contender.name}, {size} messages", paces)


async def _floor(bench: Bench, options: argparse.Namespace) -> None:
    sizes = [int(size) for size in options.messages.split(",")]
    url, _ = await bench.upstream(options.latency)
    async with bench.echo() as echo:
        for size in sizes:
            paces = [
                await pace(echo, bench.load, messages=size, jobs=bench.scale.jobs)
                for _ in range(bench.scale.times)
            ]
            _show(f"echo, {size} messages", paces)
    for size in sizes:
        settings = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-not-a-key", "MESSAGES": str(size)}
        print(f"SDK, {size} messages: {1e6 * await part('openai', bench.folder, **settings):.0f} us")
        for name, database in bench.databases.items():
            settings = {"DATABASE_URL": database, "MESSAGES": str(size)}
            spent = await part("database", bench.folder, **settings)
            print(f"two group commits, {name}, {size} messages: {1e6 * spent:.0f} us", flush=True)


def _show(name: str, paces: list[Pace]) -> None:
    each = ", ".join(f"{1e6 * one.cpu:.0f}" for one in paces)
    cpu, rate = median(one.cpu for one in paces), median(one.rate for one in paces)
    print(f"{name}: {1e6 * cpu:.0f} us CPU a job ({each}), {rate:.0f} jobs/s", flush=True)
