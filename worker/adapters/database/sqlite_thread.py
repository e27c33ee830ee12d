"""Runs statements in SQLite's own thread: a whole batch at one turn, in few steps.

Whenever SQLite starts and ends a step, the thread lets the interpreter go, and the event loop may take
it for some milliseconds. So many rows are inserted at a step.
"""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from threading import Event
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.adapters.database.bulk import Call
from worker.adapters.database.engine import BEGIN_WRITING
from worker.adapters.database.errors import NotConnectedError

ResultT = TypeVar("ResultT")

_MOST_ROWS: Final = 64
"""A power of two: few lengths of a statement that the driver keeps, and few steps for any number of rows."""
_MOST_BYTES: Final = 2**17
"""Of bodies, for several rows in a statement: the driver keeps with each what was bound to it last."""
_ROW: Final = re.compile(r"VALUES (\(\?(?:, \?)*\))")


async def run(connection: AsyncConnection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    """Run them in order, in the connection's transaction; return what the last select finds."""
    return await _in_thread(connection, _run, calls)


async def run_if(
    connection: AsyncConnection, checks: Sequence[tuple[Call, int]], writes: Sequence[Call]
) -> bool:
    """Run everything as a transaction of its own, if the checks find what they have to; else nothing."""
    given_up = Event()
    try:
        return await _in_thread(connection, _run_if, checks, writes, given_up)
    except asyncio.CancelledError:
        given_up.set()
        raise


async def _in_thread(
    connection: AsyncConnection, function: Callable[..., ResultT], *arguments: Any
) -> ResultT:
    assert connection.sync_connection is not None  # noqa: S101  for the type checker: it is connected
    driver: Any = connection.sync_connection.connection.driver_connection
    try:
        own = driver._conn  # noqa: SLF001
    except ValueError as error:
        raise NotConnectedError from error
    # Its own way to run something in its thread; through its cursors each step takes one turn or more.
    found: ResultT = await driver._execute(function, own, *arguments)  # noqa: SLF001
    return found


def _run(connection: sqlite3.Connection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for call in calls:
        if call.selects:
            found = connection.execute(call.sql, call.parameters[0]).fetchall()
        else:
            _write(connection, call)
    return found


def _run_if(
    connection: sqlite3.Connection,
    checks: Sequence[tuple[Call, int]],
    writes: Sequence[Call],
    given_up: Event,
) -> bool:
    connection.execute(BEGIN_WRITING)
    try:
        # Others may have written for long: whoever waited for this may have been told that it is not done.
        as_foreseen = not given_up.is_set() and all(
            _found(connection, call) == number for call, number in checks
        )
        if as_foreseen:
            for call in writes:
                _write(connection, call)
            connection.commit()
    finally:
        if connection.in_transaction:
            connection.rollback()
    return as_foreseen


def _write(connection: sqlite3.Connection, call: Call) -> None:
    if _ROW.search(call.sql):
        for sql, parameters in steps(call):
            connection.execute(sql, parameters)
    else:
        connection.executemany(call.sql, call.parameters)


def _found(connection: sqlite3.Connection, call: Call) -> int:
    """Return how many rows it writes, or counts."""
    found = 0
    for sql, parameters in steps(call):
        cursor = connection.execute(sql, parameters)
        found += cursor.fetchone()[0] if call.selects else cursor.rowcount
    return found


def steps(call: Call) -> Iterator[tuple[str, list[Any]]]:
    """Yield statements that do for several rows what the call does for each."""
    rows, size = call.parameters, _MOST_ROWS
    largest = _largest(rows)
    while size > 1 and size * largest > _MOST_BYTES:
        size //= 2
    while rows:
        while size > len(rows):
            size //= 2
        yield _of_rows(call.sql, size), list(chain.from_iterable(rows[:size]))
        rows = rows[size:]


def _largest(rows: Sequence[Sequence[Any]]) -> int:
    """Return the most bytes of bodies in a row; the first one shows where they are."""
    places = [place for place, value in enumerate(rows[0]) if isinstance(value, bytes)]
    return max(sum(len(row[place] or b"") for place in places) for row in rows)


@lru_cache(maxsize=1024)
def _of_rows(sql: str, number: int) -> str:
    """Return the statement for so many rows."""
    return _ROW.sub(lambda found: "VALUES " + ", ".join([found[1]] * number), sql, count=1)
