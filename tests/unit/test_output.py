"""Tables as people and programs see them."""

import io

import pytest
from rich.console import Console

from worker.cli import output

ROWS = [
    {"job_id": "x" * 255, "tenant": "acme", "reason": "y" * 90},
    {"job_id": "8b0a3f0e-5c66-4f6b-9c53-1f7a2d3e4b5c", "tenant": "acme", "reason": "short"},
]


def printed(monkeypatch: pytest.MonkeyPatch, width: int, *, terminal: bool) -> list[str]:
    """Return the lines of a table on a console."""
    stream = io.StringIO()
    paper = Console(file=stream, force_terminal=terminal, width=width, color_system=None, highlight=False)
    monkeypatch.setattr(output, "console", lambda: paper)
    output.print_rows(ROWS, ["job_id", "tenant", "reason"], as_json=False)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [100, 160, 200])
def test_a_terminal_gets_lines_of_its_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """An id of 255 characters is cut where there is no room for it; an ordinary one never is."""
    _, long, short = printed(monkeypatch, width, terminal=True)
    assert max(len(long), len(short)) <= width
    assert "…" in long
    assert short.split() == list(ROWS[1].values())


def test_a_narrow_terminal_cuts_no_ordinary_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut cannot be copied: where even that is too wide, the terminal may fold the line."""
    _, _, short = printed(monkeypatch, 40, terminal=True)
    assert short.split() == list(ROWS[1].values())


def test_a_pipe_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program sees a cut name."""
    _, long, _ = printed(monkeypatch, 80, terminal=False)
    assert long.split() == list(ROWS[0].values())
