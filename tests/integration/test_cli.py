"""The command line on a real broker and real databases; as a process where that makes a difference."""

import asyncio
import csv
import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage, HeadersType
from typer.testing import CliRunner

from schemas.contract import asyncapi, json_schemas
from schemas.names import DEAD
from tests.support.broker import Told, linked, plain, until
from tests.support.command import ROOT, CommandLine
from tests.support.databases import (
    NOON,
    a_claim,
    a_finish,
    a_job,
    a_ledger_entry,
    a_record,
    a_token,
    a_wait,
    rows,
)
from tests.support.servers import Broker
from tests.support.upstream import Act, Upstream
from worker.adapters.database.opening import open_database
from worker.adapters.database.reports import By
from worker.adapters.database.setup import upgrade
from worker.adapters.database.tables import REVISION
from worker.adapters.rabbitmq.topology import CANCEL_QUEUE
from worker.cli.main import app
from worker.cli.wiring import to_stay
from worker.domain.job import ReplyAddress
from worker.ports import OwedReply

SECRET = "hunter2"
NOWHERE = f"amqp://user:{SECRET}@127.0.0.1:1/"


@pytest.fixture
def bare(tmp_path: Path) -> CommandLine:
    """Give a command line without servers."""
    return CommandLine(tmp_path, AMQP_URL=NOWHERE, WORKER_STARTUP_TIMEOUT="0.5")


@pytest.fixture
def cli(tmp_path: Path, broker: Broker, sqlite_url: str) -> CommandLine:
    """Give a command line with an empty broker and no database yet."""
    return CommandLine(tmp_path, AMQP_URL=broker.url, DATABASE_URL=sqlite_url)


@pytest.fixture
async def stored(cli: CommandLine, sqlite_url: str, broker: Broker) -> CommandLine:
    """Give a command line whose database and broker are set up."""
    await upgrade(sqlite_url)
    async with linked(broker.url):
        return cli


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
    """Without a database, a command gives up with one line that names the place, and no password."""
    ended = await bare.process(*command.split(), DATABASE_URL=f"postgresql://me:{SECRET}@127.0.0.1:1/jobs")
    assert ended.code == 3
    (line,) = ended.err.splitlines()
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


async def test_jobs_list_and_show(stored: CommandLine, sqlite_url: str) -> None:
    """A finished job is listed and shown with attempts and costs; its content only on demand."""
    body = b'{"kind":"completion","job_id":"one","tenant":"acme","request":{"model":"gpt-6-luna"}}'
    job = a_job("one", body=body)
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        token = a_token()
        await database.store.claim(a_claim(job, token))
        reply = OwedReply(key=job.key, reply_id="r", address=job.address, body=b'{"output_text":"secret"}')
        await database.store.finish(a_finish(job, token, reply=reply))
        waiting = a_job("two\x1b[2J")
        await database.store.wait(a_wait(waiting, None))
    listed = (await stored("jobs", "list", "--json")).json
    assert {(one["job_id"], one["status"]) for one in listed} == {
        ("one", "succeeded"),
        ("two\x1b[2J", "waiting"),
    }
    assert [
        one["job_id"] for one in (await stored("jobs", "list", "--status", "succeeded", "--json")).json
    ] == ["one"]
    table = (await stored("jobs", "list")).out
    assert "succeeded" in table
    assert "\x1b" not in table
    shown = await stored("jobs", "show", "one", "--tenant", "acme", "--json")
    assert shown.json["ledger"][0]["cost_usd"] == "0.000120000"
    assert shown.json["attempts"][0]["state"] == "succeeded"
    assert "secret" not in shown.out
    assert "secret" not in (await stored("jobs", "show", "one", "--tenant", "acme")).out
    with_content = (await stored("jobs", "show", "one", "--tenant", "acme", "--content", "--json")).json
    assert (with_content["request"], with_content["reply"]) == (json.loads(body), {"output_text": "secret"})
    missing = await stored("jobs", "show", "one")
    elsewhere = "there is no job one of the tenant default; there is one with `--tenant acme`\n"
    assert (missing.code, missing.err) == (1, elsewhere)
    missing = await stored("jobs", "explain", "nothing")
    assert missing.code == 1
    assert missing.err.endswith("a message that was refused is in `openai-worker dead list`\n")


async def test_cancel_reaches_database_and_workers(
    stored: CommandLine, broker: Broker, sqlite_url: str
) -> None:
    """A request to cancel is kept in the database, and told to the workers; a done job is too late."""
    job = a_job("one")
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        token = a_token()
        await database.store.claim(a_claim(job, token))
        assert (await stored("jobs", "cancel", "one", "--tenant", "acme")).code == 0
        assert await rows(sqlite_url, "SELECT job_id FROM jobs WHERE cancel_requested_at IS NOT NULL")
        async with plain(broker.url) as channel:
            message = await (await channel.get_queue(CANCEL_QUEUE)).get()
        assert message
        assert json.loads(message.body) == {"tenant": "acme", "job_id": "one"}
        await database.store.finish(a_finish(job, token))
    late = await stored("jobs", "cancel", "one", "--tenant", "acme")
    assert (late.code, late.err) == (1, "the job has its outcome already: succeeded\n")


async def test_cancelling_what_nobody_has_seen_says_so(stored: CommandLine, sqlite_url: str) -> None:
    """A slip is told from a job that waits, is not listed among those, and names the tenants that have it."""
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        await database.store.wait(a_wait(a_job("one"), None))
    for name, there in (("typo", ""), ("one", "; there is one with `--tenant acme`")):
        said = f"no job {name} of the tenant default has arrived; only the request to cancel it is known"
        ended = await stored("jobs", "cancel", name)
        assert (ended.code, ended.err) == (0, f"{said}, and is kept in case it does{there}\n")
    listed = (await stored("jobs", "list", "--status", "waiting", "--json")).json
    assert [one["tenant"] for one in listed] == ["acme"]
    known = "only a request to cancel it is known; the job itself has not arrived\n"
    assert (await stored("jobs", "explain", "typo")).out.startswith(known)
    assert (await stored("jobs", "show", "typo")).err == known


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


async def test_replay_publishes_the_message_again(
    stored: CommandLine, broker: Broker, sqlite_url: str
) -> None:
    """The stored message is on its lane again, with the address and id that it came with."""
    job = a_job("one", address=ReplyAddress(queue="answers", correlation_id="c-1"), body=b"{}")
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        await database.store.claim(a_claim(job, a_token()))
    assert (await stored("jobs", "replay", "one", "--tenant", "acme")).code == 0
    async with plain(broker.url) as channel:
        message = await (await channel.get_queue("openai.jobs.completion")).get()
    assert message
    assert message.body == b"{}"
    assert (message.reply_to, message.correlation_id, message.message_id) == ("answers", "c-1", "one")


async def test_dead_letters(stored: CommandLine, broker: Broker) -> None:
    """Dead letters are listed with their reasons, shown, sent again, and done away with, by id."""
    async with plain(broker.url) as channel:
        for number in (1, 2):
            headers: HeadersType = {"x-reason": f"reason {number}\x1b"}
            exchange = await channel.get_exchange(DEAD)
            await exchange.publish(Message(b'{"job_id": "%d"}' % number, headers=headers), routing_key="tool")
    one, two = (await stored("dead", "list", "--json")).json
    assert (one["job_id"], one["reason"], one["lane"]) == ("1", "reason 1\x1b", "tool")
    assert "\x1b" not in (await stored("dead", "list")).out
    shown = await stored("dead", "show", one["id"])
    assert "reason 1" in shown.out
    assert '{"job_id"' not in shown.out
    assert (await stored("dead", "show", one["id"], "--content", "--json")).json[
        "content"
    ] == '{"job_id": "1"}'
    assert (await stored("dead", "replay", one["id"])).code == 0
    ended = await stored("dead", "discard", two["id"], "feedfeedfeed")
    assert (ended.code, ended.err) == (
        1,
        f"{two['id']}: discarded\nfeedfeedfeed: there is no such dead letter\n",
    )
    assert (await stored("dead", "list", "--json")).json == []
    async with plain(broker.url) as channel:
        assert await (await channel.get_queue("openai.jobs.tool")).get()


async def test_usage_report(stored: CommandLine, sqlite_url: str) -> None:
    """The same sums as a table, as JSON and as CSV; days are whole days in UTC, the last included."""
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        for name in ("one", "two"):
            token, job = a_token(), a_job(name)
            await database.store.claim(a_claim(job, token))
            await database.store.finish(a_finish(job, token))
    day = f"{NOON:%Y-%m-%d}"
    (row,) = (await stored("usage", "report", "--from", day, "--to", day, "--json")).json
    assert (row["tenant"], row["requests"], row["cost_usd"]) == ("acme", 2, "0.000240000")
    (line,) = csv.DictReader(io.StringIO((await stored("usage", "report", "--by", "day", "--csv")).out))
    assert (line["day"], line["input_tokens"], line["cost_usd"]) == (day, "160", "0.000240000")
    assert "0.000240000" in (await stored("usage", "report")).out
    assert (await stored("usage", "report", "--from", "2026-11-23", "--json")).json == []
    assert (await stored("usage", "report", "--to", "2026-11-21", "--json")).json == []


async def test_a_report_never_takes_the_unpriced_for_free(stored: CommandLine, sqlite_url: str) -> None:
    """Without any price there is no cost; with some, it is theirs, beside the number of those without."""
    async with open_database(sqlite_url, observer=Told(), lease_seconds=60) as database:
        for name, model, cost in (
            ("a", "own", None),
            ("b", "luna", None),
            ("c", "luna", 5),
            ("d", "free", 0),
        ):
            token, job = a_token(), a_job(name)
            await database.store.claim(a_claim(job, token))
            entry = a_ledger_entry(model=model, cost_nano_usd=cost)
            await database.store.finish(a_finish(job, token, record=a_record(job.key, ledger=entry)))
    found = (await stored("usage", "report", "--by", "model", "--json")).json
    assert [(row["model"], row["cost_usd"], row["unpriced_requests"]) for row in found] == [
        ("free", "0.000000000", 0),
        ("luna", "0.000000005", 1),
        ("own", None, 1),
    ]
    assert [row["cost_nano_usd"] for row in found] == [0, 5, None]
    *_, own = (await stored("usage", "report", "--by", "model")).out.splitlines()
    assert "unpriced" in own.split()
    csv_rows = csv.DictReader(io.StringIO((await stored("usage", "report", "--by", "model", "--csv")).out))
    assert [row["cost_usd"] for row in csv_rows] == ["0.000000000", "0.000000005", ""]


async def test_a_database_that_is_not_set_up_is_told(cli: CommandLine, sqlite_url: str) -> None:
    """A command that reads says how to make the tables, and makes no empty file by itself."""
    ended = await cli("jobs", "list")
    assert ended.code == 1
    assert ended.err.endswith("does not exist: run `openai-worker migrate`\n")
    again = await cli("jobs", "list")
    assert again.err == ended.err


MODELS = {
    "object": "list",
    "data": [
        {"id": "gpt-6-luna", "object": "model", "owned_by": "openai"},
        {"id": "gpt-4o", "object": "model", "owned_by": "openai", "shutdown_date": "2027-01-14"},
    ],
}


async def test_models(stored: CommandLine, tmp_path: Path) -> None:
    """Models of aliases, limits and prices are listed with prices and announced shutdown dates."""
    (tmp_path / "worker.toml").write_text(
        '[models.aliases]\nold = "gpt-4o"\n[limits."gpt-*"]\nrequests_per_minute = 1\n'
        "[prices.own]\ninput = 0.5\ncached_input = 0.25\ncache_write = 0.5\noutput = 1.50\n"
    )
    async with Upstream() as upstream:
        upstream.script(Act(body=json.dumps(MODELS)))
        listed = (await stored("models", "--json", OPENAI_BASE_URL=upstream.base_url)).json
    assert [one["model"] for one in listed] == ["gpt-4o", "own"]
    assert listed[0]["shutdown_date"] == "2027-01-14"
    assert (listed[1]["input"], listed[1]["output"]) == ("0.5", "1.5")
    alone = await stored("models", OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert (alone.code, alone.err.startswith("shutdown dates are unknown: ")) == (0, True)
    assert "own" in alone.out


async def test_doctor_finds_everything_in_place(stored: CommandLine) -> None:
    """With all servers set up, each line is ok."""
    async with Upstream() as upstream:
        upstream.script(Act(body=json.dumps(MODELS), match="/models", times=2))
        settings: dict[str, Any] = {
            "OPENAI_BASE_URL": upstream.base_url,
            "WORKER_TOOLS": "tests.support.some_tools",
        }
        ended = await stored("doctor", "--json", **settings)
        assert ended.code == 0
        text = (await stored("doctor", **settings)).out
    assert all(finding["ok"] for finding in ended.json)
    assert {finding["what"] for finding in ended.json} == {
        "configuration",
        "tools",
        "broker",
        "topology",
        "database",
        "tables",
        "OpenAI (default)",
    }
    assert all(line.startswith("ok  ") for line in text.splitlines())


def test_the_installed_command_finds_tools_where_it_starts(tmp_path: Path) -> None:
    """As `python -m worker` does; a file of a library's name there takes no library's place."""
    (tmp_path / "shop.py").write_text(
        "from worker.tools import tool\n\n\n@tool\ndef price(sku: str) -> int:\n    return 1\n"
    )
    (tmp_path / "orjson.py").write_text("raise RuntimeError\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"WORKER_TOOLS": "shop", "WORKER_STARTUP_TIMEOUT": "0.1", "AMQP_URL": NOWHERE}
    command = [Path(sys.executable).with_name("openai-worker"), "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert (found["tools"]["ok"], found["tools"]["text"]) == (True, "price")


async def test_doctor_says_how_to_mend(cli: CommandLine) -> None:
    """On a fresh machine, each thing that is missing is told with what mends it."""
    ended = await cli("doctor", "--json", OPENAI_API_KEY="", WORKER_TOOLS="no.such.module")
    assert ended.code == 1
    wrong = {finding["what"]: finding["text"] for finding in ended.json if not finding["ok"]}
    assert wrong["topology"].endswith("run `openai-worker topology apply`")
    assert wrong["database"].endswith("run `openai-worker migrate`")
    assert wrong["openai"] == "OPENAI_API_KEY: must be given"
    assert "no.such.module" in wrong["tools"]


async def test_doctor_looks_at_each_server_by_itself(bare: CommandLine) -> None:
    """One server that is away does not hide what is wrong with the others, and no secret is shown."""
    settings: dict[str, Any] = {"DATABASE_URL": f"postgresql://me:{SECRET}@127.0.0.1:1/jobs"}
    settings |= {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_LOG": "debug"}
    # The SDK reads OPENAI_LOG while it is imported.
    ended = await bare.process("doctor", "--json", **settings)
    wrong = {finding["what"] for finding in ended.json if not finding["ok"]}
    assert (ended.code, wrong) == (1, {"broker", "database", "OpenAI (default)"})
    assert SECRET not in ended.out + ended.err
    assert "not-a-key" not in ended.out + ended.err


async def test_doctor_names_wrong_settings(bare: CommandLine) -> None:
    """Wrong settings are findings like any other."""
    ended = await bare("doctor", WORKER_CONCURRENCY="abc")
    assert ended.code == 1
    assert ended.out == (
        "WRONG  configuration: WORKER_CONCURRENCY: must be a whole number from 1 to 4096, not 'abc'\n"
    )


def job(name: str, **fields: Any) -> str:
    """Return a job as a line."""
    return json.dumps({"kind": "tool", "job_id": name, "request": {"model": "gpt-6-luna"}} | fields)


@asynccontextmanager
async def worker(url: str, *, deaf_to: int = 0) -> AsyncIterator[list[str]]:
    """Answer the jobs of a lane, but for the first few, and yield the ids that came."""
    came: list[str] = []
    async with plain(url) as channel:

        async def answer(message: AbstractIncomingMessage) -> None:
            name = json.loads(message.body)["job_id"]
            came.append(name)
            heard = len(came) > deaf_to
            await message.ack()
            if heard:
                reply = Message(
                    json.dumps(answer_to(name)).encode(), type="reply", correlation_id=message.correlation_id
                )
                await channel.default_exchange.publish(reply, str(message.reply_to))

        await (await channel.get_queue("openai.jobs.tool")).consume(answer)
        yield came


def answer_to(name: str) -> dict[str, Any]:
    """Return the reply to a job; one whose name begins with `bad` has failed."""
    failed = name.startswith("bad")
    return {
        "version": 1,
        "job_id": name,
        "tenant": "default",
        "kind": "tool",
        "status": "failed" if failed else "succeeded",
        "output_text": None if failed else "hello",
        "result": None,
        "usage": None,
        "error": {"code": "rejected", "message": "no"} if failed else None,
        "attempts": 1,
        "cached": False,
        "received_at": "2026-01-01T00:00:00Z",
        "started_at": None,
        "finished_at": "2026-01-01T00:00:01Z",
    }


async def test_submit_publishes_and_goes(stored: CommandLine, broker: Broker) -> None:
    """Each job is on its lane, persistent and without an address for replies, or on the lane's high queue."""
    assert (await stored("submit", "-", stdin=f"{job('a')}\n{job('b')}\n")).err == "2 published\n"
    ended = await stored("submit", "--high", "-", stdin=job("c", options={"max_attempts": 2}))
    assert (ended.code, ended.out) == (0, "")
    async with plain(broker.url) as channel:
        queue = await channel.get_queue("openai.jobs.tool")
        assert {json.loads((await queue.get()).body)["job_id"] for _ in range(2)} == {"a", "b"}
        message = await (await channel.get_queue("openai.jobs.tool.high")).get()
    assert json.loads(message.body) == json.loads(job("c", options={"max_attempts": 2})) | {"version": 1}
    assert (message.reply_to, message.content_type, message.delivery_mode) == (None, "application/json", 2)


async def test_submit_publishes_all_or_nothing(stored: CommandLine, broker: Broker, tmp_path: Path) -> None:
    """One invalid job holds all others back, unless told to keep going; each is named with its line."""
    text = f"{job('a')}\n{job('b', kind='x')}\n{job('c')}\n"
    (tmp_path / "jobs.jsonl").write_text(text)
    ended = await stored("submit", "jobs.jsonl")
    first, last = ended.err.splitlines()
    assert (ended.code, last) == (2, "nothing was published")
    assert first.startswith("jobs.jsonl:2: kind: must be ")
    async with plain(broker.url) as channel:
        queue = await channel.get_queue("openai.jobs.tool")
        assert queue.declaration_result.message_count == 0
        ended = await stored("submit", "jobs.jsonl", "--keep-going")
        assert (ended.code, ended.err.splitlines()[1:]) == (1, ["2 published"])
        assert {json.loads((await queue.get()).body)["job_id"] for _ in range(2)} == {"a", "c"}


async def test_submit_tells_a_job_that_no_worker_would_read(stored: CommandLine) -> None:
    """A job beyond WORKER_MAX_JOB_BYTES is told here, instead of being refused there."""
    ended = await stored("submit", "-", stdin=job("a", labels={"x": "y" * 200}), WORKER_MAX_JOB_BYTES="200")
    assert ended.code == 2
    assert ended.err.startswith("job a: has ")


async def test_submit_without_queues_says_what_mends_it(cli: CommandLine) -> None:
    """On a broker that is not set up, one line says so."""
    mends = "see `openai-worker doctor`", "run `openai-worker topology apply`"
    for options, mend in zip(([], ["--wait"]), mends, strict=True):
        ended = await cli("submit", *options, "-", stdin=job("a"))
        assert (ended.code, ended.out) == (1, "")
        (line,) = ended.err.splitlines()
        assert line.endswith(mend)


async def test_submit_waits_for_all_replies(stored: CommandLine, broker: Broker) -> None:
    """Each reply is a JSON line; exit 0 if all succeeded, exit 1 if any did not."""
    async with worker(broker.url):
        ended = await stored("submit", "--wait", "-", stdin="\n".join(job(f"a{n}") for n in range(20)))
        assert (ended.code, ended.err) == (0, "")
        replies = [json.loads(line) for line in ended.out.splitlines()]
        assert {reply["job_id"] for reply in replies} == {f"a{n}" for n in range(20)}
        assert all(reply["output_text"] == "hello" for reply in replies)
        ended = await stored("submit", "--wait", "-", stdin=f"{job('good')}\n{job('bad')}")
    assert ended.code == 1
    assert {json.loads(line)["status"] for line in ended.out.splitlines()} == {"succeeded", "failed"}


async def test_submit_gives_up_in_time(stored: CommandLine, broker: Broker) -> None:
    """Replies that do not come within the timeout are counted, those that came are printed, and exit is 1."""
    async with worker(broker.url, deaf_to=1):
        ended = await stored("submit", "--wait", "--timeout", "1", "-", stdin=f"{job('a')}\n{job('b')}")
    assert ended.code == 1
    assert len(ended.out.splitlines()) == 1
    assert ended.err.startswith("1 of 2 replies did not come in time; the jobs go on")


async def test_submit_survives_a_lost_connection(stored: CommandLine, broker: Broker) -> None:
    """When the connection breaks while it waits, the same job is submitted again and its reply printed."""
    async with worker(broker.url, deaf_to=1) as came:
        submitting = asyncio.create_task(stored.process("submit", "--wait", "-", stdin=job("a")))
        await until(lambda: came)
        # The worker's connection is cut too; it has answered nothing yet.
        broker.close_connections()
        async with worker(broker.url):
            ended = await submitting
    assert (ended.code, json.loads(ended.out)["job_id"]) == (0, "a")


async def test_a_terminal_sees_progress_and_a_pipe_gets_clean_lines(
    stored: CommandLine, broker: Broker
) -> None:
    """The bar is on standard error, if that is a terminal; standard output holds JSON lines alone."""
    ours, theirs = os.openpty()
    try:
        async with worker(broker.url):
            both = f"{job('a')}\n{job('bad')}"
            ended = await stored.process("submit", "--wait", "-", stdin=both, terminal=theirs)
        seen = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert {json.loads(line)["job_id"] for line in ended.out.splitlines()} == {"a", "bad"}
    assert "replies, 1 failed" in seen
    assert "2/2" in seen
