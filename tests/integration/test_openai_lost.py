"""What the OpenAI client makes of requests without an answer: above all, whether they were sent."""

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from schemas.names import Kind
from tests.support.upstream import Act, Upstream
from worker.adapters.openai_api.client import OpenAIClient
from worker.adapters.openai_api.credentials import AccountCredentials
from worker.domain.attempt import Account
from worker.domain.outcome import Answered, Lost
from worker.ports import Call

BODY = orjson.dumps({"model": "gpt-6-luna", "messages": [{"role": "user", "content": "Hello?"}]})


def call(timeout: float = 5) -> Call:
    """Return a small call."""
    return Call(kind=Kind.COMPLETION, body=BODY, account=Account(), timeout=timeout)


def client_of(base_url: str, *, connections: int = 128, max_answer_bytes: int = 2**24) -> OpenAIClient:
    """Return a client with one account."""
    account = AccountCredentials(name="default", api_key="sk-test", base_url=base_url)
    return OpenAIClient([account], connections=connections, max_answer_bytes=max_answer_bytes)


@pytest.fixture
def free_port() -> Iterator[int]:
    """Return a port on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """Return a server's TLS context with a self-signed certificate, and the certificate."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    named = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", *options.split(), *named], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


# ---------------------------------------------------------------- surely not sent


async def test_refused_connection_was_not_sent(free_port: int) -> None:
    """Where nobody listens, nothing was sent, and the message holds no address."""
    async with client_of(f"http://127.0.0.1:{free_port}/v1") as client:
        outcome = await client.send(call())
    message = "no connection to OpenAI (Connection refused)"
    assert outcome == Lost(sent=False, timed_out=False, message=message)


async def test_unknown_host_was_not_sent() -> None:
    """A name that does not resolve was sent nothing."""
    async with client_of("http://no-such-host.invalid/v1") as client:
        outcome = await client.send(call())
    assert isinstance(outcome, Lost)
    assert (outcome.sent, outcome.timed_out) == (False, False)
    assert "does not resolve" in outcome.message
    assert "invalid" not in outcome.message


async def test_untrusted_certificate_was_not_sent(certificate: tuple[ssl.SSLContext, Path]) -> None:
    """A certificate that the system does not trust ends the connection before the key leaves."""
    async with Upstream(tls=certificate[0]) as upstream, client_of(upstream.base_url) as client:
        outcome = await client.send(call())
    assert isinstance(outcome, Lost)
    assert not outcome.sent
    assert "not trusted" in outcome.message
    assert upstream.requests == []


async def test_wrong_host_was_not_sent(
    certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trusted certificate of somebody else is refused too."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    async with (
        Upstream(tls=certificate[0]) as upstream,
        client_of(upstream.base_url.replace("127.0.0.1", "localhost")) as client,
    ):
        outcome = await client.send(call())
    assert isinstance(outcome, Lost)
    assert not outcome.sent
    assert upstream.requests == []


async def test_trusted_certificate_works(
    certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's own authority can be named by SSL_CERT_FILE."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    async with Upstream(tls=certificate[0]) as upstream, client_of(upstream.base_url) as client:
        assert isinstance(await client.send(call()), Answered)


async def test_silent_tls_server_was_not_sent() -> None:
    """A server that accepts and never shakes hands costs the time, but not the doubt."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with client_of(f"https://127.0.0.1:{server.getsockname()[1]}/v1") as client:
            # The last fifth is for the answer; on a busy machine that must be more than a hiccup.
            outcome = await client.send(call(timeout=2))
    assert isinstance(outcome, Lost)
    assert (outcome.sent, outcome.timed_out) == (False, True)


async def test_waiting_for_a_connection_was_not_sent() -> None:
    """Who still waits for a free connection when the time is up has sent nothing."""
    async with Upstream() as upstream, client_of(upstream.base_url, connections=1) as client:
        upstream.script(Act(fault="stall"))
        first = asyncio.create_task(client.send(call(timeout=20)))
        await upstream.seen(1)
        outcome = await client.send(call(timeout=2))
        assert isinstance(outcome, Lost)
        assert (outcome.sent, outcome.timed_out) == (False, True)
        first.cancel()
        assert len(upstream.requests) == 1


async def test_dead_proxy_was_not_sent(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is used, and one that is away was sent nothing."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    async with client_of("http://api.example.invalid/v1") as client:
        outcome = await client.send(call())
    assert isinstance(outcome, Lost)
    assert not outcome.sent


async def test_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy gets the requests for other machines."""
    async with Upstream() as upstream:
        monkeypatch.setenv("http_proxy", upstream.root)
        async with client_of("http://api.example.invalid/v1") as client:
            assert isinstance(await client.send(call()), Answered)
        assert upstream.requests[0].headers["host"] == "api.example.invalid"


async def test_unknown_account_was_not_sent() -> None:
    """An account that is configured no more is an outcome, not a crash."""
    async with OpenAIClient([]) as client:
        outcome = await client.send(call())
    assert isinstance(outcome, Lost)
    assert not outcome.sent


# ---------------------------------------------------------------- perhaps billed


@pytest.mark.parametrize("fault", ["close", "reset", "half", "garbage"])
async def test_broken_answer_was_sent(fault: str) -> None:
    """A connection that breaks after the request may have cost money, and the next call works."""
    async with Upstream() as upstream, client_of(upstream.base_url) as client:
        upstream.script(Act(fault=fault))
        outcome = await client.send(call())
        assert isinstance(outcome, Lost)
        assert (outcome.sent, outcome.timed_out) == (True, False)
        assert "127.0.0.1" not in outcome.message
        assert isinstance(await client.send(call()), Answered)


async def test_reused_connection_that_breaks_was_sent() -> None:
    """A request on a connection kept alive is sent once, never again behind the worker's back."""
    async with Upstream() as upstream, client_of(upstream.base_url) as client:
        upstream.script(Act(), Act(fault="close"))
        await client.send(call())
        outcome = await client.send(call())
        assert isinstance(outcome, Lost)
        assert outcome.sent
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("act", [Act(fault="stall"), Act(fault="dribble", gap=0.05), Act(delay=30)])
async def test_time_bounds_the_whole_exchange(act: Act) -> None:
    """A server that stalls, or sends a byte now and then, is left when the time is up."""
    async with Upstream() as upstream, client_of(upstream.base_url) as client:
        upstream.script(act)
        start = time.monotonic()
        outcome = await client.send(call(timeout=0.5))
        assert time.monotonic() - start < 2
        message = "no complete answer within 0.5 s"
        assert outcome == Lost(sent=True, timed_out=True, message=message)
        [seen] = await upstream.settled()
        assert seen.outcome == "abandoned"


@pytest.mark.parametrize("packed", [{}, {"Content-Encoding": "gzip"}])
async def test_answers_have_a_largest_size(packed: dict[str, str]) -> None:
    """A huge answer is not kept, also when it arrives as a small one that unpacks to it."""
    async with Upstream() as upstream, client_of(upstream.base_url, max_answer_bytes=100_000) as client:
        upstream.script(Act(body="0" * 64_000_000, headers=packed))
        outcome = await client.send(call(timeout=20))
        assert isinstance(outcome, Lost)
        assert (outcome.sent, outcome.too_large) == (True, True)
        assert isinstance(await client.send(call()), Answered)


async def test_packed_answers_are_unpacked() -> None:
    """A server that packs though it was not asked to is understood."""
    async with Upstream() as upstream, client_of(upstream.base_url) as client:
        upstream.script(Act(body='{"fine": true}', headers={"Content-Encoding": "gzip"}))
        outcome = await client.send(call())
    assert isinstance(outcome, Answered)
    assert outcome.body == b'{"fine": true}'


async def test_cancelling_closes_the_call() -> None:
    """A cancelled call ends at once, the server sees it go, and the client goes on."""
    async with Upstream() as upstream, client_of(upstream.base_url) as client:
        upstream.script(Act(fault="stall"))
        task = asyncio.create_task(client.send(call(timeout=30)))
        await upstream.seen(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        [seen] = await upstream.settled()
        assert seen.outcome == "abandoned"
        assert isinstance(await client.send(call()), Answered)
