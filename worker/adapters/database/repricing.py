"""Prices ledger rows again: appends corrections where a price was missing or wrong, and rewrites nothing."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import Select, and_, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.adapters.database.ledger import total_usage
from worker.adapters.database.ledger_pages import ledger_pages, settled
from worker.adapters.database.reports import UsageFilter
from worker.adapters.database.sql import KEYS, keys_value, sql_of
from worker.adapters.database.tables import TOKENS, budget_months, jobs, usage_ledger
from worker.domain.attempt import Entry
from worker.domain.budget import month_of
from worker.domain.job import JobKey
from worker.domain.prices import PriceList
from worker.domain.usage import Usage

Priced: TypeAlias = Callable[[str, str | None, datetime], PriceList | None]
_PAGE: Final = 500
_ATTEMPT: Final = ("received_at", "job_id", "tenant", "attempt_no")
_KEPT: Final = (*_ATTEMPT, "kind", "labels", "account", "organization", "project")


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What a row would cost by today's prices. `before` is None where it was unpriced."""

    tenant: str
    job_id: str
    attempt_no: int
    model: str
    service_tier: str | None
    occurred_at: datetime
    before: int | None
    after: int


class Repricing:
    """Looks at every attempt of a range with all rows that it has; a price that is gone changes nothing."""

    def __init__(self, engine: AsyncEngine, prices: Priced) -> None:
        self._engine = engine
        self._prices = prices
        self._lock = _jobs_of(engine.dialect.name)

    async def run(self, only: UsageFilter, *, apply: bool) -> AsyncIterator[list[Correction]]:
        """Yield what differs, page by page; with `apply` it is corrected by then."""
        last = await settled(self._engine)
        async for page in ledger_pages(self._engine, only, until=last.last_id, page=_PAGE):
            booked = [row for row in page if row["entry"] != Entry.CORRECTION]
            if booked:
                yield await self._page(booked, apply=apply)

    async def _page(self, booked: Sequence[Mapping[str, Any]], *, apply: bool) -> list[Correction]:
        keys = sorted({JobKey(row["tenant"], row["job_id"]) for row in booked})
        ids = [row["id"] for row in booked]
        async with self._engine.begin() as connection:
            if apply:
                # Two that price again at once would correct twice; a late outcome might come between.
                await connection.execute(self._lock, {KEYS: keys_value(keys)})
            earlier: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
            for row in (await connection.execute(_CORRECTIONS, {"ids": ids})).mappings():
                earlier.setdefault((row["tenant"], row["job_id"], row["attempt_no"]), []).append(row)
            found = [
                self._difference([row, *earlier.get((row["tenant"], row["job_id"], row["attempt_no"]), [])])
                for row in booked
            ]
            changes = [one for one in found if one is not None]
            if apply and changes:
                await _append(connection, [row for _, row in changes])
        return [correction for correction, _ in changes]

    def _difference(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Correction, dict[str, Any]] | None:
        """Price what an attempt's rows come to; None where that is what they cost."""
        first, last = rows[0], rows[-1]
        usage = total_usage(map(_usage, rows))
        prices = self._prices(last["model"], last["service_tier"], first["occurred_at"])
        cost = prices.cost_nano_usd(usage) if prices else None
        unpriced = sum(row["unpriced_requests"] for row in rows)
        booked = sum(row["cost_nano_usd"] or 0 for row in rows)
        if prices is None or cost is None or (not unpriced and booked == cost) or not _counts(usage):
            return None
        estimated = sum(row["estimated_requests"] for row in rows) > 0
        correction = Correction(
            tenant=first["tenant"],
            job_id=first["job_id"],
            attempt_no=first["attempt_no"],
            model=last["model"],
            service_tier=last["service_tier"],
            occurred_at=first["occurred_at"],
            before=None if unpriced else booked,
            after=cost,
        )
        return correction, {
            **{name: first[name] for name in _KEPT},
            **dict.fromkeys(TOKENS, 0),
            "entry": Entry.CORRECTION.value,
            "booking": None,
            "model": last["model"],
            "service_tier": last["service_tier"],
            "meters": None,
            "cost_nano_usd": cost - booked,
            "prices": prices.as_row(usage),
            "occurred_at": first["occurred_at"],
            "requests": 0,
            "unpriced_requests": -unpriced,
            "estimated_requests": 0,
            "estimated_cost_nano_usd": cost - booked if estimated else 0,
        }


def _usage(row: Mapping[str, Any]) -> Usage:
    return Usage(**{name: row[name] for name in TOKENS}, meters=row["meters"] or {})


def _counts(usage: Usage) -> bool:
    """Whether anything is left to be paid: a late refusal takes back all that was estimated."""
    return bool(usage.total_tokens or usage.meters)


async def _append(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    await connection.execute(insert(usage_ledger), list(rows))
    spent: dict[tuple[str, str], int] = {}
    for row in rows:
        month = (row["tenant"], month_of(row["occurred_at"]))
        spent[month] = spent.get(month, 0) + row["cost_nano_usd"]
    more = update(budget_months).where(
        budget_months.c.tenant == bindparam("of_tenant"), budget_months.c.month == bindparam("of_month")
    )
    more = more.values(spent_nano_usd=budget_months.c.spent_nano_usd + bindparam("more"))
    for (tenant, name), nano_usd in sorted(spent.items()):
        await connection.execute(more, {"of_tenant": tenant, "of_month": name, "more": nano_usd})


def _corrections() -> Select[Any]:
    """Return what corrects the rows with the ids asked for, by the index that keeps an attempt to one row."""
    ledger, booked = usage_ledger.c, usage_ledger.alias("booked").c
    of_attempt = and_(*(ledger[name] == booked[name] for name in _ATTEMPT))
    return (
        select(usage_ledger)
        .join(booked.id.table, of_attempt)
        .where(booked.id.in_(bindparam("ids", expanding=True)), ledger.booking.is_(None))
        .order_by(ledger.id)
    )


_CORRECTIONS: Final = _corrections()


def _jobs_of(dialect: str) -> Select[Any]:
    wanted = sql_of(dialect).keys()
    return (
        select(jobs.c.tenant)
        .join(wanted, (jobs.c.tenant == wanted.c.tenant) & (jobs.c.job_id == wanted.c.job_id))
        .order_by(jobs.c.tenant, jobs.c.job_id)
        .with_for_update(of=jobs)
    )
