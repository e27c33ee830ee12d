"""`openai-worker usage`: what was used and what it cost."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli import usage_export, usage_reconcile, usage_reprice
from worker.cli.output import dollars, harmless, print_rows
from worker.cli.usage_options import (
    From,
    Json,
    Labels,
    Model,
    OfKind,
    Organization,
    Project,
    Tenant,
    To,
    label_key,
    only,
)
from worker.cli.wiring import database, settings, work

if TYPE_CHECKING:
    from worker.adapters.database.reports import Group, UsageFilter, UsageRow
    from worker.config import Settings

app = typer.Typer(help="What was used, and what it cost.", no_args_is_help=True)
app.command("export")(usage_export.export)
app.command("reprice")(usage_reprice.reprice)
app.command("reconcile")(usage_reconcile.reconcile)

_GROUPS: Final = "day, month, tenant, model, kind, account, organization, project, label:KEY"
_LABEL: Final = "label:"
_UNPRICED: Final = "unpriced"
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


@app.command()
def report(  # noqa: PLR0913 - one for each option
    *,
    by: Annotated[str, typer.Option(help=f"Groups, comma-separated: {_GROUPS}.")] = "tenant,model",
    since: From = None,
    until: To = None,
    tenant: Tenant = None,
    model: Model = None,
    kind: OfKind = None,
    organization: Organization = None,
    project: Project = None,
    label: Labels = None,
    json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Sum up the ledger: tokens, US dollars, and requests whose price is unknown or usage estimated."""
    loaded = settings()
    groups = _groups(by)
    asked = only(
        since=since,
        until=until,
        tenant=tenant,
        model=model,
        kind=kind,
        organization=organization,
        project=project,
        labels=label,
    )
    unpriced = None if json or as_csv else _UNPRICED
    rows = [_flat(row, unpriced) for row in work(_report(loaded, groups, asked))]
    columns = [*(group.value for group in groups), *_SUMS]
    if as_csv:
        writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        names = {group.value for group in groups}
        for row in rows:
            texts = {name: harmless(row[name]) for name in names if row[name] is not None}
            writer.writerow(row | texts)
    else:
        print_rows(rows, columns, as_json=json)


async def _report(loaded: "Settings", groups: Sequence["Group"], asked: "UsageFilter") -> list["UsageRow"]:
    async with database(loaded) as queries:
        return await queries.usage(groups, asked)


def _groups(text: str) -> list["Group"]:
    return list(dict.fromkeys(_group(part.strip()) for part in text.split(",")))


def _group(name: str) -> "Group":
    from worker.adapters.database.reports import By, ByLabel

    if name.startswith(_LABEL):
        return ByLabel(label_key(name.removeprefix(_LABEL), "--by"))
    try:
        return By(name)
    except ValueError:
        known = ", ".join((*By, "label:KEY"))
        raise typer.BadParameter(f"must be some of {known}, comma-separated", param_hint="--by") from None


def _flat(row: "UsageRow", unpriced: str | None) -> dict[str, Any]:
    """Return a row of the report; `unpriced` stands for the cost of what has no price at all."""
    sums = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "group"}
    known = row.known_cost_nano_usd
    return {**row.group, **sums, "cost_nano_usd": known, "cost_usd": dollars(known) or unpriced}
