"""Between the broker's messages and our deliveries, there and back.

A copy keeps the properties of its original, but for two that need a detour:

* `user_id`: the broker lets nobody set another user's name. A copy carries our
  own, and the original's in a header. That header is believed only beside our
  own name, which the broker vouches for.
* `message_id`: it may stand for a missing `job_id`, so a copy must not get one
  where the original had none. But the driver insists on one, by which it
  matches returned messages; a header then marks it as not the producer's.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.common import FieldTable, FieldValue
from pamqp.encode import encode_table_value

from worker.ports import Delivery

PERSISTENT: Final = 2
X_USER_ID: Final = "x-user-id"
X_NO_MESSAGE_ID: Final = "x-no-message-id"

_LEFT_BEHIND: Final = frozenset(
    {
        # They would route a copy to further queues.
        "CC",
        "BCC",
        # The broker takes a copy that died in the same queue before for a cycle, and drops it.
        "x-death",
        "x-first-death-exchange",
        "x-first-death-queue",
        "x-first-death-reason",
        "x-last-death-exchange",
        "x-last-death-queue",
        "x-last-death-reason",
        # Counted by the queue that the copy leaves.
        "x-delivery-count",
        X_USER_ID,
        X_NO_MESSAGE_ID,
    }
)
_ASK_FOR_DIRECT_REPLY: Final = "amq.rabbitmq.reply-to"


def delivery_of(
    message: DeliveredMessage, *, lane: str, high: bool, received_at: datetime, user: str
) -> Delivery:
    """Return a message as the core takes it; `user` is the broker's user that we are."""
    properties = message.header.properties
    headers: Mapping[str, Any] = properties.headers or {}
    user_id, message_id = properties.user_id, properties.message_id
    if headers:
        if user_id == user and isinstance(original := headers.get(X_USER_ID), str):
            user_id = original
        if X_NO_MESSAGE_ID in headers:
            message_id = None
    return Delivery(
        body=message.body,
        lane=lane,
        high=high,
        redelivered=bool(message.redelivered),
        received_at=received_at,
        message_id=message_id,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        user_id=user_id,
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        type=properties.message_type,
        app_id=properties.app_id,
        timestamp=properties.timestamp,
        headers=headers,
    )


def properties_of_copy(
    delivery: Delivery, *, user: str, headers: Mapping[str, FieldValue]
) -> Basic.Properties:
    """Return the properties of a copy, with further headers; expiration and priority are not kept."""
    kept: FieldTable = {
        name: writable
        for name, value in delivery.headers.items()
        if name not in _LEFT_BEHIND and (writable := _writable(value)) is not None
    }
    if delivery.user_id is not None:
        kept[X_USER_ID] = delivery.user_id
    if not delivery.message_id:
        kept[X_NO_MESSAGE_ID] = True
    return Basic.Properties(
        content_type=delivery.content_type,
        content_encoding=delivery.content_encoding,
        headers={**kept, **headers},
        delivery_mode=PERSISTENT,
        correlation_id=delivery.correlation_id,
        # The broker would close the channel: only the channel that waits for a direct reply may ask for one.
        reply_to=None if delivery.reply_to == _ASK_FOR_DIRECT_REPLY else delivery.reply_to,
        message_id=delivery.message_id,
        timestamp=delivery.timestamp,
        message_type=delivery.type,
        user_id=None if delivery.user_id is None else user,
        app_id=delivery.app_id,
    )


def _writable(value: Any) -> FieldValue | None:
    """Return a header's value as the driver can write it, None for what it can only read."""
    if isinstance(value, bytes):
        value = bytearray(value)
    try:
        encode_table_value(value)
    except Exception:  # noqa: BLE001  whatever the encoder makes of it: a copy without it beats no copy
        return None
    return value  # type: ignore[no-any-return]
