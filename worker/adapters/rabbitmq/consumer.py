"""Takes deliveries from the lanes and has them handled, so many at a time."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Final

from aiormq.abc import DeliveredMessage

from schemas.names import lane_queue
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.fuse import Fuse
from worker.adapters.rabbitmq.messages import delivery_of
from worker.adapters.rabbitmq.places import Places, Stay
from worker.adapters.rabbitmq.settling import settle
from worker.adapters.rabbitmq.subscription import Subscription
from worker.adapters.rabbitmq.turnstile import Turnstile
from worker.adapters.rabbitmq.watchdog import Watchdog
from worker.ports import Clock, Delivery, Handler, Observer, Settlement

_CANCEL_SECONDS: Final = 5
_SETTLING_SECONDS: Final = 0.1
"""A quorum queue forgets what it has not applied of a burst of acknowledgements when their channel goes."""


class _Held(Stay):
    """A delivery that is here; the port Place."""

    __slots__ = ("_link", "_settled", "delivery", "message", "queue")

    def __init__(
        self, delivery: Delivery, message: DeliveredMessage, queue: str, places: Places, link: Link
    ) -> None:
        super().__init__(places)
        self.delivery = delivery
        self.message = message
        self.queue = queue
        self._link = link
        self._settled = False

    def settle(self, settlement: Settlement) -> None:
        if not self._settled:
            self._settled = True
            settle(self._link, self.message, settlement)


class Consumer:
    """Handles deliveries in tasks of its own: a channel that closes cancels no handler.

    Each queue may have as many deliveries with us as there are places, so that
    one busy lane alone can fill them all, and half as many more: a quarter for those
    that are claimed ahead of a place, another for those that have left theirs but are
    not settled. What has not begun waits in the turnstile. Handlers may go on with
    their delivery settled; no more of them than twice the places, so that a broker
    that confirms nothing gets no more to confirm.
    """

    def __init__(
        self,
        link: Link,
        *,
        lanes: Iterable[str],
        concurrency: int,
        handler: Handler,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._link = link
        self._handler = handler
        self._clock = clock
        self._fuse = Fuse(where="consumer", clock=clock, observer=observer)
        self._turnstile: Turnstile[_Held] = Turnstile()
        self._places = Places(concurrency, monotonic=clock.monotonic, on_room=self._let_in)
        self._most = 2 * concurrency
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: Counter[str] = Counter()
        """Deliveries of each queue that are here."""
        self._letting_in = False
        self._subscriptions = [
            Subscription(
                link,
                queue=lane_queue(lane, high=high),
                prefetch=concurrency + concurrency // 2,
                on_message=partial(self._arrived, lane=lane, high=high),
                observer=observer,
            )
            for lane in lanes
            for high in (True, False)
        ]
        self._watchdog = Watchdog(
            link, self._subscriptions, idle=lambda one: not self._held[one.queue], clock=clock
        )

    @property
    def consuming(self) -> bool:
        """Whether every queue has our consumer."""
        return self._link.healthy and all(one.active for one in self._subscriptions)

    @property
    def broken(self) -> bool:
        """Whether one delivery after the other ends in an error of ours."""
        return self._fuse.blown

    @property
    def running(self) -> int:
        """How many handlers run."""
        return len(self._tasks)

    @property
    def waiting(self) -> int:
        """How many deliveries are here, but have not started."""
        return self._turnstile.waiting

    def start(self) -> None:
        """Begin to consume, or again after a pause; with the broker away, as soon as it is back."""
        self._letting_in = True
        for one in self._subscriptions:
            one.start()
        self._watchdog.start()
        self._let_in()

    resume = start

    async def pause(self) -> None:
        """Take nothing more and begin nothing more; what has not begun stays here."""
        self._letting_in = False
        self._watchdog.stop()
        await asyncio.gather(*(one.stop() for one in self._subscriptions))

    async def stop(self) -> None:
        """Take nothing more, and hand back what has not started."""
        await self.pause()
        for one in self._turnstile.clear():
            self._held[one.queue] -= 1
            one.settle(Settlement.REQUEUE)

    async def drain(self, grace: float) -> int:
        """Wait for the running handlers; after `grace` seconds cancel the rest, and return how many.

        Those that wait for a place are among them, since their jobs are claimed. What
        they held goes back to its queue when the connection closes.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_CANCEL_SECONDS)
        await asyncio.sleep(_SETTLING_SECONDS)
        return len(left)

    def _arrived(self, message: DeliveredMessage, *, lane: str, high: bool) -> None:
        delivery = delivery_of(
            message, lane=lane, high=high, received_at=self._clock.now(), user=self._link.user
        )
        queue = lane_queue(lane, high=high)
        self._held[queue] += 1
        held = _Held(delivery, message, queue, self._places, self._link)
        self._turnstile.arrive(held, lane=lane, high=high)
        self._let_in()

    def _let_in(self) -> None:
        while (
            self._letting_in
            and len(self._tasks) < self._most
            and self._places.has_room()
            and (one := self._turnstile.let_in())
        ):
            if one.message.channel.is_closed:
                # The broker delivers it again; started now, the job would run twice at a time.
                self._held[one.queue] -= 1
                continue
            one.begin()
            task = asyncio.create_task(self._handle(one))
            self._tasks.add(task)
            task.add_done_callback(partial(self._done, one))

    def _done(self, one: _Held, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._held[one.queue] -= 1
        one.leave()
        self._let_in()

    async def _handle(self, one: _Held) -> None:
        def handler(delivery: Delivery) -> Awaitable[Settlement]:
            return self._handler(delivery, one)

        # While the fuse holds it another may work, but none is begun in its stead.
        one.settle(await self._fuse.judge(handler, one.delivery, broken=one.step_back))
