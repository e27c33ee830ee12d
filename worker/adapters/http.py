"""Health and metrics over HTTP."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from errno import EADDRINUSE
from typing import Final, TypeAlias

from aiohttp import web

HEALTH_PATH: Final = "/healthz"
READY_PATH: Final = "/readyz"
METRICS_PATH: Final = "/metrics"
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_CLOSE_SECONDS: Final = 2.0

Check: TypeAlias = Callable[[], str | None]
"""Returns what is wrong, or None."""


class ListenError(Exception):
    """The address cannot be listened on."""


@asynccontextmanager
async def serve_http(
    *, host: str, port: int, health: Check, ready: Check, metrics: Callable[[], bytes]
) -> AsyncIterator[int]:
    """Serve while the context is open and yield the port; the system picks one for 0. Raises ListenError."""
    application = web.Application()
    application.router.add_get(HEALTH_PATH, _checked(health))
    application.router.add_get(READY_PATH, _checked(ready))
    application.router.add_get(METRICS_PATH, _metrics(metrics))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_CLOSE_SECONDS)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            mend = "see WORKER_HTTP_HOST and WORKER_HTTP_PORT (0 picks a free one)"
            raise ListenError(f"cannot listen on {host} port {port}: {_words(error)}; {mend}") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _words(error: OSError) -> str:
    return "it is in use" if error.errno == EADDRINUSE else str(error.strerror)


def _checked(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        wrong = check()
        return web.Response(text=f"{wrong or 'ok'}\n", status=503 if wrong else 200)

    return answer


def _metrics(render: Callable[[], bytes]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=render(), headers={"Content-Type": _METRICS_TYPE})

    return answer
