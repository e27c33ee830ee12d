"""A channel that publishes and waits for the broker's word."""

import asyncio
from typing import Final

import aiormq
from aiormq.exceptions import PublishError as ReturnedError
from pamqp.commands import Basic

from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.trouble import DriverGuard, describe
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

    async def send(
        self,
        body: bytes,
        *,
        exchange: str,
        routing_key: str,
        properties: Basic.Properties,
        mandatory: bool = True,
    ) -> bool:
        """Return once the broker has confirmed; False where no queue takes it. Raises PublishError.

        While the connection is away, or the broker takes nothing because of an
        alarm, this waits up to the timeout.
        """
        try:
            with DriverGuard():
                async with asyncio.timeout(self._timeout):
                    channel = await self._ready_channel()
                    await channel.basic_publish(
                        body,
                        exchange=exchange,
                        routing_key=routing_key,
                        properties=properties,
                        mandatory=mandatory,
                        wait=False,
                    )
        except ReturnedError:
            return False
        except Exception as error:  # noqa: BLE001  whatever the driver raises, all that is known is: not confirmed
            # Not chained: the driver's errors hold the message.
            raise PublishError(describe(error)) from None
        return True

    async def _ready_channel(self) -> aiormq.Channel:
        connection = await self._link.ready()
        # Waits only while an alarm blocks us: what is written then piles up in the socket, copy upon copy.
        await connection.ready()
        if self._channel is None or self._channel.is_closed:
            async with self._opening:
                if self._channel is None or self._channel.is_closed:
                    self._channel = await self._link.channel()
        return self._channel
