"""One claimed job at work: each step is admitted, written down, sent, judged and perhaps tried again."""

from collections.abc import Mapping
from typing import Any

import orjson
from typing_extensions import override

from schemas.failure import Failure
from worker.core.journal import Journal
from worker.core.kind import Steps
from worker.core.limits import Need, Permit, PostponedError
from worker.core.services import Services
from worker.core.worktime import WorkTime
from worker.domain.answer import Answer, GarbledAnswerError, read_answer
from worker.domain.attempt import Intent
from worker.domain.events import CredentialsClosed
from worker.domain.job import Job
from worker.domain.outcome import Answered, Lost, Outcome, Refused
from worker.domain.retry import backoff_seconds
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
        self.work = WorkTime(job.options.timeout_seconds or services.policy.job_timeout)
        self.received_at = claimed.received_at or job.received_at
        self.started_at = claimed.started_at or (admitted[1].started_at if admitted else None)
        self._services = services
        self._admitted = admitted

    @override
    async def call(self, request: Mapping[str, Any], reserve: Usage) -> Answer:
        await self.journal.write()
        body = orjson.dumps(request)
        while True:
            permit, intent = await self._admission(request, reserve)
            try:
                outcome = await self._exchange(body, intent)
            except BaseException:
                permit.settle(reserve.total_tokens)
                raise
            judged = self._judge(outcome)
            self._settle(permit, outcome, judged, reserve)
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

    def forgo(self) -> None:
        """Give the first permit back unused: the job ends or stops before its request."""
        if self._admitted is not None:
            permit, _ = self._admitted
            permit.cancel()
            self._admitted = None
            self.journal.not_sent()

    async def _admission(self, request: Mapping[str, Any], reserve: Usage) -> tuple[Permit, Intent]:
        if self._admitted is not None:
            admitted, self._admitted = self._admitted, None
            return admitted
        self.work.check()
        check_deadline(self.job, self._services)
        need = need_of(self.job, request, reserve, self._services)
        permit = await self._services.limiter.admit(need, self._services.policy.patience)
        try:
            check_deadline(self.job, self._services)
            intent = await self.journal.open_attempt(request, reserve)
        except BaseException:
            permit.cancel()
            raise
        self.started_at = self.started_at or intent.started_at
        return permit, intent

    async def _exchange(self, body: bytes, intent: Intent) -> Outcome:
        seconds = max(self.work.left, 0.001)
        call = Call(kind=self.job.kind, body=body, account=self.journal.account, timeout=seconds)
        self.journal.left(intent)
        try:
            async with self.work.spending():
                return await self._services.openai.send(call)
        except TimeoutError:
            return Lost(sent=True, timed_out=True, message=f"no complete answer within {seconds:.0f} s")

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

    def _settle(self, permit: Permit, outcome: Outcome, judged: Answer | Verdict, reserve: Usage) -> None:
        if isinstance(judged, Answer):
            permit.settle((judged.usage or reserve).total_tokens)
            self._services.limiter.succeeded(self.journal.account)
        elif isinstance(outcome, Lost) and not outcome.sent:
            permit.cancel()
        else:
            permit.settle(reserve.total_tokens if judged.maybe_billed else 0)

    async def _before_next_try(self, verdict: Verdict) -> None:
        """Write the failure down, then wait, or raise what ends or postpones the job."""
        policy = self._services.policy
        self.step_attempts += 1
        pause = backoff_seconds(self.step_attempts, verdict.retry_after, self._services.random)
        if verdict.closes is not Closes.NOTHING:
            self._close(verdict, pause)
        limit = self.job.options.max_attempts or policy.max_attempts
        if not verdict.retry or self.step_attempts >= limit or self.work.left <= 0:
            raise GaveUpError(verdict.failure)
        await self.journal.write()
        if verdict.closes is not Closes.NOTHING:
            return  # it waits in line with all the others
        if pause > policy.patience:
            raise PostponedError(pause, f"retry after {verdict.failure.code}")
        await self._services.clock.sleep(pause)

    def _close(self, verdict: Verdict, pause: float) -> None:
        """Close what the refusal closes, for every job that shares it."""
        account, services = self.journal.account, self._services
        reason = verdict.failure.openai_code or verdict.failure.code.value
        if verdict.closes is Closes.BUCKET:
            services.limiter.close_bucket(account, self.job.model, pause, reason)
        else:
            services.limiter.close_account(account, pause, reason)
            services.observer(CredentialsClosed(account=account.name, reason=reason))


def need_of(job: Job, request: Mapping[str, Any], reserve: Usage, services: Services) -> Need:
    """Return what a request of this job asks of the limits."""
    return Need(
        key=job.key,
        account=services.account_of(job.key.tenant),
        model=str(request["model"]),
        tokens=reserve.total_tokens,
        high=job.high,
    )


def check_deadline(job: Job, services: Services) -> None:
    """Raise ExpiredError once the job's deadline has passed."""
    deadline = job.options.deadline
    if deadline is not None and deadline <= services.clock.now():
        raise ExpiredError
