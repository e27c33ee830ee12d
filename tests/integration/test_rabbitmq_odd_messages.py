"""Messages that a producer should not have sent, and the broker took."""

import asyncio
import struct

from pamqp.commands import Basic

from schemas.names import DEAD, lane_queue
from tests.support.broker import RealClock, Told, count, linked, send_job, send_odd, until
from worker.adapters.rabbitmq.consumer import Consumer
from worker.adapters.rabbitmq.dead import DeadLetters
from worker.adapters.rabbitmq.publisher import RabbitPublisher
from worker.domain.events import ServerTrouble
from worker.ports import Delivery, Place, Settlement

FLAGS = Basic.Properties.flags


def table(content: bytes) -> bytes:
    """Make a table out of its content."""
    return struct.pack(">I", len(content)) + content


def deep(levels: int) -> bytes:
    """Make headers so many tables deep."""
    content = b""
    for _ in range(levels):
        content = b"\x01aF" + table(content)
    return table(content)


TO_COMPLETION = table(b"\x02CCA" + table(b"S" + table(b"completion")))
ODD = {
    b"text": (FLAGS["correlation_id"], b"\x02\xff\xfe"),
    b"reply_to": (FLAGS["reply_to"], b"\x01\xff"),
    b"microseconds": (FLAGS["timestamp"], struct.pack(">Q", 1_700_000_000_000_000)),
    b"depth": (FLAGS["headers"], deep(15_000)),
    b"name": (FLAGS["headers"], table(b"\x01\xffV")),
    b"time": (FLAGS["headers"], table(b"\x01aT" + b"\x7f" * 8)),
    b"double": (FLAGS["headers"], table(b"\x01ad" + struct.pack(">d", 1e300))),
    b"octets": (FLAGS["headers"], table(b"\x01aS\x00\x00\x00\x01\xff")),
}


async def test_odd_messages_are_handled_and_cost_no_connection(amqp_url: str) -> None:
    """Each reaches the handler once, can be buried and looked at, and disturbs no other message."""
    told, seen = Told(), []

    async def handler(delivery: Delivery, _place: Place) -> Settlement:
        seen.append(delivery)
        if delivery.body != b"{}":
            await publisher.bury(delivery, "odd")
        return Settlement.ACK

    async with linked(amqp_url, told) as link:
        publisher = RabbitPublisher(link)
        for name, (flags, octets) in ODD.items():
            await send_odd(amqp_url, flags, octets, body=name)
        await send_odd(amqp_url, FLAGS["headers"], TO_COMPLETION, key=b"\xff\xfe", body=b"key")
        await send_job(amqp_url)
        consumer = Consumer(
            link, lanes=["completion"], concurrency=20, handler=handler, clock=RealClock(), observer=told
        )
        consumer.start()
        await until(lambda: len(seen) == len(ODD) + 2)
        await consumer.stop()
        assert await consumer.drain(10) == 0
        letters = await DeadLetters(link).browse(100)
        assert {letter.delivery.body for letter in letters} == {*ODD, b"key"}
        assert {letter.lane for letter in letters} == {"completion"}
    assert not any(delivery.redelivered for delivery in seen)
    assert told.of(ServerTrouble) == [ServerTrouble(server="rabbitmq", up=True)]
    assert await count(amqp_url, lane_queue("completion")) == 0
    assert await count(amqp_url, DEAD) == len(letters)


async def test_a_name_is_believed_only_where_the_broker_vouches_for_it(amqp_url: str) -> None:
    """A producer's own `x-user-id` is not believed, and is not passed on by a copy."""
    seen: asyncio.Queue[Delivery] = asyncio.Queue()

    async def handler(delivery: Delivery, _place: Place) -> Settlement:
        await seen.put(delivery)
        return Settlement.ACK

    async with linked(amqp_url) as link:
        await send_job(amqp_url, headers={"x-user-id": "somebody-else"})
        consumer = Consumer(
            link, lanes=["completion"], concurrency=1, handler=handler, clock=RealClock(), observer=Told()
        )
        consumer.start()
        forged = await asyncio.wait_for(seen.get(), 10)
        assert forged.user_id is None
        await RabbitPublisher(link).bury(forged, "why")
        letters = DeadLetters(link)
        [letter] = await letters.browse(1)
        assert letter.delivery.user_id is None
        assert await letters.replay(letter.id)
        assert (await asyncio.wait_for(seen.get(), 10)).user_id is None
        await consumer.stop()
