"""Replies and copies, published to a real broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aio_pika
import pytest
from aiormq.abc import ChannelFrame
from pamqp.heartbeat import Heartbeat

from schemas.names import DEAD, lane_queue, retry_room
from tests.support.broker import Proxy, RealClock, Told, count, delivery, linked, plain, take, until
from tests.support.servers import Broker
from worker.adapters.rabbitmq import topology
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.consumer import Consumer
from worker.adapters.rabbitmq.publisher import RabbitPublisher
from worker.domain.job import JobKey, ReplyAddress
from worker.ports import Delivery, OwedReply, Place, PublishError, Settlement


def owed(queue: str, body: bytes = b'{"answer": 42}', reply_id: str = "r-1") -> OwedReply:
    """Make a reply to a queue."""
    address = ReplyAddress(queue=queue, correlation_id="c-1")
    return OwedReply(key=JobKey("acme", "j-1"), reply_id=reply_id, address=address, body=body)


@asynccontextmanager
async def reply_queue(url: str, **arguments: Any) -> AsyncIterator[aio_pika.abc.AbstractQueue]:
    """Declare a reply queue as a producer would."""
    async with plain(url) as channel:
        yield await channel.declare_queue(exclusive=True, arguments=arguments)


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, Link]]:
    """Connect by way of a proxy."""
    async with Proxy(url) as proxy, Link(proxy.url, name="test", observer=Told()) as link:
        yield proxy, link


async def test_a_reply_carries_what_the_contract_says(amqp_url: str) -> None:
    """Persistent, with correlation id, type, content type and the header `x-reply-id`."""
    async with linked(amqp_url) as link, reply_queue(amqp_url) as queue:
        assert await RabbitPublisher(link).reply(owed(queue.name))
        message = await queue.get()
    assert message.body == b'{"answer": 42}'
    assert message.headers == {"x-reply-id": "r-1"}
    assert (message.type, message.correlation_id) == ("reply", "c-1")
    assert (message.content_type, message.delivery_mode) == ("application/json", 2)


async def test_each_reply_hears_its_own_fate(amqp_url: str) -> None:
    """Of many replies at a time, exactly those to queues that are not there come back as unroutable."""
    async with linked(amqp_url) as link, reply_queue(amqp_url) as queue:
        publisher = RabbitPublisher(link)
        names = [queue.name, "gone"] * 50
        routed = await asyncio.gather(*(publisher.reply(owed(name)) for name in names))
        assert list(routed) == [True, False] * 50


async def test_each_hears_its_own_fate_whoever_writes_it(amqp_url: str) -> None:
    """Large replies go the driver's way, and small ones do not overtake it: the broker counts both."""
    async with linked(amqp_url) as link, reply_queue(amqp_url) as queue:
        publisher = RabbitPublisher(link)
        asked = [(name, size) for size in (10, 300_000, 10) for name in (queue.name, "gone")] * 20
        routed = await asyncio.gather(*(publisher.reply(owed(name, b"x" * size)) for name, size in asked))
        assert list(routed) == [name == queue.name for name, _ in asked]
        assert await publisher.reply(owed(queue.name))


async def test_replies_leave_in_the_order_of_their_numbers(amqp_url: str) -> None:
    """A small one, which is written at once, does not overtake one that the driver has numbered already.

    The broker confirms by number, and each would hear the other's fate.
    """
    async with linked(amqp_url) as link, reply_queue(amqp_url) as queue:
        publisher = RabbitPublisher(link)
        await publisher.reply(owed(queue.name, b"first"))
        replies = [
            asyncio.create_task(publisher.reply(owed(queue.name, body))) for body in (b"x" * 300_000, b"last")
        ]
        waiting = (await link.ready()).write_queue
        for _ in range(waiting.maxsize):  # no room, for a turn of the loop
            waiting.put_nowait(ChannelFrame.marshall(0, [Heartbeat()]))
        assert await asyncio.gather(*replies) == [True, True]
        assert [len((await queue.get()).body) for _ in range(3)] == [5, 300_000, 4]


async def test_a_channel_that_is_about_to_close_gets_one_reply_only(amqp_url: str) -> None:
    """Which hears of it at once; the next waits for another channel, however long that one takes to go."""
    async with proxied(amqp_url) as (proxy, link), reply_queue(amqp_url) as queue:
        publisher = RabbitPublisher(link)
        assert await publisher.reply(owed(queue.name))
        channel, writer = publisher._replies._channel, link._transports._writer
        assert channel
        assert writer
        proxy.hold()
        closing = asyncio.create_task(channel.close())
        await until(lambda: writer._closing)
        with pytest.raises(PublishError, match="closed"):
            await publisher.reply(owed(queue.name))
        assert not channel.is_closed
        waiting = asyncio.create_task(publisher.reply(owed(queue.name)))
        await asyncio.sleep(0)
        proxy.let_go()
        assert await waiting
        await closing


async def test_direct_reply_to_works(amqp_url: str) -> None:
    """A client that asks for a direct reply gets it once, and one that is gone costs nothing."""
    async with linked(amqp_url) as link, plain(amqp_url) as channel:
        answers: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        pseudo = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        await pseudo.consume(answers.put, no_ack=True)
        exchange = await channel.get_exchange("openai.jobs")
        await exchange.publish(aio_pika.Message(b"{}", reply_to="amq.rabbitmq.reply-to"), routing_key="tool")
        job = await take(amqp_url, lane_queue("tool"))
        assert job.reply_to
        publisher = RabbitPublisher(link)
        assert await publisher.reply(owed(job.reply_to))
        assert (await asyncio.wait_for(answers.get(), 5)).headers["x-reply-id"] == "r-1"
        await channel.close()
        assert await publisher.reply(owed(job.reply_to))
        assert answers.empty()


async def test_a_full_reply_queue_is_no_success(amqp_url: str) -> None:
    """A queue that refuses for lack of room makes PublishError."""
    limits: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with linked(amqp_url) as link, reply_queue(amqp_url, **limits) as queue:
        publisher = RabbitPublisher(link)
        assert await publisher.reply(owed(queue.name))
        with pytest.raises(PublishError, match="refused by the broker"):
            await publisher.reply(owed(queue.name))


async def test_an_oversize_reply_is_refused_and_the_next_is_not(amqp_url: str) -> None:
    """What the broker finds too large makes PublishError that quotes nothing; then it goes on."""
    async with linked(amqp_url) as link, reply_queue(amqp_url) as queue:
        publisher = RabbitPublisher(link)
        with pytest.raises(PublishError, match="larger than") as raised:
            await publisher.reply(owed(queue.name, b"secret " * 2_500_000))
        assert "secret" not in str(raised.value)
        assert raised.value.__suppress_context__
        assert await publisher.reply(owed(queue.name))


async def test_a_waiting_room_gives_back_what_it_got(amqp_url: str) -> None:
    """After its time a parked message is back on its lane, high as before, with all its properties."""
    original = delivery(
        body=b'{"kind": "tool"}',
        lane="tool",
        high=True,
        message_id="m-1",
        correlation_id="c-1",
        reply_to="answers",
        user_id="acme",
        content_type="application/json",
        content_encoding="gzip",
        type="job",
        app_id="shop",
        timestamp=datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC),
        headers={"mine": "é", "n": 2**40, "list": [1, {"deep": True}], "raw": b"\xff", "CC": ["completion"]},
    )
    anonymous = delivery(
        lane="tool", high=True, headers={"x-death": [{"queue": lane_queue("tool", high=True)}]}
    )
    got: asyncio.Queue[Delivery] = asyncio.Queue()

    async def handler(received: Delivery, _place: Place) -> Settlement:
        await got.put(received)
        return Settlement.ACK

    async with linked(amqp_url) as link:
        publisher = RabbitPublisher(link)
        await publisher.park(original, 5)
        await publisher.park(anonymous, 5)
        assert await count(amqp_url, lane_queue("completion")) == 0
        consumer = Consumer(
            link, lanes=["tool"], concurrency=2, handler=handler, clock=RealClock(), observer=Told()
        )
        consumer.start()
        async with asyncio.timeout(15):
            first, second = await got.get(), await got.get()
        await consumer.stop()
        assert await count(amqp_url, lane_queue("completion")) == 0

    if first.message_id is None:
        first, second = second, first
    names = ["body", "lane", "high", "message_id", "correlation_id", "reply_to", "user_id", "content_type"]
    names += ["content_encoding", "type", "app_id", "timestamp"]
    assert {name: getattr(first, name) for name in names} == {name: getattr(original, name) for name in names}
    assert {name: first.headers[name] for name in ("mine", "n", "list", "x-parked")} == {
        "mine": "é",
        "n": 2**40,
        "list": [1, {"deep": True}],
        "x-parked": 1,
    }
    assert bytes(first.headers["raw"]) == b"\xff"
    assert second.message_id is None
    assert second.user_id is None


async def test_the_dead_keep_reason_lane_and_properties(amqp_url: str) -> None:
    """A buried message has its reason and lane in headers, and its own properties."""
    async with linked(amqp_url) as link:
        letter = delivery(body=b"\x00 not json", lane="vision", high=True, message_id="m", headers={"a": "b"})
        await RabbitPublisher(link).bury(letter, "is not JSON")
        message = await take(amqp_url, DEAD)
    assert (message.body, message.message_id, message.routing_key) == (b"\x00 not json", "m", "vision.high")
    assert message.headers["x-reason"] == "is not JSON"
    assert message.headers["x-lane"] == "vision.high"
    assert message.headers["a"] == "b"


async def test_headers_that_cannot_be_written_are_left_out(amqp_url: str) -> None:
    """What the driver reads but cannot write does not keep a message from being buried."""
    headers = {"good": 1, "float": 1e300, "huge": 2**70, "odd": object()}
    async with linked(amqp_url) as link:
        await RabbitPublisher(link).bury(delivery(headers=headers), "why")
        message = await take(amqp_url, DEAD)
    assert set(message.headers) - {"x-reason", "x-lane", "x-received-at", "x-no-message-id"} == {"good"}


async def test_of_two_copies_with_one_message_id_each_hears_its_own_fate(amqp_url: str) -> None:
    """The copy that finds no room fails and the other does not, though both bear the producer's id."""
    async with linked(amqp_url) as link, plain(amqp_url) as channel:
        publisher = RabbitPublisher(link)
        await channel.queue_delete(retry_room(600))
        try:
            copies = [publisher.park(delivery(message_id="same"), seconds) for seconds in (600, 3600) * 10]
            fates = await asyncio.gather(*copies, return_exceptions=True)
        finally:
            await topology.apply(link)
        assert [isinstance(fate, PublishError) for fate in fates] == [True, False] * 10
        assert await count(amqp_url, retry_room(3600)) == 10


async def test_a_missing_room_fails_no_reply(amqp_url: str) -> None:
    """A missing exchange fails the copy for it; replies at the same time, and later copies, arrive."""
    async with linked(amqp_url) as link, reply_queue(amqp_url) as queue:
        publisher = RabbitPublisher(link)
        replies = [publisher.reply(owed(queue.name)) for _ in range(20)]
        fate, *routed = await asyncio.gather(publisher.park(delivery(), 7), *replies, return_exceptions=True)
        assert isinstance(fate, PublishError)
        assert "no exchange 'openai.retry.7s'" in str(fate)
        assert routed == [True] * 20
        await publisher.park(delivery(), 600)


async def test_a_lost_connection_is_a_publish_error(amqp_url: str) -> None:
    """What is unconfirmed when the connection goes is PublishError, never a cancellation; then it goes on."""
    async with proxied(amqp_url) as (proxy, link), reply_queue(amqp_url) as queue:
        publisher = RabbitPublisher(link)
        assert await publisher.reply(owed(queue.name))
        proxy.hold()
        unsure = [asyncio.create_task(publisher.reply(owed(queue.name))) for _ in range(10)]
        await until(lambda: not proxy.idle)
        proxy.cut()
        proxy.let_go()
        fates = await asyncio.gather(*unsure, return_exceptions=True)
        assert {type(fate) for fate in fates} == {PublishError}
        assert await publisher.reply(owed(queue.name))


async def test_a_silent_broker_is_a_publish_error(amqp_url: str) -> None:
    """The driver gives a silent connection up by cancelling what waits on it; that does not cancel us."""
    async with proxied(amqp_url) as (proxy, link), reply_queue(amqp_url) as queue:
        publisher = RabbitPublisher(link)
        connection = await link.ready()
        assert await publisher.reply(owed(queue.name))
        proxy.hold()
        waiting = asyncio.create_task(publisher.reply(owed(queue.name)))
        await until(lambda: not proxy.idle)
        connection._reader_task.cancel()  # what it does once three heartbeats are missing
        with pytest.raises(PublishError, match="the channel closed"):
            await waiting
        proxy.let_go()
        assert await publisher.reply(owed(queue.name))


async def test_a_reply_waits_for_the_connection(amqp_url: str) -> None:
    """While the broker is away a reply waits, up to its timeout; once the broker is back it arrives."""
    async with proxied(amqp_url) as (proxy, link), reply_queue(amqp_url) as queue:
        proxy.refuse()
        proxy.cut()
        await until(lambda: not link.healthy)
        with pytest.raises(PublishError, match="no answer in time"):
            await RabbitPublisher(link, timeout=0.2).reply(owed(queue.name))
        patient = asyncio.create_task(RabbitPublisher(link).reply(owed(queue.name)))
        await until(lambda: proxy.refused >= 2)
        proxy.accept()
        assert await patient


async def test_our_own_cancellation_stays_one(amqp_url: str) -> None:
    """A caller that is told to stop in the middle of a publish gets CancelledError."""
    async with proxied(amqp_url) as (proxy, link), reply_queue(amqp_url) as queue:
        publisher = RabbitPublisher(link)
        await publisher.reply(owed(queue.name))
        proxy.hold()
        waiting = asyncio.create_task(publisher.reply(owed(queue.name)))
        await until(lambda: not proxy.idle)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        proxy.let_go()
        assert await publisher.reply(owed(queue.name))


async def test_an_alarm_bounds_the_wait_and_passes(broker: Broker) -> None:
    """While the broker is short of memory, replies end in PublishError in time; afterwards they arrive."""
    async with linked(broker.url) as link, reply_queue(broker.url) as queue:
        patient, hasty = RabbitPublisher(link, timeout=30), RabbitPublisher(link, timeout=0.5)
        await asyncio.to_thread(broker.tell_short_of_memory, short=True)
        for _ in range(3):
            with pytest.raises(PublishError, match="no answer in time"):
                await hasty.reply(owed(queue.name))
        waiting = asyncio.create_task(patient.reply(owed(queue.name, reply_id="r-2")))
        await asyncio.to_thread(broker.tell_short_of_memory, short=False)
        assert await waiting
        assert await hasty.reply(owed(queue.name, reply_id="r-3"))
        ids = []
        while (message := await queue.get(fail=False)) is not None:
            ids.append(message.headers["x-reply-id"])
        # The first was on its way when the broker said that it was blocked; two were held back.
        assert ids == ["r-1", "r-2", "r-3"]
