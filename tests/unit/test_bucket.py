"""The token bucket: never more than capacity + rate x window."""

import math

from hypothesis import given
from hypothesis import strategies as st

from worker.domain.bucket import Bucket

_STEP = st.tuples(st.floats(0, 30), st.floats(0.1, 100))


@given(steps=st.lists(_STEP, max_size=60), limit=st.floats(60, 600))
def test_no_window_admits_more_than_capacity_and_refill(
    steps: list[tuple[float, float]], limit: float
) -> None:
    """Whoever waits as told never exceeds the limit in any window."""
    bucket = Bucket.per_minute(limit, 0.0)
    now, admitted = 0.0, list[tuple[float, float]]()
    for pause, units in steps:
        now += pause
        bucket = bucket.refilled(now)
        wait = bucket.wait(units)
        if wait == math.inf:
            continue
        now += wait
        bucket = bucket.refilled(now).take(units)
        admitted.append((now, units))
    for start, (begin, _) in enumerate(admitted):
        total = 0.0
        for end, units in admitted[start:]:
            total += units
            assert total <= bucket.capacity + bucket.rate * (end - begin) + 1e-6


def test_what_is_larger_than_the_bucket_never_fits() -> None:
    """The wait for the impossible is infinite."""
    assert Bucket.per_minute(60, 0.0).wait(61) == math.inf


def test_a_clock_that_goes_back_adds_nothing() -> None:
    """Refilling to an earlier time changes nothing."""
    bucket = Bucket.per_minute(60, 100.0).take(60)
    assert bucket.refilled(50.0) == bucket


def test_giving_back_never_overfills() -> None:
    """Refunds end at the capacity."""
    assert Bucket.per_minute(60, 0.0).give_back(10).level == 60


def test_overuse_is_paid_back_by_waiting() -> None:
    """A level below zero makes the next one wait for it."""
    bucket = Bucket.per_minute(60, 0.0).take(90)
    assert bucket.wait(10) == 40
