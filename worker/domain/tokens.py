"""What a request will use, counted without a tokenizer.

Texts are counted by their length in UTF-8, images by OpenAI's published
formulas, the output by the maximum that the request allows. These figures are
meant to lie above the true ones; limits and budgets are corrected by the real
usage once it is known. Without a maximum the output is a guess, and no bound.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from worker.domain.image_tokens import image_tokens
from worker.domain.images import ImageError, Size, is_data_url, parse_data_url
from worker.domain.usage import Usage

DEFAULT_OUTPUT_TOKENS: Final = 1024
"""Stands in for the answer where the request sets no maximum: a guess, and no upper bound.

A model's longest answer would be one, and a hundred times what answers are: a few
requests in flight would hold a whole budget, and a killed worker would leave a bill
that nobody believes. Limits reserve the mean of settled requests once it is known.
"""

_MAXIMA: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_PER_REQUEST: Final = 8
_PER_MESSAGE: Final = 4
_PER_PART: Final = 2
_AUDIO_CHARS_PER_TOKEN: Final = 1000
"""Base64 of compressed speech; a token is about a tenth of a second."""
_FILE_CHARS_PER_TOKEN: Final = 8
"""Base64 of a document, whose text and pages both count."""
_UNKNOWN_FILE: Final = 4096
"""A document that is only referred to."""
_MAX_COUNT: Final = 1 << 40
"""Larger numbers are no honest maximum; they must not overflow a database column."""


def chat_usage(request: Mapping[str, Any], default_output: int = DEFAULT_OUTPUT_TOKENS) -> Usage:
    """Estimate a Chat Completions request: an upper bound where it sets a maximum."""
    model = _text_of(request.get("model"))
    tokens = _PER_REQUEST + _messages(request.get("messages"), model) + _definitions(request)
    limit = (
        _count(request.get("max_completion_tokens")) or _count(request.get("max_tokens")) or default_output
    )
    output = min(limit * (_count(request.get("n")) or 1), _MAX_COUNT)
    return Usage(input_tokens=tokens, output_tokens=output)


def responses_usage(request: Mapping[str, Any], default_output: int = DEFAULT_OUTPUT_TOKENS) -> Usage:
    """Estimate a Responses request likewise; what OpenAI keeps of earlier turns is not in it."""
    model = _text_of(request.get("model"))
    source = request.get("input")
    tokens = _PER_REQUEST + text_tokens(_text_of(request.get("instructions"))) + _definitions(request)
    tokens += text_tokens(source) if isinstance(source, str) else _messages(source, model)
    limit = _count(request.get("max_output_tokens")) or default_output
    return Usage(input_tokens=tokens, output_tokens=limit)


def embedding_usage(request: Mapping[str, Any]) -> Usage:
    """Return an upper bound for an Embeddings request: texts, or tokens already counted."""
    source = request.get("input")
    if isinstance(source, str):
        return Usage(input_tokens=text_tokens(source))
    return Usage(input_tokens=_embedded(source) if isinstance(source, list) else 0)


def has_maximum(request: Mapping[str, Any]) -> bool:
    """Whether a request bounds its own output."""
    return any(_count(request.get(name)) for name in _MAXIMA)


def text_tokens(text: str) -> int:
    """Return the tokens of a text: 3.5 bytes each, a fifth more than English prose needs."""
    size = len(text) if text.isascii() else len(text.encode())
    return (size * 2 + 6) // 7


def _embedded(source: Sequence[Any]) -> int:
    if source and isinstance(source[0], int):
        return len(source)
    return sum(text_tokens(item) if isinstance(item, str) else len(item) for item in source if _sized(item))


def _sized(item: object) -> bool:
    return isinstance(item, str | list)


def _messages(messages: object, model: str) -> int:
    """Count messages or input items."""
    if not isinstance(messages, list):
        return 0
    return sum(_PER_MESSAGE + _message(message, model) for message in messages if isinstance(message, dict))


def _message(message: Mapping[str, Any], model: str) -> int:
    """Count one message; a plain text is the common case and costs one look, without a call."""
    total = 0
    for key, value in message.items():
        if isinstance(value, str):
            size = len(value) if value.isascii() else len(value.encode())
            total += (size * 2 + 6) // 7
        elif key == "content":
            total += _parts(value, model)
        elif value:
            total += _json(value)
    return total


def _parts(content: object, model: str) -> int:
    if not isinstance(content, list):
        return 0
    return sum(_PER_PART + _part(part, model) for part in content if isinstance(part, dict))


def _part(part: Mapping[str, Any], model: str) -> int:
    match part.get("type"):
        case "image_url" | "input_image":
            return _image(part, model)
        case "input_audio":
            return len(_data_of(part.get("input_audio"), "data")) // _AUDIO_CHARS_PER_TOKEN
        case "file" | "input_file":
            data = _data_of(part.get("file", part), "file_data")
            return len(data) // _FILE_CHARS_PER_TOKEN if data else _UNKNOWN_FILE
        case _:
            return sum(text_tokens(value) for value in part.values() if isinstance(value, str))


def _image(part: Mapping[str, Any], model: str) -> int:
    """Count an image of either endpoint: `image_url` is an object in one and a string in the other."""
    source = part.get("image_url")
    holder = source if isinstance(source, dict) else part
    url = _text_of(holder.get("url") if isinstance(source, dict) else source)
    return image_tokens(model, _text_of(holder.get("detail")), _size(url) if is_data_url(url) else None)


def _size(url: str) -> Size | None:
    try:
        return parse_data_url(url)[1].size()
    except (ImageError, ValueError):
        return None


def _definitions(request: Mapping[str, Any]) -> int:
    """Count what the model reads besides messages: tools and output formats."""
    return sum(
        _json(request[key]) for key in ("tools", "functions", "response_format", "text") if request.get(key)
    )


def _json(value: object) -> int:
    try:
        return (len(orjson.dumps(value)) * 2 + 6) // 7
    except TypeError:
        return 0


def _data_of(holder: object, key: str) -> str:
    return _text_of(holder.get(key)) if isinstance(holder, dict) else ""


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    """Return a positive number; OpenAI will refuse what is none."""
    return min(value, _MAX_COUNT) if isinstance(value, int) and value > 0 else 0
