"""Erases content by age or by tenant. The ledger is never touched; nor is the row of a job.

A job's row stays as the memory of its key: the same job_id must not be billed again. What goes in
the end is a request to cancel a job that never came.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, Table, and_, delete, exists, func, literal, not_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.adapters.database.engine import reading
from worker.adapters.database.sql import KEYS, keys_value, sql_of
from worker.adapters.database.tables import (
    WAITING,
    attempts,
    checkpoints,
    jobs,
    requests,
    results,
)
from worker.domain.job import JobKey

CONTENT: Final = (requests, results, checkpoints)
_LOOKED_AT: Final = 2_000
"""Jobs a query, oldest first: those without content, of which there are ever more, cost time too."""
_ERASED: Final = 200
"""Jobs a transaction: a few milliseconds, between which others get their turn."""
_PAUSE_SECONDS: Final = 0.02

_FINISHED: Final = and_(jobs.c.status.not_in(("waiting", "running")), jobs.c.reply_status != "pending")
# The first two conditions are what the index of the waiting knows.
_NEVER_CAME: Final = (WAITING, jobs.c.next_attempt_at.is_(None), jobs.c.kind.is_(None))
Place: TypeAlias = tuple[datetime, str, str]
_BY_AGE: Final = (jobs.c.received_at, jobs.c.job_id, jobs.c.tenant)


class Retention:
    """Looks for what may go without a lock, and erases it in small transactions.

    Jobs that have no outcome yet, or owe a reply, keep what they have.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        wanted = sql_of(engine.dialect.name).keys()
        among = select(wanted.c.tenant, wanted.c.job_id)
        self._delete = {
            table: delete(table).where(
                tuple_(table.c.tenant, table.c.job_id).in_(among),
                exists().where(_of_job(table), _FINISHED),
            )
            for table in (*CONTENT, attempts)
        }
        key = tuple_(jobs.c.tenant, jobs.c.job_id)
        self._forget = delete(jobs).where(key.in_(among), *_NEVER_CAME)

    async def expire(self, before: Mapping[Table, datetime]) -> int:
        """Erase from each table what belongs to jobs that ended before a time; return the number of rows."""
        return sum(
            [await self._erase(table, limit, jobs.c.finished_at < limit) for table, limit in before.items()]
        )

    async def forget_cancels(self, before: datetime) -> int:
        """Forget requests to cancel jobs that have not come since; return their number."""
        wanted = select(jobs.c.tenant, jobs.c.job_id).where(*_NEVER_CAME, jobs.c.received_at < before)
        forgotten = 0
        while True:
            async with reading(self._engine) as connection:
                keys = [JobKey(*row) for row in await connection.execute(wanted.limit(_ERASED))]
            if not keys:
                return forgotten
            async with self._engine.begin() as connection:
                erased = await connection.execute(self._forget, {KEYS: keys_value(keys)})
            forgotten += erased.rowcount
            await asyncio.sleep(_PAUSE_SECONDS)

    async def erase_tenant(self, tenant: str, before: datetime | None = None) -> int:
        """Erase a tenant's content; return the number of bodies."""
        return sum([await self._erase(table, before, jobs.c.tenant == tenant) for table in CONTENT])

    async def left(self, tenant: str, before: datetime | None = None) -> int:
        """Count the bodies of a tenant's jobs that have no outcome yet, or owe a reply."""
        theirs = [jobs.c.tenant == tenant, not_(_FINISHED)]
        if before is not None:
            theirs.append(jobs.c.received_at < before)
        async with reading(self._engine) as connection:
            found = [
                await connection.scalar(
                    select(func.count()).select_from(table).join(jobs, _of_job(table)).where(*theirs)
                )
                for table in CONTENT
            ]
        return sum(int(count or 0) for count in found)

    async def _erase(self, table: Table, before: datetime | None, only: ColumnElement[bool]) -> int:
        erased = 0
        async for keys in self._found(table, before, only):
            for first in range(0, len(keys), _ERASED):
                some = {KEYS: keys_value(keys[first : first + _ERASED])}
                async with self._engine.begin() as connection:
                    erased += (await connection.execute(self._delete[table], some)).rowcount
                await asyncio.sleep(_PAUSE_SECONDS)
        return erased

    async def _found(
        self, table: Table, before: datetime | None, only: ColumnElement[bool]
    ) -> AsyncIterator[list[JobKey]]:
        """Yield the jobs that have something to be erased, from the oldest on, in stretches."""
        wanted = select(jobs.c.tenant, jobs.c.job_id).where(only, _FINISHED, exists().where(_of_job(table)))
        old = [] if before is None else [jobs.c.received_at < before]
        last: Place | None = None
        while True:
            beyond = [*old, *(_beyond(last) if last else ())]
            end = select(*_BY_AGE).where(*beyond).order_by(*_BY_AGE).offset(_LOOKED_AT - 1).limit(1)
            async with reading(self._engine) as connection:
                last = (await connection.execute(end)).one_or_none()
                stretch = wanted.where(*beyond, *(_up_to(last) if last else ()))
                keys = [JobKey(*row) for row in await connection.execute(stretch)]
            yield keys
            if last is None:
                return


def _beyond(place: Place) -> list[ColumnElement[bool]]:
    # The first condition is what the index knows.
    return [jobs.c.received_at >= place[0], tuple_(*_BY_AGE) > _spelled(place)]


def _up_to(place: Place) -> list[ColumnElement[bool]]:
    return [jobs.c.received_at <= place[0], tuple_(*_BY_AGE) <= _spelled(place)]


def _spelled(place: Place) -> ColumnElement[Any]:
    return tuple_(*(literal(value, column.type) for value, column in zip(place, _BY_AGE, strict=True)))


def _of_job(table: Table) -> ColumnElement[bool]:
    return and_(table.c.tenant == jobs.c.tenant, table.c.job_id == jobs.c.job_id)
