"""The ledger row by row, in the order of its ids: for exports and for pricing again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.adapters.database.reports import UsageFilter, within
from worker.adapters.database.tables import usage_ledger, usage_summary_mark

PAGE: Final = 5_000
_PATIENCE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05

_LAST_ID: Final = text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM usage_ledger_id_seq")
_YOUNG: Final = text("SELECT CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text)")
_OLDER_ENDED: Final = text(
    "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= CAST(CAST(:young AS text) AS xid8)"
)


class Settled(NamedTuple):
    """Up to `last_id` no row can appear any more; `whole` if that is all there is."""

    last_id: int
    whole: bool


async def settled(engine: AsyncEngine, *, patience: float = _PATIENCE_SECONDS) -> Settled:
    """Wait for those who are writing; whoever takes longer than `patience` seconds is not waited for.

    PostgreSQL hands ids out before they can be seen: who read on to the highest one
    would never come back to a lower one that appears later.
    """
    if engine.dialect.name == "sqlite":
        async with engine.connect() as connection:
            return Settled(int(await connection.scalar(select(func.max(usage_ledger.c.id))) or 0), whole=True)
    async with engine.connect() as connection:
        # In this order, as in the summary: who has an id has a transaction number already.
        last = int(await connection.scalar(_LAST_ID) or 0)
        young = await connection.scalar(_YOUNG)
    for _ in range(max(1, int(patience / _POLL_SECONDS))):
        async with engine.connect() as connection:
            if await connection.scalar(_OLDER_ENDED, {"young": young}):
                return Settled(last, whole=True)
        await asyncio.sleep(_POLL_SECONDS)
    async with engine.connect() as connection:
        mark = await connection.scalar(select(usage_summary_mark.c.ledger_id))
    return Settled(int(mark or 0), whole=False)


async def ledger_pages(
    engine: AsyncEngine, only: UsageFilter, *, until: int, after: int = 0, page: int = PAGE
) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the rows beyond an id, up to a settled one, page by page."""
    rows = select(usage_ledger).where(*within(only)).order_by(usage_ledger.c.id).limit(page)
    while after < until:
        async with engine.connect() as connection:
            found = await connection.execute(
                rows.where(usage_ledger.c.id > after, usage_ledger.c.id <= until)
            )
            batch = [dict(row) for row in found.mappings()]
        if not batch:
            return
        yield batch
        after = batch[-1]["id"]
