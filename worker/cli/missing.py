"""What is said of a job that is not there: it may be another tenant's, refused, or yet to come."""

from typing import TYPE_CHECKING, Final

from worker.cli.output import plain

if TYPE_CHECKING:
    from worker.adapters.database.queries import Queries
    from worker.domain.job import JobKey

_NAMED: Final = 5
"""Tenants; ids that count up are everybody's."""


async def missing(queries: "Queries", key: "JobKey") -> str:
    """Say that there is no such job, and where to look."""
    there = await _elsewhere(queries, key)
    refused = "a message that was refused is in `openai-worker dead list`"
    return f"there is no job {plain(key.job_id)} of the tenant {plain(key.tenant)}; {there or refused}"


async def kept_for_later(queries: "Queries", key: "JobKey") -> str:
    """Say that a request to cancel is kept for a job that nobody has seen."""
    there = await _elsewhere(queries, key)
    return (
        f"no job {plain(key.job_id)} of the tenant {plain(key.tenant)} has arrived; only the request to"
        " cancel it is known, and is kept in case it does" + (f"; {there}" if there else "")
    )


async def _elsewhere(queries: "Queries", key: "JobKey") -> str | None:
    found = [one for one in await queries.tenants(key.job_id, most=_NAMED + 1) if one != key.tenant]
    if not found:
        return None
    options = " or ".join(f"`--tenant {plain(one)}`" for one in found[:_NAMED])
    more = ", and more" if len(found) > _NAMED else ""
    return f"there is one with {options}{more}"
