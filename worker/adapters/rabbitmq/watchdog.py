"""Looks, every few seconds, whether consumers are still on their queues."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.subscription import Subscription
from worker.adapters.rabbitmq.trouble import DriverGuard
from worker.ports import Clock

WATCH_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 30


class Watchdog:
    """Has those that are lost begin anew. `idle` tells whether nothing of a queue is in our hands."""

    def __init__(
        self,
        link: Link,
        subscriptions: Sequence[Subscription],
        *,
        idle: Callable[[Subscription], bool],
        clock: Clock,
    ) -> None:
        self._link = link
        self._subscriptions = subscriptions
        self._idle = idle
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch from now on."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="consumer watchdog")

    def stop(self) -> None:
        """Watch no more."""
        if self._task:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(WATCH_SECONDS)
            # A connection in trouble ends the round; its link, and the subscriptions, take care of that.
            with suppress(Exception), DriverGuard():
                async with asyncio.timeout(_PROBE_SECONDS):
                    await self._verify_all()

    async def _verify_all(self) -> None:
        probe = await self._link.channel()
        for one in self._subscriptions:
            if probe.is_closed:
                probe = await self._link.channel()
            await one.verify(probe, idle=self._idle(one))
        await probe.close()
