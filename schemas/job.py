"""A job, as a producer publishes it."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from schemas.names import SERVED, Kind

DEFAULT_TENANT: Final = "default"
MAX_MODEL_CHARS: Final = 256
"""Of a model's name, which must also be printable."""

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


class _AsSchema:
    """Tells the JSON Schema what it can hold of `_plain`: it counts characters and knows no printing."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core)
        schema.setdefault("maxLength", _SHORTSTR_BYTES)
        schema["pattern"] = r"^(\S(.*\S)?)?$"
        schema["description"] = (
            f"Printable, without surrounding spaces, at most {_SHORTSTR_BYTES} bytes of UTF-8."
        )
        return schema


_Plain = AfterValidator(_plain)
JobId = Annotated[str, Field(min_length=1), _Plain, _AsSchema()]
Tenant = Annotated[str, Field(min_length=1, max_length=128), _Plain, _AsSchema()]
LabelKey = Annotated[str, Field(min_length=1, max_length=64), _Plain]
LabelValue = Annotated[str, Field(max_length=255), _Plain, _AsSchema()]


_SERVED: Final = f"This version serves {', '.join(SERVED)}."
_REQUEST: Final[JsonDict] = {
    "required": ["model"],
    "properties": {"model": {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_CHARS}},
}


class Options(BaseModel):
    """How a job is to be run. Durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    timeout_seconds: float | None = Field(default=None, gt=0, le=86_400)
    max_attempts: int | None = Field(default=None, ge=1, le=100)
    deadline: Annotated[
        AwareDatetime | None, Field(strict=False, description="RFC 3339, with a time zone.")
    ] = None
    stream: bool = Field(default=False, description="Not served by this version: true is refused.")
    cache: Literal["off"] = Field(default="off", description="Not served by this version.")
    max_rounds: int = Field(default=8, ge=1, le=100)
    tool_timeout_seconds: float = Field(default=30, gt=0, le=3600)


class Job(BaseModel):
    """One job. `(tenant, job_id)` is the idempotency key; `request` is the endpoint's JSON body."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    kind: Annotated[Kind, Field(strict=False, description=_SERVED)]
    job_id: JobId
    tenant: Tenant = DEFAULT_TENANT
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    request: dict[str, Any] = Field(json_schema_extra=_REQUEST)
    options: Options = Options()
