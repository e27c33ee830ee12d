"""What each refusal means."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from schemas.failure import FailureCode
from worker.domain.attempt import AttemptState
from worker.domain.outcome import Lost, Refused
from worker.domain.verdict import Closes, judge_garbled, judge_lost, judge_refused

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def refused(status: int, code: str | None = None, **headers: str) -> Refused:
    """Build a refusal."""
    return Refused(
        http_status=status,
        code=code,
        kind=None,
        message="no",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        request_id="req_1",
    )


@pytest.mark.parametrize(
    ("status", "code", "expected", "retry", "closes"),
    [
        (400, "context_length_exceeded", FailureCode.REJECTED, False, Closes.NOTHING),
        (401, "invalid_api_key", FailureCode.REJECTED, True, Closes.CREDENTIALS),
        (403, None, FailureCode.REJECTED, True, Closes.CREDENTIALS),
        (403, "model_not_found", FailureCode.REJECTED, False, Closes.NOTHING),
        (404, "model_not_found", FailureCode.REJECTED, False, Closes.NOTHING),
        (408, None, FailureCode.UNAVAILABLE, True, Closes.NOTHING),
        (409, None, FailureCode.UNAVAILABLE, True, Closes.NOTHING),
        (413, None, FailureCode.TOO_LARGE, False, Closes.NOTHING),
        (422, None, FailureCode.REJECTED, False, Closes.NOTHING),
        (429, "rate_limit_exceeded", FailureCode.RATE_LIMITED, True, Closes.BUCKET),
        (429, "insufficient_quota", FailureCode.QUOTA_EXHAUSTED, True, Closes.CREDENTIALS),
        (500, None, FailureCode.UNAVAILABLE, True, Closes.NOTHING),
        (503, None, FailureCode.UNAVAILABLE, True, Closes.NOTHING),
        (529, None, FailureCode.UNAVAILABLE, True, Closes.NOTHING),
    ],
)
def test_every_status_has_its_meaning(
    *, status: int, code: str | None, expected: FailureCode, retry: bool, closes: Closes
) -> None:
    """Status and code decide the failure, the retry and what closes."""
    verdict = judge_refused(refused(status, code), NOW)
    assert (verdict.failure.code, verdict.retry, verdict.closes) == (expected, retry, closes)
    assert verdict.state is (AttemptState.REJECTED if status < 500 else AttemptState.FAILED)
    assert not verdict.maybe_billed


def test_an_address_where_nothing_is_closes_the_credentials() -> None:
    """No job is to blame, so none fails, whatever the server advises; operators read what to mend."""
    wrong = replace(refused(404, "not_found", x_should_retry="false"), no_such_path=True)
    verdict = judge_refused(wrong, NOW)
    assert (verdict.retry, verdict.closes) == (True, Closes.CREDENTIALS)
    assert verdict.reason is not None
    assert "check OPENAI_BASE_URL" in verdict.reason
    assert "/v1" in verdict.reason


def test_the_server_may_overrule_the_table() -> None:
    """x-should-retry wins where nothing is closed."""
    assert judge_refused(refused(400, x_should_retry="true"), NOW).retry
    assert not judge_refused(refused(500, x_should_retry="false"), NOW).retry


def test_milliseconds_win_over_seconds() -> None:
    """The more exact header is the one that counts."""
    verdict = judge_refused(refused(429, retry_after_ms="300", retry_after="30"), NOW)
    assert verdict.retry_after == pytest.approx(0.3)


def test_a_lost_request_is_unknown_only_if_it_left() -> None:
    """What never left is failed and costs nothing; what left may have been billed."""
    sent = judge_lost(Lost(sent=True, timed_out=True, message="no answer"))
    unsent = judge_lost(Lost(sent=False, timed_out=False, message="refused"))
    assert (sent.state, sent.maybe_billed, sent.failure.code) == (
        AttemptState.UNKNOWN,
        True,
        FailureCode.TIMEOUT,
    )
    assert (unsent.state, unsent.maybe_billed) == (AttemptState.FAILED, False)


def test_a_page_with_status_200_is_no_success() -> None:
    """It is tried again, and counted as an estimate."""
    verdict = judge_garbled("not JSON", "req_1")
    assert verdict.retry
    assert verdict.maybe_billed
