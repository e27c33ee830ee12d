"""The end of a delivery at the broker."""

from typing import cast

import aiormq
from aiormq.abc import DeliveredMessage

from worker.adapters.rabbitmq import wire
from worker.adapters.rabbitmq.connection import Link
from worker.ports import Settlement


def settle(link: Link, message: DeliveredMessage, settlement: Settlement) -> None:
    """Tell the broker.

    On a channel that has closed there is nothing to tell: the broker delivers
    again, and the copy finds its job done. Nor is there an answer to wait for:
    that an acknowledgement was written does not say that it arrived.
    """
    spell = wire.ack if settlement is Settlement.ACK else wire.requeue
    channel = cast("aiormq.Channel", message.channel)
    link.write(channel, spell(channel.number, message.delivery_tag or 0))
