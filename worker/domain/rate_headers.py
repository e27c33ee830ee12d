"""What the `x-ratelimit-*` headers say of the limits behind a response."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_NAMES: Final = [
    f"x-ratelimit-{what}-{bucket}"
    for bucket in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
]
_MOST: Final = 2**53
_NUMBER: Final = re.compile(r"[0-9]{1,16}")
_PART: Final = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|d|h|m|s)"
_DURATION: Final = re.compile(f"(?:{_PART})+")
_ONE_PART: Final = re.compile(_PART)
_SECONDS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1, "ms": 0.001}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One bucket as OpenAI sees it; None where a header is missing or makes no sense."""

    limit: int | None = None
    """Units a minute."""
    remaining: int | None = None
    reset_seconds: float | None = None
    """Until the bucket is full again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateHeaders:
    """Both buckets of one response."""

    requests: Level
    tokens: Level


def read_rate_headers(headers: Mapping[str, str]) -> RateHeaders | None:
    """Return the levels, or None if there are none; `headers` has lower-case names."""
    texts = [headers.get(name) for name in _NAMES]
    if not any(texts):
        return None
    found = RateHeaders(requests=_level(*texts[:3]), tokens=_level(*texts[3:]))
    return None if found.requests == found.tokens == Level() else found


def _level(limit: str | None, remaining: str | None, reset: str | None) -> Level:
    return Level(limit=_count(limit), remaining=_count(remaining), reset_seconds=_duration(reset))


def _count(text: str | None) -> int | None:
    if text is None or not _NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if number < _MOST else None


def _duration(text: str | None) -> float | None:
    """Read a duration in Go's notation, such as `6m0s`, `1.5s` or `20ms`."""
    if text is None or not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _ONE_PART.findall(text))
