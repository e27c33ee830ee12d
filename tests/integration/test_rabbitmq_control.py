"""Cancel requests over a real broker."""

import asyncio

import aio_pika

from schemas.names import CANCEL_KEY, CONTROL
from tests.support.broker import HastyClock, RealClock, SteeredClock, Told, count, linked, plain, until
from tests.support.servers import Broker
from worker.adapters.rabbitmq import topology
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.control import CancelListener
from worker.adapters.rabbitmq.topology import CANCEL_QUEUE, DELIVERY_LIMIT
from worker.adapters.rabbitmq.watchdog import WATCH_SECONDS
from worker.domain.events import Broken, ServerTrouble
from worker.ports import Clock


class Worker:
    """A worker's side of cancelling."""

    def __init__(self, link: Link, clock: Clock | None = None) -> None:
        self.acted: list[bytes] = []
        self.heard: list[bytes] = []
        self.told = Told()
        self.failures = 0
        self.listener = CancelListener(
            link, on_cancel=self.act, on_heard=self.hear, clock=clock or RealClock(), observer=self.told
        )

    async def act(self, body: bytes) -> None:
        """Fail as often as told, then take note."""
        if self.failures:
            self.failures -= 1
            raise ValueError
        self.acted.append(body)

    def hear(self, body: bytes) -> None:
        """Take note."""
        self.heard.append(body)
        if body == b"bad":
            raise ValueError


async def cancel(url: str, body: bytes) -> None:
    """Send a request as any program would."""
    async with plain(url) as channel:
        exchange = await channel.get_exchange(CONTROL)
        await exchange.publish(aio_pika.Message(body, delivery_mode=2), routing_key=CANCEL_KEY)


async def test_every_worker_hears_and_one_acts(amqp_url: str) -> None:
    """A request is heard by all workers at once, and acted upon by exactly one."""
    async with linked(amqp_url) as link:
        workers = [Worker(link) for _ in range(3)]
        for worker in workers:
            worker.listener.start()
        await until(lambda: all(worker.listener.listening for worker in workers))
        await cancel(amqp_url, b"1")
        await until(lambda: all(worker.heard == [b"1"] for worker in workers))
        await until(lambda: sum(len(worker.acted) for worker in workers) == 1)
        await asyncio.gather(*(worker.listener.stop() for worker in workers))
    assert await count(amqp_url, CANCEL_QUEUE) == 0


async def test_a_request_waits_for_a_worker(amqp_url: str) -> None:
    """What was sent while nobody listened is acted upon by the next to listen."""
    async with linked(amqp_url) as link:
        await cancel(amqp_url, b"early")
        worker = Worker(link)
        worker.listener.start()
        await until(lambda: worker.acted == [b"early"])
        assert not worker.heard
        await worker.listener.stop()


async def test_listening_ends_at_any_moment(amqp_url: str) -> None:
    """Also while it begins: the driver may swallow a cancellation just as an answer comes in."""
    async with linked(amqp_url) as link, asyncio.timeout(30):
        for number in range(60):
            worker = Worker(link)
            worker.listener.start()
            await asyncio.sleep(number % 30 * 0.0003)  # another moment each time
            await worker.listener.stop()
            assert not worker.listener.listening


async def test_a_request_that_breaks_comes_again(amqp_url: str) -> None:
    """An error while acting is told, and the request tried again; an error while hearing stops nothing."""
    async with linked(amqp_url) as link:
        worker = Worker(link, HastyClock())
        worker.failures = DELIVERY_LIMIT + 1
        worker.listener.start()
        await until(lambda: worker.listener.listening)
        await cancel(amqp_url, b"bad")
        await until(lambda: worker.acted == [b"bad"])
        await cancel(amqp_url, b"good")
        await until(lambda: worker.heard == [b"bad", b"good"])
        await worker.listener.stop()
    assert len(worker.told.of(Broken)) == DELIVERY_LIMIT + 2


async def test_queues_that_are_deleted_are_listened_to_again(amqp_url: str) -> None:
    """Both the queue of all workers and a worker's own."""
    async with linked(amqp_url) as link:
        worker = Worker(link)
        worker.listener.start()
        await until(lambda: worker.listener.listening)
        shared, own = worker.listener._subscriptions
        before = own._declared
        assert before
        channel = await link.channel()
        for queue in (CANCEL_QUEUE, before):
            await channel.queue_delete(queue)
        await until(lambda: not shared.active and own._declared != before)
        await topology.apply(link)
        await until(lambda: worker.listener.listening)
        await cancel(amqp_url, b"1")
        await until(lambda: worker.acted == worker.heard == [b"1"])
        await worker.listener.stop()


async def test_bindings_that_are_gone_are_made_again(amqp_url: str) -> None:
    """The exchange is deleted and made anew: the watch finds that nothing would reach us any more."""
    clock = SteeredClock()
    async with linked(amqp_url) as link:
        worker = Worker(link, clock)
        worker.listener.start()
        await until(lambda: worker.listener.listening)
        await (await link.channel()).exchange_delete(CONTROL)
        await topology.apply(link)
        assert clock.slept == [WATCH_SECONDS]
        clock.wake()
        await until(lambda: len(clock.slept) == 2)
        await cancel(amqp_url, b"1")
        await until(lambda: worker.acted == worker.heard == [b"1"])
        await worker.listener.stop()


async def test_without_its_exchange_nothing_is_left_behind(broker: Broker) -> None:
    """While there is no exchange to listen to, trying again makes no queue upon queue."""
    async with linked(broker.url) as link:
        await (await link.channel()).exchange_delete(CONTROL)
        worker = Worker(link)
        worker.listener.start()
        await until(lambda: worker.told.of(ServerTrouble))
        own = worker.listener._subscriptions[1]
        assert own._declared is None
        assert not worker.listener.listening
        await topology.apply(link)
        await until(lambda: worker.listener.listening)
        await worker.listener.stop()
