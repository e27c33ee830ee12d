"""One claimed job at work: each step is admitted, written down, sent, judged and perhaps tried again."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

import orjson
from typing_extensions import override

from schemas.failure import Failure, FailureCode
from worker.core.journal import Journal
from worker.core.kind import Reserve, Steps
from worker.core.limits import Need, Permit, PostponedError
from worker.core.services import Services
from worker.core.worktime import WorkTime
from worker.domain.answer import Answer, GarbledAnswerError, read_answer
from worker.domain.attempt import Intent
from worker.domain.budget import OverBudget, OverBudgetError
from worker.domain.events import CredentialsClosed
from worker.domain.job import Job
from worker.domain.outcome import Answered, Lost, Outcome, Refused
from worker.domain.retry import backoff_seconds
from worker.domain.tokens import has_maximum
from worker.domain.usage import Usage
from worker.domain.verdict import Closes, Verdict, judge_garbled, judge_lost, judge_refused
from worker.ports import Call, Claimed


class GaveUpError(Exception):
    """A step failed for good."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


class ExpiredError(Exception):
    """The job's deadline has passed."""


class JobRun(Steps):
    """The claim of one job. `admitted` is the permit and intent of its first request, where already given."""

    def __init__(
        self,
        job: Job,
        claimed: Claimed,
        journal: Journal,
        services: Services,
        admitted: tuple[Permit, Intent] | None,
    ) -> None:
        self.job = job
        self.claimed = claimed
        self.journal = journal
        self.step_attempts = claimed.step_attempts
        allowed = job.options.timeout_seconds or services.policy.job_timeout
        self.work = WorkTime(allowed - claimed.worked_seconds, worked=claimed.worked_seconds)
        self.received_at = claimed.received_at or job.received_at
        self.started_at = claimed.started_at or (admitted[1].started_at if admitted else None)
        self._services = services
        self._admitted = admitted

    @override
    async def call(self, request: Mapping[str, Any], reserve: Reserve) -> Answer:
        await self.journal.write()
        body = orjson.dumps(request)
        while True:
            permit, intent = await self._admission(request, reserve)
            try:
                outcome = await self._exchange(body, intent)
            except BaseException:
                permit.settle(used=True)
                raise
            judged = self._judge(outcome)
            # Before its permit ends: that lets the next one go.
            self._close(judged)
            _settle(permit, outcome, judged)
            if isinstance(judged, Answer):
                request_id = outcome.request_id if isinstance(outcome, Answered) else None
                self.journal.answered(intent, judged, request_id)
                self.step_attempts = 0
                return judged
            self.journal.failed(intent, judged)
            await self._before_next_try(judged)

    @override
    async def checkpoint(self, state: bytes) -> None:
        await self.journal.write(state)

    @override
    def working(self) -> AbstractAsyncContextManager[None]:
        return self.work.spending(bounded=True)

    def forgo(self) -> None:
        """Give a permit back unused: the job ends or stops before its request, or that may not leave."""
        if self._admitted is not None:
            permit, _ = self._admitted
            permit.cancel()
            self._admitted = None
            self.journal.not_sent()

    async def _admission(self, request: Mapping[str, Any], reserve: Reserve) -> tuple[Permit, Intent]:
        """Return a permit that holds once its intent is written: others may have been refused meanwhile."""
        while True:
            self._admitted = await self._next_admission(request, reserve)
            if await self._admitted[0].holds():
                # Whoever ends here has sent nothing: the permit is given back.
                self.work.check()
                check_deadline(self.job, self._services)
                admitted, self._admitted = self._admitted, None
                return admitted
            self.forgo()
            await self.journal.write()

    async def _next_admission(self, request: Mapping[str, Any], reserve: Reserve) -> tuple[Permit, Intent]:
        if self._admitted is not None:
            return self._admitted
        self.work.check()
        if self.work.is_over:
            raise TimeoutError
        check_deadline(self.job, self._services)
        usage = reserve(request)
        need = need_of(self.job, request, usage, self._services, self.received_at)
        permit = await self._services.limiter.admit(need, self._services.policy.patience)
        try:
            check_deadline(self.job, self._services)
            intent = await self.journal.open_attempt(request, usage)
        except OverBudgetError as error:
            permit.cancel()
            raise _over_budget(error.over) from error
        except BaseException:
            permit.cancel()
            raise
        self.started_at = self.started_at or intent.started_at
        return permit, intent

    async def _exchange(self, body: bytes, intent: Intent) -> Outcome:
        seconds = max(self.work.left, 0.001)
        call = Call(kind=self.job.kind, body=body, account=self.journal.account, timeout=seconds)
        self.journal.left(intent)
        async with self.work.spending():
            return await self._services.openai.send(call)

    def _judge(self, outcome: Outcome) -> Answer | Verdict:
        match outcome:
            case Answered():
                try:
                    return read_answer(self.job.kind, outcome.body)
                except GarbledAnswerError as error:
                    return judge_garbled(str(error), outcome.request_id)
            case Refused():
                return judge_refused(outcome, self._services.clock.now())
            case Lost():
                return judge_lost(outcome)

    async def _before_next_try(self, verdict: Verdict) -> None:
        """Write the failure down, then wait, or raise what ends or postpones the job."""
        policy = self._services.policy
        # Credentials that nobody can use are no fault of the job: it waits for as long as they are closed.
        self.step_attempts += verdict.closes is not Closes.CREDENTIALS
        pause = backoff_seconds(max(1, self.step_attempts), verdict.retry_after, self._services.random)
        limit = self.job.options.max_attempts or policy.max_attempts
        if not verdict.retry or self.step_attempts >= limit or self.work.is_over:
            raise GaveUpError(verdict.failure)
        await self.journal.write()
        if verdict.closes is not Closes.NOTHING:
            return  # it waits in line with all the others
        if pause > policy.patience:
            raise PostponedError(pause, f"retry after {verdict.failure.code}")
        await self._services.clock.sleep(pause)

    def _close(self, verdict: Answer | Verdict) -> None:
        """Close what a refusal closes, for every job that shares it."""
        if isinstance(verdict, Answer) or verdict.closes is Closes.NOTHING:
            return
        pause = backoff_seconds(self.step_attempts + 1, verdict.retry_after, self._services.random)
        account, services = self.journal.account, self._services
        reason = verdict.reason or verdict.failure.openai_code or verdict.failure.code.value
        if verdict.closes is Closes.BUCKET:
            services.limiter.close_bucket(account, self.job.model, pause, reason)
        else:
            services.limiter.close_account(account, pause, reason)
            services.observer(CredentialsClosed(account=account.name, reason=reason))


def _settle(permit: Permit, outcome: Outcome, judged: Answer | Verdict) -> None:
    """Tell the limits what became of a request."""
    if not isinstance(outcome, Lost):
        permit.heard(outcome.headers)
    if isinstance(judged, Answer):
        permit.answered(judged.usage)
    elif isinstance(outcome, Lost) and not outcome.sent:
        permit.cancel()
    else:
        permit.settle(used=judged.maybe_billed)


def need_of(
    job: Job,
    request: Mapping[str, Any],
    reserve: Usage,
    services: Services,
    received_at: datetime | None = None,
) -> Need:
    """Return what a request of this job asks of the limits."""
    return Need(
        key=job.key,
        account=services.account_of(job.key),
        model=str(request["model"]),
        input_tokens=reserve.input_tokens,
        output_tokens=reserve.output_tokens,
        open_ended=reserve.output_tokens > 0 and not has_maximum(request),
        high=job.high,
        received_at=(received_at or job.received_at).timestamp(),
    )


def check_budget(claimed: Claimed) -> None:
    """Raise what a request without money for it leads to: PostponedError or GaveUpError."""
    if claimed.over_budget is not None:
        raise _over_budget(claimed.over_budget)


def _over_budget(over: OverBudget) -> PostponedError | GaveUpError:
    if over.wait_seconds is not None:
        return PostponedError(over.wait_seconds, over.reason)
    return GaveUpError(Failure(code=FailureCode.BUDGET_EXCEEDED, message=over.reason))


def check_deadline(job: Job, services: Services) -> None:
    """Raise ExpiredError once the job's deadline has passed."""
    deadline = job.options.deadline
    if deadline is not None and deadline <= services.clock.now():
        raise ExpiredError
