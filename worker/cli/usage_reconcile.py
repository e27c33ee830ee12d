"""`openai-worker usage reconcile`: the ledger against OpenAI's own reports."""

from collections.abc import Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.dates import METAVAR, in_order, midnight
from worker.cli.output import dollars, print_rows
from worker.cli.usage_options import Json, only
from worker.cli.wiring import Exit, complain, database, settings, stop, work
from worker.domain.reconcile import ANY, Difference, Figures, Place, compare, gathered

if TYPE_CHECKING:
    from worker.adapters.database.reports import UsageRow
    from worker.adapters.openai_api.organization import ReportedCost, ReportedUsage
    from worker.config import Settings

_COLUMNS: Final = (
    "day",
    "project",
    "model",
    "our_requests",
    "their_requests",
    "our_input_tokens",
    "their_input_tokens",
    "our_output_tokens",
    "their_output_tokens",
    "our_cost_usd",
    "their_cost_usd",
    "likely_causes",
)


def reconcile(
    *,
    since: Annotated[
        datetime, typer.Option("--from", parser=midnight, help="First day, in UTC.", metavar=METAVAR)
    ],
    until: Annotated[
        datetime, typer.Option("--to", parser=midnight, help="Last day, included.", metavar=METAVAR)
    ],
    tolerance: Annotated[
        float, typer.Option(min=0, max=100, help="Per cent that two figures may differ.")
    ] = 0.5,
    json: Json = False,
) -> None:
    """Compare the ledger with OpenAI's costs and usage by project, day and model; exit 1 where they differ.

    Tokens and requests are compared by model, costs by project and day. Needs OPENAI_ADMIN_KEY.
    """
    in_order(since, until)
    loaded = settings()
    if loaded.openai_admin_key is None:
        stop("OPENAI_ADMIN_KEY: must be given", Exit.USAGE)
    found = work(_reconcile(loaded, since, until, Decimal(str(tolerance)) / 100))
    print_rows([_flat(one) for one in found], _COLUMNS, as_json=json)
    if found:
        stop(f"{len(found)} figures differ by more than {tolerance} %", Exit.FAILED)
    complain(f"no figure differs by more than {tolerance} %")


async def _reconcile(
    loaded: "Settings", since: datetime, until: datetime, tolerance: Decimal
) -> list[Difference]:
    from worker.adapters.database.reports import By
    from worker.adapters.openai_api.organization import OrganizationReports, ReportError

    async with database(loaded) as queries:
        ours = await queries.usage([By.DAY, By.PROJECT, By.MODEL], only(since=since, until=until))
    key = loaded.openai_admin_key.get_secret_value() if loaded.openai_admin_key else ""
    reports = OrganizationReports(admin_key=key, base_url=loaded.openai_base_url)
    try:
        first, last = since.date(), until.date()
        used, cost = await reports.usage(first, last), await reports.costs(first, last)
    except ReportError as error:
        stop(str(error), Exit.FAILED)
    finally:
        await reports.close()
    # Where the ledger does not know its projects, it can only be compared over all of them.
    known = all(row.group["project"] for row in ours)
    return compare(gathered(_ours(ours, known=known)), gathered(_theirs(used, cost, known=known)), tolerance)


def _ours(rows: Iterable["UsageRow"], *, known: bool) -> Iterator[tuple[Place, Figures]]:
    for row in rows:
        day, project = str(row.group["day"]), (row.group["project"] or ANY) if known else ANY
        unsure = {"unpriced_requests": row.unpriced_requests, "estimated_requests": row.estimated_requests}
        yield (
            Place(day, project, str(row.group["model"])),
            Figures(
                requests=row.requests,
                input_tokens=row.input_tokens,
                cached_input_tokens=row.cached_input_tokens,
                output_tokens=row.output_tokens,
                **unsure,
            ),
        )
        yield Place(day, project, ANY), Figures(cost_nano_usd=row.cost_nano_usd, **unsure)


def _theirs(
    used: Iterable["ReportedUsage"], cost: Iterable["ReportedCost"], *, known: bool
) -> Iterator[tuple[Place, Figures]]:
    for one in used:
        figures = Figures(
            requests=one.requests,
            input_tokens=one.input_tokens,
            cached_input_tokens=one.cached_input_tokens,
            output_tokens=one.output_tokens,
        )
        yield _place(one.day, one.project, one.model or ANY, known=known), figures
    for paid in cost:
        yield _place(paid.day, paid.project, ANY, known=known), Figures(cost_nano_usd=paid.nano_usd)


def _place(day: date, project: str | None, model: str, *, known: bool) -> Place:
    return Place(day.isoformat(), (project or ANY) if known else ANY, model)


def _flat(one: Difference) -> dict[str, Any]:
    place, ours, theirs = one.place, one.ours, one.theirs
    return {
        "day": place.day,
        "project": place.project,
        "model": place.model,
        "our_requests": ours.requests,
        "their_requests": theirs.requests,
        "our_input_tokens": ours.input_tokens,
        "their_input_tokens": theirs.input_tokens,
        "our_output_tokens": ours.output_tokens,
        "their_output_tokens": theirs.output_tokens,
        "our_cost_usd": dollars(ours.cost_nano_usd),
        "their_cost_usd": dollars(theirs.cost_nano_usd),
        "likely_causes": "; ".join(one.causes),
    }
