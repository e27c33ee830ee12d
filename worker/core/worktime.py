"""How long a job may still work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

_LEAST: Final = 0.005


class StoppedError(Exception):
    """Somebody asked for the job to be cancelled."""


class WorkTime:
    """A budget of seconds that runs only while work is done, and that can be cut short from outside.

    Waiting for limits, for the database and between attempts is not work.
    """

    def __init__(self, seconds: float, *, worked: float = 0) -> None:
        self.left = seconds
        self.worked = worked
        """Seconds spent so far, under earlier claims too."""
        self._stopped = False
        self._scope: asyncio.Timeout | None = None

    @property
    def is_over(self) -> bool:
        """Whether too little is left to begin anything: timers are exact to a few milliseconds."""
        return self.worked > 0 and self.left < _LEAST

    def stop(self) -> None:
        """End the work that is going on, and all that would begin."""
        self._stopped = True
        if self._scope is not None:
            self._scope.reschedule(-1)

    def check(self) -> None:
        """Raise StoppedError after `stop`."""
        if self._stopped:
            raise StoppedError

    @contextlib.asynccontextmanager
    async def spending(self, *, bounded: bool = False) -> AsyncIterator[None]:
        """Count what happens inside as work. Raises StoppedError.

        With `bounded`, raises TimeoutError when the budget is spent; else what is inside ends by then itself.
        """
        self.check()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(max(self.left, 0) if bounded else None) as self._scope:
                yield
        except TimeoutError:
            self.check()
            raise
        finally:
            self._scope = None
            spent = loop.time() - began
            self.left -= spent
            self.worked += spent
