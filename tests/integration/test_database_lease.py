"""Signs of life, and the clock they are measured by."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.databases import (
    Events,
    OpenWorker,
    a_claim,
    a_finish,
    a_job,
    a_token,
    execute,
    rows,
)
from worker.adapters.database.lease import DatabaseClock
from worker.adapters.database.opening import Database
from worker.domain.events import Broken
from worker.ports import Claimed, NotNow

SECOND = timedelta(seconds=1)
ALIVE = "SELECT worker_id FROM workers ORDER BY started_at"


async def lapse(url: str) -> None:
    """Let every lease run out."""
    await execute(url, "UPDATE workers SET alive_until = '2026-01-01 00:00:00'")


class TestLease:
    """One row a worker."""

    async def test_worker_is_registered_while_it_is_open(
        self, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """A worker shows up with its process, and is gone once it has signed off."""
        async with open_worker(worker_id="one") as one, open_worker(worker_id="other"):
            assert one.lease.worker_id == "one"
            assert await rows(migrated_url, ALIVE) == [("one",), ("other",)]
        assert await rows(migrated_url, ALIVE) == []

    async def test_lease_is_renewed_in_time(self, open_worker: OpenWorker, migrated_url: str) -> None:
        """A living worker keeps its claims however long it runs."""
        async with open_worker(lease_seconds=3) as living, open_worker() as other:
            job = a_job()
            await living.store.claim(a_claim(job, a_token()))
            first = living.clock.now() + 3 * SECOND
            async with asyncio.timeout(20):
                while other.clock.now() < first + SECOND:
                    now = other.clock.now()
                    assert isinstance(await other.store.claim(a_claim(job, a_token(), at=now)), NotNow)
                    await asyncio.sleep(0.05)
            assert living.lease.lapses == 0

    async def test_lost_lease_is_noticed(self, database: Database, migrated_url: str) -> None:
        """A worker that was given up for dead finds out at its next sign of life, and goes on."""
        assert await database.lease.renew()
        await lapse(migrated_url)
        assert not await database.lease.renew()
        assert await database.lease.renew()

    async def test_lapses_are_counted(self, open_worker: OpenWorker, migrated_url: str) -> None:
        """The number is there for operators."""
        async with open_worker(lease_seconds=0.3) as database:
            await lapse(migrated_url)
            async with asyncio.timeout(20):
                while database.lease.lapses == 0:  # noqa: ASYNC110 polls a counter
                    await asyncio.sleep(0.01)

    async def test_claims_come_back_with_the_lease(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """What nobody took over in the meantime is still the worker's."""
        job, token = a_job(), a_token()
        await database.store.claim(a_claim(job, token))
        await lapse(migrated_url)
        await database.lease.renew()
        async with open_worker() as other:
            refused = await other.store.claim(a_claim(job, a_token(), at=other.clock.now()))
        assert isinstance(refused, NotNow)
        assert await database.store.finish(a_finish(job, token))

    async def test_signing_off_frees_what_is_left(self, database: Database, open_worker: OpenWorker) -> None:
        """A worker that stops before its jobs are done does not make others wait for its lease."""
        async with open_worker(lease_seconds=3600) as leaving:
            await leaving.store.claim(a_claim(a_job(), a_token()))
        now = database.clock.now()
        claimed = await database.store.claim(a_claim(a_job(), a_token(), at=now))
        assert isinstance(claimed, Claimed)

    async def test_long_dead_workers_are_forgotten(
        self, database: Database, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """Rows of killed workers do not pile up."""
        await lapse(migrated_url)
        async with open_worker():
            pass
        assert await rows(migrated_url, ALIVE) == []
        assert not await database.lease.renew()

    async def test_refused_sign_of_life_does_not_stop_the_next(
        self, open_worker: OpenWorker, migrated_url: str
    ) -> None:
        """A fault in the tables is reported, and over once it is mended."""
        events = Events()
        async with open_worker(events, lease_seconds=0.3) as database:
            await execute(migrated_url, "ALTER TABLE workers RENAME TO mislaid")
            async with asyncio.timeout(20):
                while not events.seen:  # noqa: ASYNC110 polls a list
                    await asyncio.sleep(0.01)
            await execute(migrated_url, "ALTER TABLE mislaid RENAME TO workers")
            assert await database.lease.renew() in {True, False}
        assert isinstance(events.seen[0], Broken)
        assert events.seen[0].where == "lease"


class TestClock:
    """The database's time."""

    async def test_clock_is_the_databases(self, database: Database, migrated_url: str) -> None:
        """Time stamps agree with the server's clock to a moment."""
        sqlite = migrated_url.startswith("sqlite")
        query = "SELECT strftime('%s', 'now')" if sqlite else "SELECT extract(epoch FROM clock_timestamp())"
        before = database.clock.now()
        ((server,),) = await rows(migrated_url, query)
        after = database.clock.now()
        slack = SECOND if sqlite else 0.1 * SECOND
        assert before - slack <= datetime.fromtimestamp(float(server), UTC) <= after + slack

    @pytest.mark.parametrize("ahead", [-3600, 3600])
    def test_other_machines_time_is_taken_over(self, ahead: int) -> None:
        """However wrong this machine's clock is, leases are measured by the database's."""
        clock = DatabaseClock()
        asked = clock.monotonic()
        server = clock.now() + ahead * SECOND
        clock.learn(server, asked=asked, told=clock.monotonic())
        assert abs(clock.now() - server) < 0.5 * SECOND

    def test_slow_answer_does_not_move_a_right_clock(self) -> None:
        """A reading proves no more than the time it took: a clock within it stays."""
        clock = DatabaseClock()
        offset = clock._offset
        clock.learn(
            datetime.fromtimestamp(offset + 105, UTC),
            asked=100.0,
            told=110.0,
        )
        assert clock._offset == offset

    def test_clock_moves_no_further_than_proved(self) -> None:
        """A clock outside of a reading moves to its nearer end."""
        clock = DatabaseClock()
        offset = clock._offset
        clock.learn(
            datetime.fromtimestamp(offset + 120, UTC),
            asked=100.0,
            told=110.0,
        )
        assert clock._offset == pytest.approx(offset + 10, abs=0.001)
