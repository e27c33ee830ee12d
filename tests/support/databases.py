"""Databases for tests: a fresh SQLite file and a fresh PostgreSQL database, and what is written to them."""

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from sqlalchemy import text

from schemas.job import Options
from schemas.names import Kind
from schemas.reply import ReplyStatus
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.opening import Database, open_database
from worker.adapters.database.setup import upgrade
from worker.domain.attempt import (
    Account,
    AttemptRecord,
    AttemptState,
    Entry,
    Intent,
    LedgerEntry,
)
from worker.domain.events import Event
from worker.domain.job import Job, JobKey, ReplyAddress
from worker.domain.usage import Usage
from worker.ports import Claim, Finish, NextAttempt, OwedReply, Progress, Wait

LEASE_SECONDS = 60.0
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
PRICES = {"unit": "USD per million tokens", "input": "1", "output": "2"}

OpenWorker = Callable[..., AbstractAsyncContextManager[Database]]


def postgres_server() -> str:
    """Return the URL of the PostgreSQL server; a missing one fails the test."""
    url = os.environ.get("TEST_POSTGRES_URL") or os.environ.get("DATABASE_URL") or ""
    if not url.startswith("postgresql://"):
        pytest.fail("set TEST_POSTGRES_URL or DATABASE_URL to a PostgreSQL server (postgresql://...)")
    return url


@asynccontextmanager
async def fresh_postgres(template: str = "template1") -> AsyncIterator[str]:
    """Create a database, empty or as another one is, and drop it with whatever is still connected."""
    name = f"test_{secrets.token_hex(8)}"
    async with _server() as admin:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield urlunsplit(urlsplit(postgres_server())._replace(path=f"/{name}"))
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def _server() -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_server())
    try:
        yield connection
    finally:
        await connection.close()


class Templates:
    """A database of each kind with the newest tables: a copy takes less than making them again."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "template.db"
        self._name = ""

    async def sqlite(self) -> Path:
        """Return the file."""
        if not self._file.exists():
            await upgrade(f"sqlite:///{self._file}")
        return self._file

    async def postgres(self) -> str:
        """Return the name of the database."""
        if not self._name:
            name = f"test_{secrets.token_hex(8)}"
            async with _server() as admin:
                await admin.execute(f"CREATE DATABASE {name}")
            self._name = name
            await upgrade(urlunsplit(urlsplit(postgres_server())._replace(path=f"/{name}")))
        return self._name

    async def drop(self) -> None:
        """Leave nothing on the server."""
        if self._name:
            async with _server() as admin:
                await admin.execute(f"DROP DATABASE {self._name} WITH (FORCE)")


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Templates]:
    """Give what databases are copied from."""
    made = Templates(tmp_path_factory.mktemp("templates"))
    yield made
    asyncio.run(made.drop())


@pytest.fixture
async def postgres_url() -> AsyncIterator[str]:
    """Give an empty PostgreSQL database."""
    async with fresh_postgres() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Give an SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'worker.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Give an empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'worker.db'}"
        return
    async with fresh_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
async def migrated_url(
    request: pytest.FixtureRequest, tmp_path: Path, templates: Templates
) -> AsyncIterator[str]:
    """Give a database of each kind, with the newest tables."""
    if request.param == "sqlite":
        copied = shutil.copy(await templates.sqlite(), tmp_path / "worker.db")
        yield f"sqlite:///{copied}"
        return
    async with fresh_postgres(await templates.postgres()) as url:
        yield url


@pytest.fixture
def open_worker(migrated_url: str) -> OpenWorker:
    """Return what opens the same database for any number of workers."""

    def open_it(observer: Callable[[Event], None] | None = None, **options: Any) -> Any:
        options.setdefault("lease_seconds", LEASE_SECONDS)
        return open_database(migrated_url, observer=observer or Events(), **options)

    return open_it


@pytest.fixture
async def database(open_worker: OpenWorker) -> AsyncIterator[Database]:
    """Give a worker's open database, of each kind."""
    async with open_worker() as opened:
        yield opened


class Events:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.seen.append(event)


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """Read with plain SQL, as other programs do."""
    engine = open_engine(url, Use.READ)
    try:
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]
    finally:
        await engine.dispose()


async def execute(url: str, statement: str) -> None:
    """Write with plain SQL, as no other program should."""
    engine = open_engine(url, Use.MIGRATE)
    try:
        async with engine.begin() as connection:
            await connection.execute(text(statement))
    finally:
        await engine.dispose()


def a_token() -> int:
    """Return a fencing token."""
    return secrets.randbits(63)


def a_job(job_id: str = "job", *, tenant: str = "acme", content: bytes = b"content", **fields: Any) -> Job:
    """Return a job; `content` decides its fingerprint."""
    job = Job(
        key=JobKey(tenant, job_id),
        kind=Kind.COMPLETION,
        lane="completion",
        model="gpt-6-luna",
        request={"model": "gpt-6-luna"},
        options=Options(),
        labels={"feature": "summaries"},
        fingerprint=sha256(content).digest(),
        address=ReplyAddress(queue="replies", correlation_id=job_id),
        body=content,
        received_at=NOON,
    )
    return replace(job, **fields)


def an_intent(*, at: datetime = NOON, **fields: Any) -> Intent:
    """Return an intent that reserves 100 + 50 tokens for 200,000 nano dollars."""
    intent = Intent(
        model="gpt-6-luna",
        account=Account(name="main", organization="org-1", project="proj-1"),
        service_tier="default",
        reserved=Usage(input_tokens=100, output_tokens=50),
        reserved_cost_nano_usd=200_000,
        reserved_prices=PRICES,
        started_at=at,
    )
    return replace(intent, **fields)


def a_claim(job: Job, token: int, *, at: datetime = NOON, intent: bool = True, first: bool = True) -> Claim:
    """Return a claim, with the intent of a first request unless told otherwise."""
    return Claim(job=job, lease_token=token, intent=an_intent(at=at) if intent else None, at=at, first=first)


def a_ledger_entry(**fields: Any) -> LedgerEntry:
    """Return 80 + 20 measured tokens for 120,000 nano dollars."""
    entry = LedgerEntry(
        entry=Entry.MEASURED,
        model="gpt-6-luna",
        service_tier="default",
        usage=Usage(input_tokens=80, cached_input_tokens=30, output_tokens=20),
        cost_nano_usd=120_000,
        prices=PRICES,
        occurred_at=NOON,
    )
    return replace(entry, **fields)


def a_record(key: JobKey, attempt_no: int = 1, **fields: Any) -> AttemptRecord:
    """Return a measured success."""
    record = AttemptRecord(
        key=key,
        attempt_no=attempt_no,
        state=AttemptState.SUCCEEDED,
        finished_at=NOON + timedelta(seconds=2),
        http_status=200,
        openai_request_id="req_1",
        ledger=a_ledger_entry(),
        labels={"feature": "summaries"},
        account=Account(name="main", organization="org-1", project="proj-1"),
    )
    return replace(record, **fields)


def a_finish(job: Job, token: int, attempt_no: int = 1, **fields: Any) -> Finish:
    """Return the successful end of a job."""
    finish = Finish(
        key=job.key,
        lease_token=token,
        status=ReplyStatus.SUCCEEDED,
        error_code=None,
        record=a_record(job.key, attempt_no),
        reply=OwedReply(key=job.key, reply_id=f"reply-{job.key.job_id}", address=job.address, body=b"reply"),
        finished_at=NOON + timedelta(seconds=2),
        checkpointed=True,
    )
    return replace(finish, **fields)


def a_next_attempt(job: Job, token: int, attempt_no: int) -> NextAttempt:
    """Return the intent of a further attempt."""
    return NextAttempt(key=job.key, lease_token=token, attempt_no=attempt_no, intent=an_intent())


def a_progress(job: Job, token: int, attempt_no: int = 1, checkpoint: bytes | None = None) -> Progress:
    """Return the outcome of an attempt that does not end the job."""
    return Progress(lease_token=token, record=a_record(job.key, attempt_no), checkpoint=checkpoint)


def a_wait(job: Job, token: int | None, *, seconds: float = 60, at: datetime = NOON, **fields: Any) -> Wait:
    """Return the wish to wait."""
    wait = Wait(
        job=job,
        lease_token=token,
        until=at + timedelta(seconds=seconds),
        reason="rate limit",
        step_attempts=0,
        at=at,
    )
    return replace(wait, **fields)


async def left_behind(open_worker: OpenWorker, job: Job, token: int) -> None:
    """Leave a claim with an attempt in flight by a worker that signs off without another word."""
    async with open_worker() as dying:
        await dying.store.claim(a_claim(job, token))


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Poll until something is so, for 20 seconds at most."""
    async with asyncio.timeout(20):
        while True:
            held = condition()
            if held is True or (isinstance(held, Awaitable) and await held):
                return
            await asyncio.sleep(0.01)


async def waiting_for_lock(connection: asyncpg.Connection) -> bool:
    """Whether some session waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return bool(await connection.fetchval(waiting))
