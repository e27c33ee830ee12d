"""Brings the tables to a revision, and tells whether they are as they should be."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.adapters.database.engine import Use, open_engine, place
from worker.adapters.database.reach import reach
from worker.adapters.database.tables import metadata

_LOCK: Final = 0x6F61_692D_776B  # any number, the same in all versions of the program


async def upgrade(url: str, *, startup_timeout: float = 30.0) -> None:
    """Bring the tables to the newest revision; any number of workers may do so at once.

    Raises DatabaseUrlError and DatabaseUnreachableError.
    """
    async with _alone(url, startup_timeout) as connection:
        await connection.run_sync(lambda sync: command.upgrade(_config(sync), "head"))


async def downgrade(url: str, revision: str, *, startup_timeout: float = 30.0) -> None:
    """Take the tables back to a revision; `base` leaves none. Raises as `upgrade`."""
    async with _alone(url, startup_timeout) as connection:
        await connection.run_sync(lambda sync: command.downgrade(_config(sync), revision))


async def check(url: str, *, startup_timeout: float = 30.0) -> list[str]:
    """Return what is wrong with the tables, one line each; nothing if they are as they should be.

    Raises as `upgrade`.
    """
    async with _alone(url, startup_timeout) as connection:
        return await connection.run_sync(_differences)


@asynccontextmanager
async def _alone(url: str, startup_timeout: float) -> AsyncIterator[AsyncConnection]:
    """Open a transaction that keeps other migrations out; on SQLite every writing one does."""
    engine = open_engine(url, Use.MIGRATE)
    try:
        await reach(engine, place(url), startup_timeout)
        async with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            yield connection
    finally:
        await engine.dispose()


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    # A path may hold percent signs, which configuration files expand.
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _differences(connection: Connection) -> list[str]:
    context = MigrationContext.configure(connection)
    current = context.get_current_revision()
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    if current != newest:
        return [f"the tables are at revision {current or 'none'}, the newest is {newest}"]
    return [_describe(difference) for difference in compare_metadata(context, metadata)]


def _describe(difference: Any) -> str:
    """Name a difference as alembic reports it: a tuple, or a list of them for one column."""
    while isinstance(difference, list):
        difference = difference[0]
    what, *subject = difference
    names = (str(getattr(item, "name", item)) for item in subject if item is not None)
    return f"{what}: {' '.join(names)}"
