"""Unit prices from the data bundled with genai-prices, and from the operator's own."""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from worker.domain.prices import PriceList, PriceOverride, PriceStep
from worker.domain.usage import Meter
from worker.ports import PriceBook

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

_STANDARD: Final = "default"
_SAME_TIER: Final = {None: _STANDARD, "auto": _STANDARD, "fast": "priority"}
"""`auto` is asked for, never answered with; mostly it becomes standard. `fast` and `priority` are one."""

_CONTEXTS: Final[Mapping[str, Mapping[str, str]]] = {
    _STANDARD: {},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "batch": {"processing": "batch"},
}
"""Other tiers (`scale`, `ultrafast`) would silently get standard prices there: they stay without a price."""

_METERS: Final = {
    "input_audio_mtok": (Meter.AUDIO_INPUT, 1),
    "input_image_mtok": (Meter.IMAGE_INPUT, 1),
    "output_audio_mtok": (Meter.AUDIO_OUTPUT, 1),
    "web_searches_kcount": (Meter.WEB_SEARCH, 1000),
    "storage_searches_kcount": (Meter.FILE_SEARCH, 1000),
}
"""Their price keys, and what makes a price per million of one per thousand."""

_KEYS: Final = ("input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok", *_METERS)

_TWELVE_HOURS: Final = 2
"""Cache writes of gpt-6 cost 1.25 x input for 30 minutes and 2.5 x for 12 hours, which the data lacks."""

_LONGEST_NAME: Final = 256


class PriceCatalog(PriceBook):
    """Prices by model, tier and day, each looked up once; nothing is ever downloaded."""

    def __init__(self, overrides: Iterable[PriceOverride] = ()) -> None:
        self._overrides = sorted(overrides, key=_precision, reverse=True)
        self._found = lru_cache(maxsize=1024)(self._look_up)

    def warm(self) -> None:
        """Load the data now: a third of a second of CPU that the first job need not wait for."""
        _openai()

    @override
    def prices(self, model: str, service_tier: str | None, at: datetime) -> PriceList | None:
        """Return the operator's prices before the known ones; None for an unknown model or tier."""
        if max(len(model), len(service_tier or "")) > _LONGEST_NAME:
            return None
        tier = _SAME_TIER.get(service_tier, service_tier or _STANDARD)
        return self._found(model, tier, at.astimezone(UTC).date())

    def _look_up(self, model: str, tier: str, day: date) -> PriceList | None:
        for own in self._overrides:
            if own.in_force(tier, day) and fnmatchcase(model, own.model):
                return own.prices
        return _known(model, tier, day)


def _precision(own: PriceOverride) -> tuple[bool, int, date]:
    """Sort a plain name after globs, long globs after short ones, new prices after old ones."""
    return not set("*?[") & set(own.model), len(own.model), own.valid_from or date.min


def _openai() -> tuple["Provider", str]:
    """Return OpenAI's part of the data, with its version."""
    # Imported late, since it costs a third of a second that most commands need not pay.
    from genai_prices import __version__  # noqa: PLC0415
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    return next(one for one in get_snapshot().providers if one.id == "openai"), __version__


def _known(model: str, tier: str, day: date) -> PriceList | None:
    provider, version = _openai()
    info, context = provider.find_model(model), _CONTEXTS.get(tier)
    at = datetime.combine(day, time(12), UTC)
    if info is None or context is None or not _has_tier(info, context, at):
        return None
    found = info.get_prices(at, context)
    base = _units(info.id, found, 0)
    if base is None:
        return None
    above = sorted({start for key in _KEYS for start in _starts(getattr(found, key))})
    return PriceList(
        **base,
        source=f"genai-prices {version}: {info.id}, {tier}, {day}",
        steps=tuple(
            PriceStep(**base | (_units(info.id, found, start + 1) or {}), above=start) for start in above
        ),
    )


def _has_tier(info: "ModelInfo", context: Mapping[str, str], at: datetime) -> bool:
    """Tell whether the tier has prices of its own that day; without them it would get the standard ones."""
    return not context or any(
        variant.when == context and (variant.constraint is None or variant.constraint.active(at))
        for variant in info.price_variants or ()
    )


def _starts(price: "Decimal | TieredPrices | None") -> list[int]:
    return [] if price is None or isinstance(price, Decimal) else [tier.start for tier in price.tiers]


def _price_at(price: "Decimal | TieredPrices | None", input_tokens: int) -> Decimal | None:
    if price is None or isinstance(price, Decimal):
        return price
    passed = [tier for tier in price.tiers if input_tokens > tier.start]
    return passed[-1].price if passed else price.base


def _units(model: str, found: "ModelPrice", input_tokens: int) -> dict[str, Any] | None:
    """Return the fields of UnitPrices for a request with that much input, None if tokens have no price."""
    prices = {key: _price_at(getattr(found, key), input_tokens) for key in _KEYS}
    plain, written = prices["input_mtok"], prices["cache_write_mtok"]
    output = Decimal(0) if model.startswith("text-embedding") else prices["output_mtok"]
    if plain is None or output is None:
        return None
    meters = {
        meter.value: price * factor
        for key, (meter, factor) in _METERS.items()
        if (price := prices[key]) is not None
    }
    if written is not None and model.startswith("gpt-6"):
        meters[Meter.CACHE_WRITE_12H.value] = written * _TWELVE_HOURS
    return {
        "input": plain,
        "cached_input": _first(prices["cache_read_mtok"], plain),
        "cache_write": _first(written, plain),
        "output": output,
        "meters": meters,
    }


def _first(price: Decimal | None, otherwise: Decimal) -> Decimal:
    return otherwise if price is None else price
