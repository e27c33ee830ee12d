"""A real broker under test: talking to it plainly, steering it, and standing between it and its clients."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import aio_pika
import aiormq
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from typing_extensions import override
from yarl import URL

from schemas.names import JOBS
from worker.adapters.rabbitmq import topology
from worker.adapters.rabbitmq.connection import Link
from worker.adapters.rabbitmq.fuse import BROKEN_PAUSE
from worker.domain.events import Event
from worker.ports import Delivery

Wanted = TypeVar("Wanted", bound=Event)

WITHIN = 20.0
"""Seconds after which something that ought to happen has not."""


class RealClock:
    """The port Clock, on the machine's own time."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SteeredClock(RealClock):
    """Lets nobody sleep through until told."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._wake = asyncio.Event()

    @override
    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._wake.wait()

    def wake(self) -> None:
        """End all sleeping so far."""
        self._wake.set()
        self._wake = asyncio.Event()


class HastyClock(RealClock):
    """Spends the pauses of what broke in no time; all else sleeps for ever."""

    @override
    async def sleep(self, seconds: float) -> None:
        if seconds != BROKEN_PAUSE:
            await asyncio.Event().wait()
        await asyncio.sleep(0)


class Told:
    """The port Observer: keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Wanted]) -> list[Wanted]:
        return [event for event in self.events if isinstance(event, kind)]


async def until(condition: Callable[[], object], *, within: float = WITHIN) -> None:
    """Wait for a condition to hold; fail when it has not in time."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - any condition, not only what sets an event
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def linked(url: str, observer: Told | None = None) -> AsyncIterator[Link]:
    """Connect, with the whole topology there."""
    async with Link(url, name="test", observer=observer or Told(), startup_timeout=WITHIN) as link:
        await topology.apply(link)
        yield link


@contextlib.asynccontextmanager
async def plain(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """Open a channel as any other program would."""
    async with (
        await aio_pika.connect(url) as connection,
        connection.channel(on_return_raises=True) as channel,
    ):
        yield channel


async def send_job(url: str, body: bytes = b"{}", *, key: str = "completion", **properties: Any) -> None:
    """Publish a message to a lane."""
    async with plain(url) as channel:
        exchange = await channel.get_exchange(JOBS)
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **properties)
        await exchange.publish(message, routing_key=key)


class OddProperties(Basic.Properties):
    """Properties as no decent client would write them."""

    def __init__(self, flags: int, octets: bytes) -> None:
        super().__init__()
        self._octets = flags.to_bytes(2) + octets

    @override
    def marshal(self) -> bytes:
        return self._octets


async def send_odd(
    url: str, flags: int, octets: bytes, *, key: bytes = b"completion", body: bytes = b"{}"
) -> None:
    """Publish a message with properties, or a routing key, that a client library would refuse to write."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        driver = await channel.get_underlay_channel()
        frames = [
            Basic.Publish(exchange=JOBS, routing_key="KEY"),
            ContentHeader(0, len(body), OddProperties(flags, octets)),
        ]
        written = ChannelFrame.marshall(driver.number, [*frames, ContentBody(body)])
        payload = written.payload.replace(b"\x03KEY", bytes([len(key)]) + key, 1)
        size = int.from_bytes(payload[3:7]) + len(key) - 3
        payload = payload[:3] + size.to_bytes(4) + payload[7:]
        assert isinstance(driver, aiormq.Channel)
        await driver.write_queue.put(ChannelFrame(payload=payload, should_close=False))
        await channel.set_qos(1)  # an answer to this says that the broker has taken what came before


async def take(url: str, queue: str, *, within: float = WITHIN) -> aio_pika.abc.AbstractIncomingMessage:
    """Take the next message out of a queue, waiting for it."""
    arrived: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    async with plain(url) as channel:
        await channel.set_qos(1)
        await (await channel.get_queue(queue)).consume(arrived.put)
        async with asyncio.timeout(within):
            message = await arrived.get()
        await message.ack()
        return message


async def count(url: str, queue: str) -> int:
    """Return how many messages a queue holds ready."""
    async with plain(url) as channel:
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


def delivery(**changes: Any) -> Delivery:
    """Make a delivery as the core would pass it back."""
    values: dict[str, Any] = {
        "body": b"{}",
        "lane": "completion",
        "high": False,
        "redelivered": False,
        "received_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    return Delivery(**(values | changes))


class Proxy:
    """Stands between clients and the broker: cuts connections, or lets them hang."""

    def __init__(self, url: str, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._target = URL(url)
        self._port = port
        self._tls = tls
        self._open = asyncio.Event()
        self._open.set()
        self._accepting = True
        self._held = 0
        self.refused = 0
        """How many connections were dropped because they were not to be accepted."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The broker's URL, by way of this proxy."""
        assert self._server
        url = self._target.with_port(self._server.sockets[0].getsockname()[1])
        return str(url.with_scheme("amqps") if self._tls else url)

    @property
    def idle(self) -> bool:
        """Whether nothing is held."""
        return not self._held

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._writers) // 2

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        """Pass nothing on, either way, until told to let go."""
        self._open.clear()

    def let_go(self) -> None:
        """Pass on again, beginning with what was held."""
        self._open.set()

    def refuse(self) -> None:
        """Drop new connections, until told to accept."""
        self._accepting = False

    def accept(self) -> None:
        """Accept connections again."""
        self._accepting = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._accepting:
            self.refused += 1
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, there[1]), (there[0], writer)):
            self._writers.add(sink)
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                self._held += 1
                await self._open.wait()
                self._held -= 1
                sink.write(data)
                await sink.drain()
        self._writers.discard(sink)
        sink.close()
