"""`openai-worker usage reprice`: corrections for rows whose price was missing or wrong."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.output import dollars, print_rows
from worker.cli.usage_options import From, Json, Model, Tenant, To, only
from worker.cli.wiring import complain, ledger, settings, work

if TYPE_CHECKING:
    from worker.adapters.database.reports import UsageFilter
    from worker.adapters.database.repricing import Correction
    from worker.config import Settings

_COLUMNS: Final = (
    "occurred_at",
    "tenant",
    "job_id",
    "attempt_no",
    "model",
    "service_tier",
    "before_usd",
    "after_usd",
)


def reprice(
    *,
    since: From = None,
    until: To = None,
    tenant: Tenant = None,
    model: Model = None,
    apply: Annotated[bool, typer.Option("--apply", help="Append the corrections to the ledger.")] = False,
    json: Json = False,
) -> None:
    """Show what today's prices change, and with --apply append corrections. Rows are never rewritten."""
    loaded = settings()
    asked = only(since=since, until=until, tenant=tenant, model=model)
    found = work(_reprice(loaded, asked, apply=apply))
    print_rows([_flat(one) for one in found], _COLUMNS, as_json=json)
    total = dollars(sum(one.after - (one.before or 0) for one in found))
    done = "appended" if apply else "to append with --apply"
    complain(f"{len(found)} corrections {done}, {total} US dollars in all")


async def _reprice(loaded: "Settings", asked: "UsageFilter", *, apply: bool) -> list["Correction"]:
    from worker.adapters.database.repricing import Repricing
    from worker.adapters.price_catalog import PriceCatalog
    from worker.config import price_overrides

    def prices(model: str, tier: str | None, at: datetime) -> Any:
        return catalog.prices(model, tier, at)

    catalog = PriceCatalog(price_overrides(loaded))
    async with ledger(loaded, write=apply) as engine:
        pages = Repricing(engine, prices).run(asked, apply=apply)
        return [one async for page in pages for one in page]


def _flat(one: "Correction") -> dict[str, Any]:
    return asdict(one) | {"before_usd": dollars(one.before), "after_usd": dollars(one.after)}
