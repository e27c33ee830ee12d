"""Dead letters on a real broker."""

import asyncio
from datetime import UTC, datetime

import pytest

from schemas.names import DEAD, lane_queue
from tests.support.broker import count, delivery, linked, plain, send_job, take
from worker.adapters.rabbitmq.dead import DeadLetters
from worker.adapters.rabbitmq.publisher import RabbitPublisher
from worker.adapters.rabbitmq.topology import DELIVERY_LIMIT, TopologyError
from worker.ports import PublishError

BODY = b'{"job_id": "j-1", "tenant": "acme", "kind": "tool"}'


async def test_a_buried_letter_tells_who_why_and_when(amqp_url: str) -> None:
    """Browse names job, tenant, lane, reason and time; find gives the same letter by its id."""
    async with linked(amqp_url) as link:
        received_at = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
        await RabbitPublisher(link).bury(
            delivery(body=BODY, lane="tool", high=True, received_at=received_at), "no model"
        )
        letters = DeadLetters(link)
        [letter] = await letters.browse(10)
        assert (letter.job_id, letter.tenant, letter.lane) == ("j-1", "acme", "tool.high")
        assert (letter.reason, letter.died_at) == ("no model", received_at)
        assert letter.delivery.body == BODY
        found = await letters.find(letter.id)
        assert found
        assert found.delivery.body == BODY
        assert await letters.find("unknown") is None


async def test_a_letter_without_a_tenant_is_of_the_default_one(amqp_url: str) -> None:
    """As the reply to its producer said; what cannot be read belongs to nobody."""
    async with linked(amqp_url) as link:
        for body in (b'{"job_id": "j-1"}', b"nonsense"):
            await RabbitPublisher(link).bury(delivery(body=body), "why")
        assert [letter.tenant for letter in await DeadLetters(link).browse(10)] == ["default", None]


async def test_looking_costs_nothing(amqp_url: str) -> None:
    """After more looks than a delivery limit allows, all letters are there, with the same ids."""
    async with linked(amqp_url) as link:
        publisher, letters = RabbitPublisher(link), DeadLetters(link)
        for number in range(5):
            await publisher.bury(delivery(body=b"%d" % number), "why")
        first = await letters.browse(10)
        for _ in range(2 * DELIVERY_LIMIT):
            assert {one.id for one in await letters.browse(10)} == {one.id for one in first}
        assert [one.delivery.body for one in first] == [b"0", b"1", b"2", b"3", b"4"]
        assert len(await letters.browse(3)) == 3
    assert await count(amqp_url, DEAD) == 5


async def test_poison_is_given_up_by_the_broker_with_a_reason(amqp_url: str) -> None:
    """A message that comes back beyond the delivery limit is among the dead, and tells why."""
    async with linked(amqp_url) as link, plain(amqp_url) as channel:
        await send_job(amqp_url, BODY, key="tool", headers={"x-reason": "a producer's own"})
        queue = await channel.get_queue(lane_queue("tool"))
        returned = 0
        while (message := await queue.get(fail=False)) is not None:
            await message.nack(requeue=True)
            returned += 1
        assert returned == DELIVERY_LIMIT + 1
        letters = DeadLetters(link)
        async with asyncio.timeout(10):
            while not (found := await letters.browse(1)):
                pass
        assert "came back again and again" in found[0].reason
        assert found[0].lane == "tool"
        assert found[0].died_at


async def test_a_replayed_letter_is_a_job_again(amqp_url: str) -> None:
    """It is on its lane as it first was, free of what its death left on it, and no longer among the dead."""
    async with linked(amqp_url) as link:
        publisher, letters = RabbitPublisher(link), DeadLetters(link)
        original = delivery(body=BODY, lane="tool", message_id="m", user_id="acme", headers={"mine": 1})
        await publisher.bury(delivery(body=b"other"), "why")
        await publisher.bury(original, "why")
        letter = (await letters.browse(10))[1]
        assert letter.delivery.user_id == "acme"
        assert await letters.replay(letter.id)
        assert not await letters.replay(letter.id)
        job = await take(amqp_url, lane_queue("tool"))
        assert (job.body, job.message_id, job.headers["x-user-id"]) == (BODY, "m", "acme")
        assert set(job.headers) == {"mine", "x-user-id"}
    assert await count(amqp_url, DEAD) == 1


async def test_poison_can_be_replayed_and_park_again(amqp_url: str) -> None:
    """The broker's own record of the death is not sent along: it would take the next wait for a cycle."""
    async with linked(amqp_url) as link, plain(amqp_url) as channel:
        await send_job(amqp_url, BODY, key="tool")
        queue = await channel.get_queue(lane_queue("tool"))
        while (message := await queue.get(fail=False)) is not None:
            await message.nack(requeue=True)
        letters = DeadLetters(link)
        async with asyncio.timeout(10):
            while not (found := await letters.browse(1)):
                pass
        assert await letters.replay(found[0].id)
        job = await take(amqp_url, lane_queue("tool"))
        assert not [name for name in job.headers if name.startswith(("x-death", "x-first", "x-last"))]


async def test_a_discarded_letter_is_gone(amqp_url: str) -> None:
    """Discard takes one letter and leaves the others."""
    async with linked(amqp_url) as link:
        publisher, letters = RabbitPublisher(link), DeadLetters(link)
        for body in (b"1", b"2", b"3"):
            await publisher.bury(delivery(body=body), "why")
        second = (await letters.browse(10))[1]
        assert await letters.discard(second.id)
        assert not await letters.discard(second.id)
        assert {one.delivery.body for one in await letters.browse(10)} == {b"1", b"3"}


async def test_a_letter_without_a_lane_stays(amqp_url: str) -> None:
    """What has no lane to go to cannot be replayed, and is still there."""
    async with linked(amqp_url) as link:
        await RabbitPublisher(link).bury(delivery(lane="nowhere"), "why")
        letters = DeadLetters(link)
        [letter] = await letters.browse(1)
        with pytest.raises(PublishError, match="nowhere"):
            await letters.replay(letter.id)
        assert [one.id for one in await letters.browse(1)] == [letter.id]


async def test_without_a_topology_the_error_says_what_to_do(amqp_url: str) -> None:
    """A missing queue of the dead is named, with the command that makes it."""
    async with linked(amqp_url) as link, plain(amqp_url) as channel:
        await channel.queue_delete(DEAD)
        with pytest.raises(TopologyError, match="topology apply"):
            await DeadLetters(link).browse(1)
