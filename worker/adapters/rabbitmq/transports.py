"""How the driver's bytes travel: mended on the way in, gathered on the way out."""

import asyncio
import struct
from collections.abc import Iterable
from typing import Any, Final

from aiormq import TransportFactory
from typing_extensions import override
from yarl import URL

from worker.adapters.rabbitmq.frames import FrameMender

_MOST_BYTES: Final = 2**16
"""So much is written at once, whoever else might still have something to say."""

_CHANNEL: Final = slice(1, 3)
_METHOD: Final = slice(7, 11)
_OPEN: Final = struct.pack(">HH", 20, 10)
_CLOSE: Final = struct.pack(">HH", 20, 40)


class GatheringWriter(asyncio.StreamWriter):
    """Writes once a turn of the event loop.

    A commit ends many jobs at once; the driver writes each reply and each
    acknowledgement by itself, and the calls of the kernel would cost more than
    all the rest of it. Nor may anything of a channel follow what closes it.
    """

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.StreamReaderProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._later = loop.call_soon
        self._pieces: list[bytes] = []
        self._size = 0
        self._closing: set[bytes] = set()
        """Channels whose close the driver has written."""

    def write_frames(self, frames: bytes) -> bool:
        """Write what is not the driver's; False where the channel is about to close."""
        if self._closing and frames[_CHANNEL] in self._closing:
            return False
        self._add(frames)
        return True

    @override
    def write(self, data: Any) -> None:
        written = bytes(data)
        if written[_METHOD] == _CLOSE:
            self._closing.add(written[_CHANNEL])
        elif written[_METHOD] == _OPEN:
            self._closing.discard(written[_CHANNEL])
        self._add(written)

    def _add(self, data: bytes) -> None:
        if not self._pieces:
            self._later(self._flush)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _MOST_BYTES:
            self._flush()

    @override
    def writelines(self, data: Iterable[Any]) -> None:
        self.write(b"".join(data))

    @override
    async def drain(self) -> None:
        self._flush()
        await super().drain()

    @override
    def write_eof(self) -> None:
        self._flush()
        super().write_eof()

    @override
    def close(self) -> None:
        self._flush()
        super().close()

    def _flush(self) -> None:
        if self._pieces:
            pieces, self._pieces, self._size = self._pieces, [], 0
            if not self.is_closing():
                super().write(b"".join(pieces))


class Transports(TransportFactory):
    """Opens connections, with TLS where the URL says so."""

    def __init__(self) -> None:
        self._writer: GatheringWriter | None = None

    def write(self, frames: bytes) -> bool:
        """Write whole frames of a channel, past the driver's queue; False where it is about to close."""
        return self._writer is not None and self._writer.write_frames(frames)

    @override
    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        certificates = kwargs.pop("ssl_context_provider")
        tls = await certificates.get_context() if url.scheme == "amqps" else None
        reader = FrameMender(loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(
            lambda: protocol, url.host or "", url.port or 0, ssl=tls, **kwargs
        )
        self._writer = GatheringWriter(transport, protocol, reader, loop)
        return reader, self._writer
