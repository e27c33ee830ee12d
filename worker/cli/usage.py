"""`openai-worker usage`: what was used and what it cost."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.output import dollars, print_rows
from worker.cli.wiring import database, settings, work

if TYPE_CHECKING:
    from worker.adapters.database.queries import By, UsageFilter, UsageRow
    from worker.config import Settings

app = typer.Typer(help="What was used, and what it cost.", no_args_is_help=True)

_DAY: Final = ["%Y-%m-%d"]
_SUMS: Final = (
    "requests",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_usd",
    "unpriced_requests",
    "estimated_requests",
)
"""Columns of a report, after those it is grouped by."""


@app.callback()
def usage() -> None:
    """Keep `report` a command of its own while it is the only one."""


@app.command()
def report(
    *,
    by: Annotated[
        str, typer.Option(help="Groups, comma-separated: day, month, tenant, model, kind, account.")
    ] = "tenant,model",
    since: Annotated[
        datetime | None, typer.Option("--from", formats=_DAY, help="First day, in UTC.", metavar="DATE")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", formats=_DAY, help="Last day, included.", metavar="DATE")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Sum up the ledger: tokens, US dollars, and requests whose price is unknown or usage estimated."""
    loaded = settings()
    from worker.adapters.database.queries import UsageFilter  # noqa: PLC0415 - slow to import

    groups = _groups(by)
    only = UsageFilter(
        since=since.replace(tzinfo=UTC) if since else None,
        until=until.replace(tzinfo=UTC) + timedelta(days=1) if until else None,
        tenant=tenant,
        model=model,
    )
    rows = [_flat(row) for row in work(_report(loaded, groups, only))]
    columns = [*(group.value for group in groups), *_SUMS]
    if as_csv:
        writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print_rows(rows, columns, as_json=json)


async def _report(loaded: "Settings", groups: Sequence["By"], only: "UsageFilter") -> list["UsageRow"]:
    async with database(loaded) as queries:
        return await queries.usage(groups, only)


def _groups(text: str) -> list["By"]:
    from worker.adapters.database.queries import By  # noqa: PLC0415 - slow to import

    try:
        return list(dict.fromkeys(By(part.strip()) for part in text.split(",")))
    except ValueError:
        known = ", ".join(By)
        raise typer.BadParameter(f"must be some of {known}, comma-separated", param_hint="--by") from None


def _flat(row: "UsageRow") -> dict[str, Any]:
    sums = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "group"}
    return {**row.group, **sums, "cost_usd": dollars(row.cost_nano_usd)}
