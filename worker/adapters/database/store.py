"""The ports, each a thin way into the group commit."""

from typing_extensions import override

from worker.adapters.database.attempt import BeginAttempt, RecordProgress
from worker.adapters.database.cancel import RequestCancel
from worker.adapters.database.claim import ClaimJob
from worker.adapters.database.finish import FinishJob
from worker.adapters.database.replies import MarkReturned, MarkSent, TakeDue
from worker.adapters.database.wait import LetWait
from worker.adapters.database.writer import GroupCommit
from worker.domain.budget import OverBudget, OverBudgetError
from worker.domain.claims import JobStatus
from worker.domain.job import JobKey
from worker.ports import (
    Claim,
    ClaimResult,
    Clock,
    Finish,
    JobStore,
    NextAttempt,
    Outbox,
    OwedReply,
    Progress,
    Wait,
)


class SqlJobStore(JobStore):
    """Jobs in the database."""

    def __init__(self, writer: GroupCommit, worker_id: str) -> None:
        self._writer = writer
        self._worker_id = worker_id

    @override
    async def claim(self, claim: Claim) -> ClaimResult:
        return await self._writer.submit(ClaimJob(claim, self._worker_id))

    @override
    async def next_attempt(self, attempt: NextAttempt) -> bool:
        written = await self._writer.submit(BeginAttempt(attempt, self._worker_id))
        if isinstance(written, OverBudget):
            raise OverBudgetError(written)
        return written

    @override
    async def progress(self, progress: Progress) -> bool:
        return await self._writer.submit(RecordProgress(progress))

    @override
    async def finish(self, finish: Finish) -> bool:
        return await self._writer.submit(FinishJob(finish))

    @override
    async def wait(self, wait: Wait) -> bool:
        return await self._writer.submit(LetWait(wait))


class SqlOutbox(Outbox):
    """Owed replies in the database."""

    def __init__(self, writer: GroupCommit, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock

    @override
    async def due(self, limit: int) -> list[OwedReply]:
        return await self._writer.submit(TakeDue(self._clock.now(), limit))

    @override
    def sent(self, key: JobKey) -> None:
        self._writer.submit_lazily(MarkSent(key))

    @override
    async def unroutable(self, owed: OwedReply) -> bool:
        return await self._writer.submit(MarkReturned(owed, self._clock.now()))


class Cancels:
    """Requests to cancel jobs."""

    def __init__(self, writer: GroupCommit, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock

    async def request_cancel(self, key: JobKey) -> JobStatus:
        """Mark a job, known or not yet, to be cancelled; a job that has its outcome keeps it."""
        return await self._writer.submit(RequestCancel(key, self._clock.now()))
