"""Token counts of one request, inclusive: cached and written tokens are part of the input."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
