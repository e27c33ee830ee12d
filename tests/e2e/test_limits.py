"""The limits as an operator meets them: a real worker that waits, and the commands that say why."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.process import StartWorker, running
from tests.support.producer import completion, producing
from tests.support.servers import Broker
from tests.support.upstream import Act, Upstream

pytestmark = pytest.mark.slow

MODEL = "gpt-6-luna"


async def output(folder: Path, database_url: str, *arguments: str) -> tuple[int, str]:
    """Run a command to its end; return exit code and what it printed."""
    async with running(*arguments, folder=folder, settings={"DATABASE_URL": database_url}) as command:
        code = await command.ended()
        lines = [line.get("text") or json.dumps(line) for line in command.log]
        return code, "\n".join(lines)


async def test_pausing_explaining_and_resuming(
    broker: Broker, start_worker: StartWorker, database_url: str, tmp_path: Path
) -> None:
    """A paused model's jobs wait and say so; once it is resumed, they are answered."""
    async with (
        Upstream() as upstream,
        start_worker(OPENAI_BASE_URL=upstream.base_url),
        producing(broker.url) as producer,
    ):
        code, _ = await output(tmp_path, database_url, "limits", "pause", MODEL)
        assert code == 0
        await producer.send(completion("one"))
        async with asyncio.timeout(20):
            while True:
                code, text = await output(
                    tmp_path, database_url, "jobs", "explain", "one", "--tenant", "acme"
                )
                if "is paused until" in text:
                    break
        code, text = await output(tmp_path, database_url, "limits", "show")
        assert code == 0
        assert MODEL in text
        assert "paused" in text
        assert upstream.requests == []
        code, _ = await output(tmp_path, database_url, "limits", "resume", MODEL)
        assert code == 0
        await producer.send(completion("two"))
        replies = await producer.received(1)
        assert all(reply["status"] == "succeeded" for reply in replies)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_credentials_that_are_refused_keep_the_jobs(broker: Broker, start_worker: StartWorker) -> None:
    """One request finds out; the others wait in rooms, and an alert is logged."""
    refusal = Act(status=429, error={"code": "insufficient_quota", "type": "insufficient_quota"}, times=1000)
    async with (
        Upstream() as upstream,
        start_worker(OPENAI_BASE_URL=upstream.base_url) as worker,
        producing(broker.url) as producer,
    ):
        upstream.script(refusal)
        for number in range(5):
            await producer.send(completion(f"job-{number}"))
        await worker.logged("credentials closed", reason="insufficient_quota")
        await worker.logged("job waits", count=5)
        assert len(upstream.requests) == 1
        assert producer.replies == []
