"""Runs revisions in the transaction that the program hands over, or on DATABASE_URL to write new ones."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.tables import metadata


def run(connection: Connection) -> None:
    """Run what the command asks for, all of it in one transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transactional_ddl=True,
        transaction_per_migration=False,
        # SQLite changes a column by copying its table.
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_alone() -> None:
    """Connect as the environment says, for those who write revisions."""
    engine = open_engine(os.environ.get("DATABASE_URL", "sqlite:///openai-worker.db"), Use.MIGRATE)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


handed_over = context.config.attributes.get("connection")
if handed_over is None:
    asyncio.run(run_alone())
else:
    run(handed_over)
