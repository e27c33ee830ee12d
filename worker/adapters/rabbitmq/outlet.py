"""A channel that publishes and waits for the broker's word."""

import asyncio
import random
from typing import Final

import aiormq
from aiormq.exceptions import PublishError as ReturnedError
from pamqp.commands import Basic

from worker.adapters.rabbitmq import wire
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.trouble import ChannelLostError, DriverGuard, describe
from worker.adapters.rabbitmq.wire import ReplyProperties, Route
from worker.ports import PublishError

CONFIRM_SECONDS: Final = 10.0


class Outlet:
    """Publishes with confirms on a channel of its own, opened again after each loss.

    The driver matches a returned message to its publish by `message_id`: two
    in flight at a time must not have the same, or one answers for the other.
    """

    def __init__(self, link: Link, *, timeout: float = CONFIRM_SECONDS) -> None:
        self._link = link
        self._timeout = timeout
        self._opening = asyncio.Lock()
        self._channel: aiormq.Channel | None = None
        self._with_driver = 0
        """Messages that the driver may have counted, as the broker will, and not written yet."""

    async def send(
        self,
        body: bytes,
        *,
        exchange: str,
        routing_key: str,
        properties: Basic.Properties | ReplyProperties,
        mandatory: bool = True,
    ) -> bool:
        """Return once the broker has confirmed; False where no queue takes it. Raises PublishError.

        While the connection is away, or the broker takes nothing because of an
        alarm, this waits up to the timeout.
        """
        route = Route(exchange, routing_key, mandatory)
        try:
            with DriverGuard():
                async with asyncio.timeout(self._timeout):
                    await self._publish(await self._ready_channel(), body, route, properties)
        except ReturnedError:
            return False
        except Exception as error:  # noqa: BLE001  whatever the driver raises, all that is known is: not confirmed
            # Not chained: the driver's errors hold the message.
            raise PublishError(describe(error)) from None
        return True

    async def _publish(
        self,
        channel: aiormq.Channel,
        body: bytes,
        route: Route,
        properties: Basic.Properties | ReplyProperties,
    ) -> None:
        """Leave a message to the driver, unless it is a small reply and nothing goes before it."""
        if isinstance(properties, ReplyProperties):
            if not self._with_driver and 0 < len(body) < channel.max_content_size:
                message_id = f"{random.getrandbits(128):032x}"
                frames = wire.publish(channel.number, route, properties, message_id, body)
                if frames is not None:
                    await self._confirmation(channel, message_id, frames)
                    return
            properties = properties.plain()
        self._with_driver += 1
        try:
            await channel.basic_publish(
                body,
                exchange=route.exchange,
                routing_key=route.routing_key,
                properties=properties,
                mandatory=route.mandatory,
                wait=False,
            )
        finally:
            self._with_driver -= 1

    async def _confirmation(self, channel: aiormq.Channel, message_id: str, frames: bytes) -> None:
        """Write a message as the driver does, which then hears of it: the broker counts what comes."""
        if not self._link.write(channel, frames):
            if self._channel is channel:
                self._channel = None  # the driver may take its time to close it
            raise ChannelLostError("the channel closed")
        channel.delivery_tag += 1
        tag = channel.delivery_tag
        confirmation = channel.confirmations[tag] = channel.create_future()
        channel.message_id_delivery_tag[message_id] = tag
        try:
            await confirmation
        finally:
            channel.message_id_delivery_tag.pop(message_id, None)

    async def _ready_channel(self) -> aiormq.Channel:
        connection = await self._link.ready()
        # Waits only while an alarm blocks us: what is written then piles up in the socket, copy upon copy.
        await connection.ready()
        if self._channel is None or self._channel.is_closed:
            async with self._opening:
                if self._channel is None or self._channel.is_closed:
                    self._channel = await self._link.channel()
        return self._channel
