"""Pauses between attempts, and the rooms they are spent in."""

import pytest

from schemas.names import RETRY_SECONDS
from worker.domain.retry import LONGEST, backoff_seconds, room_seconds


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_what_the_server_asks_for_is_never_undercut(draw: float) -> None:
    """Retry-After is a floor; jitter comes on top."""
    assert 30 <= backoff_seconds(1, 30.0, lambda: draw) <= 31


def test_absurd_requests_are_capped() -> None:
    """A server that asks for a year is asked again after an hour."""
    assert backoff_seconds(1, 3e7, lambda: 0.0) == LONGEST


def test_pauses_double_up_to_a_minute() -> None:
    """Without advice the pause is exponential, with the jitter drawn."""
    assert [backoff_seconds(n, None, lambda: 1.0) for n in (1, 2, 3, 4)] == [0.5, 1, 2, 4]
    assert backoff_seconds(1000, None, lambda: 1.0) == 60


@pytest.mark.parametrize(
    ("wait", "room"), [(0, 5), (4.9, 5), (5, 5), (29, 5), (31, 30), (3599, 600), (1e9, 3600)]
)
def test_a_room_never_overshoots_the_wait(wait: float, room: int) -> None:
    """The longest room that is not too long, or the shortest of all."""
    assert room_seconds(wait) == room
    assert room in RETRY_SECONDS
