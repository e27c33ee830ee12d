"""The real store under every order of deliveries, copies, deaths, lost confirmations and late finishes.

Time is the test's own: claims say when they are made, and a worker's sign of life is a row.
"""
# ruff: noqa: D401 (a rule says what happens, not what to do)

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from tests.support.databases import (
    NOON,
    a_claim,
    a_finish,
    a_job,
    a_next_attempt,
    a_progress,
    a_token,
    a_wait,
)
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.opening import Database, open_database
from worker.adapters.database.statements import Statements
from worker.adapters.database.store import SqlJobStore
from worker.adapters.database.work import Step
from worker.domain.claims import SUSPICIOUS, JobStatus
from worker.domain.events import Event
from worker.domain.job import Job
from worker.ports import AlreadyDone, Claim, Claimed, ClaimResult, Conflicting, Finish, NotNow

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

WORKERS = ("w0", "w1", "w2")
JOBS = ("a", "b")
LEASE = timedelta(seconds=30)
TOKENS = (80, 20)
"""What a measured attempt of `a_record` has used."""

workers = st.sampled_from(WORKERS)
jobs = st.sampled_from(JOBS)

SETTINGS = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    print_blob=True,
)


@dataclass(eq=False, repr=False)
class Run:
    """A claim somebody got; who died may still believe in it."""

    job: Job
    worker: str
    claim: Claim
    attempt_no: int
    open: bool
    """Whether its last attempt has no outcome yet, as far as it knows."""
    fresh: bool = True
    """Whether nothing was done with it yet."""
    ended: bool = False
    finish: Finish | None = None


NOT_ENDED: Callable[[Run], bool] = lambda run: not run.ended  # noqa: E731 (three conditions, side by side)
AT_WORK: Callable[[Run], bool] = lambda run: not run.ended and run.open  # noqa: E731
BETWEEN: Callable[[Run], bool] = lambda run: not run.ended and not run.open  # noqa: E731


@dataclass(frozen=True)
class SignOfLife(Step[None]):
    """Sets until when a worker counts as alive."""

    worker_id: str
    until: datetime

    @override
    async def run(self, connection: AsyncConnection, statements: Statements) -> None:
        row = {
            "worker_id": self.worker_id,
            "host": "h",
            "pid": 1,
            "started_at": NOON,
            "alive_until": self.until,
        }
        await connection.execute(statements.renew_worker, row)


@dataclass
class Outside:
    """What the machine works on, opened once for all its runs."""

    runner: asyncio.Runner
    database: Database
    reader: AsyncEngine
    events: list[Event]


class StoreMachine(RuleBasedStateMachine):
    """Deliver, duplicate, kill, expire, lose confirmations, finish as a zombie."""

    outside: Outside

    def __init__(self) -> None:
        super().__init__()
        self.tenant = f"t-{secrets.token_hex(6)}"
        self.now = NOON
        self.until = dict.fromkeys(WORKERS, NOON)
        self.silent: set[str] = set()
        self.runs: list[Run] = []
        self.holder: dict[str, Run] = {}
        self.outcomes: dict[str, tuple[str, bytes, str]] = {}
        self.jobs = {name: a_job(name, tenant=self.tenant, received_at=NOON) for name in JOBS}
        self.stores = {
            name: SqlJobStore(self.outside.database.writer, f"{self.tenant}-{name}") for name in WORKERS
        }
        for name in WORKERS:
            self._lives(name, self.now + LEASE)

    # ------------------------------------------------------------ what happens

    @rule(job=jobs, worker=workers, intent=st.booleans())
    def deliver(self, job: str, worker: str, intent: bool) -> None:  # noqa: FBT001 (drawn by Hypothesis)
        """A delivery, or a copy of one, reaches a worker."""
        self.silent.discard(worker)  # whoever takes a delivery lives
        self._lives(worker, self.now + LEASE)
        delivered = replace(self.jobs[job], received_at=self.now)
        claim = a_claim(delivered, a_token(), at=self.now, intent=intent)
        result: ClaimResult = self._do(self.stores[worker].claim(claim))
        holder = self.holder.get(job)
        match result:
            case Claimed():
                assert job not in self.outcomes, "a finished job was claimed again"
                assert holder is None or not self._alive(holder.worker), "two living holders"
                suspect = result.takeovers >= SUSPICIOUS
                written = intent and not (result.cancel_requested or suspect)
                run = Run(self.jobs[job], worker, claim, result.attempt_no, open=written)
                self.runs.append(run)
                self.holder[job] = run
            case AlreadyDone():
                assert self.outcomes[job][1:] == (result.reply.body, result.reply.reply_id), (
                    "the reply changed"
                )
            case NotNow():
                assert job not in self.outcomes
                assert result.until > self.now
            case Conflicting():
                pytest.fail("a job conflicts with itself")

    @rule(job=jobs, worker=workers)
    def deliver_other_content(self, job: str, worker: str) -> None:
        """The same name comes with other content."""
        other = replace(self.jobs[job], fingerprint=b"x" * 32)
        if job in self.holder or job in self.outcomes:
            result = self._do(self.stores[worker].claim(a_claim(other, a_token(), at=self.now)))
            assert isinstance(result, Conflicting)

    @precondition(lambda self: self._those(lambda run: run.fresh and self._holds(run)))
    @rule(data=st.data())
    def lose_confirmation_of_claim(self, data: st.DataObject) -> None:
        """The same claim is written again: while it holds, it gets the same answer."""
        run = data.draw(st.sampled_from(self._those(lambda run: run.fresh and self._holds(run))))
        again = self._do(self.stores[run.worker].claim(run.claim))
        assert isinstance(again, Claimed)
        assert again.attempt_no == run.attempt_no

    @precondition(lambda self: self._those(AT_WORK))
    @rule(data=st.data(), checkpoint=st.booleans(), twice=st.booleans())
    def record_and_go_on(self, data: st.DataObject, checkpoint: bool, twice: bool) -> None:  # noqa: FBT001
        """An attempt has its outcome and the job goes on; perhaps as a zombie, perhaps written twice."""
        run = data.draw(st.sampled_from(self._those(AT_WORK)))
        run.fresh = False
        progress = a_progress(
            run.job, run.claim.lease_token, run.attempt_no, b"state" if checkpoint else None
        )
        for _ in range(1 + twice):
            assert self._do(self.stores[run.worker].progress(progress)) == self._holds(run)
        run.open = False

    @precondition(lambda self: self._those(BETWEEN))
    @rule(data=st.data(), twice=st.booleans())
    def try_again(self, data: st.DataObject, twice: bool) -> None:  # noqa: FBT001
        """A further attempt begins, or is refused to a zombie."""
        run = data.draw(st.sampled_from(self._those(BETWEEN)))
        run.fresh = False
        attempt = a_next_attempt(run.job, run.claim.lease_token, run.attempt_no + 1)
        for _ in range(1 + twice):
            assert self._do(self.stores[run.worker].next_attempt(attempt)) == self._holds(run)
        if self._holds(run):
            run.attempt_no += 1
            run.open = True

    @precondition(lambda self: self._those(NOT_ENDED))
    @rule(data=st.data(), twice=st.booleans())
    def finish(self, data: st.DataObject, twice: bool) -> None:  # noqa: FBT001
        """A job ends, perhaps with a lost confirmation; a zombie's end is no end, but its spend is booked."""
        run = data.draw(st.sampled_from(self._those(NOT_ENDED)))
        held = self._holds(run)
        token = run.claim.lease_token
        finish = a_finish(run.job, token, run.attempt_no, finished_at=self.now)
        reply = replace(finish.reply, body=f"reply {token}".encode(), reply_id=f"{token:x}")
        finish = replace(finish, reply=reply, record=finish.record if run.open else None)
        for _ in range(1 + twice):
            assert self._do(self.stores[run.worker].finish(finish)) == held
        if held:
            self.outcomes[run.job.key.job_id] = (finish.status.value, reply.body, reply.reply_id)
        run.ended, run.open = True, False
        run.finish = finish

    @precondition(lambda self: any(run.finish for run in self.runs))
    @rule(data=st.data())
    def finish_late_again(self, data: st.DataObject) -> None:
        """A confirmation that was lost long ago is asked for again."""
        run = data.draw(st.sampled_from([one for one in self.runs if one.finish]))
        assert run.finish
        won = self.outcomes.get(run.job.key.job_id, ("", b"", ""))[2] == run.finish.reply.reply_id
        assert self._do(self.stores[run.worker].finish(run.finish)) == won

    @precondition(lambda self: self._those(BETWEEN))
    @rule(data=st.data(), seconds=st.integers(0, 60))
    def wait(self, data: st.DataObject, seconds: int) -> None:
        """A holder gives the job up until a time; a zombie may not."""
        run = data.draw(st.sampled_from(self._those(BETWEEN)))
        held = self._holds(run)
        wish = a_wait(run.job, run.claim.lease_token, seconds=seconds, at=self.now)
        assert self._do(self.stores[run.worker].wait(wish)) == held
        run.ended = True
        if held:
            del self.holder[run.job.key.job_id]

    @rule(worker=workers)
    def kill(self, worker: str) -> None:
        """A worker falls silent; the lease it left runs out with time. It may come back as a zombie."""
        self.silent.add(worker)

    @rule(worker=workers)
    def expire(self, worker: str) -> None:
        """Its lease runs out at once."""
        self.silent.add(worker)
        self._lives(worker, self.now - timedelta(seconds=1))

    @rule(seconds=st.sampled_from([1, 10, 31, 61]))
    def pass_time(self, seconds: int) -> None:
        """Time goes by; who lives says so."""
        self.now += timedelta(seconds=seconds)
        for worker in set(WORKERS) - self.silent:
            self._lives(worker, self.now + LEASE)

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        """Somebody wants a job cancelled; what is done stays done."""
        status = self._do(self.outside.database.cancels.request_cancel(self.jobs[job].key))
        assert status.terminal == (job in self.outcomes)

    @rule(job=jobs)
    def confirm_reply(self, job: str) -> None:
        """The broker has the reply."""
        self._do(self._note_sent(job))

    # ------------------------------------------------------------ what must hold

    @invariant()
    def numbers_without_gap_and_one_booking_each(self) -> None:
        """Attempts 1 … n; at most one row an attempt that is no correction; every doubt is an estimate.

        All rows of a job have its first time, by which the database keeps them to one an attempt.
        """
        attempts = self._rows(
            "SELECT job_id, attempt_no, state FROM attempts WHERE tenant = :tenant ORDER BY 1, 2"
        )
        ledger = self._rows("SELECT * FROM usage_ledger WHERE tenant = :tenant")
        counts = self._rows("SELECT job_id, attempts, received_at FROM jobs WHERE tenant = :tenant")
        for job in counts:
            mine = [row["attempt_no"] for row in attempts if row["job_id"] == job["job_id"]]
            assert mine == list(range(1, job["attempts"] + 1))
        received = {job["job_id"]: job["received_at"] for job in counts}
        assert all(row["received_at"] == received[row["job_id"]] for row in ledger)
        booked = [(row["job_id"], row["attempt_no"]) for row in ledger if row["entry"] != "correction"]
        assert len(booked) == len(set(booked))
        for attempt in attempts:
            rows = [
                row
                for row in ledger
                if (row["job_id"], row["attempt_no"]) == (attempt["job_id"], attempt["attempt_no"])
            ]
            self._booked_rightly(attempt["state"], rows)

    def _booked_rightly(self, state: str, rows: list[dict[str, Any]]) -> None:
        requests, estimated = (
            sum(row["requests"] for row in rows),
            sum(row["estimated_requests"] for row in rows),
        )
        used = (sum(row["input_tokens"] for row in rows), sum(row["output_tokens"] for row in rows))
        if state == "in_flight":
            assert not rows
        elif state == "unknown":
            assert (requests, estimated) == (1, 1)
        else:
            assert (requests, estimated, used) == (1, 0, TOKENS)

    @invariant()
    def one_outcome_and_a_stable_reply(self) -> None:
        """What is done keeps its state, its result and its reply's name, whatever comes afterwards."""
        found = self._rows(
            "SELECT j.job_id, j.status, j.reply_id, r.body FROM jobs j LEFT JOIN results r"
            " ON r.tenant = j.tenant AND r.job_id = j.job_id WHERE j.tenant = :tenant"
        )
        for row in found:
            outcome = self.outcomes.get(row["job_id"])
            assert JobStatus(row["status"]).terminal == (outcome is not None)
            if outcome is not None:
                assert (row["status"], bytes(row["body"]), row["reply_id"]) == outcome
        assert self.outside.events == []

    # ------------------------------------------------------------ how

    def _those(self, condition: Callable[[Run], bool]) -> list[Run]:
        return [run for run in self.runs if condition(run)]

    def _holds(self, run: Run) -> bool:
        """Whether this claim is the one that counts, and has not ended."""
        return self.holder.get(run.job.key.job_id) is run and not run.ended

    def _alive(self, worker: str) -> bool:
        return self.until[worker] > self.now

    def _lives(self, worker: str, until: datetime) -> None:
        self.until[worker] = until
        self._do(self.outside.database.writer.submit(SignOfLife(f"{self.tenant}-{worker}", until)))

    async def _note_sent(self, job: str) -> None:
        self.outside.database.outbox.sent(self.jobs[job].key)

    def _do(self, what: Any) -> Any:
        return self.outside.runner.run(_awaited(what))

    def _rows(self, query: str) -> list[dict[str, Any]]:
        return self.outside.runner.run(self._read(query))

    async def _read(self, query: str) -> list[dict[str, Any]]:
        async with self.outside.reader.connect() as connection:
            found = await connection.execute(text(query), {"tenant": self.tenant})
            return [dict(row) for row in found.mappings()]


async def _awaited(what: Any) -> Any:
    return await what


def test_store_survives_every_order_of_events(migrated_url: str) -> None:
    """No attempt booked twice or not at all, no second outcome, no gap, no other reply."""
    events: list[Event] = []
    with asyncio.Runner() as runner:
        opened = open_database(migrated_url, observer=events.append, lease_seconds=3600)
        database = runner.run(_awaited(opened.__aenter__()))
        reader = open_engine(migrated_url, Use.READ)
        outside = Outside(runner=runner, database=database, reader=reader, events=events)
        machine = type("Machine", (StoreMachine,), {"outside": outside})
        try:
            run_state_machine_as_test(machine, settings=SETTINGS)
        finally:
            runner.run(reader.dispose())
            runner.run(_awaited(opened.__aexit__(None, None, None)))
