"""The broker away, blocked, forgetful or full; and the links to it cut or silent."""

import asyncio
import json
import time
from typing import Any

import aio_pika
import aiohttp
import pytest

from schemas.names import CANCEL_KEY, CONTROL
from tests.support.broker import Proxy, linked, plain, until
from tests.support.databases import execute
from tests.support.producer import completion
from tests.support.scene import SECRET, Scene
from tests.support.upstream import ALWAYS, Act
from worker.adapters.rabbitmq import topology
from worker.adapters.rabbitmq.topology import CANCEL_QUEUE

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
AWAY_SECONDS = 90.0
ALARM_SECONDS = 60.0
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@ON_SQLITE
async def test_b01_broker_absent_at_the_start(scene: Scene) -> None:
    """The worker waits for it and then works; told to stop while it waits, it ends promptly."""
    async with Proxy(scene.broker.url) as proxy:
        proxy.refuse()
        worker = await scene.worker(wait=False, AMQP_URL=proxy.url)
        await until(lambda: proxy.refused)
        proxy.accept()
        await worker.ready()
        await scene.send("one")
        await scene.replied(1)
        told = len(worker.lines("server is away", server="rabbitmq"))
        proxy.refuse()
        proxy.cut()
        await worker.logged("server is away", count=told + 2, server="rabbitmq")  # on both connections
        before = time.monotonic()
        assert await worker.terminate() == 0
        assert time.monotonic() - before < 10
        proxy.accept()
        await scene.worker()
        await scene.holds()


@ON_SQLITE
async def test_b01_broker_stopped_under_load(own_scene: Scene) -> None:
    """Away for a minute and a half: its workers resume by themselves, and nothing is lost or called twice."""
    scene, node = own_scene, own_scene.broker.node
    scene.upstream.script(Act(delay=1, times=ALWAYS))
    workers = [await scene.worker(WORKER_CONCURRENCY=8) for _ in range(2)]
    await scene.use_durable_replies()
    for number in range(120):
        await scene.send(f"job-{number}")
    await scene.upstream.seen(16)
    await asyncio.to_thread(node.ctl, "stop_app")
    for worker in workers:
        await worker.logged("server is away", server="rabbitmq")
    await asyncio.sleep(AWAY_SECONDS)
    assert len(scene.upstream.requests) < 120
    await asyncio.to_thread(node.ctl, "start_app")
    await scene.reconnect()
    await scene.replied(120, within=60)
    await scene.holds(within=60)


@ON_SQLITE
async def test_b02_connections_cut_again_and_again(scene: Scene) -> None:
    """Ten resets during thirty jobs: no call twice, no reply missing."""
    scene.upstream.script(Act(delay=0.4, times=ALWAYS))
    async with Proxy(scene.broker.url) as proxy:
        await scene.worker(AMQP_URL=proxy.url, WORKER_CONCURRENCY=4)
        for number in range(30):
            await scene.send(f"job-{number}")
        for count in range(1, 11):
            await scene.upstream.seen(min(30, count * 2))
            proxy.cut()
        await scene.replied(30, within=60)
        await scene.holds(within=60)


@ON_SQLITE
async def test_b03_silent_connection_is_noticed(scene: Scene) -> None:
    """A link that swallows everything is given up within three heartbeats; then the work goes on."""
    async with Proxy(scene.broker.url) as proxy:
        worker = await scene.worker(AMQP_URL=proxy.url)
        proxy.hold()
        await scene.send("one")
        await worker.logged("server is away", within=45, server="rabbitmq")
        proxy.cut()
        proxy.let_go()
        await scene.replied(1)
        await scene.holds()


@ON_SQLITE
async def test_b04_memory_alarm(own_scene: Scene) -> None:
    """For a minute publishing is blocked; consuming and acknowledging go on, what is owed is sent later."""
    scene, node = own_scene, own_scene.broker.node
    scene.upstream.script(Act(delay=2, times=ALWAYS))
    worker = await scene.worker(WORKER_CONCURRENCY=2)
    usual = node.evaluate("vm_memory_monitor:get_vm_memory_high_watermark().")
    for number in range(6):
        await scene.send(f"job-{number}")
    await scene.upstream.seen(2)
    node.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    alarm = time.monotonic()
    # Each place is free again once its reply has waited ten seconds.
    await scene.upstream.seen(6, timeout=ALARM_SECONDS)
    await worker.logged("reply unconfirmed", count=4, within=ALARM_SECONDS)
    await asyncio.sleep(alarm + ALARM_SECONDS - time.monotonic())
    node.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({usual}).")
    await scene.replied(6)
    await scene.holds()


@ON_SQLITE
async def test_b06_queue_deleted_and_made_anew(scene: Scene) -> None:
    """It is consumed again within half a minute, though the broker thinks that it never ceased to be."""
    await scene.worker()
    await scene.send("before")
    await scene.replied(1)
    await scene.settled()
    async with linked(scene.broker.url) as link:
        channel = await link.channel()
        await channel.queue_delete("openai.jobs.completion")
        await topology.apply(link)
    await scene.send("after")
    await scene.replied(2, within=40)
    await scene.holds()


@ON_SQLITE
async def test_b06_cancel_requests_find_their_way_again(scene: Scene) -> None:
    """Exchange and queue of the cancel requests are deleted and made anew: within half a minute both work."""
    scene.upstream.script(Act(fault="stall"))
    worker = await scene.worker()
    await scene.send("one")
    await scene.upstream.seen(1)
    async with linked(scene.broker.url) as link:
        channel = await link.channel()
        await channel.exchange_delete(CONTROL)
        await channel.queue_delete(CANCEL_QUEUE)
        await worker.logged("server is away", server=f"rabbitmq {CANCEL_QUEUE}")
        assert await status_of(f"{worker.http_url}/readyz") == 503
        await topology.apply(link)
        made = time.monotonic()
        await worker.logged("server is back", server=f"rabbitmq {CANCEL_QUEUE}")
        async with asyncio.timeout(30):
            while await status_of(f"{worker.http_url}/readyz") != 200 or not await listeners(scene):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert time.monotonic() - made < 30
    async with plain(scene.broker.url) as other:
        exchange = await other.get_exchange(CONTROL)
        body = json.dumps({"tenant": "acme", "job_id": "one"}).encode()
        await exchange.publish(aio_pika.Message(body), routing_key=CANCEL_KEY)
    (reply,) = await scene.replied(1)
    assert reply["status"] == "cancelled"
    await scene.holds(unknown=1)


async def listeners(scene: Scene) -> bool:
    """Whether a worker's own queue is bound to the exchange of the cancel requests, beside the shared one."""
    name = f'rabbit_misc:r(<<"{scene.broker.vhost}">>, exchange, <<"{CONTROL}">>)'
    count = await asyncio.to_thread(
        scene.broker.node.evaluate, f"length(rabbit_binding:list_for_source({name}))."
    )
    return count.strip() == "2"


async def status_of(url: str) -> int:
    """Return what a GET is answered with."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


@ON_SQLITE
async def test_b08_killed_with_the_poison_in_hand(scene: Scene) -> None:
    """A worker dies when it has ended a job that kills its workers: the dead letter is there all the same."""
    await scene.died_on("send:before:kill")
    await execute(scene.database_url, "UPDATE jobs SET takeovers = 3")
    await scene.dies(await scene.worker("finish:after:kill", wait=False))
    await scene.worker()
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "internal")
    await scene.holds(dead=1, unknown=1, unsent=1)


@ON_SQLITE
async def test_b08_killed_between_the_burial_and_the_end_of_poison(scene: Scene) -> None:
    """The job is buried a second time: two letters, one outcome."""
    await scene.died_on("send:before:kill")
    await execute(scene.database_url, "UPDATE jobs SET takeovers = 3")
    await scene.dies(await scene.worker("finish:before:kill", wait=False))
    await scene.worker()
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "internal")
    await scene.holds(dead=2, unknown=1, unsent=1)


@ON_SQLITE
async def test_b08_job_that_kills_its_workers(scene: Scene) -> None:
    """It ends among the dead, with a failure reply; its seven neighbours are answered."""
    scene.upstream.script(Act(delay=0.5, times=ALWAYS))
    async with linked(scene.broker.url):
        pass  # all queues are there
    neighbours = [f"good-{number}" for number in range(7)]
    for job_id in (*neighbours[:3], "poison", *neighbours[3:]):
        await scene.send(job_id, "POISON" if job_id == "poison" else "")

    def all_answered() -> bool:
        return len(scene.producer.jobs_answered()) == 8

    lives = 0
    while not all_answered():
        lives += 1
        assert lives < 20, await scene.rows("SELECT job_id, status, takeovers FROM jobs")
        worker = await scene.worker("send:before:kill@POISON", wait=False, WORKER_CONCURRENCY=8)
        answered = asyncio.create_task(until(all_answered, within=60))
        ended = asyncio.create_task(worker.ended(within=60))
        await asyncio.wait({answered, ended}, return_when=asyncio.FIRST_COMPLETED)
        answered.cancel()
        ended.cancel()
        assert worker.exit_code in {None, -9}, worker.tail()
    replies = {reply["job_id"]: reply for reply in await scene.replied(8)}
    poison = replies.pop("poison")
    assert (poison["status"], poison["error"]["code"]) == ("failed", "internal")
    assert {reply["status"] for reply in replies.values()} == {"succeeded"}
    # Of the neighbours each may be at work in the first two workers that die; from then on all run alone.
    doubts = 4 + 2 * len(neighbours)
    await scene.holds(dead=1, unknown=doubts, unsent=doubts, extra_calls=doubts)


@ON_SQLITE
async def test_b09_dead_letters_have_nowhere_to_go(scene: Scene) -> None:
    """A bad message stays where it is until the dead have their place again."""
    worker = await scene.worker()
    async with linked(scene.broker.url) as link:
        await (await link.channel()).exchange_delete("openai.dead")
        await scene.producer.send(b"not a job", reply=False)
        await worker.logged("job refused", count=2)
        await topology.apply(link)
    letters: list[aio_pika.abc.AbstractIncomingMessage] = []
    async with asyncio.timeout(30):
        while not letters:
            letters += await scene.producer.dead()
    assert letters[0].body == b"not a job"
    await scene.send("one")
    await scene.replied(1)
    await scene.holds()


@ON_SQLITE
async def test_b09_reply_queue_is_full(scene: Scene) -> None:
    """The reply is refused, kept and sent once there is room; the job does not run again."""
    worker = await scene.worker()
    full: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with await aio_pika.connect(scene.broker.url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue("full", arguments=full, auto_delete=False)
        await channel.default_exchange.publish(aio_pika.Message(b"in the way"), "full")
        await scene.send("one", properties={"reply_to": "full"})
        await worker.logged("reply unconfirmed")
        await queue.purge()
        async with asyncio.timeout(30):
            while (message := await queue.get(fail=False)) is None:  # noqa: ASYNC110 (a state of the broker)
                await asyncio.sleep(0.1)
        assert json.loads(message.body)["status"] == "succeeded"
        await scene.producer.note(message)
    await scene.holds()


@ON_SQLITE
@pytest.mark.parametrize("alive", [True, False], ids=["alive", "gone"])
async def test_b11_direct_reply(scene: Scene, alive: bool) -> None:  # noqa: FBT001 (a parameter of the test)
    """A client that waits gets its reply exactly once; one that is gone costs no second call."""
    scene.upstream.script(Act(delay=1))
    await scene.worker()
    async with await aio_pika.connect(scene.broker.url) as connection, connection.channel() as channel:
        asked = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        got: list[aio_pika.abc.AbstractIncomingMessage] = []
        await asked.consume(got.append, no_ack=True)  # type: ignore[arg-type]
        exchange = await channel.get_exchange("openai.jobs", ensure=False)
        body = json.dumps(completion("direct", f"{SECRET} <direct>")).encode()
        scene.expect("direct")
        await exchange.publish(
            aio_pika.Message(body, content_type="application/json", reply_to="amq.rabbitmq.reply-to"),
            routing_key="completion",
        )
        await scene.upstream.seen(1)
        if alive:
            await until(lambda: got)
            await scene.settled(answered=0)
            assert [json.loads(message.body)["status"] for message in got] == ["succeeded"]
    await scene.settled(answered=0)
    await scene.holds(undelivered=1)


@ON_SQLITE
async def test_b12_settings_of_a_newer_broker(scene: Scene) -> None:
    """With RabbitMQ 4's largest message and delivery limit, and forged death headers, all is the same."""
    assert "16777216" in scene.broker.node.evaluate("application:get_env(rabbit, max_message_size).")
    await scene.worker()
    deaths = [{"count": 99, "reason": "delivery_limit", "queue": "openai.jobs.completion"}]
    headers = {"x-death": deaths, "x-delivery-count": 99, "x-parked": 99}
    await scene.send("one", properties={"headers": headers})
    await scene.replied(1)
    await scene.holds()
