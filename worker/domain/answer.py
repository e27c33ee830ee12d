"""OpenAI's answer, read once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.domain.usage import Usage


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
    service_tier: str | None
    usage: Usage | None
    text: str | None
    finish_reason: str | None
    tool_calls: Sequence[ToolCall] = ()


class GarbledAnswerError(Exception):
    """A 2xx whose body is not what the endpoint promises; the message never quotes it."""
