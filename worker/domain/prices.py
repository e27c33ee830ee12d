"""Unit prices and exact costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from worker.domain.usage import Usage

NANO: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceList:
    """US dollars per million tokens, as in force for one model, tier and day."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal
    source: str
    """Where the prices come from, with its version or date."""
    meters: Mapping[str, Decimal] = field(default_factory=dict)
    """US dollars per unit of the rarer meters."""

    def cost_nano_usd(self, usage: Usage) -> int:
        """Return the exact cost, rounded once, half to even, to 10⁻⁹ US dollars."""
        plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        per_million = (
            plain * self.input
            + usage.cached_input_tokens * self.cached_input
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
        )
        exact = per_million * NANO / 1_000_000
        return int(exact.to_integral_value(ROUND_HALF_EVEN))

    def as_row(self) -> dict[str, object]:
        """Return the unit prices as they are kept in a ledger row."""
        return {
            "unit": "USD per million tokens",
            "input": str(self.input),
            "cached_input": str(self.cached_input),
            "cache_write": str(self.cache_write),
            "output": str(self.output),
            "source": self.source,
        }
