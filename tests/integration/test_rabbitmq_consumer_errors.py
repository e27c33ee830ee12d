"""Handlers that break: told, slowed down, and given up only where others go through."""

import asyncio
from typing import Any

import pytest

from schemas.names import DEAD
from tests.support.broker import HastyClock, SteeredClock, Told, count, linked, send_job, take, until
from tests.support.consumer import QUEUE, Handler, running, send_all
from worker.adapters.rabbitmq.consumer import Consumer
from worker.adapters.rabbitmq.fuse import BROKEN_PAUSE
from worker.adapters.rabbitmq.topology import DELIVERY_LIMIT
from worker.domain.events import Broken
from worker.ports import Delivery, Place, Settlement


async def test_a_handler_that_breaks_does_not_spin(amqp_url: str) -> None:
    """Its error is told, and the delivery goes back only after a pause."""
    clock, told, handler = SteeredClock(), Told(), Handler()
    handler.verdict = ValueError("broken")
    handler.free.set()
    async with linked(amqp_url) as link, running(link, handler, clock=clock, observer=told) as consumer:
        await send_job(amqp_url)
        await until(lambda: BROKEN_PAUSE in clock.slept)
        assert len(handler.started) == 1
        assert consumer.running == 1
        handler.verdict = Settlement.ACK
        clock.wake()
        await until(lambda: handler.finished == 2)
        assert handler.started[1].redelivered
    [broken] = told.of(Broken)
    assert isinstance(broken.error, ValueError)


async def test_where_everything_breaks_nothing_is_given_up(amqp_url: str) -> None:
    """However often they break, deliveries are kept, not handed back until the broker gives them up."""
    handler = Handler()
    handler.verdict = ValueError("broken")
    handler.free.set()
    async with linked(amqp_url) as link, running(link, handler, clock=HastyClock()) as consumer:
        bodies = {b"%d" % number for number in range(8)}
        await send_all(amqp_url, *bodies)
        await until(lambda: handler.finished > 10 * DELIVERY_LIMIT)
        assert consumer.broken
        assert consumer.running == 4
        handler.verdict = Settlement.ACK
        await until(lambda: set(handler.bodies) == bodies and not consumer.running)
        assert not consumer.broken
    assert await count(amqp_url, QUEUE) == 0
    assert await count(amqp_url, DEAD) == 0


async def test_one_delivery_that_always_breaks_is_given_up(amqp_url: str) -> None:
    """While others go through, what breaks is handed back, and ends among the dead."""
    handled: list[bytes] = []

    async def handler(delivery: Delivery, _place: Place) -> Settlement:
        handled.append(delivery.body)
        if delivery.body == b"bad":
            raise ValueError
        return Settlement.ACK

    async with linked(amqp_url) as link:
        settings: dict[str, Any] = {"concurrency": 4, "clock": HastyClock(), "observer": Told()}
        consumer = Consumer(link, lanes=["completion"], handler=handler, **settings)
        consumer.start()
        await send_all(amqp_url, b"bad")
        for sent in range(1, 100):
            await send_all(amqp_url, b"good")
            await until(lambda sent=sent: handled.count(b"good") == sent)
            if await count(amqp_url, DEAD):
                break
        assert (await take(amqp_url, DEAD)).body == b"bad"
        await consumer.stop()


@pytest.mark.parametrize("kind", [RuntimeError, asyncio.CancelledError])
async def test_an_error_nobody_expected_keeps_no_place(amqp_url: str, kind: type[BaseException]) -> None:
    """Whatever a handler raises, a cancellation that nobody asked for included, its place is free again."""
    told = Told()
    seen: list[Delivery] = []

    async def handler(delivery: Delivery, _place: Place) -> Settlement:
        seen.append(delivery)
        if len(seen) == 1:
            raise kind
        return Settlement.ACK

    clock = SteeredClock()
    async with linked(amqp_url) as link:
        consumer = Consumer(link, lanes=["tool"], concurrency=1, handler=handler, clock=clock, observer=told)
        consumer.start()
        await send_job(amqp_url, key="tool")
        await until(lambda: told.of(Broken))
        clock.wake()
        await until(lambda: len(seen) == 2)
        await until(lambda: not consumer.running)
        await consumer.stop()
