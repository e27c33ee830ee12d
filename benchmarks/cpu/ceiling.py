"""How much the upstream could serve: it must not be what holds anybody back."""

import asyncio
import json
import time
from typing import Final, cast
from urllib.parse import urlsplit

from typing_extensions import override

from benchmarks.cpu.bench import Bench
from benchmarks.cpu.figures import Figure
from benchmarks.cpu.messages import SMALL, request
from benchmarks.cpu.upstream import BODY, HEAD, REQUEST_END

CONNECTIONS: Final = 64
SECONDS: Final = 2.0
ANSWER_BYTES: Final = len(HEAD) + 32 + len(REQUEST_END) + len(BODY)


class Client(asyncio.Protocol):
    """Sends a request as soon as the last one is answered; of an answer it reads but the size."""

    answered = 0

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._missing = 0
        self._transport: asyncio.WriteTransport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.WriteTransport", transport)
        self._send()

    @override
    def data_received(self, data: bytes) -> None:
        """Go on."""
        self._missing -= len(data)
        if self._missing <= 0:
            Client.answered += 1
            self._send()

    def _send(self) -> None:
        self._missing = ANSWER_BYTES
        if self._transport is not None:
            self._transport.write(self._message)


async def upstream_ceiling(bench: Bench) -> list[Figure]:
    """Load it with a client that does next to nothing."""
    url, process = await bench.upstream()
    parts = urlsplit(url)
    body = json.dumps(request(SMALL)).encode()
    lines = [f"POST {parts.path}/chat/completions HTTP/1.1", f"host: {parts.netloc}"]
    head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(
            lambda: Client(head.encode() + body), parts.hostname or "", parts.port or 0
        )
        for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(0.2)
    begun, spent, answered = time.monotonic(), process.cpu(), Client.answered
    await asyncio.sleep(SECONDS)
    count, seconds = Client.answered - answered, time.monotonic() - begun
    spent = process.cpu() - spent
    for transport, _ in made:
        transport.close()
    note = "the client and the upstream share the machine: the CPU says what it could do alone"
    return [
        Figure(figure="upstream_requests", value=count / seconds, unit="requests/s", note=note),
        Figure(figure="upstream_cpu", value=1e6 * spent / count, unit="us/request"),
    ]
