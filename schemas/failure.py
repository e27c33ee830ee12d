"""The failure part of a reply."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict
from typing_extensions import override


class FailureCode(StrEnum):
    """Why a job did not succeed; the closed list that producers may switch on."""

    INVALID_JOB = "invalid_job"
    CONFLICT = "conflict"
    REJECTED = "rejected"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXHAUSTED = "quota_exhausted"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"
    BUDGET_EXCEEDED = "budget_exceeded"
    TOOL_FAILED = "tool_failed"
    CONTENT_FILTERED = "content_filtered"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    INTERNAL = "internal"


class Failure(BaseModel):
    """One failure. `message` is safe to show: it never holds content, keys or URL passwords."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: FailureCode
    message: str
    retryable: bool = False
    http_status: int | None = None
    openai_code: str | None = None
    openai_request_id: str | None = None

    @override
    def __str__(self) -> str:
        """Return what a person should read of it."""
        return f"{self.code}: {self.message}"
