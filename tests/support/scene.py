"""A stage for faults: a producer, a stand-in for OpenAI, a broker, a database, and workers that may die.

At its end a test calls `scene.holds(...)`, which stops the workers and checks the invariants.
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dev.folders import fresh_folder
from dev.rabbitmq import RabbitMQ
from tests.support.broker import plain, until
from tests.support.failpoints import FAILPOINT
from tests.support.invariants import Allowance, Evidence, check, ready_counts
from tests.support.process import WorkerProcess, running
from tests.support.producer import Producer, completion, producing
from tests.support.rows import rows
from tests.support.servers import Broker
from tests.support.upstream import Upstream
from worker.adapters.rabbitmq.topology import QUEUES
from worker.domain.job import JobKey

LEASE_SECONDS = 4
"""Short, since the dead are waited for; a busy machine must not make the living look dead."""
SETTLE_SECONDS = 45.0
START_SECONDS = 90.0
"""Several may start at a time, on a machine that has other things to do."""
SECRET = "the-prompt-that-no-log-may-show"
KEY = "sk-test-not-a-key"
_POLL_SECONDS = 0.1


class Scene:
    """What a fault test acts on."""

    def __init__(
        self,
        *,
        broker: Broker,
        database_url: str,
        upstream: Upstream,
        producer: Producer,
        folder: Path,
        stack: AsyncExitStack,
    ) -> None:
        self.broker = broker
        self.database_url = database_url
        self.upstream = upstream
        self.producer = producer
        self.workers: list[WorkerProcess] = []
        self._folder = folder
        self._stack = stack
        self._sent: dict[JobKey, None] = {}

    async def worker(
        self, failpoint: str | None = None, *, wait: bool = True, **settings: Any
    ) -> WorkerProcess:
        """Start a worker, with a failpoint if one is named; return once it consumes."""
        given = {
            "AMQP_URL": self.broker.url,
            "DATABASE_URL": self.database_url,
            "OPENAI_BASE_URL": self.upstream.base_url,
            "WORKER_LEASE_SECONDS": LEASE_SECONDS,
            "WORKER_LOG_LEVEL": "debug",
            "OPENAI_LOG": "debug",
            "WORKER_TOOLS": "tests.support.some_tools",
        } | settings
        if failpoint is not None:
            given[FAILPOINT] = failpoint
        worker = await self._stack.enter_async_context(
            running(
                "run",
                folder=self._folder,
                settings={name: str(value) for name, value in given.items()},
                module="worker" if failpoint is None else "tests.support.failpoints",
            )
        )
        self.workers.append(worker)
        if wait:
            await worker.ready(within=START_SECONDS)
        return worker

    async def send(self, job_id: str, text: str = "", **fields: Any) -> None:
        """Publish a completion job that is to be accepted; its text names it."""
        properties = fields.pop("properties", {})
        lane = fields.pop("lane", "completion")
        body = completion(job_id, f"{SECRET} <{job_id}> {text}", **fields)
        self.expect(job_id, body["tenant"])
        await self.producer.send(body, lane=lane, **properties)

    def configure(self, text: str) -> None:
        """Write the file that workers started from now on read their configuration from."""
        (self._folder / "worker.toml").write_text(text)

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run `openai-worker` to its end; return exit code and what it printed."""
        settings = {"AMQP_URL": self.broker.url, "DATABASE_URL": self.database_url}
        async with running(*arguments, folder=self._folder, settings=settings) as process:
            code = await process.ended(within=START_SECONDS)
            return code, "\n".join(line.get("text") or json.dumps(line) for line in process.log)

    async def rows(self, query: str) -> list[dict[str, Any]]:
        """Return what a query finds."""
        return await rows(self.database_url, query)

    async def dies(self, worker: WorkerProcess, *, within: float = 30.0) -> None:
        """Wait for a worker to fall over its failpoint."""
        assert await worker.ended(within=within) == -9, worker.tail()

    async def died_on(self, failpoint: str, **settings: Any) -> WorkerProcess:
        """Let a worker die over one job."""
        worker = await self.worker(failpoint, **settings)
        await self.send("one")
        await self.dies(worker)
        return worker

    async def replied(self, count: int, *, within: float = SETTLE_SECONDS) -> list[dict[str, Any]]:
        """Wait for so many replies in all."""
        return await self.producer.received(count, within=within)

    async def states(self, job_id: str = "one") -> list[str]:
        """Return the states of a job's attempts, in order."""
        found = await self.rows("SELECT job_id, state FROM attempts ORDER BY attempt_no")
        return [row["state"] for row in found if row["job_id"] == job_id]

    def tool_job(self, job_id: str, **options: Any) -> dict[str, Any]:
        """Return what `send` needs for a job that may add numbers."""
        job = completion(job_id, f"{SECRET} <{job_id}>", kind="tool", options=options)
        request = job["request"] | {"tools": [{"name": "add"}]}
        return {"job_id": job_id, "kind": "tool", "options": options, "request": request}

    def expect(self, job_id: str, tenant: str = "acme") -> None:
        """Count a job that was sent by other means among those that must have an outcome."""
        self._sent[JobKey(tenant, job_id)] = None

    async def forget_messages(self) -> None:
        """Lose every job's message, as a broker does that loses its disk."""
        async with plain(self.broker.url) as channel:
            for queue in QUEUES:
                await (await channel.get_queue(queue.name)).purge()

    async def use_durable_replies(self) -> None:
        """Have replies sent to a queue that outlives its connection."""
        self.producer = await self._stack.enter_async_context(producing(self.broker.url, queue="replies"))

    async def reconnect(self) -> None:
        """Open the producer's connection again, keeping what it has received."""
        before = self.producer
        again = producing(self.broker.url, queue=before.queue, replies=before.replies)
        self.producer = await self._stack.enter_async_context(again)

    async def settled(self, *, within: float = SETTLE_SECONDS, answered: int | None = None) -> None:
        """Wait until every job has its outcome, every reply is settled, and all queues are empty."""
        end = time.monotonic() + within
        wanted = len(self._sent) if answered is None else answered
        query = "SELECT job_id FROM jobs WHERE status IN ('waiting', 'running') OR reply_status = 'pending'"
        await until(lambda: len(self.producer.jobs_answered()) >= wanted, within=within)
        while len(await self.rows("SELECT job_id FROM jobs")) < len(self._sent) or await self.rows(query):
            await asyncio.sleep(_POLL_SECONDS)
            assert time.monotonic() < end, f"not settled: {await self.rows(query)}"
        quiet = 0  # between two looks a message may have gone from a room to its lane
        while quiet < 2:
            busy = {name: count for name, count in (await ready_counts(self.broker.url)).items() if count}
            quiet = 0 if busy else quiet + 1
            await asyncio.sleep(_POLL_SECONDS)
            assert time.monotonic() < end, f"not drained: {busy}"

    async def holds(self, *, within: float = SETTLE_SECONDS, **allowed: Any) -> None:
        """Wait until all is settled, stop the workers in good order, and check the invariants."""
        await self.settled(within=within, answered=len(self._sent) - allowed.get("undelivered", 0))
        for worker in self.workers:
            if worker.exit_code is None:
                assert await worker.terminate() == 0, worker.tail()
        await self.upstream.settled()
        secrets = (SECRET, KEY, *_passwords(self.broker.url, self.database_url))
        evidence = Evidence(
            sent=list(self._sent),
            replies=self.producer.replies,
            # A look at the models costs nothing and is no job's.
            requests=[seen for seen in self.upstream.requests if not seen.path.endswith("/models")],
            dead=await self.producer.dead(),
            logs=[worker.log for worker in self.workers],
            secrets=secrets,
            amqp_url=self.broker.url,
            database_url=self.database_url,
        )
        await check(evidence, Allowance(**allowed))


def _passwords(*urls: str) -> list[str]:
    return [url.split("@")[0].rpartition(":")[2] for url in urls if "@" in url]


@asynccontextmanager
async def staged(broker: Broker, database_url: str, folder: Path) -> AsyncIterator[Scene]:
    """Set the scene; all its processes are gone afterwards."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        producer = await stack.enter_async_context(producing(broker.url))
        yield Scene(
            broker=broker,
            database_url=database_url,
            upstream=upstream,
            producer=producer,
            folder=folder,
            stack=stack,
        )


@pytest.fixture
async def scene(broker: Broker, database_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    """Give a scene on this test's broker and database."""
    async with staged(broker, database_url, tmp_path) as staged_scene:
        yield staged_scene


@pytest.fixture
async def own_broker() -> AsyncIterator[Broker]:
    """Give a node of its own, for a test that steers it as a whole: others share the common one."""
    with fresh_folder() as folder:
        node = RabbitMQ(folder)
        try:
            await asyncio.to_thread(node.start)
            yield Broker(url=node.url, vhost="/", owner=node)
        finally:
            await asyncio.to_thread(node.stop, how=signal.SIGKILL)


@pytest.fixture
async def own_scene(own_broker: Broker, database_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    """Give a scene on a broker that nobody else uses."""
    async with staged(own_broker, database_url, tmp_path) as staged_scene:
        yield staged_scene
