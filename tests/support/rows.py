"""What a worker has written, read as anybody else would."""

from typing import Any

from sqlalchemy import text

from worker.adapters.database.engine import Use, open_engine


async def rows(database_url: str, query: str) -> list[dict[str, Any]]:
    """Return what a query finds."""
    engine = open_engine(database_url, Use.READ)
    try:
        async with engine.connect() as connection:
            found = await connection.execute(text(query))
            return [dict(row) for row in found.mappings()]
    finally:
        await engine.dispose()
