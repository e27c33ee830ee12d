"""The shared bucket on a clock of the caller's: what the database has to compute, in plain arithmetic."""

from dataclasses import dataclass, replace

from worker.domain.bucket import (
    GENTLE_SECONDS,
    LONGEST_GENTLE,
    REFUSED_SOON,
    TRICKLE,
    UP_PER_SECOND,
    Draw,
    Opening,
    Size,
)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A level at a time. Below zero it is promised to requests whose start was told to their workers.

    `drift` is the sum of all corrections that were made because OpenAI counts
    differently, or because it had refused a request.
    """

    level: float
    at: float
    drift: float = 0.0

    def drawn(self, size: Size, now: float, draw: Draw, opening: Opening | None = None) -> "Bucket":
        """Return the bucket after a draw; `opening` is as of `at`. A clock that went back adds nothing."""
        elapsed = max(0.0, now - self.at)
        refill = elapsed if opening is None else opening.refilled(elapsed)
        held_back = 0.0
        if opening is not None and opening.gentle > 0:
            trickling = max(0.0, min(elapsed, opening.gentle) - max(0.0, opening.closed))
            held_back = (1 - TRICKLE) * trickling * size.rate
        wished = draw.weight * (draw.drift - self.drift)
        # Down at once, up slowly: a burst that was not expected is worse than a second's delay.
        correction = min(wished, UP_PER_SECOND * size.rate * elapsed) - draw.extra
        most = size.burst if opening is None or elapsed >= opening.gentle else 0.0
        level = min(most, self.level + refill * size.rate + draw.unused + correction) - draw.units
        return replace(self, level=level, at=now, drift=self.drift + correction - held_back)

    def closed(self) -> "Bucket":
        """Return the bucket after a refusal: it begins anew with nothing."""
        return replace(self, level=min(0.0, self.level))


@dataclass(frozen=True, slots=True)
class Shutter:
    """When a gate opens after refusals, and when it is back at its full speed."""

    closed_until: float = 0.0
    gentle_until: float = 0.0
    gentle_seconds: float = 0.0
    closings: int = 0

    def opening(self, now: float) -> Opening:
        """Return what is left of it."""
        return Opening(self.closed_until - now, self.gentle_until - now)

    def refused(self, now: float, seconds: float, *, after: int) -> "Shutter":
        """Return it after a refusal to a worker that knew of so many."""
        gentle = max(GENTLE_SECONDS, self.gentle_seconds)
        again = after == self.closings
        if again and now < self.gentle_until + REFUSED_SOON:
            gentle = min(LONGEST_GENTLE, 2 * gentle)
        elif again and now >= self.gentle_until + self.gentle_seconds:
            gentle = GENTLE_SECONDS
        closed_until = max(self.closed_until, now + seconds)
        return Shutter(closed_until, closed_until + gentle, gentle, self.closings + again)
