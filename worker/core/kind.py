"""What a kind of job must provide; one file in this package each."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import schemas.job
from schemas.failure import Failure
from schemas.names import Kind
from worker.domain.answer import Answer
from worker.domain.job import Job
from worker.domain.usage import Usage

Reserve: TypeAlias = Callable[[Mapping[str, Any]], Usage]
"""Estimates what a request will use: an upper bound where it sets a maximum for its output."""


class InvalidJobError(Exception):
    """The job cannot be run as it is; the message says what to change and never quotes content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a job came to. A failure may still carry the answer it was judged by."""

    answer: Answer | None
    failure: Failure | None = None


class Steps(Protocol):
    """The requests a running job may make; each is admitted, recorded and retried as one step."""

    async def call(self, request: Mapping[str, Any], reserve: Reserve) -> Answer:
        """Send one request and return its answer. Raises only what the processor handles."""

    async def checkpoint(self, state: bytes) -> None:
        """Make the last answer durable, with what is needed to go on from it."""

    def working(self) -> AbstractAsyncContextManager[None]:
        """Count what happens inside as the job's work, which ends when its time is up or it is cancelled."""


class KindHandler(Protocol):
    """Prepares and runs the jobs of one kind. Holds no state of a job."""

    @property
    def kind(self) -> Kind:
        """The kind it serves."""

    def prepare(self, job: schemas.job.Job) -> Mapping[str, Any]:
        """Return the request as its endpoint takes it. Raises InvalidJobError."""

    def reserve(self, request: Mapping[str, Any]) -> Usage:
        """Estimate what the next request will use."""

    async def run(self, job: Job, steps: Steps, checkpoint: bytes | None) -> Result:
        """Run the job to its result, going on from a checkpoint where there is one."""
