"""What is measured, in order; the first ones find out what later ones compare with."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from benchmarks.cpu.backlog import backlog
from benchmarks.cpu.bench import Bench
from benchmarks.cpu.ceiling import upstream_ceiling
from benchmarks.cpu.cost import cost
from benchmarks.cpu.figures import Figure
from benchmarks.cpu.latency import latency
from benchmarks.cpu.memory import memory
from benchmarks.cpu.scaling import two_processes
from benchmarks.cpu.throughput import throughput

Measurement: TypeAlias = Callable[[Bench], Awaitable[list[Figure]]]

MEASUREMENTS: Final[Mapping[str, Measurement]] = {
    "upstream": upstream_ceiling,
    "cost": cost,
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
    "backlog": backlog,
    "processes": two_processes,
}
