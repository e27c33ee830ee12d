"""Cancel requests, as they come over the control exchange."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import aiormq
from aiormq.abc import DeliveredMessage

from schemas.names import CANCEL_KEY, CONTROL
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.fuse import Fuse
from worker.adapters.rabbitmq.settling import settle
from worker.adapters.rabbitmq.subscription import Subscription
from worker.adapters.rabbitmq.topology import CANCEL_QUEUE
from worker.adapters.rabbitmq.watchdog import Watchdog
from worker.domain.events import Broken
from worker.ports import Clock, Observer, Settlement

_PREFETCH: Final = 16
_STOP_SECONDS: Final = 5


class CancelListener:
    """Hands each cancel request to one worker to act upon, and to every worker to hear.

    `on_cancel` is awaited by one worker, again by another should that one die
    over it; it keeps requests for jobs that wait. `on_heard` is called at once
    in each worker that is running now, for the jobs in its hands.
    """

    def __init__(
        self,
        link: Link,
        *,
        on_cancel: Callable[[bytes], Awaitable[None]],
        on_heard: Callable[[bytes], None],
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._link = link
        self._on_cancel = on_cancel
        self._on_heard = on_heard
        self._observer = observer
        self._fuse = Fuse(where="cancel", clock=clock, observer=observer)
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions = (
            Subscription(
                link, queue=CANCEL_QUEUE, prefetch=_PREFETCH, on_message=self._arrived, observer=observer
            ),
            Subscription(
                link, queue=CONTROL, declare=_own_queue, on_message=self._overheard, observer=observer
            ),
        )
        self._watchdog = Watchdog(link, self._subscriptions, idle=lambda _: not self._tasks, clock=clock)

    @property
    def listening(self) -> bool:
        """Whether requests reach us."""
        return all(one.active for one in self._subscriptions)

    def start(self) -> None:
        """Begin to listen; with the broker away, as soon as it is back."""
        for one in self._subscriptions:
            one.start()
        self._watchdog.start()

    async def stop(self) -> None:
        """Listen no more; a request that is not dealt with soon goes back to the others."""
        self._watchdog.stop()
        await asyncio.gather(*(one.stop() for one in self._subscriptions))
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)
            for task in late:
                task.cancel()

    def _arrived(self, message: DeliveredMessage) -> None:
        task = asyncio.create_task(self._deal_with(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deal_with(self, message: DeliveredMessage) -> None:
        settle(self._link, message, await self._fuse.judge(self._act, message.body))

    async def _act(self, body: bytes) -> Settlement:
        await self._on_cancel(body)
        return Settlement.ACK

    def _overheard(self, message: DeliveredMessage) -> None:
        try:
            self._on_heard(message.body)
        except Exception as error:  # noqa: BLE001  an error of ours must not end the listening
            self._observer(Broken(key=None, where="cancel", error=error))


async def _own_queue(channel: aiormq.Channel, name: str | None) -> str:
    """Make a queue that lasts as long as its consumer; for one that is there, only its binding."""
    if name is None:
        # Without the exchange, the queue would stay behind: it goes with a consumer, which it never had.
        await channel.exchange_declare(CONTROL, passive=True)
        answer = await channel.queue_declare(exclusive=True, auto_delete=True)
        name = answer.queue or ""
    await channel.queue_bind(name, CONTROL, CANCEL_KEY)
    return name
