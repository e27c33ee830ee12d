"""Statements that the writer runs for every batch: compiled once, and sent to the driver together.

SQLAlchemy looks a statement up and binds each row anew whenever it is executed, and each
statement is a journey of its own: to SQLite from thread to thread, to PostgreSQL through a
turn of an event loop that has much else to do. That costs more than the drivers' own part.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection, Dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from worker.adapters.database.errors import NotConnectedError

Columns: TypeAlias = tuple[str, ...]
_Processor: TypeAlias = Callable[[Any], Any]
_PLACE: Final = re.compile(r"\$(\d+)")


class Call(NamedTuple):
    """SQL in the driver's dialect, and the parameters of each time that it runs."""

    sql: str
    parameters: Sequence[tuple[Any, ...]]
    selects: bool = False


class Bulk:
    """A statement on rows, which may have one set of columns or another.

    `build` returns it for the names of the columns, `kinds` has the types of their values. With
    `arrays` each of its parameters is the array of all rows' values.
    """

    def __init__(
        self,
        dialect: Dialect,
        build: Callable[[Columns], Any],
        kinds: Mapping[str, TypeEngine[Any]],
        *,
        arrays: bool = False,
        selects: bool = False,
    ) -> None:
        self._dialect = dialect
        self._build = build
        self._kinds = kinds
        self._arrays = arrays
        self._selects = selects
        self._compiled: dict[Columns, _Compiled] = {}

    def calls(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Call]:
        """Yield what runs it on these rows, in their order."""
        for columns, some in groupby(rows, key=tuple):
            compiled = self._compiled.get(columns)
            if compiled is None:
                compiled = self._compiled[columns] = self._compile(columns)
            values = list(map(compiled.values, some))
            parameters = [tuple(map(list, zip(*values, strict=True)))] if self._arrays else values
            yield Call(compiled.sql, parameters, self._selects)

    def _compile(self, columns: Columns) -> "_Compiled":
        # The columns of arrays are in the statement already.
        keys = None if self._arrays else list(columns)
        compiled = self._build(columns).compile(dialect=self._dialect, column_keys=keys)
        names: Sequence[str] = compiled.positiontup
        processors = [_processor(self._kinds.get(name), self._dialect) for name in names]
        return _Compiled(
            compiled.string,
            names,
            [(place, processor) for place, processor in enumerate(processors) if processor is not None],
            {name: value for name, value in compiled.params.items() if name not in columns},
        )


class _Compiled:
    """SQL for one set of columns, and what a row has to become for it."""

    def __init__(
        self,
        sql: str,
        names: Sequence[str],
        convert: Sequence[tuple[int, _Processor]],
        fixed: Mapping[str, Any],
    ) -> None:
        self.sql = sql
        # One more than there are: a single one would not come as a tuple.
        self._pick = itemgetter(*names, names[0])
        self._convert = convert
        self._fixed = fixed

    def values(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return a row as the driver takes it."""
        *values, _ = self._pick({**row, **self._fixed} if self._fixed else row)
        for place, processor in self._convert:
            values[place] = processor(values[place])
        return tuple(values)


def _processor(kind: TypeEngine[Any] | None, dialect: Dialect) -> _Processor | None:
    return None if kind is None else kind.dialect_impl(dialect).bind_processor(dialect)


async def run(connection: AsyncConnection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    """Run them in order, in the connection's transaction; return what a select at the end finds.

    PostgreSQL is asked but once, so that the select does not see what is written: the writes before it
    return its columns of their rows.
    """
    if not calls:
        return []
    if connection.dialect.name != "sqlite":
        return await connection.run_sync(_run, calls)
    assert connection.sync_connection is not None  # noqa: S101  for the type checker: it is connected
    driver: Any = connection.sync_connection.connection.driver_connection
    try:
        own = driver._conn  # noqa: SLF001
    except ValueError as error:
        raise NotConnectedError from error
    # Its own way to run something in its thread; through its cursors each step takes one turn or more.
    found: list[tuple[Any, ...]] = await driver._execute(_run_sqlite, own, calls)  # noqa: SLF001
    return found


def _run_sqlite(connection: sqlite3.Connection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for sql, parameters, selects in calls:
        if selects:
            found = connection.execute(sql, parameters[0]).fetchall()
        else:
            connection.executemany(sql, parameters)
    return found


def _run(connection: Connection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    selects = calls[-1].selects
    sql = _together(tuple(call.sql for call in calls), selects=selects)
    rows = connection.exec_driver_sql(sql, sum((call.parameters[0] for call in calls), ()))
    return [tuple(row) for row in rows] if selects else []


@lru_cache(maxsize=1024)
def _together(statements: tuple[str, ...], *, selects: bool) -> str:
    """Return one statement that does what several do, on different rows, with all their parameters."""
    if len(statements) == 1:
        return statements[0]
    parts, finds, count = [], [], 0
    for number, sql in enumerate(statements):
        places = [int(place) for place in _PLACE.findall(sql)]
        parts.append(f"w{number} AS ({_PLACE.sub(partial(_moved, count), sql)})")
        finds.append(f"SELECT * FROM w{number}")  # noqa: S608  nothing but a number
        count += max(places)
    return f"WITH {', '.join(parts)} {' UNION ALL '.join(finds) if selects else 'SELECT 1'}"


def _moved(by: int, place: re.Match[str]) -> str:
    return f"${int(place[1]) + by}"
