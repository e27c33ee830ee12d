"""Writes off what a dead worker left in flight, for jobs that nobody takes over."""

from dataclasses import dataclass
from datetime import datetime

from typing_extensions import override

from worker.adapters.database.claim import settle_unknown, standing
from worker.adapters.database.work import LockedJob, Operation, Past, Writes
from worker.domain.attempt import AttemptState
from worker.domain.job import JobKey


@dataclass(frozen=True, slots=True)
class WriteOff(Operation[bool]):
    """Ends the holds of a job whose worker is dead, as a takeover would; False where it is alive."""

    job: JobKey
    at: datetime

    @property
    @override
    def key(self) -> JobKey:
        return self.job

    @override
    def needs_past(self, job: LockedJob) -> bool:
        return True

    @override
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> bool:
        if job is None or past is None:
            writes.budgets.drop_others(self.job, ())
            return True
        if standing(job, past).held(self.at):
            return False
        in_flight = [
            attempt.attempt_no
            for attempt in past.open_attempts.values()
            if attempt.state is AttemptState.IN_FLIGHT
        ]
        settle_unknown(writes, job, past, self.at)
        if in_flight:
            # Its worker may wake up and go on, since nobody has taken the claim.
            writes.update_job(self.job, written_off=max(in_flight))
        writes.budgets.drop_others(self.job, in_flight)
        return True
