"""What was measured: a JSON line a figure on stdout, and in the end a table on stderr."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure. `goal` is `>=` or `<=` and a number; None for what only explains another."""

    figure: str
    value: float
    unit: str
    goal: str | None = None
    note: str = ""
    excused: bool = False
    """Whether a missed goal is not the program's doing; the note says whose."""

    @property
    def ok(self) -> bool:
        """Whether it is met."""
        if self.goal is None or self.excused:
            return True
        sign, _, bound = self.goal.partition(" ")
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)

    def line(self) -> str:
        """Return it as JSON."""
        shown = {"figure": self.figure, "value": rounded(self.value), "unit": self.unit, "goal": self.goal}
        return json.dumps(shown | {"ok": self.ok} | ({"note": self.note} if self.note else {}))


@dataclass
class Report:
    """All figures of a run."""

    figures: list[Figure] = field(default_factory=list)

    def add(self, figures: Iterable[Figure]) -> None:
        """Take figures and print them at once."""
        for figure in figures:
            self.figures.append(figure)
            print(figure.line(), flush=True)

    @property
    def ok(self) -> bool:
        """Whether all goals are met."""
        return all(figure.ok for figure in self.figures)

    def table(self, title: str) -> None:
        """Print them together."""
        table = Table(title=title, title_justify="left")
        table.add_column("figure", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        for name in ("unit", "goal", "", "note"):
            table.add_column(name)
        for one in self.figures:
            mark = "" if one.goal is None else "[green]met[/]" if one.ok else "[red]missed[/]"
            mark = "[yellow]excused[/]" if one.excused else mark
            table.add_row(one.figure, f"{rounded(one.value):g}", one.unit, one.goal or "", mark, one.note)
        Console(stderr=True, width=None if Console(stderr=True).is_terminal else 160).print(table)


def rounded(value: float) -> float:
    """Keep three digits or all before the point."""
    return round(value) if abs(value) >= 100 else float(f"{value:.3g}")


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)
