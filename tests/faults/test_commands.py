"""What an operator does about lost and dead messages, with the command as a process beside the worker."""

import asyncio
import json

import pytest

from tests.support.broker import count, linked, plain
from tests.support.scene import Scene
from tests.support.upstream import Act
from worker.adapters.rabbitmq.topology import DELIVERY_LIMIT

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(120),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


async def give_back_until_dead(scene: Scene) -> None:
    """Take the next job and hand it back, again and again, until the broker gives it up."""
    async with plain(scene.broker.url) as channel:
        queue = await channel.get_queue("openai.jobs.completion")
        for _ in range(DELIVERY_LIMIT + 1):
            message = await queue.get(timeout=10)
            assert message
            await message.nack(requeue=True)
    async with asyncio.timeout(20):
        while not await count(scene.broker.url, "openai.dead"):  # noqa: ASYNC110 (a state of the broker)
            await asyncio.sleep(0.1)


async def test_g07_dead_letter_is_sent_again(scene: Scene) -> None:
    """A job that the broker gave up is listed with its reason; replayed, it is done, and no letter left."""
    async with linked(scene.broker.url):
        pass  # all queues are there
    await scene.send("one")
    await give_back_until_dead(scene)
    worker = await scene.worker()
    code, text = await scene.command("dead", "list", "--json")
    assert code == 0
    (letter,) = json.loads(text)
    assert (letter["job_id"], letter["tenant"], letter["lane"]) == ("one", "acme", "completion")
    assert "given up by the broker" in letter["reason"]
    assert scene.upstream.requests == []
    assert (await scene.command("dead", "replay", letter["id"]))[0] == 0
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["attempts"]) == ("succeeded", 1)
    assert (await scene.command("dead", "replay", letter["id"]))[0] == 1
    assert len(worker.lines("job finished")) == 1
    await scene.holds()


async def test_g08_job_whose_message_is_lost_is_sent_again(scene: Scene) -> None:
    """Its worker is dead and its message purged: `jobs replay` brings it to its end; twice is once."""
    scene.upstream.script(Act(fault="stall"))
    worker = await scene.worker()
    await scene.send("one")
    await scene.upstream.seen(1)
    await worker.kill()
    await scene.forget_messages()
    await scene.worker()
    for _ in range(2):
        code, text = await scene.command("jobs", "replay", "one", "--tenant", "acme")
        assert code == 0, text
    (reply, *_) = await scene.replied(1)
    assert (reply["status"], reply["attempts"]) == ("succeeded", 2)
    assert await scene.states() == ["unknown", "succeeded"]
    await scene.holds(extra_calls=1, unknown=1)
