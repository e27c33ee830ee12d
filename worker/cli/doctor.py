"""`openai-worker doctor`: is everything in place, and if not, what mends it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from worker.cli.output import console, plain, print_json
from worker.cli.wiring import Exit, broker, database, exit_of, openai, work

if TYPE_CHECKING:
    from worker.config import Settings

_PATIENCE: Final = 5.0
"""Seconds for each server: who asks a doctor does not want to wait as long as a worker at its start."""

_MISSING: Final = "is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what is right, or what is wrong and how to mend it."""

    what: str
    ok: bool
    text: str


def doctor(*, json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False) -> None:
    """Check configuration, tools, broker, database and OpenAI; exit 1 if anything is not ok."""
    findings = work(_examine())
    if json:
        print_json([asdict(finding) for finding in findings])
    for finding in () if json else findings:
        mark = ("ok", "green") if finding.ok else ("WRONG", "bold red")
        console().print(Text.assemble(mark, f"  {finding.what}: {plain(finding.text)}"), soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(Exit.FAILED)


async def _examine() -> list[Finding]:
    from worker.config import ConfigError, load_settings

    warnings: list[str] = []
    try:
        loaded = load_settings(warn=warnings.append)
    except ConfigError as error:
        return [Finding(what="configuration", ok=False, text=line) for line in error.problems]
    patience = min(loaded.worker_startup_timeout, _PATIENCE)
    loaded = loaded.model_copy(update={"worker_startup_timeout": patience})
    configuration = [Finding(what="configuration", ok=True, text=line) for line in warnings or ["valid"]]
    checks = (_tools, _broker, _database, _openai)
    examined = await asyncio.gather(*(_findings(check, loaded) for check in checks))
    return [*configuration, *(finding for found in examined for finding in found)]


async def _findings(
    check: Callable[["Settings"], AsyncIterator[Finding]], loaded: "Settings"
) -> list[Finding]:
    """Collect what a check finds; what ends it early is its last finding."""
    found: list[Finding] = []
    try:
        async for finding in check(loaded):
            found.append(finding)  # noqa: PERF401 - what was found before an error must be kept
    except Exception as error:
        if exit_of(error) is None:
            raise
        what = check.__name__.removeprefix("_")
        found += [Finding(what=what, ok=False, text=line) for line in str(error).splitlines()]
    return found


async def _tools(loaded: "Settings") -> AsyncIterator[Finding]:
    from worker.tools import load_tools

    names = ", ".join(sorted(load_tools(loaded.worker_tools)))
    yield Finding(what="tools", ok=True, text=names or "none registered")


async def _broker(loaded: "Settings") -> AsyncIterator[Finding]:
    from worker.adapters.rabbitmq import topology

    async with broker(loaded) as link:
        yield Finding(what="broker", ok=True, text="connected")
        differences = await topology.check(link)
    missing = [difference for difference in differences if difference.endswith(_MISSING)]
    if missing:
        text = f"{missing[0]}, and {len(missing) - 1} more: run `openai-worker topology apply`"
        yield Finding(what="topology", ok=False, text=text)
    for difference in differences:
        if difference not in missing:
            yield Finding(what="topology", ok=False, text=f"{difference}: delete it, then apply the topology")
    if not differences:
        yield Finding(what="topology", ok=True, text="as it should be")


async def _database(loaded: "Settings") -> AsyncIterator[Finding]:
    from worker.adapters.database import setup

    # Opened for reading first: `setup` would create the file of a database that is not there.
    async with database(loaded):
        yield Finding(what="database", ok=True, text="connected, at the newest revision")
    differences = await setup.check(
        loaded.database_url.get_secret_value(), startup_timeout=loaded.worker_startup_timeout
    )
    for difference in differences:
        yield Finding(what="tables", ok=False, text=f"{difference}: someone else has changed the tables")
    if not differences:
        yield Finding(what="tables", ok=True, text="as they should be")


async def _openai(loaded: "Settings") -> AsyncIterator[Finding]:
    async with openai(loaded) as (client, names):
        for name in names:
            wrong = await client.probe(name)
            yield Finding(what=f"OpenAI ({name})", ok=wrong is None, text=wrong or "accepts the key")
