"""Crashes under load, and the same job more than once."""

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.producer import completion, producing
from tests.support.scene import SECRET, Scene
from tests.support.upstream import ALWAYS, Act

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
ON_A_BUSY_MACHINE = 10
"""Seconds that may be lost to others, which a promise in seconds does not count."""
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def test_a01_killed_with_many_jobs_in_flight(scene: Scene) -> None:
    """Thirty jobs, ten at work, kill -9: each has one outcome, and only the ten may have cost twice."""
    scene.upstream.script(Act(delay=0.5, times=ALWAYS))
    worker = await scene.worker(WORKER_CONCURRENCY=10)
    for number in range(30):
        await scene.send(f"job-{number}")
    await scene.upstream.seen(15)
    await worker.kill()
    await scene.worker(WORKER_CONCURRENCY=10)
    await scene.replied(30)
    await scene.holds(extra_calls=10, unknown=10, unsent=10)


async def test_a01_killed_with_jobs_claimed_ahead(scene: Scene) -> None:
    """Short calls, then 32 that hang, kill -9: at most a quarter more wait for a place, and are in doubt."""
    places, quick, jobs = 32, 300, 400
    worker = await scene.worker(WORKER_CONCURRENCY=places)
    scene.upstream.script(Act(delay=0.05, times=quick), Act(delay=60, times=places))
    await asyncio.gather(*(scene.send(f"job-{number}") for number in range(jobs)))
    await scene.upstream.seen(quick + places, timeout=30)
    states: Counter[str] = Counter()
    async with asyncio.timeout(20):
        while states["succeeded"] < quick:
            states = Counter(row["state"] for row in await scene.rows("SELECT state FROM attempts"))
    assert states["in_flight"] > places
    await worker.kill()
    await scene.worker(WORKER_CONCURRENCY=places)
    await scene.replied(jobs)
    await scene.holds(extra_calls=places, unknown=places + places // 4, unsent=places // 4)


@ON_SQLITE
async def test_a05_copy_of_a_job_that_is_soon_done(scene: Scene) -> None:
    """The copy looks again after five seconds, however long the claim would last."""
    scene.upstream.script(Act(delay=2))
    worker = await scene.worker(WORKER_LEASE_SECONDS=120)
    await scene.send("one")
    await scene.upstream.seen(1)
    began = time.monotonic()
    await scene.send("one", properties={"correlation_id": "again"})
    await scene.replied(2)
    assert time.monotonic() - began < 8 + ON_A_BUSY_MACHINE
    assert len(worker.lines("job repeated", what="not now")) == 1
    await scene.holds()


@ON_SQLITE
async def test_a03_owed_reply_without_any_copy_of_its_job(scene: Scene) -> None:
    """The job's message is lost as well as its worker: another's sweep delivers within 20 s of the commit."""
    sweeper = await scene.worker(WORKER_LANES="embedding")
    await scene.died_on("reply:before:kill")
    await scene.forget_messages()
    (reply,) = await scene.replied(1)
    waited = datetime.now(UTC) - datetime.fromisoformat(reply["finished_at"])
    assert timedelta(seconds=14) < waited < timedelta(seconds=20 + ON_A_BUSY_MACHINE)
    assert sweeper.lines("job finished") == []
    await scene.holds()


async def test_a05_copy_while_the_first_is_at_work_elsewhere(scene: Scene) -> None:
    """One call; the copy is put aside, again and again, but neither spins nor holds a place."""
    scene.upstream.script(Act(delay=10))
    first, second = await scene.worker(WORKER_CONCURRENCY=1), await scene.worker(WORKER_CONCURRENCY=1)
    await scene.send("slow")
    await scene.upstream.seen(1)
    await scene.send("slow")
    await scene.send("quick")
    assert [reply["job_id"] for reply in await scene.replied(2)] == ["quick", "slow"]
    repeats = [worker.lines("job repeated", what="not now") for worker in (first, second)]
    assert 1 <= sum(map(len, repeats)) <= 4
    await scene.holds()


@ON_SQLITE
async def test_a08_killed_between_the_state_and_the_waiting_room(scene: Scene) -> None:
    """The job waits on record, its copy is redelivered: attempts numbered without gap or double."""
    scene.upstream.script(Act(status=503, headers={"retry-after": "6"}, times=2))
    await scene.died_on("wait:after:kill")
    second = await scene.worker("park:after:kill", wait=False)
    await scene.dies(second)
    await scene.worker()
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["attempts"]) == ("succeeded", 3)
    assert await scene.states() == ["failed", "failed", "succeeded"]
    await scene.holds(extra_calls=2)


@ON_SQLITE
async def test_a09_duplicates_of_everything(scene: Scene) -> None:
    """Each of twenty jobs published three times to two workers: twenty calls, equal replies."""
    await scene.worker()
    await scene.worker()
    for _ in range(3):
        for number in range(20):
            await scene.send(f"job-{number}")
    await scene.replied(20)
    await scene.holds()


@ON_SQLITE
async def test_a09_copy_for_another_queue_while_the_first_is_owed(scene: Scene) -> None:
    """The copy is answered where it asks; what is owed elsewhere stays owed."""
    await scene.died_on("reply:before:kill")
    async with producing(scene.broker.url) as other:
        await scene.send("one", properties={"reply_to": other.queue})
        await scene.worker()
        (copy,) = await other.received(1)
        (reply,) = await scene.replied(1)
    assert copy == reply
    await scene.holds()


@ON_SQLITE
async def test_a10_other_content_under_the_same_name(scene: Scene) -> None:
    """A conflict costs a failure reply and a dead letter; the job of that name is untouched, even at work."""
    scene.upstream.script(Act(delay=2))
    await scene.worker()
    await scene.send("one")
    await scene.upstream.seen(1)
    await scene.producer.send(completion("one", f"{SECRET} other"))
    conflict, good = await scene.replied(2)
    assert (conflict["status"], conflict["error"]["code"]) == ("failed", "conflict")
    assert good["status"] == "succeeded"
    await scene.holds(dead=1)
