"""The machine a run was taken on, and who used its processors meanwhile."""

import os
import platform
import time
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from benchmarks.cpu.processes import SYSTEM, TICK, USER, family, stat_of


def describe() -> str:
    """Name the machine and what runs on it, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    return (
        f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, openai {version('openai')},"
        f" SQLAlchemy {version('sqlalchemy')}, aio-pika {version('aio-pika')}"
    )


class Usage:
    """CPU seconds of all processes from its making on, by what they are."""

    def __init__(self, roles: Mapping[str, int]) -> None:
        """Take what processes are called, with their ids; others go by their own names."""
        self._names = {pid: name for name, root in roles.items() for pid in family(root)}
        self._before = self._read()
        self._begun = time.monotonic()

    def cores(self) -> dict[str, float]:
        """Return how many cores each used since then, on average."""
        seconds = time.monotonic() - self._begun
        used = defaultdict[str, float](float)
        for pid, (name, spent) in self._read().items():
            used[self._names.get(pid, name)] += (spent - self._before.get(pid, (name, 0.0))[1]) / seconds
        return used

    def _read(self) -> dict[int, tuple[str, float]]:
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            fields = stat_of(int(path.name))
            if fields is not None:
                found[int(path.name)] = fields.name, TICK * (fields.numbers[USER] + fields.numbers[SYSTEM])
        return found


def shares(cores: Mapping[str, float]) -> str:
    """Return a line about who used the processors."""
    return ", ".join(
        f"{name} {share:.2f}"
        for name, share in sorted(cores.items(), key=lambda item: -item[1])[:5]
        if share >= 0.02
    )
