"""The demo and the producers of the examples, run as their readers run them."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest

from dev.ports import free_ports
from dev.processes import bound
from tests.support.process import ROOT, StartWorker
from tests.support.rows import rows
from tests.support.servers import Broker
from tests.support.upstream import Act, Upstream

JOBS = 15
NANO = 1_000_000_000
STARTED = b"The worker consumes"


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Return a SQLite file: what the examples show does not depend on the database."""
    return f"sqlite:///{tmp_path / 'worker.db'}"


@asynccontextmanager
async def started(*arguments: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program in the project's folder, with nothing of it left at the end."""
    process = await asyncio.create_subprocess_exec(
        *bound(arguments, signal.SIGTERM),
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


async def run(*arguments: str, **variables: str) -> tuple[int | None, str]:
    """Run a program to its end; return the exit code and what it printed."""
    async with started(*arguments, **variables) as process:
        printed, _ = await process.communicate()
        return process.returncode, printed.decode()


async def test_the_demo_shows_every_kind_of_job_and_its_bill(broker: Broker, tmp_path: Path) -> None:
    """It ends well; the tables hold what it showed, and the bill follows from the unit prices in the rows."""
    code, printed = await run(
        sys.executable, "-m", "examples.demo", "--folder", str(tmp_path), AMQP_URL=broker.url
    )
    assert code == 0, printed
    assert f"All {JOBS} jobs ended as expected" in printed
    assert "stand-in (llmock) answers instead of OpenAI" in printed
    url = f"sqlite:///{tmp_path / 'openai-worker.db'}"
    jobs = await rows(url, "SELECT * FROM jobs")
    assert [job["job_id"] for job in jobs if job["status"] != "succeeded"] == ["wrong-parameter"]
    assert {job["reply_status"] for job in jobs} == {"sent"}
    assert {job["job_id"]: job["attempts"] for job in jobs if job["attempts"] > 1} == {
        "weather": 2,
        "search_products": 2,
        "429-first": 2,
    }
    attempts = await rows(url, "SELECT * FROM attempts")
    assert len(attempts) == sum(job["attempts"] for job in jobs) == JOBS + 3
    assert sorted(attempt["http_status"] for attempt in attempts if attempt["state"] == "rejected") == [
        400,
        429,
    ]
    await check_bill(url, json.loads(await report(url)))


async def report(url: str) -> str:
    """Ask for the bill once everything has been stopped, as the demo tells its readers to."""
    arguments = ["usage", "report", "--by", "tenant", "--json"]
    code, printed = await run(sys.executable, "-m", "worker", *arguments, DATABASE_URL=url)
    assert code == 0, printed
    return printed


async def check_bill(url: str, bill: list[dict[str, Any]]) -> None:
    """Compute the bill by hand and compare."""
    by_hand: dict[str, Decimal] = {}
    for row in await rows(url, "SELECT * FROM usage_ledger"):
        prices = json.loads(row["prices"])
        plain = row["input_tokens"] - row["cached_input_tokens"] - row["cache_write_tokens"]
        dollars = (
            plain * Decimal(prices["input"])
            + row["cached_input_tokens"] * Decimal(prices["cached_input"])
            + row["cache_write_tokens"] * Decimal(prices["cache_write"])
            + row["output_tokens"] * Decimal(prices["output"])
        ) / 1_000_000
        nano = (dollars * NANO).quantize(Decimal(1), ROUND_HALF_EVEN)
        assert row["cost_nano_usd"] == nano > 0
        by_hand[row["tenant"]] = by_hand.get(row["tenant"], Decimal(0)) + nano
    assert {row["tenant"]: Decimal(row["cost_usd"]) * NANO for row in bill} == by_hand
    assert len(by_hand) == 2


async def test_a_demo_that_is_stopped_stops_what_it_started(broker: Broker, tmp_path: Path) -> None:
    """SIGTERM in the middle leaves neither worker nor stand-in behind."""
    arguments = [sys.executable, "-m", "examples.demo", "--folder", str(tmp_path)]
    async with started(*arguments, AMQP_URL=broker.url) as process:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(STARTED):
                break
        children = pids(tmp_path)
        assert len(children) == 2
        assert all(map(runs, children))
        process.terminate()
        await process.communicate()
        assert process.returncode == 128 + signal.SIGTERM
        assert not any(map(runs, children))


def pids(folder: Path) -> list[int]:
    """Return the processes that the demo started, as they call themselves in their logs."""
    found = [
        re.search(pattern, (folder / name).read_text())
        for name, pattern in (
            ("worker.log", r'"pid":(\d+)'),
            ("stand-in.log", r"Started server process \[(\d+)\]"),
        )
    ]
    return [int(match[1]) for match in found if match]


def runs(pid: int) -> bool:
    """Tell whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_demo_without_a_key_cannot_be_live(tmp_path: Path) -> None:
    """LIVE=1 says in one line what it needs, and starts nothing."""
    variables = {"LIVE": "1", "AMQP_URL": "amqp://127.0.0.1:1/"}
    code, printed = await run(sys.executable, "-m", "examples.demo", "--folder", str(tmp_path), **variables)
    assert (code, printed) == (1, "LIVE=1 asks OpenAI itself and needs OPENAI_API_KEY\n")


async def test_what_the_readme_says_to_try_works(broker: Broker, database_url: str) -> None:
    """Its commands, word for word: every producer gets its answer, and the worker stops cleanly."""
    section = (ROOT / "README.md").read_text().partition("\n## Try it\n")[2].partition("\n## ")[0]
    commands = section.split("```\n")[5]
    programs = Path(sys.executable).parent
    async with Upstream() as upstream:
        code, printed = await run(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            f"{commands}\nkill %1\nwait %1",
            PATH=f"{programs}:{os.environ['PATH']}",
            AMQP_URL=broker.url,
            DATABASE_URL=database_url,
            OPENAI_API_KEY="sk-test-not-a-key",
            OPENAI_BASE_URL=upstream.base_url,
            WORKER_HTTP_PORT="0",
        )
        assert code == 0, printed
        assert len(upstream.requests) == 3
    jobs = await rows(database_url, "SELECT job_id, status, reply_status FROM jobs ORDER BY job_id")
    assert [tuple(job.values()) for job in jobs] == [
        (job_id, "succeeded", "sent") for job_id in ("plain-1", "question", "sky-1")
    ]


async def test_the_stand_in_of_the_readme_needs_no_key(broker: Broker, database_url: str) -> None:
    """Its two lines make all that follows work without OpenAI: the prompt comes back."""
    section = (ROOT / "README.md").read_text().partition("\n## Try it\n")[2].partition("\n## ")[0]
    stand_in, commands = section.split("```\n")[3:6:2]
    (port,) = free_ports(1)
    script = f"{stand_in}{commands}\nkill %2\nwait %2\nkill %1".replace("8181", str(port))
    code, printed = await run(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        AMQP_URL=broker.url,
        DATABASE_URL=database_url,
        WORKER_HTTP_PORT="0",
    )
    assert code == 0, printed
    assert "Why is the sky blue?" in printed


async def test_a_producer_says_what_went_wrong(broker: Broker, start_worker: StartWorker) -> None:
    """A failure is printed as a sentence, not as Python would write it."""
    async with Upstream() as upstream, start_worker(OPENAI_BASE_URL=upstream.base_url):
        upstream.script(Act(status=400, error={"message": "Unsupported parameter: 'x'."}))
        code, printed = await run(sys.executable, "examples/producer.py", AMQP_URL=broker.url)
    assert (code, printed) == (0, "rejected: Unsupported parameter: 'x'.\n")


async def test_a_job_that_is_sent_again_is_answered_from_the_stored_reply(
    broker: Broker, start_worker: StartWorker
) -> None:
    """The plain producer, run twice, prints the same and costs one request."""
    async with Upstream() as upstream, start_worker(OPENAI_BASE_URL=upstream.base_url):
        first, second = [
            await run(sys.executable, "examples/producer_plain.py", AMQP_URL=broker.url) for _ in range(2)
        ]
        assert first[0] == 0, first[1]
        assert first == second
        assert len(upstream.requests) == 1
