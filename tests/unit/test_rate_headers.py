"""What the rate limit headers say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.rate_headers import Level, RateHeaders, read_rate_headers


def test_reads_both_buckets() -> None:
    """Limits, levels and reset times are read as OpenAI writes them."""
    headers = {
        "x-request-id": "req_1",
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert read_rate_headers(headers) == RateHeaders(
        requests=Level(limit=500, remaining=499, reset_seconds=0.12),
        tokens=Level(limit=30_000, remaining=0, reset_seconds=360),
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("20ms", 0.02),
        ("59.951s", 59.951),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("1d2h", 93_600),
        ("0s", 0),
        ("17", None),
        ("-1s", None),
        ("", None),
        ("s", None),
        ("1s garbage", None),
        ("1.s", None),
        ("٣s", None),
        ("9" * 400 + "s", None),
    ],
)
def test_reads_durations(text: str, seconds: float | None) -> None:
    """Go's notation is understood; anything else is unknown rather than zero."""
    found = read_rate_headers({"x-ratelimit-limit-tokens": "1", "x-ratelimit-reset-tokens": text})
    assert found is not None
    assert found.tokens.reset_seconds == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e3", "many", "9" * 17, str(2**53), "٣"])
def test_refuses_counts_that_make_no_sense(text: str) -> None:
    """A bucket is never taught nonsense."""
    assert read_rate_headers({"x-ratelimit-limit-requests": text}) is None


def test_is_none_without_headers() -> None:
    """A proxy's answer teaches nothing."""
    assert read_rate_headers({"x-request-id": "req_1"}) is None


@given(st.dictionaries(st.sampled_from(["x-ratelimit-limit-tokens", "x-ratelimit-reset-tokens"]), st.text()))
def test_never_fails(headers: dict[str, str]) -> None:
    """Whatever the headers hold, reading them raises nothing."""
    read_rate_headers(headers)
