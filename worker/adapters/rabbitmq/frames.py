"""Mends frames that the driver cannot decode.

The broker passes on whatever properties and routing keys a producer sent: a
timestamp in microseconds, text that is no UTF-8, headers nested thousands
deep. On one such frame the driver gives up the whole connection; all messages
held on it go back, and round again, until the delivery limit buries each of
them. So what cannot be decoded is left out on the way in.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from pamqp import constants, decode
from pamqp.commands import Basic
from typing_extensions import override

MAX_DEPTH: Final = 32
"""Deeper headers are left out too: the driver walks them by recursion."""

_MOST_WAITING: Final = 2**18
"""Octets that the driver has not asked for; with more, no more are read: it handles a few frames a turn."""

_FRAME: Final = struct.Struct(">BHI")
"""Type, channel and size; the payload and one end octet follow."""
_DELIVER: Final = struct.pack(">HH", 60, 60)
_GET_OK: Final = struct.pack(">HH", 60, 71)
_FLAGS: Final = slice(12, 14)
"""A content header holds class, weight (2 octets each), body size (8), flags, then properties."""
_LAYOUT: Final = tuple(
    (flag, Basic.Properties.amqp_type(name)) for name, flag in Basic.Properties.flags.items()
)
_RISKY: Final = Basic.Properties.flags["headers"] | Basic.Properties.flags["timestamp"]
_SAFE: Final = frozenset({b"\x00\x00\x00\x00", b"\x01", b"\x02"})
"""No headers; either delivery mode. They come with nearly every message."""
_FIXED_SIZES: Final = {"octet": 1, "timestamp": 8}


class FrameMender(asyncio.StreamReader):
    """Hands on whole frames only, each of which can be decoded, in the pieces that the driver asks for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._incomplete = b""
        self._whole: deque[bytes] = deque()
        self._taken = 0
        """Octets of the first frame that are handed on already."""
        self._waiting = 0
        """Octets of the whole frames."""
        self._over = False
        self._news = asyncio.Event()
        self._source: asyncio.ReadTransport | None = None
        self._held_back = False

    @override
    def set_transport(self, transport: Any) -> None:
        super().set_transport(transport)
        self._source = transport

    @override
    def feed_data(self, data: Any) -> None:
        buffer = self._incomplete + bytes(data)
        frames = list(split(buffer))
        self._incomplete = buffer[sum(map(len, frames)) :]
        for frame in map(mend, frames):
            self._whole.append(frame)
            self._waiting += len(frame)
        self._news.set()
        if self._waiting > _MOST_WAITING and self._source and not self._held_back:
            self._held_back = True
            self._source.pause_reading()

    @override
    def feed_eof(self) -> None:
        # Called once at the end of the data and once more when the connection is lost.
        if self._incomplete:
            self._whole.append(self._incomplete)
            self._waiting += len(self._incomplete)
            self._incomplete = b""
        self._over = True
        self._news.set()
        super().feed_eof()

    @override
    def set_exception(self, exc: Any) -> None:
        super().set_exception(exc)
        self._news.set()

    @override
    def at_eof(self) -> bool:
        return self._over and not self._whole

    @override
    async def readexactly(self, n: int) -> bytes:
        while not self._whole:
            if error := self.exception():
                raise error
            if self._over:
                raise asyncio.IncompleteReadError(b"", n)
            self._news.clear()
            await self._news.wait()
        frame, start = self._whole[0], self._taken
        end = self._taken = start + n
        size = len(frame)
        if end >= size:
            self._whole.popleft()
            self._taken = 0
            self._waiting -= size
            if self._held_back and self._waiting <= _MOST_WAITING // 2:
                self._let_go()
        if end > size:
            raise asyncio.IncompleteReadError(frame[start:], n)
        return frame[start:end]

    def _let_go(self) -> None:
        self._held_back = False
        if self._source and not self._source.is_closing():
            self._source.resume_reading()


def split(buffer: bytes) -> Iterator[bytes]:
    """Yield the complete frames at the start of a buffer."""
    start = 0
    while start + _FRAME.size <= len(buffer):
        end = start + _FRAME.size + _FRAME.unpack_from(buffer, start)[2] + 1
        if end > len(buffer):
            return
        yield buffer[start:end]
        start = end


def mend(frame: bytes) -> bytes:
    """Return a frame with what cannot be decoded left out; nearly always the frame itself."""
    if frame[0] == constants.FRAME_HEADER:
        payload = frame[_FRAME.size : -1]
        mended = _mend_properties(payload)
        return frame if mended is payload else _reframe(frame, mended)
    if frame[0] == constants.FRAME_METHOD:
        method = frame[_FRAME.size : _FRAME.size + 4]
        if method == _DELIVER:
            tag_length = frame[_FRAME.size + 4]
            return _mend_routing_key(frame, exchange_at=_FRAME.size + 4 + 1 + tag_length + 8 + 1)
        if method == _GET_OK:
            return _mend_routing_key(frame, exchange_at=_FRAME.size + 4 + 8 + 1)
    return frame


def _reframe(frame: bytes, payload: bytes) -> bytes:
    kind, channel, _ = _FRAME.unpack_from(frame)
    return _FRAME.pack(kind, channel, len(payload)) + payload + frame[-1:]


def _mend_routing_key(frame: bytes, *, exchange_at: int) -> bytes:
    key_at = exchange_at + 1 + frame[exchange_at]
    end = key_at + 1 + frame[key_at]
    if _decodes("shortstr", frame[key_at:end]):
        return frame
    plain = bytes(octet if octet < 0x80 else ord("?") for octet in frame[key_at + 1 : end])  # noqa: PLR2004  ASCII
    return frame[: key_at + 1] + plain + frame[end:]


def _mend_properties(payload: bytes) -> bytes:
    flags = int.from_bytes(payload[_FLAGS])
    if not flags & _RISKY and payload[_FLAGS.stop :].isascii():
        return payload
    kept_flags, kept, start = 0, [], _FLAGS.stop
    for flag, kind in _LAYOUT:
        if flags & flag:
            end = start + _size(kind, payload, start)
            if _decodes(kind, payload[start:end]):
                kept_flags |= flag
                kept.append(payload[start:end])
            start = end
    if kept_flags == flags:
        return payload
    return payload[: _FLAGS.start] + kept_flags.to_bytes(2) + b"".join(kept)


def _size(kind: str, payload: bytes, start: int) -> int:
    if kind == "shortstr":
        return 1 + payload[start]
    if kind == "table":
        return 4 + int.from_bytes(payload[start : start + 4])
    return _FIXED_SIZES[kind]


def _decodes(kind: str, value: bytes) -> bool:
    if value in _SAFE or (kind == "shortstr" and value[1:].isascii()):
        return True
    try:
        decoded = decode.by_type(value, kind)[1]
    except Exception:  # noqa: BLE001  the decoder raises whatever the input provokes, RecursionError included
        return False
    return not isinstance(decoded, dict) or _depth_is_bearable(decoded)


def _depth_is_bearable(headers: dict[str, Any]) -> bool:
    level: list[Any] = [headers]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
    return not level
