"""Unit prices and exact costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Final

from worker.domain.usage import INPUT_DETAIL, OUTPUT_DETAIL, Meter, Usage

NANO: Final = 1_000_000_000

_PICO: Final = 10**12
"""Prices are computed in 10⁻¹² dollars per million units, as integers."""
_PICO_PER_MILLION_TO_NANO: Final = _PICO * 1_000_000 // NANO

_IN_ITS_COLUMN: Final = frozenset(
    {Meter.CACHE_WRITE_30M, Meter.ACCEPTED_PREDICTION, Meter.REJECTED_PREDICTION}
)
"""Meters that have the price of the column they are part of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrices:
    """US dollars per million: tokens, and for the rarer meters whatever they count."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal
    meters: Mapping[str, Decimal] = field(default_factory=dict)
    _pico: tuple[int, int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for price in (self.input, self.cached_input, self.cache_write, self.output, *self.meters.values()):
            if not price.is_finite() or price < 0 or _PICO % price.as_integer_ratio()[1]:
                raise ValueError("a price must be a positive number of dollars with at most twelve places")
        columns = (self.input, self.cached_input, self.cache_write, self.output)
        object.__setattr__(self, "_pico", tuple(map(_pico, columns)))

    def exact_nano_usd(self, usage: Usage) -> int | None:
        """Return the cost, rounded once, half to even; None if something used has no price."""
        lines = self._lines(usage)
        return None if lines is None else _half_even(sum(count * price for count, price in lines))

    def _lines(self, usage: Usage) -> list[tuple[int, int]] | None:
        """Return counts, each with its price in 10⁻¹² dollars a million."""
        meters = self._own_price(usage)
        if not meters.keys() <= self.meters.keys():
            return None
        plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        # OpenAI does not say which of the cached tokens were audio or images: those that
        # fit nowhere else have been counted, and are priced, as cached.
        for part in (Meter.AUDIO_INPUT, Meter.IMAGE_INPUT):
            if part in meters:
                meters[part] = min(meters[part], plain)
                plain -= meters[part]
        price, cached, written, output = self._pico
        return [
            (plain, price),
            (usage.cached_input_tokens, cached),
            (usage.cache_write_tokens - meters.get(Meter.CACHE_WRITE_12H, 0), written),
            (usage.output_tokens - meters.get(Meter.AUDIO_OUTPUT, 0), output),
            *((count, _pico(self.meters[name])) for name, count in meters.items()),
        ]

    def _own_price(self, usage: Usage) -> dict[str, int]:
        """Return the meters in use that are not priced by their column."""
        return {
            name: count
            for name, count in usage.meters.items()
            if count
            and name not in _IN_ITS_COLUMN
            # Parts that are new: counted apart, they cost what the whole does until there is a price.
            and not name.startswith((INPUT_DETAIL, OUTPUT_DETAIL))
            and (name != Meter.IMAGE_INPUT or Meter.IMAGE_INPUT in self.meters)
        }

    def as_texts(self, meters: Mapping[str, int] | None = None) -> dict[str, object]:
        """Return plain decimal strings; of the meters all, or those named."""
        named = self.meters if meters is None else self.meters.keys() & meters.keys()
        return {
            "input": _text(self.input),
            "cached_input": _text(self.cached_input),
            "cache_write": _text(self.cache_write),
            "output": _text(self.output),
            **{name: _text(self.meters[name]) for name in sorted(named)},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceStep(UnitPrices):
    """What the whole request costs once its input exceeds `above` tokens."""

    above: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceList(UnitPrices):
    """The prices in force for one model, tier and day."""

    source: str
    """Where the prices come from, with its version or date."""
    steps: Sequence[PriceStep] = ()
    """Long-context prices, by rising `above`."""

    def cost_nano_usd(self, usage: Usage) -> int | None:
        """Return the exact cost in 10⁻⁹ US dollars, rounded once; None if something used has no price."""
        return (self._step(usage) or self).exact_nano_usd(usage)

    def as_row(self, usage: Usage | None = None) -> dict[str, object]:
        """Return the unit prices as they are kept in a ledger row.

        With a usage, only those in force for it: the cost is then the sum of counts
        times prices over a million. Without one, all of them.
        """
        row: dict[str, object] = {"unit": "USD per million", "source": self.source}
        if usage is None:
            steps = {str(step.above): step.as_texts() for step in self.steps}
            return row | self.as_texts() | ({"above": steps} if steps else {})
        step = self._step(usage)
        if step is None:
            return row | self.as_texts(usage.meters)
        return row | step.as_texts(usage.meters) | {"above_input_tokens": step.above}

    def _step(self, usage: Usage) -> PriceStep | None:
        if not self.steps:
            return None
        passed = [step for step in self.steps if usage.input_tokens > step.above]
        return max(passed, key=lambda step: step.above, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOverride:
    """Prices that an operator sets for a model, or a glob of models, in place of the known ones."""

    model: str
    prices: PriceList
    service_tier: str | None = None
    """None and `default` mean the standard tier; an override holds for its tier only."""
    valid_from: date | None = None
    valid_to: date | None = None
    """The last day, in UTC."""

    def in_force(self, tier: str, day: date) -> bool:
        """Tell whether it speaks of this tier on this day."""
        return (self.service_tier or "default") == tier and (self.valid_from or date.min) <= day <= (
            self.valid_to or date.max
        )


# The same few prices are asked for with every job.
@lru_cache(maxsize=1024)
def _text(price: Decimal) -> str:
    return f"{price.normalize():f}"


@lru_cache(maxsize=1024)
def _pico(price: Decimal) -> int:
    numerator, denominator = price.as_integer_ratio()
    return numerator * (_PICO // denominator)


def _half_even(total: int) -> int:
    whole, rest = divmod(total, _PICO_PER_MILLION_TO_NANO)
    return whole + (rest * 2 + (whole & 1) > _PICO_PER_MILLION_TO_NANO)
