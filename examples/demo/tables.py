"""What the demo prints."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.reply import Reply

_ANSWER_CHARS = 48
_PIPE_WIDTH = 160


def console() -> Console:
    """Return the console; what is not a terminal gets wide lines that are not broken."""
    found = Console(highlight=False)
    if not found.is_terminal:
        found.width = _PIPE_WIDTH
    return found


def job_table(results: Iterable[tuple[Reply, bool]]) -> Table:
    """Return a table of replies, each with whether it is what was expected."""
    table = Table(title="Jobs", box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in ("job", "kind", "tenant", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("attempts", "tokens in/out", "cost $", "waited s", "took s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("answer", overflow="ellipsis", no_wrap=True)
    for reply, as_expected in results:
        table.add_row(*_cells(reply), style=None if as_expected else "bold red")
    return table


def _cells(reply: Reply) -> list[Text]:
    usage = reply.usage
    started = reply.started_at or reply.finished_at
    return [
        Text(text)
        for text in (
            reply.job_id or "",
            reply.kind or "",
            reply.tenant or "",
            reply.status,
            str(reply.attempts),
            f"{usage.input_tokens}/{usage.output_tokens}" if usage else "",
            (usage.cost_usd or usage.cost_status) if usage else "",
            f"{(started - reply.received_at).total_seconds():.1f}",
            f"{(reply.finished_at - started).total_seconds():.1f}",
            _shortened(_said(reply)),
        )
    ]


def _said(reply: Reply) -> str:
    if reply.error is not None:
        return f"{reply.error.code} {reply.error.http_status or ''}: {reply.error.message}"
    return reply.output_text or ""


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _ANSWER_CHARS else f"{line[: _ANSWER_CHARS - 1]}…"
