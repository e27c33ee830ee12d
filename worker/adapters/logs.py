"""Logs: one line a fact, naming the job and never its content."""

import logging
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO, assert_never

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger
from typing_extensions import override

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
from worker.domain.prices import NANO

_OURS: Final = "worker"
_FRAMES: Final = 8
_CHAIN: Final = 4
_LONGEST: Final = 300
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s@]+(?=@)|\bsk-[\w-]{6,}")


def configure_logging(*, level: str, style: str, stream: TextIO) -> FilteringBoundLogger:
    """Send all logs of this process to a stream and return the program's own logger.

    `level` is debug, info, warning or error; `style` is text, json, or auto:
    coloured text on a terminal, JSON lines elsewhere. Other libraries log through
    the same format from warning on, whatever the level.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    terminal = stream.isatty()
    render = _json if style == "json" or (style == "auto" and not terminal) else _text(colors=terminal)
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            _tame,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
    ).bind()  # now: else each line would begin with it
    # Replaces what OPENAI_LOG=debug installs while the SDK is imported: a handler that prints requests.
    logging.root.handlers[:] = [_Bridge(logger)]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(number)
    return logger


class LogObserver:
    """Writes one line an event, unless its level is filtered out."""

    def __init__(self, logger: FilteringBoundLogger) -> None:
        self._logger = logger
        self._missed: set[str] = set()
        """Servers that have been away."""

    def __call__(self, event: Event) -> None:
        """Take note."""
        first = isinstance(event, ServerTrouble) and self._is_first(event)
        level = logging.DEBUG if first else _level(event)
        if not self._logger.is_enabled_for(level):
            return
        name, fields = _line(event)
        name = "server connected" if first else name
        known = {key: value for key, value in fields.items() if value is not None}
        self._logger.log(level, name, **known)

    def _is_first(self, event: ServerTrouble) -> bool:
        """Whether a server is there that has never been away: every connection says so at the start."""
        if not event.up:
            self._missed.add(event.server)
        return event.server not in self._missed


def _level(event: Event) -> int:  # noqa: PLR0911 - one flat case for each level
    match event:
        case JobFinished() | JobWaits() | JobRepeated():
            return logging.INFO
        case JobRefused():
            return logging.WARNING
        case AttemptFinished(state=state):
            return logging.DEBUG if state is AttemptState.SUCCEEDED else logging.WARNING
        case ReplySettled(what=what):
            return logging.WARNING if what == "undeliverable" else logging.INFO
        case ServerTrouble(up=up):
            return logging.INFO if up else logging.ERROR
        case BudgetSeen(warn=warn, incomplete=incomplete):
            return logging.WARNING if warn or incomplete else logging.DEBUG
        case CredentialsClosed() | Broken():
            return logging.ERROR
        case _:
            assert_never(event)


def _line(event: Event) -> tuple[str, dict[str, Any]]:  # noqa: C901, PLR0911 - one flat case for each event
    """Return what is said of an event: ids, names and numbers."""
    match event:
        case JobFinished():
            return "job finished", _key(event.key) | {
                "kind": event.kind.value,
                "lane": event.lane,
                "model": event.model,
                "status": event.status.value,
                "error_code": event.error_code,
                "attempts": event.attempts,
                "seconds": round(event.seconds, 3),
            }
        case AttemptFinished():
            return "attempt finished", _attempt(event)
        case JobWaits():
            fields = {"lane": event.lane, "seconds": round(event.seconds, 3), "reason": event.reason}
            return "job waits", _key(event.key) | fields
        case JobRefused():
            names = {"tenant": event.tenant, "job_id": event.job_id}
            return "job refused", names | {"lane": event.lane, "reason": event.reason}
        case JobRepeated():
            return "job repeated", _key(event.key) | {"what": event.what}
        case ReplySettled():
            return f"reply {event.what}", _key(event.key)
        case ServerTrouble():
            return ("server is back" if event.up else "server is away"), {
                "server": event.server,
                "error": event.error,
            }
        case CredentialsClosed():
            return "credentials closed", {"credentials": event.account, "reason": event.reason}
        case BudgetSeen():
            seen = "budget incomplete" if event.incomplete else "budget seen"
            return ("budget nearly spent" if event.warn else seen), {
                "tenant": event.tenant,
                "month": event.month,
                "budget_usd": event.budget_nano_usd / NANO,
                "spent_usd": event.spent_nano_usd / NANO,
                "unpriced_requests": event.unpriced_requests or None,
            }
        case Broken():
            return "broken", _key(event.key) | {"where": event.where} | describe_error(event.error)
        case _:
            assert_never(event)


def _key(key: JobKey | None) -> dict[str, Any]:
    return {"tenant": key.tenant, "job_id": key.job_id} if key else {}


def _attempt(event: AttemptFinished) -> dict[str, Any]:
    usage, cost = event.usage, event.cost_nano_usd
    return _key(event.key) | {
        "attempt": event.attempt_no,
        "model": event.model,
        "state": event.state.value,
        "http_status": event.http_status,
        "error_code": event.error_code,
        "openai_request_id": event.openai_request_id,
        "seconds": round(event.seconds, 3),
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "cost_usd": None if cost is None else f"{cost / NANO:.9f}",
        "estimated": event.estimated or None,
    }


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return an exception's types and places in the code, never its message: that could quote content."""
    chain = list(_chain(error))
    return {
        "error": " < ".join(map(_type, chain)),
        "at": [place for one in chain for place in _places(one)],
    }


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it, the outermost first."""
    for _ in range(_CHAIN):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _type(error: BaseException) -> str:
    name = type(error).__qualname__
    if isinstance(error, BaseExceptionGroup):
        name += f"({', '.join(type(one).__qualname__ for one in error.exceptions)})"
    return name


def _places(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return [f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno} {one.name}" for one in frames]


class _Bridge(logging.Handler):
    """Brings what other code says through the standard library into the same format."""

    def __init__(self, logger: FilteringBoundLogger) -> None:
        super().__init__()
        self._logger = logger

    @override
    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.split(".", 1)[0] == _OURS
        # The level of a library's logger is not enough: its own environment variables may lower it.
        if not ours and record.levelno < logging.WARNING:
            return
        message = record.getMessage() if ours else _anonymous(record)
        error = record.exc_info[1] if record.exc_info else None
        fields = describe_error(error) if error else {}
        self._logger.log(record.levelno, message, logger=record.name, **fields)


def _anonymous(record: logging.LogRecord) -> str:
    """Return a library's message with nothing in it that could be content: numbers and type names only.

    Libraries put URLs, frames, tasks with their exceptions, and whole messages
    into their arguments, and asyncio appends them as further lines.
    """
    template = str(record.msg).split("\n", 1)[0]
    arguments = record.args if isinstance(record.args, tuple) else ()
    try:
        text = template % tuple(map(_number_or_type, arguments)) if arguments else template
    except (TypeError, ValueError):
        text = template
    return _CREDENTIALS.sub("***", text)


def _number_or_type(value: object) -> object:
    return value if isinstance(value, int | float) else f"<{type(value).__name__}>"


def _tame(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut long texts and escape what is unprintable: names come from producers, and a terminal obeys them."""
    together = "".join([value for value in event.values() if isinstance(value, str)])
    if len(together) <= _LONGEST and together.isprintable():
        return event  # nearly always
    for key, value in event.items():
        if isinstance(value, str) and (len(value) > _LONGEST or not value.isprintable()):
            short = value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
            event[key] = short if short.isprintable() else ascii(short)[1:-1]
    return event


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Return one JSON line, time, level and message first."""
    head = {"time": event.pop("time"), "level": event.pop("level"), "message": event.pop("event")}
    return orjson.dumps({**head, **event}, default=str).decode()


def _text(*, colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=colors, timestamp_key="time", pad_event_to=24, sort_keys=False
    )
