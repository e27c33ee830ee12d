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
