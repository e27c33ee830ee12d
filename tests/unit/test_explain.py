"""Why a job stands where it stands."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.adapters.database.limits import ClosedAccount, LimitRow
from worker.adapters.database.queries import JobRow, WorkerRow
from worker.cli.explain import explain

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
WORKER = WorkerRow(
    worker_id="w1",
    host="box",
    pid=7,
    started_at=NOON,
    alive_until=NOON + timedelta(seconds=30),
    running=1,
)

RETURNED = "its reply was returned 2 of 5 times: no queue q; next try at 2026-11-22 12:01:00 UTC, in 60 s"


def job(**fields: Any) -> JobRow:
    """Return a waiting job of which nothing special is known."""
    plain: dict[str, Any] = dict.fromkeys(JobRow.__dataclass_fields__)
    plain |= {"tenant": "acme", "job_id": "one", "kind": "tool", "status": "waiting", "attempts": 1}
    plain |= {"labels": {}, "reply_status": "none", "received_at": NOON, "takeovers": 0, "reply_tries": 0}
    return JobRow(**(plain | fields))


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({}, ["it waits in its queue for a free worker"]),
        ({"kind": None}, ["only a request to cancel it is known; the job itself has not arrived"]),
        (
            {"waiting_for": "rate limit", "next_attempt_at": NOON + timedelta(seconds=90)},
            ["it waits: rate limit; due at 2026-11-22 12:01:30 UTC, in 90 s"],
        ),
        (
            {"waiting_for": "rate limit", "next_attempt_at": NOON, "cancel_requested_at": NOON},
            [
                "it waits: rate limit; due at 2026-11-22 12:00:00 UTC, which is now",
                "its cancellation was asked for at 2026-11-22 12:00:00 UTC",
            ],
        ),
        (
            {"status": "running", "lease_owner": "w1", "takeovers": 2},
            [
                "it is at work on box, process 7, with 1 request to OpenAI so far",
                "it was taken over 2 times from workers that died or stalled",
            ],
        ),
        (
            {"status": "running", "lease_owner": "gone"},
            ["its worker has given no sign of life; the next one to get its message takes it over"],
        ),
        (
            {"status": "failed", "error_code": "timeout", "finished_at": NOON},
            [
                "it failed (timeout) at 2026-11-22 12:00:00 UTC, after 1 request to OpenAI",
                "nobody asked for a reply; the result is stored",
            ],
        ),
        (
            {"status": "succeeded", "finished_at": NOON, "reply_status": "pending", "reply_to": "q"},
            [
                "it succeeded at 2026-11-22 12:00:00 UTC, after 1 request to OpenAI",
                "its reply to q is owed and will be published by any worker",
            ],
        ),
        (
            {
                "status": "succeeded",
                "finished_at": NOON,
                "reply_status": "pending",
                "reply_to": "q",
                "reply_tries": 2,
                "reply_due_at": NOON + timedelta(seconds=60),
            },
            [
                "it succeeded at 2026-11-22 12:00:00 UTC, after 1 request to OpenAI",
                RETURNED,
            ],
        ),
        (
            {"status": "succeeded", "finished_at": NOON, "reply_status": "undeliverable", "reply_to": "q"},
            [
                "it succeeded at 2026-11-22 12:00:00 UTC, after 1 request to OpenAI",
                "its reply is undeliverable, since there is no queue q; the result is stored",
            ],
        ),
    ],
)
def test_the_reason_comes_first(fields: dict[str, Any], lines: list[str]) -> None:
    """Each state is told in plain words, with what it waits for and until when."""
    assert explain(job(**fields), [WORKER], NOON) == lines


def a_limit(**fields: Any) -> LimitRow:
    """Return a limit that nobody waits for."""
    plain: dict[str, Any] = dict.fromkeys(LimitRow.__dataclass_fields__, 0)
    plain |= {
        "account": "main",
        "name": "gpt-*",
        "closed_for": "",
        "paused": False,
        "learned_from": "headers",
    }
    return LimitRow(**(plain | fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"paused": True}, "is paused until `openai-worker limits resume gpt-*`"),
        (
            {"closed_seconds": 20.0, "closed_for": "rate_limit_exceeded"},
            "is closed for 20 s: rate_limit_exceeded",
        ),
        ({"waiting": 7, "wait_seconds": 3.0}, "a new one could start in about 3 s"),
    ],
)
def test_the_limit_that_a_job_waits_for_is_named(fields: dict[str, Any], said: str) -> None:
    """In a waiting room, and at a worker that has not sent a request yet; never once it is answered."""
    limits = [a_limit(**fields), a_limit(name="other", paused=True)]
    for standing in ({"status": "waiting"}, {"status": "running", "lease_owner": "w1"}):
        lines = explain(job(model="gpt-6", **standing), [WORKER], NOON, calling=False, limits=limits)
        assert len(lines) == 2
        assert lines[1].startswith("the limit of gpt-* on the account main")
        assert said in lines[1]
    done = job(model="gpt-6", status="succeeded", finished_at=NOON)
    assert len(explain(done, [WORKER], NOON, calling=False, limits=limits)) == 2


def test_closed_credentials_are_named() -> None:
    """Since they hold up every job that uses them."""
    closed = [ClosedAccount(account="main", closed_seconds=40, closed_for="insufficient_quota")]
    lines = explain(job(model="gpt-6"), [WORKER], NOON, closed=closed)
    assert lines[1] == "credentials main are closed: insufficient_quota; they are tried again in 40 s"


def test_a_worker_whose_sign_of_life_is_overdue_is_told() -> None:
    """Within the lease of a worker that may be dead, who waits learns from when on others take over."""
    alive = WorkerRow(
        worker_id="w1",
        host="box",
        pid=7,
        started_at=NOON - timedelta(hours=1),
        alive_until=NOON + timedelta(seconds=60),
        running=1,
    )
    running = job(status="running", lease_owner="w1")
    (line,) = explain(running, [alive], NOON + timedelta(seconds=25), lease_seconds=60)
    assert line.startswith("it is at work on box, process 7")
    (line,) = explain(running, [alive], NOON + timedelta(seconds=35), lease_seconds=60)
    assert line == (
        "its worker on box, process 7, gave its last sign of life at 2026-11-22 12:00:00 UTC, and the next is"
        " overdue; without one, others take the job over from 2026-11-22 12:01:00 UTC on"
    )


def test_a_worker_that_stopped_breathing_is_told() -> None:
    """A job whose worker's lease has run out is not said to be at work."""
    later = NOON + timedelta(seconds=31)
    (line,) = explain(job(status="running", lease_owner="w1"), [WORKER], later)
    assert line.startswith("its worker has given no sign of life since 2026-11-22 12:00:30 UTC")
