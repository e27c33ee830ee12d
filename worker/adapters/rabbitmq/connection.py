"""A connection that is kept open."""

import asyncio
import contextlib
import random
from types import TracebackType
from typing import Final, Self, cast

import aio_pika
import aiormq
from aio_pika.abc import ConnectionParameter
from aiormq.exceptions import ProbableAuthenticationError
from yarl import URL

from worker.adapters.rabbitmq.transports import Transports
from worker.adapters.rabbitmq.trouble import DriverGuard, describe, end
from worker.domain.events import ServerTrouble
from worker.ports import Observer

SERVER: Final = "rabbitmq"

_HEARTBEAT_SECONDS: Final = 10
"""The driver gives up a silent connection after three of them."""
_CONNECT_SECONDS: Final = 10
_CLOSE_SECONDS: Final = 5
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 10.0
_LASTING_SECONDS: Final = 30
"""A connection that lasted this long starts the pauses anew."""


class BrokerUrlError(ValueError):
    """The URL cannot be used; the message never quotes it."""


class BrokerUnreachableError(Exception):
    """No connection in time, or none allowed; the message names no secret."""


def broker_url(text: str) -> URL:
    """Check a broker's URL. Raises BrokerUrlError."""
    try:
        url = URL(text)
    except ValueError:
        raise BrokerUrlError("is not a URL; expected amqp://user:password@host:5672/vhost") from None
    if url.scheme not in {"amqp", "amqps"} or not url.host:
        raise BrokerUrlError("must look like amqp://user:password@host:5672/vhost, or amqps:// for TLS")
    if "no_verify_ssl" in url.query:
        raise BrokerUrlError(
            "no_verify_ssl is refused: certificates are always verified; "
            "name an authority of your own with ?cafile=PATH"
        )
    return url


class _Connection(aio_pika.Connection):
    """Hands the driver our transports; nothing else of it is changed."""

    PARAMETERS = (
        *aio_pika.Connection.PARAMETERS,
        ConnectionParameter(name="transport_factory", parser=lambda factory: factory, is_kwarg=True),
    )


class Link:
    """One connection to the broker, opened again after each loss for as long as the context lasts.

    Its channels are not restored: whoever uses it waits for `ready()` and
    opens its own, because only the user knows what a lost channel meant.
    """

    def __init__(self, url: str, *, name: str, observer: Observer, startup_timeout: float = 30) -> None:
        self._url = broker_url(url)
        self._name = name
        self._observer = observer
        self._startup_timeout = startup_timeout
        self._opened = asyncio.Event()
        self._connection: aiormq.Connection | None = None
        self._transports = Transports()
        self._owner: aio_pika.Connection | None = None
        """Closes the connection once nobody holds it."""
        self._keeper: asyncio.Task[None] | None = None
        self._told: ServerTrouble | None = None

    @property
    def user(self) -> str:
        """The broker's user, the only one whose name we may put into a `user_id`."""
        return self._url.user or "guest"

    @property
    def healthy(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None and not self._connection.is_closed

    async def ready(self) -> aiormq.Connection:
        """Wait for an open connection."""
        while self._connection is None or self._connection.is_closed:
            self._opened.clear()
            await self._opened.wait()
        return self._connection

    async def channel(self) -> aiormq.Channel:
        """Wait for a connection and open a channel: publishes on it are confirmed, or raise."""
        connection = await self.ready()
        return cast("aiormq.Channel", await connection.channel())

    def write(self, channel: aiormq.Channel, frames: bytes) -> bool:
        """Write whole frames of a channel, past the driver's queue; False where it has closed.

        From the moment the driver reads that a channel closes it does not count it among its own. What
        came later, or after the driver has written so itself, would close the connection, or speak for
        another channel of the same number.
        """
        connection = self._connection
        if connection is None or connection.channels.get(channel.number) is not channel:
            return False
        return self._transports.write(frames)

    async def __aenter__(self) -> Self:
        """Connect. Raises BrokerUnreachableError after `startup_timeout`, or once the login is refused."""
        self._keeper = asyncio.create_task(self._keep_open(), name=f"link {self._name}")
        opened = asyncio.create_task(self.ready())
        try:
            await asyncio.wait(
                {self._keeper, opened}, timeout=self._startup_timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            opened.cancel()
            if not self.healthy:
                await self._stop()
        if not self.healthy:
            raise BrokerUnreachableError(f"no connection to RabbitMQ at {self._address}: {self._trouble}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def _address(self) -> str:
        return f"{self._url.host}:{self._url.port}" if self._url.port else str(self._url.host)

    @property
    def _trouble(self) -> str:
        return (self._told and self._told.error) or "no answer in time"

    async def _stop(self) -> None:
        if self._keeper:
            await end(self._keeper)
        if self._owner:
            with contextlib.suppress(Exception), DriverGuard():
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._owner.close()

    async def _keep_open(self) -> None:
        clock = asyncio.get_running_loop().time
        short_lives = 0
        while True:
            born = clock()
            error = await self._live()
            short_lives = 0 if clock() - born > _LASTING_SECONDS else short_lives + 1
            first_time = self._told is None
            self._tell(ServerTrouble(server=SERVER, up=False, error=describe(error)))
            if first_time and isinstance(error, ProbableAuthenticationError):
                return
            await asyncio.sleep(pause(short_lives))

    async def _live(self) -> BaseException | None:
        """Connect, and return what ended the connection."""
        try:
            with DriverGuard():
                async with asyncio.timeout(_CONNECT_SECONDS):
                    connection, self._transports = await self._connect()
        except Exception as error:  # noqa: BLE001  whatever it is, the next try may succeed
            return error
        self._connection = connection
        self._opened.set()
        self._tell(ServerTrouble(server=SERVER, up=True))
        closing = connection.closing
        await asyncio.wait({closing})
        return None if closing.cancelled() else closing.exception()

    async def _connect(self) -> tuple[aiormq.Connection, Transports]:
        """Return the driver's side of a connection: its channels cost less than those on top of it."""
        transports = Transports()
        self._owner = owner = _Connection(
            self._url.update_query({"heartbeat": _HEARTBEAT_SECONDS, **self._url.query}),
            transport_factory=transports,
            client_properties={"connection_name": self._name},
        )
        await owner.connect()
        assert owner.transport is not None  # noqa: S101  for the type checker: it is connected
        return cast("aiormq.Connection", owner.transport.connection), transports

    def _tell(self, event: ServerTrouble) -> None:
        if event != self._told:
            self._told = event
            self._observer(event)


def pause(failures: int) -> float:
    """Return how many seconds to wait before the next try."""
    longest: float = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures, 16))
    return longest * random.uniform(0.5, 1)  # noqa: S311  jitter, not cryptography
