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
from worker.domain.events import ServerTrouble
from worker.ports import Observer

SERVER: Final = "database"
_PAUSE_SECONDS: Final = 0.5


async def reach(engine: AsyncEngine, where: str, seconds: float, observer: Observer | None = None) -> None:
    """Connect once, trying for as long as given. Raises DatabaseUnreachableError, safe to show.

    The observer is told where that takes more than one try.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + seconds
    last: BaseException | None = None
    while True:
        try:
            async with asyncio.timeout_at(give_up):
                await _connect(engine)
        except (DBAPIError, sqlite3.Error, OSError) as error:
            first = last is None
            if last is None or not isinstance(error, TimeoutError):
                # Our own end of patience says less than what went wrong before it.
                last = error
            hopeless = wrong_settings(error) or trouble(error) is Trouble.REFUSED
            if hopeless or loop.time() >= give_up:
                raise DatabaseUnreachableError(f"{where} cannot be reached: {reason(last)}") from None
            if first and observer:
                observer(ServerTrouble(server=SERVER, up=False, error=reason(last)))
        else:
            if last and observer:
                observer(ServerTrouble(server=SERVER, up=True))
            return
        pause = random.uniform(_PAUSE_SECONDS / 2, _PAUSE_SECONDS)  # noqa: S311 spreads workers, no secret
        await asyncio.sleep(min(pause, max(0.0, give_up - loop.time())))


async def _connect(engine: AsyncEngine) -> None:
    if engine.dialect.name == "sqlite":
        # aiosqlite leaves a thread behind that outlives the loop where a file cannot be opened.
        await asyncio.to_thread(_look_into, engine.url.database or "")
    async with engine.connect():
        pass


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
