"""What the demo prints of its jobs and of their bill."""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.demo.jobs import Played
from schemas.reply import Reply

_ANSWER_CHARS = 64
_PIPE_WIDTH = 170
_CAPTION = "waiting: for the limits of examples/demo/limits.toml, for Retry-After, for tools"
_AT_OPENAI = """
    SELECT tenant, job_id, sum(julianday(finished_at) - julianday(started_at)) * 86400
    FROM attempts GROUP BY tenant, job_id
"""

Times = Mapping[tuple[str, str], float]


def console() -> Console:
    """Return the console; what is not a terminal gets wide lines that are not broken."""
    found = Console(highlight=False)
    if not found.is_terminal:
        found.width = _PIPE_WIDTH
    return found


def times_at_openai(database: Path) -> Times:
    """Return the seconds that the requests of each job were open, from the table of attempts."""
    with closing(sqlite3.connect(database)) as connection:
        return {(tenant, job_id): seconds for tenant, job_id, seconds in connection.execute(_AT_OPENAI)}


def job_table(played: Iterable[Played], times: Times) -> Table:
    """Return a table of jobs; those that did not end as they should are red."""
    table = _table("Jobs", caption=_CAPTION)
    for name in ("job", "kind", "tenant", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("attempts", "in/out", "cost $", "took", "waiting"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("answer", no_wrap=True, overflow="ellipsis")
    for one in played:
        table.add_row(*_cells(one.reply, times), style=None if one.as_expected else "bold red")
    return table


def bill_table(bill: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rows of `openai-worker usage report --by tenant --json` as a table."""
    table = _table("The bill of each tenant")
    table.add_column("tenant")
    columns = {
        "requests": "requests",
        "input_tokens": "tokens in",
        "output_tokens": "out",
        "cost_usd": "cost $",
    }
    for name in columns.values():
        table.add_column(name, justify="right")
    for row in bill:
        table.add_row(row["tenant"], *(str(row[name]) for name in columns))
    return table


def _table(title: str, *, caption: str | None = None) -> Table:
    return Table(
        title=title,
        caption=caption,
        box=None,
        pad_edge=False,
        header_style="bold",
        title_style="bold",
        title_justify="left",
        caption_justify="left",
    )


def _cells(reply: Reply, times: Times) -> list[Text]:
    usage = reply.usage
    took = (reply.finished_at - reply.received_at).total_seconds()
    waiting = max(0.0, took - times.get((reply.tenant or "", reply.job_id or ""), 0.0))
    texts = (
        reply.job_id or "",
        reply.kind or "",
        reply.tenant or "",
        reply.status,
        str(reply.attempts),
        f"{usage.input_tokens}/{usage.output_tokens}" if usage else "",
        (usage.cost_usd or usage.cost_status) if usage else "",
        f"{took:.1f} s",
        f"{waiting:.1f} s",
        _shortened(_said(reply)),
    )
    return [Text(text) for text in texts]


def _said(reply: Reply) -> str:
    if reply.error is not None:
        return f"{reply.error.code} ({reply.error.http_status}): {reply.error.message}"
    return reply.output_text or ""


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _ANSWER_CHARS else f"{line[: _ANSWER_CHARS - 1]}…"
