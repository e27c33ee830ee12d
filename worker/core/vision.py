"""Kind `vision`: a Chat Completions request about images, also in a short form.

    {"model": "gpt-...", "prompt": "What is this?",
     "images": [{"url": "https://..."}, {"base64": "iVBO...", "media_type": "image/png", "detail": "low"}]}

Any further chat parameter may stand beside them.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from typing_extensions import override

import schemas.job
from schemas.names import Kind
from worker.core.completion import CompletionHandler, check_chat
from worker.core.kind import InvalidJobError
from worker.domain.images import data_url
from worker.domain.problems import explain


class VisionHandler(CompletionHandler):
    """Writes the short form out, then does what a completion does."""

    @property
    @override
    def kind(self) -> Kind:
        return Kind.VISION

    @override
    def prepare(self, job: schemas.job.Job) -> Mapping[str, Any]:
        request = job.request
        if "prompt" in request or "images" in request:
            request = written_out(request)
        check_chat(request, self._limits)
        return request


def written_out(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat request that a short form stands for. Raises InvalidJobError."""
    if "messages" in request:
        raise InvalidJobError("request: give either messages, or prompt and images")
    try:
        short = _SHORT.validate_python({key: request[key] for key in ("prompt", "images") if key in request})
    except ValidationError as error:
        raise InvalidJobError(explain(error, "request")) from None
    parts = [{"type": "text", "text": short.prompt}, *(image.part() for image in short.images)]
    rest = {key: value for key, value in request.items() if key not in {"prompt", "images"}}
    return {**rest, "messages": [{"role": "user", "content": parts}]}


class _Image(BaseModel):
    """One image, by its URL or as base64."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str | None = None
    base64: str | None = None
    media_type: Literal["image/png", "image/jpeg", "image/webp", "image/gif"] | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.url is None) == (self.base64 is None):
            message = "must have either url or base64"
            raise ValueError(message)
        if (self.base64 is None) != (self.media_type is None):
            message = "media_type belongs with base64"
            raise ValueError(message)
        return self

    def part(self) -> dict[str, Any]:
        """Return it as a content part."""
        url = self.url if self.base64 is None else data_url(self.media_type or "", self.base64)
        image = {"url": url, "detail": self.detail}
        return {
            "type": "image_url",
            "image_url": {key: value for key, value in image.items() if value is not None},
        }


class _Short(BaseModel):
    """The fields that only the short form has."""

    model_config = ConfigDict(strict=True)

    prompt: str = Field(min_length=1)
    images: list[_Image] = Field(min_length=1)


_SHORT: Final = TypeAdapter(_Short)
