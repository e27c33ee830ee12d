"""What a consumer keeps, and gets back, when connections and queues are lost."""

import asyncio
from collections import Counter

from schemas.names import lane_queue
from tests.support.broker import Proxy, SteeredClock, Told, count, linked, plain, send_job, until
from tests.support.consumer import QUEUE, Handler, make, running, send_all
from tests.support.servers import Broker
from worker.adapters.rabbitmq import topology
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.watchdog import WATCH_SECONDS
from worker.domain.events import ServerTrouble


async def test_a_closed_connection_cancels_no_handler(broker: Broker) -> None:
    """The broker closes our connection: the handler goes on, and the delivery comes again, marked as such."""
    handler = Handler()
    async with linked(broker.url) as link, running(link, handler):
        await send_job(broker.url)
        await until(lambda: len(handler.started) == 1)
        await asyncio.to_thread(broker.close_connections)
        await until(lambda: len(handler.started) == 2)
        assert handler.cancelled == 0
        assert [one.redelivered for one in handler.started] == [False, True]
        handler.free.set()
        await until(lambda: handler.finished == 2)
    assert await count(broker.url, QUEUE) == 0


async def test_what_had_not_started_when_its_channel_closed_is_dropped(amqp_url: str) -> None:
    """The stale copy of a waiting delivery never starts: only the one that the broker sends again."""
    handler = Handler()
    async with linked(amqp_url), Proxy(amqp_url) as proxy:
        link = Link(proxy.url, name="test", observer=Told())
        async with link, running(link, handler, concurrency=2) as consumer:
            await send_all(amqp_url, b"1", b"2")
            await until(lambda: len(handler.started) == 2)
            await send_all(amqp_url, b"high", key="completion.high")
            await until(lambda: consumer.waiting == 1)
            proxy.cut()
            await until(lambda: not link.healthy)
            await until(lambda: consumer.waiting == 4)
            handler.free.set()
            await until(lambda: handler.finished == 5)
    assert Counter(handler.bodies) == {b"1": 2, b"2": 2, b"high": 1}


async def test_a_queue_that_was_deleted_is_consumed_again(amqp_url: str) -> None:
    """Deleted and made anew, a queue has its consumer back; its trouble is told while it lasts."""
    told, handler = Told(), Handler()
    async with linked(amqp_url) as link, running(link, handler, observer=told) as consumer:
        await send_job(amqp_url)
        await until(lambda: len(handler.started) == 1)
        async with plain(amqp_url) as channel:
            await channel.queue_delete(QUEUE)
        await until(lambda: not consumer.consuming)
        await until(lambda: told.of(ServerTrouble))
        await topology.apply(link)
        await until(lambda: consumer.consuming)
        await send_job(amqp_url, b"again")
        await until(lambda: handler.bodies == [b"{}", b"again"])
        assert handler.cancelled == 0
    down, up = told.of(ServerTrouble)
    assert (down.server, down.up) == (f"rabbitmq {QUEUE}", False)
    assert "NOT_FOUND" in str(down.error)
    assert up.up


async def test_a_consumer_that_the_broker_forgot_is_noticed(amqp_url: str) -> None:
    """A consumer gone without a word is found missing by the watch, and is back after it."""
    clock, handler = SteeredClock(), Handler()
    handler.free.set()
    async with linked(amqp_url) as link, running(link, handler, clock=clock) as consumer:
        [forgotten] = [one for one in consumer._subscriptions if one.queue == QUEUE]
        channel, tag = forgotten._channel, forgotten._tag
        assert channel
        assert tag
        callback = channel.consumers[tag]
        await channel.basic_cancel(tag)
        channel.consumers[tag] = callback
        assert consumer.consuming
        await send_job(amqp_url)
        assert not handler.started
        assert clock.slept == [WATCH_SECONDS]
        clock.wake()
        await until(lambda: handler.finished == 1)


async def test_a_missing_queue_holds_up_no_other_lane(amqp_url: str) -> None:
    """Started without one of its queues, a consumer serves the others, and that one when it appears."""
    handler = Handler()
    handler.free.set()
    async with linked(amqp_url) as link:
        async with plain(amqp_url) as channel:
            await channel.queue_delete(lane_queue("tool"))
        consumer = make(link, handler, lanes=["tool", "vision"])
        consumer.start()
        await send_job(amqp_url, b"v", key="vision")
        await until(lambda: handler.bodies == [b"v"])
        assert not consumer.consuming
        await topology.apply(link)
        await until(lambda: consumer.consuming)
        await consumer.stop()
