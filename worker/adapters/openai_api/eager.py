"""A request whose body leaves with its headers, not a turn of the event loop later."""

from collections.abc import Coroutine
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from typing_extensions import override

_SMALL: Final = 2**15
"""Bytes that are written without ever waiting: connections pause at 64 KiB."""


class EagerRequest(aiohttp.ClientRequest):
    """Writes a small body at once, as aiohttp itself does from Python 3.12 on, where tasks can begin at once.

    On a busy loop that turn takes milliseconds, in which the request is counted as open and is not.
    """

    @override
    def write_bytes(
        self,
        writer: AbstractStreamWriter,
        conn: aiohttp.connector.Connection,
        content_length: int | None = None,
    ) -> Coroutine[Any, Any, None]:
        writing = super().write_bytes(writer, conn, content_length)
        paused = conn.protocol is None or conn.protocol.writing_paused
        if paused or content_length is None or content_length > _SMALL:
            return writing
        try:
            waits_for = writing.send(None)
        except StopIteration:
            return _done()
        writing.close()
        raise AssertionError(f"a small body waits for {waits_for!r}")


async def _done() -> None:
    """Do nothing; aiohttp makes a task of it."""
