"""Commit 2: outcome, ledger row, result, state and owed reply of a job, together."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from typing_extensions import override

from worker.adapters.database.attempt import holds, moments_of, record_held, record_late, written_off
from worker.adapters.database.tables import results
from worker.adapters.database.work import LockedJob, Operation, Past, Writes
from worker.domain.claims import JobStatus
from worker.domain.job import JobKey
from worker.ports import Finish

REPLY_DUE_AFTER: Final = timedelta(seconds=15)
"""How long the finishing worker has to deliver the reply before any other does it."""


@dataclass(frozen=True, slots=True)
class FinishJob(Operation[bool]):
    """Ends a job."""

    finish: Finish

    @property
    @override
    def key(self) -> JobKey:
        return self.finish.key

    @property
    @override
    def size(self) -> int:
        return len(self.finish.reply.body)

    @property
    @override
    def moments(self) -> tuple[datetime, ...]:
        return moments_of(self.finish.record)

    @override
    def needs_past(self, job: LockedJob) -> bool:
        record = self.finish.record
        return record is not None and (not self._ours(job) or written_off(job, record))

    @override
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> bool:
        record = self.finish.record
        if job is None or not self._ours(job):
            if record is not None:
                record_late(writes, job, past, record)
            return False
        if holds(job, self.finish.lease_token):
            if record is not None:
                record_held(writes, job, past, record)
            self._write(job, writes)
        return True

    def _ours(self, job: LockedJob) -> bool:
        """Whether the claim holds, or has ended with this very finish."""
        waits = job.status == JobStatus.WAITING
        return job.lease_token == self.finish.lease_token and not waits

    def _write(self, job: LockedJob, writes: Writes) -> None:
        finish = self.finish
        owed = finish.reply.address.queue is not None
        body = {"tenant": finish.key.tenant, "job_id": finish.key.job_id, "body": finish.reply.body}
        writes.insert(results, body)
        if finish.checkpointed:
            writes.drop_checkpoint(finish.key)
        writes.update_job(
            finish.key,
            status=finish.status.value,
            finished_at=finish.finished_at,
            error_code=finish.error_code,
            attempts=max(job.attempts, finish.record.attempt_no if finish.record else 0),
            lease_owner=None,
            reply_status="pending" if owed else "none",
            reply_to=finish.reply.address.queue,
            correlation_id=finish.reply.address.correlation_id,
            reply_id=finish.reply.reply_id,
            reply_due_at=finish.finished_at + REPLY_DUE_AFTER if owed else None,
        )
