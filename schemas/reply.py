"""The one outcome of a job, as its producer receives it."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from schemas.failure import Failure
from schemas.names import Kind
from schemas.usage import Usage


class ReplyStatus(StrEnum):
    """How the job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Reply(BaseModel):
    """One reply. `job_id`, `tenant` and `kind` are null only where an invalid job named none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    job_id: str | None
    tenant: str | None
    kind: Kind | None
    status: ReplyStatus
    output_text: str | None
    result: dict[str, Any] | None
    usage: Usage | None
    error: Failure | None
    attempts: int
    cached: bool = False
    received_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime
