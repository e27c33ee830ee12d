"""A consumer that stays on its queue."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, cast

import aiormq
from aiormq.abc import ConsumerCallback, DeliveredMessage

from worker.adapters.rabbitmq.connection import SERVER, Link, pause
from worker.adapters.rabbitmq.trouble import DriverGuard, describe, end
from worker.domain.events import Broken, ServerTrouble
from worker.ports import Observer

_RPC_SECONDS: Final = 10
_CANCEL_SECONDS: Final = 3
"""How long stopping waits for a broker that may be as good as gone."""
_RENEW_SECONDS: Final = 20
"""Silence after which an idle consumer begins anew."""


class Subscription:
    """Consumes one queue, on a channel of its own, again after each loss of consumer, channel or connection.

    Messages come to `on_message`, in the order in which they were sent; it must not wait.
    """

    def __init__(
        self,
        link: Link,
        *,
        queue: str,
        on_message: Callable[[DeliveredMessage], None],
        observer: Observer,
        prefetch: int = 0,
        declare: Callable[[aiormq.Channel, str | None], Awaitable[str]] | None = None,
    ) -> None:
        """With `declare`, consume the queue that it makes and names, without acknowledging.

        Given the name of one that it has made, it only makes sure that messages find there.
        """
        self._link = link
        self.queue = queue
        self._on_message = on_message
        self._observer = observer
        self._prefetch = prefetch
        self._declare = declare
        self._declared: str | None = None
        self._channel: aiormq.Channel | None = None
        self._tag: str | None = None
        self._cancelled = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._in_trouble = False
        self._heard_at = 0.0

    @property
    def active(self) -> bool:
        """Whether, as far as we know, the broker has our consumer."""
        channel = self._channel
        return channel is not None and not channel.is_closed and self._tag in channel.consumers

    def start(self) -> None:
        """Consume from now on."""
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep_consuming(), name=f"consume {self.queue}")

    async def stop(self) -> None:
        """Consume no more. The channel stays open: what was delivered can still be settled."""
        if self._keeper:
            await end(self._keeper)
        if self._channel and self._tag and self.active:
            with suppress(Exception), DriverGuard():
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await self._channel.basic_cancel(self._tag)
        self._tag = None

    async def verify(self, probe: aiormq.Channel, *, idle: bool) -> None:
        """Ask, on a channel that this may cost, whether messages reach us; if not, begin anew.

        A queue that is deleted and made anew at once keeps our consumer in
        RabbitMQ 3.10, and gives its messages to it, but sends none of them. So one
        that is `idle`, with nothing to acknowledge, begins anew after a silence.
        Whoever calls this bounds its time.
        """
        if self.active and not await self._sound(probe, idle=idle):
            self._cancelled.set()

    async def _sound(self, probe: aiormq.Channel, *, idle: bool) -> bool:
        with suppress(aiormq.exceptions.ChannelNotFoundEntity):
            if self._declare:
                await self._declare(probe, self._declared)
                return True
            if idle and asyncio.get_running_loop().time() - self._heard_at > _RENEW_SECONDS:
                return False
            answer = await probe.queue_declare(self.queue, passive=True)
            return bool(answer.consumer_count)
        return False

    async def _keep_consuming(self) -> None:
        failures = 0
        while True:
            await self._link.ready()
            try:
                with DriverGuard():
                    async with asyncio.timeout(_RPC_SECONDS):
                        channel = await self._consume()
            except Exception as error:  # noqa: BLE001  whatever it is, the next try may succeed
                failures += 1
                self._tell(trouble=describe(error))
            else:
                failures = 0
                self._tell(trouble=None)
                await self._until_lost(channel)
            await asyncio.sleep(pause(failures))

    async def _consume(self) -> aiormq.Channel:
        channel = self._channel
        if channel is None or channel.is_closed:
            channel = self._channel = await self._link.channel()
            channel.on_consumer_cancel_callbacks.add(lambda _frame: self._cancelled.set())
            await channel.basic_qos(prefetch_count=self._prefetch)
            _without_tasks(channel)
        self._cancelled.clear()
        queue = self.queue
        if self._declare:
            queue = self._declared = await self._declare(channel, None)
        receive = cast("ConsumerCallback", self._receive)
        answer = await channel.basic_consume(queue, receive, no_ack=self._declare is not None)
        self._tag = tag = answer.consumer_tag
        if tag is not None:
            # As it is: the driver has wrapped it into a coroutine.
            channel.consumers[tag] = receive
        self._heard_at = asyncio.get_running_loop().time()
        return channel

    def _receive(self, message: DeliveredMessage) -> "_HandedOver":
        self._heard_at = asyncio.get_running_loop().time()
        try:
            self._on_message(message)
        except Exception as error:  # noqa: BLE001  raised further, an error of ours would cost the channel
            self._observer(Broken(key=None, where=f"consumer of {self.queue}", error=error))
        return _HANDED_OVER

    async def _until_lost(self, channel: aiormq.Channel) -> None:
        cancelled = asyncio.create_task(self._cancelled.wait())
        try:
            await asyncio.wait({channel.closing, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled.cancel()
        # A queue that is gone takes no acknowledgements: the attempt would close the channel as well.
        with suppress(Exception), DriverGuard():
            async with asyncio.timeout(_RPC_SECONDS):
                await channel.close()

    def _tell(self, *, trouble: str | None) -> None:
        if trouble is None and not self._in_trouble:
            return
        self._in_trouble = trouble is not None
        self._observer(ServerTrouble(server=f"{SERVER} {self.queue}", up=trouble is None, error=trouble))


class _HandedOver:
    """Stands for a task that is done."""

    def add_done_callback(self, _callback: Callable[[Any], object]) -> None:
        """Nobody is to be told: errors are caught where they happen."""


_HANDED_OVER: Final = _HandedOver()


def _without_tasks(channel: aiormq.Channel) -> None:
    """Keep a channel from making a task for each delivery, and from remembering it in two places.

    The delivery only changes hands; what handles it is a task of ours, whatever becomes of the channel.
    """
    create = channel.create_task

    def create_task(work: Any) -> Any:
        return work if work is _HANDED_OVER else create(work)

    channel.create_task = create_task  # type: ignore[assignment, method-assign]  # no other seam
