"""What the demo starts and stops: the worker, and the stand-in for OpenAI."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dev.ports import free_ports
from dev.processes import bound, stop, tail

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 40.0
POLL_SECONDS = 0.05


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class StandIn:
    """A local server that speaks OpenAI's protocol and fails when told to."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        # A proxy of the environment would be asked for its own loopback.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fail_next(self, status: int, message: str, *, code: str, retry_after: float | None = None) -> None:
        """Let the next request fail; `retry_after` in seconds."""
        failure: dict[str, Any] = {"type": "fail", "status": status, "message": message, "code": code}
        if retry_after is not None:
            failure["retry_after"] = retry_after
        self._request("/_llmock/scenario", {"behaviors": [failure]})

    def is_up(self) -> bool:
        """Tell whether it answers."""
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            self._request("/health")
            return True
        return False

    def _request(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        with self._opener.open(self.url + path, data, timeout=5) as response:
            response.read()


@contextlib.contextmanager
def stand_in(log: Path) -> Iterator[StandIn]:
    """Run llmock; its answers repeat the prompt, so that one can see what reached it."""
    (port,) = free_ports(1)
    command = ["-m", "llmock.cli", "serve", "--port", str(port), "--response-style", "echo"]
    server = StandIn(port)
    with _process([*command, "--latency-ms", "250"], environment=dict(os.environ), log=log) as process:
        _wait_for("the stand-in", process, log, server.is_up)
        yield server


@contextlib.contextmanager
def worker(environment: Mapping[str, str], log: Path) -> Iterator[int]:
    """Run a worker and give its port for health and metrics once it consumes."""
    with _process(["-m", "worker", "run"], environment=environment, log=log) as process:
        ready: list[dict[str, Any]] = []

        def is_ready() -> bool:
            ready[:] = [line for line in _lines(log) if line.get("message") == "ready"]
            return bool(ready)

        _wait_for("the worker", process, log, is_ready)
        yield int(ready[0]["http_port"])
    if process.returncode != 0:
        raise DemoError(f"the worker ended with exit code {process.returncode}; its log is {log}")


def run_command(*arguments: str, environment: Mapping[str, str]) -> str:
    """Run `openai-worker` to its end and return what it printed. Raises DemoError."""
    command = bound([sys.executable, "-m", "worker", *arguments], signal.SIGTERM)
    try:
        done = subprocess.run(  # noqa: S603 (the program itself)
            command,
            env=dict(environment),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            check=True,
        )
    except subprocess.SubprocessError as error:
        raise DemoError(str(error)) from None
    return done.stdout


@contextlib.contextmanager
def _process(
    arguments: list[str], *, environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 (our own fixed commands)
            bound([sys.executable, *arguments], signal.SIGTERM),
            env=dict(environment),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches the demo only, which stops it in order
        )
    try:
        yield process
    finally:
        stop(process, first=signal.SIGTERM, patience=STOP_SECONDS)


def _wait_for(name: str, process: "subprocess.Popen[bytes]", log: Path, is_ready: Callable[[], bool]) -> None:
    end = time.monotonic() + START_SECONDS
    while not is_ready():
        if process.poll() is not None or time.monotonic() > end:
            raise DemoError(f"{name} did not start; the end of {log}:\n{tail(log)}")
        time.sleep(POLL_SECONDS)


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            fields = json.loads(line)
            if isinstance(fields, dict):
                yield fields
