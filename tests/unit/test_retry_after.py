"""When a server wants to be asked again."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.retry_after import retry_after_seconds

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "30"}, 30),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "500"}, 500),
        ({"retry-after-ms": "300"}, 0.3),
        ({"retry-after-ms": "300", "retry-after": "30"}, 0.3),
        ({"retry-after-ms": "nan", "retry-after": "30"}, 30),
        ({"retry-after": "Sun, 22 Nov 2026 12:01:00 GMT"}, 60),
        ({"retry-after": "Sun, 22 Nov 2026 12:01:00"}, 60),
        ({"retry-after": "Sun, 22 Nov 2026 13:01:00 +0100"}, 60),
        ({"retry-after": "Sun, 22 Nov 2026 11:00:00 GMT"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Sun, 22 Nov 99999999999999999999 12:00:00 GMT"}, None),
    ],
)
def test_reads_the_wait(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds win, dates are understood, and what makes no sense is no advice."""
    found = retry_after_seconds(headers, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(st.text(), st.text())
def test_never_fails(milliseconds: str, seconds: str) -> None:
    """Whatever the headers hold, the result is a positive number or nothing."""
    found = retry_after_seconds({"retry-after-ms": milliseconds, "retry-after": seconds}, NOW)
    assert found is None or 0 < found < float("inf")


@given(st.integers(min_value=1, max_value=10**7))
def test_reads_any_date(ahead: int) -> None:
    """A date means the time until it."""
    header = format_datetime(NOW + timedelta(seconds=ahead), usegmt=True)
    assert retry_after_seconds({"retry-after": header}, NOW) == ahead
