"""OpenAI's answer, read once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import jiter

from schemas.names import Kind
from worker.domain.usage import INPUT_DETAIL, OUTPUT_DETAIL, Meter, Usage

_Object: TypeAlias = Mapping[str, Any]

_MOST: Final = 2**40
"""Counts from here on are nonsense, and what they would cost does not fit a database column."""

_NAME_CHARS: Final = 256
"""Of what answered; longer than any name, and short enough to sum up by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function the model wants called; `arguments` is the JSON text it wrote, valid or not."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A complete answer. `usage` is None where OpenAI sent none, or nonsense."""

    body: bytes
    data: Mapping[str, Any]
    model: str
    """As OpenAI names it; empty where the answer does not."""
    service_tier: str | None
    usage: Usage | None
    text: str | None
    """What the model said, without refusals; of several choices the first one's."""
    finish_reason: str | None
    """In the words of Chat Completions; for Responses also `failed`, `cancelled`, `queued`, `in_progress`."""
    tool_calls: Sequence[ToolCall] = ()


class GarbledAnswerError(Exception):
    """A 2xx whose body is not what the endpoint promises; the message never quotes it."""


def read_answer(kind: Kind, body: bytes) -> Answer:
    """Read the body of a 2xx of the kind's endpoint. Raises GarbledAnswerError."""
    try:
        data = jiter.from_json(body, allow_inf_nan=False, cache_mode="keys")
    except ValueError as error:
        raise GarbledAnswerError("it is not JSON") from error
    if not isinstance(data, dict):
        raise GarbledAnswerError("it is not a JSON object")
    read, usage_names = _SHAPES.get(kind, _CHAT)
    said = read(data)
    return Answer(
        body=body,
        data=data,
        model=(_text(data.get("model")) or "")[:_NAME_CHARS],
        service_tier=(_text(data.get("service_tier")) or "")[:_NAME_CHARS] or None,
        usage=_usage(data, usage_names),
        text=said.text,
        finish_reason=said.finish_reason,
        tool_calls=said.tool_calls,
    )


def read_usage(kind: Kind, data: Mapping[str, Any]) -> Usage | None:
    """Read the usage of a decoded answer, or of anything that carries usage under the same names.

    A batch names its counts as Responses do.
    """
    _, names = _SHAPES.get(Kind.ASSISTANT if kind is Kind.BATCH else kind, _CHAT)
    return _usage(data, names)


# ---------------------------------------------------------------- what was said


class _Said(NamedTuple):
    text: str | None
    finish_reason: str | None
    tool_calls: tuple[ToolCall, ...] = ()


def _chat(data: _Object) -> _Said:
    choice = next(_objects(data.get("choices")), {})
    message = choice.get("message")
    if not isinstance(message, dict):
        raise GarbledAnswerError("it holds no choice with a message")
    calls = (_chat_call(call) for call in _objects(message.get("tool_calls")))
    return _Said(_text(message.get("content")), _text(choice.get("finish_reason")), tuple(calls))


def _chat_call(call: _Object) -> ToolCall:
    custom = call.get("custom")
    if isinstance(custom, dict):
        return _tool_call(call.get("id"), custom.get("name"), custom.get("input"))
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    return _tool_call(call.get("id"), function.get("name"), function.get("arguments"))


def _response(data: _Object) -> _Said:
    status, output = data.get("status"), data.get("output")
    if not isinstance(status, str) or not isinstance(output, list):
        raise GarbledAnswerError("it holds no status or no output")
    texts = [
        part["text"]
        for item in _objects(output)
        for part in _objects(item.get("content"))
        if part.get("type") == "output_text" and isinstance(part.get("text"), str)
    ]
    calls = tuple(
        _tool_call(item.get("call_id"), item.get("name"), item.get(arguments))
        for item in _objects(output)
        if (arguments := _CALLS.get(_text(item.get("type"))))
    )
    return _Said("".join(texts) if texts else None, _response_finish(data, status, calls), calls)


_CALLS: Final[Mapping[str | None, str]] = {"function_call": "arguments", "custom_tool_call": "input"}


def _response_finish(data: _Object, status: str, calls: tuple[ToolCall, ...]) -> str:
    if status == "completed":
        return "tool_calls" if calls else "stop"
    if status == "incomplete":
        details = data.get("incomplete_details")
        reason = _text(details.get("reason")) if isinstance(details, dict) else None
        return "length" if reason == "max_output_tokens" else reason or status
    return status


def _embeddings(data: _Object) -> _Said:
    if not any("embedding" in item for item in _objects(data.get("data"))):
        raise GarbledAnswerError("it holds no embedding")
    return _Said(None, None)


def _objects(value: object) -> Iterator[_Object]:
    """Return the objects of what ought to be a list of them."""
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _tool_call(call_id: object, name: object, arguments: object) -> ToolCall:
    if not isinstance(call_id, str) or not isinstance(name, str) or not isinstance(arguments, str):
        raise GarbledAnswerError("it holds a tool call without id, name or arguments")
    return ToolCall(id=call_id, name=name, arguments=arguments)


# ---------------------------------------------------------------- what it used


class _Names(NamedTuple):
    input: str
    output: str | None


_INPUT_METERS: Final = {"audio_tokens": Meter.AUDIO_INPUT, "image_tokens": Meter.IMAGE_INPUT}
_WRITE_METERS: Final = {"ttl_30m_tokens": Meter.CACHE_WRITE_30M, "ttl_12h_tokens": Meter.CACHE_WRITE_12H}
_OUTPUT_METERS: Final = {
    "audio_tokens": Meter.AUDIO_OUTPUT,
    "accepted_prediction_tokens": Meter.ACCEPTED_PREDICTION,
    "rejected_prediction_tokens": Meter.REJECTED_PREDICTION,
}
_IN_COLUMNS: Final = frozenset({"cached_tokens", "cache_write_tokens", "reasoning_tokens", "text_tokens"})
"""Details that are columns of their own, or what remains of the whole."""
_SEARCH_METERS: Final = {"num_requests": Meter.WEB_SEARCH}
_TOOLS: Final = frozenset({"web_search", "image_gen"})
_NEW: Final = 32
"""So many entries are looked at for new ones."""
_DRAWING_METERS: Final = {
    "input_tokens": Meter.IMAGE_GENERATION_INPUT,
    "output_tokens": Meter.IMAGE_GENERATION_OUTPUT,
}


def _usage(data: _Object, names: _Names) -> Usage | None:
    """Return the usage if it can be true; what is wrong in any part is not billed from."""
    try:
        usage = _counts(data, names)
    except ValueError:
        return None
    return usage if _consistent(usage) else None


def _counts(data: _Object, names: _Names) -> Usage:
    usage = _part(data, "usage")
    inputs = _part(usage, f"{names.input}_details")
    outputs = _part(usage, f"{names.output}_details")
    meters = {
        **_details(INPUT_DETAIL, inputs, _INPUT_METERS),
        **_meters(_part(inputs, "cache_write_tokens_details"), _WRITE_METERS),
        **_details(OUTPUT_DETAIL, outputs, _OUTPUT_METERS),
        **(_tools(_part(data, "tool_usage")) if "tool_usage" in data else {}),
        **(_tool_calls(data["output"]) if "output" in data else {}),
    }
    return Usage(
        input_tokens=_required(usage, names.input),
        cached_input_tokens=_count(inputs.get("cached_tokens")),
        cache_write_tokens=_count(inputs.get("cache_write_tokens")),
        output_tokens=_required(usage, names.output) if names.output else 0,
        reasoning_tokens=_count(outputs.get("reasoning_tokens")),
        meters=meters,
    )


def _consistent(usage: Usage) -> bool:
    """Tell whether the parts fit into their wholes; and no request is without input."""
    meter = usage.meters.get
    return (
        usage.input_tokens > 0
        and usage.cached_input_tokens + usage.cache_write_tokens <= usage.input_tokens
        and meter(Meter.AUDIO_INPUT, 0) + meter(Meter.IMAGE_INPUT, 0) <= usage.input_tokens
        and meter(Meter.CACHE_WRITE_30M, 0) + meter(Meter.CACHE_WRITE_12H, 0) <= usage.cache_write_tokens
        and max(usage.reasoning_tokens, meter(Meter.AUDIO_OUTPUT, 0)) <= usage.output_tokens
    )


def _part(whole: _Object, name: str) -> _Object:
    part = whole.get(name)
    if part is not None and not isinstance(part, dict):
        raise ValueError("no object")
    return part or {}


def _meters(part: _Object, names: Mapping[str, Meter]) -> dict[str, int]:
    return {names[name].value: count for name in part if name in names and (count := _count(part[name]))}


def _details(prefix: str, part: _Object, known: Mapping[str, Meter]) -> dict[str, int]:
    """Return parts of the input or output, those too that this program has never heard of."""
    found: dict[str, int] = {}
    for number, (name, count) in enumerate(part.items()):
        if name in known:
            if _count(count):
                found[known[name].value] = count
        elif number < _NEW and name not in _IN_COLUMNS and _is_new(name, count):
            found[prefix + name] = count
    return found


def _tools(used: _Object) -> dict[str, int]:
    """Return what hosted tools have used, as far as OpenAI counts it itself."""
    return {
        **_meters(_part(used, "web_search"), _SEARCH_METERS),
        **_meters(_part(used, "image_gen"), _DRAWING_METERS),
        **_new_tools(used),
    }


def _tool_calls(output: object) -> dict[str, int]:
    """Return what is billed by the call, or by the container."""
    searches = sum(item.get("type") == "file_search_call" for item in _objects(output))
    containers = {
        str(item.get("container_id"))
        for item in _objects(output)
        if item.get("type") == "code_interpreter_call"
    }
    counts = {Meter.FILE_SEARCH.value: searches, Meter.CODE_INTERPRETER.value: len(containers)}
    return {name: count for name, count in counts.items() if count}


def _new_tools(tools: _Object) -> dict[str, int]:
    """Return what hosted tools have used that this program has never heard of."""
    return {
        f"{tool}.{name}": count
        for tool, used in islice(tools.items(), _NEW)
        if tool not in _TOOLS and isinstance(used, dict)
        for name, count in islice(used.items(), _NEW)
        if _is_new(f"{tool}_{name}", count)
    }


def _is_new(name: str, count: object) -> bool:
    fit = len(name) <= _NAME_CHARS and name.isascii() and name.isidentifier()
    return fit and type(count) is int and 0 < count < _MOST


def _required(part: _Object, name: str) -> int:
    if part.get(name) is None:
        raise ValueError("missing")
    return _count(part[name])


def _count(value: object) -> int:
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError("no count")
    return value


_Shape: TypeAlias = tuple[Callable[[_Object], _Said], _Names]
_CHAT: Final[_Shape] = (_chat, _Names("prompt_tokens", "completion_tokens"))
_SHAPES: Final[Mapping[Kind, _Shape]] = {
    Kind.ASSISTANT: (_response, _Names("input_tokens", "output_tokens")),
    Kind.EMBEDDING: (_embeddings, _Names("prompt_tokens", None)),
}
