"""How commands print: a table for people, JSON for programs."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_WIDEST: Final = 10_000
_READABLE: Final = 40
"""Characters of a cell that are never cut: names, times, and an id like a UUID."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def print_json(value: object) -> None:
    """Print indented JSON."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode())


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], *, as_json: bool) -> None:
    """Print rows as a table of these columns, or all they hold as a JSON array."""
    if as_json:
        print_json(rows)
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(_cell(row[str(column.header)]) for column in table.columns))
    _print_table(table, cut=True)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, one line each, without what is not known."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    for name, value in facts.items():
        if value not in (None, "", {}):
            table.add_row(name, _cell(value))
    _print_table(table)


def console() -> Console:
    """Return a console for standard output."""
    return Console(highlight=False)


def _print_table(table: Table, *, cut: bool = False) -> None:
    """Print every row as one line, however wide: ids that are cut or folded cannot be copied.

    With `cut`, what is longer than any id should be makes room on a terminal, where it would bury the rest.
    """
    wide = console()
    terminal, wide.width = wide.width, _WIDEST
    least = wide.measure(table).maximum
    if cut and wide.is_terminal:
        least -= sum(max(0, _width(column) - _READABLE) for column in table.columns)
    else:
        terminal = max(terminal, least)
    wide.width = max(terminal, least)
    wide.print(table, soft_wrap=True)


def _width(column: Column) -> int:
    return max(cell_len(str(text)) for text in (column.header, *column.cells))


def dollars(nano_usd: int | None) -> str | None:
    """Return an exact decimal text of an amount in 10⁻⁹ US dollars."""
    if nano_usd is None:
        return None
    whole, rest = divmod(abs(nano_usd), 1_000_000_000)
    return f"{'-' if nano_usd < 0 else ''}{whole}.{rest:09}"


def plain(text: str) -> str:
    """Escape what a terminal would obey: producers choose names."""
    return text if text.isprintable() else ascii(text)[1:-1]


def harmless(text: str) -> str:
    """Return a text for CSV: an apostrophe keeps spreadsheets from taking a name for a formula."""
    return ("'" if text.startswith(_FORMULA) else "") + plain(text)


def _cell(value: Any) -> Text:
    """Return a cell that rich does not take for markup."""
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, datetime):
        value = f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}={part}" for name, part in value.items())
    return Text(plain(str(value)), no_wrap=True)
