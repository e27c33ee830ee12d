"""The usage part of a reply."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class CostStatus(StrEnum):
    """How far `cost_usd` can be trusted."""

    PRICED = "priced"
    ESTIMATED = "estimated"
    UNPRICED = "unpriced"


class Usage(BaseModel):
    """Tokens and cost of one job, summed over its requests.

    `cached_input_tokens` and `cache_write_tokens` are parts of `input_tokens`,
    `reasoning_tokens` is a part of `output_tokens`. `cost_usd` is a decimal
    string with nine places, null when the cost is unpriced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: str | None
    cost_status: CostStatus
