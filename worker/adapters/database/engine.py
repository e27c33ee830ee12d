"""From a database URL to an engine with the right driver and safe settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from worker.adapters.database.errors import DatabaseUrlError

BEGIN_WRITING: Final = "BEGIN IMMEDIATE"
"""On SQLite. A transaction that reads before it writes would else fail, not wait, where another writes."""

_BUSY_SECONDS: Final = 30
_CONNECT_SECONDS: Final = 10
_READ_ONLY: Final = "read_only"
_PARAMETERS: Final = {"host", "port", "ssl", "sslmode"}


class Use(Enum):
    """What an engine is for; each goes with its own patience and plans."""

    WRITE = auto()
    READ = auto()
    MIGRATE = auto()


_COMMAND_SECONDS: Final = {Use.WRITE: 30, Use.READ: 300, Use.MIGRATE: None}
_SESSION: Final = {"application_name": "openai-worker", "timezone": "UTC", "jit": "off"}
_SESSION_OF: Final = {
    Use.WRITE: {
        # A worker stopped in the middle of a transaction must not keep others from its rows.
        "idle_in_transaction_session_timeout": "30s",
        # The writer finds all rows by key. Plans are kept, and one made while the
        # tables were small must not scan them once they are large.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        # Never made anew for what the parameters hold: that would cost more than most statements.
        "plan_cache_mode": "force_generic_plan",
    },
    Use.READ: {"default_transaction_read_only": "on"},
    Use.MIGRATE: {},
}


def open_engine(url: str, use: Use) -> AsyncEngine:
    """Return an engine that has not connected yet. Raises DatabaseUrlError."""
    target = _target(url)
    return _sqlite(target, use) if target.get_backend_name() == "sqlite" else _postgresql(target, use)


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Give a connection that keeps nobody from writing, whatever its engine is for."""
    async with engine.connect() as connection:
        yield await connection.execution_options(**{_READ_ONLY: True})


def place(url: str) -> str:
    """Name a database without user, password and parameters."""
    target = _target(url)
    if target.get_backend_name() == "sqlite":
        return f"SQLite file {target.database}"
    return (
        f"PostgreSQL database {target.database or ''} at {target.host or 'localhost'}:{target.port or 5432}"
    )


def exists(url: str) -> bool:
    """Whether there is a file to open; a server has to be asked."""
    target = _target(url)
    return target.get_backend_name() != "sqlite" or Path(target.database or "").exists()


def _target(url: str) -> URL:
    try:
        target = make_url(url)
    except ArgumentError:
        raise DatabaseUrlError("not a URL; expected sqlite:///FILE or postgresql://HOST/NAME") from None
    backend = target.drivername.partition("+")[0]
    if backend == "sqlite":
        if not target.database or target.database == ":memory:":
            raise DatabaseUrlError("names no file; expected sqlite:///FILE")
        return target.set(drivername="sqlite+aiosqlite")
    if backend in {"postgresql", "postgres"}:
        return _with_known_parameters(target).set(drivername="postgresql+asyncpg")
    raise DatabaseUrlError("names no supported database; expected sqlite:///FILE or postgresql://HOST/NAME")


def _with_known_parameters(target: URL) -> URL:
    """Accept libpq's `sslmode`, which asyncpg calls `ssl`, and a `host`, which may be a socket's folder."""
    if unknown := set(target.query) - _PARAMETERS:
        raise DatabaseUrlError(
            f"has the unknown parameter {min(unknown)!r}; accepted are {', '.join(sorted(_PARAMETERS))}"
        )
    mode = target.query.get("sslmode")
    if mode is None:
        return target
    return target.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})


def _common(use: Use) -> dict[str, Any]:
    return {
        # Parameters are content; errors are logged.
        "hide_parameters": True,
        "json_serializer": lambda value: orjson.dumps(value).decode(),
        "json_deserializer": orjson.loads,
        "execution_options": {_READ_ONLY: use is Use.READ},
        "pool_size": 2,
        "max_overflow": 3,
    }


def _postgresql(target: URL, use: Use) -> AsyncEngine:
    return create_async_engine(
        target,
        pool_pre_ping=True,
        connect_args={
            "timeout": _CONNECT_SECONDS,
            "command_timeout": _COMMAND_SECONDS[use],
            "server_settings": _SESSION | _SESSION_OF[use],
        },
        **_common(use),
    )


def _sqlite(target: URL, use: Use) -> AsyncEngine:
    engine = create_async_engine(target, connect_args={"timeout": _BUSY_SECONDS}, **_common(use))
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _entry: ConnectionPoolEntry) -> None:
    # Transactions are begun below; the driver would begin them too late, as deferred ones.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        # Else INSERT OR REPLACE would get round the triggers of the ledger.
        "recursive_triggers = ON",
        # In KiB, where positive numbers would be pages: the upper levels of all indexes fit at
        # some ten million rows, which the default of 2 MB does not hold.
        "cache_size = -16000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    read_only = connection.get_execution_options()[_READ_ONLY]
    begin = "BEGIN" if read_only else BEGIN_WRITING
    # Straight to the driver: a cursor would go to its thread and back three times.
    driver: Any = connection.connection.dbapi_connection
    driver.run_async(lambda its: its.execute(begin))
