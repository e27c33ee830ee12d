"""Processes that are measured: started, read from /proc, stopped."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from dev import processes

ROOT: Final = Path(__file__).parents[2]
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 40.0
TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
PARENT, USER, SYSTEM, RSS = 1, 11, 12, 21
"""Places of fields in /proc/PID/stat behind the command's name."""


class MeasuredProcess:
    """A process and its children."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.born = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return stat_of(self.pid) is not None

    def cpu(self) -> float:
        """CPU seconds so far, of all its processes and threads."""
        return TICK * sum(one.numbers[USER] + one.numbers[SYSTEM] for one in family(self.pid).values())

    def memory(self) -> float:
        """Resident bytes, those of its children included."""
        return PAGE * sum(one.numbers[RSS] for one in family(self.pid).values())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it, and its children, from running for a while."""
        mine = list(family(self.pid))
        for pid in mine:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in mine:
                os.kill(pid, signal.SIGCONT)

    async def logged(self, text: str, *, within: float = START_SECONDS) -> None:
        """Wait until its log holds a text."""
        end = time.monotonic() + within
        while text.encode() not in self.log.read_bytes():
            if time.monotonic() > end or not self.alive:
                raise RuntimeError(f"{self.log.name} has not said {text!r}: {processes.tail(self.log)}")
            await asyncio.sleep(0.02)


class Stat(NamedTuple):
    """What /proc/PID/stat says."""

    name: str
    numbers: list[int]
    """The fields behind the name, the state as 0."""


def stat_of(pid: int) -> Stat | None:
    """Read it; None where the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, tail = text.rpartition(") ")
    state, *numbers = tail.split()
    return None if state == "Z" else Stat(head.partition("(")[2], [0, *map(int, numbers)])


def family(pid: int) -> dict[int, Stat]:
    """Return a process and all its descendants."""
    everybody = {int(path.name): stat_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    mine = {pid}
    grown = True
    while grown:
        more = {one for one, found in everybody.items() if found and found.numbers[PARENT] in mine} - mine
        mine |= more
        grown = bool(more)
    return {one: found for one in mine if (found := everybody.get(one))}


def python(*arguments: str) -> list[str]:
    """Return the command that runs one of our modules."""
    return [sys.executable, "-m", *arguments]


@asynccontextmanager
async def running(
    command: Sequence[str], *, name: str, folder: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[MeasuredProcess]:
    """Run a command with its log in a file of `folder`; in the end it is told to stop, then killed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "WORKER_"))}
    log = folder / f"{name}-{time.monotonic_ns()}.log"
    environment = kept | {"PYTHONPATH": str(ROOT)} | dict(settings or {})
    child = processes.start(command, environment=environment, log=log)
    try:
        yield MeasuredProcess(child.pid, log)
    finally:
        await asyncio.to_thread(processes.stop, child, first=signal.SIGTERM, patience=STOP_SECONDS)


@asynccontextmanager
async def upstream(folder: Path, latency: float = 0.0) -> AsyncIterator[tuple[str, MeasuredProcess]]:
    """Run an upstream; give its base URL, and the process."""
    command = python("benchmarks.cpu.upstream", "--latency", str(latency))
    async with running(command, name="upstream", folder=folder) as process:
        await process.logged("\n")
        yield f"http://127.0.0.1:{int(process.log.read_text().split()[0])}/v1", process
