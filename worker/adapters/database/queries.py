"""What operators and billing ask: jobs, attempts, usage, workers. Reads only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.names import Kind
from worker.adapters.database.limits import ClosedAccount, LimitRow, closed_accounts, limit_rows
from worker.adapters.database.reports import Group, UsageFilter, UsageRow, usage_report
from worker.adapters.database.tables import (
    RUNNING,
    attempts,
    budget_holds,
    budget_months,
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
    reply_tries: int
    """How often its reply came back because there was no such queue."""
    reply_due_at: datetime | None


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
class HoldRow:
    """What a request in flight holds of its tenant's budget. Money in 10⁻⁹ US dollars."""

    attempt_no: int
    month: str
    nano_usd: int
    taken_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """What a tenant has spent in a month, and what requests in flight hold besides."""

    month: str
    spent_nano_usd: int
    held_nano_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetail:
    """All that is known of a job. Bodies are None where there are none, or not any more."""

    job: JobRow
    attempts: Sequence[AttemptRow]
    ledger: Sequence[LedgerRow]
    request: bytes | None
    reply: bytes | None
    holds: Sequence[HoldRow] = ()
    budget: BudgetRow | None = None
    """The latest month of the tenant, where it has a budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker that has signed on."""

    worker_id: str
    host: str
    pid: int
    started_at: datetime
    alive_until: datetime
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list; None means any."""

    tenant: str | None = None
    status: JobStatus | None = None
    kind: Kind | None = None
    model: str | None = None


class Queries:
    """Reads for the commands; none of them keeps a worker from writing."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def jobs(self, only: JobFilter | None = None, *, limit: int = 50) -> list[JobRow]:
        """Return jobs, newest first. A request to cancel one that never came is none."""
        only = only or JobFilter()
        newest = _columns(JobRow, jobs).where(jobs.c.kind.is_not(None))
        newest = newest.order_by(jobs.c.received_at.desc()).limit(limit)
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
                ledger=await _ledger(connection, key, found[0].received_at),
                request=await connection.scalar(select(requests.c.body).where(*_is(requests, key))),
                reply=await connection.scalar(select(results.c.body).where(*_is(results, key))),
                holds=await _all(connection, HoldRow, budget_holds, key),
                budget=await _budget(connection, key.tenant),
            )

    async def tenants(self, job_id: str, *, most: int) -> list[str]:
        """Return tenants that have a job of this id."""
        having = select(jobs.c.tenant).where(jobs.c.job_id == job_id, jobs.c.kind.is_not(None))
        async with self._engine.connect() as connection:
            return list(await connection.scalars(having.order_by(jobs.c.tenant).limit(most)))

    async def usage(self, by: Sequence[Group], only: UsageFilter | None = None) -> list[UsageRow]:
        """Return sums, in the order of their groups."""
        async with self._engine.connect() as connection:
            return await usage_report(connection, by, only or UsageFilter())

    async def limits(self) -> tuple[list[LimitRow], list[ClosedAccount]]:
        """Return the rate limits in use, and the credentials that are closed."""
        async with self._engine.connect() as connection:
            return await limit_rows(connection), await closed_accounts(connection)

    async def workers(self) -> list[WorkerRow]:
        """Return the workers and how many jobs each of them runs."""
        running = (
            select(func.count()).where(jobs.c.lease_owner == workers.c.worker_id, RUNNING).scalar_subquery()
        )
        listed = select(workers, running.label("running")).order_by(workers.c.started_at)
        async with self._engine.connect() as connection:
            return _rows(WorkerRow, (await connection.execute(listed)).mappings())


async def _budget(connection: AsyncConnection, tenant: str) -> BudgetRow | None:
    months, holds = budget_months.c, budget_holds.c
    held = (
        select(func.coalesce(func.sum(holds.nano_usd), 0))
        .where(holds.tenant == months.tenant, holds.month == months.month)
        .scalar_subquery()
    )
    latest = (
        select(months.month, months.spent_nano_usd, held)
        .where(months.tenant == tenant)
        .order_by(months.month.desc())
        .limit(1)
    )
    row = (await connection.execute(latest)).one_or_none()
    return row and BudgetRow(month=row[0], spent_nano_usd=row[1], held_nano_usd=int(row[2]))


def _columns(kind: type[Any], table: Table) -> Select[Any]:
    return select(*(table.c[field.name] for field in fields(kind)))


def _is(table: Table, key: JobKey) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.tenant == key.tenant, table.c.job_id == key.job_id


async def _all(connection: AsyncConnection, kind: type[RowT], table: Table, key: JobKey) -> list[RowT]:
    order = list(table.primary_key)
    found = await connection.execute(_columns(kind, table).where(*_is(table, key)).order_by(*order))
    return _rows(kind, found.mappings())


async def _ledger(connection: AsyncConnection, key: JobKey, received_at: datetime) -> list[LedgerRow]:
    mine = (usage_ledger.c.received_at == received_at, *_is(usage_ledger, key))
    booked = _columns(LedgerRow, usage_ledger).where(*mine).order_by(usage_ledger.c.id)
    return _rows(LedgerRow, (await connection.execute(booked)).mappings())


def _rows(kind: type[RowT], found: Any) -> list[RowT]:
    return [kind(**row) for row in found]
