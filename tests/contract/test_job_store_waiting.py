"""Jobs that are not done at once: their steps, their waiting, and requests to cancel them."""

from dataclasses import replace

from tests.support.databases import (
    NOON,
    SECOND,
    OpenWorker,
    a_claim,
    a_finish,
    a_job,
    a_next_attempt,
    a_progress,
    a_token,
    a_wait,
    left_behind,
    rows,
)
from worker.adapters.database.opening import Database
from worker.domain.claims import JobStatus
from worker.domain.usage import Usage
from worker.ports import Claimed, NotNow


class TestSteps:
    """Jobs of several requests."""

    async def test_checkpoint_comes_back_to_the_next_worker(
        self, database: Database, open_worker: OpenWorker
    ) -> None:
        """A finished step is not paid again: its state and spend go to whoever goes on."""
        job, token = a_job(), a_token()
        async with open_worker() as dying:
            await dying.store.claim(a_claim(job, token))
            assert await dying.store.progress(a_progress(job, token, checkpoint=b"\x00round 1"))
        claimed = await database.store.claim(a_claim(job, a_token()))
        assert isinstance(claimed, Claimed)
        assert claimed.checkpoint == b"\x00round 1"
        assert (claimed.attempt_no, claimed.step_attempts) == (2, 0)
        assert claimed.spend.requests == 1
        assert claimed.spend.usage == Usage(input_tokens=80, cached_input_tokens=30, output_tokens=20)
        assert claimed.spend.cost_nano_usd == 120_000
        assert not claimed.spend.estimated

    async def test_checkpoint_goes_when_the_job_ends(self, database: Database, migrated_url: str) -> None:
        """A finished job leaves no content behind but its request and its reply."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        await database.store.progress(a_progress(job, token, checkpoint=b"one"))
        await database.store.next_attempt(a_next_attempt(job, token, 2))
        await database.store.progress(a_progress(job, token, 2, checkpoint=b"two"))
        assert await rows(migrated_url, "SELECT state FROM checkpoints") == [(b"two",)]
        await database.store.next_attempt(a_next_attempt(job, token, 3))
        assert await database.store.finish(a_finish(job, token, 3))
        assert await rows(migrated_url, "SELECT * FROM checkpoints") == []
        assert await rows(migrated_url, "SELECT count(*), sum(cost_nano_usd) FROM usage_ledger") == [
            (3, 360_000)
        ]

    async def test_attempts_of_a_step_count_once_each(self, database: Database, migrated_url: str) -> None:
        """Intents add up within a step, however often they are written, and start anew after it."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        await database.store.progress(a_progress(job, token))
        for _ in range(2):
            assert await database.store.next_attempt(a_next_attempt(job, token, 2))
        counts = "SELECT attempts, step_attempts FROM jobs"
        assert await rows(migrated_url, counts) == [(2, 2)]
        await database.store.progress(a_progress(job, token, 2, checkpoint=b"step done"))
        assert await rows(migrated_url, counts) == [(2, 0)]


class TestWait:
    """Jobs whose time has not come."""

    async def test_waiting_job_is_resumed_when_due(self, database: Database, migrated_url: str) -> None:
        """A job given up until a time is nobody's before it, and anybody's from it on."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        await database.store.progress(a_progress(job, token))
        for _ in range(2):
            assert await database.store.wait(a_wait(job, token, seconds=60, step_attempts=1))
        assert await rows(migrated_url, "SELECT status, waiting_for, lease_owner FROM jobs") == [
            ("waiting", "rate limit", None)
        ]
        early = await database.store.claim(a_claim(job, a_token(), at=NOON + 50 * SECOND))
        assert early == NotNow(until=NOON + 60 * SECOND, held=False)
        copy = replace(job, received_at=NOON + 59 * SECOND)
        due = await database.store.claim(a_claim(copy, a_token(), at=NOON + 59.5 * SECOND))
        assert isinstance(due, Claimed)
        assert (due.attempt_no, due.step_attempts, due.takeovers) == (2, 1, 0)
        assert (due.received_at, due.started_at) == (NOON, NOON)
        detail = await database.queries.job(job.key)
        assert detail is not None
        assert (detail.job.received_at, detail.job.started_at) == (NOON, NOON)

    async def test_unclaimed_job_may_wait(self, database: Database, migrated_url: str) -> None:
        """A job that waits for limits is on record, with its message, before anyone runs it."""
        job = a_job()
        assert await database.store.wait(a_wait(job, None))
        assert await database.store.wait(a_wait(job, None, seconds=90))
        assert await rows(migrated_url, "SELECT status, attempts, model FROM jobs") == [
            ("waiting", 0, "gpt-6-luna")
        ]
        assert await rows(migrated_url, "SELECT body FROM requests") == [(b"content",)]
        claimed = await database.store.claim(a_claim(job, a_token(), at=NOON + 90 * SECOND))
        assert isinstance(claimed, Claimed)
        assert (claimed.attempt_no, claimed.takeovers) == (1, 0)

    async def test_waiting_does_not_disturb_others(self, database: Database) -> None:
        """Neither a held nor a done job nor one of other content is sent waiting by a copy."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        assert not await database.store.wait(a_wait(job, None))
        await database.store.finish(a_finish(job, token))
        assert not await database.store.wait(a_wait(job, None))
        assert not await database.store.wait(a_wait(job, token))
        waiting = a_job("waiting")
        await database.store.wait(a_wait(waiting, None))
        assert not await database.store.wait(a_wait(a_job("waiting", content=b"other"), None))

    async def test_dead_workers_job_may_be_sent_waiting(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """Who finds a dead worker's job but no room for it counts the takeover and the lost attempt."""
        await left_behind(open_worker, a_job(), a_token())
        assert await database.store.wait(a_wait(a_job(), None))
        assert await rows(migrated_url, "SELECT status, takeovers FROM jobs") == [("waiting", 1)]
        assert await rows(migrated_url, "SELECT state FROM attempts") == [("unknown",)]
        assert await rows(migrated_url, "SELECT entry FROM usage_ledger") == [("estimated",)]

    async def test_released_job_is_free_at_once(self, database: Database) -> None:
        """A claim handed back can be taken by a copy in the same moment."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token, intent=False))
        assert await database.store.wait(a_wait(job, token, seconds=0))
        claimed = await database.store.claim(a_claim(job, a_token()))
        assert isinstance(claimed, Claimed)
        assert claimed.takeovers == 0


class TestCancel:
    """Requests to cancel."""

    async def test_request_may_come_before_its_job(self, database: Database, migrated_url: str) -> None:
        """A job cancelled before it arrived is claimed without an intent."""
        job = a_job()
        assert await database.cancels.request_cancel(job.key) is JobStatus.WAITING
        claimed = await database.store.claim(a_claim(job, a_token()))
        assert isinstance(claimed, Claimed)
        assert claimed.cancel_requested
        assert claimed.attempt_no == 0
        assert claimed.received_at == NOON
        assert await rows(migrated_url, "SELECT kind, model, status FROM jobs") == [
            ("completion", "gpt-6-luna", "running")
        ]
        assert await rows(migrated_url, "SELECT * FROM attempts") == []

    async def test_waiting_job_is_cancelled_without_waiting(self, database: Database) -> None:
        """A cancelled job does not sit out its time."""
        job = a_job()
        await database.store.wait(a_wait(job, None, seconds=3600))
        await database.cancels.request_cancel(job.key)
        claimed = await database.store.claim(a_claim(job, a_token()))
        assert isinstance(claimed, Claimed)
        assert claimed.cancel_requested

    async def test_request_before_its_job_waits_on(self, database: Database) -> None:
        """A job that goes waiting does not lose the request that came before it."""
        job = a_job()
        await database.cancels.request_cancel(job.key)
        assert await database.store.wait(a_wait(job, None))
        claimed = await database.store.claim(a_claim(job, a_token()))
        assert isinstance(claimed, Claimed)
        assert claimed.cancel_requested

    async def test_done_job_keeps_its_outcome(self, database: Database, migrated_url: str) -> None:
        """What is done cannot be cancelled."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        assert await database.cancels.request_cancel(job.key) is JobStatus.RUNNING
        await database.store.finish(a_finish(job, token))
        assert await database.cancels.request_cancel(job.key) is JobStatus.SUCCEEDED

    async def test_repeated_claim_keeps_its_intent(self, database: Database) -> None:
        """A request that comes between a claim and its repetition does not undo the written intent."""
        job = a_job()
        claim = a_claim(job, a_token())
        first = await database.store.claim(claim)
        await database.cancels.request_cancel(job.key)
        assert await database.store.claim(claim) == first
