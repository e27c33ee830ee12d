"""How long a job may still work."""

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
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
        if not self._stopped and self._scope is not None:
            self._scope.reschedule(-1)
        self._stopped = True

    def check(self) -> None:
        """Raise StoppedError after `stop`."""
        if self._stopped:
            raise StoppedError

    def spending(self, *, bounded: bool = False) -> AbstractAsyncContextManager[None]:
        """Count what happens inside as work. Raises StoppedError.

        With `bounded`, raises TimeoutError when the budget is spent; else what is inside ends by then itself.
        """
        return _Spending(self, asyncio.timeout(max(self.left, 0) if bounded else None))

    def begin(self, scope: asyncio.Timeout) -> None:
        """Start to work in a scope that `stop` ends. Raises StoppedError."""
        self.check()
        self._scope = scope

    def end(self, spent: float) -> None:
        """Note so many seconds of work."""
        self._scope = None
        self.left -= spent
        self.worked += spent


class _Spending:
    """A stretch of work."""

    __slots__ = ("_began", "_scope", "_work")

    def __init__(self, work: WorkTime, scope: asyncio.Timeout) -> None:
        self._work = work
        self._scope = scope
        self._began = 0.0

    async def __aenter__(self) -> None:
        self._work.begin(self._scope)
        self._began = asyncio.get_running_loop().time()
        await self._scope.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
            if isinstance(error, TimeoutError):
                self._work.check()
        except TimeoutError:
            self._work.check()
            raise
        finally:
            self._work.end(asyncio.get_running_loop().time() - self._began)
