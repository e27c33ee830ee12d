"""What the `x-ratelimit-*` headers say of the limits behind a response."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

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
    if not any(name.startswith("x-ratelimit-") for name in headers):
        return None
    found = RateHeaders(requests=_level(headers, "requests"), tokens=_level(headers, "tokens"))
    return None if found.requests == found.tokens == Level() else found


def _level(headers: Mapping[str, str], bucket: str) -> Level:
    return Level(
        limit=_count(headers.get(f"x-ratelimit-limit-{bucket}")),
        remaining=_count(headers.get(f"x-ratelimit-remaining-{bucket}")),
        reset_seconds=_duration(headers.get(f"x-ratelimit-reset-{bucket}")),
    )


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
