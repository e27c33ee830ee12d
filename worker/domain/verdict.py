"""What an outcome means: for the attempt's row, for the job, and for whoever shares the limits."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from http import HTTPStatus
from typing import Final

from schemas.failure import Failure, FailureCode
from worker.domain.attempt import AttemptState
from worker.domain.outcome import Lost, Refused
from worker.domain.retry_after import retry_after_seconds

_QUOTA_CODES: Final = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "organization_quota_exceeded",
        "project_quota_exceeded",
        "spend_limit_exceeded",
    }
)
_ONE_MODEL_CODES: Final = frozenset({"model_not_found", "model_not_available"})


class Closes(Enum):
    """What a refusal closes for every job that shares it."""

    NOTHING = auto()
    BUCKET = auto()
    """A rate limit: this model on these credentials."""
    CREDENTIALS = auto()
    """Nothing of these credentials can work until somebody mends them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How an unsuccessful attempt is recorded and what may follow. `retry_after` in seconds."""

    state: AttemptState
    failure: Failure
    retry: bool
    retry_after: float | None = None
    closes: Closes = Closes.NOTHING
    reason: str | None = None
    """What operators are told of what it closes; None: the code."""
    maybe_billed: bool = False
    """The ledger needs an estimate, since nobody knows."""


def judge_refused(refused: Refused, now: datetime) -> Verdict:
    """Judge any status that is not 2xx."""
    status = refused.http_status
    code, retry, closes = _classify(refused)
    advice = refused.headers.get("x-should-retry")
    if advice in {"true", "false"} and closes is Closes.NOTHING:
        retry = advice == "true"
    return Verdict(
        state=AttemptState.REJECTED if status < HTTPStatus.INTERNAL_SERVER_ERROR else AttemptState.FAILED,
        failure=Failure(
            code=code,
            message=refused.message,
            retryable=retry,
            http_status=status,
            openai_code=refused.code or refused.kind,
            openai_request_id=refused.request_id,
        ),
        retry=retry,
        retry_after=retry_after_seconds(refused.headers, now),
        closes=closes,
        reason=_WRONG_ADDRESS if refused.no_such_path else None,
    )


_WRONG_ADDRESS: Final = (
    "nothing is found at this address: check OPENAI_BASE_URL, or base_url in [credentials]; it ends in /v1"
)
_RULES: Final = {
    401: (FailureCode.REJECTED, True, Closes.CREDENTIALS),
    403: (FailureCode.REJECTED, True, Closes.CREDENTIALS),
    408: (FailureCode.UNAVAILABLE, True, Closes.NOTHING),
    409: (FailureCode.UNAVAILABLE, True, Closes.NOTHING),
    413: (FailureCode.TOO_LARGE, False, Closes.NOTHING),
    425: (FailureCode.UNAVAILABLE, True, Closes.NOTHING),
    429: (FailureCode.RATE_LIMITED, True, Closes.BUCKET),
}
_SERVER_ERROR: Final = (FailureCode.UNAVAILABLE, True, Closes.NOTHING)
_CLIENT_ERROR: Final = (FailureCode.REJECTED, False, Closes.NOTHING)


def _classify(refused: Refused) -> tuple[FailureCode, bool, Closes]:
    status = refused.http_status
    if refused.no_such_path:
        return FailureCode.REJECTED, True, Closes.CREDENTIALS
    if status == HTTPStatus.TOO_MANY_REQUESTS and _QUOTA_CODES & {refused.code, refused.kind}:
        return FailureCode.QUOTA_EXHAUSTED, True, Closes.CREDENTIALS
    if status == HTTPStatus.FORBIDDEN and refused.code in _ONE_MODEL_CODES:
        return _CLIENT_ERROR  # a job that names a model it may not use must not close anything for others
    otherwise = _SERVER_ERROR if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _CLIENT_ERROR
    return _RULES.get(status, otherwise)


def judge_lost(lost: Lost) -> Verdict:
    """Judge a request without an answer. Once sent it may be billed, answered or not."""
    if lost.too_large:
        # It came, and would come again: asking once more only pays twice.
        failure = Failure(code=FailureCode.TOO_LARGE, message=lost.message)
        return Verdict(state=AttemptState.UNKNOWN, failure=failure, retry=False, maybe_billed=True)
    return Verdict(
        state=AttemptState.UNKNOWN if lost.sent else AttemptState.FAILED,
        failure=Failure(
            code=FailureCode.TIMEOUT if lost.timed_out else FailureCode.UNAVAILABLE,
            message=lost.message,
            retryable=True,
        ),
        retry=True,
        maybe_billed=lost.sent,
    )


def judge_garbled(reason: str, request_id: str | None) -> Verdict:
    """Judge a 200 that is no answer: most likely a proxy's page, but it may have been billed."""
    return Verdict(
        state=AttemptState.FAILED,
        failure=Failure(
            code=FailureCode.UNAVAILABLE,
            message=f"OpenAI's answer could not be read: {reason}",
            retryable=True,
            http_status=200,
            openai_code="invalid_answer",
            openai_request_id=request_id,
        ),
        retry=True,
        maybe_billed=True,
    )
