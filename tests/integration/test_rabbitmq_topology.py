"""The exchanges and queues, declared on a real broker."""

import asyncio

import aio_pika
import pytest

from schemas.names import CANCEL_KEY, CONTROL, DEAD, JOBS, LANES, RETRY_SECONDS, lane_queue, retry_room
from tests.support.broker import Told, linked, plain
from worker.adapters.rabbitmq import topology
from worker.adapters.rabbitmq.connection import Link


def test_every_name_of_the_contract_is_there() -> None:
    """The topology has the exchanges and queues of the contract, by the names in schemas."""
    rooms = {retry_room(seconds) for seconds in RETRY_SECONDS}
    lanes = {lane_queue(lane, high=high) for lane in LANES for high in (False, True)}
    assert {one.name for one in topology.EXCHANGES} == {JOBS, DEAD, CONTROL, *rooms}
    assert {one.name for one in topology.QUEUES} == {DEAD, f"{CONTROL}.{CANCEL_KEY}", *rooms, *lanes}


async def test_applying_twice_changes_nothing(amqp_url: str) -> None:
    """A second apply succeeds, also beside others at the same time, and no difference is found."""
    async with linked(amqp_url) as link:
        await asyncio.gather(*(topology.apply(link) for _ in range(3)))
        assert await topology.check(link) == []


async def test_what_is_missing_is_named_and_made(amqp_url: str) -> None:
    """Check names a missing queue and a missing exchange, and makes neither; apply makes both."""
    async with linked(amqp_url) as link, plain(amqp_url) as channel:
        await channel.queue_delete("openai.retry.30s")
        await channel.exchange_delete("openai.control")
        missing = ["exchange openai.control is missing", "queue openai.retry.30s is missing"]
        assert await topology.check(link) == missing
        assert await topology.check(link) == missing
        await topology.apply(link)
        assert await topology.check(link) == []


async def test_other_arguments_are_named_and_stop_apply(amqp_url: str) -> None:
    """A queue with another delivery limit is named with both values, and apply says how to mend it."""
    async with linked(amqp_url) as link, plain(amqp_url) as channel:
        wrong = {**next(one.arguments for one in topology.QUEUES if one.name == "openai.jobs.tool")}
        wrong |= {"x-queue-type": "quorum", "x-delivery-limit": 5}
        await channel.queue_delete("openai.jobs.tool")
        await channel.declare_queue("openai.jobs.tool", durable=True, arguments=wrong)
        try:
            [difference] = await topology.check(link)
            with pytest.raises(topology.TopologyError) as raised:
                await topology.apply(link)
        finally:
            await channel.queue_delete("openai.jobs.tool")
        assert "queue openai.jobs.tool is not as it should be" in difference
        assert "'x-delivery-limit'" in difference
        assert "'20'" in difference
        assert "'5'" in difference
        assert difference in str(raised.value)
        assert "topology apply" in str(raised.value)


async def test_another_exchange_type_is_named(amqp_url: str) -> None:
    """An exchange of another type is a difference, named by both types."""
    async with linked(amqp_url) as link, plain(amqp_url) as channel:
        await channel.exchange_delete("openai.control")
        await channel.declare_exchange("openai.control", "direct", durable=True)
        try:
            [difference] = await topology.check(link)
        finally:
            await channel.exchange_delete("openai.control")
        assert "received 'topic' but current is 'direct'" in difference


async def test_a_cancel_request_is_kept_while_no_worker_runs(amqp_url: str) -> None:
    """What is sent to the control exchange by the key `cancel` waits in a durable queue."""
    async with linked(amqp_url), plain(amqp_url) as channel:
        exchange = await channel.get_exchange(CONTROL)
        await exchange.publish(aio_pika.Message(b"{}"), routing_key=CANCEL_KEY)
        queue = await channel.declare_queue(topology.CANCEL_QUEUE, passive=True)
        assert queue.declaration_result.message_count == 1


async def test_a_link_is_not_needed_twice(amqp_url: str) -> None:
    """Apply and check leave no channel open behind them."""
    async with Link(amqp_url, name="test", observer=Told()) as link:
        await topology.apply(link)
        await topology.check(link)
        assert not (await link.ready()).channels
