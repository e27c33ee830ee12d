"""Token bucket arithmetic, without a clock: times come in, in seconds.

A limit of C units a minute admits, in every window of w seconds, C + C/60 x w
units. What is shared is the top of that bucket: a small burst above a `floor`,
so that the flow is even, workers may hold a little in hand, and OpenAI's own
count may differ a little. A large request goes into debt down to the floor's
bottom, and whoever comes after it waits until the debt is refilled: first come,
first served, whatever the size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

USED: Final = 0.99
"""The part of a limit that is used, so that what is lost comes back: a second's worth in 100 s.

At exactly the limit as much would flow into OpenAI's bucket as out of it. What it cannot hold
while requests are held up (a slow disk, a busy machine), or what its clock is slower than ours,
would be missing for good, until a limit that is kept by the second refuses a request.
"""
HANDFUL: Final = 5.0
"""Requests that may go at once, however low the limit a minute."""
_BURST_SECONDS: Final = 0.5
_SLACK_SECONDS: Final = 5.0
"""What workers may hold in hand together, and how far OpenAI's count may run ahead of ours."""
_TOLERATED: Final = 0.9
"""The part of the limit that OpenAI may count more than we do, before we slow down for it."""
UP_PER_SECOND: Final = 0.2
"""Where OpenAI has more than we think a level rises, every second, by so much of a second's refill."""

TRICKLE: Final = 0.0225
"""The part of its rate at which a bucket refills for a while once it is open after a refusal.

That is one request at 600 a minute. More would only take of the stock that gathers meanwhile while a
quota is cut, and the next refusal would come the sooner.
"""
GENTLE_SECONDS: Final = 4.7
"""For so long: the full speed is tried again within 5 s, and refused as rarely as that allows."""
LONGEST_GENTLE: Final = 60.0
REFUSED_SOON: Final = 1.5
"""A full speed that is refused within so many seconds is far too high: the next trickle is twice as long."""


@dataclass(frozen=True, slots=True)
class Size:
    """A limit of so many units a minute; at least `handful` units may go at once."""

    limit: float
    handful: float = 0.0
    rate: float = field(init=False)
    """Units a second."""
    burst: float = field(init=False)
    """Units that may go at once while nobody waits."""
    slack: float = field(init=False)
    """Units that are never counted on."""
    floor: float = field(init=False)
    """Units of the true bucket that lie below the shared level's zero."""

    def __post_init__(self) -> None:
        rate = USED * self.limit / 60
        burst = min(self.limit, max(self.handful, _BURST_SECONDS * rate))
        slack = _SLACK_SECONDS * rate
        values = {"rate": rate, "burst": burst, "slack": slack, "floor": max(0.0, self.limit - burst - slack)}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def threshold(self, units: float) -> float:
        """Return the level at which a request may start; never more than the burst, so it always comes."""
        return min(self.burst, max(min(units, self.burst), units - self.floor))


@dataclass(frozen=True, slots=True)
class Opening:
    """How a bucket refills after a refusal: not at all while `closed`, a trickle while `gentle`, then fully.

    Both are seconds from now until that ends; what is over is not above zero.
    """

    closed: float = 0.0
    gentle: float = 0.0

    def refilled(self, seconds: float) -> float:
        """Return how many seconds of full refill the next seconds bring."""
        if self.gentle <= 0:
            return seconds
        closed = max(0.0, self.closed)
        gentle = max(closed, self.gentle)
        return TRICKLE * max(0.0, min(seconds, gentle) - closed) + max(0.0, seconds - gentle)

    def until(self, refill: float) -> float:
        """Return the seconds until so many seconds of full refill have come."""
        if self.gentle <= 0:
            return refill
        closed = max(0.0, self.closed)
        if refill <= 0:
            return closed
        gentle = max(closed, self.gentle)
        trickled = TRICKLE * (gentle - closed)
        return closed + refill / TRICKLE if refill <= trickled else gentle + refill - trickled


OPEN: Final = Opening()


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


def starts(size: Size, level: float, needs: Iterable[float], opening: Opening = OPEN) -> list[float]:
    """Return for each of several requests, in their order, the seconds until it may start."""
    found: list[float] = []
    spent = last = 0.0
    for units in needs:
        last = max(last, opening.until((spent + size.threshold(units) - level) / size.rate))
        found.append(last)
        spent += units
    return found


def drift_told(size: Size, drift: float, gaps: Sequence[float]) -> float | None:
    """Return where the drift ought to be, None where it may stay.

    `drift` is the sum of all corrections that were made to a level because OpenAI
    counts differently: two readings can be compared by it. `gaps` are OpenAI's
    remaining units beyond those expected with no drift at all. OpenAI may have a
    little more than we think (that is the slack), or much less (that is the stock
    that an even flow never uses): only beyond these we follow. With a line the level is
    at zero while OpenAI's bucket may be full, which says nothing (that is the burst):
    followed, it would give away the margin that an even flow leaves.
    """
    if not gaps:
        return None
    gap = sum(gaps) / len(gaps)
    low, high = gap - size.slack - size.burst, gap + _TOLERATED * size.floor
    if drift < low:
        return low
    return high if drift > high else None
