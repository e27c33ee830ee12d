"""Commit 1: the claim of a job, together with the intent of its first request."""

from dataclasses import dataclass, replace
from datetime import datetime

from typing_extensions import override

from worker.adapters.database.errors import OvertakenError
from worker.adapters.database.ledger import Row, estimate, ledger_row, spend_of, usage_document
from worker.adapters.database.tables import attempts, requests, usage_ledger
from worker.adapters.database.work import LockedJob, OpenAttempt, Operation, Past, Writes
from worker.domain.attempt import AttemptRecord, AttemptState, Intent, LedgerEntry
from worker.domain.budget import OverBudget
from worker.domain.claims import SUSPICIOUS, JobStatus, Postpone, Refuse, Standing, Take, decide
from worker.domain.job import Job, JobKey, ReplyAddress
from worker.domain.spend import Spend
from worker.ports import AlreadyDone, Claim, Claimed, ClaimResult, Conflicting, NotNow, OwedReply


@dataclass(frozen=True, slots=True)
class ClaimJob(Operation[ClaimResult]):
    """Claims a job for a worker."""

    claim: Claim
    owner: str

    @property
    @override
    def key(self) -> JobKey:
        return self.claim.job.key

    @property
    @override
    def size(self) -> int:
        return len(self.claim.job.body)

    @property
    @override
    def moments(self) -> tuple[datetime, ...]:
        intent = self.claim.intent
        return (intent.started_at,) if intent else ()

    @override
    def first_row(self) -> Row | None:
        return self.new_row() if self.claim.first else None

    @override
    def new_row(self) -> Row:
        first = int(self.claim.intent is not None)
        return {
            **job_columns(self.claim.job),
            "status": JobStatus.RUNNING.value,
            "attempts": first,
            "step_attempts": first,
            "started_at": self.claim.at,
            "lease_owner": self.owner,
            "lease_token": self.claim.lease_token,
            "next_attempt_at": None,
            "waiting_for": None,
            "cancel_requested_at": None,
        }

    @override
    def needs_past(self, job: LockedJob) -> bool:
        return not self._fresh(job)

    @override
    def apply(self, job: LockedJob | None, past: Past | None, writes: Writes) -> ClaimResult:
        if job is None:
            raise OvertakenError
        if past is None:
            return self._first(job, writes)
        decision = decide(
            standing(job, past),
            fingerprint=self.claim.job.fingerprint,
            lease_token=self.claim.lease_token,
            intent=self.claim.intent is not None,
            now=self.claim.at,
        )
        match decision:
            case Take():
                return self._take(decision, job, past, writes)
            case Postpone():
                return NotNow(until=decision.until, held=decision.held)
            case Refuse.DONE:
                return AlreadyDone(
                    reply=_stored_reply(job, past),
                    sent=job.reply_status == "sent",
                    erased=past.result is None,
                )
            case Refuse.CONFLICT:
                return Conflicting()

    def _fresh(self, job: LockedJob) -> bool:
        """Whether the row is the one just inserted, or looks exactly like it."""
        first = int(self.claim.intent is not None)
        return (
            job.lease_token == self.claim.lease_token
            and job.status == JobStatus.RUNNING
            and (job.attempts, job.step_attempts, job.takeovers) == (first, first, 0)
            and not job.cancel_requested
        )

    def _first(self, job: LockedJob, writes: Writes) -> Claimed:
        claim = self.claim
        insert_request(writes, claim.job)
        over = self._hold(1, writes)
        if over is not None:
            writes.update_job(self.key, attempts=0, step_attempts=0)
        elif claim.intent is not None:
            insert_attempt(writes, self.key, 1, claim.intent, owner=self.owner, lease_token=claim.lease_token)
        return Claimed(
            attempt_no=int(claim.intent is not None and over is None),
            received_at=job.received_at,
            started_at=claim.at,
            over_budget=over,
        )

    def _hold(self, attempt_no: int, writes: Writes) -> OverBudget | None:
        intent = self.claim.intent
        return writes.budgets.hold(self.key, attempt_no, intent, self.owner) if intent else None

    def _take(self, take: Take, job: LockedJob, past: Past, writes: Writes) -> Claimed:
        spend = past.spend
        takeovers = job.takeovers
        over = None
        if take.again:
            suspect = takeovers >= SUSPICIOUS
            if self.claim.intent is not None and not (take.intent or take.cancel_requested or suspect):
                # Written before, without its intent: there was no money for it.
                over = OverBudget("budget: asked for again", 1.0)
        else:
            over = self._hold(take.attempt_no, writes) if take.intent else None
            if over is not None:
                take = replace(take, intent=False, attempt_no=take.attempt_no - 1)
            spend = settle_unknown(writes, job, past, self.claim.at)
            takeovers += int(take.takeover)
            self._write(take, job, past, takeovers, writes)
        return Claimed(
            attempt_no=take.attempt_no,
            step_attempts=take.step_attempts,
            spend=spend,
            checkpoint=past.checkpoint,
            takeovers=takeovers,
            worked_seconds=past.worked_seconds,
            cancel_requested=take.cancel_requested,
            received_at=_received(job, self.claim.job),
            started_at=past.started_at or self.claim.at,
            over_budget=over,
        )

    def _write(self, take: Take, job: LockedJob, past: Past, takeovers: int, writes: Writes) -> None:
        claim = self.claim
        columns = job_columns(claim.job) | {"received_at": _received(job, claim.job)}
        writes.update_job(
            self.key,
            **{name: value for name, value in columns.items() if name not in {"tenant", "job_id"}},
            status=JobStatus.RUNNING.value,
            attempts=take.attempt_no,
            step_attempts=take.step_attempts + int(take.intent),
            takeovers=takeovers,
            started_at=past.started_at or claim.at,
            lease_owner=self.owner,
            lease_token=claim.lease_token,
            next_attempt_at=None,
            waiting_for=None,
        )
        insert_request(writes, claim.job)
        if take.intent and claim.intent is not None:
            insert_attempt(
                writes,
                self.key,
                take.attempt_no,
                claim.intent,
                owner=self.owner,
                lease_token=claim.lease_token,
            )


def standing(job: LockedJob, past: Past | None) -> Standing:
    """Return the job as the decision sees it."""
    tried = past.open_attempts.values() if past else ()
    return Standing(
        status=JobStatus(job.status),
        fingerprint=job.fingerprint,
        lease_token=job.lease_token,
        owner_alive_until=past.owner_alive_until if past else None,
        attempts=job.attempts,
        step_attempts=job.step_attempts,
        takeovers=job.takeovers,
        next_attempt_at=past.next_attempt_at if past else None,
        cancel_requested=job.cancel_requested,
        intent_written=any(
            attempt.state is AttemptState.IN_FLIGHT and attempt.lease_token == job.lease_token
            for attempt in tried
        ),
    )


def job_columns(job: Job) -> Row:
    """Return the columns of `jobs` that come from the job itself."""
    return {
        "tenant": job.key.tenant,
        "job_id": job.key.job_id,
        "kind": job.kind.value,
        "lane": job.lane,
        "model": job.model,
        "labels": dict(job.labels),
        "received_at": job.received_at,
        "fingerprint": job.fingerprint,
        "reply_to": job.address.queue,
        "correlation_id": job.address.correlation_id,
    }


def insert_request(writes: Writes, job: Job) -> None:
    """Keep the message, for those who take the job over or want it replayed."""
    writes.insert(requests, {"tenant": job.key.tenant, "job_id": job.key.job_id, "body": job.body})


def insert_attempt(
    writes: Writes, key: JobKey, attempt_no: int, intent: Intent, *, owner: str, lease_token: int
) -> None:
    """Write an intent."""
    prices = intent.reserved_prices
    row = {
        "tenant": key.tenant,
        "job_id": key.job_id,
        "attempt_no": attempt_no,
        "state": AttemptState.IN_FLIGHT.value,
        "started_at": intent.started_at,
        "model": intent.model,
        "service_tier": intent.service_tier,
        "account": intent.account.name,
        "organization": intent.account.organization,
        "project": intent.account.project,
        "worker_id": owner,
        "lease_token": lease_token,
        "reserved_usage": usage_document(intent.reserved),
        "reserved_cost_nano_usd": intent.reserved_cost_nano_usd,
        "reserved_prices": None if prices is None else dict(prices),
    }
    writes.insert(attempts, row)


def settle_unknown(writes: Writes, job: LockedJob, past: Past, at: datetime) -> Spend:
    """Write off the attempts that a lost worker left in flight; return the spend with them."""
    spend = spend_of(past.booked)
    for attempt in past.open_attempts.values():
        if attempt.state is AttemptState.IN_FLIGHT:
            spend = spend.plus(_settle(writes, job, attempt, past, at))
    return spend


def _settle(writes: Writes, job: LockedJob, attempt: OpenAttempt, past: Past, at: datetime) -> LedgerEntry:
    key = JobKey(job.tenant, job.job_id)
    writes.record_outcome(
        AttemptRecord(key=key, attempt_no=attempt.attempt_no, state=AttemptState.UNKNOWN, finished_at=at)
    )
    # When it was begun, not when it is found: that may be months later, and its hold is in that month.
    entry = estimate(attempt.model, attempt.service_tier, attempt.reserved, attempt.started_at)
    writes.insert(
        usage_ledger,
        ledger_row(
            key,
            attempt.attempt_no,
            entry,
            received_at=job.received_at,
            kind=job.kind,
            labels=past.labels,
            account=attempt.account,
        ),
    )
    return entry


def _received(job: LockedJob, claimed: Job) -> datetime:
    """Return when the job came first. From its first claim on it stays: its ledger rows hang on it."""
    known = job.kind is not None
    return job.received_at if known else claimed.received_at


def _stored_reply(job: LockedJob, past: Past) -> OwedReply:
    key = JobKey(job.tenant, job.job_id)
    return OwedReply(
        key=key,
        reply_id=job.reply_id or "",
        address=ReplyAddress(queue=past.reply_to, correlation_id=past.correlation_id or key.job_id),
        body=past.result or b"",
        tries=job.reply_tries,
    )
