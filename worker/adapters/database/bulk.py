"""Statements that the writer runs for every batch: compiled once, and sent to the driver together.

SQLAlchemy looks a statement up and binds each row anew whenever it is executed, and each
statement is a journey of its own: to SQLite from thread to thread, to PostgreSQL through a
turn of an event loop that has much else to do. That costs more than the drivers' own part.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

import orjson
from sqlalchemy import JSON, Connection, Dialect, LargeBinary
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from worker.adapters.database.errors import DatabaseRefusedError, NotConnectedError, sqlstate
from worker.adapters.database.many import NUMBER, ROWS

Columns: TypeAlias = tuple[str, ...]
_Processor: TypeAlias = Callable[[Any], Any]
_UNFORESEEN: Final = "a job is not as its worker wrote it: the worker looks, and tries again, "
"""What the server logs, too."""
_NO_NUMBER: Final = "22P02"
_PLACE: Final = re.compile(r"\$(\d+)")


class Call(NamedTuple):
    """SQL in the driver's dialect, and the parameters of each time that it runs."""

    sql: str
    parameters: Sequence[tuple[Any, ...]]
    selects: bool = False


class Bulk:
    """A statement on rows, which may have one set of columns or another.

    `build` returns it for the names of the columns, `kinds` has the types of their values. With
    `whole` its parameters are all rows, as `many.Document` takes them.
    """

    def __init__(
        self,
        dialect: Dialect,
        build: Callable[[Columns], Any],
        kinds: Mapping[str, TypeEngine[Any]],
        *,
        whole: bool = False,
        selects: bool = False,
    ) -> None:
        self._dialect = dialect
        self._build = build
        self._kinds = kinds
        self._whole = whole
        self._selects = selects
        self._compiled: dict[Columns, _EachRow | _AllRows] = {}

    def calls(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Call]:
        """Yield what runs it on these rows, in their order."""
        for columns, some in groupby(rows, key=tuple):
            compiled = self._compiled.get(columns)
            if compiled is None:
                compiled = self._compiled[columns] = self._compile(columns)
            yield Call(compiled.sql, compiled.parameters(some), self._selects)

    def _compile(self, columns: Columns) -> "_EachRow | _AllRows":
        # The columns of a document are in the statement already.
        keys = None if self._whole else list(columns)
        compiled = self._build(columns).compile(dialect=self._dialect, column_keys=keys)
        names: Sequence[str] = compiled.positiontup
        if self._whole:
            return _AllRows(compiled.string, names, self._processors(columns))
        fixed = {name: value for name, value in compiled.params.items() if name not in columns}
        return _EachRow(compiled.string, names, self._processors(names), fixed)

    def _processors(self, names: Sequence[str]) -> "dict[str, _Processor]":
        """Return what turns values into the driver's; within a document, documents are no texts."""
        kinds = {name: kind for name in names if (kind := self._kinds.get(name)) is not None}
        found = {
            name: kind.dialect_impl(self._dialect).bind_processor(self._dialect)
            for name, kind in kinds.items()
            if not (self._whole and isinstance(kind, JSON | LargeBinary))
        }
        return {name: processor for name, processor in found.items() if processor is not None}


class _EachRow:
    """SQL that runs once a row."""

    def __init__(
        self, sql: str, names: Sequence[str], convert: Mapping[str, _Processor], fixed: Mapping[str, Any]
    ) -> None:
        self.sql = sql
        # One more than there are: a single one would not come as a tuple.
        self._pick = itemgetter(*names, names[0])
        self._convert = [(place, convert[name]) for place, name in enumerate(names) if name in convert]
        self._fixed = fixed

    def parameters(self, rows: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        return list(map(self._values, rows))

    def _values(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        *values, _ = self._pick({**row, **self._fixed} if self._fixed else row)
        for place, processor in self._convert:
            values[place] = processor(values[place])
        return tuple(values)


class _AllRows:
    """SQL that takes all rows as a document, and their bytes as arrays."""

    def __init__(self, sql: str, names: Sequence[str], convert: Mapping[str, _Processor]) -> None:
        self.sql = sql
        self._names = names
        self._bytes = [name for name in names if name != ROWS]
        self._convert = list(convert.items())

    def parameters(self, rows: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        arrays: dict[str, list[bytes]] = {name: [] for name in self._bytes}
        documents = []
        for number, row in enumerate(rows, 1):
            document = {**row, NUMBER: number}
            for name, array in arrays.items():
                array.append(document.pop(name))
            for name, processor in self._convert:
                document[name] = processor(document[name])
            documents.append(document)
        try:
            text = orjson.dumps(documents).decode()
        except TypeError as error:
            raise DatabaseRefusedError(f"the database cannot take a record: {error}") from None
        return [tuple(text if name == ROWS else arrays[name] for name in self._names)]


async def run(connection: AsyncConnection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    """Run them in order, in the connection's transaction; return what the last select finds."""
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


async def run_if(
    connection: AsyncConnection, checks: Sequence[tuple[Call, int]], writes: Sequence[Call]
) -> bool:
    """Run everything in a transaction of its own, if each check finds so many rows; else nothing."""
    try:
        await connection.run_sync(_run_if, checks, writes)
    except DBAPIError as error:
        if sqlstate(error) == _NO_NUMBER and _UNFORESEEN in str(error.orig):
            return False
        raise
    return True


def _run_if(connection: Connection, checks: Sequence[tuple[Call, int]], writes: Sequence[Call]) -> None:
    calls = [*(call for call, _ in checks), *writes]
    parameters = sum((call.parameters[0] for call in calls), ())
    sql = _checked(tuple(call.sql for call in calls), len(checks), len(parameters))
    driver = connection.connection.dbapi_connection
    assert driver is not None  # noqa: S101  for the type checker: it is connected
    # One statement is a transaction anyway; to begin and to commit it would be two more journeys.
    connection.dialect.set_isolation_level(driver, "AUTOCOMMIT")
    try:
        connection.exec_driver_sql(sql, (*parameters, *(count for _, count in checks)))
    finally:
        connection.dialect.set_isolation_level(driver, "READ COMMITTED")


def _run_sqlite(connection: sqlite3.Connection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for sql, parameters, selects in calls:
        if selects:
            found = connection.execute(sql, parameters[0]).fetchall()
        else:
            connection.executemany(sql, parameters)
    return found


def _run(connection: Connection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for selects, some in groupby(calls, key=lambda call: call.selects):
        if selects:
            for call in some:
                found = [tuple(row) for row in connection.exec_driver_sql(call.sql, call.parameters[0])]
        else:
            writes = list(some)
            sql = _together(tuple(call.sql for call in writes))
            connection.exec_driver_sql(sql, sum((call.parameters[0] for call in writes), ()))
    return found


@lru_cache(maxsize=1024)
def _together(statements: tuple[str, ...]) -> str:
    """Return one statement that does what several do, on different rows, with all their parameters."""
    return statements[0] if len(statements) == 1 else f"WITH {_parts(statements)} SELECT 1"


@lru_cache(maxsize=1024)
def _checked(statements: tuple[str, ...], checks: int, parameters: int) -> str:
    """Return one statement that does what several do, unless the first ones find another number of rows.

    PostgreSQL runs those that its answer depends on first, the others afterwards.
    """
    numbers = range(checks)
    found = [f"(SELECT count(*) FROM w{number})" for number in numbers]  # noqa: S608  nothing else
    right = " AND ".join(f"{found[number]} = ${parameters + number + 1}::bigint" for number in numbers)
    # Whoever asks for an error has to ask for a wrong one.
    wrong = f"CAST('{_UNFORESEEN}' || {found[0]} AS int)"
    return f"WITH {_parts(statements)} SELECT CASE WHEN {right} THEN 1 ELSE {wrong} END"


def _parts(statements: Sequence[str]) -> str:
    """Return statements as common table expressions w0, w1 and so on, their parameters numbered through."""
    parts, count = [], 0
    for number, sql in enumerate(statements):
        places = [int(place) for place in _PLACE.findall(sql)]
        parts.append(f"w{number} AS ({_PLACE.sub(partial(_moved, count), sql)})")
        count += max(places)
    return ", ".join(parts)


def _moved(by: int, place: re.Match[str]) -> str:
    return f"${int(place[1]) + by}"
