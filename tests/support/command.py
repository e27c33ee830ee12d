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

from typer.testing import CliRunner

from worker.cli.main import app

ROOT = Path(__file__).parents[2]


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
