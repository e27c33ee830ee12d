"""Budgets within a batch: holds are taken with the intent, and end with the outcome, in the same commit.

Only tenants with a budget cost anything. Their month is locked for the rest of the
transaction, after the jobs and in the order of its key, so that workers take turns.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, bindparam, delete, func, outerjoin, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.adapters.database.reports import UsageFilter, summed
from worker.adapters.database.tables import budget_holds, budget_months
from worker.domain.attempt import Intent
from worker.domain.budget import OverBudget, Purse, month_of
from worker.domain.job import JobKey


class Month(NamedTuple):
    """One row of `budget_months`."""

    tenant: str
    month: str


class Standing(NamedTuple):
    """A month by its ledger rows, and by its row of `budget_months`, if it has one."""

    spent: int = 0
    counted: int | None = None
    warned: bool = False
    unpriced: int = 0


class Hold(NamedTuple):
    """One row of `budget_holds`, by its key."""

    key: JobKey
    attempt_no: int


NOBODY: Final[Mapping[str, int]] = {}


class BudgetBook:
    """What one transaction knows of budgets, and does to them."""

    def __init__(self, budgets: Mapping[str, int]) -> None:
        self.budgets = budgets
        self._purses: dict[Month, Purse] = {}
        self._held: dict[Hold, int] = {}
        self._dropped: list[Hold] = []
        self._taken: list[dict[str, Any]] = []
        self._spent: dict[Month, int] = defaultdict(int)

    def concerns(self, tenant: str) -> bool:
        """Whether the tenant has a budget."""
        return tenant in self.budgets

    async def load(
        self, connection: AsyncConnection, wanted: Iterable[Month], keys: Iterable[JobKey]
    ) -> None:
        """Lock the months, and read what is spent and held."""
        mine = [key for key in keys if self.concerns(key.tenant)]
        for month in sorted({month for month in wanted if self.concerns(month.tenant)}):
            spent = await lock_month(connection, month)
            held = await connection.scalar(_HELD, month._asdict())
            self._purses[month] = Purse(budget=self.budgets[month.tenant], spent=spent, held=int(held or 0))
        for key in mine:
            for attempt_no, nano_usd in await connection.execute(_HOLDS_OF, key._asdict()):
                self._held[Hold(key, attempt_no)] = nano_usd

    def hold(self, key: JobKey, attempt_no: int, intent: Intent, owner: str) -> OverBudget | None:
        """Take a hold for an intent, or tell why it must not be written."""
        if not self.concerns(key.tenant):
            return None
        month = Month(key.tenant, month_of(intent.started_at))
        if Hold(key, attempt_no) in self._held:
            return None  # taken before, and only the confirmation was lost
        over = self._purses[month].hold(intent.reserved_cost_nano_usd)
        if over is None:
            self._taken.append(
                {
                    "tenant": key.tenant,
                    "job_id": key.job_id,
                    "attempt_no": attempt_no,
                    "month": month.month,
                    "nano_usd": intent.reserved_cost_nano_usd,
                    "worker_id": owner,
                    "taken_at": intent.started_at,
                }
            )
        return over

    def drop_others(self, key: JobKey, attempt_nos: Iterable[int]) -> None:
        """End the job's holds that stand for none of these attempts."""
        kept = set(attempt_nos)
        self._dropped += [hold for hold in self._held if hold.key == key and hold.attempt_no not in kept]

    async def settle(
        self,
        connection: AsyncConnection,
        outcomes: Iterable[Hold],
        booked: Sequence[Mapping[str, Any]],
    ) -> None:
        """End the holds of these outcomes, count what was booked, and write the new holds."""
        ended = [hold for hold in outcomes if hold in self._held]
        for row in booked:
            if self.concerns(row["tenant"]) and row["cost_nano_usd"] is not None:
                hold = Hold(JobKey(row["tenant"], row["job_id"]), row["attempt_no"])
                # A row written again after a lost confirmation has no hold any more, and counts no more.
                if hold in ended or row["entry"] == "correction":
                    month = Month(row["tenant"], month_of(row["occurred_at"]))
                    self._spent[month] += row["cost_nano_usd"]
        if released := [hold.key._asdict() | {"no": hold.attempt_no} for hold in {*ended, *self._dropped}]:
            await connection.execute(_RELEASE, released)
        for month, nano_usd in sorted(self._spent.items()):
            spend = {"of_tenant": month.tenant, "of_month": month.month, "more": nano_usd}
            await connection.execute(_SPEND, spend)
        if self._taken:
            await connection.execute(_insert(connection, budget_holds), self._taken)


async def lock_month(connection: AsyncConnection, month: Month) -> int:
    """Lock a tenant's month and return what is spent; the first time, it is summed from the ledger."""
    spent = await connection.scalar(_LOCK, month._asdict())
    if spent is None:
        spent = await spent_in_ledger(connection, month)
        row = {**month._asdict(), "spent_nano_usd": spent}
        await connection.execute(_insert(connection, budget_months), row)
        spent = await connection.scalar(_LOCK, month._asdict())
    return int(spent or 0)


async def spent_in_ledger(connection: AsyncConnection, month: Month) -> int:
    """Sum a tenant's month from its ledger rows."""
    found = await standings(connection, month.month, [month.tenant])
    return found[month.tenant].spent if found else 0


async def standings(connection: AsyncConnection, month: str, tenants: Collection[str]) -> dict[str, Standing]:
    """Return how these tenants' months stand, all at one moment; nothing of who has no rows."""
    first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    booked = summed(UsageFilter(since=first, until=after), connection.dialect.name, tenants).c
    row = budget_months.c
    mine = (row.tenant == booked.tenant) & (row.month == month)
    found = (
        select(
            booked.tenant,
            func.sum(booked.cost_nano_usd),
            row.spent_nano_usd,
            row.warned_at,
            func.sum(booked.unpriced_requests),
        )
        .select_from(outerjoin(booked.tenant.table, budget_months, mine))
        .group_by(booked.tenant, row.spent_nano_usd, row.warned_at)
    )
    return {
        tenant: Standing(
            spent=int(spent or 0), counted=counted, warned=warned is not None, unpriced=int(unpriced)
        )
        for tenant, spent, counted, warned, unpriced in await connection.execute(found)
    }


def _insert(connection: AsyncConnection, table: Any) -> Any:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()


_MONTH: Final = (
    budget_months.c.tenant == bindparam("tenant"),
    budget_months.c.month == bindparam("month"),
)
_LOCK: Final[Select[Any]] = select(budget_months.c.spent_nano_usd).where(*_MONTH).with_for_update()
_SPEND: Final = (
    update(budget_months)
    .where(
        budget_months.c.tenant == bindparam("of_tenant"),
        budget_months.c.month == bindparam("of_month"),
    )
    .values(spent_nano_usd=budget_months.c.spent_nano_usd + bindparam("more"))
)
_HELD: Final = select(func.sum(budget_holds.c.nano_usd)).where(
    budget_holds.c.tenant == bindparam("tenant"), budget_holds.c.month == bindparam("month")
)
_HOLDS_OF: Final = select(budget_holds.c.attempt_no, budget_holds.c.nano_usd).where(
    budget_holds.c.tenant == bindparam("tenant"), budget_holds.c.job_id == bindparam("job_id")
)
_RELEASE: Final = delete(budget_holds).where(
    budget_holds.c.tenant == bindparam("tenant"),
    budget_holds.c.job_id == bindparam("job_id"),
    budget_holds.c.attempt_no == bindparam("no"),
)
