"""Kind `assistant`: one Responses request, answered in the foreground."""

from collections.abc import Mapping
from typing import Any, Final

from typing_extensions import override

import schemas.job
from schemas.failure import Failure, FailureCode
from schemas.names import Kind
from worker.core.completion import check_images, judge
from worker.core.kind import InvalidJobError, KindHandler, Result, Steps
from worker.domain.answer import Answer
from worker.domain.images import ImageLimits
from worker.domain.job import Job
from worker.domain.tokens import DEFAULT_OUTPUT_TOKENS, responses_usage
from worker.domain.usage import Usage

_CODES: Final = {
    "server_error": FailureCode.UNAVAILABLE,
    "rate_limit_exceeded": FailureCode.RATE_LIMITED,
}
"""What a failed response's own error code means; anything else is the request's fault."""


class AssistantHandler(KindHandler):
    """Sends the request as it is; a response that failed inside a 200 is a failure."""

    def __init__(
        self, *, limits: ImageLimits | None = None, default_output: int = DEFAULT_OUTPUT_TOKENS
    ) -> None:
        self._limits = limits or ImageLimits()
        self._default_output = default_output

    @property
    @override
    def kind(self) -> Kind:
        return Kind.ASSISTANT

    @override
    def prepare(self, job: schemas.job.Job) -> Mapping[str, Any]:
        request = job.request
        if request.get("background"):
            raise InvalidJobError(
                "request.background: responses are run in the foreground only; leave it out"
            )
        items = request.get("input")
        if isinstance(items, list):
            check_images(items, self._limits, "request.input")
        return request

    @override
    def reserve(self, request: Mapping[str, Any]) -> Usage:
        return responses_usage(request, self._default_output)

    @override
    async def run(self, job: Job, steps: Steps, checkpoint: bytes | None) -> Result:
        answer = await steps.call(job.request, self.reserve)
        return _failed(answer) if answer.finish_reason in {"failed", "cancelled"} else judge(answer)


def _failed(answer: Answer) -> Result:
    error = answer.data.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    known = _CODES.get(code) if isinstance(code, str) else None
    failure = Failure(
        code=known or FailureCode.REJECTED,
        message="OpenAI could not complete the response",
        retryable=known is not None,
        openai_code=code if isinstance(code, str) else None,
    )
    return Result(answer=answer, failure=failure)
