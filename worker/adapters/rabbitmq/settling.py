"""The end of a delivery at the broker."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from aiormq.abc import DeliveredMessage

from worker.adapters.rabbitmq.trouble import DriverGuard
from worker.domain.events import Broken
from worker.ports import Clock, Observer, Settlement

Subject = TypeVar("Subject")

BROKEN_PAUSE: Final = 1.0
"""Seconds that a delivery whose handler broke is held: else it would come back, and break, in a hot loop."""

_WRITE_SECONDS: Final = 10


async def judge(
    handler: Callable[[Subject], Awaitable[Settlement]],
    subject: Subject,
    *,
    where: str,
    clock: Clock,
    observer: Observer,
) -> Settlement:
    """Return a handler's verdict; where it breaks, have the delivery handed back a little later."""
    try:
        with DriverGuard():
            return await handler(subject)
    except Exception as error:  # noqa: BLE001  any error of ours ends here, and is told
        observer(Broken(key=None, where=where, error=error))
        await clock.sleep(BROKEN_PAUSE)
        return Settlement.REQUEUE


async def settle(message: DeliveredMessage, settlement: Settlement) -> None:
    """Tell the broker.

    On a channel that has closed there is nothing to tell: the broker delivers
    again, and the copy finds its job done. Nor is there an answer to wait for:
    that an acknowledgement was written does not say that it arrived.
    """
    channel, tag = message.channel, message.delivery_tag or 0
    with suppress(Exception):
        async with asyncio.timeout(_WRITE_SECONDS):
            if settlement is Settlement.ACK:
                await channel.basic_ack(tag, wait=False)
            else:
                await channel.basic_nack(tag, requeue=True, wait=False)
