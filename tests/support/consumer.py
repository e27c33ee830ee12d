"""A consumer under test: how it is run, and handlers that wait for the test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika

from schemas.names import JOBS, lane_queue
from tests.support.broker import RealClock, Told, plain, until
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.consumer import Consumer
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
