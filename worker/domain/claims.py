"""Who may run a job: the decision that a claim, or a wish to wait, meets."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias

_DUE_SOON: Final = timedelta(seconds=1)
"""A copy comes back from a waiting room about when its job is due; so near counts as due."""


SUSPICIOUS: Final = 2
"""So many workers must have died over a job before it runs by itself: one death says nothing about it.

Its claim writes no intent, since it may have to wait for others of its kind."""


class JobStatus(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Whether the job has its outcome."""
        return self not in {JobStatus.WAITING, JobStatus.RUNNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A job as a claim finds it."""

    status: JobStatus
    fingerprint: bytes | None
    """None where a cancel request came before its job: nothing else is known then."""
    lease_token: int | None
    owner_alive_until: datetime | None
    """None where the owner has signed off, or there is none."""
    attempts: int
    step_attempts: int
    next_attempt_at: datetime | None
    cancel_requested: bool
    takeovers: int = 0
    intent_written: bool = False
    """Whether the claim that holds the job has an attempt in flight."""

    def held(self, now: datetime) -> bool:
        """Whether a living worker runs it."""
        if self.status is not JobStatus.RUNNING:
            return False
        return self.owner_alive_until is not None and self.owner_alive_until > now


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """The job goes to the claim. With an intent, `attempt_no` is the one it writes."""

    attempt_no: int
    step_attempts: int
    """Attempts of the current step before this claim."""
    intent: bool
    takeover: bool = False
    cancel_requested: bool = False
    again: bool = False
    """It was written before, and only its confirmation was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Postpone:
    """A living worker holds it, or its time has not come."""

    until: datetime
    held: bool


class Refuse(StrEnum):
    """The job has its outcome, or is another one of the same name."""

    DONE = "done"
    CONFLICT = "conflict"


Decision: TypeAlias = Take | Postpone | Refuse


def decide(
    standing: Standing, *, fingerprint: bytes, lease_token: int, intent: bool, now: datetime
) -> Decision:
    """Decide what becomes of a claim on a job that is already known."""
    if standing.fingerprint not in {None, fingerprint}:
        return Refuse.CONFLICT
    if standing.status.terminal:
        return Refuse.DONE
    if standing.status is JobStatus.RUNNING and standing.lease_token == lease_token:
        return _taken_already(standing)
    return _postponed(standing, now) or _take(standing, intent=intent)


def may_wait(standing: Standing, *, fingerprint: bytes, lease_token: int | None, now: datetime) -> bool:
    """Decide whether a job may be sent waiting by a claim's holder, or by one who never claimed it."""
    if standing.status.terminal:
        return False
    if lease_token is not None:
        return standing.lease_token == lease_token
    return standing.fingerprint in {None, fingerprint} and not standing.held(now)


def _taken_already(standing: Standing) -> Take:
    written = standing.intent_written
    return Take(
        attempt_no=standing.attempts,
        step_attempts=standing.step_attempts - int(written),
        intent=written,
        cancel_requested=standing.cancel_requested and not written,
        again=True,
    )


def _postponed(standing: Standing, now: datetime) -> Postpone | None:
    if standing.held(now) and standing.owner_alive_until is not None:
        return Postpone(until=standing.owner_alive_until, held=True)
    due = standing.next_attempt_at
    if due is None or standing.cancel_requested or standing.status is JobStatus.RUNNING:
        return None
    return Postpone(until=due, held=False) if due > now + _DUE_SOON else None


def _take(standing: Standing, *, intent: bool) -> Take:
    takeover = standing.status is JobStatus.RUNNING
    suspect = standing.takeovers + takeover >= SUSPICIOUS
    write = intent and not standing.cancel_requested and not suspect
    return Take(
        attempt_no=standing.attempts + int(write),
        step_attempts=standing.step_attempts,
        intent=write,
        takeover=takeover,
        cancel_requested=standing.cancel_requested,
    )
