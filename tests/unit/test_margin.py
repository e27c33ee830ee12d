"""What an upstream that counts by the second has left where requests are held up on their way."""

from dataclasses import dataclass, field
from random import Random

import pytest

from tests.support.bucket import Bucket
from worker.core.meter import Meter
from worker.domain.bucket import HANDFUL, USED, Size
from worker.domain.quota import MeterGrant
from worker.domain.rate_headers import Level

LIMIT = 600
SIZE = Size(LIMIT, HANDFUL)
MINUTES = 60
EVERY = 60.0
"""About so many seconds are between two hold-ups."""
SETTLED = 600.0
"""Seconds after which what there was at first no longer counts."""


@dataclass
class Tank:
    """OpenAI's own bucket: it refills at exactly the nominal rate, and holds no more than its capacity."""

    capacity: float
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.capacity

    def take(self, now: float) -> float:
        """Take one; return what is left. It refuses whatever brings it below zero."""
        self.level = min(self.capacity, self.level + (now - self.at) * LIMIT / 60) - 1
        self.at = now
        return self.level


def delays(random: Random, longest: float) -> list[tuple[float, float]]:
    """Return when requests are held up, and for how long: what was to go meanwhile goes when it ends."""
    found, at = list[tuple[float, float]](), 0.0
    while at < 60 * MINUTES:
        at += random.uniform(0.5, 1.5) * EVERY
        found.append((at, at + random.uniform(0, longest)))
    return found


def left(random: Random, longest: float) -> list[tuple[float, float]]:
    """Send a long line past hold-ups; return when each arrived, and what a second's tank had left then.

    The minute's tank is what headers tell of: the level follows it as it does in a worker.
    """
    meter, bucket = Meter(configured=LIMIT, handful=HANDFUL), Bucket(SIZE.burst, 0.0)
    meter.learn(LIMIT)
    minute, second = Tank(LIMIT), Tank(LIMIT / 60)
    held, found, now = delays(random, longest), list[tuple[float, float]](), 0.0
    while now < 60 * MINUTES:
        order = meter.order(1.0, 1.0)
        bucket = bucket.drawn(SIZE, now, order.draw)
        grant = MeterGrant(level=bucket.level + 1, drift=bucket.drift, told=LIMIT)
        (wait,) = meter.take_in(grant, [1.0], 1.0, now)
        expected = meter.left(bucket.level, wait)
        now = arrived = now + wait
        while held and held[0][1] <= arrived:
            held.pop(0)
        if held and held[0][0] <= arrived:
            arrived = held[0][1]
        found.append((arrived, second.take(arrived)))
        meter.heard(Level(limit=LIMIT, remaining=int(minute.take(arrived))), expected)
    return found


@pytest.mark.parametrize("longest", [0.3, 0.6, 0.9])
def test_what_hold_ups_cost_comes_back(longest: float) -> None:
    """In an hour none is refused, and a minute after most hold-ups the tank is as good as full again."""
    found = left(Random(1), longest)
    assert min(margin for _, margin in found) >= 0
    later = sorted(margin for at, margin in found if at > SETTLED)
    assert later[len(later) // 2] > 0.7 * LIMIT / 60


def test_openais_full_bucket_does_not_give_the_margin_away() -> None:
    """The level does not follow it: in the long run no more is sent than the part that is to be used."""
    found = [at for at, _ in left(Random(1), 0.9)]
    sent = sum(at > SETTLED for at in found)
    assert sent <= USED * LIMIT / 60 * (found[-1] - SETTLED) + SIZE.burst
    assert sent >= 0.999 * USED * LIMIT / 60 * (found[-1] - SETTLED)
