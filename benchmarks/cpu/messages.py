"""The jobs: the same request for everybody, wrapped as each system wants it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from pamqp.commands import Basic

MODEL: Final = "gpt-6-luna"
TINY, SMALL, LARGE = 1, 2, 20
"""Messages of a request; the only one of a tiny request is short."""
SENTENCE: Final = (
    "The customer writes that the delivery of the third of November came late and asks what to do. "
)
PERSISTENT: Final = 2

_numbers = count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is published for a job; `job_id` is the only thing in it that differs from job to job."""

    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes
    job_id: str

    def copies(self, number: int) -> Iterator["Message"]:
        """Yield so many, each of a job of its own."""
        for _ in range(number):
            yield self._under(fresh_id())

    def _under(self, job_id: str) -> "Message":
        def renamed(value: Any) -> Any:
            return value.replace(self.job_id, job_id) if isinstance(value, str) else value

        theirs = {name: renamed(value) for name, value in self.properties if value is not None}
        if theirs.get("headers"):
            theirs["headers"] = {name: renamed(value) for name, value in theirs["headers"].items()}
        return Message(
            exchange=self.exchange,
            routing_key=self.routing_key,
            properties=Basic.Properties(**theirs),
            body=self.body.replace(self.job_id.encode(), job_id.encode()),
            job_id=job_id,
        )


def fresh_id() -> str:
    """Return an id in the form of a UUID, which some systems insist on."""
    return f"00000000-0000-4000-8000-{next(_numbers):012d}"


def request(messages: int) -> dict[str, Any]:
    """Return the JSON body of a Chat Completions request: about 400 characters a message."""
    if messages == TINY:
        return {"model": MODEL, "messages": [{"role": "user", "content": SENTENCE}]}
    roles = ("system", *(("user", "assistant") * messages))
    return {
        "model": MODEL,
        "messages": [{"role": roles[place], "content": SENTENCE * 4} for place in range(messages)],
        "temperature": 0.2,
        "max_completion_tokens": 256,
    }


def our_job(messages: int, reply_to: str) -> Message:
    """Return a job as the contract wants it."""
    job_id = fresh_id()
    job = {
        "version": 1,
        "kind": "completion",
        "job_id": job_id,
        "tenant": "acme",
        "labels": {"feature": "mail"},
        "request": request(messages),
    }
    return Message(
        exchange="openai.jobs",
        routing_key="completion",
        properties=Basic.Properties(
            content_type="application/json",
            delivery_mode=PERSISTENT,
            reply_to=reply_to,
            correlation_id=job_id,
        ),
        body=json.dumps(job).encode(),
        job_id=job_id,
    )
