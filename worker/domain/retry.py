"""How long to wait before trying again."""

from collections.abc import Callable
from typing import Final

from schemas.names import RETRY_SECONDS

_BASE: Final = 0.5
_CAP: Final = 60.0
LONGEST: Final = 3600.0
"""Seconds; a server that asks for more is asked again after an hour."""


def backoff_seconds(failures: int, retry_after: float | None, random: Callable[[], float]) -> float:
    """Return the pause after that many failures in a row, in seconds.

    What the server asks for is a floor, never undercut, with jitter on top so that
    a fleet does not come back at once. Otherwise exponential with equal jitter.
    """
    if retry_after is not None:
        asked = min(retry_after, LONGEST)
        return asked + random() * min(1.0, 0.1 * asked + 0.05)
    pause = min(_CAP, _BASE * 2.0 ** min(failures - 1, 20))
    return pause * (0.5 + 0.5 * random())


def room_seconds(wait: float) -> int:
    """Return the waiting room for a wait: the longest that does not overshoot it, else the shortest."""
    return max((room for room in RETRY_SECONDS if room <= wait), default=RETRY_SECONDS[0])
