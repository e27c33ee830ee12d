"""Why a job stands where it stands, in plain words."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from worker.cli.output import dollars
from worker.domain.claims import JobStatus

if TYPE_CHECKING:
    from worker.adapters.database.limits import ClosedAccount, LimitRow
    from worker.adapters.database.queries import JobDetail, JobRow, WorkerRow

NEVER_CAME: Final = "only a request to cancel it is known; the job itself has not arrived"
LEASE_SECONDS: Final = 60.0
_OVERDUE: Final = 0.5
"""Of a lease, without a sign of life: one comes with every third."""


def explain(
    job: "JobRow",
    workers: Sequence["WorkerRow"],
    now: datetime | None = None,
    *,
    calling: bool = True,
    limits: Sequence["LimitRow"] = (),
    closed: Sequence["ClosedAccount"] = (),
    lease_seconds: float = LEASE_SECONDS,
) -> list[str]:
    """Return what is known, the reason first. `calling`: a request of it may be at OpenAI."""
    now = now or datetime.now(UTC)
    lines = list(_lines(job, workers, now, timedelta(seconds=lease_seconds)))
    if not JobStatus(job.status).terminal and not (job.status == JobStatus.RUNNING and calling):
        lines += _limits(job, limits, closed)
    return lines


def money(detail: "JobDetail") -> list[str]:
    """Say what the job holds of its tenant's budget, and how that stands."""
    lines = [
        f"request {hold.attempt_no} holds {dollars(hold.nano_usd)} US dollars of the budget for {hold.month}"
        for hold in detail.holds
    ]
    if detail.budget is not None and not JobStatus(detail.job.status).terminal:
        spent, held = dollars(detail.budget.spent_nano_usd), dollars(detail.budget.held_nano_usd)
        lines.append(
            f"its tenant has spent {spent} US dollars in {detail.budget.month};"
            f" requests in flight hold {held}"
        )
    return lines


def _limits(job: "JobRow", limits: Sequence["LimitRow"], closed: Sequence["ClosedAccount"]) -> Iterator[str]:
    """Say which limits stand between a job and its request, and for how long."""
    for one in closed:
        wait = max(0.0, one.closed_seconds)
        yield f"credentials {one.account} are closed: {one.closed_for}; they are tried again in {wait:.0f} s"
    for row in limits:
        if not row.concerns(job.model):
            continue
        where = f"the limit of {row.name} on the account {row.account}"
        if row.paused:
            yield f"{where} is paused until `openai-worker limits resume {row.name}`"
        elif row.closed_seconds:
            yield f"{where} is closed for {row.closed_seconds:.0f} s: {row.closed_for}"
        elif row.waiting or row.wait_seconds:
            yield (
                f"{where} is in use: {row.waiting} requests are in line before or beside it, "
                f"a new one could start in about {row.wait_seconds:.0f} s"
            )


def _lines(job: "JobRow", workers: Sequence["WorkerRow"], now: datetime, lease: timedelta) -> Iterator[str]:
    status = JobStatus(job.status)
    if status.terminal:
        code = f" ({job.error_code})" if job.error_code else ""
        yield f"it {_ENDS[status]}{code} at {_time(job.finished_at)}, after {_requests(job)}"
        yield _reply(job, now)
        return
    if status is JobStatus.RUNNING:
        yield _running(job, workers, now, lease)
    elif job.kind is None:
        yield NEVER_CAME
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


def _reply(job: "JobRow", now: datetime) -> str:
    # Here, as it brings a library along that `--help` would wait for.
    from worker.adapters.database.replies import MOST_TRIES

    if job.reply_status != "pending" or not job.reply_tries:
        return _REPLIES[job.reply_status].format(queue=job.reply_to)
    due = job.reply_due_at
    when = "which is now" if due is None or due <= now else f"in {(due - now).total_seconds():.0f} s"
    return (
        f"its reply was returned {job.reply_tries} of {MOST_TRIES} times: no queue {job.reply_to};"
        f" next try at {_time(due)}, {when}"
    )


def _running(job: "JobRow", workers: Sequence["WorkerRow"], now: datetime, lease: timedelta) -> str:
    owner = next((one for one in workers if one.worker_id == job.lease_owner), None)
    if owner is None or owner.alive_until <= now:
        since = f" since {_time(owner.alive_until)}" if owner else ""
        return f"its worker has given no sign of life{since}; the next one to get its message takes it over"
    # The lease is that of our own settings: nobody writes down how long a worker's is.
    seen = max(owner.started_at, owner.alive_until - lease)
    if now - seen > lease * _OVERDUE:
        return (
            f"its worker on {owner.host}, process {owner.pid}, gave its last sign of life at {_time(seen)},"
            " and the next is overdue; without one,"
            f" others take the job over from {_time(owner.alive_until)} on"
        )
    return f"it is at work on {owner.host}, process {owner.pid}, with {_requests(job)} so far"


def _waiting(job: "JobRow", now: datetime) -> str:
    due = job.next_attempt_at
    why = f"it waits: {job.waiting_for}" if job.waiting_for else "it waits in its queue for a free worker"
    if due is None:
        return why
    seconds = (due - now).total_seconds()
    return f"{why}; due at {_time(due)}, " + (f"in {seconds:.0f} s" if seconds > 0 else "which is now")


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "an unknown time"


def _requests(job: "JobRow") -> str:
    return f"{job.attempts} request{'' if job.attempts == 1 else 's'} to OpenAI"
