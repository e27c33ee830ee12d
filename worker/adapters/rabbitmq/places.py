"""How many jobs are at work at a time, and how many are claimed before a place is free."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_WINDOW_SECONDS: Final = 0.5
_SILENCE_SECONDS: Final = 1.0
"""A window that lasts so long says nothing of what comes: nobody has left for half a second."""
_UNEVEN: Final = 2
"""Jobs come and go in waves of a commit each: as many again are needed where the waves do not meet."""
_LEAST: Final = 4
"""Fewer are not worth it: a slow commit looks like one or two, and they are in doubt if the worker dies."""


class Places:
    """A line at so many places. Those in it are claimed already, and only as many as will soon be let in."""

    def __init__(self, limit: int, *, monotonic: Callable[[], float], on_room: Callable[[], None]) -> None:
        self.inside = 0
        """How many are at work."""
        self.begun = 0
        """How many are claimed, wait or work."""
        self._limit = limit
        self._monotonic = monotonic
        self._on_room = on_room
        self._line: deque[asyncio.Future[None]] = deque()
        self._lead = Lead(limit // 4, monotonic())

    def has_room(self) -> bool:
        """Whether one more may be claimed."""
        more = self.begun - self._limit
        return more < 0 or more < self._lead.ahead(self._monotonic())

    def begin(self) -> float:
        """Count one that is about to be claimed; return the time."""
        self.begun += 1
        return self._monotonic()

    def end(self) -> None:
        """Count it no more."""
        self.begun -= 1
        self._on_room()

    async def enter(self, began: float) -> None:
        """Take a place, first come, first served; who is cancelled has none."""
        self._lead.entered(self._monotonic() - began)
        if self.inside < self._limit:
            self.inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._pass_on()  # it was this one's turn at the same moment
            raise

    def leave(self) -> None:
        """Give a place up."""
        self._lead.left(self._monotonic())
        self._pass_on()

    def _pass_on(self) -> None:
        """Hand a place over, so that nobody who comes meanwhile takes it."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1


class Stay:
    """The way of one job through a place."""

    __slots__ = ("_began", "_begun", "_inside", "_places")

    def __init__(self, places: Places) -> None:
        self._places = places
        self._began = 0.0
        self._begun = self._inside = False

    def begin(self) -> None:
        """Count from now on."""
        if not self._begun:
            self._begun, self._began = True, self._places.begin()

    async def enter(self) -> None:
        """Wait for a place; who has one keeps it."""
        self.begin()  # it may have left, and be tried once more
        if not self._inside:
            await self._places.enter(self._began)
            self._inside = True

    def step_back(self) -> None:
        """Give up the place, and count all the same."""
        if self._inside:
            self._inside = False
            self._places.leave()

    def leave(self) -> None:
        """Give up the place, if there is one, and count no more."""
        self.step_back()
        if self._begun:
            self._begun = False
            self._places.end()


class Lead:
    """How many are to be claimed ahead, by Little's law: those that leave in the time that a claim takes.

    With long calls that is nobody. So a job is seldom claimed, and its first attempt
    on record, long before it can start.
    """

    __slots__ = ("_ahead", "_claimed", "_left", "_most", "_seconds", "_since")

    def __init__(self, most: int, now: float) -> None:
        self._most = most
        self._ahead = 0
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._since = now
        self._left = self._claimed = 0
        self._seconds = 0.0

    def entered(self, seconds: float) -> None:
        """Note how long a claim took."""
        self._claimed += 1
        self._seconds += seconds

    def left(self, now: float) -> None:
        """Note that a place became free."""
        self._left += 1
        elapsed = now - self._since
        if elapsed >= _WINDOW_SECONDS:
            self._ahead = self._needed(elapsed)
            self._begin(now)

    def ahead(self, now: float) -> int:
        """Return how many may be claimed beyond the places."""
        return self._ahead if now - self._since < _SILENCE_SECONDS else 0

    def _needed(self, elapsed: float) -> int:
        if elapsed >= _SILENCE_SECONDS or not self._claimed:
            return 0
        claim = self._seconds / self._claimed
        needed = min(int(_UNEVEN * claim * self._left / elapsed), self._most)
        return needed if needed >= _LEAST else 0
