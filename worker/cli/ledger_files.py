"""Files that ledger rows are exported to. What is written depends on the rows alone."""

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, Protocol, Self, TextIO

import orjson
from typing_extensions import override

from worker.cli.output import harmless

COLUMNS: Final = (
    "id",
    "tenant",
    "job_id",
    "attempt_no",
    "entry",
    "kind",
    "model",
    "service_tier",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "meters",
    "cost_nano_usd",
    "prices",
    "labels",
    "account",
    "organization",
    "project",
    "occurred_at",
    "booked_at",
    "requests",
    "unpriced_requests",
    "estimated_requests",
    "estimated_cost_nano_usd",
)
ROWS_A_PART: Final = 100_000
_DOCUMENTS: Final = frozenset({"meters", "prices", "labels"})
_TIMES: Final = frozenset({"occurred_at", "booked_at"})
_TEXTS: Final = frozenset(
    {"tenant", "job_id", "entry", "kind", "model", "service_tier", "account", "organization", "project"}
)

Row = Mapping[str, Any]


class LedgerFileError(Exception):
    """The target cannot be written to as asked; the message says why."""


class LedgerFile(Protocol):
    """Somewhere for ledger rows; used as a context manager."""

    last_id: int
    """The last row that is there already."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CsvStream(LedgerFile):
    """CSV to an open stream."""

    def __init__(self, stream: TextIO) -> None:
        self.last_id = 0
        self._stream = stream

    @override
    def write(self, rows: Sequence[Row]) -> None:
        self._stream.write(_csv(rows))

    @override
    def __enter__(self) -> Self:
        self._stream.write(_csv([], header=True))
        return self

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()


class CsvFile(LedgerFile):
    """A CSV file; of a line that was cut off in the middle, nothing is kept."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        if path.exists() and not resume:
            raise LedgerFileError(f"{path} exists: name another file, or go on with --resume")
        self.last_id = 0
        self._path = path
        self._keep = self._read() if path.exists() else 0

    @override
    def write(self, rows: Sequence[Row]) -> None:
        self._file.write(_csv(rows).encode())

    @override
    def __enter__(self) -> Self:
        self._file = self._path.open("r+b" if self._keep else "wb")
        self._file.truncate(self._keep)
        self._file.seek(self._keep)
        if not self._keep:
            self._file.write(_csv([], header=True).encode())
        return self

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> int:
        """Return how many bytes are whole lines, and note the last id. No cell holds a line break."""
        header, keep = _csv([], header=True).encode(), 0
        with self._path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                if keep == 0 and line != header:
                    raise LedgerFileError(f"{self._path} is no export of the ledger")
                if keep:
                    self.last_id = int(line.partition(b",")[0])
                keep += len(line)
        return keep


class ParquetFolder(LedgerFile):
    """A folder of Parquet files with so many rows each; a part appears when it is complete."""

    def __init__(self, folder: Path, *, resume: bool, rows_a_part: int = ROWS_A_PART) -> None:
        self._arrow, self._parquet = _pyarrow()
        parts = sorted(folder.glob("part-*.parquet"))
        if parts and not resume:
            raise LedgerFileError(f"{folder} holds an export: name another folder, or go on with --resume")
        self.last_id = 0
        self._folder = folder
        self._rows_a_part = rows_a_part
        self._rows: list[Row] = []
        self._number = 0
        for part in parts:
            # A short part is the last one of its time; it is written again with what has come since.
            if self._parquet.read_metadata(part).num_rows < rows_a_part:
                break
            self.last_id = self._parquet.read_table(part, columns=["id"])["id"][-1].as_py()
            self._number += 1

    @override
    def write(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        while len(self._rows) >= self._rows_a_part:
            self._write_part(self._rows[: self._rows_a_part])
            self._rows = self._rows[self._rows_a_part :]

    @override
    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._rows:
            self._write_part(self._rows)

    def _write_part(self, rows: Sequence[Row]) -> None:
        part = self._folder / f"part-{self._number:05}.parquet"
        fresh = part.with_suffix(".tmp")
        cells = [{name: _cell(name, row[name]) for name in COLUMNS} for row in rows]
        self._parquet.write_table(self._arrow.Table.from_pylist(cells, schema=self._schema()), fresh)
        fresh.replace(part)
        self._number += 1

    def _schema(self) -> Any:
        arrow = self._arrow
        types = {
            name: arrow.timestamp("us", tz="UTC")
            if name in _TIMES
            else arrow.string()
            if name in _DOCUMENTS or name in _TEXTS
            else arrow.int64()
            for name in COLUMNS
        }
        return arrow.schema(list(types.items()))


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise LedgerFileError(
            "Parquet needs a further package: pip install 'openai-worker[parquet]'"
        ) from None


def _csv(rows: Sequence[Row], *, header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    for row in rows:
        cells = {name: _cell(name, row[name]) for name in COLUMNS}
        times = {name: _time(cells[name]) for name in _TIMES}
        texts = {name: harmless(cells[name]) for name in _TEXTS if cells[name] is not None}
        writer.writerow((cells | times | texts).values())
    return text.getvalue()


def _cell(name: str, value: Any) -> Any:
    if name in _DOCUMENTS and value is not None:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    return value


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}Z"
