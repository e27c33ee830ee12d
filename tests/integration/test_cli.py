"""The command line on a real broker and real databases; as a process where that makes a difference."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from schemas.contract import asyncapi, json_schemas
from tests.support.broker import plain
from tests.support.command import ROOT, SECRET, CommandLine
from tests.support.databases import rows
from tests.support.servers import Broker
from worker.adapters.database.reports import By
from worker.adapters.database.tables import REVISION
from worker.cli.main import app
from worker.cli.wiring import to_stay

HEAVY = ["openai", "aiormq", "aio_pika", "sqlalchemy", "alembic", "aiohttp", "genai_prices", "structlog"]


def test_help_does_not_wait_for_libraries() -> None:
    """Printing help imports none of the large libraries, which would take a second."""
    code = f"import sys, worker.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_imports_are_left_out_of_collections() -> None:
    """What a worker imports is never looked through for garbage; what comes later is, as ever."""
    try:
        with to_stay():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def levels(group: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the way to each group and command."""
    yield path
    for command in group.registered_commands:
        assert command.callback
        yield (*path, command.name or command.callback.__name__)
    for below in group.registered_groups:
        assert below.typer_instance
        yield from levels(below.typer_instance, (*path, str(below.name)))


@pytest.mark.parametrize("path", list(levels(app)), ids=" ".join)
def test_every_level_has_help(path: tuple[str, ...]) -> None:
    """`--help` explains each level and each command, without settings or servers."""
    ended = CliRunner().invoke(app, [*path, "--help"], env={"WORKER_CONCURRENCY": "wrong"})
    assert ended.exit_code == 0
    assert "Usage:" in ended.output
    for name in ("TODO", "None"):
        assert name not in ended.output


def test_help_keeps_its_brackets() -> None:
    """What looks like markup is text: a table of the settings' file is named in whole."""
    text = CliRunner().invoke(app, ["limits", "pause", "--help"], env={"COLUMNS": "200"}).output
    assert "or the glob of [limits] it falls under" in text


def test_the_version_is_that_of_the_distribution() -> None:
    """Printed without settings or servers, for whoever reports a fault."""
    ended = CliRunner().invoke(app, ["--version"], env={"WORKER_CONCURRENCY": "wrong"})
    assert (ended.exit_code, ended.output) == (0, f"openai-worker {version('openai-worker')}\n")


@pytest.mark.parametrize(
    "option", ["usage report --from", "usage export --to", "jobs erase --tenant a --before"]
)
def test_a_day_that_is_none_is_told_in_words(option: str) -> None:
    """The form that is accepted is shown, and not how the program spells it."""
    output = CliRunner().invoke(app, [*option.split(), "2026-11-31"], env={"COLUMNS": "200"}).output
    assert "must be a date like 2026-11-30, not '2026-11-31'" in output


def test_the_groups_of_a_report_are_listed_in_its_help() -> None:
    """The help names exactly the groups that a report accepts."""
    text = CliRunner().invoke(app, ["usage", "report", "--help"], env={"COLUMNS": "200"}).output
    assert f"{', '.join(By)}, label:KEY." in text


@pytest.mark.parametrize(
    "command",
    [
        "",
        "nonsense",
        "jobs",
        "jobs list --status x",
        "usage report --by x",
        "usage report --from x",
        "usage report --from 2026-11-30 --to 2026-11-01",
        "usage reconcile --from 2026-11-30 --to 2026-11-01",
        "submit",
    ],
)
def test_wrong_usage_is_exit_2(command: str) -> None:
    """Unknown commands, options and values end with exit code 2."""
    assert CliRunner().invoke(app, command.split()).exit_code == 2


@pytest.mark.parametrize("command", ["run", "topology apply", "jobs list"])
async def test_wrong_settings_are_exit_2(bare: CommandLine, command: str) -> None:
    """Every command tells what is wrong with the settings, one line each, and no secret."""
    ended = await bare.process(
        *command.split(), WORKER_CONCURRENCY="abc", DATABASE_URL=f"mysql://me:{SECRET}@host/x"
    )
    assert (ended.code, ended.out) == (2, "")
    assert [line.split(":")[0] for line in ended.err.splitlines()] == ["DATABASE_URL", "WORKER_CONCURRENCY"]
    assert SECRET not in ended.err


async def test_a_missing_key_is_told_before_anything_is_opened(bare: CommandLine) -> None:
    """`run` without a key ends at once with the variable's name."""
    ended = await bare.process("run", OPENAI_API_KEY="")
    assert (ended.code, ended.err) == (2, "OPENAI_API_KEY: must be given\n")


async def test_unknown_variables_are_warned_of(bare: CommandLine) -> None:
    """A misspelt variable is named on standard error, and the command goes on."""
    ended = await bare("migrate", "--check", WORKER_CONCURENCY="4")
    assert "WORKER_CONCURENCY: is not a setting and is ignored" in ended.err
    assert ended.code == 1


@pytest.mark.parametrize("command", ["topology apply", "run"])
async def test_an_unreachable_broker_is_exit_3(bare: CommandLine, command: str) -> None:
    """Without a broker, a command gives up after the start-up timeout with one line, and no password."""
    ended = await bare.process(*command.split(), WORKER_HTTP_PORT="0", WORKER_LOG_LEVEL="error")
    assert ended.code == 3
    assert ended.err.splitlines()[-1] == "no connection to RabbitMQ at 127.0.0.1:1: connection refused"
    assert SECRET not in ended.err
    assert command == "run" or len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["migrate", "jobs list", "run"])
async def test_an_unreachable_database_is_exit_3(bare: CommandLine, command: str) -> None:
    """Without a database, a command gives up with one line that names the place, and no password.

    A worker has said before that it waits.
    """
    ended = await bare.process(*command.split(), DATABASE_URL=f"postgresql://me:{SECRET}@127.0.0.1:1/jobs")
    assert ended.code == 3
    *before, line = ended.err.splitlines()
    assert ["server is away" in one for one in before] == [True] * (command == "run")
    assert line.startswith("PostgreSQL database jobs at 127.0.0.1:1 cannot be reached: ")
    assert SECRET not in ended.err


async def test_contract_prints_both_descriptions(bare: CommandLine) -> None:
    """JSON Schema by default, AsyncAPI on demand; neither needs a server."""
    assert (await bare.process("contract")).json == json_schemas()
    assert (await bare("contract", "--format", "asyncapi")).json == asyncapi()


async def test_migrate(cli: CommandLine, sqlite_url: str) -> None:
    """The check names what is missing and changes nothing; migrate mends it, a second time harmlessly."""
    before = await cli("migrate", "--check")
    assert (before.code, before.out) == (1, f"the tables are at revision none, the newest is {REVISION}\n")
    for _ in range(2):
        assert (await cli.process("migrate")).code == 0
    assert (await cli("migrate", "--check")).code == 0
    assert await rows(sqlite_url, "SELECT * FROM jobs") == []


async def test_topology(cli: CommandLine, broker: Broker) -> None:
    """The check names each missing exchange and queue; apply makes them; a lost queue is found."""
    before = await cli("topology", "check", "--json")
    assert before.code == 1
    assert {"exchange openai.jobs is missing", "queue openai.dead is missing"} <= set(before.json)
    assert (await cli("topology", "apply")).code == 0
    assert (await cli("topology", "check")).code == 0
    async with plain(broker.url) as channel:
        await channel.queue_delete("openai.jobs.tool")
    after = await cli("topology", "check")
    assert (after.code, after.out) == (1, "queue openai.jobs.tool is missing\n")


async def test_pausing_what_nobody_uses_is_warned_of(stored: CommandLine, tmp_path: Path) -> None:
    """It is done all the same; what is in the settings, or in use, needs no warning."""
    (tmp_path / "worker.toml").write_text('[limits."gpt-6-*"]\nrequests_per_minute = 1\n')
    for name, warning in (
        ("typo", "no limit or model typo is known yet"),
        ("gpt-6-luna", "this holds nothing up"),
    ):
        ended = await stored("limits", "pause", name)
        done, *warned = ended.err.splitlines()
        assert (ended.code, done) == (0, f"{name} is paused on the account default")
        assert [line.startswith(warning) for line in warned] == [True]
    for name in ("gpt-6-*", "typo"):
        assert (await stored("limits", "pause", name)).err == f"{name} is paused on the account default\n"


async def test_a_database_that_is_not_set_up_is_told(cli: CommandLine, sqlite_url: str) -> None:
    """A command that reads says how to make the tables, and makes no empty file by itself."""
    ended = await cli("jobs", "list")
    assert ended.code == 1
    assert ended.err.endswith("does not exist: run `openai-worker migrate`\n")
    again = await cli("jobs", "list")
    assert again.err == ended.err
