"""What the driver raises, in our own words."""

import asyncio
import socket
import ssl
from types import TracebackType
from typing import Final, Self

from aiormq.exceptions import (
    AMQPConnectionError,
    ChannelClosed,
    ConnectionClosed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
)

_WORDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "host name not found"),
    (ssl.SSLError, "no TLS connection"),
    (TimeoutError, "no answer in time"),
    # How the driver ends a connection on which three heartbeats are missing.
    (asyncio.CancelledError, "the broker fell silent"),
    (DeliveryError, "refused by the broker"),
    (InvalidFrameError, "the broker refused the virtual host, or does not speak AMQP 0-9-1"),
    (ConnectionError, "connection lost"),
    (OSError, "network error"),
)


_AGAIN_SECONDS: Final = 0.5


class ChannelLostError(Exception):
    """The channel closed under an operation."""


class DriverGuard:
    """Turns a CancelledError that nobody sent to this task into ChannelLostError.

    The driver may fail what is pending on a closing channel with a
    CancelledError; let through, it would look as if we had been told to stop.
    """

    __slots__ = ("_before", "_task")

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._before = self._task.cancelling() if self._task else 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if (
            isinstance(error, asyncio.CancelledError)
            and self._task
            and self._task.cancelling() == self._before
        ):
            message = "the channel closed"
            raise ChannelLostError(message) from None


def describe(error: BaseException | None) -> str:
    """Name a trouble without addresses, secrets or content."""
    if isinstance(error, AMQPConnectionError) and isinstance(error.__cause__, OSError):
        error = error.__cause__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message.partition(',')[0]}"
    if isinstance(error, ChannelClosed | ConnectionClosed | ProbableAuthenticationError | ChannelLostError):
        told = [part for part in error.args if isinstance(part, str)]
        return told[-1] if told else "closed"
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return words
    return type(error).__name__ if error else "closed"


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task that talks to the driver, until it ends.

    Where the driver bounds a wait by a timeout, and what it waited for comes at the same
    moment, a cancellation is swallowed: `asyncio.wait_for` did that before Python 3.12.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_SECONDS)
