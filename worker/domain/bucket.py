"""Token bucket arithmetic, without a clock: times come in, in seconds.

A limit of C units a minute admits, in every window of w seconds, C + C/60 x w
units. What is shared is the top of that bucket: a small burst above a `floor`,
so that the flow is even, workers may hold a little in hand, and OpenAI's own
count may differ a little. A large request goes into debt down to the floor's
bottom, and whoever comes after it waits until the debt is refilled: first come,
first served, whatever the size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

HANDFUL: Final = 5.0
"""Requests that may go at once, however low the limit a minute."""
_BURST_SECONDS: Final = 0.5
_SLACK_SECONDS: Final = 5.0
"""What workers may hold in hand together, and how far OpenAI's count may run ahead of ours."""
_TOLERATED: Final = 0.9
"""The part of the limit that OpenAI may count more than we do, before we slow down for it."""


@dataclass(frozen=True, slots=True)
class Size:
    """A limit of so many units a minute; at least `handful` units may go at once."""

    limit: float
    handful: float = 0.0

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.limit / 60

    @property
    def burst(self) -> float:
        """Units that may go at once while nobody waits."""
        return min(self.limit, max(self.handful, _BURST_SECONDS * self.rate))

    @property
    def slack(self) -> float:
        """Units that are never counted on."""
        return _SLACK_SECONDS * self.rate

    @property
    def floor(self) -> float:
        """Units of the true bucket that lie below the shared level's zero."""
        return max(0.0, self.limit - self.burst - self.slack)

    def threshold(self, units: float) -> float:
        """Return the level at which a request may start; never more than the burst, so it always comes."""
        return min(self.burst, max(min(units, self.burst), units - self.floor))


@dataclass(frozen=True, slots=True)
class Bucket:
    """A shared level. Below zero it is promised to requests whose start was told to their workers.

    `drift` is the sum of all corrections that were made because OpenAI counts
    differently: two readings can be compared by it.
    """

    level: float
    at: float
    drift: float = 0.0

    def drawn(self, size: Size, now: float, draw: "Draw") -> "Bucket":
        """Return the bucket after a draw; a clock that went back adds nothing."""
        elapsed = max(0.0, now - self.at)
        wished = draw.weight * (draw.drift - self.drift)
        # Down at once, up slowly: a burst that was not expected is worse than a second's delay.
        correction = min(wished, UP_PER_SECOND * size.rate * elapsed) - draw.extra
        level = min(size.burst, self.level + elapsed * size.rate + draw.unused + correction) - draw.units
        return replace(self, level=level, at=now, drift=self.drift + correction)


UP_PER_SECOND: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What a worker takes from one bucket, gives back, and says about it."""

    units: float = 0.0
    unused: float = 0.0
    """Reserved before, but not used."""
    drift: float = 0.0
    """Where the drift ought to be, believed to the degree of `weight`."""
    weight: float = 0.0
    extra: float = 0.0
    """Kept back so that a large request finds OpenAI's bucket full enough."""


def starts(size: Size, level: float, needs: Iterable[float]) -> list[float]:
    """Return for each of several requests, in their order, the seconds until it may start."""
    found: list[float] = []
    spent = last = 0.0
    for units in needs:
        last = max(last, (spent + size.threshold(units) - level) / size.rate)
        found.append(last)
        spent += units
    return found


def drift_told(size: Size, drift: float, gaps: Sequence[float]) -> float | None:
    """Return where the drift ought to be, None where it may stay.

    `gaps` are OpenAI's remaining units beyond those expected with no drift at all.
    OpenAI may have a little more than we think (that is the slack), or much less
    (that is the stock that an even flow never uses): only beyond these we follow.
    """
    if not gaps:
        return None
    gap = sum(gaps) / len(gaps)
    low, high = gap - size.slack, gap + _TOLERATED * size.floor
    if drift < low:
        return low
    return high if drift > high else None
