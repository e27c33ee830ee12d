"""Jobs that are cancelled, too late, too long or too large; and a worker that is told to stop."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import aio_pika
import pytest

from tests.support.broker import plain
from tests.support.scene import Scene
from tests.support.upstream import ALWAYS, Act

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(120),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


async def cancel(scene: Scene, job_id: str) -> None:
    """Publish a cancel request."""
    async with plain(scene.broker.url) as channel:
        exchange = await channel.get_exchange("openai.control")
        body = json.dumps({"tenant": "acme", "job_id": job_id}).encode()
        await exchange.publish(aio_pika.Message(body), routing_key="cancel")


async def test_g01_running_call_is_cancelled(scene: Scene) -> None:
    """The call is closed, its cost booked as an estimate, the reply says cancelled."""
    scene.upstream.script(Act(fault="stall"))
    await scene.worker()
    await scene.send("one")
    await scene.upstream.seen(1)
    await cancel(scene, "one")
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("cancelled", "cancelled")
    assert reply["usage"]["cost_status"] == "estimated"
    (seen,) = await scene.upstream.settled()
    assert seen.outcome == "abandoned"
    await scene.holds(unknown=1)


async def test_g02_waiting_job_never_starts(scene: Scene) -> None:
    """Cancelled while it waits for its second try: no second call."""
    scene.upstream.script(Act(status=503, headers={"retry-after": "25"}))
    worker = await scene.worker()
    await scene.send("one")
    await worker.logged("job waits")
    await cancel(scene, "one")
    (reply,) = await scene.replied(1)
    assert reply["status"] == "cancelled"
    assert len(scene.upstream.requests) == 1
    await scene.holds()


async def test_g03_cancelled_before_it_came(scene: Scene) -> None:
    """The request is kept; the job is answered without a call."""
    await scene.worker()
    await cancel(scene, "one")
    async with asyncio.timeout(10):
        while not await scene.rows("SELECT * FROM jobs"):  # noqa: ASYNC110 (a state of the database)
            await asyncio.sleep(0.05)
    await scene.send("one")
    (reply,) = await scene.replied(1)
    assert reply["status"] == "cancelled"
    assert scene.upstream.requests == []
    await scene.holds()


async def test_g04_deadline_in_the_past(scene: Scene) -> None:
    """Expired without a call."""
    await scene.worker()
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    await scene.send("one", options={"deadline": past})
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("expired", "expired")
    assert scene.upstream.requests == []
    await scene.holds()


async def test_g05_work_counts_over_takeovers(scene: Scene) -> None:
    """Time spent before a handover is spent: `timeout_seconds` bounds the job's work in total."""
    scene.upstream.script(Act(fault="stall", times=ALWAYS))
    worker = await scene.worker(WORKER_GRACE_SECONDS=1.5)
    await scene.send("one", options={"timeout_seconds": 4})
    await scene.upstream.seen(1)
    assert await worker.terminate() == 0
    await scene.worker()
    await scene.upstream.seen(2)
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "timeout")
    first, second = scene.upstream.requests
    (job,) = await scene.rows("SELECT worked_ms FROM jobs")
    assert job["worked_ms"] >= 1000
    assert second.monotonic > first.monotonic
    await scene.holds(extra_calls=1, unknown=2)


async def test_g06_stopped_under_load(scene: Scene) -> None:
    """SIGTERM: running calls are finished, the rest handed back untouched: one call a job, exit 0."""
    scene.upstream.script(Act(delay=0.5, times=ALWAYS))
    worker = await scene.worker(WORKER_CONCURRENCY=5)
    for number in range(30):
        await scene.send(f"job-{number}")
    await scene.upstream.seen(7)
    assert await worker.terminate() == 0
    await scene.worker(WORKER_CONCURRENCY=5)
    await scene.replied(30)
    rows = await scene.rows("SELECT DISTINCT attempts, takeovers FROM jobs")
    assert rows == [{"attempts": 1, "takeovers": 0}]
    await scene.holds()
