"""What commands share: settings, exit codes, and the way to the adapters.

Settings and adapters are imported where they are used: most commands need few
of them, and `--help` none.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Never, TypeVar

import typer

from schemas.names import CONTENT_TYPE
from worker.domain.events import Event
from worker.ports import PublishError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from worker.adapters.database.queries import Queries
    from worker.adapters.openai_api.client import OpenAIClient
    from worker.adapters.rabbitmq.connection import Link
    from worker.config import Settings

T = TypeVar("T")
_PERSISTENT: Final = 2


class Exit(IntEnum):
    """Exit codes, for those who start commands from scripts."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3


def complain(line: str) -> None:
    """Print a line to standard error."""
    typer.echo(line, err=True)


def stop(line: str, code: Exit) -> Never:
    """End the command with one line."""
    complain(line)
    raise typer.Exit(code)


def settings() -> "Settings":
    """Return the settings, or end the command with what is wrong with them."""
    from worker.config import load_settings

    with told():
        return load_settings(warn=complain)


def work(task: Coroutine[Any, Any, T]) -> T:
    """Run a command's work, and end the command with one line for what it cannot help."""
    # Libraries would log their version of the same trouble, or with OPENAI_LOG=debug whole requests.
    logging.root.addHandler(logging.NullHandler())
    with told():
        return asyncio.run(task)


@asynccontextmanager
async def broker(loaded: "Settings") -> AsyncIterator["Link"]:
    """Open a connection to the broker. Raises BrokerUnreachableError."""
    from worker.adapters.rabbitmq.connection import Link

    url, patience = loaded.amqp_url.get_secret_value(), loaded.worker_startup_timeout
    async with Link(url, name="openai-worker command", observer=_ignore, startup_timeout=patience) as link:
        yield link


class Sender:
    """Publishes persistently, and waits for the broker's word."""

    def __init__(self, link: "Link") -> None:
        from worker.adapters.rabbitmq.outlet import Outlet

        self._outlet = Outlet(link)

    async def send(
        self,
        body: bytes,
        *,
        exchange: str,
        routing_key: str,
        message_id: str | None = None,
        reply_to: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Publish JSON. Raises PublishError."""
        from pamqp.commands import Basic

        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            delivery_mode=_PERSISTENT,
            message_id=message_id,
            reply_to=reply_to,
            correlation_id=correlation_id,
        )
        routed = await self._outlet.send(
            body, exchange=exchange, routing_key=routing_key, properties=properties
        )
        if not routed:
            raise PublishError(
                f"no queue takes {routing_key} from {exchange}: run `openai-worker topology apply`"
            )


@asynccontextmanager
async def database(loaded: "Settings") -> AsyncIterator["Queries"]:
    """Open the database for reading. Raises DatabaseUnreachableError and DatabaseSchemaError."""
    from worker.adapters.database.opening import open_queries

    url, patience = loaded.database_url.get_secret_value(), loaded.worker_startup_timeout
    async with open_queries(url, startup_timeout=patience) as queries:
        yield queries


@asynccontextmanager
async def ledger(loaded: "Settings", *, write: bool = False) -> AsyncIterator["AsyncEngine"]:
    """Open the database for work on many rows. Raises as `database`."""
    from worker.adapters.database.engine import Use
    from worker.adapters.database.opening import opened

    url, patience = loaded.database_url.get_secret_value(), loaded.worker_startup_timeout
    async with opened(url, Use.WRITE if write else Use.READ, startup_timeout=patience) as engine:
        yield engine


@asynccontextmanager
async def openai(loaded: "Settings") -> AsyncIterator[tuple["OpenAIClient", list[str]]]:
    """Open OpenAI with all credentials, and yield their names too. Raises ConfigError."""
    from worker.assembly import openai_client
    from worker.config import resolve_credentials

    credentials = resolve_credentials(loaded)
    async with openai_client(loaded, credentials.values()) as client:
        yield client, list(credentials)


@contextmanager
def to_stay() -> Iterator[None]:
    """Import without looking for garbage in what stays for good, now and in every later collection."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def told() -> Iterator[None]:
    """Turn the errors that an operator has to mend into lines and exit codes."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        code = exit_of(error)
        if code is None:
            raise
        # A missing exchange or queue is told by the broker's own words, which do not say what mends it.
        hint = "; see `openai-worker doctor`" if code is Exit.FAILED and "`" not in str(error) else ""
        stop(f"{error}{hint}", code)


def exit_of(error: Exception) -> Exit | None:
    """Return the exit code of an error that an operator can mend; None for errors of the program."""
    from worker.adapters.database import errors as database
    from worker.adapters.http import ListenError
    from worker.adapters.rabbitmq import connection, topology
    from worker.client import SubmitError
    from worker.config import ConfigError
    from worker.tools import ToolDefinitionError

    match error:
        case database.DatabaseUnreachableError() | connection.BrokerUnreachableError():
            return Exit.UNREACHABLE
        case database.DatabaseUrlError() | connection.BrokerUrlError():
            return Exit.USAGE
        case ConfigError() | ListenError() | ToolDefinitionError():
            return Exit.USAGE
        case database.DatabaseSchemaError() | topology.TopologyError() | PublishError() | SubmitError():
            return Exit.FAILED
        case _:
            return None


def _ignore(event: Event) -> None:
    _ = event
