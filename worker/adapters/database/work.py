"""One change to one job: decided on the locked row, written with all others of its batch."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any, ClassVar, Final, Generic, NamedTuple, Self, TypeVar

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.adapters.database.budgets import NOBODY, BudgetBook, Hold
from worker.adapters.database.bulk import Call
from worker.adapters.database.ledger import Booked, Reserved, Row, spend_of
from worker.adapters.database.running import run
from worker.adapters.database.sql import KEYS, keys_value
from worker.adapters.database.statements import OF_ATTEMPT, OF_JOB, OF_TENANT, Statements
from worker.adapters.database.tables import attempts, requests, results, usage_ledger
from worker.adapters.database.types import utc_of
from worker.domain.attempt import Account, AttemptRecord, AttemptState, Entry
from worker.domain.claims import JobStatus
from worker.domain.job import JobKey
from worker.domain.spend import Spend

ResultT = TypeVar("ResultT")


class LockedJob(NamedTuple):
    """A row of `jobs` that this transaction holds: the columns `statements.LOCKED`."""

    tenant: str
    job_id: str
    kind: str | None
    received_at: datetime
    status: str
    fingerprint: bytes | None
    lease_token: int | None
    attempts: int
    step_attempts: int
    takeovers: int
    written_off: int
    cancel_requested: bool
    reply_status: str
    reply_id: str | None
    reply_tries: int

    @classmethod
    def found(cls, row: Sequence[Any]) -> Self:
        """Return a row as the driver has it."""
        job = cls._make(row)
        return job._replace(received_at=utc_of(job.received_at))

    @classmethod
    def inserted(cls, row: Row) -> Self:
        """Return the row that an insert makes of these columns."""
        cancel_requested = row["cancel_requested_at"] is not None
        # The rest as the table's defaults have it.
        return cls._make((*_inserted(row), 0, 0, cancel_requested, "none", None, 0))

    @property
    def is_at_work(self) -> bool:
        """Whether it runs, or its reply is still to be confirmed."""
        return self.status == JobStatus.RUNNING or self.reply_status == "pending"


_inserted: Final = itemgetter(
    "tenant",
    "job_id",
    "kind",
    "received_at",
    "status",
    "fingerprint",
    "lease_token",
    "attempts",
    "step_attempts",
)
"""The first of its columns."""
_CHANGED: Final = {*LockedJob._fields} - {"tenant", "job_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAttempt:
    """An attempt whose outcome is not known."""

    attempt_no: int
    state: AttemptState
    lease_token: int
    started_at: datetime
    model: str
    service_tier: str | None
    account: Account
    reserved: Reserved


@dataclass(slots=True, kw_only=True)
class Past:
    """What lies behind a job that is not fresh; loaded only for the decisions that need it."""

    labels: Mapping[str, str]
    started_at: datetime | None
    next_attempt_at: datetime | None
    worked_seconds: float
    reply_to: str | None
    correlation_id: str | None
    owner_alive_until: datetime | None
    checkpoint: bytes | None
    result: bytes | None
    open_attempts: dict[int, OpenAttempt] = field(default_factory=dict)
    booked: list[Booked] = field(default_factory=list)

    @property
    def spend(self) -> Spend:
        """What the job has cost so far."""
        return spend_of(self.booked)

    @property
    def moments(self) -> set[datetime]:
        """When what may now be written off was begun, and when what may now be corrected was booked."""
        begun = {attempt.started_at for attempt in self.open_attempts.values()}
        return begun | {row.entry.occurred_at for row in self.booked if row.entry.entry is Entry.ESTIMATED}


class Writes:
    """The rows that a batch will write, gathered by statement."""

    def __init__(self, budgets: BudgetBook | None = None) -> None:
        self.budgets = budgets or BudgetBook(NOBODY)
        self._inserts: dict[Table, list[Row]] = defaultdict(list)
        self._updates: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        self._outcomes: list[Row] = []
        self._checkpoints: list[Row] = []
        self._changed: dict[JobKey, Mapping[str, Any]] = {}
        self._dropped: list[JobKey] = []
        self._sent: list[JobKey] = []

    def insert(self, table: Table, row: Row) -> None:
        """Insert, unless the key exists."""
        self._inserts[table].append(row)

    def update_job(self, key: JobKey, **columns: Any) -> None:
        """Set columns of a job; once a job, as all rows are changed by one statement."""
        row = {OF_TENANT: key.tenant, OF_JOB: key.job_id, **columns}
        self._updates[tuple(columns)].append(row)
        self._changed[key] = columns

    def record_outcome(self, record: AttemptRecord) -> None:
        """Set the outcome of an attempt that has none."""
        self._outcomes.append(
            {
                OF_TENANT: record.key.tenant,
                OF_JOB: record.key.job_id,
                OF_ATTEMPT: record.attempt_no,
                "state": record.state.value,
                "http_status": record.http_status,
                "error_code": record.error_code,
                "openai_request_id": record.openai_request_id,
                "finished_at": record.finished_at,
            }
        )

    def save_checkpoint(self, key: JobKey, state: bytes) -> None:
        """Set what the next worker goes on from."""
        self._checkpoints.append({"tenant": key.tenant, "job_id": key.job_id, "state": state})

    def drop_checkpoint(self, key: JobKey) -> None:
        """Delete it, if any."""
        self._dropped.append(key)

    def mark_sent(self, key: JobKey) -> None:
        """Note that the broker has the reply."""
        self._sent.append(key)
        self._changed[key] = {"reply_status": "sent"}

    def after(self, job: LockedJob) -> LockedJob:
        """Return the row as it is once all this is written."""
        columns = self._changed.get(JobKey(job.tenant, job.job_id))
        if columns is None:
            return job
        changed = {name: columns[name] for name in _CHANGED & columns.keys()}
        if "cancel_requested_at" in columns:
            changed["cancel_requested"] = columns["cancel_requested_at"] is not None
        return job._replace(**changed)

    async def flush(self, connection: AsyncConnection, statements: Statements) -> None:
        """Write everything. All rows are locked by now, so the order matters to foreign keys only."""
        await run(connection, list(self.calls(statements)))
        if self.budgets.budgets:
            ended = [Hold(JobKey(row[OF_TENANT], row[OF_JOB]), row[OF_ATTEMPT]) for row in self._outcomes]
            await self.budgets.settle(connection, ended, self._inserts[usage_ledger])

    def calls(self, statements: Statements) -> Iterator[Call]:
        """Yield the statements, in the order that foreign keys want."""
        for table in (requests, attempts, usage_ledger, results):
            yield from statements.insert[table].calls(self._inserts[table])
        yield from statements.record_outcome.calls(self._outcomes)
        yield from statements.save_checkpoint.calls(self._checkpoints)
        # In one order: the database keeps no plan for each order in which they may have come.
        for _, rows in sorted(self._updates.items()):
            yield from statements.update_job.calls(rows)
        if self._dropped:
            yield from statements.drop_checkpoints.calls([{KEYS: keys_value(self._dropped)}])
        if self._sent:
            yield from statements.mark_sent.calls([{KEYS: keys_value(self._sent)}])


class Operation(ABC, Generic[ResultT]):
    """One change to one job. It may be applied again after a commit that was not confirmed."""

    __slots__ = ()

    urgent: ClassVar[bool] = False
    """Whether a request waits for it, or the limits do: where much else waits it goes first."""

    @property
    @abstractmethod
    def key(self) -> JobKey:
        """The job."""

    @property
    def size(self) -> int:
        """Bytes of the bodies that it stores."""
        return 0

    @property
    def moments(self) -> tuple[datetime, ...]:
        """When money is reserved or spent by it, besides what its job's past tells."""
        return ()

    def first_row(self) -> Row | None:
        """Return the same where the job is most likely not known."""
        return None

    def new_row(self) -> Row | None:
        """Return the row of `jobs` to insert where the job is not known yet."""
        return None

    def needs_past(self, job: LockedJob) -> bool:
        """Whether the decision takes more than the locked row."""
        _ = job
        return False

    @abstractmethod
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> ResultT:
        """Decide, and note what to write."""


class Step(ABC, Generic[ResultT]):
    """Something else to be done in a batch's transaction, after all changes to jobs."""

    __slots__ = ()

    urgent: ClassVar[bool] = False
    """Likewise."""
    key: ClassVar[None] = None
    """No job's."""
    size: ClassVar[int] = 0
    """Likewise."""

    @abstractmethod
    async def run(self, connection: AsyncConnection, statements: Statements) -> ResultT:
        """Do it."""
