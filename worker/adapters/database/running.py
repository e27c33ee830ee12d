"""Runs the statements of a batch, in as few journeys to the database as there can be.

Each one is a wait: for SQLite's thread, or for a server and then a turn of an event loop that
has much else to do.
"""

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.adapters.database import sqlite_thread
from worker.adapters.database.bulk import Call
from worker.adapters.database.errors import sqlstate

Checks = Sequence[tuple[Call, int]]
"""Calls, and how many rows they have to write, or to count."""

_UNFORESEEN: Final = "a job is not as its worker wrote it: the worker looks, and tries again, "
"""What the server logs, too."""
_NO_NUMBER: Final = "22P02"
_PLACE: Final = re.compile(r"\$(\d+)")


async def run(connection: AsyncConnection, calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    """Run them in order, in the connection's transaction; return what the last select finds."""
    if not calls:
        return []
    if connection.dialect.name == "sqlite":
        return await sqlite_thread.run(connection, calls)
    return await connection.run_sync(_run, calls)


async def run_if(connection: AsyncConnection, checks: Checks, writes: Sequence[Call]) -> bool:
    """Run everything as a transaction of its own, if the checks find what they have to; else nothing."""
    if connection.dialect.name == "sqlite":
        return await sqlite_thread.run_if(connection, checks, writes)
    try:
        async with connection.begin():
            await connection.run_sync(_run_if, checks, writes)
    except DBAPIError as error:
        if sqlstate(error) == _NO_NUMBER and _UNFORESEEN in str(error.orig):
            return False
        raise
    return True


def _run_if(connection: Connection, checks: Checks, writes: Sequence[Call]) -> None:
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
