"""The event loop's own time."""

import asyncio
from datetime import UTC, datetime


class LoopClock:
    """A clock that the loop's timers agree with."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SkippingClock(LoopClock):
    """The same, but for what a test leaves out: the timers that run go on as if nothing had happened."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._skipped

    def skip(self, seconds: float) -> None:
        """Be so many seconds later."""
        self._skipped += seconds
