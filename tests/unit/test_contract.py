"""The contract: what the documentation fixes is what the code does."""

import json
import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import TypeAdapter, ValidationError

from schemas import names
from schemas.cancel import Cancel
from schemas.contract import asyncapi, json_schemas
from schemas.failure import Failure, FailureCode
from schemas.job import MAX_MODEL_CHARS, Job, JobId, Options
from schemas.reply import Reply, ReplyStatus
from schemas.stream import Chunk, Delta
from schemas.usage import CostStatus, Usage
from worker.adapters import http
from worker.adapters.database.setup import upgrade
from worker.adapters.database.tables import metadata
from worker.adapters.price_catalog import PriceCatalog
from worker.adapters.rabbitmq import topology
from worker.cli.main import app
from worker.cli.wiring import Exit
from worker.core.accounting import intent_for, measured
from worker.core.completion import CompletionHandler
from worker.core.intake import FORBIDDEN, Rejection, ReplyPolicy, decode
from worker.core.replies import reply_body
from worker.domain.answer import read_answer
from worker.domain.attempt import Account, AttemptState, Entry
from worker.domain.claims import JobStatus
from worker.domain.spend import Spend
from worker.ports import Delivery

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
"""Prices are those of that day."""

TEXT = (Path(__file__).parents[2] / "docs" / "contract.md").read_text(encoding="utf-8")


def column(heading: str, *, after: str = "") -> list[str]:
    """Return the first column of the first table, after some text, with this first heading."""
    body = TEXT[TEXT.index(after) :].split(f"| {heading} |")[1].split("\n\n")[0]
    return re.findall(r"^\| `?([^`|]+?)`? \|", body, re.MULTILINE)


def listed(label: str) -> list[str]:
    """Return the quoted names of the paragraph that begins with this label."""
    return re.findall(r"`([^`]+)`", TEXT.split(f"\n{label}: ")[1].split("\n\n")[0])


def commands(group: typer.Typer, prefix: str = "") -> Iterator[str]:
    """Yield the commands of a group, those below it included."""
    for command in group.registered_commands:
        assert command.callback
        yield prefix + (command.name or command.callback.__name__)
    for below in group.registered_groups:
        assert below.typer_instance
        yield from commands(below.typer_instance, f"{prefix}{below.name} ")


def test_commands() -> None:
    """The commands are those that are documented, no more and no less."""
    assert sorted(commands(app)) == sorted(column("command"))


def test_exit_codes() -> None:
    """The exit codes are those that scripts rely on."""
    assert column("exit code") == [str(code.value) for code in Exit]


def test_exchanges_and_queues() -> None:
    """What is declared at the broker bears the documented names, and each such name is declared."""
    documented = re.findall(r"^\| `(openai\.[^`]+)`", TEXT, re.MULTILINE)
    declared = {one.name for one in topology.EXCHANGES} | {one.name for one in topology.QUEUES}
    assert declared == {names.JOBS, names.DEAD, names.CONTROL, topology.CANCEL_QUEUE} | {
        *(names.lane_queue(lane, high=high) for lane in names.LANES for high in (False, True)),
        *(names.retry_room(seconds) for seconds in names.RETRY_SECONDS),
    }
    assert set(documented) == {
        names.JOBS,
        names.lane_queue("<lane>"),
        names.lane_queue("<lane>", high=True),
        names.retry_room("<n>"),  # type: ignore[arg-type]  # the placeholder of the documentation
        names.DEAD,
        names.CONTROL,
    }
    assert listed("Lanes, which are also the kinds of jobs") == list(names.LANES)


def test_message_fields() -> None:
    """Jobs, options, replies and their parts have the documented fields."""
    assert column("field") == list(Job.model_fields)
    assert column("field", after="## Replies") == list(Reply.model_fields)
    assert column("option") == list(Options.model_fields)
    assert listed("Usage fields") == list(Usage.model_fields)
    assert listed("Error fields") == list(Failure.model_fields)
    streaming = re.findall(r"`(\w+)`", TEXT.split("messages of the type")[1].split("## Tables")[0])
    assert streaming == [names.CHUNK_TYPE, *Chunk.model_fields, *Delta.model_fields]
    assert list(Cancel.model_fields) == ["tenant", "job_id"]


def examples() -> list[dict[str, Any]]:
    """Return the documented messages: a job, the reply to it, and a failure."""
    return [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)]


def test_the_example_is_a_job_and_its_reply() -> None:
    """A worker takes the documented job, and makes of OpenAI's answer the documented reply, cost included."""
    message, reply, failure = examples()
    assert set(message) == set(Job.model_fields)
    when = {
        name: datetime.fromisoformat(reply[name]) for name in ("received_at", "started_at", "finished_at")
    }
    delivery = Delivery(
        body=json.dumps(message).encode(),
        lane="completion",
        high=False,
        redelivered=False,
        received_at=when["received_at"],
    )
    handler, prices = CompletionHandler(), PriceCatalog()
    job = decode(delivery, handlers={handler.kind: handler}, max_job_bytes=10_000, reply_policy=ReplyPolicy())
    assert not isinstance(job, Rejection)
    answer = read_answer(job.kind, json.dumps(reply["result"]).encode())
    intent = intent_for(job.request, handler.reserve(job.request), Account(), prices, NOW)
    made = reply_body(
        key=job.key,
        kind=job.kind,
        status=ReplyStatus.SUCCEEDED,
        answer=answer,
        failure=None,
        spend=Spend().plus(measured(answer, intent, prices, NOW)),
        attempts=1,
        **when,
    )
    assert json.loads(made) == reply
    assert set(failure) == set(Failure.model_fields)
    Failure.model_validate(failure)


def test_what_a_message_must_keep_to() -> None:
    """The documented rules are those of the code, and the JSON Schema has of them what it can hold."""
    table = TEXT.split("| part | rule |")[1].split("\n\n")[0]
    rules = dict(re.findall(r"^\| `?([\w. ]+)`? \| (.*) \|$", table, re.MULTILINE))
    assert f"1 to {MAX_MODEL_CHARS} printable" in rules["request.model"]
    assert set(re.findall(r"`(\w+)`", rules["request"])) <= FORBIDDEN | {"background"}
    schema = json_schemas()["job"]["properties"]
    assert f"1 to {schema['job_id']['maxLength']} bytes" in rules["job_id"]
    assert f"1 to {schema['tenant']['maxLength']} characters" in rules["tenant"]
    labels = schema["labels"]
    assert f"at most {labels['maxProperties']};" in rules["labels"]
    assert f"keys of 1 to {labels['propertyNames']['maxLength']} characters" in rules["labels"]
    assert f"at most {labels['additionalProperties']['maxLength']} characters" in rules["labels"]
    assert schema["request"]["required"] == ["model"]


def test_required_fields() -> None:
    """Marked are the fields without which a message is no job."""
    rows = re.findall(r"^\| `(\w+)` \| (yes)? ?\|", TEXT.split("| field | required |")[1], re.MULTILINE)
    required = {name for name, mark in rows[: len(Job.model_fields)] if mark}
    assert required == {name for name, field in Job.model_fields.items() if field.is_required()}


@pytest.mark.parametrize("job_id", ["a", "a b", "\u6f22" * 85, " a", "a ", "a\nb", "x" * 256, ""])
def test_the_schema_of_a_name_says_what_is_refused(job_id: str) -> None:
    """Who checks a job_id against the JSON Schema is not refused for it; bytes it cannot count, but names."""
    schema = json_schemas()["job"]["properties"]["job_id"]
    fits = schema["minLength"] <= len(job_id) <= schema["maxLength"]
    passes = fits and re.search(schema["pattern"], job_id) is not None
    try:
        TypeAdapter(JobId).validate_python(job_id)
    except ValidationError:
        assert not passes
    else:
        assert passes
    assert "255 bytes" in schema["description"]


def test_closed_lists() -> None:
    """Statuses, states and failure codes are the documented ones, in the same order."""
    assert column("failure code") == list(FailureCode)
    assert listed("Reply statuses") == list(ReplyStatus)
    assert listed("Cost statuses") == list(CostStatus)
    assert listed("Job statuses") == list(JobStatus)
    assert listed("Attempt states") == list(AttemptState)
    assert listed("Ledger entries") == list(Entry)


async def test_tables_and_views_have_their_columns(tmp_path: Path) -> None:
    """In a migrated database, each documented table and view has each of its columns."""
    url = f"sqlite:///{tmp_path / 'worker.db'}"
    await upgrade(url)
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \|$", TEXT.split("| table or view |")[1].split("\n\n")[0], re.MULTILINE
    )
    assert [name for name, _ in rows] == ["jobs", "attempts", "usage_ledger", "usage_daily", "usage_monthly"]
    with sqlite3.connect(tmp_path / "worker.db") as connection:
        for name, columns in rows:
            wanted = ", ".join(re.findall(r"`(\w+)`", columns))
            assert connection.execute(f"SELECT {wanted} FROM {name}").fetchall() == []  # noqa: S608 - our docs
    connection.close()


def test_reply_states_are_checked_by_the_database() -> None:
    """The table accepts the documented reply states and no other."""
    check = next(
        str(constraint.sqltext)  # type: ignore[attr-defined]  # only checks have a text
        for constraint in metadata.tables["jobs"].constraints
        if "reply_status" in str(constraint.name)
    )
    assert re.findall(r"'(\w+)'", check) == listed("Reply states")


def test_http_paths() -> None:
    """The paths of health and metrics."""
    assert column("path") == [http.HEALTH_PATH, http.READY_PATH, http.METRICS_PATH]


def references(node: Any) -> Iterator[str]:
    """Yield every reference of a document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(document: Any, reference: str) -> Any:
    """Follow a local reference."""
    for step in reference.removeprefix("#/").split("/"):
        document = document[step]
    return document


@pytest.mark.parametrize("name", ["job", "cancel", "reply", "chunk"])
def test_json_schemas_stand_alone(name: str) -> None:
    """Each schema resolves its own references and allows no unknown field."""
    schema = json_schemas()[name]
    assert schema["additionalProperties"] is False
    for reference in references(schema):
        assert resolve(schema, reference)


def test_json_schema_of_a_reply_promises_every_field() -> None:
    """Whoever reads replies may rely on every field being there."""
    assert set(json_schemas()["reply"]["required"]) == set(Reply.model_fields)
    assert set(json_schemas()["job"]["required"]) == {"kind", "job_id", "request"}


def test_asyncapi_resolves() -> None:
    """Every reference of the AsyncAPI document leads somewhere."""
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    found = set(references(document))
    assert found
    for reference in found:
        assert resolve(document, reference)


def test_asyncapi_names_the_topology() -> None:
    """Its channels are our exchanges, keys and queues, and its messages bear our headers and types."""
    channels, messages = asyncapi()["channels"], asyncapi()["components"]["messages"]
    assert channels["jobs"]["bindings"]["amqp"]["exchange"]["name"] == names.JOBS
    assert set(channels["jobs"]["parameters"]["lane"]["enum"]) == {
        names.lane_key(lane, high=high) for lane in names.LANES for high in (False, True)
    }
    declared = {one.name: one.type for one in topology.EXCHANGES}
    for channel in ("jobs", "cancels"):
        exchange = channels[channel]["bindings"]["amqp"]["exchange"]
        assert declared[exchange["name"]] == exchange["type"]
    assert channels["cancels"]["address"] == names.CANCEL_KEY
    assert channels["dead"]["bindings"]["amqp"]["queue"]["name"] == names.DEAD
    assert {names.X_REPLY_ID, "correlation_id", "type"} == set(messages["reply"]["headers"]["properties"])
    assert messages["chunk"]["headers"]["properties"]["type"] == {"const": names.CHUNK_TYPE}
