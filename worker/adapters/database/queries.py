"""What operators and billing ask: jobs, attempts, usage, workers. Reads only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from sqlalchemy import ColumnElement, Select, Table, func, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.names import Kind
from worker.adapters.database.sql import sql_of
from worker.adapters.database.tables import (
    BOOKING,
    CORRECTION,
    RUNNING,
    attempts,
    jobs,
    requests,
    results,
    usage_ledger,
    workers,
)
from worker.domain.claims import JobStatus
from worker.domain.job import JobKey

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job as it stands. `kind`, `lane` and `model` are None where only a cancel request is known."""

    tenant: str
    job_id: str
    kind: str | None
    lane: str | None
    model: str | None
    status: str
    attempts: int
    labels: Mapping[str, str]
    error_code: str | None
    reply_status: str
    reply_to: str | None
    correlation_id: str | None
    received_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    next_attempt_at: datetime | None
    waiting_for: str | None
    lease_owner: str | None
    takeovers: int
    cancel_requested_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One request to OpenAI."""

    attempt_no: int
    state: str
    http_status: int | None
    error_code: str | None
    openai_request_id: str | None
    model: str
    worker_id: str
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One accounting row."""

    id: int
    attempt_no: int
    entry: str
    model: str
    service_tier: str | None
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_nano_usd: int | None
    prices: Mapping[str, object] | None
    occurred_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetail:
    """All that is known of a job. Bodies are None where there are none, or not any more."""

    job: JobRow
    attempts: Sequence[AttemptRow]
    ledger: Sequence[LedgerRow]
    request: bytes | None
    reply: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker that has signed on."""

    worker_id: str
    host: str
    pid: int
    started_at: datetime
    alive_until: datetime
    running: int


class By(StrEnum):
    """What usage can be grouped by."""

    DAY = "day"
    MONTH = "month"
    TENANT = "tenant"
    MODEL = "model"
    KIND = "kind"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """Sums over ledger rows. Money in 10⁻⁹ US dollars; unpriced requests are not in it."""

    group: Mapping[str, str | None]
    requests: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_nano_usd: int
    unpriced_requests: int
    estimated_requests: int
    estimated_cost_nano_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list; None means any."""

    tenant: str | None = None
    status: JobStatus | None = None
    kind: Kind | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Which usage to sum up: from `since` on, before `until`; None means any."""

    since: datetime | None = None
    until: datetime | None = None
    tenant: str | None = None
    model: str | None = None
    kind: Kind | None = None
    account: str | None = None


class Queries:
    """Reads for the commands; none of them keeps a worker from writing."""

    _SUMS: ClassVar = (
        "requests",
        "input_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
        "output_tokens",
        "reasoning_tokens",
        "cost_nano_usd",
        "unpriced_requests",
        "estimated_requests",
        "estimated_cost_nano_usd",
    )

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._sql = sql_of(engine.dialect.name)

    async def jobs(self, only: JobFilter | None = None, *, limit: int = 50) -> list[JobRow]:
        """Return jobs, newest first."""
        only = only or JobFilter()
        newest = _columns(JobRow, jobs).order_by(jobs.c.received_at.desc()).limit(limit)
        for column in (jobs.c.tenant, jobs.c.status, jobs.c.kind, jobs.c.model):
            if (value := getattr(only, column.name)) is not None:
                newest = newest.where(column == value)
        async with self._engine.connect() as connection:
            return _rows(JobRow, (await connection.execute(newest)).mappings())

    async def job(self, key: JobKey) -> JobDetail | None:
        """Return one job with all that is known of it."""
        async with self._engine.connect() as connection:
            found = await _all(connection, JobRow, jobs, key)
            if not found:
                return None
            return JobDetail(
                job=found[0],
                attempts=await _all(connection, AttemptRow, attempts, key),
                ledger=await _ledger(connection, key),
                request=await connection.scalar(select(requests.c.body).where(*_is(requests, key))),
                reply=await connection.scalar(select(results.c.body).where(*_is(results, key))),
            )

    async def usage(self, by: Sequence[By], only: UsageFilter | None = None) -> list[UsageRow]:
        """Return sums, in the order of their groups."""
        groups = [self._group(what).label(f"by_{what}") for what in by]
        sums = [func.coalesce(func.sum(usage_ledger.c[name]), 0).label(name) for name in self._SUMS]
        report: Select[Any] = select(*groups, *sums).where(*_within(only or UsageFilter()))
        report = report.group_by(*groups).order_by(*groups)
        async with self._engine.connect() as connection:
            found = (await connection.execute(report)).mappings().all()
        return [
            UsageRow(
                group={what.value: row[f"by_{what}"] for what in by},
                # PostgreSQL sums 64-bit integers to exact decimals.
                **{name: int(row[name]) for name in self._SUMS},
            )
            for row in found
        ]

    async def workers(self) -> list[WorkerRow]:
        """Return the workers and how many jobs each of them runs."""
        running = (
            select(func.count()).where(jobs.c.lease_owner == workers.c.worker_id, RUNNING).scalar_subquery()
        )
        listed = select(workers, running.label("running")).order_by(workers.c.started_at)
        async with self._engine.connect() as connection:
            return _rows(WorkerRow, (await connection.execute(listed)).mappings())

    def _group(self, what: By) -> ColumnElement[Any]:
        match what:
            case By.DAY:
                return self._sql.day(usage_ledger.c.occurred_at)
            case By.MONTH:
                return self._sql.month(usage_ledger.c.occurred_at)
            case By.TENANT | By.MODEL | By.KIND | By.ACCOUNT:
                return usage_ledger.c[what.value]


def _within(only: UsageFilter) -> list[ColumnElement[bool]]:
    ledger = usage_ledger.c
    conditions = [
        column == value
        for column in (ledger.tenant, ledger.model, ledger.kind, ledger.account)
        if (value := getattr(only, column.name)) is not None
    ]
    if only.since is not None:
        conditions.append(ledger.occurred_at >= only.since)
    if only.until is not None:
        conditions.append(ledger.occurred_at < only.until)
    return conditions


def _columns(kind: type[Any], table: Table) -> Select[Any]:
    return select(*(table.c[field.name] for field in fields(kind)))


def _is(table: Table, key: JobKey) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.tenant == key.tenant, table.c.job_id == key.job_id


async def _all(connection: AsyncConnection, kind: type[RowT], table: Table, key: JobKey) -> list[RowT]:
    order = list(table.primary_key)
    found = await connection.execute(_columns(kind, table).where(*_is(table, key)).order_by(*order))
    return _rows(kind, found.mappings())


async def _ledger(connection: AsyncConnection, key: JobKey) -> list[LedgerRow]:
    booked = _columns(LedgerRow, usage_ledger).where(*_is(usage_ledger, key))
    # Two halves, each with the index that it has.
    both = union_all(booked.where(BOOKING), booked.where(CORRECTION)).order_by("id")
    return _rows(LedgerRow, (await connection.execute(both)).mappings())


def _rows(kind: type[RowT], found: Any) -> list[RowT]:
    return [kind(**row) for row in found]
