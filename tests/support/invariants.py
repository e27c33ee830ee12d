"""What must hold after every fault, whatever it was: the invariants I1 to I8."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from schemas.names import DEAD
from tests.support.broker import plain
from tests.support.rows import rows
from tests.support.upstream import Seen
from worker.adapters.rabbitmq.topology import QUEUES
from worker.domain.job import JobKey

TERMINAL = {"succeeded", "failed", "cancelled", "expired"}
NAMED = re.compile(r"<([\w-]+)>")
COUNTED = ("input_tokens", "output_tokens")
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is left when all workers have stopped."""

    sent: Sequence[JobKey]
    """The jobs that had to be accepted, each named in its prompt as `<job_id>`."""
    replies: Sequence[AbstractIncomingMessage]
    requests: Sequence[Seen]
    dead: Sequence[AbstractIncomingMessage]
    logs: Sequence[Sequence[Row]]
    secrets: Sequence[str]
    amqp_url: str
    database_url: str


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the faults of a test may have cost."""

    extra_calls: int = 0
    """Requests beyond one a job: faults between intent and commit 2, and answers that ask for another."""
    unsent: int = 0
    """Attempts whose intent was written and whose request never left."""
    unknown: int = 0
    """Attempts whose outcome nobody knows."""
    dead: int = 0
    undelivered: int = 0
    """Jobs whose reply queue is gone, so that nobody can have their reply."""
    requests_per_minute: float | None = None
    burst: float = 0


async def check(evidence: Evidence, allowance: Allowance) -> None:
    """Raise AssertionError naming the invariant that does not hold."""
    jobs = await rows(evidence.database_url, "SELECT * FROM jobs")
    attempts = await rows(evidence.database_url, "SELECT * FROM attempts ORDER BY tenant, job_id, attempt_no")
    ledger = await rows(evidence.database_url, "SELECT * FROM usage_ledger ORDER BY id")
    _i1_one_outcome_each(evidence, jobs)
    _i2_a_reply_each_and_copies_identical(evidence, allowance)
    _i3_ledger_equals_answers(evidence, attempts, ledger)
    _i4_calls_bounded(evidence, allowance, attempts)
    _i5_requests_have_attempts(evidence, allowance, jobs, attempts)
    await _i6_queues_drained(evidence, allowance)
    _i7_within_the_limit(evidence, allowance)
    _i8_nothing_leaks(evidence)


def _i1_one_outcome_each(evidence: Evidence, jobs: Sequence[Row]) -> None:
    states = {JobKey(job["tenant"], job["job_id"]): job["status"] for job in jobs}
    assert set(states) == set(evidence.sent), "I1: the jobs on record are those that were sent"
    open_jobs = {key: state for key, state in states.items() if state not in TERMINAL}
    assert not open_jobs, f"I1: jobs without an outcome: {open_jobs}"


def _i2_a_reply_each_and_copies_identical(evidence: Evidence, allowance: Allowance) -> None:
    copies: dict[JobKey, set[tuple[str, bytes]]] = defaultdict(set)
    for message in evidence.replies:
        reply = json.loads(message.body)
        if (reply["error"] or {}).get("code") in {"invalid_job", "conflict"}:
            continue
        key = JobKey(reply["tenant"], reply["job_id"])
        copies[key].add((str(message.headers["x-reply-id"]), message.body))
    different = [key for key, found in copies.items() if len(found) > 1]
    assert not different, f"I2: copies that differ: {different}"
    missing = set(evidence.sent) - set(copies)
    assert len(missing) == allowance.undelivered, f"I2: without a reply: {missing}"


def _i3_ledger_equals_answers(evidence: Evidence, attempts: Sequence[Row], ledger: Sequence[Row]) -> None:
    """Every success is booked as the server counted it; every doubt is an estimate; nothing twice."""
    booked = Counter(_attempt(row) for row in ledger if row["entry"] != "correction")
    assert not [key for key, count in booked.items() if count > 1], "I3: an attempt booked twice"
    sums: dict[Any, Counter[str]] = defaultdict(Counter)
    for row in ledger:
        sums[_attempt(row)].update({name: row[name] for name in COUNTED} | {"rows": 1})
        sums[_attempt(row)]["estimated"] += row["estimated_requests"]
    served = {f"req_{seen.number}": seen for seen in evidence.requests}
    for attempt in attempts:
        total = sums.get(_attempt(attempt))
        if attempt["state"] == "succeeded":
            assert total is not None, f"I3: a success that is not booked: {_attempt(attempt)}"
            counted = _counted(served[attempt["openai_request_id"]])
            assert total["estimated"] == (counted is None), (
                f"I3: neither measured nor, where no count came, an estimate: {_attempt(attempt)}"
            )
            if counted is not None:
                assert [total[name] for name in COUNTED] == counted, f"I3: tokens of {_attempt(attempt)}"
        elif attempt["state"] == "unknown":
            assert total is not None, f"I3: an unknown attempt without an estimate: {_attempt(attempt)}"
            assert total["estimated"] == 1, (
                f"I3: an unknown attempt not marked estimated: {_attempt(attempt)}"
            )
    requests_of = Counter(row["openai_request_id"] for row in attempts if row["openai_request_id"])
    assert not [one for one, count in requests_of.items() if count > 1], "I3: one answer counted twice"


def _counted(seen: Seen) -> list[int] | None:
    """Return the tokens that the server says it has used, None where it says nothing that can be."""
    usage = seen.answer.get("usage", {})
    told = [
        usage.get("prompt_tokens", usage.get("input_tokens")),
        usage.get("completion_tokens", usage.get("output_tokens")),
    ]
    return told if all(isinstance(count, int) and 0 <= count < 2**53 for count in told) else None


def _i4_calls_bounded(evidence: Evidence, allowance: Allowance, attempts: Sequence[Row]) -> None:
    most = len(evidence.sent) + allowance.extra_calls
    assert len(evidence.requests) <= most, f"I4: {len(evidence.requests)} calls, at most {most} expected"
    unknown = sum(row["state"] == "unknown" for row in attempts)
    assert unknown <= allowance.unknown, (
        f"I4: {unknown} attempts in doubt, at most {allowance.unknown} expected"
    )


def _i5_requests_have_attempts(
    evidence: Evidence, allowance: Allowance, jobs: Sequence[Row], attempts: Sequence[Row]
) -> None:
    asked = Counter(_job_named(seen) for seen in evidence.requests)
    made = Counter(row["job_id"] for row in attempts)
    for job_id, count in asked.items():
        assert count <= made[job_id], f"I5: {job_id}: {count} requests, {made[job_id]} attempts"
    unsent = len(attempts) - len(evidence.requests)
    assert unsent <= allowance.unsent, f"I5: {unsent} attempts without a request"
    assert not [row for row in attempts if row["state"] == "in_flight"], "I5: an attempt is still open"
    numbers: dict[JobKey, list[int]] = defaultdict(list)
    for row in attempts:
        numbers[JobKey(row["tenant"], row["job_id"])].append(row["attempt_no"])
    for job in jobs:
        found = numbers[JobKey(job["tenant"], job["job_id"])]
        assert found == list(range(1, job["attempts"] + 1)), f"I5: {job['job_id']} attempts {found}"


def _job_named(seen: Seen) -> str:
    found = NAMED.search(json.dumps(seen.body))
    assert found, f"I5: a request of no job: {seen.number}"
    return found[1]


async def _i6_queues_drained(evidence: Evidence, allowance: Allowance) -> None:
    left = {name: count for name, count in (await ready_counts(evidence.amqp_url)).items() if count}
    assert not left, f"I6: messages left: {left}"
    assert len(evidence.dead) == allowance.dead, f"I6: {[letter.headers for letter in evidence.dead]}"


def _i7_within_the_limit(evidence: Evidence, allowance: Allowance) -> None:
    """For every window, over all workers: no more than the bucket's size and what flows in meanwhile."""
    rate = allowance.requests_per_minute
    if rate is None:
        return
    times = sorted(seen.monotonic for seen in evidence.requests)
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            most = allowance.burst + rate / 60 * (times[last] - start)
            assert last - first + 1 <= most + 1, f"I7: {last - first + 1} in {times[last] - start:.2f} s"


def _i8_nothing_leaks(evidence: Evidence) -> None:
    errors = [json.loads(message.body)["error"] for message in evidence.replies]
    reasons = [[letter.headers.get("x-reason"), letter.headers.get("x-lane")] for letter in evidence.dead]
    said = json.dumps([evidence.logs, errors, reasons], default=str)
    for secret in evidence.secrets:
        assert secret not in said, f"I8: {secret!r} was shown"


def _attempt(row: Row) -> tuple[Any, ...]:
    return row["tenant"], row["job_id"], row["attempt_no"]


async def ready_counts(amqp_url: str) -> dict[str, int]:
    """Return how many messages lie ready in each queue but that of the dead."""
    async with plain(amqp_url) as channel:
        return {queue.name: await _ready(channel, queue.name) for queue in QUEUES if queue.name != DEAD}


async def _ready(channel: aio_pika.abc.AbstractChannel, name: str) -> int:
    declared = await channel.declare_queue(name, passive=True)
    return declared.declaration_result.message_count or 0
