"""The first contact with a database: whether it is there, and what is in it."""

import asyncio
import random
import sqlite3
from contextlib import closing
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.adapters.database.errors import (
    DatabaseUnreachableError,
    Trouble,
    trouble,
    wrong_settings,
)
from worker.adapters.database.reasons import reason

_PAUSE_SECONDS: Final = 0.5


async def reach(engine: AsyncEngine, where: str, seconds: float) -> None:
    """Connect once, trying for as long as given. Raises DatabaseUnreachableError, safe to show."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + seconds
    last: BaseException | None = None
    while True:
        try:
            async with asyncio.timeout_at(give_up):
                if engine.dialect.name == "sqlite":
                    # aiosqlite leaves a thread behind that outlives the loop where a file cannot be opened.
                    await asyncio.to_thread(_look_into, engine.url.database or "")
                async with engine.connect():
                    return
        except (DBAPIError, sqlite3.Error, OSError) as error:
            if last is None or not isinstance(error, TimeoutError):
                # Our own end of patience says less than what went wrong before it.
                last = error
            hopeless = wrong_settings(error) or trouble(error) is Trouble.REFUSED
            if hopeless or loop.time() >= give_up:
                raise DatabaseUnreachableError(f"{where} cannot be reached: {reason(last)}") from None
        pause = random.uniform(_PAUSE_SECONDS / 2, _PAUSE_SECONDS)  # noqa: S311 spreads workers, no secret
        await asyncio.sleep(min(pause, max(0.0, give_up - loop.time())))


def _look_into(file: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA schema_version")


async def current_revision(engine: AsyncEngine) -> str | None:
    """Return the revision of the schema; None for an empty database."""
    async with engine.connect() as connection:
        try:
            revision = await connection.scalar(text("SELECT version_num FROM alembic_version"))
        except DBAPIError as error:
            if trouble(error) is not Trouble.REFUSED:
                raise
            return None
    return None if revision is None else str(revision)
