"""`openai-worker` for tests: in this process, or as one of its own."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from tests.support.broker import linked
from tests.support.servers import Broker
from worker.adapters.database.setup import upgrade
from worker.cli.main import app

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"
NOWHERE = f"amqp://user:{SECRET}@127.0.0.1:1/"
MODELS = {
    "object": "list",
    "data": [
        {"id": "gpt-6-luna", "object": "model", "owned_by": "openai"},
        {"id": "gpt-4o", "object": "model", "owned_by": "openai", "shutdown_date": "2027-01-14"},
    ],
}
"""What OpenAI's list of models says."""


class Ended(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, decoded."""
        return json.loads(self.out)


class CommandLine:
    """Runs `openai-worker` in a folder of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self._folder = folder
        self._settings = {"OPENAI_API_KEY": "sk-test-not-a-key"} | settings

    async def __call__(self, *arguments: str, stdin: str = "", **settings: str) -> Ended:
        """Run one command to its end in this process, where the libraries are imported already."""
        return await asyncio.to_thread(self._invoke, arguments, stdin, self._settings | settings)

    async def process(
        self, *arguments: str, stdin: str = "", terminal: int | None = None, **settings: str
    ) -> Ended:
        """Run one command to its end as people do; `terminal` takes its standard error instead."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "worker",
            *arguments,
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self._settings, **settings},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE if terminal is None else terminal,
        )
        out, err = await process.communicate(stdin.encode())
        return Ended(process.returncode or 0, out.decode(), (err or b"").decode())

    def _invoke(self, arguments: tuple[str, ...], stdin: str, settings: Mapping[str, str]) -> Ended:
        handlers = logging.root.handlers[:]
        try:
            with contextlib.chdir(self._folder):
                result = CliRunner().invoke(app, arguments, stdin, settings, catch_exceptions=False)
        finally:
            logging.root.handlers[:] = handlers  # commands set up logging for a process of their own
        return Ended(result.exit_code, result.stdout_bytes.decode(), result.stderr_bytes.decode())


@pytest.fixture
def bare(tmp_path: Path) -> CommandLine:
    """Give a command line without servers."""
    return CommandLine(tmp_path, AMQP_URL=NOWHERE, WORKER_STARTUP_TIMEOUT="0.5")


@pytest.fixture
def cli(tmp_path: Path, broker: Broker, sqlite_url: str) -> CommandLine:
    """Give a command line with an empty broker and no database yet."""
    return CommandLine(tmp_path, AMQP_URL=broker.url, DATABASE_URL=sqlite_url)


@pytest.fixture
async def stored(cli: CommandLine, sqlite_url: str, broker: Broker) -> CommandLine:
    """Give a command line whose database and broker are set up."""
    await upgrade(sqlite_url)
    async with linked(broker.url):
        return cli
