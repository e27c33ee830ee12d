"""What commands share: settings, exit codes, and the way to the adapters.

Adapters are imported where they are used: most commands need one of them, and
`--help` none.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Never, TypeVar

import typer

from worker.config import ConfigError, Settings, load_settings
from worker.domain.events import Event
from worker.ports import PublishError

if TYPE_CHECKING:
    from worker.adapters.database.queries import Queries
    from worker.adapters.rabbitmq.connection import Link

T = TypeVar("T")


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


def settings() -> Settings:
    """Return the settings, or end the command with what is wrong with them."""
    with told():
        return load_settings(warn=complain)


def work(task: Coroutine[Any, Any, T]) -> T:
    """Run a command's work, and end the command with one line for what it cannot help."""
    with told():
        return asyncio.run(task)


@asynccontextmanager
async def broker(loaded: Settings) -> AsyncIterator["Link"]:
    """Open a connection to the broker. Raises BrokerUnreachableError."""
    from worker.adapters.rabbitmq.connection import Link  # noqa: PLC0415 - slow to import

    url, patience = loaded.amqp_url.get_secret_value(), loaded.worker_startup_timeout
    async with Link(url, name="openai-worker command", observer=_ignore, startup_timeout=patience) as link:
        yield link


@asynccontextmanager
async def database(loaded: Settings) -> AsyncIterator["Queries"]:
    """Open the database for reading. Raises DatabaseUnreachableError and DatabaseSchemaError."""
    from worker.adapters.database.opening import open_queries  # noqa: PLC0415 - slow to import

    url, patience = loaded.database_url.get_secret_value(), loaded.worker_startup_timeout
    async with open_queries(url, startup_timeout=patience) as queries:
        yield queries


@contextmanager
def told() -> Iterator[None]:
    """Turn the errors that an operator has to mend into lines and exit codes."""
    try:
        yield
    except ConfigError as error:
        stop(str(error), Exit.USAGE)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        code = _exit_of(error)
        if code is None:
            raise
        stop(str(error), code)


def _exit_of(error: Exception) -> Exit | None:
    from worker.adapters.database import errors as database  # noqa: PLC0415 - slow to import
    from worker.adapters.http import ListenError  # noqa: PLC0415 - slow to import
    from worker.adapters.rabbitmq import connection, topology  # noqa: PLC0415 - slow to import

    match error:
        case database.DatabaseUnreachableError() | connection.BrokerUnreachableError():
            return Exit.UNREACHABLE
        case database.DatabaseUrlError() | connection.BrokerUrlError() | ListenError():
            return Exit.USAGE
        case database.DatabaseSchemaError() | topology.TopologyError() | PublishError():
            return Exit.FAILED
        case _:
            return None


def _ignore(event: Event) -> None:
    _ = event
