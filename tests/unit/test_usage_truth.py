"""Every usage object that OpenAI sends, from its JSON to money, with the sum done by hand."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from schemas.names import Kind
from worker.adapters.price_catalog import PriceCatalog
from worker.core.accounting import intent_for, measured
from worker.domain.answer import Answer, read_usage
from worker.domain.attempt import Account, Entry
from worker.domain.prices import PriceList, PriceOverride, PriceStep
from worker.domain.usage import Meter, Usage

DAY = datetime(2026, 11, 22, 10, tzinfo=UTC)

# Dollars per million, round enough to add up in one's head.
ROUND = PriceList(
    input=Decimal(10),
    cached_input=Decimal(1),
    cache_write=Decimal("12.5"),
    output=Decimal(40),
    meters={
        Meter.CACHE_WRITE_12H: Decimal(25),
        Meter.AUDIO_INPUT: Decimal(100),
        Meter.IMAGE_INPUT: Decimal(20),
        Meter.AUDIO_OUTPUT: Decimal(200),
        Meter.WEB_SEARCH: Decimal(10_000),
        Meter.FILE_SEARCH: Decimal(2_500),
        Meter.CODE_INTERPRETER: Decimal(30_000),
        Meter.IMAGE_GENERATION_INPUT: Decimal(8),
        Meter.IMAGE_GENERATION_OUTPUT: Decimal(32),
    },
    steps=(
        PriceStep(
            above=272_000,
            input=Decimal(20),
            cached_input=Decimal(2),
            cache_write=Decimal(25),
            output=Decimal(60),
        ),
    ),
    source="by hand",
)


def chat(prompt: int, completion: int, /, **details: dict[str, int]) -> dict[str, Any]:
    """Return what Chat Completions say of usage."""
    total = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"usage": total | {f"{name}_tokens_details": counts for name, counts in details.items()}}


def response(
    inputs: int, outputs: int, /, *, cached: int = 0, reasoning: int = 0, **more: Any
) -> dict[str, Any]:
    """Return what Responses say of usage; `write` and `ttl` are cache writes."""
    details: dict[str, Any] = {"cached_tokens": cached, "cache_write_tokens": more.pop("write", 0)}
    if "ttl" in more:
        details["cache_write_tokens_details"] = more.pop("ttl")
    return {
        "usage": {
            "input_tokens": inputs,
            "input_tokens_details": details,
            "output_tokens": outputs,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": inputs + outputs,
        }
    } | more


CASES: list[tuple[str, Kind, dict[str, Any], str]] = [
    # Millionths of a dollar, as anybody would add them up.
    ("plain text", Kind.COMPLETION, chat(100, 10), "100*10 + 10*40"),
    ("cached reads", Kind.COMPLETION, chat(100, 10, prompt={"cached_tokens": 60}), "40*10 + 60*1 + 10*40"),
    (
        "cache writes",
        Kind.COMPLETION,
        chat(100, 10, prompt={"cached_tokens": 60, "cache_write_tokens": 30}),
        "10*10 + 60*1 + 30*12.5 + 10*40",
    ),
    (
        "reasoning is output",
        Kind.COMPLETION,
        chat(100, 50, completion={"reasoning_tokens": 45}),
        "100*10 + 50*40",
    ),
    (
        "predictions, rejected ones too, are output",
        Kind.COMPLETION,
        chat(100, 50, completion={"accepted_prediction_tokens": 20, "rejected_prediction_tokens": 15}),
        "100*10 + 50*40",
    ),
    (
        "audio both ways",
        Kind.COMPLETION,
        chat(100, 50, prompt={"audio_tokens": 30}, completion={"audio_tokens": 20, "text_tokens": 30}),
        "70*10 + 30*100 + 30*40 + 20*200",
    ),
    (
        "images",
        Kind.VISION,
        chat(1000, 10, prompt={"image_tokens": 765, "text_tokens": 235}),
        "235*10 + 765*20 + 10*40",
    ),
    ("long context", Kind.COMPLETION, chat(272_001, 10), "272001*20 + 10*60"),
    ("just not long", Kind.COMPLETION, chat(272_000, 10), "272000*10 + 10*40"),
    (
        "long context, mostly cached",
        Kind.ASSISTANT,
        response(300_000, 1_000, cached=200_000, write=50_000),
        "50000*20 + 200000*2 + 50000*25 + 1000*60",
    ),
    ("responses", Kind.ASSISTANT, response(75, 1186, reasoning=1024), "75*10 + 1186*40"),
    (
        "cache writes of both lives",
        Kind.ASSISTANT,
        response(100, 5, write=80, ttl={"ttl_30m_tokens": 50, "ttl_12h_tokens": 30}),
        "20*10 + 50*12.5 + 30*25 + 5*40",
    ),
    (
        "web searches",
        Kind.ASSISTANT,
        response(100, 5, tool_usage={"web_search": {"num_requests": 3}}),
        "100*10 + 5*40 + 3*10000",
    ),
    (
        "file searches",
        Kind.ASSISTANT,
        response(100, 5, output=[{"type": "file_search_call"}, {"type": "file_search_call"}]),
        "100*10 + 5*40 + 2*2500",
    ),
    (
        "containers of the code interpreter, however often they were used",
        Kind.ASSISTANT,
        response(
            100,
            5,
            output=[{"type": "code_interpreter_call", "container_id": name} for name in ("c1", "c1", "c2")],
        ),
        "100*10 + 5*40 + 2*30000",
    ),
    (
        "drawings",
        Kind.ASSISTANT,
        response(
            100,
            5,
            tool_usage={
                "image_gen": {"input_tokens": 50, "output_tokens": 4000, "total_tokens": 4050},
                "web_search": {"num_requests": 0},
            },
        ),
        "100*10 + 5*40 + 50*8 + 4000*32",
    ),
    (
        "embeddings",
        Kind.EMBEDDING,
        {"usage": {"prompt_tokens": 8, "total_tokens": 8}},
        "8*10",
    ),
    (
        "a whole batch",
        Kind.BATCH,
        {
            "usage": {
                "input_tokens": 2000,
                "input_tokens_details": {"cached_tokens": 500},
                "output_tokens": 700,
                "output_tokens_details": {"reasoning_tokens": 100},
                "total_tokens": 2700,
            }
        },
        "1500*10 + 500*1 + 700*40",
    ),
]


def by_hand(sum_: str) -> int:
    """Add up `count*price + …` in 10⁻⁹ dollars."""
    terms = (term.split("*") for term in sum_.split(" + "))
    return int(sum(int(count) * Decimal(price) * 1000 for count, price in terms))


@pytest.mark.parametrize(("name", "kind", "data", "sum_"), CASES, ids=[case[0] for case in CASES])
def test_usage_costs_what_it_should(name: str, kind: Kind, data: dict[str, Any], sum_: str) -> None:
    """Each meter of each endpoint is read, counted once, and priced as its own."""
    usage = read_usage(kind, data)
    assert usage is not None, name
    assert ROUND.cost_nano_usd(usage) == by_hand(sum_)


BOOK = PriceCatalog(
    [
        PriceOverride(model="gpt-6-luna", prices=ROUND, service_tier="background-2h"),
        PriceOverride(model="gpt-6.2-sol", prices=ROUND),
    ]
)


@pytest.mark.parametrize(
    ("asked", "answered", "model", "booked", "tenths"),
    [
        # What answered decides, not what was asked for; tenths are the price of a million inputs.
        ({}, "default", "gpt-6-luna", "default", 1),
        ({"service_tier": "flex"}, "default", "gpt-6-luna", "default", 1),
        ({"service_tier": "auto"}, "flex", "gpt-6-luna", "flex", "0.5"),
        ({"service_tier": "fast"}, "priority", "gpt-6-luna", "priority", None),
        ({"service_tier": "batch"}, "default", "gpt-6-luna", "batch", "0.5"),
        ({"background_options": {"completion_window": "2h"}}, "default", "gpt-6-luna", "background-2h", 100),
        ({"background_options": {"completion_window": "soonest"}}, "default", "gpt-6-luna", "default", 1),
        # Without a price of their own they are unpriced, not standard.
        ({"background_options": {"completion_window": "8h"}}, "default", "gpt-6-luna", "background-8h", 0),
        ({"service_tier": "auto"}, "ultrafast", "gpt-6-luna", "ultrafast", 0),
        ({"service_tier": "auto"}, "scale", "gpt-6-luna", "scale", 0),
        ({}, "default", "gpt-7-none", "default", 0),
        ({}, "default", "gpt-6.2-sol", "default", 100),
    ],
)
def test_priced_by_what_answered(
    asked: dict[str, Any], answered: str, model: str, booked: str, tenths: int | str | None
) -> None:
    """The model and tier of the answer set the price; discounts for waiting are those asked for."""
    intent = intent_for({"model": "gpt-6-luna", **asked}, Usage(), Account(), BOOK, DAY)
    answer = Answer(
        body=b"",
        data={},
        model=model,
        service_tier=answered,
        usage=Usage(input_tokens=1_000_000 // 10),
        text=None,
        finish_reason="stop",
    )
    entry = measured(answer, intent, BOOK, DAY)
    assert (entry.entry, entry.model, entry.service_tier) == (Entry.MEASURED, model, booked)
    if tenths == 0:
        assert (entry.cost_nano_usd, entry.prices) == (None, None)
    elif tenths is None:
        assert entry.cost_nano_usd
        assert entry.cost_nano_usd > 10_000_000
    else:
        assert entry.cost_nano_usd == Decimal(tenths) * 10_000_000
