"""One HTTP request to OpenAI: its intent, its outcome, and what it cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from worker.domain.job import JobKey
from worker.domain.usage import Usage


class AttemptState(StrEnum):
    """What is known of a request that may have reached OpenAI."""

    IN_FLIGHT = "in_flight"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    """OpenAI refused it (4xx): not billed."""
    FAILED = "failed"
    """OpenAI failed (5xx), or the request never left."""
    UNKNOWN = "unknown"
    """It left, and nobody knows whether it was answered and billed."""


class Entry(StrEnum):
    """What a ledger row rests on."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    CORRECTION = "correction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whose credentials pay: the name in the configuration and OpenAI's own identifiers."""

    name: str = "default"
    organization: str | None = None
    project: str | None = None

    @property
    def quota(self) -> str:
        """Whose limits it uses: OpenAI grants them to a project or organization, not to a key."""
        return self.project or self.organization or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Written before the request leaves. Token counts are what is reserved for it."""

    model: str
    account: Account
    service_tier: str | None
    reserved: Usage
    reserved_cost_nano_usd: int | None
    reserved_prices: Mapping[str, object] | None
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One accounting row; money in 10⁻⁹ US dollars, None when unpriced."""

    entry: Entry
    model: str
    service_tier: str | None
    usage: Usage
    cost_nano_usd: int | None
    prices: Mapping[str, object] | None
    occurred_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """The outcome of one attempt, with the ledger row it caused, if any."""

    key: JobKey
    attempt_no: int
    state: AttemptState
    finished_at: datetime
    http_status: int | None = None
    error_code: str | None = None
    openai_request_id: str | None = None
    ledger: LedgerEntry | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
