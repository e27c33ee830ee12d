"""The ledger row by row, in the order of its ids: for exports and for pricing again."""

from collections.abc import AsyncIterator
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.adapters.database.reports import UsageFilter, within
from worker.adapters.database.tables import usage_ledger

PAGE: Final = 5_000


async def ledger_pages(
    engine: AsyncEngine, only: UsageFilter, *, after: int = 0, page: int = PAGE
) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the rows beyond an id, page by page; what is booked meanwhile comes last or next time."""
    async with engine.connect() as connection:
        last = int(await connection.scalar(select(func.max(usage_ledger.c.id))) or 0)
    rows = select(usage_ledger).where(*within(only)).order_by(usage_ledger.c.id).limit(page)
    while after < last:
        async with engine.connect() as connection:
            found = await connection.execute(rows.where(usage_ledger.c.id > after, usage_ledger.c.id <= last))
            batch = [dict(row) for row in found.mappings()]
        if not batch:
            return
        yield batch
        after = batch[-1]["id"]
