"""What the core tells observers: facts for logs and metrics, never content."""

from dataclasses import dataclass
from typing import TypeAlias

from schemas.names import Kind
from schemas.reply import ReplyStatus
from worker.domain.attempt import AttemptState
from worker.domain.job import JobKey
from worker.domain.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished:
    """A job has its outcome. Seconds from first receipt; money in 10⁻⁹ US dollars."""

    key: JobKey
    kind: Kind
    lane: str
    model: str
    status: ReplyStatus
    error_code: str | None
    attempts: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFinished:
    """One request to OpenAI is over."""

    key: JobKey
    attempt_no: int
    model: str
    state: AttemptState
    http_status: int | None
    error_code: str | None
    openai_request_id: str | None
    seconds: float
    usage: Usage | None
    cost_nano_usd: int | None
    estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWaits:
    """A job went to a waiting room."""

    key: JobKey
    lane: str
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRefused:
    """A message was no valid job and went to the dead."""

    lane: str
    job_id: str | None
    reason: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRepeated:
    """A copy of a job that is done or held elsewhere."""

    key: JobKey
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplySettled:
    """A reply was confirmed, returned as unroutable, or given up."""

    key: JobKey
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTrouble:
    """A server is away or back; `error` names the trouble without addresses or secrets."""

    server: str
    up: bool
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsClosed:
    """OpenAI does not accept these credentials, their quota is exhausted, or nothing is at their address."""

    account: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSeen:
    """How a tenant's month stands, in 10⁻⁹ US dollars.

    `warn`: for the first time near or past its end. `incomplete`: for the first time, as far as
    this process knows, with requests that nobody can price, which count for nothing until then.
    """

    tenant: str
    month: str
    budget_nano_usd: int
    spent_nano_usd: int
    warn: bool
    unpriced_requests: int = 0
    incomplete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """An error in the program itself; the job is handed back."""

    key: JobKey | None
    where: str
    error: BaseException


Event: TypeAlias = (
    JobFinished
    | AttemptFinished
    | JobWaits
    | JobRefused
    | JobRepeated
    | ReplySettled
    | ServerTrouble
    | CredentialsClosed
    | BudgetSeen
    | Broken
)
