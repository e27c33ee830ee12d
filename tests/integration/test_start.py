"""A worker that is told to stop before it has begun."""

import signal
from pathlib import Path

import pytest

from tests.support.command import NOWHERE
from tests.support.process import running

AWAY = {
    "rabbitmq": {"AMQP_URL": NOWHERE},
    "database": {"DATABASE_URL": "postgresql://user:secret@127.0.0.1:1/jobs"},
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("server", AWAY)
async def test_nobody_waits_for_a_server_once_told_to_stop(
    server: str, number: signal.Signals, amqp_url: str, sqlite_url: str, tmp_path: Path
) -> None:
    """A supervisor would kill it long before the server comes, or the worker gives it up."""
    settings = {"AMQP_URL": amqp_url, "DATABASE_URL": sqlite_url, "WORKER_STARTUP_TIMEOUT": "60"}
    async with running("run", folder=tmp_path, settings=settings | AWAY[server]) as worker:
        await worker.logged("server is away", server=server)
        worker.send(number)
        assert await worker.ended(within=5) == 0
        assert worker.lines("stopped")
