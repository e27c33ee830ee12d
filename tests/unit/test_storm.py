"""How often a quota that was cut refuses: bucket, trickle and door on a fake clock, as one line sees them."""

from dataclasses import dataclass, field
from random import Random

import pytest

from tests.support.bucket import Bucket, Shutter
from worker.core.door import Door
from worker.domain.bucket import GENTLE_SECONDS, HANDFUL, Draw, Size, starts
from worker.domain.retry import backoff_seconds

SIZE = Size(600, HANDFUL)
CUT = 60.0
"""Seconds for which only half is granted."""


@dataclass
class Cut:
    """OpenAI's bucket while its quota is halved: it begins with nothing, and asks for what it lacks."""

    level: float
    at: float = 0.0
    rate: float = SIZE.limit / 60 / 2

    def lacks(self, now: float) -> float:
        """Take one, or return the seconds until there is one."""
        self.level, self.at = self.level + (now - self.at) * self.rate, now
        lacking = max(0.0, (1 - self.level) / self.rate)
        self.level -= not lacking
        return lacking


@dataclass
class Line:
    """A line without end, which sends one after the other."""

    random: Random
    shutter: Shutter = field(default_factory=lambda: Shutter(-100.0, -100.0, GENTLE_SECONDS))
    bucket: Bucket = field(default_factory=lambda: Bucket(0.0, 0.0))

    def next_start(self, now: float) -> float:
        """Draw one; return when it starts."""
        self.bucket = self.bucket.drawn(SIZE, now, Draw(units=1), self.shutter.opening(self.bucket.at))
        (wait,) = starts(SIZE, self.bucket.level + 1, [1.0], self.shutter.opening(now))
        return now + wait

    def refused(self, now: float, asked: float) -> None:
        """Close as a worker does that is asked to wait for so long."""
        door = Door()
        door.close(now, backoff_seconds(1, asked, self.random.random), "rate_limit_exceeded")
        seconds = door.take_news().seconds
        self.bucket = self.bucket.drawn(SIZE, now, Draw(), self.shutter.opening(self.bucket.at)).closed()
        self.shutter = self.shutter.refused(now, seconds, after=self.shutter.closings)


@pytest.mark.parametrize("left", [0.0, 0.5, 0.95])
def test_a_halved_quota_refuses_six_times_a_minute(left: float) -> None:
    """The first time included. A seventh just before the end would be another fifth of a percent."""
    line, cut, now, refused = Line(Random(1)), Cut(left), 0.0, list[float]()
    while (now := line.next_start(now)) < CUT:
        lacking = cut.lacks(now)
        if lacking:
            refused.append(now)
            line.refused(now, lacking)
            # Whenever the cut ends, the full speed is back by then.
            assert line.shutter.gentle_until <= now + 5 + 1e-6
    assert len(refused) <= 6
