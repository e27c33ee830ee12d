"""`openai-worker models`: models in use, their prices, and announced shutdown dates."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.output import print_rows
from worker.cli.wiring import complain, database, openai, settings, work

if TYPE_CHECKING:
    from worker.config import Settings

_COLUMNS: Final = (
    "model",
    "requests",
    "input",
    "cached_input",
    "cache_write",
    "output",
    "price_source",
    "shutdown_date",
)
_GLOB: Final = frozenset("*?[")


def models(*, json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False) -> None:
    """List the models in use: requests so far, US dollars per million tokens, announced shutdown dates."""
    print_rows(work(_models(settings())), _COLUMNS, as_json=json)


async def _models(loaded: "Settings") -> list[dict[str, Any]]:
    from worker.adapters.price_catalog import PriceCatalog
    from worker.config import price_overrides

    used, shutdowns = await asyncio.gather(_used(loaded), _shutdowns(loaded))
    named = {*loaded.models.aliases.values(), *loaded.limits, *loaded.prices}
    catalog, now = PriceCatalog(price_overrides(loaded)), datetime.now(UTC)
    rows = []
    for model in sorted({*used, *(name for name in named if not _GLOB & set(name))}):
        prices = catalog.prices(model, None, now)
        rows.append(
            {
                "model": model,
                "requests": used.get(model, 0),
                **{
                    name: f"{getattr(prices, name).normalize():f}" if prices else None
                    for name in ("input", "cached_input", "cache_write", "output")
                },
                "price_source": prices.source if prices else "unpriced",
                "shutdown_date": shutdowns.get(model),
            }
        )
    return rows


async def _used(loaded: "Settings") -> dict[str, int]:
    from worker.adapters.database.reports import By

    async with database(loaded) as queries:
        return {str(row.group["model"]): row.requests for row in await queries.usage([By.MODEL])}


async def _shutdowns(loaded: "Settings") -> Mapping[str, date | None]:
    """Ask OpenAI; without it the rest of the table is still worth printing."""
    from worker.adapters.openai_api.models import UnusableAccountError
    from worker.config import ConfigError

    try:
        async with openai(loaded) as (client, names):
            listed = await client.list_models(names[0])
    except (ConfigError, UnusableAccountError) as error:
        complain(f"shutdown dates are unknown: {error}")
        return {}
    return {model.id: model.shutdown_date for model in listed}
