"""Messages that are no jobs: one clear reply where there is an address, one dead letter, no call."""

import json
from typing import Any

import pytest

from tests.support.process import StartWorker
from tests.support.producer import Producer, completion, producing
from tests.support.servers import Broker
from tests.support.upstream import Upstream

Bad = tuple[bytes, str, dict[str, Any]]


def job(**changes: Any) -> bytes:
    """Return a good job with something changed; None takes a field out."""
    fields = completion("bad") | changes
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def request(**changes: Any) -> bytes:
    """Return a job whose request has something changed."""
    fields = completion("bad")["request"] | changes
    return job(request={name: value for name, value in fields.items() if value is not None})


BAD: dict[str, Bad] = {
    "not JSON": (b"hello", "not valid JSON", {}),
    "empty": (b"", "empty", {}),
    "not an object": (b"[]", "JSON object", {}),
    "not UTF-8": (b'{"kind": "\xff"}', "UTF-8", {}),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark", {}),
    "NaN": (request(temperature=float("nan")), "NaN", {}),
    "infinity in disguise": (job().replace(b'"hello"', b"1e400"), "64 bits", {}),
    "huge integer": (job().replace(b'"hello"', b"9" * 5000), "too many digits", {}),
    "duplicate keys": (b'{"kind": "completion", "kind": "tool"}', "twice", {}),
    "deep nesting": (b'{"request": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested", {}),
    "lone surrogate": (job().replace(b"hello", rb"\ud800"), "JSON", {}),
    "10 MB": (job(request={"model": "m", "padding": "x" * 10_000_000}), "at most 8388608", {}),
    "wrong kind": (job(kind="poetry"), "kind", {}),
    "wrong version": (job(version=2), "version", {}),
    "no kind": (job(kind=None), "kind", {}),
    # The library insists on a message_id, which would stand in for the job_id; a blank one cannot.
    "no job id": (job(job_id=None), "job_id", {"message_id": " "}),
    "unknown field": (job(priority=9), "priority", {}),
    "missing model": (request(model=None), "request.model", {}),
    "model is a number": (request(model=7), "request.model", {}),
    "no messages": (request(messages=[]), "request.messages", {}),
    "own key": (request(api_key="sk-x"), "request.api_key", {}),
    "own address": (request(base_url="http://127.0.0.1"), "request.base_url", {}),
    "stream in the request": (request(stream=True), "request.stream", {}),
    "compressed": (job(), "content_encoding", {"content_encoding": "gzip"}),
    "other content type": (job(), "content_type", {"content_type": "text/plain"}),
    "another tenant's name": (job(tenant="other"), "tenant", {"user_id": "the broker's user"}),
}


async def refused(producer: Producer, bad: Bad) -> str:
    """Send one bad message and return what its failure reply says."""
    body, _, properties = bad
    reply = await producer.ask(body, **properties)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "invalid_job")
    assert (reply["result"], reply["attempts"], reply["error"]["retryable"]) == (None, 0, False)
    return str(reply["error"]["message"])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_bad_messages_cost_a_reply_and_a_dead_letter_each(
    broker: Broker, start_worker: StartWorker
) -> None:
    """Each is told what to mend, kept with its reason, and asked of nobody; the worker goes on."""
    async with (
        Upstream() as upstream,
        start_worker(OPENAI_BASE_URL=upstream.base_url) as worker,
        producing(broker.url) as producer,
    ):
        for name, bad in BAD.items():
            body, expected, properties = bad
            if "user_id" in properties:
                bad = (body, expected, {"user_id": broker_user(broker)})  # noqa: PLW2901 (known only here)
            assert expected in await refused(producer, bad), name
        letters = await producer.dead()
        assert len(letters) == len(BAD)
        assert all(str(letter.headers["x-reason"]).startswith("invalid_job: ") for letter in letters)
        assert sorted(letter.body for letter in letters) == sorted(bad[0] for bad in BAD.values())
        good = await producer.ask(completion("good"))
        assert good["status"] == "succeeded"
        assert len(upstream.requests) == 1
        assert worker.exit_code is None


OWN_QUEUES = ["openai.jobs.completion", "openai.dead", "amq.topic", "openai.anything"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_forbidden_reply_queue_gets_nothing(broker: Broker, start_worker: StartWorker) -> None:
    """A job that would make the worker write to its own queues is kept among the dead, unanswered."""
    async with (
        Upstream() as upstream,
        start_worker(OPENAI_BASE_URL=upstream.base_url) as worker,
        producing(broker.url) as producer,
    ):
        for queue in OWN_QUEUES:
            await producer.send(completion(f"evil for {queue}"), reply_to=queue)
        await worker.logged("job refused", count=len(OWN_QUEUES))
        assert (await producer.ask(completion("good")))["status"] == "succeeded"
        letters = await producer.dead()
        assert len(letters) == len(OWN_QUEUES)
        assert all("reply_to" in str(letter.headers["x-reason"]) for letter in letters)
        assert len(upstream.requests) == 1


def broker_user(broker: Broker) -> str:
    """Return the user that the broker vouches for."""
    return broker.url.split("//")[1].split(":")[0]
