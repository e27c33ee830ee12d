"""The shared bucket: never more than capacity + rate x window, whoever asks and however much."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.support.bucket import Bucket
from worker.domain.bucket import TRICKLE, UP_PER_SECOND, Draw, Opening, Size, drift_told, starts

_CHUNK = st.tuples(
    st.floats(0, 5),  # seconds since the last draw
    st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6),  # parts of the limit
    st.floats(0, 1),  # the part that is given back when it has started
)


def admitted(size: Size, chunks: list[tuple[float, list[float], float]]) -> list[tuple[float, float]]:
    """Return start and units of all requests, drawn as workers draw them."""
    bucket, now, found = Bucket(size.burst, 0.0), 0.0, list[tuple[float, float]]()
    for pause, parts, _ in chunks:
        now += pause
        needs = [part * size.limit for part in parts]
        bucket = bucket.drawn(size, now, Draw(units=sum(needs)))
        waits = starts(size, bucket.level + sum(needs), needs)
        found += [(now + wait, units) for wait, units in zip(waits, needs, strict=True)]
    return found


@given(chunks=st.lists(_CHUNK, max_size=25), limit=st.floats(1, 1e6), handful=st.floats(0, 10))
def test_no_window_admits_more_than_capacity_and_refill(
    chunks: list[tuple[float, list[float], float]], limit: float, handful: float
) -> None:
    """In every window of w seconds: capacity + rate x w, with any mix of sizes and workers."""
    size = Size(limit, handful)
    found = sorted(admitted(size, chunks))
    for first, (begin, _) in enumerate(found):
        total = 0.0
        for end, units in found[first:]:
            total += units
            assert total <= size.limit + size.rate * (end - begin) + 1e-6 * limit


@given(chunks=st.lists(_CHUNK, max_size=25), limit=st.floats(1, 1e6))
def test_first_come_first_served(chunks: list[tuple[float, list[float], float]], limit: float) -> None:
    """Starts are in the order of the draws, whatever the sizes."""
    times = [start for start, _ in admitted(Size(limit), chunks)]
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(times))


@given(chunks=st.lists(_CHUNK, min_size=1, max_size=25), limit=st.floats(60, 1e6))
def test_nothing_is_lost_while_there_is_a_backlog(
    chunks: list[tuple[float, list[float], float]], limit: float
) -> None:
    """Drawn all at once, the last request starts no later than the flow at the full rate would let it."""
    size = Size(limit)
    found = admitted(size, [(0.0, parts, 0.0) for _, parts, _ in chunks])
    before_last = sum(units for _, units in found[:-1])
    assert found[-1][0] <= before_last / size.rate + 1e-6


@given(chunks=st.lists(_CHUNK, max_size=10), limit=st.floats(60, 1e6))
def test_small_bursts(chunks: list[tuple[float, list[float], float]], limit: float) -> None:
    """Small requests never go faster than burst + rate x window: limits may be kept second by second."""
    size = Size(limit, 5)
    small = [(pause, [part * size.burst / limit for part in parts], 0.0) for pause, parts, _ in chunks]
    found = sorted(admitted(size, small))
    for first, (begin, _) in enumerate(found):
        total = sum(units for _, units in found[first:])
        assert total <= size.burst + size.rate * (found[-1][0] - begin) + 1e-6 * limit


def test_a_clock_that_goes_back_adds_nothing() -> None:
    """Nor does it take anything, and the bucket goes on from there."""
    size = Size(60)
    bucket = Bucket(-10.0, 100.0).drawn(size, 50.0, Draw())
    assert (bucket.level, bucket.at) == (-10.0, 50.0)
    assert bucket.drawn(size, 55.0, Draw()).level == -10.0 + 5 * size.rate


def test_giving_back_never_overfills() -> None:
    """Refunds end at the burst."""
    size = Size(60, 5)
    assert Bucket(0.0, 0.0).drawn(size, 0.0, Draw(unused=100)).level == 5


def test_a_dead_worker_costs_its_chunk() -> None:
    """What it had drawn heals by refill, and nothing else has to be done."""
    size = Size(600, 5)
    bucket = Bucket(0.0, 0.0).drawn(size, 0.0, Draw(units=3))
    assert bucket.drawn(size, 3 / size.rate, Draw()).level == 0


@given(drift=st.floats(-1e5, 1e5), gap=st.floats(-1e5, 1e5), limit=st.floats(60, 1e5))
def test_the_drift_follows_openais_count(drift: float, gap: float, limit: float) -> None:
    """Once corrected, it stays: what was told is within what is tolerated."""
    size = Size(limit)
    told = drift_told(size, drift, [gap])
    assert drift_told(size, drift if told is None else told, [gap]) in {None, told}


def test_corrections_come_down_at_once_and_up_slowly() -> None:
    """A burst that was not expected is worse than a second's delay."""
    size = Size(600)
    down = Bucket(0.0, 0.0).drawn(size, 1.0, Draw(drift=-300, weight=1))
    assert (down.level, down.drift) == (size.rate - 300, -300)
    up = Bucket(-300.0, 0.0).drawn(size, 1.0, Draw(drift=300, weight=1))
    raised = UP_PER_SECOND * size.rate
    assert (up.level, up.drift) == (-300 + size.rate + raised, raised)


_OPENING = st.builds(Opening, closed=st.floats(-100, 100), gentle=st.floats(-100, 200))


@given(opening=_OPENING, refill=st.floats(0.001, 1000))
def test_how_long_a_refill_takes_after_a_refusal(opening: Opening, refill: float) -> None:
    """Both ways of asking agree: what has come after so long, and how long until so much has come."""
    assert abs(opening.refilled(opening.until(refill)) - refill) < 1e-6 * (1 + refill)


@given(opening=_OPENING, seconds=st.floats(0, 1000), more=st.floats(0, 100))
def test_a_refusal_only_ever_slows_down(opening: Opening, seconds: float, more: float) -> None:
    """A bucket never refills faster than at its rate, and never runs dry by waiting."""
    gained = opening.refilled(seconds + more) - opening.refilled(seconds)
    assert -1e-9 <= gained <= more + 1e-9


def test_closed_trickling_and_open() -> None:
    """Nothing, then a little, then everything."""
    opening = Opening(1.0, 5.0)
    assert opening.refilled(1.0) == 0
    assert opening.refilled(5.0) == 4 * TRICKLE
    assert opening.refilled(7.0) == 4 * TRICKLE + 2
    assert opening.until(0) == 1.0
