"""Opens the database: for a worker, for its readers, for requests to cancel."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.adapters.database.batch import Batch
from worker.adapters.database.budgets import NOBODY
from worker.adapters.database.engine import Use, exists, open_engine, place
from worker.adapters.database.errors import DatabaseSchemaError
from worker.adapters.database.lease import DatabaseClock, Worker, WorkerLease
from worker.adapters.database.limits import LimitControl
from worker.adapters.database.queries import Queries
from worker.adapters.database.quota import SqlQuotaStore
from worker.adapters.database.reach import current_revision, reach
from worker.adapters.database.statements import Statements
from worker.adapters.database.store import Cancels, SqlJobStore, SqlOutbox
from worker.adapters.database.tables import REVISION
from worker.adapters.database.writer import GroupCommit
from worker.domain.events import Event
from worker.ports import Observer

_FLUSH_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """An open database, as a worker uses it."""

    store: SqlJobStore
    outbox: SqlOutbox
    quota: SqlQuotaStore
    cancels: Cancels
    queries: Queries
    clock: DatabaseClock
    lease: WorkerLease
    writer: GroupCommit

    @property
    def healthy(self) -> bool:
        """Whether the last transaction went through."""
        return self.writer.healthy


@asynccontextmanager
async def open_database(
    url: str,
    *,
    observer: Observer,
    lease_seconds: float,
    worker_id: str | None = None,
    startup_timeout: float = 30.0,
    budgets: Mapping[str, int] = NOBODY,
) -> AsyncIterator[Database]:
    """Open for a worker: registered, and kept alive until the end.

    `budgets` are 10⁻⁹ US dollars a month, by tenant.

    Raises DatabaseUrlError, DatabaseUnreachableError and DatabaseSchemaError.
    """
    async with (
        opened(url, Use.READ, startup_timeout=startup_timeout, observer=observer) as engine,
        _writer(url, observer, budgets) as writer,
    ):
        clock = DatabaseClock()
        worker = Worker(worker_id=worker_id or uuid4().hex, started_at=clock.now())
        lease = WorkerLease(writer, worker, clock, seconds=lease_seconds, observer=observer)
        quota = SqlQuotaStore(writer, engine, lease.worker_id)
        async with _kept(lease), _left(quota):
            yield Database(
                store=SqlJobStore(writer, lease.worker_id),
                outbox=SqlOutbox(writer, clock),
                quota=quota,
                cancels=Cancels(writer, clock),
                queries=Queries(engine),
                clock=clock,
                lease=lease,
                writer=writer,
            )


async def is_current(url: str, *, startup_timeout: float = 30.0, observer: Observer | None = None) -> bool:
    """Tell whether the tables are at the newest revision. Raises as `open_database`."""
    async with _engine(url, Use.MIGRATE) as engine:
        await reach(engine, place(url), startup_timeout, observer)
        return await current_revision(engine) == REVISION


@asynccontextmanager
async def open_queries(url: str, *, startup_timeout: float = 30.0) -> AsyncIterator[Queries]:
    """Open for reading. Raises as `open_database`."""
    async with opened(url, Use.READ, startup_timeout=startup_timeout) as engine:
        yield Queries(engine)


@asynccontextmanager
async def opened(
    url: str, use: Use, *, startup_timeout: float = 30.0, observer: Observer | None = None
) -> AsyncIterator[AsyncEngine]:
    """Open an engine on a database that has the right tables. Raises as `open_database`."""
    async with _engine(url, use) as engine:
        if not exists(url):
            raise DatabaseSchemaError(f"{place(url)} does not exist: run `openai-worker migrate`")
        await reach(engine, place(url), startup_timeout, observer)
        await _check_revision(engine, place(url))
        yield engine


@asynccontextmanager
async def open_cancels(url: str, *, startup_timeout: float = 30.0) -> AsyncIterator[Cancels]:
    """Open to cancel jobs without being a worker. Raises as `open_database`."""
    async with (
        open_queries(url, startup_timeout=startup_timeout),
        _writer(url, _ignore) as writer,
    ):
        yield Cancels(writer, DatabaseClock())


@asynccontextmanager
async def open_limits(url: str, *, startup_timeout: float = 30.0) -> AsyncIterator[LimitControl]:
    """Open to pause and resume limits. Raises as `open_database`."""
    async with (
        open_queries(url, startup_timeout=startup_timeout),
        _writer(url, _ignore) as writer,
    ):
        yield LimitControl(writer)


@asynccontextmanager
async def _engine(url: str, use: Use) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(url, use)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def _writer(
    url: str, observer: Observer, budgets: Mapping[str, int] = NOBODY
) -> AsyncIterator[GroupCommit]:
    async with _engine(url, Use.WRITE) as engine:
        writer = GroupCommit(engine, Batch(Statements(engine.dialect), budgets).run, observer)
        writer.start()
        try:
            yield writer
        finally:
            await writer.close(_FLUSH_SECONDS)


@asynccontextmanager
async def _kept(lease: WorkerLease) -> AsyncIterator[None]:
    await lease.open()
    keeper = asyncio.get_running_loop().create_task(lease.keep(), name="database-lease")
    try:
        yield
    finally:
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper
        lease.close()


@asynccontextmanager
async def _left(quota: SqlQuotaStore) -> AsyncIterator[None]:
    try:
        yield
    finally:
        quota.close()


async def _check_revision(engine: AsyncEngine, where: str) -> None:
    revision = await current_revision(engine)
    if revision != REVISION:
        raise DatabaseSchemaError(
            f"{where} is at revision {revision or 'none'}, this program needs {REVISION}:"
            " run `openai-worker migrate`"
        )


def _ignore(event: Event) -> None:
    _ = event
