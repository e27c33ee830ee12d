"""Why a database cannot be reached, in words, and what mends it; never with addresses or values."""

import socket
import sqlite3
import ssl
from collections.abc import Iterator
from typing import Final

from worker.adapters.database.errors import describe, sqlite_code, sqlstate

_STATES: Final = {
    "28P01": "the password is wrong for this user; see DATABASE_URL",
    "28000": "this user may not log in from here; see DATABASE_URL, and the server's pg_hba.conf",
    "3D000": "there is no database of this name; create it, or see DATABASE_URL",
    "42501": "this user may not connect to the database; see DATABASE_URL",
    "53300": "the server has no connection left for us",
    "57P03": "the server is starting or stopping",
}
_CODES: Final = {
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; its folder must exist and be writable",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database; see DATABASE_URL",
    sqlite3.SQLITE_READONLY: "the file may not be written",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_BUSY: "others keep it locked",
}
_KINDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "host name not found"),
    (ssl.SSLError, "no TLS connection"),
    (TimeoutError, "no answer in time"),
    (FileNotFoundError, "there is no such socket"),
    (PermissionError, "permission denied"),
    (ConnectionError, "connection lost"),
    (OSError, "network error"),
)


def reason(error: BaseException) -> str:
    """Say why in words; a trouble without any is named as `describe` does."""
    state, code = sqlstate(error), sqlite_code(error)
    known = _STATES.get(state or "") or _CODES.get(code if code is not None else -1)
    if known or state is not None or code is not None:
        return f"{known} ({describe(error)})" if known else describe(error)
    return next((words for one in _chain(error) for kind, words in _KINDS if isinstance(one, kind)), "") or (
        describe(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those below it, the outermost first: a timeout is made of a cancellation."""
    below: BaseException | None = error
    while below is not None:
        yield below
        below = getattr(below, "orig", None) or below.__cause__
