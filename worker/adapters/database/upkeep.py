"""What a database needs from time to time, apart from the path of any job."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Table, delete, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.adapters.database.budgets import Month, Standing, lock_month, spent_in_ledger, standings
from worker.adapters.database.engine import Use, open_engine, reading
from worker.adapters.database.errors import DatabaseClosedError, Trouble, safe, trouble
from worker.adapters.database.opening import Database
from worker.adapters.database.retention import Retention
from worker.adapters.database.summary import Summary
from worker.adapters.database.tables import attempts, budget_holds, budget_months, requests, results, workers
from worker.adapters.database.write_off import WriteOff
from worker.domain.budget import Purse, month_of
from worker.domain.events import Broken, BudgetSeen
from worker.domain.job import JobKey
from worker.ports import Clock, Observer

_SECONDS: Final = 10.0
"""Between two rounds, roughly."""
_ERASE_SECONDS: Final = 86_400.0
_CANCELS_KEPT: Final = timedelta(days=30)
"""For jobs that have not come: longer than one may well lie in a queue."""
_TABLES: Final[Mapping[str, Table]] = {"requests": requests, "results": results, "attempts": attempts}


class Upkeep:
    """Sums up the ledger, looks after budgets, erases what is too old. Any number of workers may do so."""

    def __init__(
        self,
        engine: AsyncEngine,
        database: Database,
        *,
        budgets: Mapping[str, int],
        keep_days: Mapping[str, int],
        observer: Observer,
    ) -> None:
        self._engine = engine
        self._database = database
        self._budgets = budgets
        self._keep_days = keep_days
        self._observer = observer
        self._clock: Clock = database.clock
        self._summary = Summary(engine)
        self._retention = Retention(engine)
        self._incomplete: set[Month] = set()
        self._next_erasure = self._clock.monotonic() + random.uniform(10, 600)  # noqa: S311 spreads workers

    async def keep(self) -> None:
        """Do all of it again and again, until cancelled."""
        while True:
            try:
                await self.round()
            except DatabaseClosedError:
                return
            except Exception as error:  # noqa: BLE001 (what waits can wait; jobs go on)
                if trouble(error) is Trouble.REFUSED:
                    self._observer(Broken(key=None, where="upkeep", error=safe(error)))
            await self._clock.sleep(random.uniform(_SECONDS / 2, _SECONDS * 1.5))  # noqa: S311 likewise

    async def round(self) -> None:
        """Do what is due."""
        await self._summary.catch_up()
        if self._budgets:
            await self.look_after_budgets()
        if self._clock.monotonic() >= self._next_erasure:
            await self.erase_old()
            self._next_erasure = self._clock.monotonic() + _ERASE_SECONDS

    async def look_after_budgets(self) -> None:
        """Write off the holds of dead workers, put spent sums right, and tell who is near the end."""
        await self.write_off()
        now = self._clock.now()
        async with reading(self._engine) as connection:
            found = await standings(connection, month_of(now), self._budgets)
        for tenant, budget in sorted(self._budgets.items()):
            month, seen = Month(tenant, month_of(now)), found.get(tenant, Standing())
            purse = Purse(budget=budget, spent=seen.spent, held=0)
            # Without a lock, which is for those few whose row has to change.
            if seen.counted not in {None, seen.spent} or (purse.warns and not seen.warned):
                await self._put_right(month, now, seen.unpriced)
            else:
                self._tell(month, purse, seen.unpriced)

    async def write_off(self) -> int:
        """End the holds that dead workers left; return the number of their jobs."""
        alive = select(workers.c.worker_id).where(workers.c.alive_until > self._clock.now())
        orphan = budget_holds.c.worker_id.not_in(alive)
        orphaned = (
            select(budget_holds.c.tenant, budget_holds.c.job_id)
            .where(orphan, budget_holds.c.tenant.in_(self._budgets))
            .distinct()
        )
        # Of tenants whose budget is no more; workers that live may have been told of a new one.
        forgotten = delete(budget_holds).where(orphan, budget_holds.c.tenant.not_in(self._budgets))
        async with self._engine.begin() as connection:
            await connection.execute(forgotten)
            found = (await connection.execute(orphaned)).all()
        for tenant, job_id in found:
            await self._database.writer.submit(WriteOff(JobKey(tenant, job_id), self._clock.now()))
        return len(found)

    async def erase_old(self) -> int:
        """Erase what is older than its table keeps it."""
        now = self._clock.now()
        ages = {_TABLES[name]: now - timedelta(days=days) for name, days in self._keep_days.items()}
        forgotten = await self._retention.forget_cancels(now - _CANCELS_KEPT)
        return forgotten + await self._retention.expire(ages)

    async def _put_right(self, month: Month, now: datetime, unpriced: int) -> None:
        mine = (budget_months.c.tenant == month.tenant, budget_months.c.month == month.month)
        async with self._engine.begin() as connection:
            await lock_month(connection, month)
            # Workers that did not know of the budget have not counted what they spent.
            spent = await spent_in_ledger(connection, month)
            purse = Purse(budget=self._budgets[month.tenant], spent=spent, held=0)
            told = await connection.scalar(select(budget_months.c.warned_at).where(*mine))
            warn = purse.warns and told is None
            columns = {"spent_nano_usd": spent} | ({"warned_at": now} if warn else {})
            await connection.execute(update(budget_months).where(*mine).values(columns))
            # Before it is durable: who dies in between has it told twice, rather than never.
            self._tell(month, purse, unpriced, warn=warn)

    def _tell(self, month: Month, purse: Purse, unpriced: int, *, warn: bool = False) -> None:
        incomplete = unpriced > 0 and month not in self._incomplete
        if unpriced:
            self._incomplete.add(month)
        else:
            self._incomplete.discard(month)
        self._observer(
            BudgetSeen(
                tenant=month.tenant,
                month=month.month,
                budget_nano_usd=purse.budget,
                spent_nano_usd=purse.spent,
                warn=warn,
                unpriced_requests=unpriced,
                incomplete=incomplete,
            )
        )


@asynccontextmanager
async def kept_up(
    url: str,
    database: Database,
    *,
    budgets: Mapping[str, int],
    keep_days: Mapping[str, int],
    observer: Observer,
) -> AsyncIterator[Upkeep]:
    """Look after a database in the background, with a connection of its own."""
    engine = open_engine(url, Use.WRITE)
    upkeep = Upkeep(engine, database, budgets=budgets, keep_days=keep_days, observer=observer)
    task = asyncio.get_running_loop().create_task(upkeep.keep(), name="database-upkeep")
    try:
        yield upkeep
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await engine.dispose()
