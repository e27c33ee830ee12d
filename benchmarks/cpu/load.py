"""The other side of a worker: publishes its jobs, receives its replies."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final, cast

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from benchmarks.cpu.messages import Message

CHUNK: Final = 500
"""Publishes that wait for the broker's confirmation at a time."""
PATIENCE_SECONDS: Final = 300.0


class Replies:
    """Counts what comes to a queue."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.count = 0
        self.first: float | None = None
        """When the first came since this was set to None."""
        self.at: dict[str, float] | None = None
        """When each reply came, by correlation id; None while nobody asks."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def reach(self, count: int, *, within: float = PATIENCE_SECONDS) -> None:
        """Wait for so many in all."""
        if self.count >= count:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, future))
        try:
            async with asyncio.timeout(within):
                await future
        except TimeoutError:
            raise RuntimeError(f"{self.queue}: {self.count} replies instead of {count}") from None

    async def received(self, message: DeliveredMessage) -> None:
        """Note one."""
        self.count += 1
        if self.first is None:
            self.first = time.monotonic()
        if self.at is not None:
            self.at.setdefault(message.header.properties.correlation_id or "", time.monotonic())
        for entry in self._waiting:
            if self.count >= entry[0] and not entry[1].done():
                entry[1].set_result(None)
                self._waiting = [one for one in self._waiting if one is not entry]


class Load:
    """One connection to publish, one to receive."""

    def __init__(self, publishing: aiormq.Connection, receiving: aiormq.Connection) -> None:
        self._publishing, self._receiving = publishing, receiving
        self._channel: aiormq.Channel | None = None
        self._replies: dict[str, Replies] = {}

    async def replies(self, queue: str, *, declare: bool = True) -> Replies:
        """Declare a durable queue, and count what comes to it; a second time, give the same counter."""
        if queue in self._replies:
            return self._replies[queue]
        channel = await self._receiving.channel()
        await channel.queue_declare(queue, durable=True, passive=not declare)
        replies = self._replies[queue] = Replies(queue)
        await channel.basic_consume(queue, replies.received, no_ack=True)
        return replies

    async def take(self, queue: str, job_id: str) -> Message:
        """Take the one message that waits in a queue."""
        channel = await self._receiving.channel()
        found = await channel.basic_get(queue, no_ack=True)
        await channel.close()
        deliver, header = found.delivery, found.header
        assert isinstance(deliver, Basic.GetOk)
        assert header is not None
        return Message(
            exchange=deliver.exchange,
            routing_key=deliver.routing_key or "",
            properties=header.properties,
            body=found.body,
            job_id=job_id,
        )

    async def publish(self, messages: Iterable[Message]) -> None:
        """Publish with confirms."""
        pending = iter(messages)
        while chunk := list(islice(pending, CHUNK)):
            await asyncio.gather(*map(self.send, chunk))

    async def purge(self, queue: str) -> None:
        """Empty a queue."""
        channel = await self._receiving.channel()
        await channel.queue_purge(queue)
        await channel.close()

    async def send(self, message: Message) -> None:
        """Publish one."""
        if self._channel is None:
            self._channel = cast("aiormq.Channel", await self._publishing.channel())
        await self._channel.basic_publish(
            message.body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            properties=message.properties,
            mandatory=True,
            wait=False,
        )


@asynccontextmanager
async def loading(amqp_url: str) -> AsyncIterator[Load]:
    """Open both connections."""
    publishing, receiving = await aiormq.connect(amqp_url), await aiormq.connect(amqp_url)
    try:
        yield Load(publishing, receiving)
    finally:
        await publishing.close()
        await receiving.close()
