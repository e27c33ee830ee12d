"""Health and metrics over real HTTP."""

import socket
from contextlib import AbstractAsyncContextManager

import aiohttp
import pytest

from schemas.names import Kind
from schemas.reply import ReplyStatus
from worker.adapters.http import ListenError, serve_http
from worker.adapters.metrics import Metrics
from worker.domain.events import JobFinished
from worker.domain.job import JobKey


class Process:
    """What the server is told of the process."""

    def __init__(self) -> None:
        self.wrong: str | None = None
        self.waiting: str | None = "not consuming yet"
        self.metrics = Metrics(version="1.2.3")

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> AbstractAsyncContextManager[int]:
        """Serve its state."""
        return serve_http(
            host=host,
            port=port,
            health=lambda: self.wrong,
            ready=lambda: self.wrong or self.waiting,
            metrics=self.metrics.render,
        )


async def ask(port: int, path: str, *, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str, str]:
    """Return status, body and content type."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{host}:{port}{path}") as response,
    ):
        return response.status, await response.text(), response.headers.get("Content-Type", "")


async def test_health_names_what_is_wrong() -> None:
    """200 while the process can work, 503 with the reason while it cannot, and back."""
    process = Process()
    async with process.serve() as port:
        assert (await ask(port, "/healthz"))[:2] == (200, "ok\n")
        process.wrong = "the database is away"
        assert (await ask(port, "/healthz"))[:2] == (503, "the database is away\n")
        process.wrong = None
        assert (await ask(port, "/healthz"))[0] == 200
        assert (await ask(port, "/healthz", method="HEAD"))[0] == 200


async def test_ready_once_it_consumes() -> None:
    """A healthy process that does not consume yet is alive, but not ready."""
    process = Process()
    async with process.serve() as port:
        assert (await ask(port, "/readyz"))[:2] == (503, "not consuming yet\n")
        assert (await ask(port, "/healthz"))[0] == 200
        process.waiting = None
        assert (await ask(port, "/readyz"))[0] == 200


async def test_metrics_are_prometheus_text() -> None:
    """A scrape gets the text format with its version, and what has just been counted."""
    process = Process()
    async with process.serve() as port:
        process.metrics(
            JobFinished(
                key=JobKey("acme", "one"),
                kind=Kind.TOOL,
                lane="tool",
                model="gpt-6-luna",
                status=ReplyStatus.SUCCEEDED,
                error_code=None,
                attempts=1,
                seconds=1,
            )
        )
        status, text, kind = await ask(port, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'openai_worker_jobs_total{error_code="",kind="tool",status="succeeded"} 1.0' in text
    assert 'openai_worker_build_info{python="3' in text


@pytest.mark.parametrize(("path", "method", "status"), [("/", "GET", 404), ("/metrics", "POST", 405)])
async def test_nothing_else_is_served(path: str, method: str, status: int) -> None:
    """Other paths and methods are refused."""
    async with Process().serve() as port:
        assert (await ask(port, path, method=method))[0] == status


async def test_a_port_in_use_is_told() -> None:
    """A taken port ends the start with the address in one line."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ListenError,
            match=f"cannot listen on 127.0.0.1 port {port}: it is in use; see .* WORKER_HTTP_PORT",
        ):
            async with Process().serve(port=port):
                pass


async def test_the_port_is_free_again_after_the_end() -> None:
    """Closing gives the port back at once, for the next process of a restart."""
    async with Process().serve() as port:
        await ask(port, "/healthz")
    async with Process().serve(port=port) as again:
        assert again == port


async def test_an_unknown_host_is_told() -> None:
    """A host that is not this machine's ends the start in the same way."""
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1 port 0"):
        async with Process().serve(host="192.0.2.1"):
            pass
