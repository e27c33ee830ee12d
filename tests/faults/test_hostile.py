"""Input that attacks, on real processes; the many single cases are with `intake`, `images` and `tools`."""

import json
from typing import Any

import aiohttp
import pytest

from tests.support.producer import completion
from tests.support.scene import SECRET, Scene
from tests.support.upstream import Act

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(120),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]

HIDDEN_HOSTS = (
    "http://127.0.0.1/x.png",
    "http://[::1]/x.png",
    "http://169.254.169.254/latest/meta-data",
    "http://0x7f.1/x.png",
    "http://2130706433/x.png",
    "http://[::ffff:127.0.0.1]/x.png",
    "http://localhost/x.png",
    "file:///etc/passwd",
    "gopher://example.org/x",
    "ftp://example.org/x.png",
)


async def refused(scene: Scene, body: dict[str, Any] | bytes, **how: Any) -> str:
    """Send what must be refused; return what its failure reply says."""
    reply = await scene.producer.ask(body, **how)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "invalid_job")
    assert SECRET not in json.dumps(reply)
    return str(reply["error"]["message"])


async def test_f01_messages_that_are_no_jobs(scene: Scene) -> None:
    """One rejection and one dead letter each, no call, and the worker goes on."""
    await scene.worker()
    good = json.dumps(completion("bad", SECRET)).encode()
    bad = [
        b"",
        b"[]",
        b"\xff\xfe",
        SECRET.encode(),
        good[:-1],
        good.replace(b'"version": 1', b'"version": 1, "version": 1'),
        good.replace(b'"version": 1', b'"version": NaN'),
        good.replace(b'"version": 1', b'"version": ' + b"9" * 5000),
        good.replace(SECRET.encode(), rb"\ud800"),
        b'{"request": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b"[" * 1_000_000,
        b" " * 15_000_000,
    ]
    for body in bad:
        await refused(scene, body)
    await scene.send("good")
    await scene.replied(len(bad) + 1)
    await scene.holds(dead=len(bad))


async def test_f01_compressed_body_is_not_unpacked(scene: Scene) -> None:
    """However small what would become large."""
    await scene.worker()
    assert "content_encoding" in await refused(scene, b"\x1f\x8b" + bytes(1000), content_encoding="gzip")
    await scene.holds(dead=1)


async def test_f04_image_addresses_inside(scene: Scene) -> None:
    """Addresses of this machine, of private networks and of other schemes are refused without a look."""
    await scene.worker()
    for url in HIDDEN_HOSTS:
        job = completion("vision", kind="vision")
        job["request"] = {"model": "gpt-6-luna", "prompt": SECRET, "images": [{"url": url}]}
        await refused(scene, job, lane="vision")
    await scene.holds(dead=len(HIDDEN_HOSTS))


async def test_f05_images_that_are_none(scene: Scene) -> None:
    """Bad padding, another type than announced, and a header that promises too much: refused unread."""
    await scene.worker()
    bombs = ("iVBORw0KGgo", "!!!!", "R0lGODlhAQABAAAAACw=", "")
    for data in bombs:
        job = completion("vision", kind="vision")
        image = {"base64": data, "media_type": "image/png"}
        job["request"] = {"model": "gpt-6-luna", "prompt": SECRET, "images": [image]}
        await refused(scene, job, lane="vision")
    await scene.holds(dead=len(bombs))


async def test_f06_model_that_asks_for_what_it_may_not(scene: Scene) -> None:
    """Unknown tools, extra and evil arguments go back as errors; an endless loop ends at its last round."""
    evil = [
        {"name": "system", "arguments": {"command": "id"}},
        {"name": "__import__", "arguments": {"name": "os"}},
        {"name": "add", "arguments": {"a": 1, "b": 2, "c": 3}},
        {"name": "add", "arguments": {"a": "__import__('os').system('id')", "b": 2}},
    ]
    scene.upstream.script(Act(tool_calls=evil, times=50))
    await scene.worker()
    await scene.send(lane="tool", **scene.tool_job("one", max_rounds=4))
    (reply,) = await scene.replied(1)
    assert (reply["status"], reply["error"]["code"], reply["attempts"]) == ("failed", "tool_failed", 4)
    told = [message for message in scene.upstream.requests[1].body["messages"] if message["role"] == "tool"]
    assert len(told) == len(evil)
    assert all("error" in message["content"] for message in told)
    await scene.holds(extra_calls=3)


async def test_f08_request_that_names_its_own_way(scene: Scene) -> None:
    """Address, key and headers are not part of a request."""
    await scene.worker()
    fields = {
        "base_url": "http://127.0.0.1:1/",
        "api_key": "sk-other",
        "extra_headers": {"Authorization": "Bearer x"},
        "extra_body": {},
        "stream": True,
        "timeout": 1,
    }
    for name, value in fields.items():
        job = completion("own")
        job["request"] |= {name: value}
        assert f"request.{name}" in await refused(scene, job)
    await scene.holds(dead=len(fields))


async def test_f09_job_in_another_tenants_name(scene: Scene) -> None:
    """The broker's word for who publishes counts; the same job id of two tenants is two jobs."""
    await scene.worker()
    user = scene.broker.url.split("//")[1].split(":")[0]
    assert "tenant" in await refused(scene, completion("one"), user_id=user)
    await scene.send("one", tenant="acme")
    await scene.send("one", tenant=user, properties={"user_id": user})
    await scene.replied(3)
    assert len(scene.upstream.requests) == 2
    await scene.holds(dead=1)


async def test_f12_reply_to_a_queue_of_ours(scene: Scene) -> None:
    """A reply must not become a job, a dead letter or a cancel request."""
    await scene.worker()
    for queue in ("openai.jobs.completion", "openai.dead", "openai.control.cancel", "amq.direct"):
        await scene.producer.send(completion("one", SECRET), reply_to=queue)
    await scene.workers[0].logged("job refused", count=4)
    await scene.holds(dead=4)


async def test_f13_content_of_a_request_that_openai_quotes(scene: Scene) -> None:
    """An error message that repeats prompt and key reaches neither logs nor replies nor metrics."""
    worker = await scene.worker()
    message = f"Incorrect API key provided: sk-test-not-a-key; you said {SECRET} <one> "
    scene.upstream.script(Act(status=400, error={"code": "invalid_value", "message": message}))
    await scene.send("one")
    await scene.replied(1)
    async with aiohttp.ClientSession() as session, session.get(f"{worker.http_url}/metrics") as response:
        metrics = await response.text()
    assert "openai_worker" in metrics
    assert SECRET not in metrics
    assert "sk-test" not in metrics
    await scene.holds()
