"""Frames that the driver could not decode, mended."""

import asyncio
import itertools
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame as frames
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from typing_extensions import override

from worker.adapters.rabbitmq.frames import MAX_DEPTH, FrameMender, mend, split

GOOD = (
    Basic.Deliver("ctag1.1", 200, exchange="openai.jobs", routing_key="completion"),
    Basic.Deliver("ctag1.1", 2**40, redelivered=True, routing_key="ü"),
    Basic.GetOk(200, redelivered=True, exchange="openai.dead", routing_key="tool", message_count=5),
    Basic.Ack(200, multiple=True),
    Heartbeat(),
    ContentBody(b"\xff\xfe\x00"),
    ContentHeader(body_size=5),
    ContentHeader(
        body_size=5,
        properties=Basic.Properties(
            content_type="application/json",
            headers={"a": [1, {"b": "ü"}], "t": datetime(2026, 1, 1, tzinfo=UTC)},
            delivery_mode=2,
            priority=255,
            correlation_id="é",
            timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        ),
    ),
)


def header(flags: int, rest: bytes) -> bytes:
    """Make a content header with properties as no decent client would write them."""
    payload = struct.pack(">HHQH", 60, 0, 7, flags) + rest
    return struct.pack(">BHI", 2, 3, len(payload)) + payload + b"\xce"


def table(content: bytes) -> bytes:
    """Make a table out of its content."""
    return struct.pack(">I", len(content)) + content


def nested(depth: int) -> bytes:
    """Make headers so many tables deep."""
    content = b""
    for _ in range(depth - 1):
        content = b"\x01aF" + table(content)
    return table(content)


FLAGS = Basic.Properties.flags
BAD = {
    "text that is no UTF-8": (FLAGS["correlation_id"], b"\x02\xff\xfe"),
    "a timestamp in microseconds": (FLAGS["timestamp"], struct.pack(">Q", 1_700_000_000_000_000)),
    "the largest timestamp": (FLAGS["timestamp"], b"\xff" * 8),
    "a header name that is no UTF-8": (FLAGS["headers"], table(b"\x01\xffV")),
    "a header of an unknown type": (FLAGS["headers"], table(b"\x01aZ")),
    "a header with a timestamp beyond the calendar": (FLAGS["headers"], table(b"\x01aT" + b"\x7f" * 8)),
    "headers nested too deep for the stack": (FLAGS["headers"], nested(20_000)),
    "headers nested deeper than bearable": (FLAGS["headers"], nested(MAX_DEPTH + 1)),
}


@pytest.mark.parametrize("frame", GOOD, ids=lambda frame: type(frame).__name__)
def test_a_good_frame_is_left_alone(frame: frames.FrameTypes) -> None:
    """Every frame that can be decoded passes as the very same bytes."""
    octets = frames.marshal(frame, 3)
    assert mend(octets) is octets


@pytest.mark.parametrize("flag_and_value", BAD.values(), ids=BAD.keys())
def test_a_bad_property_is_left_out_and_its_neighbours_stay(flag_and_value: tuple[int, bytes]) -> None:
    """The frame can be decoded; of its properties only the bad one is missing."""
    flag, value = flag_and_value
    before, after = FLAGS["content_type"], FLAGS["app_id"]
    mended = mend(header(before | flag | after, b"\x04text" + value + b"\x04shop"))
    size, channel, decoded = frames.unmarshal(mended)
    assert isinstance(decoded, ContentHeader)
    assert (size, channel, decoded.body_size) == (len(mended), 3, 7)
    assert (decoded.properties.content_type, decoded.properties.app_id) == ("text", "shop")
    assert decoded.properties.correlation_id is None
    assert decoded.properties.timestamp is None
    assert decoded.properties.headers is None


def test_bearable_depth_is_kept() -> None:
    """Headers as deep as allowed stay."""
    octets = header(FLAGS["headers"], nested(MAX_DEPTH))
    assert mend(octets) is octets


@pytest.mark.parametrize(
    "method",
    [
        Basic.Deliver("ctag", 300, exchange="exchange", routing_key="KEY"),
        Basic.GetOk(300, exchange="exchange", routing_key="KEY", message_count=9),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_bad_routing_key_is_made_plain(method: Basic.Deliver | Basic.GetOk) -> None:
    """A routing key that is no UTF-8 has question marks instead; all else stays."""
    _, _, decoded = frames.unmarshal(mend(frames.marshal(method, 3).replace(b"KEY", b"\xffE\xfe")))
    assert isinstance(decoded, Basic.Deliver | Basic.GetOk)
    assert (decoded.delivery_tag, decoded.exchange, decoded.routing_key) == (300, "exchange", "?E?")


async def frame_by_frame(stream: FrameMender) -> bytes:
    """Read as the driver does: a frame's type, the rest of its head, the rest of it."""
    taken = bytearray()
    while not stream.at_eof():
        head = await stream.readexactly(1) + await stream.readexactly(6)
        taken += head + await stream.readexactly(int.from_bytes(head[3:]) + 1)
    return bytes(taken)


@given(cuts=st.lists(st.integers(0, 300)), waiting=st.booleans())
def test_frames_come_through_however_they_arrive(*, cuts: list[int], waiting: bool) -> None:
    """Cut anywhere, the octets come out whole, in order, and mended; also where the driver waits for them."""
    octets = b"".join(frames.marshal(frame, 3) for frame in GOOD) + header(FLAGS["timestamp"], b"\xff" * 8)
    wanted = b"".join(map(mend, split(octets)))
    assert wanted != octets

    async def through() -> bytes:
        stream = FrameMender(asyncio.get_running_loop())
        edges = [0, *sorted(cut for cut in cuts if cut < len(octets)), len(octets)]
        reading = asyncio.create_task(frame_by_frame(stream))
        for start, end in itertools.pairwise(edges):
            if waiting:
                await asyncio.sleep(0)
            stream.feed_data(octets[start:end])
        stream.feed_eof()
        stream.feed_eof()
        return await reading

    assert asyncio.run(through()) == wanted


async def test_what_a_lost_connection_leaves_unfinished_comes_out_at_the_end() -> None:
    """It is handed on as it is: the driver says what was lost."""
    stream = FrameMender(asyncio.get_running_loop())
    whole = frames.marshal(GOOD[0], 3)
    stream.feed_data(whole + b"AMQP\x00\x00\x09\x01")
    stream.feed_eof()
    assert await stream.readexactly(len(whole)) == whole
    assert await stream.readexactly(1) + await stream.readexactly(6) == b"AMQP\x00\x00\x09"
    assert not stream.at_eof()
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await stream.readexactly(9)
    assert (caught.value.partial, caught.value.expected) == (b"\x01", 9)
    assert stream.at_eof()
    with pytest.raises(asyncio.IncompleteReadError):
        await stream.readexactly(1)


@pytest.mark.parametrize("waiting", [False, True])
async def test_an_error_of_the_connection_is_raised_after_what_came_before(*, waiting: bool) -> None:
    """Whoever waits hears of it at once, others when they have read the rest."""
    stream = FrameMender(asyncio.get_running_loop())
    whole = frames.marshal(GOOD[0], 3)
    if not waiting:
        stream.feed_data(whole)
    reading = asyncio.create_task(stream.readexactly(len(whole)))
    await asyncio.sleep(0)
    stream.set_exception(ConnectionResetError("cut"))
    if waiting:
        with pytest.raises(ConnectionResetError):
            await reading
    else:
        assert await reading == whole
        with pytest.raises(ConnectionResetError):
            await stream.readexactly(1)


class Source(asyncio.ReadTransport):
    """Counts how often it was held back and let go."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    @override
    def is_closing(self) -> bool:
        return False

    @override
    def pause_reading(self) -> None:
        self.told.append("pause")

    @override
    def resume_reading(self) -> None:
        self.told.append("resume")


async def test_what_the_driver_does_not_ask_for_is_not_read() -> None:
    """Above a quarter of a megabyte the broker waits, until half of it is gone."""
    stream, source = FrameMender(asyncio.get_running_loop()), Source()
    stream.set_transport(source)
    frame = frames.marshal(ContentBody(bytes(2**10)), 3)
    for _ in range(300):
        stream.feed_data(frame)
    assert source.told == ["pause"]
    taken = 0
    while source.told == ["pause"]:
        taken += len(await stream.readexactly(len(frame)))
    assert source.told == ["pause", "resume"]
    assert 300 * len(frame) - taken == pytest.approx(2**17, abs=len(frame))
    for _ in range(150):
        stream.feed_data(frame)
    assert source.told == ["pause", "resume", "pause"]
