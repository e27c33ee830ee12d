"""The commands on jobs and dead letters: looked at, cancelled, sent again."""

import json

from aio_pika import Message
from aio_pika.abc import HeadersType

from schemas.names import DEAD
from tests.support.broker import Told, plain
from tests.support.command import CommandLine
from tests.support.databases import a_claim, a_finish, a_job, a_token, a_wait, rows
from tests.support.servers import Broker
from worker.adapters.database.opening import open_database
from worker.adapters.rabbitmq.topology import CANCEL_QUEUE
from worker.domain.job import ReplyAddress
from worker.ports import OwedReply


async def test_jobs_list_and_show(stored: CommandLine, sqlite_url: str) -> None:
    """A finished job is listed and shown with attempts and costs; its content only on demand."""
    body = b'{"kind":"completion","job_id":"one","tenant":"acme","request":{"model":"gpt-6-luna"}}'
    job = a_job("one", body=body)
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        token = a_token()
        await database.store.claim(a_claim(job, token))
        reply = OwedReply(key=job.key, reply_id="r", address=job.address, body=b'{"output_text":"secret"}')
        await database.store.finish(a_finish(job, token, reply=reply))
        waiting = a_job("two\x1b[2J")
        await database.store.wait(a_wait(waiting, None))
    listed = (await stored("jobs", "list", "--json")).json
    assert {(one["job_id"], one["status"]) for one in listed} == {
        ("one", "succeeded"),
        ("two\x1b[2J", "waiting"),
    }
    assert [
        one["job_id"] for one in (await stored("jobs", "list", "--status", "succeeded", "--json")).json
    ] == ["one"]
    table = (await stored("jobs", "list")).out
    assert "succeeded" in table
    assert "\x1b" not in table
    shown = await stored("jobs", "show", "one", "--tenant", "acme", "--json")
    assert shown.json["ledger"][0]["cost_usd"] == "0.000120000"
    assert shown.json["attempts"][0]["state"] == "succeeded"
    assert "secret" not in shown.out
    assert "secret" not in (await stored("jobs", "show", "one", "--tenant", "acme")).out
    with_content = (await stored("jobs", "show", "one", "--tenant", "acme", "--content", "--json")).json
    assert (with_content["request"], with_content["reply"]) == (json.loads(body), {"output_text": "secret"})
    missing = await stored("jobs", "show", "one")
    elsewhere = "there is no job one of the tenant default; there is one with `--tenant acme`\n"
    assert (missing.code, missing.err) == (1, elsewhere)
    missing = await stored("jobs", "explain", "nothing")
    assert missing.code == 1
    assert missing.err.endswith("a message that was refused is in `openai-worker dead list`\n")


async def test_cancel_reaches_database_and_workers(
    stored: CommandLine, broker: Broker, sqlite_url: str
) -> None:
    """A request to cancel is kept in the database, and told to the workers; a done job is too late."""
    job = a_job("one")
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        token = a_token()
        await database.store.claim(a_claim(job, token))
        assert (await stored("jobs", "cancel", "one", "--tenant", "acme")).code == 0
        assert await rows(sqlite_url, "SELECT job_id FROM jobs WHERE cancel_requested_at IS NOT NULL")
        async with plain(broker.url) as channel:
            message = await (await channel.get_queue(CANCEL_QUEUE)).get()
        assert message
        assert json.loads(message.body) == {"tenant": "acme", "job_id": "one"}
        await database.store.finish(a_finish(job, token))
    late = await stored("jobs", "cancel", "one", "--tenant", "acme")
    assert (late.code, late.err) == (1, "the job has its outcome already: succeeded\n")


async def test_cancelling_what_nobody_has_seen_says_so(stored: CommandLine, sqlite_url: str) -> None:
    """A slip is told from a job that waits, is not listed among those, and names the tenants that have it."""
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        await database.store.wait(a_wait(a_job("one"), None))
    for name, there in (("typo", ""), ("one", "; there is one with `--tenant acme`")):
        said = f"no job {name} of the tenant default has arrived; only the request to cancel it is known"
        ended = await stored("jobs", "cancel", name)
        assert (ended.code, ended.err) == (0, f"{said}, and is kept in case it does{there}\n")
    listed = (await stored("jobs", "list", "--status", "waiting", "--json")).json
    assert [one["tenant"] for one in listed] == ["acme"]
    known = "only a request to cancel it is known; the job itself has not arrived\n"
    assert (await stored("jobs", "explain", "typo")).out.startswith(known)
    assert (await stored("jobs", "show", "typo")).err == known


async def test_replay_publishes_the_message_again(
    stored: CommandLine, broker: Broker, sqlite_url: str
) -> None:
    """The stored message is on its lane again, with the address and id that it came with."""
    job = a_job("one", address=ReplyAddress(queue="answers", correlation_id="c-1"), body=b"{}")
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        await database.store.claim(a_claim(job, a_token()))
    assert (await stored("jobs", "replay", "one", "--tenant", "acme")).code == 0
    async with plain(broker.url) as channel:
        message = await (await channel.get_queue("openai.jobs.completion")).get()
    assert message
    assert message.body == b"{}"
    assert (message.reply_to, message.correlation_id, message.message_id) == ("answers", "c-1", "one")


async def test_dead_letters(stored: CommandLine, broker: Broker) -> None:
    """Dead letters are listed with their reasons, shown, sent again, and done away with, by id."""
    async with plain(broker.url) as channel:
        for number in (1, 2):
            headers: HeadersType = {"x-reason": f"reason {number}\x1b"}
            exchange = await channel.get_exchange(DEAD)
            await exchange.publish(Message(b'{"job_id": "%d"}' % number, headers=headers), routing_key="tool")
    one, two = (await stored("dead", "list", "--json")).json
    assert (one["job_id"], one["reason"], one["lane"]) == ("1", "reason 1\x1b", "tool")
    assert "\x1b" not in (await stored("dead", "list")).out
    shown = await stored("dead", "show", one["id"])
    assert "reason 1" in shown.out
    assert '{"job_id"' not in shown.out
    assert (await stored("dead", "show", one["id"], "--content", "--json")).json[
        "content"
    ] == '{"job_id": "1"}'
    assert (await stored("dead", "replay", one["id"])).code == 0
    ended = await stored("dead", "discard", two["id"], "feedfeedfeed")
    assert (ended.code, ended.err) == (
        1,
        f"{two['id']}: discarded\nfeedfeedfeed: there is no such dead letter\n",
    )
    assert (await stored("dead", "list", "--json")).json == []
    async with plain(broker.url) as channel:
        assert await (await channel.get_queue("openai.jobs.tool")).get()
