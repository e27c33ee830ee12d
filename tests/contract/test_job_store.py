"""What the core relies on of the job store from claim to end, on each database."""

import asyncio
from dataclasses import replace

import pytest

from schemas.reply import ReplyStatus
from tests.support.databases import (
    LEASE_SECONDS,
    NOON,
    SECOND,
    OpenWorker,
    a_claim,
    a_finish,
    a_job,
    a_ledger_entry,
    a_next_attempt,
    a_progress,
    a_record,
    a_token,
    a_wait,
    left_behind,
    rows,
)
from worker.adapters.database.opening import Database
from worker.domain.attempt import AttemptState, Entry
from worker.domain.claims import SUSPICIOUS
from worker.domain.job import ReplyAddress
from worker.ports import AlreadyDone, Claimed, Conflicting, JobStore, NotNow, Outbox


def conforms(database: Database) -> tuple[JobStore, Outbox]:
    """Hold the adapters to their ports by type."""
    return database.store, database.outbox


class TestClaim:
    """Commit 1."""

    async def test_fresh_job_is_claimed_with_its_first_attempt(
        self, database: Database, migrated_url: str
    ) -> None:
        """A new job is ours at once, and its request is on record before it leaves."""
        job = a_job()
        claimed = await database.store.claim(a_claim(job, a_token()))
        assert claimed == Claimed(attempt_no=1, received_at=NOON, started_at=NOON)
        assert await rows(migrated_url, "SELECT job_id, attempt_no, state FROM attempts") == [
            ("job", 1, "in_flight")
        ]
        assert await rows(migrated_url, "SELECT status, attempts, kind, lane, model FROM jobs") == [
            ("running", 1, "completion", "completion", "gpt-6-luna")
        ]
        assert await rows(migrated_url, "SELECT body FROM requests") == [(b"content",)]

    async def test_claim_without_intent_writes_no_attempt(
        self, database: Database, migrated_url: str
    ) -> None:
        """A claim that will not call OpenAI leaves no trace of a call."""
        claimed = await database.store.claim(a_claim(a_job(), a_token(), intent=False))
        assert isinstance(claimed, Claimed)
        assert claimed.attempt_no == 0
        assert await rows(migrated_url, "SELECT * FROM attempts") == []

    async def test_claim_written_twice_counts_once(self, database: Database, migrated_url: str) -> None:
        """The same claim, repeated after a lost confirmation, gets the same answer."""
        claim = a_claim(a_job(), a_token())
        first = await database.store.claim(claim)
        assert await database.store.claim(claim) == first
        assert await rows(migrated_url, "SELECT attempts, takeovers FROM jobs") == [(1, 0)]
        assert await rows(migrated_url, "SELECT count(*) FROM attempts") == [(1,)]

    async def test_held_job_is_refused_until_its_worker_may_be_dead(self, database: Database) -> None:
        """A copy meets the living claim, in this process or another, and learns when to ask again."""
        job = a_job()
        await database.store.claim(a_claim(job, a_token()))
        refused = await database.store.claim(a_claim(job, a_token()))
        assert isinstance(refused, NotNow)
        assert refused.held
        assert refused.until > database.clock.now()
        assert refused.until <= database.clock.now() + LEASE_SECONDS * SECOND

    async def test_same_key_with_other_content_conflicts(self, database: Database) -> None:
        """A key belongs to its first content, running or done, and to its tenant only."""
        token = a_token()
        job, other = a_job(), a_job(content=b"other")
        await database.store.claim(a_claim(job, token))
        assert await database.store.claim(a_claim(other, a_token())) == Conflicting()
        await database.store.finish(a_finish(job, token))
        assert await database.store.claim(a_claim(other, a_token())) == Conflicting()
        theirs = a_job(tenant="globex", content=b"other")
        assert isinstance(await database.store.claim(a_claim(theirs, a_token())), Claimed)

    async def test_done_job_is_answered_from_the_stored_reply(self, database: Database) -> None:
        """A finished job is never claimed again; its reply comes back byte for byte."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        finish = a_finish(job, token)
        await database.store.finish(finish)
        assert await database.store.claim(a_claim(job, a_token())) == AlreadyDone(
            reply=finish.reply, sent=False
        )
        database.outbox.sent(job.key)
        await database.outbox.due(1)  # the note rides along with any later transaction
        done = await database.store.claim(a_claim(job, a_token()))
        assert isinstance(done, AlreadyDone)
        assert done.sent

    async def test_two_workers_racing_share_the_jobs_without_doubles(self, open_worker: OpenWorker) -> None:
        """Of two workers that claim the same 200 jobs at once, exactly one gets each."""
        jobs = [a_job(f"job-{number}") for number in range(200)]
        async with open_worker() as one, open_worker() as other:
            answers = await asyncio.gather(
                *(worker.store.claim(a_claim(job, a_token())) for job in jobs for worker in (one, other))
            )
        winners = [
            sum(isinstance(answer, Claimed) for answer in answers[at : at + 2]) for at in range(0, 400, 2)
        ]
        assert winners == [1] * 200
        assert sum(isinstance(answer, NotNow) for answer in answers) == 200


class TestTakeover:
    """A worker dies, or seems to."""

    async def test_dead_workers_attempt_becomes_unknown_and_estimated(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """What nobody knows the outcome of is booked at its upper bound, and the job goes on."""
        job = a_job()
        await left_behind(open_worker, job, a_token())
        claimed = await database.store.claim(a_claim(job, a_token(), at=NOON + SECOND))
        assert isinstance(claimed, Claimed)
        assert (claimed.attempt_no, claimed.takeovers, claimed.step_attempts) == (2, 1, 1)
        assert claimed.spend.requests == 1
        assert claimed.spend.cost_nano_usd == 200_000
        assert claimed.spend.estimated
        assert await rows(migrated_url, "SELECT attempt_no, state FROM attempts ORDER BY 1") == [
            (1, "unknown"),
            (2, "in_flight"),
        ]
        assert await rows(
            migrated_url,
            "SELECT attempt_no, entry, input_tokens, output_tokens, cost_nano_usd, organization"
            " FROM usage_ledger",
        ) == [(1, "estimated", 100, 50, 200_000, "org-1")]

    async def test_takeover_without_intent_settles_too(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """A takeover that makes no call of its own still writes off the lost one."""
        await left_behind(open_worker, a_job(), a_token())
        claimed = await database.store.claim(a_claim(a_job(), a_token(), intent=False))
        assert isinstance(claimed, Claimed)
        assert (claimed.attempt_no, claimed.takeovers) == (1, 1)
        assert await rows(migrated_url, "SELECT state FROM attempts") == [("unknown",)]

    async def test_suspect_gets_no_attempt_with_its_claim(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """Over whom two workers died, runs by itself: its attempt is written when it may, and not before."""
        job = a_job()
        for _ in range(SUSPICIOUS):
            await left_behind(open_worker, job, a_token())
        claim = a_claim(job, a_token())
        claimed = await database.store.claim(claim)
        assert isinstance(claimed, Claimed)
        assert (claimed.attempt_no, claimed.takeovers, claimed.over_budget) == (SUSPICIOUS, SUSPICIOUS, None)
        assert await database.store.claim(claim) == claimed
        assert {state for (state,) in await rows(migrated_url, "SELECT state FROM attempts")} == {"unknown"}

    async def test_lease_that_ran_out_is_taken_over(
        self, database: Database, open_worker: OpenWorker
    ) -> None:
        """Being silent for longer than the lease is as good as being dead."""
        job = a_job()
        async with open_worker(lease_seconds=30.0) as stalled:
            await stalled.store.claim(a_claim(job, a_token()))
            soon = stalled.clock.now() + 29 * SECOND
            assert isinstance(await database.store.claim(a_claim(job, a_token(), at=soon)), NotNow)
            later = stalled.clock.now() + 31 * SECOND
            assert isinstance(await database.store.claim(a_claim(job, a_token(), at=later)), Claimed)

    async def test_zombie_is_fenced_but_its_spend_is_corrected(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """A late finish writes what was really spent, once, and neither result nor reply."""
        job, old, new = a_job(), a_token(), a_token()
        await left_behind(open_worker, job, old)
        await database.store.claim(a_claim(job, new))
        for _ in range(2):
            assert not await database.store.finish(a_finish(job, old))
        assert await rows(migrated_url, "SELECT state FROM attempts WHERE attempt_no = 1") == [("succeeded",)]
        booked = (
            "SELECT entry, input_tokens, output_tokens, cost_nano_usd, requests FROM usage_ledger ORDER BY id"
        )
        assert await rows(migrated_url, booked) == [
            ("estimated", 100, 50, 200_000, 1),
            ("correction", -100, -50, -200_000, -1),
            ("correction", 80, 20, 120_000, 1),
        ]
        sums = (
            "SELECT sum(estimated_requests), sum(estimated_cost_nano_usd), sum(unpriced_requests)"
            " FROM usage_ledger"
        )
        assert [tuple(map(int, row)) for row in await rows(migrated_url, sums)] == [(0, 0, 0)]
        assert await rows(migrated_url, "SELECT * FROM results") == []
        assert await rows(migrated_url, "SELECT status FROM jobs") == [("running",)]
        assert await database.store.finish(a_finish(job, new, 2))

    @pytest.mark.parametrize("state", [AttemptState.REJECTED, AttemptState.FAILED])
    async def test_late_refusal_takes_the_estimate_back(
        self, state: AttemptState, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """An outcome that costs nothing brings the estimate to nothing."""
        job, old = a_job(), a_token()
        await left_behind(open_worker, job, old)
        await database.store.claim(a_claim(job, a_token()))
        record = a_record(job.key, state=state, http_status=400, ledger=None)
        assert not await database.store.progress(replace(a_progress(job, old), record=record))
        sums = (
            "SELECT sum(input_tokens), sum(output_tokens), sum(cost_nano_usd), sum(estimated_requests)"
            " FROM usage_ledger"
        )
        assert [tuple(map(int, row)) for row in await rows(migrated_url, sums)] == [(0, 0, 0, 0)]

    async def test_late_unknown_outcome_changes_nothing(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """One estimate is as good as another: the first stands."""
        job, old = a_job(), a_token()
        await left_behind(open_worker, job, old)
        await database.store.claim(a_claim(job, a_token()))
        entry = a_ledger_entry(entry=Entry.ESTIMATED)
        record = a_record(job.key, state=AttemptState.UNKNOWN, ledger=entry)
        assert not await database.store.finish(replace(a_finish(job, old), record=record))
        assert await rows(migrated_url, "SELECT entry, cost_nano_usd FROM usage_ledger") == [
            ("estimated", 200_000)
        ]

    async def test_fenced_worker_may_neither_begin_nor_wait(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """Who lost the claim starts no request and moves no state."""
        job, old = a_job(), a_token()
        await left_behind(open_worker, job, old)
        await database.store.claim(a_claim(job, a_token()))
        assert not await database.store.next_attempt(a_next_attempt(job, old, 3))
        assert not await database.store.wait(a_wait(job, old))
        assert not await database.store.progress(a_progress(job, old, checkpoint=b"stale"))
        assert await rows(migrated_url, "SELECT status, attempts FROM jobs") == [("running", 2)]
        assert await rows(migrated_url, "SELECT * FROM checkpoints") == []


class TestFinish:
    """Commit 2."""

    async def test_everything_is_there_after_one_commit(self, database: Database, migrated_url: str) -> None:
        """Outcome, ledger row, result, state and owed reply come together."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        for _ in range(2):
            assert await database.store.finish(a_finish(job, token))
        assert await rows(migrated_url, "SELECT state, http_status, openai_request_id FROM attempts") == [
            ("succeeded", 200, "req_1")
        ]
        assert await rows(
            migrated_url,
            "SELECT attempt_no, entry, input_tokens, cached_input_tokens, output_tokens, cost_nano_usd, kind,"
            " account FROM usage_ledger",
        ) == [(1, "measured", 80, 30, 20, 120_000, "completion", "main")]
        assert await rows(
            migrated_url, "SELECT status, attempts, reply_status, reply_id, lease_owner FROM jobs"
        ) == [("succeeded", 1, "pending", "reply-job", None)]
        assert await rows(migrated_url, "SELECT body FROM results") == [(b"reply",)]

    async def test_job_without_reply_address_owes_nothing(
        self, database: Database, migrated_url: str
    ) -> None:
        """A result that nobody asked to receive is only stored."""
        job = a_job(address=ReplyAddress(queue=None, correlation_id="job"))
        token = a_token()
        await database.store.claim(a_claim(job, token))
        await database.store.finish(a_finish(job, token))
        assert await rows(migrated_url, "SELECT reply_status, reply_due_at FROM jobs") == [("none", None)]

    async def test_failed_job_keeps_its_code(self, database: Database, migrated_url: str) -> None:
        """A failure is an outcome like any other; without a charge it has no ledger row."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        record = a_record(job.key, state=AttemptState.REJECTED, http_status=400, ledger=None)
        finish = replace(
            a_finish(job, token), status=ReplyStatus.FAILED, error_code="rejected", record=record
        )
        assert await database.store.finish(finish)
        assert await rows(migrated_url, "SELECT status, error_code FROM jobs") == [("failed", "rejected")]
        assert await rows(migrated_url, "SELECT * FROM usage_ledger") == []

    async def test_finish_without_a_claim_is_refused(self, database: Database) -> None:
        """An unknown job cannot be finished."""
        finish = replace(a_finish(a_job(), a_token()), record=None)
        assert not await database.store.finish(finish)

    async def test_unpriced_usage_is_counted_not_zero(self, database: Database, migrated_url: str) -> None:
        """A cost that is not known is null, and shows in the count of unpriced requests."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        record = a_record(job.key, ledger=a_ledger_entry(cost_nano_usd=None, prices=None))
        await database.store.finish(replace(a_finish(job, token), record=record))
        assert await rows(migrated_url, "SELECT cost_nano_usd, prices FROM usage_ledger") == [(None, None)]
        assert await rows(migrated_url, "SELECT requests, unpriced_requests FROM usage_daily") == [(1, 1)]


async def test_text_of_others_is_kept_exactly(database: Database) -> None:
    """Names that a database cannot hold as they are come back unchanged all the same."""
    odd = "a\x00b\\c\ud800é\n"
    job = a_job(address=ReplyAddress(queue=odd, correlation_id=odd), model=odd)
    token = a_token()
    await database.store.claim(a_claim(job, token))
    record = a_record(job.key, openai_request_id=odd, error_code=odd, ledger=a_ledger_entry(model=odd))
    assert await database.store.finish(replace(a_finish(job, token), record=record))
    done = await database.store.claim(a_claim(job, a_token()))
    assert isinstance(done, AlreadyDone)
    assert done.reply.address == job.address
    detail = await database.queries.job(job.key)
    assert detail is not None
    assert detail.job.model == detail.ledger[0].model == detail.attempts[0].openai_request_id == odd
