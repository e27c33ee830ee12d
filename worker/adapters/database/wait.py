"""A job goes waiting: by the worker that holds it, or before anyone has claimed it."""

from dataclasses import dataclass

from typing_extensions import override

from worker.adapters.database.claim import insert_request, job_columns, settle_unknown, standing
from worker.adapters.database.errors import OvertakenError
from worker.adapters.database.ledger import Row
from worker.adapters.database.work import LockedJob, Operation, Past, Writes
from worker.domain.claims import JobStatus, may_wait
from worker.domain.job import JobKey
from worker.ports import Wait


@dataclass(frozen=True, slots=True)
class LetWait(Operation[bool]):
    """Releases a job until its time comes."""

    wait: Wait

    @property
    @override
    def key(self) -> JobKey:
        return self.wait.job.key

    @property
    @override
    def size(self) -> int:
        return len(self.wait.job.body)

    @override
    def new_row(self) -> Row | None:
        if self.wait.lease_token is not None:
            return None
        return {
            **job_columns(self.wait.job),
            "status": JobStatus.WAITING.value,
            "attempts": 0,
            "step_attempts": self.wait.step_attempts,
            "started_at": None,
            "lease_owner": None,
            "lease_token": None,
            "next_attempt_at": self.wait.until,
            "waiting_for": self.wait.reason,
            "cancel_requested_at": None,
        }

    @override
    def needs_past(self, job: LockedJob) -> bool:
        return self.wait.lease_token is None and job.status == JobStatus.RUNNING

    @override
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> bool:
        wait = self.wait
        if job is None:
            if wait.lease_token is None:
                raise OvertakenError
            return False
        if not may_wait(
            standing(job, past),
            fingerprint=wait.job.fingerprint,
            lease_token=wait.lease_token,
            now=wait.at,
        ):
            return False
        if past is not None:
            settle_unknown(writes, job, past, wait.at)
        self._write(job, writes, takeovers=job.takeovers + int(past is not None))
        return True

    def _write(self, job: LockedJob, writes: Writes, *, takeovers: int) -> None:
        wait = self.wait
        if wait.lease_token is None:
            insert_request(writes, wait.job)
        columns = job_columns(wait.job) if job.kind is None else {}
        writes.update_job(
            self.key,
            **{name: value for name, value in columns.items() if name not in {"tenant", "job_id"}},
            status=JobStatus.WAITING.value,
            step_attempts=wait.step_attempts,
            takeovers=takeovers,
            worked_ms=round(wait.worked_seconds * 1000),
            next_attempt_at=wait.until,
            waiting_for=wait.reason,
            lease_owner=None,
        )
