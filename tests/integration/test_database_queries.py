"""What the commands read."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from schemas.names import Kind
from schemas.reply import ReplyStatus
from tests.support.databases import (
    NOON,
    PRICES,
    OpenWorker,
    a_claim,
    a_finish,
    a_job,
    a_ledger_entry,
    a_progress,
    a_record,
    a_token,
    a_wait,
)
from worker.adapters.database.opening import Database
from worker.adapters.database.queries import JobFilter
from worker.adapters.database.reports import By, UsageFilter
from worker.domain.attempt import Account, Entry
from worker.domain.claims import JobStatus
from worker.domain.job import Job, JobKey

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


async def finish(database: Database, job: Job, *, account: str = "main", **entry: object) -> None:
    """Run a job to its end."""
    token = a_token()
    await database.store.claim(a_claim(job, token))
    record = a_record(job.key, ledger=a_ledger_entry(**entry), account=Account(name=account))
    assert await database.store.finish(a_finish(job, token, record=record))


@pytest.fixture
async def jobs(database: Database) -> list[str]:
    """Leave three jobs of different kinds, tenants and states, oldest first."""
    await finish(database, a_job("done", model="gpt-6"))
    waiting = a_job("waits", tenant="globex", kind=Kind.VISION, received_at=NOON + MINUTE)
    await database.store.wait(a_wait(waiting, None))
    running = a_job("runs", kind=Kind.TOOL, received_at=NOON + 2 * MINUTE)
    await database.store.claim(a_claim(running, a_token()))
    return ["done", "waits", "runs"]


class TestJobs:
    """Lists and single jobs."""

    async def test_newest_come_first(self, jobs: list[str], database: Database) -> None:
        """A list starts with what was received last, and ends at its limit."""
        assert [job.job_id for job in await database.queries.jobs()] == jobs[::-1]
        assert [job.job_id for job in await database.queries.jobs(limit=1)] == ["runs"]

    @pytest.mark.parametrize(
        ("only", "found"),
        [
            (JobFilter(tenant="globex"), ["waits"]),
            (JobFilter(status=JobStatus.SUCCEEDED), ["done"]),
            (JobFilter(kind=Kind.TOOL), ["runs"]),
            (JobFilter(model="gpt-6"), ["done"]),
            (JobFilter(tenant="acme", status=JobStatus.RUNNING), ["runs"]),
            (JobFilter(tenant="acme", status=JobStatus.WAITING), []),
        ],
    )
    async def test_filters_go_together(
        self, only: JobFilter, found: list[str], jobs: list[str], database: Database
    ) -> None:
        """A list holds what meets all conditions."""
        assert [job.job_id for job in await database.queries.jobs(only)] == found

    async def test_one_job_with_all_that_is_known(self, database: Database) -> None:
        """A job comes with its attempts, its ledger rows, its message and its reply."""
        await finish(database, a_job())
        detail = await database.queries.job(JobKey("acme", "job"))
        assert detail is not None
        assert (detail.job.status, detail.job.labels, detail.job.received_at) == (
            "succeeded",
            {"feature": "summaries"},
            NOON,
        )
        assert [(row.attempt_no, row.state, row.http_status) for row in detail.attempts] == [
            (1, "succeeded", 200)
        ]
        assert [(row.entry, row.cost_nano_usd, row.prices) for row in detail.ledger] == [
            ("measured", 120_000, PRICES)
        ]
        assert (detail.request, detail.reply) == (b"content", b"reply")

    async def test_corrections_follow_what_they_correct(
        self, database: Database, open_worker: OpenWorker
    ) -> None:
        """Ledger rows come in the order in which they were booked."""
        job, old = a_job(), a_token()
        async with open_worker() as dying:
            await dying.store.claim(a_claim(job, old))
        await database.store.claim(a_claim(job, a_token()))
        await database.store.progress(a_progress(job, old))
        detail = await database.queries.job(job.key)
        assert detail is not None
        assert [row.entry for row in detail.ledger] == ["estimated", "correction", "correction"]

    async def test_waiting_job_says_for_what(self, jobs: list[str], database: Database) -> None:
        """An operator sees why a job waits and until when."""
        detail = await database.queries.job(JobKey("globex", "waits"))
        assert detail is not None
        assert (detail.job.waiting_for, detail.job.next_attempt_at) == ("rate limit", NOON + MINUTE)
        assert (detail.attempts, detail.ledger, detail.reply) == ([], [], None)

    async def test_unknown_job(self, database: Database) -> None:
        """Nothing is known of what never came."""
        assert await database.queries.job(JobKey("acme", "nobody")) is None

    async def test_cancelled_before_it_came(self, database: Database) -> None:
        """A cancel request without its job is shown for what it is, and not among the jobs."""
        await database.cancels.request_cancel(JobKey("acme", "early"))
        assert await database.queries.jobs() == []
        assert await database.queries.jobs(JobFilter(status=JobStatus.WAITING)) == []
        assert await database.queries.tenants("early", most=5) == []
        detail = await database.queries.job(JobKey("acme", "early"))
        assert detail is not None
        assert (detail.job.kind, detail.job.model, detail.job.status) == (None, None, "waiting")
        assert detail.job.cancel_requested_at is not None

    async def test_tenants_that_have_an_id(self, jobs: list[str], database: Database) -> None:
        """One id may be several tenants'."""
        await finish(database, a_job(jobs[0], tenant="globex"))
        assert await database.queries.tenants(jobs[0], most=5) == ["acme", "globex"]
        assert await database.queries.tenants(jobs[0], most=1) == ["acme"]


class TestUsage:
    """Reports."""

    async def test_groups_add_up(self, database: Database) -> None:
        """Sums by day and tenant, by model, by account: each adds up to the whole."""
        await finish(database, a_job("a"))
        await finish(database, a_job("b"), model="gpt-6", occurred_at=NOON + DAY)
        await finish(database, a_job("c", tenant="globex"), account="second", occurred_at=NOON + DAY)
        await finish(database, a_job("d", tenant="globex", kind=Kind.TOOL), cost_nano_usd=None, prices=None)
        daily = await database.queries.usage([By.DAY, By.TENANT])
        assert [(row.group, row.requests, row.cost_nano_usd, row.unpriced_requests) for row in daily] == [
            ({"day": "2026-11-22", "tenant": "acme"}, 1, 120_000, 0),
            ({"day": "2026-11-22", "tenant": "globex"}, 1, 0, 1),
            ({"day": "2026-11-23", "tenant": "acme"}, 1, 120_000, 0),
            ({"day": "2026-11-23", "tenant": "globex"}, 1, 120_000, 0),
        ]
        for by, groups in (
            (By.MONTH, {"2026-11": 4}),
            (By.MODEL, {"gpt-6": 1, "gpt-6-luna": 3}),
            (By.KIND, {"completion": 3, "tool": 1}),
            (By.ACCOUNT, {"main": 3, "second": 1}),
        ):
            report = await database.queries.usage([by])
            assert {row.group[by.value]: row.requests for row in report} == groups
            assert sum(row.cost_nano_usd for row in report) == 360_000
            assert sum(row.input_tokens for row in report) == 320
        (total,) = await database.queries.usage([])
        assert (total.group, total.requests, total.output_tokens) == ({}, 4, 80)

    async def test_a_range_is_half_open(self, database: Database) -> None:
        """A report counts from its start on, and no longer at its end."""
        for day in range(3):
            await finish(database, a_job(f"{day}"), occurred_at=NOON + day * DAY)
        report = await database.queries.usage([], UsageFilter(since=NOON + DAY, until=NOON + 2 * DAY))
        assert [row.requests for row in report] == [1]

    @pytest.mark.parametrize(
        ("only", "requests"),
        [
            (UsageFilter(tenant="globex"), 1),
            (UsageFilter(model="gpt-6"), 1),
            (UsageFilter(kind=Kind.COMPLETION), 2),
            (UsageFilter(account="second"), 1),
            (UsageFilter(tenant="nobody"), 0),
        ],
    )
    async def test_filters(self, only: UsageFilter, requests: int, database: Database) -> None:
        """A report can be narrowed down; nothing found is zero, not nothing."""
        await finish(database, a_job("a"), model="gpt-6", account="second")
        await finish(database, a_job("b", tenant="globex"))
        (total,) = await database.queries.usage([], only)
        assert total.requests == requests

    async def test_estimates_are_told_apart(self, database: Database) -> None:
        """What nobody measured is in the sums, and shown beside them."""
        await finish(database, a_job("a"))
        await finish(database, a_job("b"), entry=Entry.ESTIMATED, cost_nano_usd=5)
        (total,) = await database.queries.usage([])
        assert (total.requests, total.cost_nano_usd) == (2, 120_005)
        assert (total.estimated_requests, total.estimated_cost_nano_usd) == (1, 5)


async def test_workers_and_what_they_run(database: Database, open_worker: OpenWorker) -> None:
    """Each worker is listed with the number of its jobs."""
    await asyncio.gather(*(database.store.claim(a_claim(a_job(name), a_token())) for name in "abc"))
    token, done = a_token(), a_job("done")
    await database.store.claim(a_claim(done, token))
    failed = replace(a_finish(done, token), status=ReplyStatus.FAILED, error_code="rejected")
    await database.store.finish(failed)
    async with open_worker():
        listed = await database.queries.workers()
    assert [worker.running for worker in listed] == [3, 0]
    assert all(isinstance(worker.alive_until, datetime) for worker in listed)
    assert all(worker.alive_until > database.clock.now() for worker in listed)
