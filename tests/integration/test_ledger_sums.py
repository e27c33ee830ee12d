"""A hundred thousand usages against exact fractions, in the program and in both databases."""

import random
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tests.support.databases import NOON, rows
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.ledger import ledger_row
from worker.adapters.database.running import run
from worker.adapters.database.statements import Statements
from worker.adapters.database.summary import Summary
from worker.adapters.database.tables import usage_ledger
from worker.domain.attempt import Account, Entry, LedgerEntry
from worker.domain.job import JobKey
from worker.domain.prices import PriceList, PriceStep
from worker.domain.usage import Meter, Usage

pytestmark = pytest.mark.slow

ROWS = 100_000
BATCH = 2_000
PARTS_OF_COLUMNS = {Meter.CACHE_WRITE_30M, Meter.ACCEPTED_PREDICTION, Meter.REJECTED_PREDICTION}
UNITS = ("input", "cached_input", "cache_write", "output")


def some_prices(chance: random.Random) -> PriceList:
    """Return a price for everything."""

    def price() -> Decimal:
        return Decimal(chance.randrange(10**6)).scaleb(-chance.randint(0, 6))

    def units() -> dict[str, Any]:
        return {name: price() for name in UNITS} | {"meters": {meter.value: price() for meter in Meter}}

    step = PriceStep(above=chance.choice([1_000, 100_000]), **units())
    return PriceList(source="random", steps=(step,), **units())


def some_usage(chance: random.Random) -> Usage:
    """Return a usage in which all meters may occur."""

    def part(whole: int) -> int:
        return chance.choice([0, whole, chance.randint(0, whole)])

    inputs, outputs = chance.randrange(1, 10**6), chance.randrange(10**5)
    cached = part(inputs)
    written = part(inputs - cached)
    audio = part(inputs - cached - written)
    long_lived = part(written)
    meters = {
        Meter.AUDIO_INPUT: audio,
        Meter.IMAGE_INPUT: part(inputs - cached - written - audio),
        Meter.CACHE_WRITE_12H: long_lived,
        Meter.CACHE_WRITE_30M: written - long_lived,
        Meter.AUDIO_OUTPUT: part(outputs),
        Meter.ACCEPTED_PREDICTION: part(outputs),
        Meter.REJECTED_PREDICTION: part(outputs),
        **{
            meter: part(9)
            for meter in (
                Meter.WEB_SEARCH,
                Meter.FILE_SEARCH,
                Meter.CODE_INTERPRETER,
                Meter.IMAGE_GENERATION_INPUT,
                Meter.IMAGE_GENERATION_OUTPUT,
            )
        },
    }
    return Usage(
        input_tokens=inputs,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=outputs,
        reasoning_tokens=part(outputs),
        meters={meter.value: count for meter, count in meters.items() if count},
    )


def oracle(prices: PriceList, usage: Usage) -> int:
    """Return the cost in fractions, rounded once, half to even."""
    step = prices.steps[0]
    now = step if usage.input_tokens > step.above else prices
    own = {name: count for name, count in usage.meters.items() if name not in PARTS_OF_COLUMNS}
    count = own.get
    plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
    lines = [
        (plain - count(Meter.AUDIO_INPUT, 0) - count(Meter.IMAGE_INPUT, 0), now.input),
        (usage.cached_input_tokens, now.cached_input),
        (usage.cache_write_tokens - count(Meter.CACHE_WRITE_12H, 0), now.cache_write),
        (usage.output_tokens - count(Meter.AUDIO_OUTPUT, 0), now.output),
        *((number, now.meters[name]) for name, number in own.items()),
    ]
    return round(sum(Fraction(price) * number for number, price in lines) * 1000)


@pytest.mark.timeout(300)
async def test_c07_sums_equal_fractions_to_the_last_unit(migrated_url: str) -> None:
    """Every cost is what exact arithmetic says, and SQL adds all of them up to the same integers."""
    chance = random.Random(20261122)
    lists = [some_prices(chance) for _ in range(50)]
    engine = open_engine(migrated_url, Use.WRITE)
    insert = Statements(engine.dialect).insert[usage_ledger]
    total, inputs, unpriced = 0, 0, 0
    async with engine.connect() as connection:
        for first in range(0, ROWS, BATCH):
            batch = []
            for number in range(first, first + BATCH):
                prices, usage = chance.choice(lists), some_usage(chance)
                cost = oracle(prices, usage)
                assert prices.cost_nano_usd(usage) == cost
                booked = None if number % 97 == 0 else cost
                total, inputs = total + (booked or 0), inputs + usage.input_tokens
                unpriced += booked is None
                batch.append(a_row(number, usage, booked))
            async with connection.begin():
                await run(connection, list(insert.calls(batch)))
    while (await rows(migrated_url, "SELECT ledger_id FROM usage_summary_mark")) != [(ROWS,)]:
        await Summary(engine).catch_up(30_000)
    await engine.dispose()
    for source in ("usage_ledger", "usage_daily", "usage_monthly", "usage_summary"):
        sums = "sum(requests), sum(cost_nano_usd), sum(input_tokens), sum(unpriced_requests)"
        found = await rows(migrated_url, f"SELECT {sums} FROM {source}")  # noqa: S608 names from above
        assert [int(one) for one in found[0]] == [ROWS, total, inputs, unpriced]


def a_row(number: int, usage: Usage, cost: int | None) -> dict[str, Any]:
    """Return a ledger row as the writer makes it."""
    entry = LedgerEntry(
        entry=Entry.MEASURED,
        model=f"model-{number % 3}",
        service_tier=None,
        usage=usage,
        cost_nano_usd=cost,
        prices=None,
        occurred_at=NOON + timedelta(minutes=number),
    )
    key = JobKey(f"tenant-{number % 7}", f"{number}")
    return ledger_row(
        key, 1, entry, received_at=entry.occurred_at, kind="completion", labels={}, account=Account()
    )
