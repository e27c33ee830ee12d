"""What becomes of a message whose handler breaks: an error of ours, not of the job nor of a server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from worker.adapters.rabbitmq.trouble import DriverGuard
from worker.domain.events import Broken
from worker.ports import Clock, Observer, Settlement

Subject = TypeVar("Subject")

BROKEN_PAUSE: Final = 10.0
"""Seconds that a message is held whose handler broke: else it would come back, and break, in a hot loop."""
BROKEN_IN_A_ROW: Final = 5


def _nothing() -> None: ...


class Fuse:
    """Runs handlers. A message that breaks by itself is handed back, and in the end given up by the broker.

    But where all of them break, it is we who are broken, and to hand them back
    would empty the queues into the dead. Blown, the fuse keeps what has broken,
    which leaves fewer and fewer places for more, and tries one at a time until
    one goes through.
    """

    def __init__(self, *, where: str, clock: Clock, observer: Observer) -> None:
        self._where = where
        self._clock = clock
        self._observer = observer
        self._in_a_row = 0
        self._trial = asyncio.Lock()

    @property
    def blown(self) -> bool:
        """Whether so many messages broke in a row that nothing seems to work."""
        return self._in_a_row >= BROKEN_IN_A_ROW

    async def judge(
        self,
        handler: Callable[[Subject], Awaitable[Settlement]],
        subject: Subject,
        broken: Callable[[], None] = _nothing,
    ) -> Settlement:
        """Return a handler's verdict; where it breaks, have the message handed back a little later.

        `broken` is called each time, before the message is held.
        """
        settlement = await self._tried(handler, subject)
        if settlement is None:
            broken()
            await self._clock.sleep(BROKEN_PAUSE)
        while settlement is None and self.blown:
            settlement = await self._tried_in_turn(handler, subject, broken)
        return settlement or Settlement.REQUEUE

    async def _tried_in_turn(
        self,
        handler: Callable[[Subject], Awaitable[Settlement]],
        subject: Subject,
        broken: Callable[[], None],
    ) -> Settlement | None:
        async with self._trial:
            if not self.blown:  # any more, since another one went through
                return None
            settlement = await self._tried(handler, subject)
            if settlement is None:
                broken()
                await self._clock.sleep(BROKEN_PAUSE)
            return settlement

    async def _tried(
        self, handler: Callable[[Subject], Awaitable[Settlement]], subject: Subject
    ) -> Settlement | None:
        try:
            with DriverGuard():
                settlement = await handler(subject)
        except Exception as error:  # noqa: BLE001  any error of ours ends here, and is told
            self._in_a_row += 1
            self._observer(Broken(key=None, where=self._where, error=error))
            return None
        self._in_a_row = 0
        return settlement
