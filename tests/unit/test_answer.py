"""Reading OpenAI's answers."""

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.names import Kind
from worker.domain.answer import GarbledAnswerError, ToolCall, read_answer
from worker.domain.usage import Meter, Usage


def chat(**changes: Any) -> dict[str, Any]:
    """Return a good chat completion with some fields replaced."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-6-luna-2026-09-01",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
        "service_tier": "default",
    } | changes


def response(*output: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a good response with this output and some fields replaced."""
    return {
        "id": "resp_1",
        "status": "completed",
        "model": "gpt-6-luna",
        "output": list(output),
        "usage": {"input_tokens": 10, "output_tokens": 3, "total_tokens": 13},
    } | changes


def said(text: str, kind: str = "output_text") -> dict[str, Any]:
    """Return one message of a response."""
    return {"type": "message", "content": [{"type": kind, "text": text, "refusal": text}]}


def test_reads_a_completion() -> None:
    """Model and tier are those that answered; the body stays as received."""
    body = orjson.dumps(chat())
    answer = read_answer(Kind.COMPLETION, body)
    assert (answer.text, answer.finish_reason, answer.tool_calls) == ("Paris.", "stop", ())
    assert (answer.model, answer.service_tier) == ("gpt-6-luna-2026-09-01", "default")
    assert answer.usage == Usage(input_tokens=10, output_tokens=3)
    assert answer.body is body


@pytest.mark.parametrize("kind", [Kind.COMPLETION, Kind.TOOL, Kind.VISION])
def test_reads_tool_calls(kind: Kind) -> None:
    """Arguments stay the text that the model wrote, even where it is no JSON; custom tools count too."""
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": '}},
        {"id": "call_2", "type": "custom", "custom": {"name": "shell", "input": "ls"}},
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    answer = read_answer(
        kind, orjson.dumps(chat(choices=[{"message": message, "finish_reason": "tool_calls"}]))
    )
    assert answer.text is None
    assert answer.tool_calls == (
        ToolCall(id="call_1", name="weather", arguments='{"city": '),
        ToolCall(id="call_2", name="shell", arguments="ls"),
    )


def test_a_refusal_is_no_text() -> None:
    """What the model refused to do is not passed off as its answer."""
    message = {"role": "assistant", "content": None, "refusal": "I can't help with that."}
    answer = read_answer(Kind.COMPLETION, orjson.dumps(chat(choices=[{"message": message}])))
    assert answer.text is None


def test_several_choices_give_the_first_text() -> None:
    """With n > 1 the first choice is the text; all of them are in the data."""
    choices = [{"message": {"content": text}, "finish_reason": "length"} for text in ("one", "two")]
    answer = read_answer(Kind.COMPLETION, orjson.dumps(chat(choices=choices)))
    assert (answer.text, answer.finish_reason, len(answer.data["choices"])) == ("one", "length", 2)


def test_reads_a_response() -> None:
    """Texts of all messages are joined; reasoning and refusals are not text."""
    body = response({"type": "reasoning", "content": []}, said("Par"), said("no", "refusal"), said("is."))
    answer = read_answer(Kind.ASSISTANT, orjson.dumps(body))
    assert (answer.text, answer.finish_reason, answer.service_tier) == ("Paris.", "stop", None)
    assert answer.usage == Usage(input_tokens=10, output_tokens=3)


def test_reads_the_calls_of_a_response() -> None:
    """Function calls are named by their call id, which the next request must quote."""
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": "{}"}
    custom = {"type": "custom_tool_call", "call_id": "call_2", "name": "shell", "input": "ls"}
    answer = read_answer(Kind.ASSISTANT, orjson.dumps(response(call, custom)))
    assert (answer.text, answer.finish_reason) == (None, "tool_calls")
    assert [(one.id, one.arguments) for one in answer.tool_calls] == [("call_1", "{}"), ("call_2", "ls")]


@pytest.mark.parametrize(
    ("changes", "finish"),
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ({"status": "incomplete", "incomplete_details": None}, "incomplete"),
        ({"status": "failed", "error": {"code": "server_error"}, "usage": None}, "failed"),
        ({"status": "queued", "usage": None}, "queued"),
    ],
)
def test_tells_how_a_response_ended(changes: dict[str, Any], finish: str) -> None:
    """A response that failed with status 200 is not taken for a success."""
    assert read_answer(Kind.ASSISTANT, orjson.dumps(response(**changes))).finish_reason == finish


def test_reads_embeddings() -> None:
    """Embeddings have input only, and no text."""
    body = {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": "AAAAPw=="}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    answer = read_answer(Kind.EMBEDDING, orjson.dumps(body))
    assert (answer.text, answer.usage) == (None, Usage(input_tokens=5))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.COMPLETION, b"<html><body>502</body></html>"),
        (Kind.COMPLETION, b""),
        (Kind.COMPLETION, b"null"),
        (Kind.COMPLETION, b"[]"),
        (Kind.COMPLETION, b'"fine"'),
        (Kind.COMPLETION, b"{}"),
        (Kind.COMPLETION, b'{"choices": []}'),
        (Kind.COMPLETION, b'{"choices": "none"}'),
        (Kind.COMPLETION, b'{"choices": [{}]}'),
        (Kind.COMPLETION, b'{"choices": [{"message": "hi"}]}'),
        (Kind.COMPLETION, b'{"choices": [{"message": {"content": "hi"}}], "created": NaN}'),
        (Kind.COMPLETION, b'{"choices": [{"message": {"content": "hi"}'),
        (Kind.COMPLETION, b'{"choices": [{"message": {"content": "\xff"}}]}'),
        (Kind.TOOL, b'{"choices": [{"message": {"tool_calls": [{"id": "call_1"}]}}]}'),
        (Kind.ASSISTANT, b'{"choices": [{"message": {"content": "hi"}}]}'),
        (Kind.ASSISTANT, b'{"status": "completed"}'),
        (Kind.ASSISTANT, b'{"status": "completed", "output": [{"type": "function_call"}]}'),
        (Kind.EMBEDDING, b'{"data": []}'),
        (Kind.EMBEDDING, b'{"data": [1]}'),
        (Kind.COMPLETION, b"[" * 100_000),
        (Kind.COMPLETION, b'{"created": ' + b"9" * 10_000 + b"}"),
    ],
)
def test_garbage_is_no_answer(kind: Kind, body: bytes) -> None:
    """What is not an answer never becomes one, and the error quotes nothing of it."""
    with pytest.raises(GarbledAnswerError) as caught:
        read_answer(kind, body)
    assert "hi" not in str(caught.value)


_USAGES: list[tuple[Kind, dict[str, Any], Usage | None]] = [
    (
        Kind.COMPLETION,
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "prompt_tokens_details": {
                "cached_tokens": 60,
                "cache_write_tokens": 30,
                "audio_tokens": 5,
                "image_tokens": 6,
                "text_tokens": 89,
            },
            "completion_tokens_details": {
                "reasoning_tokens": 20,
                "audio_tokens": 7,
                "accepted_prediction_tokens": 8,
                "rejected_prediction_tokens": 9,
            },
        },
        Usage(
            input_tokens=100,
            cached_input_tokens=60,
            cache_write_tokens=30,
            output_tokens=50,
            reasoning_tokens=20,
            meters={
                Meter.AUDIO_INPUT: 5,
                Meter.IMAGE_INPUT: 6,
                Meter.AUDIO_OUTPUT: 7,
                Meter.ACCEPTED_PREDICTION: 8,
                Meter.REJECTED_PREDICTION: 9,
            },
        ),
    ),
    (
        Kind.ASSISTANT,
        {
            "input_tokens": 100,
            "output_tokens": 50,
            "input_tokens_details": {
                "cached_tokens": 10,
                "cache_write_tokens": 40,
                "cache_write_tokens_details": {"ttl_30m_tokens": 15, "ttl_12h_tokens": 25},
            },
            "output_tokens_details": {"reasoning_tokens": 50},
        },
        Usage(
            input_tokens=100,
            cached_input_tokens=10,
            cache_write_tokens=40,
            output_tokens=50,
            reasoning_tokens=50,
            meters={Meter.CACHE_WRITE_30M: 15, Meter.CACHE_WRITE_12H: 25},
        ),
    ),
    (
        Kind.COMPLETION,
        {"prompt_tokens": 1, "completion_tokens": 0, "prompt_tokens_details": None},
        Usage(input_tokens=1),
    ),
    (Kind.COMPLETION, {"prompt_tokens": 2**40 - 1, "completion_tokens": 0}, Usage(input_tokens=2**40 - 1)),
    (Kind.EMBEDDING, {"prompt_tokens": 5, "total_tokens": 5}, Usage(input_tokens=5)),
    # Nonsense: it cannot be billed from.
    (Kind.COMPLETION, {"prompt_tokens": "12", "completion_tokens": 3}, None),
    (Kind.COMPLETION, {"prompt_tokens": -1, "completion_tokens": 3}, None),
    (Kind.COMPLETION, {"prompt_tokens": 0, "completion_tokens": 0}, None),
    (Kind.COMPLETION, {"prompt_tokens": 1.0, "completion_tokens": 3}, None),
    (Kind.COMPLETION, {"prompt_tokens": True, "completion_tokens": 3}, None),
    (Kind.COMPLETION, {"prompt_tokens": 2**40, "completion_tokens": 3}, None),
    (Kind.COMPLETION, {"prompt_tokens": 2**63, "completion_tokens": 3}, None),
    (Kind.COMPLETION, {"prompt_tokens": 10}, None),
    (Kind.COMPLETION, {"prompt_tokens": 10, "completion_tokens": None}, None),
    (Kind.COMPLETION, {"input_tokens": 10, "output_tokens": 3}, None),
    (Kind.COMPLETION, {}, None),
    (
        Kind.COMPLETION,
        {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 11}},
        None,
    ),
    (
        Kind.COMPLETION,
        {
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 5},
        },
        None,
    ),
    (
        Kind.COMPLETION,
        {"prompt_tokens": 10, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 4}},
        None,
    ),
    (Kind.COMPLETION, {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": [1]}, None),
]


@pytest.mark.parametrize(("kind", "usage", "expected"), _USAGES)
def test_reads_usage_or_nothing(kind: Kind, usage: dict[str, Any], expected: Usage | None) -> None:
    """Every meter is kept; what cannot be true is no usage at all."""
    bodies = {Kind.ASSISTANT: response(), Kind.EMBEDDING: {"data": [{"embedding": []}]}}
    body = bodies.get(kind, chat()) | {"usage": usage}
    assert read_answer(kind, orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)).usage == expected


@pytest.mark.parametrize("usage", [None, "none", 7, []])
def test_usage_may_be_missing(usage: object) -> None:
    """An answer without usage is an answer, whose cost must be estimated."""
    answer = read_answer(Kind.COMPLETION, orjson.dumps(chat(usage=usage)))
    assert (answer.text, answer.usage) == ("Paris.", None)


def test_counts_hosted_tools() -> None:
    """Searches are counted by call, and drawing by the tokens of its own model."""
    tools = {"web_search": {"num_requests": 2}, "image_gen": {"input_tokens": 30, "output_tokens": 400}}
    searches = [{"type": "file_search_call", "id": "fs_1"}, {"type": "file_search_call", "id": "fs_2"}]
    answer = read_answer(Kind.ASSISTANT, orjson.dumps(response(*searches, tool_usage=tools)))
    assert answer.usage is not None
    assert answer.usage.meters == {
        Meter.WEB_SEARCH: 2,
        Meter.FILE_SEARCH: 2,
        Meter.IMAGE_GENERATION_INPUT: 30,
        Meter.IMAGE_GENERATION_OUTPUT: 400,
    }


def test_counts_what_is_new() -> None:
    """Details and tools that nobody here has heard of are kept by their names, if these are any."""
    details = {"text_tokens": 5, "video_tokens": 3, "smell_tokens": 0, "\u0000": 1, "odd": -1, "x" * 999: 1}
    usage = {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": details}
    usage["output_tokens_details"] = {"reasoning_tokens": 1, "drawn_tokens": 2, "note": "hello", "deep": {}}
    tools = {"web_search": {"num_requests": 1, "other": 5}, "lab": {"runs": 7, "name": "x"}, "plain": 3}
    answer = read_answer(Kind.ASSISTANT, orjson.dumps(response(usage=usage, tool_usage=tools)))
    assert answer.usage is not None
    assert answer.usage.meters == {
        "input.video_tokens": 3,
        "output.drawn_tokens": 2,
        Meter.WEB_SEARCH: 1,
        "lab.runs": 7,
    }


def test_names_are_cut() -> None:
    """What answers cannot choose a name that is too long to sum up by."""
    answer = read_answer(Kind.COMPLETION, orjson.dumps(chat(model="m" * 10_000, service_tier="t" * 10_000)))
    assert answer.service_tier is not None
    assert (len(answer.model), len(answer.service_tier)) == (256, 256)


def test_meters_are_plain_names() -> None:
    """Meters can be stored as JSON by anything."""
    usage = {"prompt_tokens": 9, "completion_tokens": 0, "prompt_tokens_details": {"audio_tokens": 1}}
    answer = read_answer(Kind.COMPLETION, orjson.dumps(chat(usage=usage)))
    assert answer.usage is not None
    assert [type(name) for name in answer.usage.meters] == [str]


def test_a_nameless_model_stays_nameless() -> None:
    """An answer that names no model is kept: it was paid for."""
    body = chat()
    del body["model"]
    assert read_answer(Kind.COMPLETION, orjson.dumps(body)).model == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "tool_calls",
                    "usage",
                    "data",
                    "output",
                    "status",
                    "type",
                    "text",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.sampled_from([Kind.COMPLETION, Kind.ASSISTANT, Kind.EMBEDDING]), _JSON)
def test_any_json_is_an_answer_or_garbled(kind: Kind, data: Any) -> None:
    """Whatever arrives, reading it ends in one of two ways."""
    with suppress(GarbledAnswerError):
        read_answer(kind, orjson.dumps(data))


@pytest.mark.parametrize("odd", [[], {}, 1, None])
def test_odd_types_are_no_calls(odd: object) -> None:
    """An output item of no known type is passed over."""
    answer = read_answer(Kind.ASSISTANT, orjson.dumps(response({"type": odd}, said("Paris."))))
    assert (answer.text, answer.tool_calls) == ("Paris.", ())
