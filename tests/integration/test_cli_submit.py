"""`openai-worker submit`: jobs from files to a real broker, and their replies."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage

from tests.support.broker import plain, until
from tests.support.command import CommandLine
from tests.support.servers import Broker


def job(name: str, **fields: Any) -> str:
    """Return a job as a line."""
    return json.dumps({"kind": "tool", "job_id": name, "request": {"model": "gpt-6-luna"}} | fields)


@asynccontextmanager
async def worker(url: str, *, deaf_to: int = 0) -> AsyncIterator[list[str]]:
    """Answer the jobs of a lane, but for the first few, and yield the ids that came."""
    came: list[str] = []
    async with plain(url) as channel:

        async def answer(message: AbstractIncomingMessage) -> None:
            name = json.loads(message.body)["job_id"]
            came.append(name)
            heard = len(came) > deaf_to
            await message.ack()
            if heard:
                reply = Message(
                    json.dumps(answer_to(name)).encode(), type="reply", correlation_id=message.correlation_id
                )
                await channel.default_exchange.publish(reply, str(message.reply_to))

        await (await channel.get_queue("openai.jobs.tool")).consume(answer)
        yield came


def answer_to(name: str) -> dict[str, Any]:
    """Return the reply to a job; one whose name begins with `bad` has failed."""
    failed = name.startswith("bad")
    return {
        "version": 1,
        "job_id": name,
        "tenant": "default",
        "kind": "tool",
        "status": "failed" if failed else "succeeded",
        "output_text": None if failed else "hello",
        "result": None,
        "usage": None,
        "error": {"code": "rejected", "message": "no"} if failed else None,
        "attempts": 1,
        "cached": False,
        "received_at": "2026-01-01T00:00:00Z",
        "started_at": None,
        "finished_at": "2026-01-01T00:00:01Z",
    }


async def test_submit_publishes_and_goes(stored: CommandLine, broker: Broker) -> None:
    """Each job is on its lane, persistent and without an address for replies, or on the lane's high queue."""
    assert (await stored("submit", "-", stdin=f"{job('a')}\n{job('b')}\n")).err == "2 published\n"
    ended = await stored("submit", "--high", "-", stdin=job("c", options={"max_attempts": 2}))
    assert (ended.code, ended.out) == (0, "")
    async with plain(broker.url) as channel:
        queue = await channel.get_queue("openai.jobs.tool")
        assert {json.loads((await queue.get()).body)["job_id"] for _ in range(2)} == {"a", "b"}
        message = await (await channel.get_queue("openai.jobs.tool.high")).get()
    assert json.loads(message.body) == json.loads(job("c", options={"max_attempts": 2})) | {"version": 1}
    assert (message.reply_to, message.content_type, message.delivery_mode) == (None, "application/json", 2)


async def test_submit_publishes_all_or_nothing(stored: CommandLine, broker: Broker, tmp_path: Path) -> None:
    """One invalid job holds all others back, unless told to keep going; each is named with its line."""
    text = f"{job('a')}\n{job('b', kind='x')}\n{job('c')}\n"
    (tmp_path / "jobs.jsonl").write_text(text)
    ended = await stored("submit", "jobs.jsonl")
    first, last = ended.err.splitlines()
    assert (ended.code, last) == (2, "nothing was published")
    assert first.startswith("jobs.jsonl:2: kind: must be ")
    async with plain(broker.url) as channel:
        queue = await channel.get_queue("openai.jobs.tool")
        assert queue.declaration_result.message_count == 0
        ended = await stored("submit", "jobs.jsonl", "--keep-going")
        assert (ended.code, ended.err.splitlines()[1:]) == (1, ["2 published"])
        assert {json.loads((await queue.get()).body)["job_id"] for _ in range(2)} == {"a", "c"}


async def test_submit_tells_a_job_that_no_worker_would_read(stored: CommandLine) -> None:
    """A job beyond WORKER_MAX_JOB_BYTES is told here, instead of being refused there."""
    ended = await stored("submit", "-", stdin=job("a", labels={"x": "y" * 200}), WORKER_MAX_JOB_BYTES="200")
    assert ended.code == 2
    assert ended.err.startswith("job a: has ")


async def test_submit_without_queues_says_what_mends_it(cli: CommandLine) -> None:
    """On a broker that is not set up, one line says so."""
    mends = "see `openai-worker doctor`", "run `openai-worker topology apply`"
    for options, mend in zip(([], ["--wait"]), mends, strict=True):
        ended = await cli("submit", *options, "-", stdin=job("a"))
        assert (ended.code, ended.out) == (1, "")
        (line,) = ended.err.splitlines()
        assert line.endswith(mend)


async def test_submit_waits_for_all_replies(stored: CommandLine, broker: Broker) -> None:
    """Each reply is a JSON line; exit 0 if all succeeded, exit 1 if any did not."""
    async with worker(broker.url):
        ended = await stored("submit", "--wait", "-", stdin="\n".join(job(f"a{n}") for n in range(20)))
        assert (ended.code, ended.err) == (0, "")
        replies = [json.loads(line) for line in ended.out.splitlines()]
        assert {reply["job_id"] for reply in replies} == {f"a{n}" for n in range(20)}
        assert all(reply["output_text"] == "hello" for reply in replies)
        ended = await stored("submit", "--wait", "-", stdin=f"{job('good')}\n{job('bad')}")
    assert ended.code == 1
    assert {json.loads(line)["status"] for line in ended.out.splitlines()} == {"succeeded", "failed"}


async def test_submit_gives_up_in_time(stored: CommandLine, broker: Broker) -> None:
    """Replies that do not come within the timeout are counted, those that came are printed, and exit is 1."""
    async with worker(broker.url, deaf_to=1):
        ended = await stored("submit", "--wait", "--timeout", "1", "-", stdin=f"{job('a')}\n{job('b')}")
    assert ended.code == 1
    assert len(ended.out.splitlines()) == 1
    assert ended.err.startswith("1 of 2 replies did not come in time; the jobs go on")


async def test_submit_survives_a_lost_connection(stored: CommandLine, broker: Broker) -> None:
    """When the connection breaks while it waits, the same job is submitted again and its reply printed."""
    async with worker(broker.url, deaf_to=1) as came:
        submitting = asyncio.create_task(stored.process("submit", "--wait", "-", stdin=job("a")))
        await until(lambda: came)
        # The worker's connection is cut too; it has answered nothing yet.
        broker.close_connections()
        async with worker(broker.url):
            ended = await submitting
    assert (ended.code, json.loads(ended.out)["job_id"]) == (0, "a")


async def test_a_terminal_sees_progress_and_a_pipe_gets_clean_lines(
    stored: CommandLine, broker: Broker
) -> None:
    """The bar is on standard error, if that is a terminal; standard output holds JSON lines alone."""
    ours, theirs = os.openpty()
    try:
        async with worker(broker.url):
            both = f"{job('a')}\n{job('bad')}"
            ended = await stored.process("submit", "--wait", "-", stdin=both, terminal=theirs)
        seen = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert {json.loads(line)["job_id"] for line in ended.out.splitlines()} == {"a", "bad"}
    assert "replies, 1 failed" in seen
    assert "2/2" in seen
