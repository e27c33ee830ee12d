"""Sends replies, and copies of deliveries to the waiting rooms and to the dead."""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final
from weakref import WeakValueDictionary

from pamqp.common import FieldValue

from schemas.names import (
    DEAD,
    DIRECT_REPLY_TO,
    X_PARKED,
    X_REASON,
    lane_key,
    retry_room,
)
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.messages import properties_of_copy
from worker.adapters.rabbitmq.outlet import CONFIRM_SECONDS, Outlet
from worker.adapters.rabbitmq.wire import ReplyProperties
from worker.ports import Delivery, OwedReply, PublishError

X_LANE: Final = "x-lane"
X_RECEIVED_AT: Final = "x-received-at"


class RabbitPublisher:
    """The port Publisher. Wants a connection of its own: an alarm, or the broker's flow control, blocks it.

    Replies and copies have a channel each. A missing exchange closes the
    channel of copies, with all that is unconfirmed on it; replies go through
    the default exchange, which is never missing.
    """

    def __init__(self, link: Link, *, timeout: float = CONFIRM_SECONDS) -> None:
        self._link = link
        self._replies = Outlet(link, timeout=timeout)
        self._copies = Outlet(link, timeout=timeout)
        self._alone: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def reply(self, owed: OwedReply) -> bool:
        """Send a reply; False when no queue of that name exists. Raises PublishError."""
        queue = owed.address.queue or ""
        return await self._replies.send(
            owed.body,
            exchange="",
            routing_key=queue,
            properties=ReplyProperties(owed.reply_id, owed.address.correlation_id),
            # RabbitMQ before 4.2 returns a direct reply as unroutable even where it was delivered.
            mandatory=not queue.startswith(DIRECT_REPLY_TO),
        )

    async def park(self, delivery: Delivery, seconds: int) -> None:
        """Put a copy into the waiting room of that many seconds. Raises PublishError."""
        await self._copy(delivery, retry_room(seconds), {X_PARKED: delivery.times_parked + 1})

    async def bury(self, delivery: Delivery, reason: str) -> None:
        """Put a copy among the dead, with its reason. Raises PublishError."""
        lane = lane_key(delivery.lane, high=delivery.high)
        await self._copy(
            delivery, DEAD, {X_REASON: reason, X_LANE: lane, X_RECEIVED_AT: delivery.received_at}
        )

    async def _copy(self, delivery: Delivery, exchange: str, headers: dict[str, FieldValue]) -> None:
        properties = properties_of_copy(delivery, user=self._link.user, headers=headers)
        async with self._turn(delivery.message_id):
            routed = await self._copies.send(
                delivery.body,
                exchange=exchange,
                routing_key=lane_key(delivery.lane, high=delivery.high),
                properties=properties,
            )
        if not routed:
            raise PublishError(f"no queue is bound to the exchange {exchange}")

    def _turn(self, message_id: str | None) -> AbstractAsyncContextManager[None]:
        """Let copies with the same `message_id`, which the producer chooses, go one after the other."""
        if not message_id:
            return nullcontext()
        return self._alone.setdefault(message_id, asyncio.Lock())
