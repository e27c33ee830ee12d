"""The exchanges and queues of the contract: what they are, making them, comparing them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp.common import FieldTable
from typing_extensions import override

from schemas.names import (
    CANCEL_KEY,
    CONTROL,
    DEAD,
    JOBS,
    LANES,
    RETRY_SECONDS,
    lane_key,
    lane_queue,
    retry_room,
)
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.trouble import ChannelLostError, DriverGuard, describe

CANCEL_QUEUE: Final = f"{CONTROL}.{CANCEL_KEY}"
"""Keeps cancel requests that come while no worker runs."""

DELIVERY_LIMIT: Final = 20
"""Deliveries that a message may cost before it is taken for poison."""

_RPC_SECONDS: Final = 20

_NEVER: Final = 1_000_000_000
"""A delivery limit for queues that are only looked at: without one, RabbitMQ 4 would drop after 20 looks."""


_MEND: Final = "empty it, delete it, then run `openai-worker topology apply`"


class TopologyError(Exception):
    """The broker has something else under one of our names; the message says how to mend it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str

    async def declare(self, channel: AbstractChannel, *, passive: bool = False) -> None:
        """Declare it, or with `passive` only ask whether it exists."""
        async with asyncio.timeout(_RPC_SECONDS):
            await channel.exchange_declare(self.name, exchange_type=self.type, durable=True, passive=passive)

    @override
    def __str__(self) -> str:
        return f"exchange {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A quorum queue, and the exchange it is bound to by these keys."""

    name: str
    exchange: str
    keys: tuple[str, ...]
    arguments: Mapping[str, str | int] = field(default_factory=dict)

    async def declare(self, channel: AbstractChannel, *, passive: bool = False) -> None:
        """Declare it, or with `passive` only ask whether it exists."""
        arguments: FieldTable = {"x-queue-type": "quorum", **self.arguments}
        async with asyncio.timeout(_RPC_SECONDS):
            await channel.queue_declare(self.name, durable=True, passive=passive, arguments=arguments)

    async def bind(self, channel: AbstractChannel) -> None:
        """Bind it by all its keys."""
        for key in self.keys:
            async with asyncio.timeout(_RPC_SECONDS):
                await channel.queue_bind(self.name, self.exchange, key)

    @override
    def __str__(self) -> str:
        return f"queue {self.name}"


def _dead_lettering_to(exchange: str) -> dict[str, str | int]:
    """Dead-letter at least once, which needs `reject-publish`: else it is silently at most once."""
    return {
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _job_queue(lane: str, *, high: bool) -> Queue:
    return Queue(
        name=lane_queue(lane, high=high),
        exchange=JOBS,
        keys=(lane_key(lane, high=high),),
        arguments={"x-delivery-limit": DELIVERY_LIMIT, **_dead_lettering_to(DEAD)},
    )


def _room_queue(seconds: int) -> Queue:
    name = retry_room(seconds)
    arguments = {"x-message-ttl": seconds * 1000, "x-delivery-limit": _NEVER, **_dead_lettering_to(JOBS)}
    return Queue(name=name, exchange=name, keys=("",), arguments=arguments)


# Targets come before what dead-letters to them.
EXCHANGES: Final = (
    Exchange(name=DEAD, type="fanout"),
    Exchange(name=JOBS, type="direct"),
    Exchange(name=CONTROL, type="topic"),
    # Fanout, so that a message keeps the routing key of its lane and finds back to it.
    *(Exchange(name=retry_room(seconds), type="fanout") for seconds in RETRY_SECONDS),
)
QUEUES: Final = (
    Queue(name=DEAD, exchange=DEAD, keys=("",), arguments={"x-delivery-limit": _NEVER}),
    *(_job_queue(lane, high=high) for lane in LANES for high in (False, True)),
    *(_room_queue(seconds) for seconds in RETRY_SECONDS),
    Queue(
        name=CANCEL_QUEUE,
        exchange=CONTROL,
        keys=(CANCEL_KEY,),
        arguments={"x-delivery-limit": DELIVERY_LIMIT},
    ),
)
THINGS: Final[tuple[Exchange | Queue, ...]] = (*EXCHANGES, *QUEUES)


async def apply(link: Link) -> None:
    """Make what is missing; a second time changes nothing. Raises TopologyError."""
    channel = await link.channel()
    for thing in THINGS:
        try:
            with DriverGuard():
                await thing.declare(channel)
                if isinstance(thing, Queue):
                    await thing.bind(channel)
        except ChannelPreconditionFailed as error:
            raise TopologyError(f"{_difference(thing, error)}; {_MEND}") from None
        except (AMQPError, ChannelLostError, TimeoutError) as error:
            raise TopologyError(f"{thing} could not be declared: {describe(error)}") from None
    await channel.close()


async def check(link: Link) -> list[str]:
    """Name each difference in a sentence; none means that all is as it should be.

    Arguments can only be compared by a user who may configure; bindings cannot
    be asked for at all.
    """
    differences = [await _compare(link, thing) for thing in THINGS]
    return [difference for difference in differences if difference]


async def _compare(link: Link, thing: Exchange | Queue) -> str | None:
    # A declaration that fails closes its channel, so each has its own.
    channel = await link.channel()
    try:
        with DriverGuard():
            await thing.declare(channel, passive=True)
            await thing.declare(channel)
            await channel.close()
    except ChannelNotFoundEntity:
        return f"{thing} is missing"
    except ChannelPreconditionFailed as error:
        return _difference(thing, error)
    except ChannelAccessRefused:
        return None
    except (AMQPError, ChannelLostError, TimeoutError) as error:
        return f"{thing} could not be compared: {describe(error)}"
    return None


def _difference(thing: Exchange | Queue, error: ChannelPreconditionFailed) -> str:
    return f"{thing} is not as it should be: {describe(error).partition(' - ')[2]}"
