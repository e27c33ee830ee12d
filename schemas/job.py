"""A job, as a producer publishes it."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from schemas.names import Kind

DEFAULT_TENANT: Final = "default"

_SHORTSTR_BYTES: Final = 255
"""AMQP's short strings, in which the names travel as properties, hold 255 bytes."""


def _plain(text: str) -> str:
    """Accept printable text that fits an AMQP short string and a database text column."""
    if not text.isprintable() or text != text.strip():
        message = "must be printable, without surrounding spaces"
        raise ValueError(message)
    if len(text.encode()) > _SHORTSTR_BYTES:
        message = f"must be at most {_SHORTSTR_BYTES} bytes"
        raise ValueError(message)
    return text


_Plain = AfterValidator(_plain)
JobId = Annotated[str, Field(min_length=1), _Plain]
Tenant = Annotated[str, Field(min_length=1, max_length=128), _Plain]
LabelKey = Annotated[str, Field(min_length=1, max_length=64), _Plain]
LabelValue = Annotated[str, Field(max_length=255), _Plain]


class Options(BaseModel):
    """How a job is to be run. Durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    timeout_seconds: float | None = Field(default=None, gt=0, le=86_400)
    max_attempts: int | None = Field(default=None, ge=1, le=100)
    deadline: Annotated[AwareDatetime | None, Field(strict=False)] = None
    stream: bool = False
    cache: Literal["off"] = "off"
    max_rounds: int = Field(default=8, ge=1, le=100)
    tool_timeout_seconds: float = Field(default=30, gt=0, le=3600)


class Job(BaseModel):
    """One job. `(tenant, job_id)` is the idempotency key; `request` is the endpoint's JSON body."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    kind: Annotated[Kind, Field(strict=False)]
    job_id: JobId
    tenant: Tenant = DEFAULT_TENANT
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    request: dict[str, Any]
    options: Options = Options()
