"""Jobs from files: which layouts are understood, and what is said of what is no job."""

import io
import json
import sys
from pathlib import Path

import pytest

from schemas.job import Job
from worker.cli.job_files import Problem, read_jobs

JOB = '{"kind": "completion", "job_id": "%s", "request": {"model": "gpt-6-luna"}}'


def read(folder: Path, text: str) -> tuple[list[str], list[str]]:
    """Return the ids of the jobs, and the problems without the folder."""
    file = folder / "jobs"
    file.write_text(text, encoding="utf-8")
    found = list(read_jobs([str(file)]))
    jobs = [one.job_id for one in found if isinstance(one, Job)]
    return jobs, [str(one).removeprefix(f"{folder}/") for one in found if isinstance(one, Problem)]


@pytest.mark.parametrize(
    "text",
    [
        f"{JOB % 'a'}\n\n{JOB % 'b'}\n",
        f"{JOB % 'a'}\r\n{JOB % 'b'}",
        f"[{JOB % 'a'}, {JOB % 'b'}]",
        json.dumps([json.loads(JOB % "a"), json.loads(JOB % "b")], indent=2),
    ],
)
def test_lines_and_arrays(tmp_path: Path, text: str) -> None:
    """JSON Lines with any line ends and blank lines, and arrays in any layout, hold the same jobs."""
    assert read(tmp_path, text) == (["a", "b"], [])


def test_one_object_over_several_lines(tmp_path: Path) -> None:
    """A lone object may be laid out for people."""
    assert read(tmp_path, json.dumps(json.loads(JOB % "a"), indent=2)) == (["a"], [])


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    """JSON texts may hold U+2028 and U+0085 unescaped; a line ends at a line feed only."""
    odd = JOB.replace("gpt-6-luna", "gpt\u2028luna\u0085") % "a"
    assert read(tmp_path, f"{odd}\n{JOB % 'b'}\n") == (["a", "b"], [])


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dash reads standard input."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{JOB % 'a'}\nx\n"))
    job, problem = read_jobs(["-"])
    assert isinstance(job, Job)
    assert str(problem) == "stdin:2: is not JSON: Expecting value (column 1)"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "jobs: holds no job"),
        ("[]", "jobs: holds no job"),
        ("3", "jobs: is not a JSON object"),
        (f"{JOB % 'a'}\n{{oops", "jobs:2: is not JSON: Expecting property name enclosed in double quotes"),
        ('{\n"kind": "tool",\n"x" 3}', "jobs:3: is not JSON: Expecting ':' delimiter"),
        (f"[{JOB % 'a'}, 3]", "jobs: job 2: is not a JSON object"),
        (f'{JOB % "a"}\n{{"kind": "tool", "job_id": "b"}}', "jobs:2: request: is missing"),
        (f'{JOB % "a"}\n{(JOB % "b")[:-1]}, "colour": 1}}', "jobs:2: colour: is not a known field"),
        (JOB.replace('"gpt-6-luna"', "NaN") % "a", "jobs:1: is not JSON: not a number or nesting"),
        (JOB.replace('"gpt-6-luna"', "9" * 5000) % "a", "jobs:1: is not JSON: not a number or nesting"),
        ("[" * 100_000, "jobs:1: is not JSON: not a number or nesting"),
    ],
)
def test_what_is_no_job_is_told_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    """Each problem names file and line, or the place in an array, and what is wrong."""
    _, problems = read(tmp_path, text)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder, and other bytes than text are problems like any other."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    reasons = [str(one) for one in read_jobs([str(tmp_path / name) for name in ("missing", "", "bytes")])]
    assert [reason.split(": ", 1)[1] for reason in reasons] == [
        "No such file or directory",
        "Is a directory",
        "is not UTF-8 text",
    ]


def test_a_kind_that_nobody_serves_is_no_job(tmp_path: Path) -> None:
    """It would lie in a queue that no worker reads, without a word."""
    jobs, reasons = read(tmp_path, JOB.replace("completion", "batch") % "a")
    assert jobs == []
    assert reasons == [
        "jobs: kind: batch is not served by this version, only completion, tool, vision, assistant, embedding"
    ]
