"""Deliveries from a real broker: their start, their order, and their settlement."""

import asyncio
from typing import Any

import aiormq
import pytest

from schemas.names import lane_queue
from tests.support.broker import RealClock, Told, count, linked, send_job, until
from tests.support.consumer import AHEAD, PLACES, QUEUE, Handler, QuickJobs, make, running, send_all
from worker.adapters.rabbitmq.consumer import Consumer
from worker.ports import Delivery, Place, Settlement


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
