"""A database that is lost in the middle, or held by others, and what that costs."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tests.support.databases import (
    LEASE_SECONDS,
    Events,
    a_claim,
    a_finish,
    a_job,
    a_token,
    rows,
    until,
    waiting_for_lock,
)
from worker.adapters.database.batch import Work
from worker.adapters.database.claim import ClaimJob
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.opening import open_database
from worker.adapters.database.setup import upgrade
from worker.domain.events import ServerTrouble
from worker.ports import Claimed


class Link:
    """A link to PostgreSQL that can be cut when a commit passes by."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._writers: set[StreamWriter] = set()
        self.cut_at: bytes | None = None
        self.cuts = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """Listen on a port of its own."""
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            listener.close()
            self._cut()
            await listener.wait_closed()

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._server)
        self._writers |= {writer, up_writer}
        with suppress(ConnectionError):
            await asyncio.gather(self._pass(reader, up_writer), self._pass(up_reader, writer))

    async def _pass(self, reader: StreamReader, writer: StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.cut_at is not None and self.cut_at in data:
                self.cut_at = None
                self.cuts += 1
                self._cut()
                return
            writer.write(data)
            await writer.drain()
        writer.close()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


COMMIT, COMMITTED = b"COMMIT;", b"COMMIT\x00"
STATEMENT, DONE = b"message of the job", b"SELECT 1\x00"
"""What a statement carries that is a transaction by itself, and the answer to it."""


class TestServerAway:
    """A server that is lost in the middle."""

    @pytest.mark.parametrize(
        ("first", "claim_at", "finish_at"),
        [
            (False, COMMIT, STATEMENT),
            (False, COMMITTED, DONE),
            (True, STATEMENT, STATEMENT),
            (True, DONE, DONE),
        ],
        ids=["before it arrives", "after it is done", "at once, before", "at once, after"],
    )
    async def test_connection_lost_during_commit(
        self, *, first: bool, claim_at: bytes, finish_at: bytes, postgres_url: str
    ) -> None:
        """Whether or not the lost commit took place, everything is there exactly once."""
        await upgrade(postgres_url)
        parts = urlsplit(postgres_url)
        link = Link((parts.hostname or "", parts.port or 5432))
        events = Events()
        async with link.open() as port:
            netloc = parts.netloc.replace(f":{parts.port}", f":{port}")
            url = urlunsplit(parts._replace(netloc=netloc, query="ssl=disable"))
            async with open_database(url, observer=events, lease_seconds=LEASE_SECONDS) as database:
                job, token = a_job(body=STATEMENT), a_token()
                link.cut_at = claim_at
                claimed = await database.store.claim(a_claim(job, token, first=first))
                assert isinstance(claimed, Claimed)
                assert claimed.attempt_no == 1
                assert link.cuts == 1
                link.cut_at = finish_at
                finish = a_finish(job, token)
                finish = replace(finish, reply=replace(finish.reply, body=STATEMENT))
                assert await database.store.finish(finish)
                assert link.cuts == 2
                assert database.healthy
        assert await rows(postgres_url, "SELECT count(*) FROM usage_ledger") == [(1,)]
        assert await rows(postgres_url, "SELECT attempt_no, state FROM attempts") == [(1, "succeeded")]
        assert await rows(postgres_url, "SELECT status, attempts, takeovers FROM jobs") == [
            ("succeeded", 1, 0)
        ]
        ups = [event.up for event in events.seen if isinstance(event, ServerTrouble)]
        assert ups == [False, True, False, True]

    async def test_backend_terminated_within_the_transaction(self, postgres_url: str) -> None:
        """A killed backend costs nothing but time: the same batch is run again."""
        await upgrade(postgres_url)
        events = Events()
        other = await asyncpg.connect(postgres_url)
        async with open_database(postgres_url, observer=events, lease_seconds=LEASE_SECONDS) as database:
            job, token = a_job(), a_token()
            await database.store.claim(a_claim(job, token))
            async with other.transaction():
                await other.execute("SELECT 1 FROM jobs FOR UPDATE")
                finishing = asyncio.ensure_future(database.store.finish(a_finish(job, token)))
                await until(lambda: waiting_for_lock(other))
                killed = await other.fetchval(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                )
                assert killed
                await until(lambda: len(events.seen) == 1)
                assert not database.healthy
            assert await finishing
            assert database.healthy
        await other.close()
        down, up = events.seen
        assert isinstance(down, ServerTrouble)
        assert (down.server, down.up, down.error) == ("database", False, "AdminShutdownError (57P01)")
        assert up == ServerTrouble(server="database", up=True)
        assert await rows(postgres_url, "SELECT count(*) FROM usage_ledger") == [(1,)]

    async def test_deadlock_with_a_stranger_is_run_again(self, postgres_url: str) -> None:
        """A transaction chosen as a deadlock's victim is repeated without alarm."""
        await upgrade(postgres_url)
        events = Events()
        other = await asyncpg.connect(postgres_url)
        async with open_database(postgres_url, observer=events, lease_seconds=LEASE_SECONDS) as database:
            jobs, tokens = [a_job("a"), a_job("b")], [a_token(), a_token()]
            both = list(zip(jobs, tokens, strict=True))
            await asyncio.gather(*(database.store.claim(a_claim(*pair)) for pair in both))
            transaction = other.transaction()
            await transaction.start()
            await other.execute("SET LOCAL deadlock_timeout = '20s'")
            await other.execute("SELECT 1 FROM jobs WHERE job_id = 'b' FOR UPDATE")
            finishing = asyncio.gather(*(database.store.finish(a_finish(*pair)) for pair in both))
            await until(lambda: waiting_for_lock(other))
            await other.execute("SELECT 1 FROM jobs WHERE job_id = 'a' FOR UPDATE")
            await transaction.rollback()
            assert await finishing == [True, True]
        await other.close()
        assert events.seen == []
        assert await rows(postgres_url, "SELECT count(*) FROM usage_ledger") == [(2,)]

    async def test_job_that_another_is_inserting(self, postgres_url: str) -> None:
        """A claim waits for the other's row, and then sees it, in the same transaction."""
        await upgrade(postgres_url)
        other = await asyncpg.connect(postgres_url)
        async with open_database(postgres_url, observer=Events(), lease_seconds=LEASE_SECONDS) as database:
            once, runs = database.writer._run_batch, 0

            async def counted(connection: AsyncConnection, work: list[Work]) -> list[object]:
                nonlocal runs
                runs += any(isinstance(item, ClaimJob) for item in work)
                return await once(connection, work)

            database.writer._run_batch = counted  # type: ignore[assignment]
            async with other.transaction():
                await other.execute(
                    "INSERT INTO jobs (tenant, job_id, received_at, labels, status, cancel_requested_at)"
                    " VALUES ('acme', 'job', now(), '{}', 'waiting', now())"
                )
                claiming = asyncio.ensure_future(database.store.claim(a_claim(a_job(), a_token())))
                await until(lambda: waiting_for_lock(other))
            claimed = await claiming
        await other.close()
        assert isinstance(claimed, Claimed)
        assert claimed.cancel_requested
        assert runs == 1

    async def test_locked_file_is_waited_for(self, sqlite_url: str, open_engine_of: AsyncEngine) -> None:
        """While another process holds the write lock, callers wait and see no error."""
        await upgrade(sqlite_url)
        events = Events()
        async with open_database(sqlite_url, observer=events, lease_seconds=LEASE_SECONDS) as database:
            async with open_engine_of.begin():
                claiming = asyncio.ensure_future(database.store.claim(a_claim(a_job(), a_token())))
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(claiming), 0.3)
                assert not claiming.done()
            assert isinstance(await claiming, Claimed)
        assert events.seen == []


@pytest.fixture
async def open_engine_of(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    """Give another program's engine on the same file."""
    opened = open_engine(sqlite_url, Use.WRITE)
    yield opened
    await opened.dispose()
