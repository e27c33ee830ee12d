"""As much of an AMQP broker as one worker needs to be handed a job: no routing, no disk, no errors."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, cast

from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from typing_extensions import override

from benchmarks.cpu.messages import Message

PROTOCOL: Final = b"AMQP\x00\x00\x09\x01"
FRAME_BYTES: Final = 131_072
FIRST_BYTES: Final = 7
"""A frame's head; before there are so many, nothing can be read."""
CONFIRMED: Final = {"queue": "", "consumer_tag": "", "message_count": 0, "consumer_count": 1}
"""What a confirmation repeats, or else says: who finds a queue without consumers subscribes again."""
CAPABILITIES: Final = {"publisher_confirms": True, "basic.nack": True, "consumer_cancel_notify": True}


class SmallBroker:
    """What the connections share: who consumes which queue, and what was acknowledged."""

    def __init__(self) -> None:
        self.consumers: dict[str, tuple[AmqpConnection, int, str]] = {}
        self.deliveries = 0
        self.on_ack: Callable[[], object] = lambda: None

    def deliver(self, queue: str, message: Message) -> None:
        """Give a message to the queue's consumer."""
        connection, channel, tag = self.consumers[queue]
        self.deliveries += 1
        deliver = commands.Basic.Deliver(
            consumer_tag=tag,
            delivery_tag=self.deliveries,
            exchange=message.exchange,
            routing_key=message.routing_key,
        )
        connection.send(
            channel,
            deliver,
            ContentHeader(body_size=len(message.body), properties=message.properties),
            ContentBody(message.body),
        )


class AmqpConnection(asyncio.Protocol):
    """One connection of the worker."""

    def __init__(self, broker: SmallBroker) -> None:
        self._broker = broker
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = b""
        self._published: Counter[int] = Counter()
        """By channel."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the protocol header."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def send(self, channel: int, *frames: Frame | ContentHeader | ContentBody) -> None:
        """Write frames."""
        if self._transport is not None:
            self._transport.write(b"".join(frame.marshal(one, channel) for one in frames))

    @override
    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        self._buffer += data
        if self._buffer.startswith(PROTOCOL):
            self._buffer = self._buffer[len(PROTOCOL) :]
            self.send(0, commands.Connection.Start(server_properties={"capabilities": dict(CAPABILITIES)}))
        while len(self._buffer) > FIRST_BYTES:
            size = int.from_bytes(self._buffer[3:FIRST_BYTES]) + FIRST_BYTES + 1
            if len(self._buffer) < size:
                return
            _, channel, received = frame.unmarshal(self._buffer[:size])
            self._buffer = self._buffer[size:]
            self._answer(channel, received)

    def _answer(self, channel: int, received: object) -> None:
        match received:
            case commands.Connection.StartOk():
                self.send(0, commands.Connection.Tune(channel_max=2047, frame_max=FRAME_BYTES, heartbeat=0))
            case commands.Basic.Consume(queue=queue, consumer_tag=tag):
                self._broker.consumers[queue] = self, channel, tag
                self._confirm(channel, received)
            case commands.Basic.Publish():
                self._published[channel] += 1
            case ContentBody():
                self.send(channel, commands.Basic.Ack(self._published[channel]))
            case commands.Basic.Ack():
                self._broker.on_ack()
            case Frame(valid_responses=[_, *_]):
                self._confirm(channel, received)
            case _:
                pass  # nothing to say

    def _confirm(self, channel: int, request: Frame) -> None:
        """Answer that it is done."""
        group, _, name = request.valid_responses[0].partition(".")
        response = getattr(getattr(commands, group), name)
        said = {name: getattr(request, name, known) for name, known in CONFIRMED.items()}
        self.send(channel, response(**{name: said[name] for name in response.attributes() if name in said}))
