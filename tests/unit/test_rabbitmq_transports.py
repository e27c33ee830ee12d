"""What goes out to the broker is gathered, and stays in order."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import pytest
from pamqp.commands import Channel
from pamqp.frame import marshal
from typing_extensions import override

from worker.adapters.rabbitmq import wire
from worker.adapters.rabbitmq.transports import GatheringWriter


class RecordingTransport(asyncio.Transport):
    """Keeps each write by itself, as the kernel would see it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    @override
    def write_eof(self) -> None:
        pass

    @override
    def is_closing(self) -> bool:
        return self.closed

    @override
    def close(self) -> None:
        self.closed = True


Both: TypeAlias = "tuple[GatheringWriter, RecordingTransport]"


@pytest.fixture
async def both() -> AsyncIterator[tuple[GatheringWriter, RecordingTransport]]:
    """Give a writer and the transport below it."""
    loop = asyncio.get_running_loop()
    reader, transport = asyncio.StreamReader(loop=loop), RecordingTransport()
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    protocol.connection_made(transport)
    writer = GatheringWriter(transport, protocol, reader, loop)
    yield writer, transport
    writer.close()


async def a_turn() -> None:
    """Let the event loop go round once."""
    await asyncio.sleep(0)


async def test_one_turn_is_one_write(both: Both) -> None:
    """All that is written in one turn of the event loop goes out together, in its order."""
    writer, transport = both
    writer.write(b"reply ")
    writer.writelines([b"ack", b" "])
    writer.write(b"ack")
    assert transport.writes == []
    await a_turn()
    assert transport.writes == [b"reply ack ack"]


async def test_next_turn_is_written_too(both: Both) -> None:
    """A writer that was idle writes again."""
    writer, transport = both
    for piece in (b"one", b"two"):
        writer.write(piece)
        await a_turn()
    assert transport.writes == [b"one", b"two"]


async def test_much_is_written_at_once(both: Both) -> None:
    """Large bodies are not piled up in memory until the turn is over."""
    writer, transport = both
    writer.write(b"small")
    writer.write(bytes(2**17))
    assert [len(piece) for piece in transport.writes] == [5 + 2**17]
    await a_turn()
    assert len(transport.writes) == 1


async def test_drained_means_written(both: Both) -> None:
    """Who waits for the write does not wait for the turn's end."""
    writer, transport = both
    writer.write(b"heartbeat")
    await writer.drain()
    assert transport.writes == [b"heartbeat"]


async def test_nothing_is_left_behind_on_closing(both: Both) -> None:
    """What was written last goes out before the connection closes."""
    writer, transport = both
    writer.write(b"close")
    writer.close()
    assert transport.writes == [b"close"]
    assert transport.closed


async def test_nothing_is_left_behind_at_the_end_of_writing(both: Both) -> None:
    """The driver says so before it closes."""
    writer, transport = both
    writer.write_frames(wire.ack(3, 1))
    writer.write_eof()
    assert transport.writes == [wire.ack(3, 1)]


async def test_nothing_follows_the_close_of_a_channel(both: Both) -> None:
    """Until the driver opens one of that number again; other channels are not concerned."""
    writer, transport = both
    opening, closing = marshal(Channel.Open(), 3), marshal(Channel.Close(200, "", 0, 0), 3)
    writer.write(opening)
    assert writer.write_frames(wire.ack(3, 1))
    writer.write(closing)
    assert not writer.write_frames(wire.ack(3, 2))
    assert writer.write_frames(wire.ack(4, 3))
    writer.write(opening)
    assert writer.write_frames(wire.ack(3, 4))
    await a_turn()
    wanted = [opening, wire.ack(3, 1), closing, wire.ack(4, 3), opening, wire.ack(3, 4)]
    assert transport.writes == [b"".join(wanted)]
