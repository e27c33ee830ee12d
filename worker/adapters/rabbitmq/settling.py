"""The end of a delivery at the broker."""

import asyncio
from contextlib import suppress
from typing import Final

from aiormq.abc import DeliveredMessage

from worker.ports import Settlement

_WRITE_SECONDS: Final = 10


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
