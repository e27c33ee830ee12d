"""Options that the commands on usage share."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.names import Kind
from worker.cli.dates import METAVAR, in_order, midnight

if TYPE_CHECKING:
    from worker.adapters.database.reports import UsageFilter

From = Annotated[
    datetime | None, typer.Option("--from", parser=midnight, help="First day, in UTC.", metavar=METAVAR)
]
To = Annotated[
    datetime | None, typer.Option("--to", parser=midnight, help="Last day, included.", metavar=METAVAR)
]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant.")]
Model = Annotated[str | None, typer.Option(help="Only this model.")]
OfKind = Annotated[Kind | None, typer.Option(help="Only this kind.")]
Organization = Annotated[str | None, typer.Option(help="Only this organization.")]
Project = Annotated[str | None, typer.Option(help="Only this project.")]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="Only with this label; may be repeated.", metavar="KEY=VALUE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON array.")]


def only(  # noqa: PLR0913 - one for each option
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    tenant: str | None = None,
    model: str | None = None,
    kind: Kind | None = None,
    organization: str | None = None,
    project: str | None = None,
    labels: list[str] | None = None,
) -> "UsageFilter":
    """Return the filter that options describe; the last day is included."""
    from worker.adapters.database.reports import UsageFilter

    in_order(since, until)
    return UsageFilter(
        since=since,
        until=until + timedelta(days=1) if until else None,
        tenant=tenant,
        model=model,
        kind=kind,
        organization=organization,
        project=project,
        labels=dict(_label(text) for text in labels or ()),
    )


def label_key(text: str, option: str) -> str:
    """Return the name of a label, if it can be one."""
    if not text or any(sign in text for sign in '"\\'):
        raise typer.BadParameter("must name a label, without quotes or backslashes", param_hint=option)
    return text


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter("must be KEY=VALUE", param_hint="--label")
    return label_key(key, "--label"), value
