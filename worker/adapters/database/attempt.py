"""Between the commits: further intents, and outcomes that do not end the job."""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from typing_extensions import override

from worker.adapters.database.claim import insert_attempt
from worker.adapters.database.ledger import correction_rows, ledger_row, with_corrections
from worker.adapters.database.tables import usage_ledger
from worker.adapters.database.work import LockedJob, Operation, Past, Writes
from worker.domain.attempt import AttemptRecord, AttemptState, Entry
from worker.domain.budget import OverBudget
from worker.domain.claims import JobStatus
from worker.domain.job import JobKey
from worker.ports import NextAttempt, Progress


@dataclass(frozen=True, slots=True)
class BeginAttempt(Operation[bool | OverBudget]):
    """Writes the intent of a further attempt, unless there is no money for it."""

    attempt: NextAttempt
    owner: str
    urgent: ClassVar[bool] = True

    @property
    @override
    def key(self) -> JobKey:
        return self.attempt.key

    @property
    @override
    def moments(self) -> tuple[datetime, ...]:
        return (self.attempt.intent.started_at,)

    @override
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> bool | OverBudget:
        attempt = self.attempt
        if job is None or not holds(job, attempt.lease_token):
            return False
        over = writes.budgets.hold(attempt.key, attempt.attempt_no, attempt.intent, self.owner)
        if over is not None:
            return over
        insert_attempt(
            writes,
            attempt.key,
            attempt.attempt_no,
            attempt.intent,
            owner=self.owner,
            lease_token=attempt.lease_token,
        )
        writes.update_job(
            attempt.key,
            attempts=attempt.attempt_no,
            # A difference, not a step of one: written twice it must count once.
            step_attempts=job.step_attempts + attempt.attempt_no - job.attempts,
        )
        return True


@dataclass(frozen=True, slots=True)
class RecordProgress(Operation[bool]):
    """Writes the outcome of an attempt, and what the next worker goes on from."""

    progress: Progress

    @property
    @override
    def key(self) -> JobKey:
        return self.progress.record.key

    @property
    @override
    def size(self) -> int:
        return len(self.progress.checkpoint or b"")

    @property
    @override
    def moments(self) -> tuple[datetime, ...]:
        return moments_of(self.progress.record)

    @override
    def needs_past(self, job: LockedJob) -> bool:
        return not holds(job, self.progress.lease_token) or written_off(job, self.progress.record)

    @override
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> bool:
        progress = self.progress
        if job is None or not holds(job, progress.lease_token):
            record_late(writes, job, past, progress.record)
            return False
        record_held(writes, job, past, progress.record)
        if progress.checkpoint is not None:
            writes.save_checkpoint(self.key, progress.checkpoint)
            writes.update_job(self.key, step_attempts=0)
        return True


def moments_of(record: AttemptRecord | None) -> tuple[datetime, ...]:
    """Return when an outcome spends money."""
    return (record.ledger.occurred_at,) if record and record.ledger else ()


def holds(job: LockedJob, lease_token: int) -> bool:
    """Whether the claim with this token still runs the job."""
    return job.status == JobStatus.RUNNING and job.lease_token == lease_token


def written_off(job: LockedJob, record: AttemptRecord) -> bool:
    """Whether the attempt was written off, its worker being taken for dead, and its claim left."""
    return record.attempt_no <= job.written_off


def record_held(writes: Writes, job: LockedJob, past: Past | None, record: AttemptRecord) -> None:
    """Write an outcome under a claim that holds; `past` where it was written off."""
    if past is None:
        _record(writes, job, record)
    else:
        record_late(writes, job, past, record)


def record_late(writes: Writes, job: LockedJob | None, past: Past | None, record: AttemptRecord) -> None:
    """Write an outcome whose job has gone on without it: the money is spent all the same."""
    attempt = past.open_attempts.get(record.attempt_no) if past else None
    if job is None or past is None or attempt is None:
        _book(writes, job, record)
        return
    booked = [row for row in past.booked if row.attempt_no == record.attempt_no]
    guess = next((row for row in booked if row.entry.entry is Entry.ESTIMATED), None)
    if guess is None:
        _record(writes, job, record)
    elif record.state is not AttemptState.UNKNOWN:
        writes.record_outcome(record)
        guess = with_corrections(guess, (row for row in booked if row is not guess))
        for row in correction_rows(record.key, job.kind, guess, record):
            writes.insert(usage_ledger, row)


def _record(writes: Writes, job: LockedJob, record: AttemptRecord) -> None:
    writes.record_outcome(record)
    _book(writes, job, record)


def _book(writes: Writes, job: LockedJob | None, record: AttemptRecord) -> None:
    if record.ledger is not None:
        row = ledger_row(
            record.key,
            record.attempt_no,
            record.ledger,
            # A job that the database has lost: any time will do that is the same whenever this is written.
            received_at=job.received_at if job else record.ledger.occurred_at,
            kind=job.kind if job else None,
            labels=record.labels,
            account=record.account,
        )
        writes.insert(usage_ledger, row)
