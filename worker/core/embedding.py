"""Kind `embedding`: one Embeddings request."""

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

import schemas.job
from schemas.names import Kind
from worker.core.kind import InvalidJobError, KindHandler, Result, Steps
from worker.domain.job import Job
from worker.domain.tokens import embedding_usage
from worker.domain.usage import Usage


class EmbeddingHandler(KindHandler):
    """Sends the request as it is."""

    @property
    @override
    def kind(self) -> Kind:
        return Kind.EMBEDDING

    @override
    def prepare(self, job: schemas.job.Job) -> Mapping[str, Any]:
        source = job.request.get("input")
        if not isinstance(source, str | list) or not source:
            raise InvalidJobError("request.input: must be a text, or a list of texts or tokens, not empty")
        return job.request

    @override
    def reserve(self, request: Mapping[str, Any]) -> Usage:
        return embedding_usage(request)

    @override
    async def run(self, job: Job, steps: Steps, checkpoint: bytes | None) -> Result:
        return Result(answer=await steps.call(job.request, self.reserve))
