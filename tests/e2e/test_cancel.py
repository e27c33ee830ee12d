"""Cancelling: before the job comes, while it waits, while it runs."""

import asyncio
import json

import aio_pika
import pytest

from tests.support.process import StartWorker
from tests.support.producer import completion, producing
from tests.support.rows import rows
from tests.support.servers import Broker
from tests.support.upstream import Act, Upstream

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def cancel(broker: Broker, job_id: str) -> None:
    """Publish a cancel request as the contract says."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("openai.control", ensure=False)
        body = json.dumps({"tenant": "acme", "job_id": job_id}).encode()
        await exchange.publish(aio_pika.Message(body), routing_key="cancel")


async def test_a_running_call_is_closed_and_counted_as_an_estimate(
    broker: Broker, start_worker: StartWorker, database_url: str
) -> None:
    """The reply comes at once, and the ledger says that nobody knows what it cost."""
    async with (
        Upstream() as upstream,
        start_worker(OPENAI_BASE_URL=upstream.base_url),
        producing(broker.url) as producer,
    ):
        upstream.script(Act(fault="stall"))
        await producer.send(completion("one"))
        await upstream.seen(1)
        await cancel(broker, "one")
        (reply,) = await producer.received(1, within=10)
        assert (reply["status"], reply["error"]["code"]) == ("cancelled", "cancelled")
        assert reply["usage"]["cost_status"] == "estimated"
        (attempt,) = await rows(database_url, "SELECT state FROM attempts")
        (entry,) = await rows(database_url, "SELECT entry FROM usage_ledger")
        assert (attempt["state"], entry["entry"]) == ("unknown", "estimated")


async def test_a_waiting_job_is_answered_at_once_and_never_starts(
    broker: Broker, start_worker: StartWorker, database_url: str
) -> None:
    """It does not have to come out of its waiting room first."""
    async with (
        Upstream() as upstream,
        start_worker(OPENAI_BASE_URL=upstream.base_url) as worker,
        producing(broker.url) as producer,
    ):
        upstream.script(Act(status=429, headers={"retry-after": "600"}))
        await producer.send(completion("one"))
        await worker.logged("job waits")
        await cancel(broker, "one")
        (reply,) = await producer.received(1, within=10)
        assert reply["status"] == "cancelled"
        assert len(upstream.requests) == 1
        (job,) = await rows(database_url, "SELECT status FROM jobs")
        assert job["status"] == "cancelled"


async def test_a_request_that_overtakes_its_job_is_kept(broker: Broker, start_worker: StartWorker) -> None:
    """The job is answered as cancelled when it comes, without a call."""
    async with (
        Upstream() as upstream,
        start_worker(OPENAI_BASE_URL=upstream.base_url),
        producing(broker.url) as producer,
    ):
        await cancel(broker, "one")
        await asyncio.sleep(0.5)  # nothing tells a producer that its request has been kept
        reply = await producer.ask(completion("one"))
        assert reply["status"] == "cancelled"
        assert upstream.requests == []
