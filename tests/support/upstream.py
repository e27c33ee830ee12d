"""A scripted stand-in for OpenAI on loopback, which logs every request.

In a test: `async with Upstream() as upstream: upstream.script(Act(status=429), Act(text="hi"))`.
As a process: `python -m tests.support.upstream --port 0` prints its base URL; then
`POST /_script` with a list of acts, `GET /_requests`, `POST /_reset`.

A request takes the first act of the script that matches it, else the act that its
text names as `<<{"status": 500}>>`, else it gets a good answer.
"""

import argparse
import asyncio
import gzip
import json
import re
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from aiohttp import web

from tests.support.good_answers import answer_to, estimate, text_of

ALWAYS = 10**9
_MARK = re.compile(r"<<(\{.*?\})>>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Act:
    """What to do with a request. Without arguments: answer well."""

    status: int = 200
    text: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()
    """`{"name": ..., "arguments": {...} or "text"}` each."""
    patch: Mapping[str, Any] = field(default_factory=dict)
    """Replaces top-level fields of the answer (`usage`, `model`, `service_tier`, ...); None removes one."""
    error: Mapping[str, Any] = field(default_factory=dict)
    """Fields of OpenAI's error object."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    """Sent as it is, in place of an answer or error; packed where `headers` say `Content-Encoding: gzip`."""
    delay: float = 0
    """Seconds until the first byte."""
    fault: str | None = None
    """`close` or `reset` before any reply, `half` a body, `stall` without a byte, `dribble`, `garbage`."""
    gap: float = 0.05
    """Seconds between the bytes of a dribble."""
    match: str | None = None
    """Only requests whose body or path contains this."""
    times: int = 1


@dataclass(kw_only=True)
class Seen:
    """One request as it arrived, and what became of it."""

    number: int
    at: float
    """Seconds since the epoch."""
    monotonic: float
    path: str
    headers: Mapping[str, str]
    connection: int
    """The client's port: one for each connection it opened."""
    body: Any
    """The decoded JSON, or the text if it is none."""
    tokens: int = 0
    """What OpenAI would count at admission: the input's estimate and the most that may be put out."""
    answer: Any = None
    """The JSON that it was to be answered with, if it was a good answer."""
    outcome: str = "pending"
    """`answered <status>` once the last byte is written, `faulted <fault>`, or `abandoned` by the client."""


class Upstream:
    """The server. `gate` sees every request first and may act on it: a place for quotas."""

    def __init__(
        self,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        gate: Callable[[Seen], Act | None] | None = None,
    ) -> None:
        self.requests: list[Seen] = []
        self._acts: list[Act] = []
        self._marked: dict[str, int] = {}
        self._port, self._tls, self._gate = port, tls, gate
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Condition()

    @property
    def base_url(self) -> str:
        """What an SDK is given."""
        return f"{self.root}/v1"

    @property
    def root(self) -> str:
        """Where the admin paths are."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/_script", self._take_script)
        app.router.add_get("/_requests", self._show_requests)
        app.router.add_post("/_reset", self._take_reset)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner:
            await self._runner.cleanup()

    def script(self, *acts: Act) -> None:
        """Add acts, to be used up in this order."""
        self._acts.extend(acts)

    def reset(self) -> None:
        """Forget script and log."""
        self._acts.clear()
        self._marked.clear()
        self.requests.clear()

    async def seen(self, count: int, timeout: float = 10) -> list[Seen]:  # noqa: ASYNC109 - plain in tests
        """Wait until so many requests have arrived. Raises TimeoutError."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    async def settled(self, timeout: float = 10) -> list[Seen]:  # noqa: ASYNC109 - plain in tests
        """Wait until no request is pending. Raises TimeoutError."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: all(one.outcome != "pending" for one in self.requests))
        return self.requests

    # ------------------------------------------------------------ one request

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        seen = await self._log(request)
        act = self._act_for(seen)
        try:
            response = await self._perform(act, seen, request)
            seen.outcome = f"faulted {act.fault}" if act.fault else f"answered {act.status}"
        except (asyncio.CancelledError, ConnectionError):
            seen.outcome = "abandoned"
            raise
        finally:
            await asyncio.shield(self._note())
        return response

    async def _log(self, request: web.Request) -> Seen:
        raw = await request.read()
        try:
            body = json.loads(raw)
        except ValueError:
            body = raw.decode(errors="replace")
        seen = Seen(
            number=len(self.requests) + 1,
            at=time.time(),
            monotonic=time.monotonic(),
            path=request.path,
            connection=request.transport.get_extra_info("peername")[1] if request.transport else 0,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            tokens=estimate(request.path, body) if isinstance(body, dict) else 0,
        )
        self.requests.append(seen)
        await self._note()
        return seen

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _act_for(self, seen: Seen) -> Act:
        gated = self._gate(seen) if self._gate else None
        return gated or self._scripted(seen) or self._named(seen) or _refusal(seen) or Act()

    def _scripted(self, seen: Seen) -> Act | None:
        text = f"{seen.path} {json.dumps(seen.body, ensure_ascii=False)}"
        for i, act in enumerate(self._acts):
            if act.match is None or act.match in text:
                self._acts[i : i + 1] = [replace(act, times=act.times - 1)] if act.times > 1 else []
                return act
        return None

    def _named(self, seen: Seen) -> Act | None:
        mark = _MARK.search(text_of(seen.body)) if isinstance(seen.body, dict) else None
        if mark is None:
            return None
        act = Act(**({"times": ALWAYS} | json.loads(mark[1])))
        used = self._marked[mark[0]] = self._marked.get(mark[0], 0) + 1
        return act if used <= act.times else None

    async def _perform(self, act: Act, seen: Seen, request: web.Request) -> web.StreamResponse:
        if act.delay:
            await asyncio.sleep(act.delay)
        content = _content(act, seen)
        body = (act.body if act.body is not None else json.dumps(content)).encode()
        seen.answer = content if act.status < 300 and act.body is None else None
        headers = {
            "Content-Type": "application/json",
            "X-Request-Id": f"req_{seen.number}",
            "Set-Cookie": "__cf_bm=abc; path=/; HttpOnly",
            **act.headers,
        }
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.compress(body)
        if act.fault in {"close", "reset", "stall", "garbage"}:
            return await _break_off(act.fault, request)
        response = web.StreamResponse(status=act.status, headers=headers | {"Content-Length": str(len(body))})
        await response.prepare(request)
        if act.fault == "half":
            await response.write(body[: len(body) // 2])
            return await _break_off("close", request, response)
        if act.fault == "dribble":
            for i in range(len(body)):
                await response.write(body[i : i + 1])
                await asyncio.sleep(act.gap)
        else:
            await response.write(body)
        await response.write_eof()
        return response

    # ------------------------------------------------------------ from outside

    async def _take_script(self, request: web.Request) -> web.Response:
        self.script(*(Act(**act) for act in await request.json()))
        return web.json_response({})

    async def _show_requests(self, _: web.Request) -> web.Response:
        return web.json_response([asdict(one) for one in self.requests])

    async def _take_reset(self, _: web.Request) -> web.Response:
        self.reset()
        return web.json_response({})


def _refusal(seen: Seen) -> Act | None:
    """Refuse what OpenAI would refuse."""
    if not seen.headers.get("authorization", "").startswith("Bearer "):
        return Act(status=401, error={"code": "invalid_api_key", "message": "You didn't provide an API key."})
    if not seen.path.startswith("/v1/"):
        return Act(status=404, error={"message": f"Invalid URL (POST {seen.path})"})
    if not seen.path.endswith("/models") and not isinstance(seen.body, dict):
        return Act(status=400, error={"message": "We could not parse the JSON body of your request."})
    return None


def _content(act: Act, seen: Seen) -> Mapping[str, Any]:
    if act.status >= 300:
        return {
            "error": {"message": "scripted", "type": "scripted", "param": None, "code": None}
            | dict(act.error)
        }
    good = answer_to(seen.path, seen.body, seen.number, text=act.text, tool_calls=act.tool_calls)
    return {name: value for name, value in (good | dict(act.patch)).items() if value is not None}


async def _break_off(
    fault: str, request: web.Request, response: web.StreamResponse | None = None
) -> web.StreamResponse:
    transport = request.transport
    if fault == "stall" or transport is None:
        await asyncio.Event().wait()
    elif fault == "garbage":
        transport.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        transport.close()
    else:
        if fault == "reset":
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.close()
    return response or web.Response()


async def _run(port: int) -> None:
    async with Upstream(port=port) as upstream:
        sys.stdout.write(upstream.base_url + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(_run(parser.parse_args().port))
