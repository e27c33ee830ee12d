"""A worker killed at every step of a job's way; another one takes it to its end.

The steps are those of `Processor`: take in, claim with intent, call, commit the outcome, reply, acknowledge.
Each test ends with the invariants: one outcome, one reply (copies identical), a booking for every request.
"""

import asyncio
import signal
from typing import Any

import pytest

from tests.support.broker import until
from tests.support.databases import execute
from tests.support.scene import LEASE_SECONDS, Scene
from tests.support.upstream import Act

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what does not depend on the database."""


async def succeeded(scene: Scene, *, attempts: int) -> None:
    """Wait for the first reply, which is good and counts so many attempts."""
    reply = (await scene.replied(1))[0]
    assert (reply["status"], reply["attempts"]) == ("succeeded", attempts), reply


async def test_cp01_killed_before_the_claim(scene: Scene) -> None:
    """Nothing is on record, so the next worker begins: one call."""
    await scene.died_on("claim:before:kill")
    await scene.worker()
    await succeeded(scene, attempts=1)
    await scene.holds()


async def test_cp02_killed_between_a_claim_and_the_next_intent(scene: Scene) -> None:
    """The finished attempt stays finished, and the next worker makes the next one: nothing is in doubt."""
    scene.upstream.script(Act(status=503))
    await scene.died_on("next_attempt:before:kill")
    await scene.worker()
    await succeeded(scene, attempts=2)
    assert await scene.states() == ["failed", "succeeded"]
    await scene.holds(extra_calls=1)


@ON_SQLITE
async def test_cp02_a_copy_that_meets_a_live_lease_waits_in_a_room(scene: Scene) -> None:
    """While the dead worker still counts as alive, the copy comes back every five seconds, not at once."""
    await scene.died_on("send:before:kill", WORKER_LEASE_SECONDS=14)
    worker = await scene.worker()
    await worker.logged("job repeated", what="not now")
    await succeeded(scene, attempts=2)
    assert len(worker.lines("job repeated", what="not now")) <= 4
    await scene.holds(unsent=1, unknown=1)


async def test_cp03_killed_between_intent_and_request(scene: Scene) -> None:
    """Nobody can tell this from a request under way: the attempt is unknown, and booked as an estimate."""
    await scene.died_on("send:before:kill")
    await scene.worker()
    await succeeded(scene, attempts=2)
    assert await scene.states() == ["unknown", "succeeded"]
    assert len(scene.upstream.requests) == 1
    await scene.holds(unsent=1, unknown=1)


async def test_cp04_killed_while_openai_answers(scene: Scene) -> None:
    """A second call, and perhaps a second charge, that nobody can avoid: both are in the ledger."""
    scene.upstream.script(Act(fault="stall"))
    worker = await scene.worker()
    await scene.send("one")
    await scene.upstream.seen(1)
    await worker.kill()
    await scene.worker()
    await succeeded(scene, attempts=2)
    assert await scene.states() == ["unknown", "succeeded"]
    entries = await scene.rows("SELECT attempt_no, entry FROM usage_ledger ORDER BY attempt_no")
    assert [(row["attempt_no"], row["entry"]) for row in entries] == [(1, "estimated"), (2, "measured")]
    reply = (await scene.replied(1))[0]
    assert (reply["usage"]["requests"], reply["usage"]["cost_status"]) == (2, "estimated")
    await scene.holds(extra_calls=1, unknown=1)


async def test_cp05_killed_with_the_answer_in_memory(scene: Scene) -> None:
    """The answer died with its process: as if it had been killed during the call."""
    await scene.died_on("finish:before:kill")
    await scene.worker()
    await succeeded(scene, attempts=2)
    assert await scene.states() == ["unknown", "succeeded"]
    await scene.holds(extra_calls=1, unknown=1)


async def test_cp06_commit_whose_confirmation_is_lost(scene: Scene) -> None:
    """The same outcome is written again and is there once; OpenAI is not asked again."""
    worker = await scene.worker("transaction:after:lose@FinishJob")
    await scene.send("one")
    await succeeded(scene, attempts=1)
    await worker.logged("server is back", server="database")
    assert await scene.states() == ["succeeded"]
    await scene.holds()


async def test_cp06_claim_whose_confirmation_is_lost(scene: Scene) -> None:
    """The claim is recognized as ours: one attempt, one call."""
    worker = await scene.worker("transaction:after:lose@ClaimJob")
    await scene.send("one")
    await succeeded(scene, attempts=1)
    await worker.logged("server is back", server="database")
    await scene.holds()


async def test_cp07_killed_after_the_commit(scene: Scene) -> None:
    """The copy finds the job done: no call, and the stored reply is sent."""
    await scene.died_on("finish:after:kill")
    await scene.worker()
    await succeeded(scene, attempts=1)
    await scene.holds()


@ON_SQLITE
async def test_cp08_killed_before_the_acknowledgement(scene: Scene) -> None:
    """The job is done and the delivery comes again: no call, and the stored reply is sent."""
    await scene.died_on("ack:before:kill")
    worker = await scene.worker()
    await worker.logged("job repeated", what="done")
    await scene.holds()


@ON_SQLITE
async def test_cp09_killed_before_the_reply(scene: Scene) -> None:
    """The owed reply is in the database, and nowhere else: the sweep of whoever runs sends it."""
    await scene.died_on("reply:before:kill")
    assert scene.producer.replies == []
    await scene.worker()
    await succeeded(scene, attempts=1)
    await scene.holds()


@ON_SQLITE
async def test_cp10_killed_before_the_broker_has_confirmed_the_reply(scene: Scene) -> None:
    """The reply is sent again, byte for byte the same and with the same `x-reply-id`."""
    await scene.died_on("confirm:before:kill")
    await scene.worker()
    await scene.replied(2)
    first, second = scene.producer.replies
    assert first.headers["x-reply-id"] == second.headers["x-reply-id"]
    assert first.message_id != second.message_id
    await scene.holds()


@ON_SQLITE
async def test_cp11_killed_before_the_confirmation_is_noted(scene: Scene) -> None:
    """As if the confirmation had not come: a second, equal reply."""
    await scene.died_on("sent:before:kill")
    await scene.worker()
    await scene.replied(2)
    await scene.holds()


async def test_cp12_reply_queue_that_is_gone(scene: Scene) -> None:
    """The job stays done and its result can be asked for; the reply is tried a few times, then given up."""
    worker = await scene.worker()
    await scene.send("one", properties={"reply_to": "nobody-listens-here"})
    await worker.logged("reply returned", count=1)
    for count in range(2, 5):
        await execute(scene.database_url, "UPDATE jobs SET reply_due_at = received_at")
        await worker.logged("reply returned", count=count)
    await execute(scene.database_url, "UPDATE jobs SET reply_due_at = received_at")
    await worker.logged("reply undeliverable")
    (job,) = await scene.rows("SELECT status, reply_status FROM jobs")
    assert (job["status"], job["reply_status"]) == ("succeeded", "undeliverable")
    assert len(await scene.rows("SELECT body FROM results")) == 1
    # Asked for again, under an address that exists: the stored result, without a call.
    await scene.send("one")
    await succeeded(scene, attempts=1)
    await scene.holds()


@ON_SQLITE
async def test_cp13_killed_between_waiting_room_and_acknowledgement(scene: Scene) -> None:
    """Two copies of one waiting job: one of them runs it, the other finds it done."""
    scene.upstream.script(Act(status=503, headers={"retry-after": "6"}))
    await scene.died_on("park:after:kill")
    await scene.worker()
    await succeeded(scene, attempts=2)
    assert await scene.states() == ["failed", "succeeded"]
    await scene.holds(extra_calls=1)


async def test_cp14_told_to_stop_during_a_call(scene: Scene) -> None:
    """After the grace period the call is closed, booked as an estimate, and the job handed back; exit 0."""
    scene.upstream.script(Act(fault="stall"))
    worker = await scene.worker(WORKER_GRACE_SECONDS=0.5)
    await scene.send("one")
    await scene.upstream.seen(1)
    assert await worker.terminate() == 0
    (job,) = await scene.rows("SELECT status, attempts, takeovers FROM jobs")
    assert job == {"status": "waiting", "attempts": 1, "takeovers": 0}
    assert await scene.states() == ["unknown"]
    await scene.worker()
    await succeeded(scene, attempts=2)
    await scene.holds(extra_calls=1, unknown=1)


@ON_SQLITE
async def test_cp14_second_signal_ends_at_once(scene: Scene) -> None:
    """Who tells a worker twice is not made to wait; what it held goes to the next."""
    scene.upstream.script(Act(fault="stall"))
    worker = await scene.worker()
    await scene.send("one")
    await scene.upstream.seen(1)
    worker.send(signal.SIGTERM)
    await worker.logged("stopping")
    worker.send(signal.SIGTERM)
    assert await worker.ended(within=15) == 130  # half of the grace period
    await scene.worker()
    await succeeded(scene, attempts=2)
    await scene.holds(extra_calls=1, unknown=1)


@ON_SQLITE
async def test_cp15_broker_loses_patience_during_a_call(own_scene: Scene) -> None:
    """Its consumer timeout closes the channel and delivers again; the call goes on and is the only one."""
    scene, node = own_scene, own_scene.broker.node
    node.evaluate("application:set_env(rabbit, channel_tick_interval, 500).")
    node.evaluate("application:set_env(rabbit, consumer_timeout, 1000).")
    scene.upstream.script(Act(delay=10))
    worker = await scene.worker()
    await scene.send("one")
    await worker.logged("job repeated", what="not now")
    node.evaluate("application:set_env(rabbit, consumer_timeout, 1800000).")
    await succeeded(scene, attempts=1)
    await scene.holds()


async def test_cp16_worker_that_stood_still_and_wakes_up(scene: Scene) -> None:
    """Its job was taken over meanwhile: what it had spent is recorded, its result is not."""
    zombie = await scene.worker("finish:before:freeze")
    await scene.send("one")
    await zombie.logged("failpoint finish")
    await scene.worker()
    await asyncio.sleep(LEASE_SECONDS)
    await scene.send("one")
    await succeeded(scene, attempts=2)
    zombie.send(signal.SIGCONT)
    await zombie.logged("job repeated", what="taken over")
    assert await scene.states() == ["succeeded", "succeeded"]
    entries = await scene.rows(
        "SELECT attempt_no, entry, estimated_requests AS open FROM usage_ledger ORDER BY id"
    )
    assert sorted((row["attempt_no"], row["entry"], row["open"]) for row in entries) == [
        (1, "correction", -1),
        (1, "correction", 0),
        (1, "estimated", 1),
        (2, "measured", 0),
    ]
    await scene.holds(extra_calls=1)


@ON_SQLITE
async def test_cp17_answer_cut_in_the_middle(scene: Scene) -> None:
    """The usage never came: the attempt is booked at its upper bound, not at nothing."""
    scene.upstream.script(Act(fault="half"))
    await scene.worker()
    await scene.send("one")
    await succeeded(scene, attempts=2)
    assert await scene.states() == ["unknown", "succeeded"]
    (row,) = await scene.rows(
        "SELECT input_tokens, output_tokens FROM usage_ledger WHERE entry = 'estimated'"
    )
    assert row["input_tokens"] > 0
    assert row["output_tokens"] > 0
    await scene.holds(extra_calls=1, unknown=1)


async def test_cp19_killed_with_a_place_in_the_limits(scene: Scene) -> None:
    """What it had reserved holds nobody up: the limit is respected, and the job goes on."""
    limits: dict[str, Any] = {"WORKER_REQUESTS_PER_MINUTE": 120}
    await scene.died_on("send:before:kill", **limits)
    await scene.worker(**limits)
    await succeeded(scene, attempts=2)
    await scene.holds(unsent=1, unknown=1, requests_per_minute=120, burst=120)


async def test_cp05_database_gone_with_the_answer_in_memory(scene: Scene) -> None:
    """The answer is kept until it can be written; OpenAI is not asked again because the database failed."""
    worker = await scene.worker("transaction:before:lose@FinishJob#1 transaction:before:lose@FinishJob#2")
    await scene.send("one")
    await worker.logged("server is back", server="database")
    await succeeded(scene, attempts=1)
    await until(lambda: len(scene.upstream.requests) == 1)
    await scene.holds()
