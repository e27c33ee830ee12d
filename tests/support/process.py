"""The worker as a real process: started, watched through its log, stopped or killed."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dev.processes import bound
from tests.support.servers import Broker

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 40.0
LONGEST_LINE = 2**22

StartWorker = Callable[..., AbstractAsyncContextManager["WorkerProcess"]]


class WorkerProcess:
    """One `python -m worker …`; its log lines are kept as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.log: list[dict[str, Any]] = []
        """Each line that it printed; one that is not JSON is under the key `text`."""
        self._process = process
        self._news = asyncio.Condition()
        self._silent = False
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -n when signal n ended it."""
        return self._process.returncode

    @property
    def http_url(self) -> str:
        """Where health and metrics are, once it is ready."""
        port = next(line["http_port"] for line in self.log if line.get("message") == "ready")
        return f"http://127.0.0.1:{port}"

    def lines(self, message: str, **fields: object) -> list[dict[str, Any]]:
        """Return the log lines with this message and these fields, so far."""
        wanted = {"message": message, **fields}
        return [line for line in self.log if wanted.items() <= line.items()]

    async def logged(
        self, message: str, *, count: int = 1, within: float = START_SECONDS, **fields: object
    ) -> None:
        """Wait until such a line was logged `count` times; a process that ends before that fails the test."""

        def settled() -> bool:
            return len(self.lines(message, **fields)) >= count or self._silent

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within), self._news:
                await self._news.wait_for(settled)
        if len(self.lines(message, **fields)) < count:
            state = "runs" if self.exit_code is None else f"ended with {self.exit_code}"
            pytest.fail(f"worker {self.pid} {state} and has not logged {message!r} {fields}:\n{self.tail()}")

    async def ready(self, *, within: float = START_SECONDS) -> None:
        """Wait until it consumes."""
        await self.logged("ready", within=within)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that is gone already gets none."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def ended(self, *, within: float = STOP_SECONDS) -> int:
        """Wait until it is gone and all its lines are read; return the exit code."""
        async with asyncio.timeout(within):
            code = await self._process.wait()
            await self._reading
        return code

    async def terminate(self, *, within: float = STOP_SECONDS) -> int:
        """SIGTERM; return the exit code."""
        self.send(signal.SIGTERM)
        return await self.ended(within=within)

    async def kill(self) -> None:
        """SIGKILL, at whatever instant this is."""
        self.send(signal.SIGKILL)
        await self.ended()

    def tail(self) -> str:
        """Return the last lines for a failure's message."""
        return "\n".join(json.dumps(line) for line in self.log[-20:])

    async def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        async for line in stream:
            await self._note(line)
        async with self._news:
            self._silent = True
            self._news.notify_all()

    async def _note(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        async with self._news:
            self.log.append(
                entry if isinstance(entry, dict) else {"text": line.decode(errors="replace").rstrip()}
            )
            self._news.notify_all()


@asynccontextmanager
async def running(
    *arguments: str, folder: Path, settings: Mapping[str, str], module: str = "worker"
) -> AsyncIterator[WorkerProcess]:
    """Run `python -m worker`; it is killed at the end if it still runs, or if its parent dies."""
    process = await asyncio.create_subprocess_exec(
        *bound([sys.executable, "-m", module, *arguments], signal.SIGKILL),
        cwd=folder,
        env=_environment(folder, settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=LONGEST_LINE,
    )
    worker = WorkerProcess(process)
    try:
        yield worker
    finally:
        await worker.kill()


def _environment(folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment without settings of the program, plus these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "WORKER_"))}
    ours = {
        "PYTHONPATH": str(ROOT),
        "OPENAI_API_KEY": "sk-test-not-a-key",
        "WORKER_HTTP_PORT": "0",
        "WORKER_LOG_FORMAT": "json",
    }
    return {**kept, **ours, **settings}


@pytest.fixture
def start_worker(broker: Broker, database_url: str, tmp_path: Path) -> StartWorker:
    """Return what starts workers on this test's broker and database, ready by default.

    `async with start_worker(OPENAI_BASE_URL=upstream.base_url, WORKER_CONCURRENCY=4) as worker: ...`
    """

    @asynccontextmanager
    async def start(*, wait: bool = True, **settings: object) -> AsyncIterator[WorkerProcess]:
        mine = {"AMQP_URL": broker.url, "DATABASE_URL": database_url}
        given = {name: str(value) for name, value in settings.items()}
        async with running("run", folder=tmp_path, settings=mine | given) as worker:
            if wait:
                await worker.ready()
            yield worker

    return start
