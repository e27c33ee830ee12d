"""Requests to cancel a job, which may come before the job itself."""

from dataclasses import dataclass
from datetime import datetime

from typing_extensions import override

from worker.adapters.database.errors import OvertakenError
from worker.adapters.database.ledger import Row
from worker.adapters.database.work import LockedJob, Operation, Past, Writes
from worker.domain.claims import JobStatus
from worker.domain.job import JobKey


@dataclass(frozen=True, slots=True)
class RequestCancel(Operation[JobStatus]):
    """Marks a job to be cancelled, unless it has its outcome; returns where the job stands."""

    job: JobKey
    at: datetime

    @property
    @override
    def key(self) -> JobKey:
        return self.job

    @override
    def new_row(self) -> Row:
        return {
            "tenant": self.job.tenant,
            "job_id": self.job.job_id,
            "kind": None,
            "lane": None,
            "model": None,
            "labels": {},
            "received_at": self.at,
            "fingerprint": None,
            "reply_to": None,
            "correlation_id": None,
            "status": JobStatus.WAITING.value,
            "attempts": 0,
            "step_attempts": 0,
            "started_at": None,
            "lease_owner": None,
            "lease_token": None,
            "next_attempt_at": None,
            "waiting_for": None,
            "cancel_requested_at": self.at,
        }

    @override
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> JobStatus:
        if job is None:
            raise OvertakenError
        status = JobStatus(job.status)
        if not status.terminal and not job.cancel_requested:
            writes.update_job(self.key, cancel_requested_at=self.at)
        return status
