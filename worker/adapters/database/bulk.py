"""Statements that the writer runs for every batch: compiled once, and sent to the driver together.

SQLAlchemy looks a statement up and binds each row anew whenever it is executed, and each
statement is a journey of its own, to SQLite even from thread to thread. Both cost more than
the drivers' own part of the work.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect
from sqlalchemy.ext.asyncio import AsyncConnection


class Call(NamedTuple):
    """SQL in the driver's dialect, and the rows to execute it for: one, where its result is wanted."""

    sql: str
    rows: Sequence[tuple[Any, ...]]
    returns: bool = False


class Bulk:
    """A Core statement whose rows go to the driver as they are."""

    def __init__(self, statement: Any, dialect: Dialect, *, returns: bool = False) -> None:
        self._statement = statement
        self._dialect = dialect
        self._returns = returns
        self._compiled: dict[tuple[str, ...], _Compiled] = {}

    def calls(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Call]:
        """Yield what executes it for each row, in order."""
        for columns, some in groupby(rows, key=tuple):
            compiled = self._compiled.get(columns)
            if compiled is None:
                compiled = self._compiled[columns] = _Compiled(self._statement, columns, self._dialect)
            yield Call(compiled.sql, [compiled.values(row) for row in some], self._returns)


class _Compiled:
    """A statement for one set of columns, and what a row has to become for it."""

    def __init__(self, statement: Any, columns: tuple[str, ...], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(columns))
        self.sql: str = compiled.string
        names: Sequence[str] = compiled.positiontup
        self._fixed = {name: value for name, value in compiled.params.items() if name not in columns}
        # At least two, so that it picks a tuple of them.
        self._pick = itemgetter(*names, *names[:1])
        self._count = len(names)
        self._convert = [
            (place, processor)
            for place, name in enumerate(names)
            if (processor := _processor(compiled.binds[name].type, dialect)) is not None
        ]

    def values(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return a row as the driver takes it."""
        values = list(self._pick({**row, **self._fixed} if self._fixed else row)[: self._count])
        for place, processor in self._convert:
            values[place] = processor(values[place])
        return tuple(values)


def _processor(kind: Any, dialect: Dialect) -> Callable[[Any], Any] | None:
    found: Callable[[Any], Any] | None = kind.dialect_impl(dialect).bind_processor(dialect)
    return found


async def run(connection: AsyncConnection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    """Execute them in order, in the connection's transaction; return what the last select finds."""
    if not calls:
        return []
    if connection.dialect.name != "sqlite":
        return await connection.run_sync(_run, calls)
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None  # noqa: S101  for the type checker: it is connected
    # Its own way to run something in its thread; through its cursors each step takes one turn or more.
    found: list[tuple[Any, ...]] = await driver._execute(_run_sqlite, driver._conn, calls)  # noqa: SLF001
    return found


def _run(connection: Connection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for sql, rows, returns in calls:
        if returns:
            found = [tuple(row) for row in connection.exec_driver_sql(sql, rows[0])]
        else:
            connection.exec_driver_sql(sql, list(rows))
    return found


def _run_sqlite(connection: sqlite3.Connection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for sql, rows, returns in calls:
        if returns:
            found = connection.execute(sql, rows[0]).fetchall()
        else:
            connection.executemany(sql, rows)
    return found
