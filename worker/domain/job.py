"""A decoded job, as the core passes it around."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from schemas.job import Options
from schemas.names import Kind


class JobKey(NamedTuple):
    """The idempotency key."""

    tenant: str
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyAddress:
    """Where the one outcome goes; `queue` None means it is only stored."""

    queue: str | None
    correlation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A valid job. `request` is ready for its endpoint, `body` the message as received."""

    key: JobKey
    kind: Kind
    lane: str
    model: str
    request: Mapping[str, Any]
    options: Options
    labels: Mapping[str, str]
    fingerprint: bytes
    """SHA-256 of the content; equal for messages that differ in layout only."""
    address: ReplyAddress
    body: bytes
    received_at: datetime
    high: bool = False
    """It came on a `.high` lane."""
