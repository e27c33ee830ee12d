"""A piece of an answer, sent before the reply when a job asks for streaming."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Delta(BaseModel):
    """What was added; exactly one field is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str | None = None
    tool_call: dict[str, Any] | None = None
    refusal: str | None = None


class Chunk(BaseModel):
    """`seq` counts from 0 in each attempt; a higher `attempt` replaces what came before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    job_id: str
    tenant: str
    attempt: int
    seq: int
    delta: Delta
