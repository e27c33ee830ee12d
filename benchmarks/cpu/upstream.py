"""A stand-in for OpenAI that costs next to nothing: `python -m benchmarks.cpu.upstream --latency 0.05`.

It reads just enough of HTTP/1.1 to know where a request ends, and answers each with the same completion under
an id of its own; a GET is answered with the number of those so far. The first line it prints is its port.
"""

import argparse
import asyncio
import json
from functools import partial
from typing import Final, cast

import uvloop
from typing_extensions import override

ANSWER: Final = {
    "id": "chatcmpl-BZ3kQ8s1mXv0tPqYc7WfLh2nRdAeU",
    "object": "chat.completion",
    "created": 1_790_000_000,
    "model": "gpt-6-luna",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "The invoice is dated the third of November and asks for 1,240 euros net of tax. "
                * 5,
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 187,
        "completion_tokens": 95,
        "total_tokens": 282,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    },
    "service_tier": "default",
    "system_fingerprint": "fp_50cad350e4",
}
BODY: Final = json.dumps(ANSWER, indent=2).encode()
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\n"
    b"date: Sun, 22 Nov 2026 12:00:00 GMT\r\n"
    b"content-type: application/json\r\n"
    b"content-length: %d\r\n"
    b"access-control-expose-headers: X-Request-ID\r\n"
    b"openai-organization: example\r\n"
    b"openai-processing-ms: 412\r\n"
    b"openai-version: 2020-10-01\r\n"
    b"x-ratelimit-limit-requests: 30000000\r\n"
    b"x-ratelimit-limit-tokens: 150000000000\r\n"
    b"x-ratelimit-remaining-requests: 29999999\r\n"
    b"x-ratelimit-remaining-tokens: 149999999000\r\n"
    b"x-ratelimit-reset-requests: 2ms\r\n"
    b"x-ratelimit-reset-tokens: 0s\r\n"
    b"strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"x-request-id: req_" % len(BODY)
)
REQUEST_END: Final = b"\r\n\r\n"
LENGTH: Final = b"\r\ncontent-length:"


class Connection(asyncio.Protocol):
    """One kept-alive connection."""

    served = 0

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's own class, not a subclass

    @override
    def connection_lost(self, _error: Exception | None) -> None:
        """Nobody is left to answer."""
        self._transport = None

    @override
    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._buffer = self._buffer + data if self._buffer else data
        while (end := request_end(self._buffer)) is not None:
            asked, self._buffer = self._buffer[:4], self._buffer[end:]
            if asked == b"GET " and self._transport is not None:
                count = b"%d" % Connection.served
                self._transport.write(
                    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(count), count)
                )
                continue
            Connection.served += 1
            if self._latency:
                self._loop.call_later(self._latency, self._answer, Connection.served)
            else:
                self._answer(Connection.served)

    def _answer(self, number: int) -> None:
        if self._transport is not None:
            self._transport.write(HEAD + b"%032x\r\n\r\n" % number + BODY)


def request_end(buffer: bytes) -> int | None:
    """Return where the first request ends; None while it is incomplete."""
    head_end = buffer.find(REQUEST_END)
    if head_end < 0:
        return None
    head = buffer[: head_end + 2].lower()
    at = head.find(LENGTH)
    length = int(head[at + len(LENGTH) : head.index(b"\r\n", at + 2)]) if at >= 0 else 0
    end = head_end + len(REQUEST_END) + length
    return end if len(buffer) >= end else None


async def serve(latency: float) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Connection, latency), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    uvloop.run(serve(parser.parse_args().latency))


if __name__ == "__main__":
    main()
