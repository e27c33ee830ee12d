"""Group commit: batches, and faults in them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from tests.support.databases import (
    Events,
    OpenWorker,
    a_claim,
    a_finish,
    a_job,
    a_next_attempt,
    a_record,
    a_token,
    execute,
    rows,
    until,
)
from worker.adapters.database.attempt import BeginAttempt
from worker.adapters.database.batch import Work
from worker.adapters.database.cancel import RequestCancel
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.errors import DatabaseClosedError, DatabaseRefusedError
from worker.adapters.database.opening import Database
from worker.adapters.database.quota import QuotaStatements, RunExchange
from worker.adapters.database.replies import MarkSent
from worker.adapters.database.writer import GroupCommit
from worker.domain.claims import JobStatus
from worker.domain.events import Broken
from worker.domain.job import JobKey
from worker.domain.quota import Exchange
from worker.ports import Claimed

MUCH_TOO_LARGE = 2**70


class Recorder:
    """Stands in for the batch: notes what each transaction was given."""

    def __init__(self) -> None:
        self.batches: list[list[Work]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, connection: AsyncConnection, work: list[Work]) -> list[object]:
        """Answer each item with its place in the batch."""
        self.batches.append(list(work))
        await self.go.wait()
        return list(range(len(work)))


@pytest.fixture
async def engine(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    """Give an engine on an empty file."""
    opened = open_engine(sqlite_url, Use.WRITE)
    yield opened
    await opened.dispose()


def a_request(job_id: str) -> RequestCancel:
    """Return some operation."""
    return RequestCancel(JobKey("acme", job_id), datetime.min)  # noqa: DTZ901 never read


@dataclass(frozen=True, slots=True)
class Large(RequestCancel):
    """An operation with a body of so many bytes."""

    bytes: int

    @property
    @override
    def size(self) -> int:
        return self.bytes


class TestBatches:
    """What goes into one transaction."""

    async def test_what_arrives_during_a_transaction_goes_into_the_next(self, engine: AsyncEngine) -> None:
        """A hundred callers cost two transactions, and each gets its own result."""
        run = Recorder()
        writer = GroupCommit(engine, run, Events())
        writer.start()
        run.go.clear()
        first = asyncio.ensure_future(writer.submit(a_request("first")))
        await until(lambda: len(run.batches) == 1)
        others = [asyncio.ensure_future(writer.submit(a_request(f"{number}"))) for number in range(100)]
        await asyncio.sleep(0)
        run.go.set()
        assert await first == 0
        assert await asyncio.gather(*others) == list(range(100))
        assert [len(batch) for batch in run.batches] == [1, 100]
        await writer.close(1)

    async def test_operations_on_one_job_keep_their_order(self, engine: AsyncEngine) -> None:
        """A batch changes a job once; what follows on the same job comes in a later transaction."""
        run = Recorder()
        writer = GroupCommit(engine, run, Events())
        work = [a_request("a"), a_request("a"), a_request("b"), a_request("a")]
        submitted = [asyncio.ensure_future(writer.submit(item)) for item in work]
        await asyncio.sleep(0)
        writer.start()
        await asyncio.gather(*submitted)
        assert [[id(item) for item in batch] for batch in run.batches] == [
            [id(work[0]), id(work[2])],
            [id(work[1])],
            [id(work[3])],
        ]
        await writer.close(1)

    async def test_batches_are_bounded(self, engine: AsyncEngine) -> None:
        """However much is queued, a transaction stays short."""
        run = Recorder()
        writer = GroupCommit(engine, run, Events())
        submitted = [asyncio.ensure_future(writer.submit(a_request(f"{number}"))) for number in range(600)]
        await asyncio.sleep(0)
        writer.start()
        await asyncio.gather(*submitted)
        assert max(len(batch) for batch in run.batches) <= 256
        await writer.close(1)

    async def test_batches_are_bounded_in_bytes(self, engine: AsyncEngine) -> None:
        """However large bodies are, what goes to the database at once is not; one alone always goes."""
        run = Recorder()
        writer = GroupCommit(engine, run, Events())
        sizes = [100 * 2**20, 15 * 2**20, 15 * 2**20, 15 * 2**20, 15 * 2**20, 15 * 2**20, 1]
        work = [Large(JobKey("acme", str(n)), datetime.min, size) for n, size in enumerate(sizes)]  # noqa: DTZ901
        submitted = [asyncio.ensure_future(writer.submit(item)) for item in work]
        await asyncio.sleep(0)
        writer.start()
        await asyncio.gather(*submitted)
        assert [len(batch) for batch in run.batches] == [1, 4, 2]
        await writer.close(1)

    async def test_starts_do_not_wait_for_a_crowd(self, engine: AsyncEngine) -> None:
        """The claims of a backlog take a tenth of a second; but they too have their turn."""
        record = Recorder()
        record.go.clear()
        writer = GroupCommit(engine, record, Events())
        writer.start()
        running = asyncio.create_task(writer.submit(a_request("running")))
        await until(lambda: len(record.batches) == 1)
        crowd: list[Work] = [a_request(f"waiting-{number}") for number in range(20)]
        intent = BeginAttempt(a_next_attempt(a_job("other"), 1, 2), "me")
        mine = BeginAttempt(a_next_attempt(a_job("waiting-3"), 1, 2), "me")
        draw = RunExchange(QuotaStatements("sqlite"), "me", Exchange())
        first, again = [intent, draw], [intent]
        tasks = [asyncio.create_task(writer.submit(one)) for one in (*crowd, *first, mine, *again)]
        await asyncio.sleep(0)
        record.go.set()
        await asyncio.gather(running, *tasks)
        # Whatever is urgent goes first, but behind what was there before of the same job.
        assert record.batches[1:] == [first, [*crowd, *again], [mine]]
        await writer.close(5)

    async def test_lazy_work_rides_along(self, engine: AsyncEngine) -> None:
        """A note that nobody waits for does not cost a transaction of its own."""
        run = Recorder()
        writer = GroupCommit(engine, run, Events())
        writer.start()
        writer.submit_lazily(MarkSent(JobKey("acme", "noted")))
        await writer.submit(a_request("job"))
        assert [len(batch) for batch in run.batches] == [2]
        await writer.close(1)

    async def test_lazy_work_is_not_forgotten(self, engine: AsyncEngine) -> None:
        """Without company a note is written soon."""
        run = Recorder()
        writer = GroupCommit(engine, run, Events())
        writer.start()
        writer.submit_lazily(MarkSent(JobKey("acme", "noted")))
        await until(lambda: len(run.batches) == 1)
        await writer.close(1)

    async def test_cancelled_caller_does_not_stop_the_transaction(self, engine: AsyncEngine) -> None:
        """Who stops waiting harms neither the transaction nor the others in it."""
        run = Recorder()
        writer = GroupCommit(engine, run, Events())
        run.go.clear()
        leaving, staying = (asyncio.ensure_future(writer.submit(a_request(name))) for name in "ab")
        await asyncio.sleep(0)
        writer.start()
        await until(lambda: len(run.batches) == 1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        run.go.set()
        assert await staying == 1
        assert len(run.batches) == 1
        await writer.close(1)

    async def test_closing_writes_what_is_queued(self, engine: AsyncEngine) -> None:
        """Closing flushes, notes included, and takes nothing more."""
        run = Recorder()
        writer = GroupCommit(engine, run, Events())
        writer.start()
        run.go.clear()
        first = asyncio.ensure_future(writer.submit(a_request("first")))
        await until(lambda: len(run.batches) == 1)
        queued = asyncio.ensure_future(writer.submit(a_request("queued")))
        await asyncio.sleep(0)
        writer.submit_lazily(MarkSent(JobKey("acme", "noted")))
        closing = asyncio.ensure_future(writer.close(5))
        await asyncio.sleep(0)
        run.go.set()
        await asyncio.gather(first, queued, closing)
        assert sum(map(len, run.batches)) == 3
        with pytest.raises(DatabaseClosedError):
            await writer.submit(a_request("late"))
        assert not writer.healthy

    async def test_closing_does_not_wait_for_ever(self, engine: AsyncEngine) -> None:
        """What cannot be written in time fails for its callers."""
        run = Recorder()
        writer = GroupCommit(engine, run, Events())
        writer.start()
        run.go.clear()
        running = asyncio.ensure_future(writer.submit(a_request("running")))
        await until(lambda: len(run.batches) == 1)
        queued = asyncio.ensure_future(writer.submit(a_request("queued")))
        await asyncio.sleep(0)
        await writer.close(0.05)
        for caller in (running, queued):
            with pytest.raises(DatabaseClosedError):
                await caller


class TestRefusals:
    """Data that the database does not take."""

    async def test_bad_operation_fails_alone(self, database: Database, migrated_url: str) -> None:
        """Of many finishes in one batch only the impossible one fails, without quoting its values."""
        jobs = [a_job(f"job-{number}") for number in range(20)]
        tokens = [a_token() for _ in jobs]
        await asyncio.gather(
            *(database.store.claim(a_claim(job, token)) for job, token in zip(jobs, tokens, strict=True))
        )
        finishes = [a_finish(job, token) for job, token in zip(jobs, tokens, strict=True)]
        bad = a_record(jobs[7].key, http_status=MUCH_TOO_LARGE)
        finishes[7] = replace(finishes[7], record=bad)
        answers = await asyncio.gather(
            *(database.store.finish(finish) for finish in finishes), return_exceptions=True
        )
        refused = answers.pop(7)
        assert isinstance(refused, DatabaseRefusedError | OverflowError)
        assert str(MUCH_TOO_LARGE) not in str(refused)
        assert answers == [True] * 19
        assert await rows(migrated_url, "SELECT count(*) FROM usage_ledger") == [(19,)]
        assert await rows(migrated_url, "SELECT job_id FROM jobs WHERE status = 'running'") == [("job-7",)]
        assert database.healthy

    async def test_batch_that_works_only_piece_by_piece_is_reported(self, engine: AsyncEngine) -> None:
        """Such a batch costs a transaction each: a fault of the program that must not stay hidden."""
        events = Events()

        async def run(connection: AsyncConnection, work: list[Work]) -> list[object]:
            if len(work) > 1:
                raise ZeroDivisionError
            return [None]

        writer = GroupCommit(engine, run, events)
        submitted = [asyncio.ensure_future(writer.submit(a_request(name))) for name in "ab"]
        await asyncio.sleep(0)
        writer.start()
        await asyncio.gather(*submitted)
        (event,) = events.seen
        assert isinstance(event, Broken)
        assert event.where == "database batch"
        await writer.close(1)

    async def test_refused_note_is_reported(self, engine: AsyncEngine) -> None:
        """An error that nobody waits for reaches the observer."""
        events = Events()

        async def run(connection: AsyncConnection, work: list[Work]) -> list[object]:
            raise ZeroDivisionError

        writer = GroupCommit(engine, run, events)
        writer.start()
        writer.submit_lazily(MarkSent(JobKey("acme", "noted")))
        await until(lambda: len(events.seen) == 1)
        assert isinstance(events.seen[0], Broken)
        await writer.close(1)


async def test_batch_written_twice_counts_once(open_worker: OpenWorker, migrated_url: str) -> None:
    """A whole life of a job, each transaction of it run twice, leaves what one run leaves."""
    async with open_worker() as database:
        once = database.writer._run_batch

        async def twice(connection: AsyncConnection, work: list[Work]) -> list[object]:
            await once(connection, work)
            return await once(connection, work)

        database.writer._run_batch = twice  # type: ignore[assignment]
        job, token = a_job(), a_token()
        assert isinstance(await database.store.claim(a_claim(job, token)), Claimed)
        assert await database.store.next_attempt(a_next_attempt(job, token, 2))
        assert await database.store.finish(a_finish(job, token, 2))
        assert not await database.outbox.unroutable(a_finish(job, token).reply)
        database.outbox.sent(job.key)
        assert await database.cancels.request_cancel(JobKey("acme", "other")) is JobStatus.WAITING
        assert await database.outbox.due(10) == []
    assert await rows(
        migrated_url, "SELECT attempts, reply_tries, reply_status FROM jobs WHERE kind <> ''"
    ) == [(2, 1, "sent")]
    assert await rows(migrated_url, "SELECT count(*) FROM usage_ledger") == [(1,)]
    assert await rows(migrated_url, "SELECT count(*) FROM attempts") == [(2,)]


async def test_missing_table_is_an_error_not_an_outage(database: Database, migrated_url: str) -> None:
    """A fault that no waiting mends is raised, not retried for ever."""
    await execute(migrated_url, "DROP TABLE checkpoints")
    job, token = a_job(), a_token()
    await database.store.claim(a_claim(job, token))
    with pytest.raises(DatabaseRefusedError):
        await database.store.finish(a_finish(job, token))
