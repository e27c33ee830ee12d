"""Deliveries from a real broker: their start, their settlement, and what survives a loss."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import aiormq
import pytest

from schemas.names import DEAD, JOBS, lane_queue
from tests.support.broker import (
    HastyClock,
    Proxy,
    RealClock,
    SteeredClock,
    Told,
    count,
    linked,
    plain,
    send_job,
    take,
    until,
)
from tests.support.servers import Broker
from worker.adapters.rabbitmq import topology
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.consumer import Consumer
from worker.adapters.rabbitmq.fuse import BROKEN_PAUSE
from worker.adapters.rabbitmq.topology import DELIVERY_LIMIT
from worker.adapters.rabbitmq.watchdog import WATCH_SECONDS
from worker.domain.events import Broken, ServerTrouble
from worker.ports import Delivery, Place, Settlement

QUEUE = lane_queue("completion")
PLACES, AHEAD = 16, 4


class Handler:
    """A handler that waits for the test, and remembers."""

    def __init__(self) -> None:
        self.started: list[Delivery] = []
        self.cancelled = 0
        self.finished = 0
        self.free = asyncio.Event()
        self.verdict: Settlement | Exception = Settlement.ACK

    async def __call__(self, delivery: Delivery, place: Place) -> Settlement:
        self.started.append(delivery)
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    @property
    def bodies(self) -> list[bytes]:
        """What was started, in order."""
        return [one.body for one in self.started]


class QuickJobs:
    """A handler whose jobs take 20 ms to claim and 30 to work, until it is told to keep those at work."""

    def __init__(self) -> None:
        self.begun = self.at_work = self.most_at_work = self.most_ahead = self.done = self.cancelled = 0
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, _delivery: Delivery, place: Place) -> Settlement:
        self.begun += 1
        try:
            await asyncio.sleep(0.02)
            self.most_ahead = max(self.most_ahead, self.begun - PLACES)
            await place.enter()
            await self._work()
            place.leave()
        except asyncio.CancelledError:
            self.cancelled += 1
            return Settlement.REQUEUE
        finally:
            self.begun -= 1
        self.done += 1
        return Settlement.ACK

    async def _work(self) -> None:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await asyncio.sleep(0.03)
            await self.free.wait()
        finally:
            self.at_work -= 1


def make(link: Link, handler: Callable[[Delivery, Place], Awaitable[Settlement]], **changes: Any) -> Consumer:
    """Make a consumer."""
    settings: dict[str, Any] = {
        "lanes": ["completion"],
        "concurrency": 4,
        "clock": RealClock(),
        "observer": Told(),
    }
    return Consumer(link, handler=handler, **(settings | changes))


@asynccontextmanager
async def running(link: Link, handler: Handler, **changes: Any) -> AsyncIterator[Consumer]:
    """Run a consumer, and take it down whatever happens."""
    consumer = make(link, handler, **changes)
    consumer.start()
    await until(lambda: consumer.consuming)
    yield consumer
    handler.free.set()
    await consumer.stop()
    await consumer.drain(5)


async def send_all(url: str, *bodies: bytes, key: str = "completion") -> None:
    """Publish several messages to a lane."""
    async with plain(url) as channel:
        exchange = await channel.get_exchange(JOBS)
        for body in bodies:
            await exchange.publish(aio_pika.Message(body, delivery_mode=2), routing_key=key)


async def test_a_delivery_is_handled_and_acknowledged(amqp_url: str) -> None:
    """The handler gets body, lane and properties; what it acknowledges is gone."""
    handler = Handler()
    handler.free.set()
    async with linked(amqp_url) as link:
        async with running(link, handler, lanes=["tool", "vision"]):
            await send_job(amqp_url, b"a", key="tool", message_id="m", headers={"h": 1}, reply_to="answers")
            await send_job(amqp_url, b"b", key="vision.high")
            await until(lambda: handler.finished == 2)
        first, second = handler.started
        assert (first.body, first.lane, first.high, first.redelivered) == (b"a", "tool", False, False)
        assert (first.message_id, first.headers, first.reply_to) == ("m", {"h": 1}, "answers")
        assert (second.body, second.lane, second.high) == (b"b", "vision", True)
        assert first.received_at.tzinfo
    assert await count(amqp_url, lane_queue("tool")) == 0


async def test_deliveries_change_hands_without_a_task_of_the_driver(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would make one for each, and remember it in two places."""
    made: list[str] = []
    create = aiormq.Channel.create_task

    def create_task(channel: aiormq.Channel, work: Any) -> Any:
        if channel.consumers:
            made.append(work.__qualname__)
        return create(channel, work)

    monkeypatch.setattr(aiormq.Channel, "create_task", create_task)
    handler = Handler()
    handler.free.set()
    async with linked(amqp_url) as link, running(link, handler):
        await send_all(amqp_url, b"first")
        await until(lambda: handler.finished == 1)
        made.clear()
        await send_all(amqp_url, *(b"%d" % number for number in range(5)))
        await until(lambda: handler.finished == 6)
        assert made == []


async def test_only_so_many_run_and_high_goes_first(amqp_url: str) -> None:
    """Two places, four deliveries: two run, and the next to start is the one of the high lane."""
    handler = Handler()
    async with linked(amqp_url) as link, running(link, handler, concurrency=2) as consumer:
        await send_all(amqp_url, b"1", b"2", b"3")
        await until(lambda: consumer.waiting == 1 and len(handler.started) == 2)
        await send_all(amqp_url, b"high", key="completion.high")
        await until(lambda: consumer.waiting == 2)
        assert handler.bodies == [b"1", b"2"]
        handler.free.set()
        await until(lambda: handler.finished == 4)
        assert handler.bodies[2] == b"high"


async def test_a_handler_may_go_on_without_its_delivery(amqp_url: str) -> None:
    """It gives up its place, then its delivery: the next one starts, and nothing comes again."""
    places: list[Place] = []
    end = asyncio.Event()

    async def handler(delivery: Delivery, place: Place) -> Settlement:
        places.append(place)
        await end.wait()
        return Settlement.ACK if delivery.body == b"3" else Settlement.REQUEUE

    async with linked(amqp_url) as link:
        settings: dict[str, Any] = {"concurrency": 1, "clock": RealClock(), "observer": Told()}
        consumer = Consumer(link, lanes=["completion"], handler=handler, **settings)
        consumer.start()
        await send_all(amqp_url, b"1", b"2", b"3")
        await until(lambda: len(places) == 1)
        places[0].leave()
        assert len(places) == 1  # the broker has the second one still
        places[0].settle(Settlement.ACK)
        await until(lambda: len(places) == 2)
        # Twice as many handlers as places: no more, whatever they have settled.
        places[1].settle(Settlement.ACK)
        await until(lambda: consumer.waiting == 1)
        assert (consumer.running, len(places)) == (2, 2)
        end.set()
        await until(lambda: len(places) == 3)
        await consumer.stop()
        await consumer.drain(5)
    # Those that were acknowledged were not handed back after all.
    assert await count(amqp_url, QUEUE) == 0


async def test_claims_go_ahead_of_places_but_work_does_not(amqp_url: str) -> None:
    """With short jobs a quarter more are begun than there are places; no more than the places are at work."""
    handler = QuickJobs()
    async with linked(amqp_url) as link:
        consumer = make(link, handler, concurrency=PLACES)
        await send_all(amqp_url, *[b"{}"] * 600)
        consumer.start()
        await until(lambda: handler.done == 600)
        await consumer.stop()
    assert (handler.most_at_work, handler.most_ahead) == (PLACES, AHEAD)
    assert await count(amqp_url, QUEUE) == 0


@pytest.mark.parametrize("grace", [20, 0.05])
async def test_drain_counts_those_that_wait_for_a_place(amqp_url: str, grace: float) -> None:
    """They are claimed: within the grace they get their places in turn, after it they are cancelled."""
    handler = QuickJobs()
    async with linked(amqp_url) as link:
        consumer = make(link, handler, concurrency=PLACES)
        await send_all(amqp_url, *[b"{}"] * 1000)
        consumer.start()
        await until(lambda: handler.most_ahead == AHEAD)
        handler.free.clear()
        await until(lambda: (handler.at_work, handler.begun) == (PLACES, PLACES + AHEAD))
        await consumer.stop()
        before = handler.done
        draining = asyncio.create_task(consumer.drain(grace))
        if grace > 1:
            handler.free.set()
        assert await draining == (0 if grace > 1 else PLACES + AHEAD)
        assert handler.done - before + handler.cancelled == PLACES + AHEAD
        assert handler.most_at_work == PLACES
    assert await count(amqp_url, QUEUE) == 1000 - handler.done


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


async def test_stop_hands_back_what_has_not_started(amqp_url: str) -> None:
    """After stop the waiting deliveries are in their queue again; the running ones finish."""
    handler = Handler()
    async with linked(amqp_url) as link:
        consumer = make(link, handler, concurrency=3)
        consumer.start()
        await send_all(amqp_url, b"1", b"2", b"3")
        await until(lambda: len(handler.started) == 3)
        await send_all(amqp_url, b"4", b"5", key="completion.high")
        await until(lambda: consumer.waiting == 2)
        await consumer.stop()
        assert consumer.waiting == 0
        await send_job(amqp_url, b"late")
        draining = asyncio.create_task(consumer.drain(20))
        handler.free.set()
        assert await draining == 0
        assert handler.bodies == [b"1", b"2", b"3"]
        assert await count(amqp_url, lane_queue("completion", high=True)) == 2
    assert await count(amqp_url, QUEUE) == 1


async def test_drain_cancels_what_takes_too_long(amqp_url: str) -> None:
    """After the grace a handler is cancelled; its delivery is in the queue again once the link is closed."""
    handler = Handler()
    async with linked(amqp_url) as link:
        consumer = make(link, handler)
        consumer.start()
        await send_job(amqp_url)
        await until(lambda: handler.started)
        await consumer.stop()
        assert await consumer.drain(0.05) == 1
        assert handler.cancelled == 1
    assert await count(amqp_url, QUEUE) == 1


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


async def test_a_paused_consumer_takes_and_starts_nothing(amqp_url: str) -> None:
    """While paused, what is here keeps waiting and what comes stays in the queue; then both are handled."""
    handler = Handler()
    async with linked(amqp_url) as link, running(link, handler, concurrency=1) as consumer:
        await send_job(amqp_url, b"1")
        await until(lambda: len(handler.started) == 1)
        await send_all(amqp_url, b"2", key="completion.high")
        await until(lambda: consumer.waiting == 1)
        await consumer.pause()
        assert not consumer.consuming
        await send_job(amqp_url, b"3")
        handler.free.set()
        await until(lambda: handler.finished == 1 and not consumer.running)
        assert consumer.waiting == 1
        assert await count(amqp_url, QUEUE) == 1
        consumer.resume()
        await until(lambda: handler.bodies == [b"1", b"2", b"3"])


async def test_a_requeue_verdict_hands_back(amqp_url: str) -> None:
    """What the handler wants requeued comes again at once."""
    handler = Handler()
    handler.verdict = Settlement.REQUEUE
    handler.free.set()
    async with linked(amqp_url) as link, running(link, handler):
        await send_job(amqp_url)
        await until(lambda: handler.finished >= 2)
        handler.verdict = Settlement.ACK


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
