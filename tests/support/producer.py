"""A producer with nothing but an AMQP library and JSON, as other languages would write it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

REPLY_SECONDS = 30.0


def completion(job_id: str, text: str = "hello", **fields: Any) -> dict[str, Any]:
    """Return a completion job."""
    request = {"model": "gpt-6-luna", "messages": [{"role": "user", "content": text}]}
    return {
        "version": 1,
        "kind": "completion",
        "job_id": job_id,
        "tenant": "acme",
        "request": request,
    } | fields


class Producer:
    """Publishes jobs and collects what comes to its reply queue."""

    def __init__(
        self,
        channel: AbstractChannel,
        queue: AbstractQueue,
        replies: list[AbstractIncomingMessage] | None = None,
    ) -> None:
        self.queue = queue.name
        self.replies: list[AbstractIncomingMessage] = [] if replies is None else replies
        self._answered: set[tuple[str, str]] = set()
        self._counted = 0
        self._channel = channel
        self._news = asyncio.Condition()

    async def send(
        self,
        body: Mapping[str, Any] | bytes,
        *,
        lane: str = "completion",
        reply: bool = True,
        **properties: Any,
    ) -> None:
        """Publish a job, or raw bytes, persistently and confirmed."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"content_type": "application/json", "reply_to": self.queue if reply else None} | properties
        message = aio_pika.Message(data, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **given)
        exchange = await self._channel.get_exchange("openai.jobs", ensure=False)
        await exchange.publish(message, routing_key=lane)

    async def received(self, count: int, *, within: float = REPLY_SECONDS) -> list[dict[str, Any]]:
        """Wait for so many replies in all and return them decoded, in the order they came."""
        async with asyncio.timeout(within), self._news:
            await self._news.wait_for(lambda: len(self.replies) >= count)
        return [json.loads(message.body) for message in self.replies]

    def jobs_answered(self) -> set[tuple[str, str]]:
        """Return the tenants and ids of the jobs that have a reply."""
        for message in self.replies[self._counted :]:
            reply = json.loads(message.body)
            self._answered.add((reply["tenant"], reply["job_id"]))
        self._counted = len(self.replies)
        return self._answered

    async def ask(self, body: Mapping[str, Any] | bytes, **how: Any) -> dict[str, Any]:
        """Publish one job and wait for the next reply."""
        before = len(self.replies)
        await self.send(body, **how)
        return (await self.received(before + 1))[before]

    async def dead(self) -> list[AbstractIncomingMessage]:
        """Take what lies among the dead."""
        queue = await self._channel.get_queue("openai.dead")
        letters = list[AbstractIncomingMessage]()
        while (letter := await queue.get(no_ack=True, fail=False)) is not None:
            letters.append(letter)
        return letters

    async def lost(self) -> None:
        """Return once the connection is gone."""
        await self._channel.closed()

    async def note(self, message: AbstractIncomingMessage) -> None:
        """Keep a reply."""
        await message.ack()
        async with self._news:
            self.replies.append(message)
            self._news.notify_all()


@asynccontextmanager
async def producing(
    url: str, queue: str | None = None, replies: list[AbstractIncomingMessage] | None = None
) -> AsyncIterator[Producer]:
    """Open a connection, a channel with confirms, and an exclusive reply queue, or a durable one by name.

    `replies` are those that an earlier connection has received.
    """
    connection = await aio_pika.connect(url)
    async with connection, connection.channel(on_return_raises=True) as channel:
        declared = await channel.declare_queue(queue, durable=queue is not None, exclusive=queue is None)
        producer = Producer(channel, declared, replies)
        await declared.consume(producer.note)
        yield producer
