"""Estimates lie at or above the truth, and images cost what OpenAI's guide says."""

import base64
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.image_tokens import image_tokens
from worker.domain.images import Size
from worker.domain.tokens import (
    DEFAULT_OUTPUT_TOKENS,
    chat_usage,
    embedding_usage,
    responses_usage,
    text_tokens,
)


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    """Return a chat request."""
    messages = [{"role": "user", "content": content} for content in contents]
    return {"model": "gpt-6-luna", "messages": messages, **more}


@pytest.mark.parametrize(
    ("text", "true_count"),
    [
        # One token a word or mark.
        ("", 0),
        ("Hello, world!", 4),
        ("The quick brown fox jumps over the lazy dog.", 10),
    ],
)
def test_prose_is_counted_high(text: str, true_count: int) -> None:
    """An estimate of prose is not below the tokenizer's count, and not twice it either."""
    assert true_count <= text_tokens(text) <= true_count * 2


def test_every_script_counts_by_its_bytes() -> None:
    """Scripts of more bytes a letter need more tokens a letter."""
    assert text_tokens("\u6f22" * 70) == text_tokens("a" * 210) == 60


@pytest.mark.parametrize(
    ("parameters", "output"),
    [
        ({}, DEFAULT_OUTPUT_TOKENS),
        ({"max_completion_tokens": 50}, 50),
        ({"max_tokens": 60}, 60),
        ({"max_tokens": 60, "max_completion_tokens": 50}, 50),
        ({"max_tokens": 60, "n": 3}, 180),
        ({"n": 2}, 2 * DEFAULT_OUTPUT_TOKENS),
        ({"max_tokens": "many"}, DEFAULT_OUTPUT_TOKENS),
        ({"max_tokens": -5, "n": -1}, DEFAULT_OUTPUT_TOKENS),
        ({"max_tokens": None, "n": None}, DEFAULT_OUTPUT_TOKENS),
        ({"max_tokens": 2**63, "n": 2**63}, 2**40),
    ],
)
def test_the_output_is_the_maximum_times_the_choices(parameters: dict[str, Any], output: int) -> None:
    """What is set counts, what is no number does not, and nothing overflows."""
    assert chat_usage(chat("hi", **parameters)).output_tokens == output


def test_a_default_output_may_be_given() -> None:
    """Where the request sets no maximum, the caller knows better."""
    assert chat_usage(chat("hi"), 77).output_tokens == 77
    assert responses_usage({"model": "m", "input": "hi"}, 77).output_tokens == 77


def test_all_that_the_model_reads_is_counted() -> None:
    """Longer messages, more messages, names, calls, tools and formats each add tokens."""
    base = chat_usage(chat("hi")).input_tokens
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    larger: list[dict[str, Any]] = [
        chat("hi" * 50),
        chat("hi", "hi"),
        chat([{"type": "text", "text": "hi" * 50}]),
        chat("hi", tools=[{"type": "function", "function": {"name": "f" * 50}}]),
        chat("hi", response_format={"type": "json_schema", "json_schema": {"schema": {"a": "b" * 50}}}),
        {"messages": [{"role": "assistant", "content": "hi", "tool_calls": [call]}]},
        chat([{"type": "input_audio", "input_audio": {"data": "A" * 50_000, "format": "mp3"}}]),
        chat([{"type": "file", "file": {"file_data": "A" * 50_000}}]),
        chat([{"type": "file", "file": {"file_id": "file-1"}}]),
    ]
    for request in larger:
        assert chat_usage(request).input_tokens > base


def test_base64_is_not_counted_as_text() -> None:
    """An image of a megabyte costs by its pixels."""
    header = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + struct.pack(">II", 64, 64)
    url = "data:image/png;base64," + base64.b64encode(header + b"\0" * 1_000_000).decode()
    for detail, tokens in (({}, 5), ({"detail": "low"}, 308)):
        part = {"type": "image_url", "image_url": {"url": url, **detail}}
        assert chat_usage(chat([part])).input_tokens - chat_usage(chat([])).input_tokens == tokens + 2


def test_responses_count_text_and_items() -> None:
    """Input may be a text or items; instructions count, images too."""
    text = responses_usage({"model": "gpt-6-luna", "input": "x" * 350, "max_output_tokens": 9})
    assert (text.input_tokens, text.output_tokens) == (108, 9)
    part = {"type": "input_image", "image_url": "https://example.com/x.png", "detail": "low"}
    items = {"model": "gpt-6-luna", "input": [{"role": "user", "content": [part]}]}
    assert 308 < responses_usage(items).input_tokens < 340
    assert responses_usage({**items, "instructions": "x" * 350}).input_tokens > 400


@pytest.mark.parametrize(
    ("source", "tokens"),
    [
        ("x" * 35, 10),
        (["x" * 35, "x" * 70], 30),
        ([1, 2, 3], 3),
        ([[1, 2, 3], [4]], 4),
        ([], 0),
        (None, 0),
        ([None, {}], 0),
    ],
)
def test_embedding_inputs_are_texts_or_tokens(source: Any, tokens: int) -> None:
    """Tokens that are already counted stay counted."""
    assert embedding_usage({"input": source}).total_tokens == tokens


@pytest.mark.parametrize(
    ("model", "detail", "size", "tokens"),
    [
        # The examples of OpenAI's guide.
        ("gpt-4o", "high", Size(1024, 1024), 765),
        ("gpt-4o", "high", Size(2048, 4096), 1105),
        ("gpt-4o", "low", Size(4096, 8192), 85),
        ("gpt-4.1-mini", "high", Size(1024, 1024), 1659),
        ("gpt-4.1-mini", "high", Size(1800, 2400), 2353),
        # The other families, by hand from its tables.
        ("gpt-4o-2024-11-20", "auto", Size(512, 512), 255),
        ("gpt-4o-mini", "high", Size(512, 512), 8500),
        ("ft:gpt-4o-mini:acme::x", "high", Size(512, 512), 8500),
        ("gpt-5", "high", Size(512, 512), 210),
        ("gpt-5-nano", "high", Size(320, 320), 246),
        ("o3", "high", Size(512, 512), 225),
        ("gpt-5.4", "high", Size(4000, 4000), 3000),
        ("gpt-5.4", "original", Size(3200, 3200), 12_000),
        ("gpt-5.4", "original", Size(32_000, 32_000), 12_000),
        ("gpt-5.5", "", Size(3200, 3200), 12_000),
        ("gpt-5.6-luna", "auto", Size(32_000, 32_000), 1_200_000),
        ("gpt-6-luna", "high", Size(4000, 4000), 3000),
        ("gpt-6-luna", "low", Size(4000, 4000), 308),
        # Of what nothing is known: the dearer way, an ordinary size.
        ("brand-new", "high", Size(64, 64), 255),
        ("brand-new", "auto", Size(3200, 3200), 12_000),
        ("gpt-4o", "high", None, 765),
        ("gpt-6-luna", "auto", None, 4916),
        ("gpt-6-luna", "auto", Size(0, 0), 4916),
    ],
)
def test_images_cost_what_the_guide_says(model: str, detail: str, size: Size | None, tokens: int) -> None:
    """Tiles for the older families, patches for the newer, by detail."""
    assert image_tokens(model, detail, size) == tokens


@given(
    st.sampled_from(["gpt-4o", "gpt-4.1-mini", "gpt-5.4", "gpt-6-luna", "?"]),
    st.sampled_from(["low", "high", "original", "auto", ""]),
    st.integers(1, 32_768),
    st.integers(1, 32_768),
)
def test_any_shape_has_a_positive_price(model: str, detail: str, width: int, height: int) -> None:
    """Slivers and giants do not break the formulas, and a budget is kept."""
    tokens = image_tokens(model, detail, Size(width, height))
    assert tokens > 0
    if detail == "high":
        assert tokens <= 3000
