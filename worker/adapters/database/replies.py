"""Replies that are owed, whoever produced them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from worker.adapters.database.statements import Statements
from worker.adapters.database.work import LockedJob, Operation, Past, Step, Writes
from worker.domain.job import JobKey, ReplyAddress
from worker.ports import OwedReply

_TAKEN_FOR: Final = timedelta(seconds=30)
"""How long others leave a reply alone that somebody has taken to deliver."""
_FIRST_RETURN: Final = timedelta(seconds=30)
MOST_TRIES: Final = 5
"""How often a reply may come back as unroutable before it is given up."""


@dataclass(frozen=True, slots=True)
class TakeDue(Step[list[OwedReply]]):
    """Takes replies that are overdue."""

    now: datetime
    limit: int

    @override
    async def run(self, connection: AsyncConnection, statements: Statements) -> list[OwedReply]:
        asked = {"now": self.now, "most": self.limit}
        rows = (await connection.execute(statements.due_replies, asked)).all()
        owed = [
            OwedReply(
                key=JobKey(row.tenant, row.job_id),
                reply_id=row.reply_id,
                address=ReplyAddress(queue=row.reply_to, correlation_id=row.correlation_id),
                body=row.body,
                tries=row.reply_tries,
            )
            for row in rows
        ]
        writes = Writes()
        for reply in owed:
            writes.update_job(reply.key, reply_due_at=self.now + _TAKEN_FOR)
        await writes.flush(connection, statements)
        return owed


@dataclass(frozen=True, slots=True)
class MarkSent(Operation[None]):
    """Notes that the broker has confirmed a reply."""

    job: JobKey

    @property
    @override
    def key(self) -> JobKey:
        return self.job

    @override
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> None:
        if job is not None and job.reply_status != "sent":
            writes.mark_sent(self.key)


@dataclass(frozen=True, slots=True)
class MarkReturned(Operation[bool]):
    """Notes that no queue took a reply; True once it is given up."""

    owed: OwedReply
    at: datetime

    @property
    @override
    def key(self) -> JobKey:
        return self.owed.key

    @override
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> bool:
        if job is None or job.reply_id != self.owed.reply_id or job.reply_status != "pending":
            return job is not None and job.reply_status == "undeliverable"
        # From what the sender knew, not from the row: written twice it must count once.
        tries = max(job.reply_tries, self.owed.tries + 1)
        if tries >= MOST_TRIES:
            writes.update_job(self.key, reply_tries=tries, reply_status="undeliverable", reply_due_at=None)
            return True
        writes.update_job(
            self.key, reply_tries=tries, reply_due_at=self.at + _FIRST_RETURN * 2 ** (tries - 1)
        )
        return False
