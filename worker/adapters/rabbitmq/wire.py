"""The frames that every job sends, as octets: the driver's way to them costs more than the rest of a reply.

They are those of AMQP 0-9-1, sections 2.3 and 4.2. What does not fit is left to the driver.
"""

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from pamqp.commands import Basic

from schemas.names import CONTENT_TYPE, REPLY_TYPE, X_REPLY_ID
from worker.adapters.rabbitmq.messages import PERSISTENT

_METHOD, _HEADER, _BODY = 1, 2, 3
_END: Final = b"\xce"
_BASIC: Final = 60
_PUBLISH, _ACK, _NACK = 40, 80, 120
_MANDATORY: Final = b"\x01"
_REQUEUE: Final = 2

_FRAME: Final = struct.Struct(">BHI")
"""Type, channel, size of the payload."""
_SETTLING: Final = struct.Struct(">BHIHHQBB")
"""A frame whose payload is class, method, delivery tag and flags, with its end."""
_PUBLISHING: Final = struct.Struct(">HHH")
"""Class, method, reserved."""
_CONTENT: Final = struct.Struct(">HHQ")
"""Class, weight, size of the body; which properties there are follows, and they."""

_FLAGS: Final = Basic.Properties.flags
_ALWAYS: Final = sum(
    _FLAGS[name] for name in ("content_type", "headers", "delivery_mode", "message_id", "message_type")
)


def ack(channel: int, delivery_tag: int) -> bytes:
    """Return `basic.ack` of one delivery."""
    return _SETTLING.pack(_METHOD, channel, 13, _BASIC, _ACK, delivery_tag, 0, _END[0])


def requeue(channel: int, delivery_tag: int) -> bytes:
    """Return `basic.nack` of one delivery, which goes back to its queue."""
    return _SETTLING.pack(_METHOD, channel, 13, _BASIC, _NACK, delivery_tag, _REQUEUE, _END[0])


@dataclass(frozen=True, slots=True)
class ReplyProperties:
    """What is said of a reply."""

    reply_id: str
    correlation_id: str | None

    def plain(self) -> Basic.Properties:
        """Return them as the driver takes them."""
        return Basic.Properties(
            content_type=CONTENT_TYPE,
            headers={X_REPLY_ID: self.reply_id},
            delivery_mode=PERSISTENT,
            correlation_id=self.correlation_id,
            message_type=REPLY_TYPE,
        )

    def encoded(self, message_id: str) -> bytes:
        """Return which there are, and then each, in the order of their flags. Raises OverflowError."""
        flags, correlation = _ALWAYS, b""
        if self.correlation_id:
            flags |= _FLAGS["correlation_id"]
            correlation = _short(self.correlation_id)
        reply_id = self.reply_id.encode()
        headers = _REPLY_ID + len(reply_id).to_bytes(4) + reply_id
        return b"".join(
            (
                flags.to_bytes(2),
                _CONTENT_TYPE,
                len(headers).to_bytes(4),
                headers,
                _DELIVERY_MODE,
                correlation,
                _short(message_id),
                _REPLY_TYPE,
            )
        )


class Route(NamedTuple):
    """Where a message goes."""

    exchange: str
    routing_key: str
    mandatory: bool
    """It is returned where no queue takes it."""


def publish(
    channel: int, route: Route, properties: ReplyProperties, message_id: str, body: bytes
) -> bytes | None:
    """Return `basic.publish` with its content, in one frame each; None where a name is too long for that."""
    try:
        method = b"".join(
            (
                _PUBLISHING.pack(_BASIC, _PUBLISH, 0),
                _short(route.exchange),
                _short(route.routing_key),
                _MANDATORY if route.mandatory else b"\x00",
            )
        )
        known = properties.encoded(message_id)
    except OverflowError:
        return None
    header = _CONTENT.pack(_BASIC, 0, len(body)) + known
    return b"".join(
        part
        for kind, payload in ((_METHOD, method), (_HEADER, header), (_BODY, body))
        for part in (_FRAME.pack(kind, channel, len(payload)), payload, _END)
    )


def _short(text: str) -> bytes:
    octets = text.encode()
    return len(octets).to_bytes(1) + octets


_CONTENT_TYPE: Final = _short(CONTENT_TYPE)
_REPLY_ID: Final = _short(X_REPLY_ID) + b"S"
_DELIVERY_MODE: Final = PERSISTENT.to_bytes(1)
_REPLY_TYPE: Final = _short(REPLY_TYPE)
