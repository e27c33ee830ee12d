"""Real workers on a real broker and database, and a producer with a backlog."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika

from benchmarks.limits.strict import Quotas
from schemas.names import JOBS, LANES, RETRY_SECONDS, lane_queue
from tests.support.process import WorkerProcess, running
from tests.support.upstream import Upstream

WORKERS = 4
MODELS = (
    "steady",
    "steady_by_the_second",
    "change",
    "mixed",
    "storm",
    "silent_storm",
    "solo",
    "shut",
    "open",
    "shares",
    "flood",
)
LIMIT = """
[limits."limited-{model}"]
requests_per_minute = 600
tokens_per_minute = 90000
"""
TENANT = """
[tenants.heavy]
weight = 3
"""


class Fleet:
    """Workers that come and go, all on one quota."""

    def __init__(
        self, stack: AsyncExitStack, folder: Path, settings: Mapping[str, str], quotas: Quotas
    ) -> None:
        self.quotas = quotas
        self.workers: list[WorkerProcess] = []
        self._stack, self._folder, self._settings = stack, folder, settings

    async def start(self) -> WorkerProcess:
        """Start one more worker."""
        worker = await self._stack.enter_async_context(
            running("run", folder=self._folder, settings=self._settings)
        )
        self.workers.append(worker)
        await worker.ready(within=60)
        return worker

    async def publish(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Publish a backlog."""
        async with (
            await aio_pika.connect(self._settings["AMQP_URL"]) as connection,
            connection.channel() as channel,
        ):
            exchange = await channel.get_exchange(JOBS, ensure=False)
            publishes = [
                exchange.publish(
                    aio_pika.Message(
                        json.dumps(job).encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT
                    ),
                    routing_key="completion",
                )
                for job in jobs
            ]
            await asyncio.gather(*publishes)

    async def looked_through(self) -> None:
        """Wait until the workers have taken every job from the lane; what must wait is in waiting rooms."""
        async with (
            await aio_pika.connect(self._settings["AMQP_URL"]) as connection,
            connection.channel() as channel,
            asyncio.timeout(300),
        ):
            waiting: int | None = 1
            while waiting:
                await asyncio.sleep(0.1)
                queue = await channel.declare_queue(lane_queue(LANES[0]), passive=True)
                waiting = queue.declaration_result.message_count

    async def purge(self) -> None:
        """Forget the backlog, so that the next measurement starts alone."""
        async with (
            await aio_pika.connect(self._settings["AMQP_URL"]) as connection,
            connection.channel() as channel,
        ):
            for name in (*map(lane_queue, LANES[:1]), *(f"openai.retry.{n}s" for n in RETRY_SECONDS)):
                queue = await channel.get_queue(name, ensure=False)
                await queue.purge()


@asynccontextmanager
async def fleet(*, amqp_url: str, database_url: str, folder: Path) -> AsyncIterator[Fleet]:
    """Start an upstream and four workers."""
    quotas = Quotas()
    (folder / "worker.toml").write_text("".join(LIMIT.format(model=model) for model in MODELS) + TENANT)
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream(gate=quotas))
        settings = {
            "AMQP_URL": amqp_url,
            "DATABASE_URL": database_url,
            "OPENAI_BASE_URL": upstream.base_url,
            "WORKER_LOG_LEVEL": "warning",
            "WORKER_LANES": "completion",
            "WORKER_LOG_FORMAT": "json",
        }
        settings["WORKER_LOG_LEVEL"] = "info"
        mine = Fleet(stack, folder, settings, quotas)
        for _ in range(WORKERS):
            await mine.start()
        yield mine


def a_job(model: str, *, output: int = 90, tenant: str = "one", prompt: int = 41) -> dict[str, Any]:
    """Return a job whose request names tenant and job, for the upstream's log.

    `prompt` is in tokens as the upstream counts them.
    """
    job_id = secrets.token_hex(8)
    return {
        "version": 1,
        "kind": "completion",
        "job_id": job_id,
        "tenant": tenant,
        "request": {
            "model": model,
            "messages": [{"role": "user", "content": "abc " * prompt}],
            "max_completion_tokens": output,
            "user": f"{tenant}/{job_id}",
        },
    }
