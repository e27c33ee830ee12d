"""Token bucket arithmetic, without a clock: times come in, in seconds."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Bucket:
    """Holds at most `capacity` units and gains `rate` units a second.

    In every window of w seconds it admits at most capacity + rate x w. The level
    may fall below zero when a request used more than was reserved for it.
    """

    capacity: float
    rate: float
    level: float
    at: float

    @classmethod
    def per_minute(cls, units: float, now: float) -> "Bucket":
        """Return a full bucket for a limit of that many units a minute."""
        return cls(capacity=units, rate=units / 60, level=units, at=now)

    def refilled(self, now: float) -> "Bucket":
        """Return the bucket as of now; a clock that went back changes nothing."""
        if now <= self.at:
            return self
        return replace(self, level=min(self.capacity, self.level + (now - self.at) * self.rate), at=now)

    def wait(self, units: float) -> float:
        """Return the seconds until that many units are there; infinite if they never will be."""
        if units > self.capacity:
            return math.inf
        return max(0.0, (units - self.level) / self.rate)

    def take(self, units: float) -> "Bucket":
        """Return the bucket without these units."""
        return replace(self, level=self.level - units)

    def give_back(self, units: float) -> "Bucket":
        """Return the bucket with unused units back in it."""
        return replace(self, level=min(self.capacity, self.level + units))
