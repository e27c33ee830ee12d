"""Jobs from files: a JSON object, a JSON array, or JSON Lines."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Never

from pydantic import ValidationError
from typing_extensions import override

from schemas.job import Job
from schemas.names import NOT_SERVED, SERVED
from worker.domain.problems import explain

STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is no job, and where it stands."""

    place: str
    reason: str

    @override
    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def read_jobs(files: Iterable[str]) -> Iterator[Job | Problem]:
    """Yield what the files hold, in order."""
    for name in files:
        try:
            text = sys.stdin.read() if name == STDIN else Path(name).read_text(encoding="utf-8")
        except OSError as error:
            yield Problem(name, error.strerror or "cannot be read")
        except UnicodeDecodeError:
            yield Problem(name, "is not UTF-8 text")
        else:
            yield from _jobs_in("stdin" if name == STDIN else name, text)


def _jobs_in(name: str, text: str) -> Iterator[Job | Problem]:
    found = False
    for place, document in _documents(name, text):
        found = True
        yield _job(place, document)
    if not found:
        yield Problem(name, "holds no job")


def _documents(name: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yield each JSON value that should be a job, or the error in its place."""
    whole = _parse(text)
    if isinstance(whole, list):
        yield from ((f"{name}: job {number}", one) for number, one in enumerate(whole, start=1))
    elif not isinstance(whole, json.JSONDecodeError):
        yield name, whole
    else:
        yield from _lines(name, text, whole)


def _lines(name: str, text: str, error: json.JSONDecodeError) -> Iterator[tuple[str, Any]]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    # One value over several lines that is not JSON: the error of the whole says more than one for each line.
    if lines and isinstance(_parse(lines[0][1]), json.JSONDecodeError) and error.lineno > lines[0][0]:
        yield f"{name}:{error.lineno}", error
        return
    for number, line in lines:
        yield f"{name}:{number}", _parse(line)


def _parse(text: str) -> Any:
    """Return the value, or the error."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        return error
    except (ValueError, RecursionError):
        # A number of thousands of digits, NaN, or nesting without end.
        return json.JSONDecodeError("not a number or nesting that JSON allows", text, 0)


def _refuse(constant: str) -> Never:
    raise ValueError(constant)


def _job(place: str, document: Any) -> Job | Problem:
    if isinstance(document, json.JSONDecodeError):
        return Problem(place, f"is not JSON: {document.msg} (column {document.colno})")
    if not isinstance(document, dict):
        return Problem(place, "is not a JSON object")
    try:
        job = Job.model_validate(document)
    except ValidationError as error:
        return Problem(place, explain(error))
    # Published, it would lie in a queue that nobody reads.
    if job.kind in NOT_SERVED:
        return Problem(place, f"kind: {job.kind} is not served by this version, only {', '.join(SERVED)}")
    return job
