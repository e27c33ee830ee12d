"""How the SDK's requests travel: over aiohttp, which costs a fraction of the SDK's own transport.

The aiohttp transport that comes with the SDK reports a cut connection as if nothing
had been sent. Here each error says truly whether the request can have arrived.
"""

import socket
import ssl
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Final, Self

import aiohttp
import httpx2
from multidict import CIMultiDict
from typing_extensions import override
from yarl import URL

from worker.adapters.openai_api.eager import EagerRequest

_ENCODING: Final = "latin-1"
"""What HTTP says. A header without it looks at all the others first, each time one is asked for."""
_CONNECT_SECONDS: Final = 10.0
_CONNECT_SHARE: Final = 0.8
"""Of a request's time. Connecting ends before the whole is up: who runs out of that has sent something."""

_PROBE_SECONDS: Final = 60
"""Idle time before TCP asks for a sign of life: NATs forget connections that wait for long answers."""

_LARGE: Final = 2**20
"""Bytes of a request that are better written in pieces."""

_ENVELOPE: Final = "openai_worker.envelope"
"""Extension of a request: what it is sent in."""
BODY: Final = "openai_worker.body"
"""Extension of a response: its whole body."""
HEADERS: Final = "openai_worker.headers"
"""Extension of a response: those of its headers that somebody reads, with names in lower case."""

_KEPT: Final = frozenset({b"x-request-id", b"x-should-retry", b"retry-after", b"retry-after-ms"})
_KEPT_PREFIX: Final = b"x-ratelimit-"


class AnswerTooLargeError(httpx2.ReadError):
    """The answer outgrew what may be kept in memory; the rest was not read."""


_ERRORS: Final[tuple[tuple[type[Exception], type[httpx2.TransportError]], ...]] = (
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ClientHttpProxyError, httpx2.ProxyError),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (aiohttp.ServerTimeoutError, httpx2.ReadTimeout),
    (aiohttp.ClientResponseError, httpx2.RemoteProtocolError),
    (aiohttp.ClientError, httpx2.ReadError),
    (OSError, httpx2.ReadError),
)
"""The first that fits. All before ServerTimeoutError are raised before a byte of the request is written."""


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """One connection pool. Redirects are not followed: they could carry the key elsewhere."""

    def __init__(
        self,
        *,
        connections: int,
        keepalive_seconds: float,
        max_answer_bytes: int,
        tls: ssl.SSLContext,
        proxy: str | None = None,
    ) -> None:
        self._max_answer_bytes = max_answer_bytes
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections,
                keepalive_timeout=keepalive_seconds,
                ssl=tls,
                socket_factory=_probed_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=EagerRequest,
            proxy=proxy,
        )

    @override
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read its answer to the end. Raises httpx2.TransportError."""
        content = request.read()
        envelope = request.extensions.get(_ENVELOPE) or _Envelope.of(request)
        try:
            async with self._session.request(
                request.method,
                envelope.url,
                headers=envelope.headers,
                data=content if len(content) <= _LARGE else BytesIO(content),
                allow_redirects=False,
                timeout=envelope.timeout,
            ) as response:
                body = await self._read(response)
        except tuple(error for error, _ in _ERRORS) as error:
            raise _translated(error) from error
        return _answer(response, body, request)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read in pieces, and stop early: a few kilobytes can unpack to gigabytes."""
        pieces = []
        room = self._max_answer_bytes
        async for piece in response.content.iter_any():
            room -= len(piece)
            if room < 0:
                response.close()
                raise AnswerTooLargeError("the answer is too large")
            pieces.append(piece)
        return b"".join(pieces)

    @override
    async def aclose(self) -> None:
        await self._session.close()


class DirectClient(httpx2.AsyncClient):
    """Takes requests that are made by `again` straight to the transport.

    On every request the library merges headers, queries, cookies and URLs, and
    looks for redirects and further authentication: that costs a fifth of a call
    here and changes nothing, since the SDK has put everything into the request.
    """

    def __init__(self, transport: AiohttpTransport) -> None:
        super().__init__(transport=transport, follow_redirects=False, trust_env=False)
        self._direct = transport

    @override
    def build_request(self, method: str, url: httpx2.URL | str, **parts: Any) -> httpx2.Request:
        if {name for name, part in parts.items() if part} != {"content", "headers", "timeout"}:
            return super().build_request(method, url, **parts)
        return httpx2.Request(
            method,
            url,
            headers=parts["headers"],
            # As a stream: no headers are derived from it. aiohttp writes host and length itself.
            stream=httpx2.ByteStream(parts["content"]),
            extensions={"timeout": httpx2.Timeout(parts["timeout"]).as_dict()},
        )

    @override
    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if _ENVELOPE not in request.extensions or any(options.values()):
            return await super().send(request, **options)
        return await self._direct.handle_async_request(request)


def again(request: httpx2.Request, content: bytes) -> httpx2.Request:
    """Return a request like this one with another body, which goes straight to the transport."""
    envelope = request.extensions.get(_ENVELOPE) or _Envelope.of(request)
    copy = httpx2.Request(
        request.method,
        request.url,
        headers=request.headers,
        stream=httpx2.ByteStream(content),
        extensions={**request.extensions, _ENVELOPE: envelope},
    )
    copy.headers.encoding = _ENCODING
    return copy


@dataclass(frozen=True, slots=True)
class _Envelope:
    """All of a request but its body, as aiohttp takes it."""

    url: URL
    headers: CIMultiDict[str]
    timeout: aiohttp.ClientTimeout

    @classmethod
    def of(cls, request: httpx2.Request) -> Self:
        # Bounds the connecting only; the caller bounds the whole.
        seconds = min(_CONNECT_SECONDS, _CONNECT_SHARE * request.extensions["timeout"]["read"])
        return cls(
            url=URL(str(request.url), encoded=True),
            headers=CIMultiDict(
                (name.decode(_ENCODING), value.decode(_ENCODING)) for name, value in request.headers.raw
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=seconds, sock_connect=seconds),
        )


def _answer(response: aiohttp.ClientResponse, body: bytes, request: httpx2.Request) -> httpx2.Response:
    """Return a response as the SDK takes it; as a stream with headers, which only errors are read from."""
    headers = _kept(response)
    return httpx2.Response(
        response.status,
        headers=None if response.ok else httpx2.Headers(headers, encoding=_ENCODING),
        stream=httpx2.ByteStream(body),
        request=request,
        extensions={BODY: body, HEADERS: headers},
    )


def _kept(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Return the headers somebody reads. Cookies are costly, and lengths and encodings no longer true."""
    kept: dict[str, str] = {}
    for name, value in response.raw_headers:
        key = _kept_as(name)
        if key:
            text = value.decode(_ENCODING)
            kept[key] = f"{kept[key]}, {text}" if key in kept else text
    return kept


@lru_cache(maxsize=256)
def _kept_as(name: bytes) -> str | None:
    """Return a header's name, if it is kept; answers have the same ones again and again."""
    lower = name.lower()
    return lower.decode(_ENCODING) if lower in _KEPT or lower.startswith(_KEPT_PREFIX) else None


def _translated(error: Exception) -> httpx2.TransportError:
    wanted = next(ours for theirs, ours in _ERRORS if isinstance(error, theirs))
    return wanted(type(error).__name__)


def _probed_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # absent on macOS before 3.13
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_SECONDS)
    return made
