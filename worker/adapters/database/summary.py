"""Sums of the ledger by day, kept in the background, so that booking costs nothing more.

Views and reports add the rows that came since. `usage_summary_mark` says up to
which row the sums go; both change in one transaction, so that no row is left out
or counted twice, whenever anybody looks.
"""

from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Date,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.adapters.database.tables import (
    SUMMARY_GROUPS,
    SUMMED,
    usage_ledger,
    usage_summary,
    usage_summary_mark,
)

_ROWS: Final = 10_000
"""Ledger rows a transaction: some ten milliseconds."""

_LAST_ID: Final = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM usage_ledger_id_seq"
_TRANSACTION: Final = "SELECT pg_current_xact_id()::text"
_OLDEST_OPEN: Final = "pg_snapshot_xmin(pg_current_snapshot())"


class Summary:
    """Moves the mark forward. Any number of workers may try; one at a time does."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        self._add = _addition(self._sqlite)

    async def catch_up(self, rows: int = _ROWS) -> int:
        """Sum up what is settled, some rows a transaction; return how many ids the mark has moved."""
        moved = 0
        while step := await self._step(rows):
            moved += step
        await self._look_ahead()
        return moved

    async def _step(self, rows: int) -> int:
        async with self._engine.begin() as connection:
            mark = (await connection.execute(self._settled())).one_or_none()
            if mark is None or mark.settled is None:
                return 0
            until = min(mark.settled, mark.ledger_id + rows)
            if until <= mark.ledger_id:
                return 0
            await connection.execute(self._add, {"after": mark.ledger_id, "until": until})
            await connection.execute(update(usage_summary_mark).values(ledger_id=until))
            return int(until) - int(mark.ledger_id)

    def _settled(self) -> Select[Any]:
        """Return the mark, locked, and the last id below which nothing can appear any more."""
        mark = usage_summary_mark.c
        if self._sqlite:
            newest = select(func.max(usage_ledger.c.id)).scalar_subquery()
            return select(mark.ledger_id, newest.label("settled"))
        ended: ColumnElement[bool] = literal_column(f"next_transaction::xid8 <= {_OLDEST_OPEN}")
        return (
            select(mark.ledger_id, mark.next_ledger_id.label("settled"))
            .where(ended)
            .with_for_update(skip_locked=True)
        )

    async def _look_ahead(self) -> None:
        """Note how far the ledger goes, and a transaction that is younger than all that wrote it so far.

        PostgreSQL hands ids out before they can be seen: a lower one may appear
        after a higher one, until the transactions have ended that were open then.
        """
        if self._sqlite:
            return
        async with self._engine.begin() as connection:
            # In this order: whoever has an id up to the last one has a transaction number already,
            # since the writer locks its jobs before it books.
            last = (await connection.exec_driver_sql(_LAST_ID)).scalar_one()
            young = (await connection.exec_driver_sql(_TRANSACTION)).scalar_one()
            mark = usage_summary_mark.c
            reached = and_(func.coalesce(mark.next_ledger_id, 0) <= mark.ledger_id, mark.ledger_id < last)
            # Numbers of another server, from where the database was brought here.
            foreign: ColumnElement[bool] = literal_column(f"next_transaction::xid8 > '{young}'::xid8")
            locked = select(mark.ledger_id).where(or_(reached, foreign))
            if (await connection.execute(locked.with_for_update(skip_locked=True))).first() is not None:
                await connection.execute(
                    update(usage_summary_mark).values(next_ledger_id=last, next_transaction=young)
                )


def _addition(is_sqlite: bool) -> Any:  # noqa: FBT001 (the only argument)
    ledger = usage_ledger.c
    empty: ColumnElement[str] = literal_column("''")
    groups: list[ColumnElement[Any]] = [
        day_of(ledger.occurred_at, is_sqlite=is_sqlite),
        *(type_coerce(func.coalesce(ledger[name], empty), Text) for name in SUMMARY_GROUPS),
    ]
    sums = [cast(func.coalesce(func.sum(ledger[name]), 0), ledger[name].type) for name in SUMMED]
    fresh = (
        select(*groups, *sums)
        .where(ledger.id > bindparam("after"), ledger.id <= bindparam("until"))
        .group_by(*groups)
    )
    insert = (sqlite if is_sqlite else postgresql).insert(usage_summary)
    return insert.from_select(["day", *SUMMARY_GROUPS, *SUMMED], fresh).on_conflict_do_update(
        index_elements=list(usage_summary.primary_key),
        set_={name: usage_summary.c[name] + insert.excluded[name] for name in SUMMED},
    )


def day_of(time: ColumnElement[Any], *, is_sqlite: bool) -> ColumnElement[Any]:
    """Return the UTC day of a time as `usage_summary.day` holds it."""
    if is_sqlite:
        return type_coerce(func.date(time), Date)
    return cast(func.timezone("UTC", time), Date)
