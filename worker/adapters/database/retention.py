"""Erases content by age or by tenant. The ledger is never touched; nor is the row of a job.

A job's row stays as the memory of its key: the same job_id must not be billed again.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, Table, and_, delete, exists, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.adapters.database.sql import KEYS, keys_value, sql_of
from worker.adapters.database.tables import (
    attempts,
    checkpoints,
    jobs,
    requests,
    results,
)
from worker.domain.job import JobKey

CONTENT: Final = (requests, results, checkpoints)
_JOBS: Final = 200
"""Jobs a transaction: a few milliseconds, between which others get their turn."""
_PAUSE_SECONDS: Final = 0.02
_UNFINISHED: Final = ("waiting", "running")


class Retention:
    """Erases in small transactions, each on jobs that have their outcome and owe no reply."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        wanted = sql_of(engine.dialect.name).keys()
        among = select(wanted.c.tenant, wanted.c.job_id)
        self._delete = {
            table: delete(table).where(tuple_(table.c.tenant, table.c.job_id).in_(among))
            for table in (*CONTENT, attempts)
        }

    async def expire(self, before: Mapping[Table, datetime]) -> int:
        """Erase from each table what belongs to jobs that ended before a time; return the jobs concerned."""
        erased = 0
        for table, limit in before.items():
            old = _finished(table).where(jobs.c.received_at < limit, jobs.c.finished_at < limit)
            erased += await self._erase(table, old)
        return erased

    async def erase_tenant(self, tenant: str, before: datetime | None = None) -> int:
        """Erase a tenant's content; return the number of bodies."""
        erased = 0
        for table in CONTENT:
            theirs = _finished(table).where(jobs.c.tenant == tenant)
            if before is not None:
                theirs = theirs.where(jobs.c.received_at < before)
            erased += await self._erase(table, theirs)
        return erased

    async def _erase(self, table: Table, found: Select[Any]) -> int:
        erased = 0
        oldest: datetime | None = None
        while True:
            batch = found if oldest is None else found.where(jobs.c.received_at >= oldest)
            async with self._engine.begin() as connection:
                rows = (await connection.execute(batch)).all()
                if rows:
                    keys = [JobKey(row.tenant, row.job_id) for row in rows]
                    await connection.execute(self._delete[table], {KEYS: keys_value(keys)})
            erased += len(rows)
            if len(rows) < _JOBS:
                return erased
            oldest = rows[-1].received_at
            await asyncio.sleep(_PAUSE_SECONDS)


def _finished(table: Table) -> Select[Any]:
    """Find finished jobs that have something in a table, oldest first."""
    there = exists().where(and_(table.c.tenant == jobs.c.tenant, table.c.job_id == jobs.c.job_id))
    return (
        select(jobs.c.tenant, jobs.c.job_id, jobs.c.received_at)
        .where(jobs.c.status.not_in(_UNFINISHED), jobs.c.reply_status != "pending", there)
        .order_by(jobs.c.received_at)
        .limit(_JOBS)
    )
