"""Who may run a job, as a table of cases."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from worker.domain.claims import (
    SUSPICIOUS,
    Decision,
    JobStatus,
    Postpone,
    Refuse,
    Standing,
    Take,
    decide,
    may_wait,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
OURS, THEIRS = 7, 8
CONTENT, OTHER = b"content", b"other"
TERMINAL = [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED]

RUNNING = Standing(
    status=JobStatus.RUNNING,
    fingerprint=CONTENT,
    lease_token=THEIRS,
    owner_alive_until=NOW + 30 * SECOND,
    attempts=3,
    step_attempts=2,
    next_attempt_at=None,
    cancel_requested=False,
)
WAITING = replace(
    RUNNING,
    status=JobStatus.WAITING,
    owner_alive_until=None,
    next_attempt_at=NOW + 10 * SECOND,
)
TOMBSTONE = replace(
    WAITING,
    fingerprint=None,
    lease_token=None,
    attempts=0,
    step_attempts=0,
    next_attempt_at=None,
    cancel_requested=True,
)


def decided(standing: Standing, *, intent: bool = True) -> Decision:
    """Decide on our claim."""
    return decide(standing, fingerprint=CONTENT, lease_token=OURS, intent=intent, now=NOW)


@pytest.mark.parametrize("standing", [RUNNING, WAITING, replace(RUNNING, status=JobStatus.SUCCEEDED)])
def test_other_content_conflicts_whatever_the_status(standing: Standing) -> None:
    """The key belongs to its first content."""
    assert decided(replace(standing, fingerprint=OTHER)) is Refuse.CONFLICT


@pytest.mark.parametrize("status", TERMINAL)
def test_done_is_done(status: JobStatus) -> None:
    """A job with an outcome is not run again, not even by the claim that ran it."""
    assert decided(replace(RUNNING, status=status, lease_token=OURS)) is Refuse.DONE


def test_living_owner_keeps_the_job() -> None:
    """A held job is worth asking for when its owner may be dead."""
    assert decided(RUNNING) == Postpone(until=NOW + 30 * SECOND, held=True)


@pytest.mark.parametrize("alive_until", [None, NOW, NOW - SECOND])
def test_dead_owner_loses_the_job(alive_until: datetime | None) -> None:
    """An owner that signed off or fell silent is taken over, and the step goes on counting."""
    assert decided(replace(RUNNING, owner_alive_until=alive_until)) == Take(
        attempt_no=4, step_attempts=2, intent=True, takeover=True
    )


@pytest.mark.parametrize("status", [JobStatus.RUNNING, JobStatus.WAITING])
def test_suspect_is_taken_without_an_attempt(status: JobStatus) -> None:
    """It may have to wait for others of its kind, so that its attempt is written once it may run."""
    takeover = status is JobStatus.RUNNING
    suspect = replace(
        RUNNING, status=status, owner_alive_until=None, takeovers=SUSPICIOUS - takeover, next_attempt_at=None
    )
    taken = Take(attempt_no=3, step_attempts=2, intent=False, takeover=takeover)
    assert decided(suspect) == taken
    before = replace(suspect, takeovers=suspect.takeovers - 1)
    assert decided(before) == replace(taken, attempt_no=4, intent=True)


def test_claim_without_intent_starts_no_attempt() -> None:
    """Then the number is that of the last attempt so far."""
    assert decided(replace(RUNNING, owner_alive_until=None), intent=False) == Take(
        attempt_no=3, step_attempts=2, intent=False, takeover=True
    )


def test_waiting_job_is_postponed_to_its_time() -> None:
    """Its time is the time to ask again."""
    assert decided(WAITING) == Postpone(until=NOW + 10 * SECOND, held=False)


@pytest.mark.parametrize("due", [None, NOW - SECOND, NOW, NOW + SECOND])
def test_waiting_job_is_taken_when_due_or_nearly(due: datetime | None) -> None:
    """A copy that comes back a moment early is not sent round again; this is no takeover."""
    assert decided(replace(WAITING, next_attempt_at=due)) == Take(attempt_no=4, step_attempts=2, intent=True)


def test_cancelled_job_is_taken_at_once_and_without_an_attempt() -> None:
    """There is nothing to wait for, and nothing to call."""
    taken = Take(attempt_no=3, step_attempts=2, intent=False, cancel_requested=True)
    assert decided(replace(WAITING, cancel_requested=True)) == taken


def test_living_owner_keeps_even_a_cancelled_job() -> None:
    """Who runs it ends it."""
    assert decided(replace(RUNNING, cancel_requested=True)) == Postpone(until=NOW + 30 * SECOND, held=True)


def test_tombstone_is_adopted() -> None:
    """A job that comes after its cancel request is taken, to be cancelled."""
    assert decided(TOMBSTONE) == Take(attempt_no=0, step_attempts=0, intent=False, cancel_requested=True)


@pytest.mark.parametrize("alive_until", [None, NOW + SECOND])
def test_our_own_claim_is_confirmed_again(alive_until: datetime | None) -> None:
    """A claim that is written but was not confirmed gets its answer, not a refusal or a second attempt."""
    ours = replace(RUNNING, lease_token=OURS, owner_alive_until=alive_until, intent_written=True)
    again = Take(attempt_no=3, step_attempts=1, intent=True, again=True)
    assert decided(ours) == again
    assert decided(replace(ours, cancel_requested=True)) == again


def test_our_own_claim_without_intent_is_confirmed_again() -> None:
    """Then no attempt was added, and a cancel request still counts."""
    ours = replace(RUNNING, lease_token=OURS, cancel_requested=True)
    assert decided(ours) == Take(
        attempt_no=3, step_attempts=2, intent=False, cancel_requested=True, again=True
    )


@pytest.mark.parametrize(
    ("standing", "token", "fingerprint", "allowed"),
    [
        (RUNNING, THEIRS, CONTENT, True),
        (RUNNING, OURS, CONTENT, False),
        (RUNNING, None, CONTENT, False),
        (replace(RUNNING, owner_alive_until=NOW), None, CONTENT, True),
        (WAITING, None, CONTENT, True),
        (WAITING, THEIRS, CONTENT, True),
        (WAITING, OURS, CONTENT, False),
        (WAITING, None, OTHER, False),
        (TOMBSTONE, None, CONTENT, True),
        *[(replace(RUNNING, status=status), THEIRS, CONTENT, False) for status in TERMINAL],
        *[(replace(RUNNING, status=status), None, CONTENT, False) for status in TERMINAL],
    ],
)
def test_who_may_send_a_job_waiting(
    standing: Standing, token: int | None, fingerprint: bytes, *, allowed: bool
) -> None:
    """Its holder may, and anyone while nobody alive holds it."""
    assert may_wait(standing, fingerprint=fingerprint, lease_token=token, now=NOW) is allowed
