"""Whether a limit is open: closed after a refusal, paused by an operator."""

import math
from dataclasses import dataclass
from typing import Final

from worker.domain.bucket import OPEN, Opening
from worker.domain.quota import Glance, Grant

_SHORTEST: Final = 0.3
"""With the trickle that follows five seconds: nothing is gained by being back at full speed any sooner."""
_WARY: Final = 60.0
"""Seconds at full speed without a refusal before another one is unlikely."""


@dataclass(frozen=True, slots=True)
class Closing:
    """What the other workers have to be told of a refusal."""

    seconds: float = 0.0
    reason: str = ""
    after: int = -1


_NO_NEWS = Closing()


@dataclass(eq=False, slots=True)
class Door:
    """The state of one gate, as far as this worker knows. Times are monotonic seconds."""

    closed_until: float = 0.0
    closed_for: str = ""
    paused: bool = False
    fresh: bool = True
    """Until the first answer, which may say that it is closed."""
    wary_until: float = 0.0
    shut_at: float = -math.inf
    """When this worker last heard that it was closed: what was admitted before may not leave any more."""
    behind: bool = False
    """It was closed, but nothing else is known yet."""
    missed: bool = False
    """Whether it was closed and open again before the last answer."""
    news: Closing | None = None
    _telling: Closing | None = None
    _known: int = 0
    """How many closings there were."""
    _tried: bool = True
    """Whether a request has begun since it was last closed: a refusal of an older one says nothing new."""

    def is_closed(self, now: float) -> bool:
        """Whether nobody may go."""
        return self.paused or now < self.closed_until

    def begun(self) -> None:
        """Note that a request goes through."""
        self._tried = True

    def close(self, now: float, seconds: float, reason: str) -> None:
        """Close it, and have the others told: not before they have heard of it does it open again."""
        seconds = max(seconds, _SHORTEST)
        if self.news is None or seconds > self.news.seconds:
            after = self._known if self._tried else self.news.after if self.news else -1
            self.news = Closing(seconds, reason, after)
        self.shut(now, seconds, reason)

    def shut(self, now: float, seconds: float, reason: str) -> None:
        """Close it here."""
        self._tried, self.shut_at = False, now
        if now + seconds > self.closed_until:
            self.closed_until, self.closed_for = now + seconds, reason

    def look(self, glance: Glance, now: float) -> bool:
        """Take in a glance at it; True where that is news, and the rest has to be asked for."""
        was_paused, self.paused = self.paused, glance.paused
        closed = not self.fresh and glance.closings > self._known
        if closed:
            self._known = glance.closings
            self.shut(now, _SHORTEST, self.closed_for)
        self.behind |= closed or self.paused is not was_paused
        return closed or self.paused

    def take_news(self) -> Closing:
        """Return what has to be told with the next order."""
        self._telling, self.news = self.news, None
        return self._telling or _NO_NEWS

    def take_back(self) -> None:
        """Undo that: the order was not answered."""
        self.news = self.news or self._telling

    def take_in(self, grant: Grant, now: float) -> Opening:
        """Take in the answer; return how the buckets refill from now on."""
        self.missed = grant.closings > self._known and not self.fresh and grant.closed_seconds <= 0
        if self.missed:
            self.shut_at = now
        self.fresh = self.behind = False
        self.paused = grant.paused
        self._known = grant.closings
        self.wary_until = now + grant.gentle_seconds + _WARY
        if grant.closed_seconds > 0 or grant.paused:
            self.shut(now, grant.closed_seconds, grant.closed_for)
        elif self.news is None:
            self.closed_until = min(self.closed_until, now)  # it may have been opened by an operator
        return Opening(grant.closed_seconds, grant.gentle_seconds) if grant.gentle_seconds > 0 else OPEN
