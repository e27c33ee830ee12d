"""The stand-in for OpenAI itself: what other tests rely on."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.upstream import Act, Seen, Upstream

AUTHORIZED = {"Authorization": "Bearer sk-test"}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Return an HTTP client."""
    async with aiohttp.ClientSession(headers=AUTHORIZED) as opened:
        yield opened


async def ask(session: aiohttp.ClientSession, base_url: str, prompt: str) -> int:
    """Ask something and return the status."""
    body = {"model": "gpt-6-luna", "messages": [{"role": "user", "content": prompt}]}
    async with session.post(f"{base_url}/chat/completions", json=body) as response:
        await response.read()
        return response.status


async def test_script_goes_before_marks_and_good_answers(session: aiohttp.ClientSession) -> None:
    """Acts are used up in order, where they match; a mark in the text works for as often as it says."""
    async with Upstream() as upstream:
        upstream.script(Act(status=500, match="second"), Act(status=429, times=2))
        prompts = ["first", "second", "third", "fourth"]
        assert [await ask(session, upstream.base_url, prompt) for prompt in prompts] == [429, 500, 429, 200]
        marked = '<<{"status": 503, "times": 1}>> again'
        assert [await ask(session, upstream.base_url, marked) for _ in range(2)] == [503, 200]


async def test_gate_sees_every_request_first(session: aiohttp.ClientSession) -> None:
    """A quota can refuse a request by what it would count at admission."""

    def gate(seen: Seen) -> Act | None:
        return Act(status=429) if seen.tokens > 100 else None

    async with Upstream(gate=gate) as upstream:
        assert await ask(session, upstream.base_url, "short") == 200
        assert await ask(session, upstream.base_url, "long " * 100) == 429


async def test_runs_as_a_process_and_is_scripted_over_http(session: aiohttp.ClientSession) -> None:
    """Tests of real processes script it, read its log and reset it from outside."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.upstream", "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ,
    )
    try:
        assert process.stdout is not None
        base_url = (await process.stdout.readline()).decode().strip()
        root = base_url.removesuffix("/v1")
        async with session.post(f"{root}/_script", json=[{"status": 418}]) as response:
            assert response.status == 200
        assert await ask(session, base_url, "hello") == 418
        async with session.get(f"{root}/_requests") as response:
            [seen] = json.loads(await response.read())
        assert (seen["path"], seen["outcome"]) == ("/v1/chat/completions", "answered 418")
        async with session.post(f"{root}/_reset") as response, session.get(f"{root}/_requests") as log:
            assert (response.status, await log.json()) == (200, [])
    finally:
        process.terminate()
        await process.wait()
