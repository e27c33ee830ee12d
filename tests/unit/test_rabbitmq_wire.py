"""The frames that are put together here, beside the driver's own."""

import pytest
from aiormq.abc import ChannelFrame
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from worker.adapters.rabbitmq import wire
from worker.adapters.rabbitmq.wire import ReplyProperties, Route

CHANNELS = st.integers(1, 2**16 - 1)
SHORT = st.text(st.characters(exclude_categories=["Cs"]), max_size=63)
"""At most 252 octets."""


@given(CHANNELS, st.integers(1, 2**63 - 1))
def test_settlements_are_those_of_the_driver(channel: int, tag: int) -> None:
    """Octet by octet."""
    ack, nack = Basic.Ack(tag), Basic.Nack(tag, multiple=False, requeue=True)
    assert wire.ack(channel, tag) == ChannelFrame.marshall(channel, [ack]).payload
    assert wire.requeue(channel, tag) == ChannelFrame.marshall(channel, [nack]).payload


@given(
    channel=CHANNELS,
    queue=SHORT,
    reply_id=SHORT.filter(bool),
    correlation_id=st.none() | SHORT,
    body=st.binary(min_size=1),
    mandatory=st.booleans(),
)
def test_a_reply_is_that_of_the_driver(
    channel: int, queue: str, reply_id: str, correlation_id: str | None, body: bytes, *, mandatory: bool
) -> None:
    """Octet by octet, from its method to its body."""
    said = ReplyProperties(reply_id, correlation_id)
    theirs = said.plain()
    theirs.message_id = "m" * 32
    frames = [
        Basic.Publish(exchange="", routing_key=queue, mandatory=mandatory),
        ContentHeader(properties=theirs, body_size=len(body)),
        ContentBody(body),
    ]
    ours = wire.publish(channel, Route("", queue, mandatory=mandatory), said, "m" * 32, body)
    assert ours == ChannelFrame.marshall(channel, frames).payload


@pytest.mark.parametrize(
    ("queue", "correlation_id"), [("q" * 256, None), ("q", "é" * 128)], ids=["queue", "correlation id"]
)
def test_what_is_too_long_is_left_to_the_driver(queue: str, correlation_id: str | None) -> None:
    """Names have at most 255 octets."""
    said = ReplyProperties("id", correlation_id)
    assert wire.publish(1, Route("", queue, mandatory=True), said, "m", b"{}") is None
