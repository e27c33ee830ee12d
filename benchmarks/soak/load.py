"""The state of a run: workers that are started whenever one ends, and a producer that never gives up."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika

from tests.support.broker import Proxy, until
from tests.support.process import WorkerProcess, running
from tests.support.producer import Producer, completion, producing
from tests.support.upstream import Act, Seen, Upstream
from worker.domain.job import JobKey

WORKERS = 3
CONCURRENCY = 16
JOBS_A_SECOND = 12.0
MOST_UNANSWERED = 400
PROMPT = "the-prompt-that-no-log-may-show"
SETTINGS = {
    "WORKER_LEASE_SECONDS": "4",
    "WORKER_CONCURRENCY": str(CONCURRENCY),
    "WORKER_GRACE_SECONDS": "2",
    "WORKER_MAX_ATTEMPTS": "100",
    "WORKER_LANES": "completion",
    "WORKER_LOG_LEVEL": "info",
}


@dataclass
class Soak:
    """The state of a run."""

    upstream: Upstream
    proxy: Proxy
    amqp_url: str
    database_url: str
    folder: Path
    ends: float
    producer: Producer | None = None
    replies: list[aio_pika.abc.AbstractIncomingMessage] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    workers: list[WorkerProcess] = field(default_factory=list)
    logs: list[list[dict[str, Any]]] = field(default_factory=list)
    sent: list[JobKey] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    misbehaving_until: float = 0.0
    measured: list[tuple[float, int]] = field(default_factory=list)
    _counted: int = 0

    @property
    def kind(self) -> str:
        """Which database it runs on."""
        return self.database_url.partition(":")[0]

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.ends

    @property
    def unanswered(self) -> int:
        """How many jobs have no reply yet."""
        for message in self.replies[self._counted :]:
            self.answered.add(json.loads(message.body)["job_id"])
        self._counted = len(self.replies)
        return len(self.sent) - len(self.answered)

    def act(self, _seen: Seen) -> Act:
        """Say how OpenAI answers a request."""
        delay = random.uniform(0.02, 0.4)
        if time.monotonic() > self.misbehaving_until or random.random() < 0.3:
            return Act(delay=delay)
        return random.choice(
            [
                Act(delay=delay, status=500),
                Act(delay=delay, status=503, headers={"retry-after-ms": "300"}),
                Act(delay=delay, status=429, headers={"retry-after-ms": "300"}),
                Act(delay=delay, fault="reset"),
                Act(delay=delay, fault="close"),
                Act(delay=delay, fault="half"),
                Act(delay=delay, body="<html>Bad Gateway</html>"),
            ]
        )


async def keep_alive(soak: Soak, place: int) -> None:
    """Run a worker, and another one whenever it ends."""
    while True:
        environment = {
            "AMQP_URL": soak.proxy.url,
            "DATABASE_URL": soak.database_url,
            "OPENAI_BASE_URL": soak.upstream.base_url,
            **SETTINGS,
        }
        async with running("run", folder=soak.folder, settings=environment) as worker:
            soak.workers[place] = worker
            soak.logs.append(worker.log)
            await worker.ended(within=float("inf"))
            if soak.over and worker.exit_code == 0:
                return


async def produce(soak: Soak) -> None:
    """Publish jobs at a steady rate, some of them twice; hold back while too many are unanswered."""
    number = 0
    while not soak.over:
        await asyncio.sleep(1 / JOBS_A_SECOND)
        if soak.unanswered > MOST_UNANSWERED:
            continue
        number += 1
        key = JobKey("acme", f"job-{number}")
        body = completion(key.job_id, f"{PROMPT} <{key.job_id}>")
        soak.sent.append(key)
        for _ in range(2 if number % 20 == 0 else 1):
            await publish(soak, body)


async def publish(soak: Soak, body: dict[str, Any]) -> None:
    """Publish until the broker has confirmed, as the guide asks of producers."""
    while True:
        try:
            async with asyncio.timeout(5):
                await until(lambda: soak.producer)
                assert soak.producer
                await soak.producer.send(body)
        except (
            aio_pika.exceptions.AMQPError,
            RuntimeError,
            OSError,
            TimeoutError,
            asyncio.InvalidStateError,
        ):
            await asyncio.sleep(0.3)
        else:
            return


async def stay_connected(soak: Soak) -> None:
    """Give the producer a new connection whenever its own is lost; what it has received stays."""
    while True:
        with contextlib.suppress(Exception):
            async with producing(soak.amqp_url, queue="replies", replies=soak.replies) as producer:
                soak.producer = producer
                await producer.lost()
        await asyncio.sleep(0.3)
