"""When the body of a request leaves, over a real connection."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from worker.adapters.openai_api.eager import EagerRequest


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Serve: the answer is the number of bytes that came."""

    async def count(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    app = web.Application(client_max_size=2**23)
    app.router.add_post("/", count)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}/"
    await runner.cleanup()


@pytest.mark.parametrize(("size", "at_once"), [(10, True), (2**15, True), (2**15 + 1, None), (2**19, None)])
async def test_small_body_leaves_in_the_same_turn(url: str, size: int, *, at_once: bool | None) -> None:
    """On a connection that is open; larger ones arrive as well."""
    order: list[str] = []

    async def note(*_: object) -> None:
        order.append("body")

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(note)
    async with aiohttp.ClientSession(request_class=EagerRequest, trace_configs=[trace]) as session:
        await post(session, url, b"x")
        order.clear()
        posting = asyncio.create_task(post(session, url, b"x" * size))
        asyncio.get_running_loop().call_soon(order.append, "next turn")
        assert await posting == str(size)
    if at_once:
        assert order == ["body", "next turn"]
    else:
        assert order.count("body") >= 1


async def post(session: aiohttp.ClientSession, url: str, body: bytes) -> str:
    """Post, and return the answer."""
    async with session.post(url, data=body) as response:
        return await response.text()
