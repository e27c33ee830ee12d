"""Answers as OpenAI would shape them, computed from the request."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_DEFAULT_OUTPUT = 16


def answer_to(
    path: str, body: Any, number: int, *, text: str | None, tool_calls: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a complete answer of the endpoint of that path."""
    if path.endswith("/models"):
        names = ("gpt-4o-mini", "gpt-6-luna", "text-embedding-3-small")
        ends = {"gpt-4o-mini": "2027-01-14"}
        data = [
            {
                "id": name,
                "object": "model",
                "created": 1,
                "owned_by": "openai",
                "shutdown_date": ends.get(name),
            }
            for name in names
        ]
        return {"object": "list", "data": data}
    calls = _calls(tool_calls, number)
    if text is None and not calls:
        text = f"echo: {text_of(body)[-200:]}"
    if path.endswith("/embeddings"):
        return _embeddings(body)
    return (
        _response(body, number, text, calls)
        if path.endswith("/responses")
        else _chat(body, number, text, calls)
    )


def text_of(body: Any) -> str:
    """Return all text of a request: messages, input or prompt, in order."""
    return " ".join(_texts(body.get("messages") or body.get("input") or body.get("prompt") or ""))


def estimate(path: str, body: Any) -> int:
    """Return what OpenAI counts at admission: the input, and the most that may be put out."""
    if path.endswith("/embeddings"):
        return tokens(text_of(body))
    limits = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    most = next((body[name] for name in limits if isinstance(body.get(name), int)), _DEFAULT_OUTPUT)
    return tokens(text_of(body)) + most


def tokens(text: str) -> int:
    """Return a rough count, at least 1."""
    return len(text) // 4 + 1


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name in ("text", "content"):
            yield from _texts(value.get(name))


def _calls(tool_calls: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, str]]:
    return [
        {
            "id": f"call_{number}_{i}",
            "name": call["name"],
            "arguments": call["arguments"]
            if isinstance(call.get("arguments"), str)
            else json.dumps(call.get("arguments", {})),
        }
        for i, call in enumerate(tool_calls)
    ]


def _chat(body: Any, number: int, text: str | None, calls: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message["tool_calls"] = [
            {
                "id": one["id"],
                "type": "function",
                "function": {"name": one["name"], "arguments": one["arguments"]},
            }
            for one in calls
        ]
    used, made = tokens(text_of(body)), tokens(text or "") + sum(tokens(one["arguments"]) for one in calls)
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": body.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
        "usage": {
            "prompt_tokens": used,
            "completion_tokens": made,
            "total_tokens": used + made,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "service_tier": "default",
    }


def _response(body: Any, number: int, text: str | None, calls: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    output: list[dict[str, Any]] = []
    if text is not None:
        part = {"type": "output_text", "text": text, "annotations": []}
        output.append({"type": "message", "id": f"msg_{number}", "role": "assistant", "content": [part]})
    output += [
        {"type": "function_call", "call_id": one["id"], "name": one["name"], "arguments": one["arguments"]}
        for one in calls
    ]
    used, made = tokens(text_of(body)), tokens(text or "")
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": "completed",
        "model": body.get("model"),
        "output": output,
        "usage": {
            "input_tokens": used,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used + made,
        },
        "service_tier": "default",
    }


def _embeddings(body: Any) -> dict[str, Any]:
    given = body.get("input", "")
    inputs = given if isinstance(given, list) else [given]
    used = sum(tokens(one) if isinstance(one, str) else len(one) for one in inputs)
    return {
        "object": "list",
        "model": body.get("model"),
        "data": [
            {"object": "embedding", "index": i, "embedding": [0.0, 0.25, -0.5, 1.0]}
            for i in range(len(inputs))
        ],
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
