"""When a server wants to be asked again."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that a response asks for, uncapped; `headers` has lower-case names.

    `retry-after-ms` wins over `retry-after` (seconds or an HTTP date, RFC 9110 10.2.3).
    None for what makes no sense, and for zero and the past: these ask for no wait,
    and a caller without advice backs off instead of hammering.
    """
    milliseconds = _positive(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    asked = headers.get("retry-after")
    seconds = _positive(asked)
    return seconds if seconds is not None else _until(asked, now)


def _positive(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if isfinite(number) and number > 0 else None


def _until(text: str | None, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(text or "")
        # A date without a zone is GMT: HTTP knows no other.
        seconds = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds > 0 else None
