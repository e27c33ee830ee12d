"""Token counts of one request, inclusive: cached and written tokens are part of the input."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Meter(StrEnum):
    """The rarer things OpenAI counts, by the names under which they are stored."""

    AUDIO_INPUT = "audio_input_tokens"
    """Part of the input."""
    IMAGE_INPUT = "image_input_tokens"
    """Part of the input; priced like text unless the model has a price of its own for images."""
    CACHE_WRITE_30M = "cache_write_30m_tokens"
    """Part of the cache writes, kept for 30 minutes; their ordinary kind and price."""
    CACHE_WRITE_12H = "cache_write_12h_tokens"
    """Part of the cache writes, kept for 12 hours."""
    AUDIO_OUTPUT = "audio_output_tokens"
    """Part of the output."""
    ACCEPTED_PREDICTION = "accepted_prediction_tokens"
    """Part of the output, priced as such."""
    REJECTED_PREDICTION = "rejected_prediction_tokens"
    """Part of the output, priced as such, though the answer does not show them."""
    WEB_SEARCH = "web_search_requests"
    FILE_SEARCH = "file_search_calls"
    CODE_INTERPRETER = "code_interpreter_sessions"
    """Containers that an answer used, each counted by every answer that used it: an upper bound."""
    IMAGE_GENERATION_INPUT = "image_generation_input_tokens"
    """Spent by a hosted tool, on a model of its own."""
    IMAGE_GENERATION_OUTPUT = "image_generation_output_tokens"
    """Likewise."""


INPUT_DETAIL: Final = "input."
OUTPUT_DETAIL: Final = "output."
"""How the meters begin that are parts of the input or output, and otherwise unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What OpenAI meters. `meters` holds the rarer ones by name (audio, image, tool calls, ...)."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    meters: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_tokens(self) -> int:
        """Tokens that count against a tokens-per-minute limit."""
        return self.input_tokens + self.output_tokens
