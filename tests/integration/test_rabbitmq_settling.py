"""Acknowledgements that come too late for their channel."""

import asyncio

import aio_pika
import aiormq
from aiormq.abc import DeliveredMessage

from schemas.names import JOBS, lane_queue
from tests.support.broker import RealClock, Told, count, linked, plain, send_job, until
from worker.adapters.rabbitmq import wire
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.consumer import Consumer
from worker.adapters.rabbitmq.settling import settle
from worker.ports import Delivery, Place, Settlement

QUEUE = lane_queue("completion")
MANY = 40


async def taken(channel: aiormq.Channel, wanted: int) -> list[DeliveredMessage]:
    """Consume on a channel until so many are here, which are all that it may have."""
    messages: list[DeliveredMessage] = []

    async def keep(message: DeliveredMessage) -> None:
        messages.append(message)

    await channel.basic_qos(prefetch_count=wanted)
    await channel.basic_consume(QUEUE, keep)
    await until(lambda: len(messages) == wanted)
    return messages


async def closed_by_the_broker(link: Link, channel: aiormq.Channel) -> None:
    """Acknowledge what was never delivered, again and again until the channel is gone."""
    while not channel.is_closed:
        link.write(channel, wire.ack(channel.number, 2**32))
        await asyncio.sleep(0)


async def test_what_comes_too_late_disturbs_nobody(amqp_url: str) -> None:
    """Neither the connection, which the broker would close, nor a new channel of the same number."""
    async with linked(amqp_url) as link:
        for _ in range(MANY):
            await send_job(amqp_url)
        connection, first = await link.ready(), await link.channel()
        late = await taken(first, MANY)
        await closed_by_the_broker(link, first)
        second = await link.channel()
        again = await taken(second, len(late))
        assert second.number == first.number
        for message in late:
            settle(link, message, Settlement.ACK)
        settle(link, again[0], Settlement.ACK)
        await second.close()
        assert await link.ready() is connection
        assert not connection.is_closed
        await until_count(amqp_url, len(late) - 1)


async def test_what_follows_our_own_close_is_not_sent(amqp_url: str) -> None:
    """A channel closes under work, of which some is done before the broker has answered."""
    async with linked(amqp_url) as link:
        for _ in range(MANY):
            await send_job(amqp_url)
        connection, channel = await link.ready(), await link.channel()
        late = await taken(channel, MANY)
        closing = asyncio.create_task(channel.close())
        while not channel.is_closed:
            if late:
                settle(link, late.pop(), Settlement.ACK)
            await asyncio.sleep(0)
        await closing
        other = await link.channel()
        await other.close()
        assert not connection.is_closed


async def test_what_ends_together_is_settled_when_the_worker_goes(amqp_url: str) -> None:
    """The broker applies some thirty acknowledgements at once, and forgets the rest if the channel goes."""
    many, free, begun = 300, asyncio.Event(), 0

    async def work(_delivery: Delivery, _place: Place) -> Settlement:
        nonlocal begun
        begun += 1
        await free.wait()
        return Settlement.ACK

    async with linked(amqp_url) as link:
        async with plain(amqp_url) as channel:
            exchange = await channel.get_exchange(JOBS)
            jobs = [exchange.publish(aio_pika.Message(b"{}"), routing_key="completion") for _ in range(many)]
            await asyncio.gather(*jobs)
        consumer = Consumer(
            link, lanes=["completion"], concurrency=many, handler=work, clock=RealClock(), observer=Told()
        )
        consumer.start()
        await until(lambda: begun == many)
        await consumer.stop()
        free.set()
        assert await consumer.drain(5) == 0
    await until_count(amqp_url, 0)


async def test_what_is_handed_back_comes_again(amqp_url: str) -> None:
    """Another consumer gets it, as one that was here before."""
    async with linked(amqp_url) as link:
        await send_job(amqp_url)
        first, second = await link.channel(), await link.channel()
        (message,) = await taken(first, 1)
        await first.basic_cancel(message.consumer_tag or "")
        settle(link, message, Settlement.REQUEUE)
        (again,) = await taken(second, 1)
        assert again.redelivered
        settle(link, again, Settlement.ACK)
        await second.close()
        await until_count(amqp_url, 0)


async def until_count(url: str, wanted: int) -> None:
    """Wait until the queue holds so many, all of them free."""
    async with asyncio.timeout(10):
        while await count(url, QUEUE) != wanted:  # noqa: ASYNC110 (the broker does not tell)
            await asyncio.sleep(0.05)
