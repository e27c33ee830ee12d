"""A budget for tests: what it is, what is held of it, and what is spent."""

from typing import Any

from tests.support.databases import rows

BUDGET = 1_000_000
HELD = 200_000
"""What `an_intent` reserves."""
COST = 120_000
"""What `a_ledger_entry` costs."""


async def holds(url: str) -> list[tuple[Any, ...]]:
    """Return the holds."""
    return await rows(url, "SELECT job_id, attempt_no, nano_usd FROM budget_holds ORDER BY 1, 2")


async def spent(url: str) -> int:
    """Return what the month's row says, and hold it against the ledger."""
    ((total,),) = await rows(url, "SELECT spent_nano_usd FROM budget_months WHERE tenant = 'acme'")
    ((booked,),) = await rows(
        url, "SELECT CAST(coalesce(sum(cost_nano_usd), 0) AS BIGINT) FROM usage_ledger WHERE tenant = 'acme'"
    )
    assert total == booked
    return int(total)
