"""What the core needs from outside, as Protocols, and the values that cross."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Any, Protocol, TypeAlias

from schemas.names import X_PARKED, Kind
from schemas.reply import ReplyStatus
from worker.domain.attempt import Account, AttemptRecord, Intent
from worker.domain.budget import OverBudget
from worker.domain.events import Event
from worker.domain.job import Job, JobKey, ReplyAddress
from worker.domain.outcome import Outcome
from worker.domain.prices import PriceList
from worker.domain.quota import Exchange, Exchanged, Glance
from worker.domain.spend import Spend

# ---------------------------------------------------------------- broker


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message, as the broker handed it over, with the properties a copy must keep."""

    body: bytes
    lane: str
    high: bool
    redelivered: bool
    received_at: datetime
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    user_id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    type: str | None = None
    app_id: str | None = None
    timestamp: datetime | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def came_before(self) -> bool:
        """Whether it was delivered before, or is our own copy of one that was."""
        return self.redelivered or X_PARKED in self.headers

    @property
    def times_parked(self) -> int:
        """How often it went through a waiting room, by a header that anybody may have set."""
        times = self.headers.get(X_PARKED, 0)
        return times if isinstance(times, int) else 0


class Settlement(Enum):
    """How a delivery ends at the broker."""

    ACK = auto()
    """It is safe elsewhere: in the database, in a waiting room, or among the dead."""
    REQUEUE = auto()
    """Handed back untouched; used while stopping."""


class Place(Protocol):
    """Where a job is at work. It is claimed first: else its place would stand empty meanwhile."""

    async def enter(self) -> None:
        """Wait for room to start; the job is claimed by then."""

    def leave(self) -> None:
        """Make room for another one: what this one leads to has only to be written down."""

    def settle(self, settlement: Settlement) -> None:
        """Settle it before the handler is done; its return value then no longer counts."""


Handler: TypeAlias = Callable[[Delivery, Place], Awaitable[Settlement]]


class PublishError(Exception):
    """The broker did not confirm; the message may or may not have arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedReply:
    """A stored reply. `reply_id` is the same on every copy."""

    key: JobKey
    reply_id: str
    address: ReplyAddress
    body: bytes
    tries: int = 0


class Publisher(Protocol):
    """Publishes persistently and returns once the broker has confirmed."""

    async def reply(self, owed: OwedReply) -> bool:
        """Send a reply; False when no queue of that name exists. Raises PublishError."""

    async def park(self, delivery: Delivery, seconds: int) -> None:
        """Put a copy, properties kept, into the waiting room of so many seconds. Raises PublishError."""

    async def bury(self, delivery: Delivery, reason: str) -> None:
        """Put a copy among the dead, with its reason. Raises PublishError."""


# ---------------------------------------------------------------- database


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Asks for the right to run a job. With an intent, its first attempt is written too."""

    job: Job
    lease_token: int
    """A random number, the fencing token: who holds another one may no longer write a result."""
    intent: Intent | None
    at: datetime
    first: bool = False
    """Whether nothing speaks of an earlier delivery of this job; nothing but speed depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """The job is ours. `attempt_no` is that of the written intent, or of the last attempt so far."""

    attempt_no: int
    step_attempts: int = 0
    """Attempts that the current step had cost before this claim."""
    worked_seconds: float = 0
    """What earlier claims have used of the job's time."""
    spend: Spend = field(default_factory=Spend)
    checkpoint: bytes | None = None
    takeovers: int = 0
    """How many workers died or stalled while they held this job; for a suspect no intent was written."""
    cancel_requested: bool = False
    """Then no intent was written."""
    over_budget: OverBudget | None = None
    """Likewise: there is no money for the request."""
    received_at: datetime | None = None
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadyDone:
    """It has its outcome; here is the stored reply, or an empty one once it has been erased."""

    reply: OwedReply
    sent: bool
    erased: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NotNow:
    """Another worker holds it, or it waits; worth asking again at `until`."""

    until: datetime
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflicting:
    """The key is taken by a job with different content."""


ClaimResult: TypeAlias = Claimed | AlreadyDone | NotNow | Conflicting


@dataclass(frozen=True, slots=True, kw_only=True)
class NextAttempt:
    """The intent of a further attempt under a claim."""

    key: JobKey
    lease_token: int
    attempt_no: int
    intent: Intent


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The outcome of an attempt that does not end the job; the next worker goes on from `checkpoint`."""

    lease_token: int
    record: AttemptRecord
    checkpoint: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of a job: last outcome, result, state and owed reply, one commit."""

    key: JobKey
    lease_token: int
    status: ReplyStatus
    error_code: str | None
    record: AttemptRecord | None
    reply: OwedReply
    finished_at: datetime
    checkpointed: bool
    """Whether a checkpoint may be left, which nobody needs any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Gives the job up until a time. `reason` is for operators; `lease_token` None: never claimed."""

    job: Job
    lease_token: int | None
    until: datetime
    reason: str
    step_attempts: int
    at: datetime
    worked_seconds: float = 0


class JobStore(Protocol):
    """Each call returns once its transaction is durable; while the database is away it keeps trying.

    Calls with a lease token return False when another worker has taken the job
    over: outcome and ledger row of an attempt are written even then, because the
    money is spent; results and states are not.
    """

    async def claim(self, claim: Claim) -> ClaimResult:
        """Claim a job, unless it is done, held, waiting or in conflict."""

    async def next_attempt(self, attempt: NextAttempt) -> bool:
        """Write an intent. Raises OverBudgetError where there is no money for it."""

    async def progress(self, progress: Progress) -> bool:
        """Write an outcome and go on."""

    async def finish(self, finish: Finish) -> bool:
        """Write the last outcome, the result and the owed reply."""

    async def wait(self, wait: Wait) -> bool:
        """Write that the job waits, and release its claim."""


class Outbox(Protocol):
    """Replies that are owed, whoever produced them."""

    async def due(self, limit: int) -> list[OwedReply]:
        """Take replies that nobody has delivered in time; others leave them alone for a while."""

    def sent(self, key: JobKey) -> None:
        """Note, in some later transaction, that the broker has confirmed the reply."""

    async def unroutable(self, owed: OwedReply) -> bool:
        """Note a returned reply; True once it has been given up as undeliverable."""


class QuotaStore(Protocol):
    """The limits as all workers on the same database share them, on its clock."""

    async def exchange(self, exchange: Exchange) -> Exchanged:
        """Draw from buckets in one step; a draw below zero has to be waited for."""

    async def look(self, account: str, name: str) -> Glance:
        """Return how a gate stands: it waits for no writer, and keeps nobody waiting."""

    async def probe(self, account: str) -> bool:
        """Whether this worker may try closed credentials now; at most one in all may, once a minute."""


# ---------------------------------------------------------------- OpenAI


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One HTTP request: the JSON body goes out as it is."""

    kind: Kind
    body: bytes
    account: Account
    timeout: float
    """Seconds for the whole exchange, however slowly it dribbles."""


class OpenAI(Protocol):
    """OpenAI, one request a call: no retries, no interpretation."""

    async def send(self, call: Call) -> Outcome:
        """Send and read to the end, in `call.timeout` seconds. Raises only CancelledError."""


class PriceBook(Protocol):
    """Unit prices by the model and service tier that answered."""

    def prices(self, model: str, service_tier: str | None, at: datetime) -> PriceList | None:
        """Return None for what has no known price."""


# ---------------------------------------------------------------- the rest


class Clock(Protocol):
    """Time, replaceable in tests."""

    def now(self) -> datetime:
        """Return UTC."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class Observer(Protocol):
    """Told what happened; must not raise."""

    def __call__(self, event: Event, /) -> None:
        """Take note."""
