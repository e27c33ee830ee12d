"""The kept-open connection: its start, its losses, its end, and what it never says."""

import asyncio
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from yarl import URL

from tests.support.broker import Proxy, Told, until
from worker.adapters.rabbitmq.connection import BrokerUnreachableError, BrokerUrlError, Link
from worker.domain.events import ServerTrouble


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for localhost that no authority signed; key and certificate in one file."""
    return made_certificate(tmp_path_factory.mktemp("tls"), days=1)


def made_certificate(folder: Path, *, days: int) -> Path:
    """Return a file with a self-signed certificate and its key; the certificate alone is beside it."""
    file, asked = folder / "both.pem", folder / "asked.csr"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    ask = ["req", "-newkey", "rsa:2048", "-nodes", *names, "-keyout", file, "-out", asked]
    sign = ["x509", "-req", "-in", asked, "-signkey", file, "-copy_extensions", "copy", "-days", str(days)]
    for command in (ask, [*sign, "-out", f"{file}.crt"]):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def tls_server(certificate: Path) -> ssl.SSLContext:
    """Return the server's side of TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def link_to(url: str, told: Told | None = None, *, startup_timeout: float = 20) -> Link:
    """Make a link."""
    return Link(url, name="test", observer=told or Told(), startup_timeout=startup_timeout)


async def test_a_cut_connection_comes_back(amqp_url: str) -> None:
    """After a reset the link is down and says so, then has a new connection and says that."""
    told = Told()
    async with Proxy(amqp_url) as proxy, link_to(proxy.url, told) as link:
        first = await link.ready()
        proxy.cut()
        await until(lambda: not link.healthy)
        second = await asyncio.wait_for(link.ready(), 10)
        assert second is not first
        assert not second.is_closed
        await until(lambda: len(told.events) == 3)
    assert [event.up for event in told.of(ServerTrouble)] == [True, False, True]


async def test_a_silent_broker_is_left(amqp_url: str) -> None:
    """A connection that the driver gives up for its silence is told as that, and followed by a new one."""
    told = Told()
    async with link_to(amqp_url, told) as link:
        first = await link.ready()
        first._reader_task.cancel()  # what it does once three heartbeats are missing
        await until(lambda: len(told.events) == 3)
        assert await link.ready() is not first
    assert told.of(ServerTrouble)[1].error == "the broker fell silent"


async def test_a_broker_that_starts_late_is_waited_for(amqp_url: str) -> None:
    """A link to a port where nobody listens yet is up soon after somebody does."""
    async with Proxy(amqp_url) as proxy:
        later = proxy.url
    port = URL(later).port
    told = Told()
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(link_to(later, told).__aenter__())
        await until(lambda: told.of(ServerTrouble))
        async with Proxy(amqp_url, port=port or 0):
            link = await asyncio.wait_for(opening, 15)
            assert link.healthy
            await link.__aexit__(None, None, None)
    assert told.of(ServerTrouble)[0].error == "connection refused"


async def test_an_absent_broker_ends_the_start_in_time() -> None:
    """Within `startup_timeout` the error names host and port, and no password."""
    begin = time.monotonic()
    with pytest.raises(BrokerUnreachableError) as raised:
        async with link_to("amqp://me:hush@127.0.0.1:1/", startup_timeout=0.5):
            pass
    assert time.monotonic() - begin < 3
    assert "127.0.0.1:1: connection refused" in str(raised.value)
    assert "hush" not in str(raised.value)


async def test_a_refused_login_is_not_tried_again(amqp_url: str) -> None:
    """A wrong password ends the start at once, long before `startup_timeout`, and is never told."""
    told = Told()
    begin = time.monotonic()
    with pytest.raises(BrokerUnreachableError, match="Login was refused") as raised:
        async with link_to(str(URL(amqp_url).with_password("hush")), told):
            pass
    assert time.monotonic() - begin < 5
    assert "hush" not in f"{raised.value}{told.events}"


async def test_an_unknown_virtual_host_is_named(amqp_url: str) -> None:
    """A virtual host that is not there is told apart from a broker that is not there."""
    with pytest.raises(BrokerUnreachableError, match="virtual host"):
        async with link_to(str(URL(amqp_url).with_path("/nowhere")), startup_timeout=0.5):
            pass


async def test_leaving_while_the_broker_is_away_is_quick(amqp_url: str) -> None:
    """The context ends promptly in the middle of reconnecting."""
    async with Proxy(amqp_url) as proxy:
        link = link_to(proxy.url)
        await link.__aenter__()
    await until(lambda: not link.healthy)
    begin = time.monotonic()
    await link.__aexit__(None, None, None)
    assert time.monotonic() - begin < 1


async def test_f10_certificate_that_nobody_vouches_for(amqp_url: str, certificate: Path) -> None:
    """A self-signed certificate, and a good one for another host, are refused; one that we know is taken."""
    async with Proxy(amqp_url, tls=tls_server(certificate)) as proxy:
        url = URL(proxy.url).with_host("localhost")
        with pytest.raises(BrokerUnreachableError, match="certificate not accepted: self-signed"):
            async with link_to(str(url), startup_timeout=1):
                pass
        known = url.with_query(cafile=f"{certificate}.crt")
        with pytest.raises(BrokerUnreachableError, match="certificate not accepted: IP address mismatch"):
            async with link_to(str(known.with_host("127.0.0.1")), startup_timeout=1):
                pass
        async with link_to(str(known)) as link:
            assert link.healthy


async def test_f10_certificate_that_has_expired(amqp_url: str, tmp_path: Path) -> None:
    """Known or not, it is refused once its time is over."""
    old = made_certificate(tmp_path, days=-1)
    async with Proxy(amqp_url, tls=tls_server(old)) as proxy:
        url = URL(proxy.url).with_host("localhost").with_query(cafile=f"{old}.crt")
        with pytest.raises(BrokerUnreachableError, match="certificate not accepted: certificate has expired"):
            async with link_to(str(url), startup_timeout=1):
                pass


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqps://me:hush@host/?no_verify_ssl=1", "no_verify_ssl is refused"),
        ("amqp://me:hush@host/?no_verify_ssl=0", "no_verify_ssl is refused"),
        ("http://me:hush@host/", "must look like"),
        ("amqp://", "must look like"),
        ("amqp://me:hush@host:port/", "is not a URL"),
    ],
)
def test_f10_url_that_cannot_be_used(url: str, words: str) -> None:
    """The error says what is wrong, and quotes nothing of the URL."""
    with pytest.raises(BrokerUrlError, match=words) as raised:
        link_to(url)
    assert "hush" not in str(raised.value)
