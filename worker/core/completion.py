"""Kind `completion`: one Chat Completions request; also what the other chat kinds share."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from typing_extensions import override

import schemas.job
from schemas.failure import Failure, FailureCode
from schemas.names import Kind
from worker.core.kind import InvalidJobError, KindHandler, Result, Steps
from worker.domain.answer import Answer
from worker.domain.images import ImageError, ImageLimits, check_image, is_data_url, parse_data_url
from worker.domain.job import Job
from worker.domain.tokens import DEFAULT_OUTPUT_TOKENS, chat_usage
from worker.domain.urls import UrlError, check_public_url
from worker.domain.usage import Usage

_URL_KEYS: Final = frozenset({"image_url", "file_url"})
"""Of a content part: what OpenAI is asked to fetch."""


class CompletionHandler(KindHandler):
    """Sends the request as it is and takes the first answer."""

    def __init__(
        self, *, limits: ImageLimits | None = None, default_output: int = DEFAULT_OUTPUT_TOKENS
    ) -> None:
        self._limits = limits or ImageLimits()
        self._default_output = default_output

    @property
    @override
    def kind(self) -> Kind:
        return Kind.COMPLETION

    @override
    def prepare(self, job: schemas.job.Job) -> Mapping[str, Any]:
        check_chat(job.request, self._limits)
        return job.request

    @override
    def reserve(self, request: Mapping[str, Any]) -> Usage:
        return chat_usage(request, self._default_output)

    @override
    async def run(self, job: Job, steps: Steps, checkpoint: bytes | None) -> Result:
        return judge(await steps.call(job.request, self.reserve))


def judge(answer: Answer) -> Result:
    """Return the result of an answer; one that a filter has emptied is a failure, and is kept."""
    if answer.finish_reason == "content_filter" and not answer.text:
        failure = Failure(
            code=FailureCode.CONTENT_FILTERED, message="OpenAI's content filter withheld the answer"
        )
        return Result(answer=answer, failure=failure)
    return Result(answer=answer)


def check_chat(request: Mapping[str, Any], limits: ImageLimits) -> None:
    """Check what a message list must be, and its images. Raises InvalidJobError."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidJobError("request.messages: must be a list of at least one message")
    plain = True
    for message in messages:
        if not isinstance(message, dict):
            raise InvalidJobError("request.messages: each message must be an object")
        plain = plain and not isinstance(message.get("content"), list)
    if not plain:
        check_images(messages, limits, "request.messages")


def check_images(messages: list[Any], limits: ImageLimits, path: str) -> None:
    """Check each image that messages or input items hold. Raises InvalidJobError."""
    total = 0
    for count, (where, url) in enumerate(_image_urls(messages, path), start=1):
        try:
            total += _check_url(url, limits)
        except (ImageError, UrlError) as error:
            raise InvalidJobError(f"{where}: {error}") from None
        if count > limits.max_images or total > limits.max_total_bytes:
            raise InvalidJobError(f"{where}: too many images, or too many bytes of them, for one request")


def _image_urls(messages: list[Any], path: str) -> Iterator[tuple[str, object]]:
    """Yield place and URL of each image and file; a message whose content is a text is passed over."""
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        for index, part in enumerate(content if isinstance(content, list) else ()):
            for key in _URL_KEYS & part.keys() if isinstance(part, dict) else ():
                value = part[key]
                url = value.get("url") if isinstance(value, dict) else value
                yield f"{path}[{number}].content[{index}].{key}", url


def _check_url(url: object, limits: ImageLimits) -> int:
    """Return the bytes that an image adds to the request."""
    if not isinstance(url, str):
        raise UrlError("must hold a url")
    if not is_data_url(url):
        check_public_url(url)
        return 0
    media_type, image = parse_data_url(url)
    check_image(media_type, image, limits)
    return image.length
