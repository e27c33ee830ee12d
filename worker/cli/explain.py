"""Why a job stands where it stands, in plain words."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from worker.domain.claims import JobStatus

if TYPE_CHECKING:
    from worker.adapters.database.queries import JobRow, WorkerRow


def explain(job: "JobRow", workers: Sequence["WorkerRow"], now: datetime | None = None) -> list[str]:
    """Return what is known, the reason first."""
    now = now or datetime.now(UTC)
    return list(_lines(job, workers, now))


def _lines(job: "JobRow", workers: Sequence["WorkerRow"], now: datetime) -> Iterator[str]:
    status = JobStatus(job.status)
    if status.terminal:
        code = f" ({job.error_code})" if job.error_code else ""
        yield f"it {_ENDS[status]}{code} at {_time(job.finished_at)}, after {job.attempts} requests to OpenAI"
        yield _REPLIES[job.reply_status].format(queue=job.reply_to)
        return
    if status is JobStatus.RUNNING:
        yield _running(job, workers, now)
    elif job.kind is None:
        yield "only a request to cancel it is known; the job itself has not arrived"
    else:
        yield _waiting(job, now)
    if job.cancel_requested_at:
        yield f"its cancellation was asked for at {_time(job.cancel_requested_at)}"
    if job.takeovers:
        yield f"it was taken over {job.takeovers} times from workers that died or stalled"


_ENDS = {
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "was cancelled",
    JobStatus.EXPIRED: "expired",
}
_REPLIES = {
    "none": "nobody asked for a reply; the result is stored",
    "pending": "its reply to {queue} is owed and will be published by any worker",
    "sent": "its reply to {queue} was confirmed by the broker",
    "undeliverable": "its reply is undeliverable, since there is no queue {queue}; the result is stored",
}


def _running(job: "JobRow", workers: Sequence["WorkerRow"], now: datetime) -> str:
    owner = next((one for one in workers if one.worker_id == job.lease_owner), None)
    if owner is None or owner.alive_until <= now:
        since = f" since {_time(owner.alive_until)}" if owner else ""
        return f"its worker has given no sign of life{since}; the next one to get its message takes it over"
    return (
        f"it is at work on {owner.host}, process {owner.pid}, with {job.attempts} requests to OpenAI so far"
    )


def _waiting(job: "JobRow", now: datetime) -> str:
    due = job.next_attempt_at
    why = f"it waits: {job.waiting_for}" if job.waiting_for else "it waits in its queue for a free worker"
    if due is None:
        return why
    seconds = (due - now).total_seconds()
    return f"{why}; due at {_time(due)}, " + (f"in {seconds:.0f} s" if seconds > 0 else "which is now")


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "an unknown time"
