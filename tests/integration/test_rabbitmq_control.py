"""Cancel requests over a real broker."""

import asyncio

import aio_pika

from schemas.names import CANCEL_KEY, CONTROL
from tests.support.broker import RealClock, Told, count, linked, plain, until
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.control import CancelListener
from worker.adapters.rabbitmq.topology import CANCEL_QUEUE
from worker.domain.events import Broken


class Worker:
    """A worker's side of cancelling."""

    def __init__(self, link: Link) -> None:
        self.acted: list[bytes] = []
        self.heard: list[bytes] = []
        self.told = Told()
        self.failures = 0
        self.listener = CancelListener(
            link, on_cancel=self.act, on_heard=self.hear, clock=RealClock(), observer=self.told
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


async def test_a_request_that_breaks_comes_again(amqp_url: str) -> None:
    """An error while acting is told, and the request comes back; an error while hearing stops nothing."""
    async with linked(amqp_url) as link:
        worker = Worker(link)
        worker.failures = 1
        worker.listener.start()
        await until(lambda: worker.listener.listening)
        await cancel(amqp_url, b"bad")
        await until(lambda: worker.acted == [b"bad"])
        await cancel(amqp_url, b"good")
        await until(lambda: worker.heard == [b"bad", b"good"])
        await worker.listener.stop()
    assert len(worker.told.of(Broken)) == 2
