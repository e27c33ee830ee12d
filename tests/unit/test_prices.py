"""Unit prices and exact costs."""

import random
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices import calc_price

from worker.adapters.price_catalog import PriceCatalog
from worker.domain.prices import PriceList, PriceOverride, PriceStep
from worker.domain.usage import Meter, Usage

DAY = datetime(2026, 11, 22, 10, tzinfo=UTC)
CATALOG = PriceCatalog()

LUNA = PriceList(
    input=Decimal("0.1"),
    cached_input=Decimal("0.01"),
    cache_write=Decimal("0.125"),
    output=Decimal("0.5"),
    source="by hand",
    meters={
        Meter.CACHE_WRITE_12H: Decimal("0.25"),
        Meter.WEB_SEARCH: Decimal(10_000),
        Meter.AUDIO_INPUT: Decimal(32),
        Meter.AUDIO_OUTPUT: Decimal(64),
    },
    steps=(
        PriceStep(
            above=272_000,
            input=Decimal("0.2"),
            cached_input=Decimal("0.02"),
            cache_write=Decimal("0.25"),
            output=Decimal("0.75"),
        ),
    ),
)


@pytest.mark.parametrize(
    ("usage", "nano_usd"),
    [
        (Usage(), 0),
        # 172 x 0.1 + 640 x 0.01 + 95 x 0.5 dollars per million
        (Usage(input_tokens=812, cached_input_tokens=640, output_tokens=95), 71_100),
        # 10 x 0.1 + 20 x 0.01 + 70 x 0.125
        (Usage(input_tokens=100, cached_input_tokens=20, cache_write_tokens=70), 9_950),
        # 40 x 0.125 + 30 x 0.25
        (
            Usage(
                input_tokens=70,
                cache_write_tokens=70,
                meters={Meter.CACHE_WRITE_30M: 40, Meter.CACHE_WRITE_12H: 30},
            ),
            12_500,
        ),
        # 3 searches for a cent each, beside 1 x 0.1
        (Usage(input_tokens=1, meters={Meter.WEB_SEARCH: 3}), 30_000_100),
        # 60 x 0.1 + 40 x 32 + 5 x 0.5 + 5 x 64
        (
            Usage(
                input_tokens=100,
                output_tokens=10,
                meters={Meter.AUDIO_INPUT: 40, Meter.AUDIO_OUTPUT: 5},
            ),
            1_608_500,
        ),
        # 80 tokens were cached, 40 were audio: at least 20 were both, and are cached
        (Usage(input_tokens=100, cached_input_tokens=80, meters={Meter.AUDIO_INPUT: 40}), 640_800),
        # predictions and images cost what their column costs
        (
            Usage(
                input_tokens=10,
                output_tokens=10,
                meters={Meter.REJECTED_PREDICTION: 7, Meter.ACCEPTED_PREDICTION: 2, Meter.IMAGE_INPUT: 9},
            ),
            6_000,
        ),
        # the last token at the short price, and the first that makes the whole request dearer
        (Usage(input_tokens=272_000, output_tokens=1), 27_200_500),
        (Usage(input_tokens=272_001, output_tokens=1), 54_400_950),
        # nothing is lost at the size of a whole year's bill
        (Usage(input_tokens=2**53 - 1, output_tokens=2**53 - 1), 950 * (2**53 - 1)),
    ],
)
def test_costs_by_hand(usage: Usage, nano_usd: int) -> None:
    """Each meter is billed at its own price, once."""
    assert LUNA.cost_nano_usd(usage) == nano_usd


@pytest.mark.parametrize(
    "meter", [Meter.FILE_SEARCH, Meter.IMAGE_GENERATION_INPUT, Meter.IMAGE_GENERATION_OUTPUT, "brand_new"]
)
def test_without_a_price_there_is_no_cost(meter: str) -> None:
    """What has no price is unpriced, not free."""
    assert LUNA.cost_nano_usd(Usage(input_tokens=1, meters={meter: 1})) is None
    assert LUNA.cost_nano_usd(Usage(input_tokens=1, meters={meter: 0})) == 100


def test_new_parts_cost_what_the_whole_does() -> None:
    """Tokens of a kind that is new are tokens all the same."""
    whole = Usage(input_tokens=10, output_tokens=10)
    parts = replace(whole, meters={"input.video_tokens": 9, "output.drawn_tokens": 9})
    assert LUNA.cost_nano_usd(parts) == LUNA.cost_nano_usd(whole)


@pytest.mark.parametrize(("tokens", "nano_usd"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_rounds_half_to_even(tokens: int, nano_usd: int) -> None:
    """Halves of 10⁻⁹ dollars go to the even neighbour: 0.5, 1.5, 2.5, 3.5."""
    prices = PriceList(
        input=Decimal("0.0005"), cached_input=Decimal(0), cache_write=Decimal(0), output=Decimal(0), source=""
    )
    assert prices.cost_nano_usd(Usage(input_tokens=tokens)) == nano_usd


def _random_price(chance: random.Random) -> Decimal:
    return Decimal(chance.randrange(10 ** chance.randint(1, 9))).scaleb(-chance.randint(0, 9))


def _random_list(chance: random.Random) -> PriceList:
    def units() -> dict[str, Decimal]:
        return {name: _random_price(chance) for name in ("input", "cached_input", "cache_write", "output")}

    meters = {meter.value: _random_price(chance) for meter in Meter}
    step = PriceStep(above=chance.choice([10, 10**6, 10**12]), meters=meters, **units())
    return PriceList(source="random", meters=meters, steps=(step,), **units())


def _random_usage(chance: random.Random) -> Usage:
    def part(whole: int) -> int:
        return chance.choice([0, whole, chance.randint(0, whole)])

    inputs, outputs = (chance.randrange(1, 2 ** chance.randint(1, 53)) for _ in range(2))
    cached = part(inputs)
    written = part(inputs - cached)
    audio = part(inputs - cached - written)
    return Usage(
        input_tokens=inputs,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=outputs,
        meters={
            Meter.AUDIO_INPUT: audio,
            Meter.IMAGE_INPUT: part(inputs - cached - written - audio),
            Meter.CACHE_WRITE_12H: part(written),
            Meter.AUDIO_OUTPUT: part(outputs),
            Meter.WEB_SEARCH: part(9),
            Meter.FILE_SEARCH: part(9),
        },
    )


def _oracle(prices: PriceList, usage: Usage) -> int:
    """Compute the cost in fractions, column by column."""
    step = prices.steps[0]
    now = step if usage.input_tokens > step.above else prices
    meters = usage.meters
    audio, image = meters[Meter.AUDIO_INPUT], meters[Meter.IMAGE_INPUT]
    plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens - audio - image
    half_hour = usage.cache_write_tokens - meters[Meter.CACHE_WRITE_12H]
    dollars = (
        Fraction(now.input) * plain
        + Fraction(now.cached_input) * usage.cached_input_tokens
        + Fraction(now.cache_write) * half_hour
        + Fraction(now.output) * (usage.output_tokens - meters[Meter.AUDIO_OUTPUT])
        + sum(Fraction(now.meters[name]) * count for name, count in meters.items())
    ) / 1_000_000
    return round(dollars * 10**9)


def test_c07_equals_fractions_to_the_last_unit() -> None:
    """Ten thousand random usages at random prices cost what exact arithmetic says, in any decimal context."""
    chance = random.Random(20261122)
    with localcontext() as context:
        context.prec = 3
        for _ in range(10_000):
            prices, usage = _random_list(chance), _random_usage(chance)
            assert prices.cost_nano_usd(usage) == _oracle(prices, usage)


@pytest.mark.parametrize("price", ["-0.1", "NaN", "Infinity", "1e-13"])
def test_refuses_prices_that_are_none(price: str) -> None:
    """A price list holds only prices it can compute with exactly."""
    with pytest.raises(ValueError, match="a price must be"):
        PriceList(
            input=Decimal(price),
            cached_input=Decimal(0),
            cache_write=Decimal(0),
            output=Decimal(0),
            source="",
        )


def test_row_lets_anybody_check_the_bill() -> None:
    """With the row's prices alone, counts times prices over a million are the cost."""
    usage = Usage(
        input_tokens=300_000,
        cached_input_tokens=100_000,
        output_tokens=1_000,
        meters={Meter.WEB_SEARCH: 2},
    )
    prices = CATALOG.prices("gpt-6-luna", "default", DAY)
    assert prices is not None
    row = prices.as_row(usage)
    assert row["above_input_tokens"] == 272_000
    by_hand = (
        200_000 * Decimal(str(row["input"]))
        + 100_000 * Decimal(str(row["cached_input"]))
        + 1_000 * Decimal(str(row["output"]))
        + 2 * Decimal(str(row["web_search_requests"]))
    )
    assert prices.cost_nano_usd(usage) == by_hand * 1000
    assert "file_search_calls" not in row
    assert str(row["source"]).startswith("genai-prices 0.")


def test_row_without_usage_holds_all_prices() -> None:
    """Before a request is sent, every price it might meet is kept."""
    assert LUNA.as_row() == {
        "unit": "USD per million",
        "source": "by hand",
        "input": "0.1",
        "cached_input": "0.01",
        "cache_write": "0.125",
        "output": "0.5",
        "cache_write_12h_tokens": "0.25",
        "web_search_requests": "10000",
        "audio_input_tokens": "32",
        "audio_output_tokens": "64",
        "above": {
            "272000": {"input": "0.2", "cached_input": "0.02", "cache_write": "0.25", "output": "0.75"}
        },
    }


# ---------------------------------------------------------------- the catalog


@pytest.mark.parametrize(
    "usage",
    [
        Usage(input_tokens=1000, output_tokens=77),
        Usage(input_tokens=10_007, cached_input_tokens=9_001, output_tokens=3),
        Usage(input_tokens=50_001, cached_input_tokens=20_000, cache_write_tokens=30_000, output_tokens=1),
        Usage(input_tokens=272_000, output_tokens=11),
        Usage(input_tokens=272_001, cached_input_tokens=13, cache_write_tokens=17, output_tokens=11),
        Usage(input_tokens=1_000_003, output_tokens=128_001, reasoning_tokens=100_000),
    ],
)
@pytest.mark.parametrize("tier", [None, "default", "flex", "priority", "batch"])
@pytest.mark.parametrize(
    "model", ["gpt-6-luna", "gpt-6.1-sol", "gpt-5.5", "gpt-5.4-2026-03-05", "gpt-5.6-terra"]
)
def test_agrees_with_the_library(model: str, tier: str | None, usage: Usage) -> None:
    """Tiers, cache reads and writes and long contexts cost what genai-prices computes."""
    prices = CATALOG.prices(model, tier, DAY)
    assert prices is not None
    context = {"batch": {"processing": "batch"}, None: {}}.get(tier, {"service_tier": str(tier)})
    theirs = calc_price(
        TheirUsage(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
        ),
        model,
        provider_id="openai",
        genai_request_timestamp=DAY,
        price_context=context,
    )
    assert prices.cost_nano_usd(usage) == round(theirs.total_price * 10**9)


@pytest.mark.parametrize("model", ["gpt-audio", "text-embedding-3-small"])
def test_agrees_on_audio_and_embeddings(model: str) -> None:
    """Audio has its own price; embeddings have input only."""
    audio = 400 if model == "gpt-audio" else 0
    outputs = 50 if model == "gpt-audio" else 0
    prices = CATALOG.prices(model, None, DAY)
    assert prices is not None
    ours = prices.cost_nano_usd(
        Usage(
            input_tokens=1000,
            output_tokens=outputs,
            meters={Meter.AUDIO_INPUT: audio, Meter.AUDIO_OUTPUT: outputs},
        )
    )
    theirs = calc_price(
        TheirUsage(
            input_tokens=1000, input_audio_tokens=audio, output_tokens=outputs, output_audio_tokens=outputs
        ),
        model,
        provider_id="openai",
        genai_request_timestamp=DAY,
    )
    assert ours == theirs.total_price * 10**9


@pytest.mark.parametrize(
    ("model", "tier"),
    [
        ("gpt-99", None),
        ("", None),
        ("x" * 10_000, None),
        ("gpt-6-luna", "scale"),
        ("gpt-6-luna", "ultrafast"),
        ("gpt-6-luna", "no such tier"),
        ("text-embedding-3-small", "flex"),
        ("whisper-1", None),
    ],
)
def test_unknown_is_unpriced(model: str, tier: str | None) -> None:
    """An unknown model or tier has no price, least of all the standard one."""
    assert CATALOG.prices(model, tier, DAY) is None


def test_prices_of_a_tier_start_on_their_day() -> None:
    """The flex prices are known from 2026-10-12; before, flex is unpriced while the standard tier is not."""
    before = datetime(2026, 10, 11, 23, 59, tzinfo=UTC)
    assert CATALOG.prices("gpt-5.5", "flex", before) is None
    assert CATALOG.prices("gpt-5.5", "flex", datetime(2026, 10, 12, tzinfo=UTC)) is not None
    assert CATALOG.prices("gpt-5.5", None, before) is not None


def test_twelve_hour_cache_writes_cost_two_and_a_half_times_the_input() -> None:
    """The price that the data lacks for gpt-6 follows from the one it has."""
    prices = CATALOG.prices("gpt-6-luna", None, DAY)
    assert prices is not None
    assert prices.meters[Meter.CACHE_WRITE_12H] == Decimal("2.5") * prices.input
    assert prices.steps[0].meters[Meter.CACHE_WRITE_12H] == Decimal("2.5") * prices.steps[0].input


def _own(price: str) -> PriceList:
    return PriceList(
        input=Decimal(price),
        cached_input=Decimal(0),
        cache_write=Decimal(0),
        output=Decimal(0),
        source="worker.toml",
    )


def test_overrides_win_by_precision_tier_and_date() -> None:
    """A name beats a glob, a long glob a short one, a later price an earlier one; other tiers stay."""
    catalog = PriceCatalog(
        [
            PriceOverride(model="*", prices=_own("1")),
            PriceOverride(model="gpt-6.2-*", prices=_own("2")),
            PriceOverride(model="gpt-6.2-sol", prices=_own("3"), valid_to=date(2026, 11, 22)),
            PriceOverride(model="gpt-6.2-sol", prices=_own("4"), valid_from=date(2026, 11, 23)),
            PriceOverride(model="gpt-6.2-sol", prices=_own("5"), service_tier="flex"),
        ]
    )

    def price(model: str, tier: str | None, day: int) -> Decimal | None:
        found = catalog.prices(model, tier, datetime(2026, 11, day, 23, tzinfo=UTC))
        return found.input if found else None

    assert price("gpt-99", None, 22) == 1
    assert price("gpt-6.2-astra", None, 22) == 2
    assert price("gpt-6.2-sol", None, 22) == 3
    assert price("gpt-6.2-sol", None, 23) == 4
    assert price("gpt-6.2-sol", "flex", 23) == 5
    assert price("gpt-6.2-sol", "priority", 23) is None
    assert price("gpt-6-luna", "flex", 22) == Decimal("0.05")


def test_looks_up_once_a_model_tier_and_day() -> None:
    """A repeated question is answered with the very same list."""
    assert CATALOG.prices("gpt-6-luna", None, DAY) is CATALOG.prices("gpt-6-luna", "auto", DAY)
