"""What can go wrong with a database, and which of it mends itself."""

import sqlite3
from asyncio import CancelledError
from enum import Enum, auto
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from typing_extensions import override


class DatabaseUrlError(ValueError):
    """The database URL cannot be used; the message never quotes it."""


class DatabaseUnreachableError(Exception):
    """The database did not answer in time; the message is safe to show."""


class DatabaseSchemaError(Exception):
    """The tables are not those that this program needs."""


class DatabaseRefusedError(Exception):
    """The database does not accept a record; the message names the reason, never the values."""


class DatabaseClosedError(Exception):
    """The database was closed before this could be written."""

    @override
    def __str__(self) -> str:
        return "the database was closed before this could be written"


class OvertakenError(Exception):
    """Rows changed between two statements; the transaction has to be run again."""


class NotConnectedError(Exception):
    """There is no connection, whatever the reason; the work for it cannot be at fault."""


class Trouble(Enum):
    """Why a transaction failed, as far as it decides what happens next."""

    AWAY = auto()
    """The server or the file cannot be used for now; run it again once it can."""
    AGAIN = auto()
    """Transactions met; run it again."""
    REFUSED = auto()
    """It would fail again."""


_AWAY_STATES: Final = ("08", "53", "57", "58", "28", "3D", "25006")
"""SQLSTATE prefixes: connection, resources, operator, system; also wrong credentials and a read-only
standby, since both are put right while a worker keeps its results in memory."""
_AGAIN_STATES: Final = ("40", "55P03")
_SETTINGS_STATES: Final = ("28", "3D")
_AWAY_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)


def trouble(error: BaseException) -> Trouble:
    """Classify an error that a transaction, or an attempt to connect, ended with."""
    if isinstance(error, OvertakenError):
        return Trouble.AGAIN
    if isinstance(error, NotConnectedError | OSError | TimeoutError | CancelledError) or _lost(error):
        return Trouble.AWAY
    state = sqlstate(error)
    if state is not None:
        if state.startswith(_AGAIN_STATES):
            return Trouble.AGAIN
        return Trouble.AWAY if state.startswith(_AWAY_STATES) else Trouble.REFUSED
    code = sqlite_code(error)
    return Trouble.AWAY if code in _AWAY_CODES else Trouble.REFUSED


def wrong_settings(error: BaseException) -> bool:
    """Whether connecting fails for the URL's sake: user, password, database name, path."""
    state = sqlstate(error)
    if state is not None:
        return state.startswith(_SETTINGS_STATES)
    return sqlite_code(error) in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB}


def describe(error: BaseException) -> str:
    """Name an error without its text, which may quote values or addresses."""
    cause = _cause(error)
    detail = sqlstate(error) or getattr(cause, "sqlite_errorname", None)
    return f"{type(cause).__name__} ({detail})" if detail else type(cause).__name__


def safe(error: Exception) -> Exception:
    """Return what a caller may see and log: drivers quote the refused values in their messages."""
    if isinstance(error, SQLAlchemyError | sqlite3.Error):
        return DatabaseRefusedError(f"the database refused a record: {describe(error)}")
    return error


def _lost(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _cause(error: BaseException) -> BaseException:
    """Return the driver's own error below what SQLAlchemy makes of it."""
    while isinstance(below := getattr(error, "orig", None) or error.__cause__, BaseException):
        error = below
    return error


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of an error, if it is one of its."""
    state = getattr(_cause(error), "sqlstate", None)
    return state if isinstance(state, str) else None


def sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's code of an error, if it is one of its."""
    code = getattr(_cause(error), "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None
