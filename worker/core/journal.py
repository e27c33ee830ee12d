"""The attempts of one claimed job: what must be written, and what they have cost."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from worker.core.accounting import estimated, intent_for, measured
from worker.core.services import Services
from worker.domain.answer import Answer
from worker.domain.attempt import Account, AttemptRecord, AttemptState, Entry, Intent, LedgerEntry
from worker.domain.events import AttemptFinished
from worker.domain.job import Job
from worker.domain.spend import Spend
from worker.domain.usage import Usage
from worker.domain.verdict import Verdict
from worker.ports import Claimed, NextAttempt, Progress


class LostClaimError(Exception):
    """Another worker has taken the job over; nothing more may be done for it here."""


class Journal:
    """Writes under one claim. The last outcome is held back, for the commit of what follows from it."""

    def __init__(self, job: Job, claimed: Claimed, lease_token: int, services: Services) -> None:
        self.lease_token = lease_token
        self.attempt_no = claimed.attempt_no
        self.spend: Spend = claimed.spend
        self.account: Account = services.account_of(job.key)
        self.checkpointed = claimed.checkpoint is not None
        """Whether the next worker would go on from somewhere."""
        self._job = job
        self._services = services
        self._pending: AttemptRecord | None = None
        self._sent: Intent | None = None
        """Of the last request that has left."""
        self._open = False
        """Whether nothing is known yet of what became of it."""
        self._doubted = False
        self._spend_before: Spend = claimed.spend

    async def open_attempt(self, request: Mapping[str, Any], reserve: Usage) -> Intent:
        """Write the intent of the next attempt. Raises LostClaimError."""
        intent = intent_for(request, reserve, self.account, self._services.prices, self._services.clock.now())
        attempt = NextAttempt(
            key=self._job.key,
            lease_token=self.lease_token,
            attempt_no=self.attempt_no + 1,
            intent=intent,
        )
        if not await self._services.store.next_attempt(attempt):
            raise LostClaimError
        self.attempt_no += 1
        return intent

    def left(self, intent: Intent) -> None:
        """Note that the request is about to leave: however this ends, it may be at OpenAI and billed."""
        self._sent, self._open, self._doubted = intent, True, False

    def answered(self, intent: Intent, answer: Answer, request_id: str | None) -> None:
        """Note an answer."""
        ledger = measured(answer, intent, self._services.prices, self._services.clock.now())
        self._pending = self._record(AttemptState.SUCCEEDED, ledger, http_status=200, request_id=request_id)
        self._tell(self._pending, intent)

    def failed(self, intent: Intent, verdict: Verdict) -> None:
        """Note an attempt without an answer."""
        failure = verdict.failure
        self._pending = self._record(
            verdict.state,
            self._estimate(intent) if verdict.maybe_billed else None,
            http_status=failure.http_status,
            error_code=failure.openai_code or failure.code.value,
            request_id=failure.openai_request_id,
        )
        self._tell(self._pending, intent)

    def not_sent(self) -> None:
        """Note that an attempt whose intent is written will not be made."""
        self._pending = self._record(AttemptState.FAILED, None, error_code="not_sent")

    def take(self) -> AttemptRecord | None:
        """Return the outcome that the next commit must contain; from here on it counts as spent."""
        if self._open and self._sent is not None:
            self._pending = self._record(
                AttemptState.UNKNOWN, self._estimate(self._sent), error_code="interrupted"
            )
        record, self._pending = self._pending, None
        self._spend_before = self.spend
        if record is not None and record.ledger is not None:
            self.spend = self.spend.plus(record.ledger)
        return record

    def doubt(self, record: AttemptRecord | None) -> None:
        """Take back an outcome that cannot be written: what is left of it is that money may be spent."""
        self.spend, self._doubted = self._spend_before, True
        if record is None or record.ledger is None or self._sent is None:
            self._pending = record
        else:
            ledger = self._estimate(self._sent)
            self._pending = replace(
                record, state=AttemptState.UNKNOWN, error_code="not_stored", ledger=ledger
            )

    async def write(self, checkpoint: bytes | None = None) -> None:
        """Write the last outcome, if it is not written yet. Raises LostClaimError."""
        record = self.take()
        if record is None:
            return
        progress = Progress(lease_token=self.lease_token, record=record, checkpoint=checkpoint)
        self.checkpointed |= checkpoint is not None
        try:
            kept = await self._services.store.progress(progress)
        except Exception:
            # It goes into the next commit, as far as it can be believed; refused again, it is given up.
            if not self._doubted:
                self.doubt(record)
            raise
        if not kept:
            raise LostClaimError

    def _estimate(self, intent: Intent) -> LedgerEntry:
        return estimated(intent, self._services.clock.now())

    def _record(
        self,
        state: AttemptState,
        ledger: LedgerEntry | None,
        *,
        http_status: int | None = None,
        error_code: str | None = None,
        request_id: str | None = None,
    ) -> AttemptRecord:
        self._open = False
        return AttemptRecord(
            key=self._job.key,
            attempt_no=self.attempt_no,
            state=state,
            finished_at=self._services.clock.now(),
            http_status=http_status,
            error_code=error_code,
            openai_request_id=request_id,
            ledger=ledger,
            labels=self._job.labels,
            account=self.account,
        )

    def _tell(self, record: AttemptRecord, intent: Intent) -> None:
        ledger = record.ledger
        self._services.observer(
            AttemptFinished(
                key=record.key,
                attempt_no=record.attempt_no,
                model=ledger.model if ledger else intent.model,
                state=record.state,
                http_status=record.http_status,
                error_code=record.error_code,
                openai_request_id=record.openai_request_id,
                seconds=(record.finished_at - intent.started_at).total_seconds(),
                usage=ledger.usage if ledger else None,
                cost_nano_usd=ledger.cost_nano_usd if ledger else None,
                estimated=ledger is not None and ledger.entry is Entry.ESTIMATED,
            )
        )
