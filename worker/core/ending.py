"""How claims end: from what a run raised or returned to what is written, commit 2 above all."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Final

from schemas.failure import Failure, FailureCode
from schemas.reply import ReplyStatus
from worker.core.journal import LostClaimError
from worker.core.kind import Result
from worker.core.limits import TooLargeError
from worker.core.replies import reply_body
from worker.core.run import ExpiredError, GaveUpError, JobRun
from worker.core.services import Services
from worker.core.worktime import StoppedError
from worker.domain.answer import Answer
from worker.domain.events import Broken, JobFinished
from worker.domain.job import Job
from worker.ports import AlreadyDone, Finish, OwedReply, Wait

_REFUSED_PAUSE: Final = 10.0
"""Seconds before the database is asked again for what it refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a job ends."""

    status: ReplyStatus
    answer: Answer | None = None
    failure: Failure | None = None
    is_bug: bool = False
    """The program itself failed; observers are told where."""


def end_of_result(result: Result) -> End:
    """Return the end of a job whose handler came to a result."""
    status = ReplyStatus.FAILED if result.failure else ReplyStatus.SUCCEEDED
    return End(status=status, answer=result.answer, failure=result.failure)


def end_of_error(error: Exception) -> End:
    """Return the end of a job whose run raised."""
    match error:
        case GaveUpError():
            return End(status=ReplyStatus.FAILED, failure=error.failure)
        case TooLargeError():
            return failed(FailureCode.TOO_LARGE, str(error))
        case ExpiredError():
            message = "the job's deadline passed before its work was done"
            return End(status=ReplyStatus.EXPIRED, failure=Failure(code=FailureCode.EXPIRED, message=message))
        case StoppedError():
            failure = Failure(code=FailureCode.CANCELLED, message="cancelled on request")
            return End(status=ReplyStatus.CANCELLED, failure=failure)
        case TimeoutError():
            return failed(FailureCode.TIMEOUT, "the job's time ran out between its requests")
        case _:
            message = f"internal error ({type(error).__name__}); the worker's log says where"
            return replace(failed(FailureCode.INTERNAL, message), is_bug=True)


def failed(code: FailureCode, message: str) -> End:
    """Return a plain failure."""
    return End(status=ReplyStatus.FAILED, failure=Failure(code=code, message=message))


def finish_of(run: JobRun, end: End, now: datetime) -> Finish:
    """Return what commit 2 writes: the last outcome, the result, the state and the owed reply."""
    journal, job = run.journal, run.job
    record = journal.take()
    body = reply_body(
        key=job.key,
        kind=job.kind,
        status=end.status,
        answer=end.answer,
        failure=end.failure,
        spend=journal.spend,
        attempts=journal.attempt_no,
        received_at=run.received_at,
        started_at=run.started_at,
        finished_at=now,
    )
    return Finish(
        key=job.key,
        lease_token=journal.lease_token,
        status=end.status,
        error_code=end.failure.code.value if end.failure else None,
        record=record,
        checkpointed=journal.checkpointed,
        reply=OwedReply(key=job.key, reply_id=f"{journal.lease_token:016x}", address=job.address, body=body),
        finished_at=now,
    )


async def write_end(run: JobRun, end: End, services: Services) -> Finish:
    """Make an end durable; return what was written. Raises LostClaimError.

    An outcome that the database refuses becomes a failure. If it refuses that
    too, it is the database that is wrong, and both are tried until one is taken:
    given up, the job would stay ours, neither done nor anybody else's.
    """
    finish, other = finish_of(run, end, services.clock.now()), None
    for tries in count(1):
        try:
            kept = await services.store.finish(finish)
        except Exception as error:  # noqa: BLE001 (whatever is wrong, the answer must not be lost)
            services.observer(Broken(key=run.job.key, where="finish", error=error))
            finish, other = other or _instead(run, finish, error, services), finish
            if tries % 2 == 0:
                await services.clock.sleep(_REFUSED_PAUSE)
        else:
            break
    if not kept:
        raise LostClaimError
    return finish


def _instead(run: JobRun, finish: Finish, error: Exception, services: Services) -> Finish:
    run.journal.doubt(finish.record)
    return finish_of(run, end_of_error(error), services.clock.now())


async def release(run: JobRun, services: Services, *, seconds: float, reason: str) -> bool:
    """Give a claim up, for a while; False when it was lost already."""
    run.forgo()
    while True:
        try:
            await run.journal.write()
            now = services.clock.now()
            wait = Wait(
                job=run.job,
                lease_token=run.journal.lease_token,
                until=now + timedelta(seconds=seconds),
                reason=reason,
                step_attempts=run.step_attempts,
                worked_seconds=run.work.worked,
                at=now,
            )
            return await services.store.wait(wait)
        except LostClaimError:
            return False
        except Exception as error:  # noqa: BLE001 (as above: nobody else could take the job)
            # An outcome that was refused twice is not tried again: the next claim books it as unknown.
            services.observer(Broken(key=run.job.key, where="release", error=error))
            await services.clock.sleep(_REFUSED_PAUSE)


def erased_reply(job: Job, done: AlreadyDone, now: datetime) -> OwedReply:
    """Return the answer to a copy of a finished job whose stored reply is gone: it is not run again."""
    message = "this job is done, and its stored reply has been erased; it was not run again"
    body = reply_body(
        key=job.key,
        kind=job.kind,
        status=ReplyStatus.FAILED,
        answer=None,
        failure=Failure(code=FailureCode.EXPIRED, message=message),
        spend=None,
        attempts=0,
        received_at=job.received_at,
        started_at=None,
        finished_at=now,
    )
    # Not a copy of the reply that was erased, so not under its id.
    return replace(done.reply, body=body, reply_id=f"{done.reply.reply_id}-{now.timestamp():.0f}")


def finished_event(run: JobRun, finish: Finish) -> JobFinished:
    """Return what observers are told."""
    return JobFinished(
        key=run.job.key,
        kind=run.job.kind,
        lane=run.job.lane,
        model=run.job.model,
        status=finish.status,
        error_code=finish.error_code,
        attempts=run.journal.attempt_no,
        seconds=(finish.finished_at - run.received_at).total_seconds(),
    )
