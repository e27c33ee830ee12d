"""Dates on the command line: days, in UTC."""

from datetime import UTC, datetime
from typing import Final

import typer

_DAY: Final = "%Y-%m-%d"
METAVAR: Final = "DATE"


def midnight(text: str) -> datetime:
    """Read a day, and return its begin."""
    try:
        return datetime.strptime(text, _DAY).replace(tzinfo=UTC)
    except ValueError:
        raise typer.BadParameter(f"must be a date like 2026-11-30, not {text!r}") from None


def in_order(since: datetime | None, until: datetime | None) -> None:
    """Refuse a range that ends before it begins: nothing can be in it."""
    if since is not None and until is not None and since > until:
        raise typer.BadParameter(
            f"must not be after --to, which is {until:{_DAY}}, not {since:{_DAY}}", param_hint="'--from'"
        )
