"""Prices that the operator sets, as the program computes with them."""

from worker.config.settings import Settings
from worker.domain.prices import PriceList, PriceOverride


def price_overrides(settings: Settings) -> list[PriceOverride]:
    """Return the `prices` tables of the file."""
    return [
        PriceOverride(
            model=model,
            prices=PriceList(
                input=table.input,
                cached_input=table.cached_input,
                cache_write=table.cache_write,
                output=table.output,
                source="worker.toml",
            ),
            service_tier=table.service_tier,
            valid_from=table.valid_from,
            valid_to=table.valid_to,
        )
        for model, tables in settings.prices.items()
        for table in tables
    ]
