"""Sums of usage for people: by any groups, within any filter, from the summary wherever it will do."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from enum import StrEnum
from typing import Any, TypeAlias

from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    Subquery,
    Text,
    cast,
    func,
    select,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from schemas.names import Kind
from worker.adapters.database.sql import Sql, sql_of
from worker.adapters.database.summary import day_of
from worker.adapters.database.tables import (
    SUMMARY_GROUPS,
    SUMMED,
    usage_ledger,
    usage_summary,
    usage_summary_mark,
)


class By(StrEnum):
    """What usage can be grouped by, besides labels."""

    DAY = "day"
    MONTH = "month"
    TENANT = "tenant"
    MODEL = "model"
    KIND = "kind"
    ACCOUNT = "account"
    ORGANIZATION = "organization"
    PROJECT = "project"


@dataclass(frozen=True, slots=True)
class ByLabel:
    """Usage by the value of one label."""

    key: str

    @property
    def value(self) -> str:
        """The group's name in a report."""
        return f"label:{self.key}"


Group: TypeAlias = By | ByLabel
_Columns: TypeAlias = ReadOnlyColumnCollection[str, Any]


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

    @property
    def known_cost_nano_usd(self) -> int | None:
        """The cost; None where no request of the row has a price, which is not the same as nothing."""
        if self.cost_nano_usd == 0 and 0 < self.requests == self.unpriced_requests:
            return None
        return self.cost_nano_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Which usage to sum up: from `since` on, before `until`; None means any."""

    since: datetime | None = None
    until: datetime | None = None
    tenant: str | None = None
    model: str | None = None
    kind: Kind | None = None
    account: str | None = None
    organization: str | None = None
    project: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole_days(self) -> bool:
        """Whether it starts and ends at midnight, UTC."""
        return all(at is None or at.astimezone(UTC).time() == time.min for at in (self.since, self.until))


async def usage_report(connection: AsyncConnection, by: Sequence[Group], only: UsageFilter) -> list[UsageRow]:
    """Return sums, in the order of their groups."""
    sql = sql_of(connection.dialect.name)
    in_summary = only.whole_days and not only.labels and not any(isinstance(one, ByLabel) for one in by)
    source = summed(only, connection.dialect.name) if in_summary else _ledger(by, only, sql)
    groups = [source.c[f"by_{place}"] if not in_summary else _of(source, one) for place, one in enumerate(by)]
    named = [group.label(f"group_{place}") for place, group in enumerate(groups)]
    sums = [func.coalesce(func.sum(source.c[name]), 0).label(name) for name in SUMMED]
    report = select(*named, *sums).group_by(*groups).order_by(*groups)
    found = (await connection.execute(report)).mappings().all()
    return [
        UsageRow(
            group={one.value: row[f"group_{place}"] for place, one in enumerate(by)},
            # PostgreSQL sums 64-bit integers to exact decimals.
            **{name: int(row[name]) for name in SUMMED},
        )
        for row in found
    ]


def within(only: UsageFilter) -> list[ColumnElement[bool]]:
    """Return the conditions of a filter on the ledger's own rows."""
    labels = usage_ledger.c.labels
    return [
        *_conditions(usage_ledger.c, only),
        *(labels[key].as_string() == value for key, value in only.labels.items()),
    ]


def _conditions(rows: _Columns, only: UsageFilter) -> list[ColumnElement[bool]]:
    # An empty text asks for what has none, as the summary spells it.
    conditions = [rows[name] == value if value else rows[name].is_(None) for name, value in _named(only)]
    if only.since is not None:
        conditions.append(rows.occurred_at >= only.since)
    if only.until is not None:
        conditions.append(rows.occurred_at < only.until)
    return conditions


def _named(only: UsageFilter) -> list[tuple[str, str]]:
    return [(name, value) for name in SUMMARY_GROUPS if (value := getattr(only, name)) is not None]


def _ledger(by: Sequence[Group], only: UsageFilter, sql: Sql) -> Subquery:
    ledger = usage_ledger.c

    def column(one: Group) -> ColumnElement[Any]:
        if isinstance(one, ByLabel):
            label: ColumnElement[str] = ledger.labels[one.key].as_string()
            return label
        match one:
            case By.DAY:
                return sql.day(ledger.occurred_at)
            case By.MONTH:
                return sql.month(ledger.occurred_at)
            case _:
                plain: ColumnElement[Any] = ledger[one.value]
                return plain

    groups = [column(one).label(f"by_{place}") for place, one in enumerate(by)]
    return select(*groups, *(ledger[name] for name in SUMMED)).where(*within(only)).subquery("source")


def summed(only: UsageFilter, dialect: str, tenants: Collection[str] | None = None) -> Subquery:
    """Return the summary and what the ledger holds beyond it, read at the same moment."""
    summary, fresh = usage_summary.c, _fresh().c
    old: Select[Any] = select(
        summary.day,
        *(func.nullif(summary[name], "", type_=summary[name].type).label(name) for name in SUMMARY_GROUPS),
        *(summary[name] for name in SUMMED),
    ).where(*(summary[name] == value for name, value in _named(only)))
    if only.since is not None:
        old = old.where(summary.day >= only.since.astimezone(UTC).date())
    if only.until is not None:
        old = old.where(summary.day < only.until.astimezone(UTC).date())
    new: Select[Any] = select(
        day_of(fresh.occurred_at, is_sqlite=dialect == "sqlite"),
        *(fresh[name] for name in SUMMARY_GROUPS),
        *(fresh[name] for name in SUMMED),
    ).where(*_conditions(fresh, only))
    if tenants is not None:
        old, new = old.where(summary.tenant.in_(tenants)), new.where(fresh.tenant.in_(tenants))
    return union_all(old, new).subquery("source")


def _fresh() -> CTE:
    """Return the ledger beyond the summary: few rows, found by their id.

    Materialized, since no planner can know how few: it would go through all of the
    time asked for instead.
    """
    mark = select(usage_summary_mark.c.ledger_id).scalar_subquery()
    names = ("occurred_at", *SUMMARY_GROUPS, *SUMMED)
    rows = select(*(usage_ledger.c[name] for name in names)).where(usage_ledger.c.id > mark)
    return rows.cte("fresh").prefix_with("MATERIALIZED")


def _of(source: Subquery, one: Group) -> ColumnElement[Any]:
    """Return a group of the summary as text."""
    match one:
        case By.DAY:
            day: ColumnElement[str] = func.substr(cast(source.c.day, Text), 1, 10, type_=Text)
            return day
        case By.MONTH:
            month: ColumnElement[str] = func.substr(cast(source.c.day, Text), 1, 7, type_=Text)
            return month
        case _:
            column: ColumnElement[Any] = source.c[one.value]
            return column
