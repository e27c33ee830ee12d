"""The producers' client against a real broker and a worker that only echoes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import orjson
import pytest
from pydantic import ValidationError

from schemas.job import Job
from schemas.names import Kind, lane_queue
from tests.support.broker import Proxy, count, linked, plain, take, until
from worker.adapters.rabbitmq.topology import CANCEL_QUEUE
from worker.client import JobClient, NotServedError, ReplyLostError, SubmitError

REPLY: dict[str, Any] = {
    "job_id": "j-1",
    "tenant": "acme",
    "kind": "tool",
    "status": "succeeded",
    "output_text": "echo",
    "result": {"id": "x"},
    "usage": None,
    "error": None,
    "attempts": 1,
    "received_at": "2026-01-01T00:00:00Z",
    "started_at": None,
    "finished_at": "2026-01-01T00:00:01Z",
}


def job(number: int = 1) -> dict[str, Any]:
    """Make a job."""
    return {"kind": "tool", "job_id": f"j-{number}", "tenant": "acme", "request": {"model": "m", "n": number}}


@asynccontextmanager
async def echo(url: str, *, copies: int = 1, lane: str = "tool", high: bool = False) -> AsyncIterator[None]:
    """Answer each job of a lane with a reply that names it, so many times."""
    async with plain(url) as channel:

        async def answer(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            body = orjson.dumps({**REPLY, "job_id": orjson.loads(message.body)["job_id"]})
            for _ in range(copies):
                reply = aio_pika.Message(
                    body, type="reply", correlation_id=message.correlation_id, headers={"x-reply-id": "r"}
                )
                await channel.default_exchange.publish(reply, str(message.reply_to))
            await message.ack()

        await (await channel.get_queue(lane_queue(lane, high=high))).consume(answer)
        yield


async def test_a_job_goes_out_and_its_reply_comes_back(amqp_url: str) -> None:
    """The reply that a submitted job is awaited for is its own, also of many at a time."""
    async with linked(amqp_url), echo(amqp_url), JobClient(amqp_url) as client:
        submitted = await asyncio.gather(*(client.submit(job(number)) for number in range(30)))
        replies = [await one for one in submitted]
        assert [reply.job_id for reply in replies] == [f"j-{number}" for number in range(30)]
        assert replies[0].output_text == "echo"
        assert await submitted[0] == replies[0]


async def test_what_is_sent_is_the_job_and_nothing_else(amqp_url: str) -> None:
    """The message has the job's fields as given, the version, and the properties of the contract."""
    given = job()
    async with linked(amqp_url), JobClient(amqp_url) as client:
        await client.submit(given)
        message = await take(amqp_url, lane_queue("tool"))
    assert orjson.loads(message.body) == {"version": 1, **given}
    assert (message.content_type, message.delivery_mode) == ("application/json", 2)
    assert str(message.reply_to).startswith("amq.gen-")


async def test_lane_and_priority_can_be_chosen(amqp_url: str) -> None:
    """A Job value goes, as asked, to another lane, high."""
    async with linked(amqp_url), echo(amqp_url, lane="vision", high=True), JobClient(amqp_url) as client:
        value = Job(kind=Kind.TOOL, job_id="j", request={"model": "m"})
        assert (await (await client.submit(value, lane="vision", high=True))).job_id == "j"


async def test_copies_of_a_reply_are_one(amqp_url: str) -> None:
    """A reply that comes twice resolves its own job only, and disturbs no other."""
    async with linked(amqp_url), echo(amqp_url, copies=2), JobClient(amqp_url) as client:
        for number in range(3):
            assert (await (await client.submit(job(number)))).job_id == f"j-{number}"


async def test_giving_up_waiting_is_not_giving_up_the_job(amqp_url: str) -> None:
    """A wait that timed out can be repeated."""
    async with linked(amqp_url), JobClient(amqp_url) as client:
        submitted = await client.submit(job())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(submitted, 0.05)
        assert not submitted.done
        async with echo(amqp_url):
            assert (await submitted).job_id == "j-1"


async def test_a_lost_connection_fails_the_wait_and_the_next_submit_connects(amqp_url: str) -> None:
    """What is awaited over a lost connection says that it may be sent again; sent again it is answered."""
    async with linked(amqp_url), Proxy(amqp_url) as proxy, JobClient(proxy.url) as client:
        submitted = await client.submit(job())
        proxy.cut()
        with pytest.raises(ReplyLostError, match="submit the same job again"):
            await submitted
        async with echo(amqp_url):
            assert (await (await client.submit(job()))).job_id == "j-1"


async def test_what_nobody_takes_is_an_error(amqp_url: str) -> None:
    """Without a queue for the lane, or without any topology, submit says so, and the client goes on."""
    async with JobClient(amqp_url) as client:
        with pytest.raises(SubmitError, match=r"no exchange openai\.jobs; run `openai-worker topology"):
            await client.submit(job())
        with pytest.raises(SubmitError, match=r"no exchange openai\.control; run `openai-worker topology"):
            await client.cancel("j-1")
        async with linked(amqp_url), plain(amqp_url) as channel:
            await channel.queue_delete(lane_queue("tool"))
            with pytest.raises(SubmitError, match=r"no queue takes tool.*topology apply"):
                await client.submit(job())
            await client.submit({**job(), "kind": "vision"})
            assert await count(amqp_url, lane_queue("vision")) == 1


async def test_a_hung_broker_is_an_error_in_time(amqp_url: str) -> None:
    """Unconfirmed within the timeout, submit fails; cut meanwhile, it fails as well, uncancelled."""
    async with linked(amqp_url), Proxy(amqp_url) as proxy, JobClient(proxy.url, timeout=1) as client:
        await client.submit(job())
        proxy.hold()
        with pytest.raises(SubmitError, match="TimeoutError"):
            await client.submit(job())
        waiting = asyncio.create_task(client.submit(job()))
        await until(lambda: not proxy.idle)
        proxy.cut()
        with pytest.raises(SubmitError):
            await waiting
        proxy.let_go()
        await client.submit(job())


async def test_a_silent_broker_does_not_look_like_a_cancellation(amqp_url: str) -> None:
    """When the driver gives a silent connection up, a submit fails as such, and the next connects."""
    async with linked(amqp_url), Proxy(amqp_url) as proxy, JobClient(proxy.url) as client:
        await client.submit(job())
        proxy.hold()
        waiting = asyncio.create_task(client.submit(job()))
        await until(lambda: not proxy.idle)
        assert client._session
        transport: Any = client._session._connection.transport
        transport.connection._reader_task.cancel()  # what it does once three heartbeats are missing
        with pytest.raises(SubmitError, match="connection was lost"):
            await waiting
        proxy.let_go()
        await client.submit(job())


async def test_leaving_ends_all_waiting(amqp_url: str) -> None:
    """After the context nothing waits for ever."""
    async with linked(amqp_url):
        async with JobClient(amqp_url) as client:
            submitted = await client.submit(job())
        with pytest.raises(ReplyLostError, match="closed"):
            await submitted


async def test_what_is_no_job_is_not_sent(amqp_url: str) -> None:
    """A wrong field is an error before anything leaves."""
    async with linked(amqp_url), JobClient(amqp_url) as client:
        with pytest.raises(ValidationError):
            await client.submit({**job(), "kind": "poem"})
    assert await count(amqp_url, lane_queue("tool")) == 0


async def test_a_cancel_request_is_what_the_contract_says(amqp_url: str) -> None:
    """It names tenant and job, and is kept until a worker takes it."""
    async with linked(amqp_url), JobClient(amqp_url) as client:
        await client.cancel("j-1", tenant="acme")
        message = await take(amqp_url, CANCEL_QUEUE)
    assert orjson.loads(message.body) == {"tenant": "acme", "job_id": "j-1"}


async def test_what_nobody_serves_is_not_sent() -> None:
    """Its reply would never come; the client says so without asking the broker."""
    with pytest.raises(NotServedError, match="batch jobs are not served"):
        await JobClient("amqp://127.0.0.1:1/").submit({**job(), "kind": "batch"})
