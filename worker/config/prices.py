"""Money that the operator sets, as the program computes with it."""

from collections.abc import Mapping
from typing import Any

from worker.config.settings import Settings
from worker.config.tables import UnitsTable
from worker.domain.prices import NANO, PriceList, PriceOverride, PriceStep


def price_overrides(settings: Settings) -> list[PriceOverride]:
    """Return the `prices` tables of the file."""
    return [
        PriceOverride(
            model=model,
            prices=PriceList(
                **_units(table),
                source="worker.toml",
                steps=[PriceStep(**_units(step), above=step.input_tokens) for step in table.above],
            ),
            service_tier=table.service_tier,
            valid_from=table.valid_from,
            valid_to=table.valid_to,
        )
        for model, tables in settings.prices.items()
        for table in tables
    ]


def budgets(settings: Settings) -> Mapping[str, int]:
    """Return what tenants may spend in a month, in 10⁻⁹ US dollars; most have no such limit."""
    return {
        tenant: int(table.budget_usd_per_month * NANO)
        for tenant, table in settings.tenants.items()
        if table.budget_usd_per_month is not None
    }


def _units(table: UnitsTable) -> dict[str, Any]:
    return {
        "input": table.input,
        "cached_input": table.cached_input,
        "cache_write": table.cache_write,
        "output": table.output,
        "meters": {meter.value: price for meter, price in table.meters.items()},
    }
