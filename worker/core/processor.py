"""One delivery, from the queue to its reply. Read this file first.

receive, decode, admit, claim + intent (commit 1), wait for a place,
call, outcome + result + owed reply (commit 2), ack, reply
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from schemas.failure import FailureCode
from schemas.names import Kind
from worker.core.accounting import intent_for
from worker.core.ending import (
    End,
    end_of_error,
    end_of_result,
    erased_reply,
    failed,
    finished_event,
    release,
    write_end,
)
from worker.core.intake import Rejection
from worker.core.journal import Journal, LostClaimError
from worker.core.kind import KindHandler
from worker.core.limits import Permit, PostponedError, TooLargeError
from worker.core.refusal import Refusal
from worker.core.replies import Replies
from worker.core.run import JobRun, check_budget, check_deadline, need_of
from worker.core.services import Services
from worker.core.worktime import StoppedError
from worker.domain.attempt import Intent
from worker.domain.claims import SUSPICIOUS
from worker.domain.events import Broken, JobRepeated, JobWaits
from worker.domain.job import Job, JobKey
from worker.domain.retry import room_seconds
from worker.domain.usage import Usage
from worker.ports import (
    AlreadyDone,
    Claim,
    Claimed,
    Conflicting,
    Delivery,
    NotNow,
    Place,
    Publisher,
    PublishError,
    Settlement,
)

_BROKER_PAUSE: Final = 10.0
"""Seconds before a delivery goes back whose copy the broker did not take."""
_QUICK_LOOK: Final = 5.0
"""Seconds that a copy of a job at work waits, the first times; then until its claim may end."""
_QUICK_LOOKS: Final = 6
_SUSPECT_HEAD_START: Final = 1.0
"""Seconds that other suspects have to be released before one runs."""
_SUSPECT_PAUSE: Final = 5.0
"""Seconds after which a job comes back that may not run beside another suspect."""
_LATE_SECONDS: Final = 0.5
"""After so long a wait for a place, a permit is out of date."""


class Processor:
    """Handles deliveries, each in a task of its own; holds nothing but the jobs at work."""

    def __init__(
        self,
        *,
        decode: Callable[[Delivery], Job | Rejection],
        handlers: Mapping[Kind, KindHandler],
        services: Services,
        publisher: Publisher,
        replies: Replies,
        new_token: Callable[[], int],
    ) -> None:
        self._decode = decode
        self._handlers = handlers
        self._services = services
        self._publisher = publisher
        self._replies = replies
        self._refusal = Refusal(publisher, services.clock, services.observer)
        self._new_token = new_token
        self._running: dict[JobKey, JobRun] = {}
        self._suspect: JobKey | None = None

    async def __call__(self, delivery: Delivery, place: Place) -> Settlement:
        """Take a delivery as far as it can go now. What it leads to is durable before it is settled."""
        job = self._decode(delivery)
        try:
            if isinstance(job, Rejection):
                await self._refusal.invalid(delivery, job)
                return Settlement.ACK
            match await self._claim(job, first=not delivery.came_before):
                case JobRun() as run:
                    return await self._run(delivery, place, run)
                case AlreadyDone() as done:
                    return await self._repeat(delivery, job, done)
                case NotNow() as held_up:
                    self._services.observer(JobRepeated(key=job.key, what="not now"))
                    return await self._park(delivery, self._until_next_look(delivery, held_up))
                case Conflicting():
                    await self._refusal.conflict(delivery, job)
                    return Settlement.ACK
        except PublishError:
            # The broker is away or full: what is stored stays stored, and the delivery comes again.
            # Not at once: each time counts towards the queue's delivery limit.
            await self._services.clock.sleep(_BROKER_PAUSE)
            return Settlement.REQUEUE

    def cancel(self, key: JobKey) -> None:
        """Stop a job that is at work here: its open request is closed and counted as an estimate."""
        if key in self._running:
            self._running[key].work.stop()

    async def _claim(self, job: Job, *, first: bool) -> JobRun | AlreadyDone | NotNow | Conflicting:
        """Claim the job; where the limits have room at once, with its first attempt in the same commit."""
        services, token = self._services, self._new_token()
        reserve = self._handlers[job.kind].reserve(job.request)
        permit = await self._permit_at_once(job, reserve)
        account, now = services.account_of(job.key), services.clock.now()
        intent = intent_for(job.request, reserve, account, services.prices, now) if permit else None
        admitted = (permit, intent) if permit and intent else None
        try:
            claim = Claim(job=job, lease_token=token, intent=intent, at=now, first=first)
            result = await services.store.claim(claim)
        except BaseException:
            _give_back(admitted)
            raise
        if not isinstance(result, Claimed):
            _give_back(admitted)
            return result
        # Then the intent was not written.
        if result.cancel_requested or result.over_budget or result.takeovers >= SUSPICIOUS:
            _give_back(admitted)
            admitted = None
        return JobRun(job, result, Journal(job, result, token, services), services, admitted)

    async def _permit_at_once(self, job: Job, reserve: Usage) -> Permit | None:
        deadline = job.options.deadline
        if deadline is not None and deadline <= self._services.clock.now():
            return None
        try:
            return await self._services.limiter.try_admit(need_of(job, job.request, reserve, self._services))
        except TooLargeError:
            return None  # claimed all the same; it fails when it asks again

    async def _run(self, delivery: Delivery, place: Place, run: JobRun) -> Settlement:
        self._running[run.job.key] = run
        try:
            await _enter(place, run)
            return await self._finish(place, run, await self._work(delivery, run))
        except PostponedError as postponed:
            return await self._postpone(delivery, run, postponed)
        except LostClaimError:
            self._services.observer(JobRepeated(key=run.job.key, what="taken over"))
            return Settlement.ACK
        except asyncio.CancelledError:
            # The process is stopping: what the job has spent is written, and the job handed back.
            await release(run, self._services, seconds=0, reason="handed back")
            return Settlement.REQUEUE
        finally:
            self._running.pop(run.job.key, None)
            if self._suspect == run.job.key:
                self._suspect = None

    async def _work(self, delivery: Delivery, run: JobRun) -> End:
        """Run the job to its end. Raises what postpones it or takes it away."""
        claimed = run.claimed
        if claimed.takeovers > self._services.policy.max_takeovers:
            return await self._put_away(delivery, claimed.takeovers)
        if claimed.takeovers >= SUSPICIOUS:
            await self._isolate(run.job.key)
        try:
            if claimed.cancel_requested:
                raise StoppedError  # noqa: TRY301 (one place turns errors into ends)
            check_deadline(run.job, self._services)
            check_budget(claimed)
            return end_of_result(await self._handlers[run.job.kind].run(run.job, run, claimed.checkpoint))
        except (PostponedError, LostClaimError):
            raise
        except Exception as error:  # noqa: BLE001 (a bug may cost a job its success, not the worker its life)
            end = end_of_error(error)
            if end.is_bug:
                self._services.observer(Broken(key=run.job.key, where="job", error=error))
            return end

    async def _isolate(self, key: JobKey) -> None:
        """Let one suspect at a time run: if it is to blame, it takes no other along."""
        if self._suspect not in {None, key}:
            raise PostponedError(_SUSPECT_PAUSE, "runs by itself, since its worker died")
        self._suspect = key
        # The others are released first: a claim that it took along would count against its job.
        await self._services.clock.sleep(_SUSPECT_HEAD_START)

    async def _put_away(self, delivery: Delivery, takeovers: int) -> End:
        """Bury a job that its workers do not survive, then end it: a crash in between buries it twice."""
        reason = f"its worker died or stalled {takeovers} times while it ran this job"
        try:
            await self._publisher.bury(delivery, reason)
        except PublishError:
            raise PostponedError(_BROKER_PAUSE, "it cannot be put among the dead") from None
        return failed(FailureCode.INTERNAL, reason)

    async def _finish(self, place: Place, run: JobRun, end: End) -> Settlement:
        """Commit 2, after which the database owes the reply and not the delivery; then the reply.

        A broker that is busy takes a fifth of a second to confirm one: nobody waits for that
        to start the next job.
        """
        run.forgo()
        place.leave()
        finish = await write_end(run, end, self._services)
        self._services.observer(finished_event(run, finish))
        place.settle(Settlement.ACK)
        await self._replies.deliver(finish.reply)
        return Settlement.ACK

    async def _repeat(self, delivery: Delivery, job: Job, done: AlreadyDone) -> Settlement:
        """Answer a copy of a finished job from the stored reply, unless it is our own copy and answered."""
        self._services.observer(JobRepeated(key=job.key, what="done"))
        if not (delivery.came_before and done.sent and done.reply.address == job.address):
            reply = erased_reply(job, done, self._services.clock.now()) if done.erased else done.reply
            if reply.address == job.address:
                await self._replies.deliver(reply)
            else:
                await self._replies.deliver_copy(replace(reply, address=job.address))
        return Settlement.ACK

    async def _postpone(self, delivery: Delivery, run: JobRun, postponed: PostponedError) -> Settlement:
        seconds, reason = postponed.seconds, postponed.reason
        if not await release(run, self._services, seconds=seconds, reason=reason):
            return Settlement.ACK
        self._services.observer(JobWaits(key=run.job.key, lane=run.job.lane, seconds=seconds, reason=reason))
        return await self._park(delivery, seconds)

    def _until_next_look(self, delivery: Delivery, held_up: NotNow) -> float:
        """Return the seconds until a copy may do better: whoever holds the job may be done any moment.

        Most jobs are soon done. Of one that is not, the copies had better not come every few seconds.
        """
        left = (held_up.until - self._services.clock.now()).total_seconds()
        soon = held_up.held and delivery.times_parked < _QUICK_LOOKS
        return min(left, _QUICK_LOOK) if soon else left

    async def _park(self, delivery: Delivery, seconds: float) -> Settlement:
        """Leave a copy in a waiting room. A crash before the ack makes two copies of one claimable job."""
        await self._publisher.park(delivery, room_seconds(seconds))
        return Settlement.ACK


async def _enter(place: Place, run: JobRun) -> None:
    """Wait for a place, but not with a permit for long.

    Where places stood still, all who wait would leave at once, when the limits have
    room for others again; and those inside may want what they hold.
    """
    late = asyncio.get_running_loop().call_later(_LATE_SECONDS, run.forgo)
    try:
        await place.enter()
    finally:
        late.cancel()


def _give_back(admitted: tuple[Permit, Intent] | None) -> None:
    if admitted is not None:
        admitted[0].cancel()
