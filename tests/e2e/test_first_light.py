"""The main job, end to end: real broker, real databases, a real worker process, real HTTP."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.process import StartWorker, WorkerProcess
from tests.support.producer import Producer, completion, producing
from tests.support.rows import rows
from tests.support.servers import Broker
from tests.support.upstream import Act, Upstream
from worker.core.replies import usd

TOOLS = "tests.support.some_tools"
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what does not depend on the database: a worker takes seconds to start."""


class Stage:
    """One worker between a producer and a stand-in for OpenAI."""

    def __init__(self, upstream: Upstream, worker: WorkerProcess, producer: Producer, url: str) -> None:
        self.upstream = upstream
        self.worker = worker
        self.producer = producer
        self.database_url = url

    async def rows(self, query: str) -> list[dict[str, Any]]:
        """Return what a query finds."""
        return await rows(self.database_url, query)


@pytest.fixture
async def stage(broker: Broker, start_worker: StartWorker, database_url: str) -> AsyncIterator[Stage]:
    """Set everything up."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        worker = await stack.enter_async_context(
            start_worker(OPENAI_BASE_URL=upstream.base_url, WORKER_TOOLS=TOOLS)
        )
        producer = await stack.enter_async_context(producing(broker.url))
        yield Stage(upstream, worker, producer, database_url)


async def test_a_completion_is_answered_stored_and_priced(stage: Stage) -> None:
    """One call; job, attempt and ledger agree with the reply, and the cost with the prices in the row."""
    stage.upstream.script(
        Act(
            text="forty-two",
            patch={
                "usage": {
                    "prompt_tokens": 812,
                    "completion_tokens": 95,
                    "total_tokens": 907,
                    "prompt_tokens_details": {"cached_tokens": 640},
                }
            },
        )
    )
    reply = await stage.producer.ask(completion("one", labels={"feature": "x"}), correlation_id="c-1")
    message = stage.producer.replies[0]
    assert (message.type, message.correlation_id) == ("reply", "c-1")
    assert (reply["status"], reply["output_text"], reply["attempts"]) == ("succeeded", "forty-two", 1)
    assert reply["result"]["choices"][0]["message"]["content"] == "forty-two"
    (job,) = await stage.rows("SELECT * FROM jobs")
    assert (job["status"], job["kind"], job["lane"], job["model"]) == (
        "succeeded",
        "completion",
        "completion",
        "gpt-6-luna",
    )
    (attempt,) = await stage.rows("SELECT * FROM attempts")
    assert (attempt["attempt_no"], attempt["state"], attempt["http_status"]) == (1, "succeeded", 200)
    assert attempt["openai_request_id"]
    (row,) = await stage.rows("SELECT * FROM usage_ledger")
    assert (row["entry"], row["input_tokens"], row["cached_input_tokens"], row["output_tokens"]) == (
        "measured",
        812,
        640,
        95,
    )
    prices = json.loads(row["prices"]) if isinstance(row["prices"], str) else row["prices"]
    by_hand = (
        172 * float(prices["input"]) + 640 * float(prices["cached_input"]) + 95 * float(prices["output"])
    )
    assert row["cost_nano_usd"] == round(by_hand * 1000)
    assert reply["usage"]["cost_usd"] == usd(row["cost_nano_usd"])


@ON_SQLITE
async def test_the_request_passes_through_untouched(stage: Stage) -> None:
    """Whatever parameter OpenAI accepts arrives there as the producer wrote it."""
    body = {"parameter_of_tomorrow": {"deep": [1, 2.5, None, True, "ü"]}, "max_completion_tokens": 5}
    job = completion("one")
    job["request"] |= body
    await stage.producer.ask(job)
    assert stage.upstream.requests[0].body == job["request"]


async def test_a_rate_limit_is_waited_out(stage: Stage) -> None:
    """A 429 costs an attempt, no money, and the time that was asked for."""
    stage.upstream.script(
        Act(status=429, error={"code": "rate_limit_exceeded"}, headers={"retry-after-ms": "700"})
    )
    reply = await stage.producer.ask(completion("one"))
    assert (reply["status"], reply["attempts"], reply["usage"]["requests"]) == ("succeeded", 2, 1)
    first, second = stage.upstream.requests
    assert second.monotonic - first.monotonic >= 0.7
    states = await stage.rows("SELECT state, http_status FROM attempts ORDER BY attempt_no")
    assert [row["state"] for row in states] == ["rejected", "succeeded"]


@ON_SQLITE
async def test_a_wrong_parameter_fails_at_once(stage: Stage) -> None:
    """OpenAI's 400 is passed on, not repeated and not billed."""
    stage.upstream.script(
        Act(status=400, error={"code": "unknown_parameter", "message": "Unknown parameter: 'x'."})
    )
    reply = await stage.producer.ask(completion("one"))
    error = reply["error"]
    assert (reply["status"], error["code"], error["http_status"], error["retryable"]) == (
        "failed",
        "rejected",
        400,
        False,
    )
    assert error["openai_code"] == "unknown_parameter"
    assert len(stage.upstream.requests) == 1
    assert await stage.rows("SELECT * FROM usage_ledger") == []


async def test_the_same_job_twice_is_one_call_and_two_equal_replies(stage: Stage) -> None:
    """A repeated job is answered from the stored reply."""
    await stage.producer.ask(completion("one"))
    await stage.producer.ask(completion("one"))
    first, second = stage.producer.replies
    assert first.body == second.body
    assert first.headers["x-reply-id"] == second.headers["x-reply-id"]
    assert len(stage.upstream.requests) == 1


@ON_SQLITE
async def test_the_same_name_for_another_job_is_a_conflict(stage: Stage) -> None:
    """No call, and the first job keeps its result; another tenant may use the name."""
    await stage.producer.ask(completion("one"))
    reply = await stage.producer.ask(completion("one", "something else"))
    assert (reply["status"], reply["error"]["code"]) == ("failed", "conflict")
    assert len(stage.upstream.requests) == 1
    other = await stage.producer.ask(completion("one", "something else", tenant="other"))
    assert other["status"] == "succeeded"


async def test_a_tool_loop_runs_its_tools_and_counts_its_rounds(stage: Stage) -> None:
    """Calls of one round run together; each round is an attempt and a ledger row."""
    calls = [
        {"name": "add", "arguments": {"a": 1, "b": 2}},
        {"name": "add", "arguments": {"a": "x", "b": 2}},
        {"name": "fail", "arguments": {}},
    ]
    stage.upstream.script(Act(tool_calls=calls), Act(text="three"))
    job = completion("one", kind="tool", options={"max_rounds": 3})
    job["request"]["tools"] = [{"name": "add"}, {"name": "fail"}]
    reply = await stage.producer.ask(job, lane="tool")
    assert (reply["status"], reply["output_text"], reply["attempts"]) == ("succeeded", "three", 2)
    assert reply["usage"]["requests"] == 2
    told = [m["content"] for m in stage.upstream.requests[1].body["messages"] if m["role"] == "tool"]
    assert told[0] == "3"
    assert all("error" in text for text in told[1:])
    entries = await stage.rows("SELECT attempt_no, entry FROM usage_ledger ORDER BY attempt_no")
    assert [(row["attempt_no"], row["entry"]) for row in entries] == [(1, "measured"), (2, "measured")]


@ON_SQLITE
async def test_a_producers_own_tool_comes_back_to_it(stage: Stage) -> None:
    """Calls of tools that the worker does not have end the loop and stand in the reply."""
    stage.upstream.script(Act(tool_calls=[{"name": "mine", "arguments": {"x": 1}}]))
    job = completion("one", kind="tool")
    job["request"]["tools"] = [{"type": "function", "function": {"name": "mine", "parameters": {}}}]
    reply = await stage.producer.ask(job, lane="tool")
    assert reply["status"] == "succeeded"
    (call,) = reply["result"]["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "mine"


@ON_SQLITE
async def test_a_loop_ends_at_its_last_round(stage: Stage) -> None:
    """max_rounds bounds the requests; what they cost is in the reply."""
    stage.upstream.script(Act(tool_calls=[{"name": "add", "arguments": {"a": 1, "b": 2}}], times=10))
    job = completion("one", kind="tool", options={"max_rounds": 2})
    job["request"]["tools"] = [{"name": "add"}]
    reply = await stage.producer.ask(job, lane="tool")
    assert (reply["status"], reply["error"]["code"]) == ("failed", "tool_failed")
    assert (len(stage.upstream.requests), reply["usage"]["requests"]) == (2, 2)


@ON_SQLITE
async def test_an_image_goes_out_in_the_long_form(stage: Stage) -> None:
    """The short form of a vision job is written out for OpenAI."""
    job = completion("one", kind="vision")
    job["request"] = {
        "model": "gpt-6-luna",
        "prompt": "What is this?",
        "images": [{"url": "https://example.org/cat.png", "detail": "low"}],
    }
    reply = await stage.producer.ask(job, lane="vision")
    assert reply["status"] == "succeeded"
    (message,) = stage.upstream.requests[0].body["messages"]
    assert {part["type"] for part in message["content"]} == {"text", "image_url"}


@ON_SQLITE
async def test_a_worker_told_to_stop_finishes_its_jobs(stage: Stage) -> None:
    """SIGTERM: the running call is waited for, its reply sent, exit code 0."""
    stage.upstream.script(Act(delay=1.0))
    await stage.producer.send(completion("one"))
    await stage.upstream.seen(1)
    assert await stage.worker.terminate() == 0
    (reply,) = await stage.producer.received(1)
    assert reply["status"] == "succeeded"


@ON_SQLITE
async def test_a_server_error_is_tried_again_and_an_endless_one_given_up(stage: Stage) -> None:
    """503s are repeated with backoff up to the attempts that the job allows."""
    stage.upstream.script(Act(status=503, times=2, match="first"), Act(status=500, times=9, match="second"))
    first = await stage.producer.ask(completion("one", "first"))
    assert (first["status"], first["attempts"]) == ("succeeded", 3)
    second = await stage.producer.ask(completion("two", "second", options={"max_attempts": 2}))
    assert (second["status"], second["attempts"]) == ("failed", 2)
    assert (second["error"]["code"], second["error"]["retryable"]) == ("unavailable", True)
