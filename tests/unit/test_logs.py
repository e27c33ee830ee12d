"""Logs: one line a fact, and never content."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn, get_args

import pytest
from typing_extensions import override

from schemas.names import Kind
from schemas.reply import ReplyStatus
from worker.adapters.logs import LogObserver, configure_logging
from worker.domain.attempt import AttemptState
from worker.domain.events import (
    AttemptFinished,
    Broken,
    BudgetSeen,
    CredentialsClosed,
    Event,
    JobFinished,
    JobRefused,
    JobRepeated,
    JobWaits,
    ReplySettled,
    ServerTrouble,
)
from worker.domain.job import JobKey
from worker.domain.usage import Usage

SECRET = "the prompt says hello"
KEY = JobKey("acme", "invoice-1")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Leave the process's logging as it was."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.getLogger("worker").setLevel(logging.NOTSET)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    @override
    def isatty(self) -> bool:
        return True


def attempt(state: AttemptState) -> AttemptFinished:
    """Return an attempt with this outcome."""
    return AttemptFinished(
        key=KEY,
        attempt_no=2,
        model="gpt-6-luna",
        state=state,
        http_status=200,
        error_code=None,
        openai_request_id="req_1",
        seconds=1.23456,
        usage=Usage(input_tokens=10, output_tokens=5),
        cost_nano_usd=61_400,
    )


def fail() -> NoReturn:
    """Fail with content in the message."""
    raise ValueError(SECRET)


def broken() -> Broken:
    """Return an error with content in its message, caused by another."""
    try:
        try:
            fail()
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError as error:
        return Broken(key=KEY, where="job", error=error)


FINISHED = JobFinished(
    key=KEY,
    kind=Kind.TOOL,
    lane="tool",
    model="gpt-6-luna",
    status=ReplyStatus.SUCCEEDED,
    error_code=None,
    attempts=2,
    seconds=3.0,
)
BUDGET: dict[str, Any] = {
    "tenant": "acme",
    "month": "2026-11",
    "budget_nano_usd": 2_000_000_000,
    "spent_nano_usd": 1_750_000_000,
}
EVENTS: list[tuple[Event, str, str]] = [
    (FINISHED, "info", "job finished"),
    (attempt(AttemptState.SUCCEEDED), "debug", "attempt finished"),
    (attempt(AttemptState.FAILED), "warning", "attempt finished"),
    (attempt(AttemptState.UNKNOWN), "warning", "attempt finished"),
    (JobWaits(key=KEY, lane="tool", seconds=30, reason="rate limit"), "info", "job waits"),
    (JobRefused(lane="tool", job_id="x", reason="not JSON", tenant="acme"), "warning", "job refused"),
    (JobRepeated(key=KEY, what="done"), "info", "job repeated"),
    (ReplySettled(key=KEY, what="undeliverable"), "warning", "reply undeliverable"),
    (ReplySettled(key=KEY, what="unconfirmed"), "info", "reply unconfirmed"),
    (ServerTrouble(server="rabbitmq", up=False, error="connection refused"), "error", "server is away"),
    (ServerTrouble(server="rabbitmq", up=True), "debug", "server connected"),
    (BudgetSeen(warn=True, **BUDGET), "warning", "budget nearly spent"),
    (BudgetSeen(warn=True, incomplete=True, **BUDGET), "warning", "budget nearly spent"),
    (BudgetSeen(warn=False, incomplete=True, **BUDGET), "warning", "budget incomplete"),
    (BudgetSeen(warn=False, **BUDGET), "debug", "budget seen"),
    (CredentialsClosed(account="default", reason="invalid_api_key"), "error", "credentials closed"),
    (broken(), "error", "broken"),
]


def observe(event: Event, *, level: str = "debug") -> list[dict[str, Any]]:
    """Return the lines that an event leaves."""
    stream = io.StringIO()
    LogObserver(configure_logging(level=level, style="json", stream=stream))(event)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(("event", "level", "message"), EVENTS)
def test_each_event_is_one_line(event: Event, level: str, message: str) -> None:
    """Every event of the union leaves exactly one JSON line, with time, level, message and the job."""
    (line,) = observe(event)
    assert (line["level"], line["message"]) == (level, message)
    assert datetime.fromisoformat(line["time"]).tzinfo
    if getattr(event, "key", None):
        assert (line["tenant"], line["job_id"]) == KEY


def test_the_list_of_events_is_complete() -> None:
    """The table above forgets no event."""
    assert {type(event) for event, _, _ in EVENTS} == set(get_args(Event))


@pytest.mark.parametrize(("event", "level", "_message"), EVENTS)
def test_a_filtered_event_leaves_nothing(event: Event, level: str, _message: str) -> None:
    """Below the level in force, an event is not written."""
    assert bool(observe(event, level="warning")) == (level in {"warning", "error"})


def test_only_who_was_away_is_back() -> None:
    """The first connection of a start is no return; one after an outage is, to each server by itself."""
    stream = io.StringIO()
    observer = LogObserver(configure_logging(level="info", style="json", stream=stream))
    for server, up in (("rabbitmq", True), ("rabbitmq", True), ("database", False), ("rabbitmq", True)):
        observer(ServerTrouble(server=server, up=up))
    observer(ServerTrouble(server="database", up=True))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["message"], line["server"]) for line in lines] == [
        ("server is away", "database"),
        ("server is back", "database"),
    ]


def test_a_refused_job_names_its_tenant() -> None:
    """As every line about a job does."""
    (line,) = observe(JobRefused(lane="tool", job_id="x", reason="not JSON", tenant="acme"))
    assert (line["tenant"], line["job_id"]) == ("acme", "x")


def test_an_attempt_tells_its_cost() -> None:
    """Money is exact to nine places; what is unknown has no field."""
    (line,) = observe(attempt(AttemptState.SUCCEEDED))
    assert (line["cost_usd"], line["input_tokens"], line["seconds"]) == ("0.000061400", 10, 1.235)
    assert not {"error_code", "estimated"} & line.keys()


def test_an_error_is_placed_but_not_quoted() -> None:
    """An error in the program is told by types and places of itself and its cause, without messages."""
    (line,) = observe(broken())
    assert line["error"] == "KeyError < ValueError"
    assert [place.split()[-1] for place in line["at"]] == ["broken", "broken", "fail"]
    assert all("test_logs.py" in place for place in line["at"])
    assert SECRET not in json.dumps(line)


def test_a_terminal_gets_coloured_text() -> None:
    """`auto` means text with colours on a terminal, and `text` elsewhere has none."""
    terminal, pipe = Terminal(), io.StringIO()
    LogObserver(configure_logging(level="info", style="auto", stream=terminal))(FINISHED)
    LogObserver(configure_logging(level="info", style="text", stream=pipe))(FINISHED)
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in pipe.getvalue()
    assert "job_id=invoice-1" in pipe.getvalue()


@pytest.mark.parametrize("style", ["json", "text"])
def test_names_cannot_command_the_terminal(style: str) -> None:
    """Control characters, line breaks, lone surrogates and endless names come out escaped and short."""
    stream = io.StringIO()
    observer = LogObserver(configure_logging(level="info", style=style, stream=stream))
    observer(JobRefused(lane="tool", job_id="\x1b[2J\n\ud800" + "x" * 10_000, reason="bad"))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert text.count("\n") == 1
    assert len(text) < 1_000


def test_other_libraries_speak_from_warning_on() -> None:
    """At debug, the program's own modules are heard, and the libraries' debug lines are not."""
    stream = io.StringIO()
    configure_logging(level="debug", style="json", stream=stream)
    for name in ("openai", "httpx2", "aiohttp.access", "aio_pika", "aiormq.connection", "asyncio"):
        # As if the library's own switch had lowered it.
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).debug("Request options: %s", {"json_data": SECRET})
        logging.getLogger(name).info(SECRET)
        logging.getLogger(name).setLevel(logging.NOTSET)
    assert stream.getvalue() == ""
    logging.getLogger("worker.adapters.x").debug("opened %s", "it")
    assert json.loads(stream.getvalue())["message"] == "opened it"


def test_warnings_of_libraries_lose_their_arguments() -> None:
    """A library's warning keeps its words and numbers, and nothing that could be content or a password."""
    stream = io.StringIO()
    configure_logging(level="debug", style="json", stream=stream)
    logger = logging.getLogger("aio_pika.robust_connection")
    logger.warning("%r to %s failed: %s; again in %d s", SECRET, "amqp://u:pw@host/", ValueError(SECRET), 5)
    logger.warning("connecting to amqp://user:hunter2@host/ with sk-abcdefgh")
    logger.warning("wrong arguments %d", SECRET)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == [
        "'<str>' to <str> failed: <ValueError>; again in 5 s",
        "connecting to amqp://***@host/ with ***",
        "wrong arguments %d",
    ]
    assert all(line["logger"] == "aio_pika.robust_connection" for line in lines)


async def test_a_forgotten_task_is_told_without_its_message() -> None:
    """What asyncio reports of a task that failed unseen names the error's type and place only."""
    stream = io.StringIO()
    configure_logging(level="debug", style="json", stream=stream)

    async def work() -> None:
        fail()

    task = asyncio.create_task(work())
    await asyncio.wait({task})
    asyncio.get_running_loop().call_exception_handler(
        {"message": "Task exception was never retrieved", "exception": task.exception(), "task": task}
    )
    line = json.loads(stream.getvalue())
    assert (line["message"], line["error"]) == ("Task exception was never retrieved", "ValueError")
    assert SECRET not in stream.getvalue()
