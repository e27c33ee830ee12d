"""Runs a batch of operations in one transaction, with few statements however many there are."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.adapters.database.budgets import NOBODY, BudgetBook, Month
from worker.adapters.database.foresight import Foresight
from worker.adapters.database.history import load_past
from worker.adapters.database.running import run, run_if
from worker.adapters.database.sql import KEYS, keys_value
from worker.adapters.database.statements import Statements
from worker.adapters.database.work import LockedJob, Operation, Past, Step, Writes
from worker.domain.budget import month_of
from worker.domain.job import JobKey

Work: TypeAlias = Operation[Any] | Step[Any]


class Batch:
    """Operations on different jobs, and steps.

    The order keeps transactions from waiting for each other in a circle: new rows
    in the order of their keys, then locks on known rows in the order of their keys,
    then locks on the months of tenants with a budget, likewise, then writes that
    cannot wait, then steps, which skip what others hold.
    """

    def __init__(self, statements: Statements, budgets: Mapping[str, int] = NOBODY) -> None:
        self._statements = statements
        self._budgets = budgets
        self._foresight = Foresight(statements, budgets)

    async def run(self, connection: AsyncConnection, work: Sequence[Work]) -> list[Any]:
        """Return the results in the order of the work."""
        if plan := self._foresight.plan(work):
            if await run_if(connection, plan.checks, list(plan.writes.calls(self._statements))):
                self._foresight.note(plan.rows, plan.writes)
                return plan.results
            self._foresight.forget(plan)
        async with connection.begin():
            return await self._look_first(connection, work)

    async def _look_first(self, connection: AsyncConnection, work: Sequence[Work]) -> list[Any]:
        operations = [item for item in work if isinstance(item, Operation)]
        results = await self._change_jobs(connection, operations) if operations else {}
        return [
            await item.run(connection, self._statements) if isinstance(item, Step) else results[item.key]
            for item in work
        ]

    async def _change_jobs(
        self, connection: AsyncConnection, operations: Sequence[Operation[Any]]
    ) -> dict[JobKey, Any]:
        locked = await self._lock(connection, operations)
        needed = [
            operation.key
            for operation in operations
            if (job := locked.get(operation.key)) is not None and operation.needs_past(job)
        ]
        past = await load_past(connection, self._statements, needed)
        writes = Writes(await self._budget_book(connection, operations, past))
        results = {
            (key := operation.key): operation.apply(locked.get(key), past.get(key), writes)
            for operation in operations
        }
        await writes.flush(connection, self._statements)
        self._foresight.note(locked, writes)
        return results

    async def _budget_book(
        self, connection: AsyncConnection, operations: Sequence[Operation[Any]], past: Mapping[JobKey, Past]
    ) -> BudgetBook:
        book = BudgetBook(self._budgets)
        mine = [operation for operation in operations if book.concerns(operation.key.tenant)]
        if mine:
            moments = {(one.key.tenant, at) for one in mine for at in one.moments}
            moments |= {(key.tenant, at) for key, behind in past.items() for at in behind.moments}
            months = {Month(tenant, month_of(at)) for tenant, at in moments}
            await book.load(connection, months, [one.key for one in mine])
        return book

    async def _lock(
        self, connection: AsyncConnection, operations: Sequence[Operation[Any]]
    ) -> dict[JobKey, LockedJob]:
        """Insert the jobs that are new, then lock all; return them as they stand."""
        rows = [row for operation in operations if (row := operation.new_row()) is not None]
        rows.sort(key=lambda row: (row["tenant"], row["job_id"]))
        keys = {KEYS: keys_value([operation.key for operation in operations])}
        calls = [*self._statements.insert_jobs.calls(rows), *self._statements.lock.calls([keys])]
        locked = map(LockedJob.found, await run(connection, calls))
        return {JobKey(job.tenant, job.job_id): job for job in locked}
