"""OpenAI refusing, failing, dawdling and lying."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.support.scene import Scene
from tests.support.upstream import Act

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


def mark(**act: Any) -> str:
    """Return the text that makes the stand-in act so on this job."""
    return f"<<{json.dumps(act)}>>"


async def answers(
    scene: Scene, acts: Mapping[str, Mapping[str, Any]], **fields: Any
) -> dict[str, dict[str, Any]]:
    """Send a job for each act; return the replies by name."""
    for job_id, act in acts.items():
        await scene.send(job_id, mark(**act), **fields)
    replies = await scene.replied(len(acts), within=60)
    return {reply["job_id"]: reply for reply in replies}


@ON_SQLITE
async def test_d01_waiting_as_long_as_asked(scene: Scene) -> None:
    """Milliseconds win over seconds; nonsense is ignored; a long wait is spent in a waiting room."""
    await scene.worker()
    odd = ("nan", "-1", "1e400", "soon", "Wed, 21 Oct 2015 07:28:00 GMT")
    acts = {
        "ms": {"status": 503, "times": 1, "headers": {"retry-after-ms": "300", "retry-after": "30"}},
        "room": {"status": 503, "times": 1, "headers": {"retry-after": "6"}},
    } | {
        f"odd-{n}": {"status": 503, "times": 1, "headers": {"retry-after": text}}
        for n, text in enumerate(odd)
    }
    replies = await answers(scene, acts)
    assert {reply["status"] for reply in replies.values()} == {"succeeded"}
    assert 0.3 <= gap(scene, "ms") < 15
    assert 6 <= gap(scene, "room") < 25
    assert scene.workers[0].lines("job waits", job_id="room")
    assert not scene.workers[0].lines("job waits", job_id="ms")
    await scene.holds(extra_calls=len(acts))


def gap(scene: Scene, job_id: str) -> float:
    """Return the seconds between a job's two calls."""
    first, second = (
        seen.monotonic for seen in scene.upstream.requests if f"<{job_id}>" in json.dumps(seen.body)
    )
    return second - first


@ON_SQLITE
async def test_d01_rate_limit_without_a_hot_loop(scene: Scene) -> None:
    """Twenty 429s cost no more than twenty requests, and every job is answered in the end."""
    scene.upstream.script(Act(status=429, headers={"retry-after-ms": "200"}, times=5))
    await scene.worker()
    for number in range(5):
        await scene.send(f"job-{number}")
    await scene.replied(5)
    await scene.holds(extra_calls=5)


@ON_SQLITE
async def test_d03_failures_that_are_worth_a_second_try(scene: Scene) -> None:
    """Each try is an attempt of its own; what may have been billed is booked as an estimate."""
    await scene.worker()
    statuses = (408, 409, 500, 503)
    acts: dict[str, dict[str, Any]] = {
        f"status-{status}": {"status": status, "times": 1} for status in statuses
    }
    acts["html"] = {"status": 502, "times": 1, "body": "<html>Bad Gateway</html>"}
    acts |= {fault: {"fault": fault, "times": 1} for fault in ("reset", "close", "half", "garbage")}
    replies = await answers(scene, acts)
    assert {reply["status"] for reply in replies.values()} == {"succeeded"}
    assert {reply["attempts"] for reply in replies.values()} == {2}
    assert (await scene.states("status-500"))[0] == "failed"
    assert (await scene.states("reset"))[0] == "unknown"
    await scene.holds(extra_calls=len(acts), unknown=4)


@ON_SQLITE
async def test_d03_nobody_there(scene: Scene) -> None:
    """A connection that is refused was not sent: tried again, never booked, and told in the end."""
    await scene.worker(OPENAI_BASE_URL="http://127.0.0.1:9/v1", WORKER_MAX_ATTEMPTS=2)
    await scene.send("one")
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"], reply["attempts"]) == ("failed", "unavailable", 2)
    assert await scene.rows("SELECT * FROM usage_ledger") == []
    await scene.holds(unsent=2)


@ON_SQLITE
async def test_d04_failures_that_no_repetition_mends(scene: Scene) -> None:
    """One call and one failure reply each, with OpenAI's code."""
    await scene.worker()
    acts: dict[str, Mapping[str, Any]] = {
        "context": {"status": 400, "error": {"code": "context_length_exceeded"}},
        "policy": {"status": 400, "error": {"code": "content_policy_violation"}},
        "missing": {"status": 404, "error": {"code": "model_not_found"}},
        "large": {"status": 413},
    }
    replies = await answers(scene, acts)
    assert {reply["status"] for reply in replies.values()} == {"failed"}
    assert {reply["error"]["retryable"] for reply in replies.values()} == {False}
    assert replies["context"]["error"]["openai_code"] == "context_length_exceeded"
    await scene.holds()


@ON_SQLITE
async def test_d04_key_that_is_not_accepted(scene: Scene) -> None:
    """Jobs wait until it is mended, instead of emptying the queue into failures: one request a minute."""
    scene.upstream.script(Act(status=401, error={"code": "invalid_api_key"}))
    worker = await scene.worker()
    for number in range(10):
        await scene.send(f"job-{number}")
    await worker.logged("credentials closed")
    assert len(scene.upstream.requests) == 1
    replies = await scene.replied(10, within=150)
    assert {reply["status"] for reply in replies} == {"succeeded"}
    refused, probe = scene.upstream.requests[:2]
    assert probe.monotonic - refused.monotonic > 59
    await scene.holds(extra_calls=1)


@ON_SQLITE
async def test_d04_address_where_nothing_is(scene: Scene) -> None:
    """Jobs wait as for a key that is not accepted, and the log says what to mend."""
    wrong = await scene.worker(OPENAI_BASE_URL=scene.upstream.root)
    for number in range(5):
        await scene.send(f"job-{number}")
    await wrong.logged("credentials closed")
    (line,) = wrong.lines("credentials closed")
    assert "OPENAI_BASE_URL" in line["reason"]
    # Is anything there?
    assert [seen.path for seen in scene.upstream.requests] == ["/chat/completions", "/models"]
    await wrong.terminate()
    await scene.worker()
    replies = await scene.replied(5, within=150)
    assert {reply["status"] for reply in replies} == {"succeeded"}
    await scene.holds(extra_calls=1)


@ON_SQLITE
async def test_d05_openai_finishes_after_the_worker_gave_up(scene: Scene) -> None:
    """The attempt is unknown and booked as an estimate: it was most likely billed."""
    await scene.worker()
    scene.upstream.script(Act(delay=3))
    await scene.send("one", options={"timeout_seconds": 1})
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "timeout")
    assert await scene.states() == ["unknown"]
    await scene.holds(unknown=1)


LIES: dict[str, dict[str, Any]] = {
    "html": {"body": "<html>welcome</html>"},
    "empty": {"body": "{}"},
    "nothing": {"body": ""},
    "list": {"body": "[]"},
    "no-choices": {"patch": {"choices": []}},
}
WRONG_COUNTS: dict[str, dict[str, Any]] = {
    "no-usage": {"patch": {"usage": None}},
    "text": {"patch": {"usage": USAGE | {"prompt_tokens": "12"}}},
    "negative": {"patch": {"usage": USAGE | {"completion_tokens": -1}}},
    "huge": {"patch": {"usage": USAGE | {"prompt_tokens": 2**63}}},
}


@ON_SQLITE
async def test_d06_answers_that_are_none(scene: Scene) -> None:
    """A 200 that is no answer is never a success, and never free: an estimate a try."""
    await scene.worker(WORKER_MAX_ATTEMPTS=2)
    replies = await answers(scene, LIES)
    assert {name: reply["status"] for name, reply in replies.items()} == dict.fromkeys(LIES, "failed")
    free = await scene.rows("SELECT job_id FROM usage_ledger WHERE input_tokens = 0")
    assert free == []
    await scene.holds(extra_calls=len(LIES), unknown=0)


@ON_SQLITE
async def test_d06_answers_with_counts_that_cannot_be(scene: Scene) -> None:
    """The answer is delivered; its cost is an estimate and says so, never nothing."""
    await scene.worker(WORKER_MAX_ATTEMPTS=2)
    replies = await answers(scene, WRONG_COUNTS)
    assert {reply["status"] for reply in replies.values()} <= {"succeeded", "failed"}
    rows = await scene.rows("SELECT job_id, entry, input_tokens FROM usage_ledger")
    assert {row["entry"] for row in rows} == {"estimated"}
    assert all(row["input_tokens"] > 0 for row in rows)
    await scene.holds(extra_calls=len(WRONG_COUNTS))


@ON_SQLITE
async def test_d08_ends_of_all_kinds(scene: Scene) -> None:
    """Cut short, filtered, refused, or another model than asked for: no crash, billed once, and shown."""
    await scene.worker()
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}
    refusal = choice | {"message": {"role": "assistant", "content": None, "refusal": "I cannot."}}
    acts: dict[str, Mapping[str, Any]] = {
        "length": {"patch": {"choices": [choice | {"finish_reason": "length"}]}},
        "filter": {"patch": {"choices": [choice | {"finish_reason": "content_filter"}]}},
        "refusal": {"patch": {"choices": [refusal]}},
        "model": {"patch": {"model": "gpt-4o-mini-2024-07-18"}},
    }
    await answers(scene, acts)
    (row,) = await scene.rows("SELECT model, prices FROM usage_ledger WHERE job_id = 'model'")
    assert row["model"] == "gpt-4o-mini-2024-07-18"
    assert len(await scene.rows("SELECT * FROM usage_ledger WHERE entry = 'measured'")) == len(acts)
    await scene.holds()


@ON_SQLITE
async def test_d08_tool_arguments_that_are_no_json(scene: Scene) -> None:
    """They go back to the model as an error; the loop goes on."""
    scene.upstream.script(Act(tool_calls=[{"name": "add", "arguments": '{"a": 1,'}]), Act(text="sorry"))
    await scene.worker()
    job = scene.tool_job("one")
    await scene.send(lane="tool", **job)
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["attempts"]) == ("succeeded", 2)
    await scene.holds(extra_calls=1)


@ON_SQLITE
async def test_d09_answer_that_dribbles(scene: Scene) -> None:
    """A byte now and then keeps no call open for longer than the job's time."""
    await scene.worker()
    scene.upstream.script(Act(fault="dribble", gap=0.2))
    await scene.send("one", options={"timeout_seconds": 2})
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "timeout")
    begun, ended = (datetime.fromisoformat(reply[name]) for name in ("started_at", "finished_at"))
    assert ended - begun < timedelta(seconds=10)  # the whole answer would take two minutes
    await scene.holds(unknown=1)
