"""Statements that the writer runs for every batch, compiled once.

SQLAlchemy looks a statement up and binds each row anew whenever it is executed, at more than
the driver's own cost.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import orjson
from sqlalchemy import JSON, Dialect, LargeBinary
from sqlalchemy.types import TypeEngine

from worker.adapters.database.errors import DatabaseRefusedError
from worker.adapters.database.many import NUMBER, ROWS

Columns: TypeAlias = tuple[str, ...]
_Processor: TypeAlias = Callable[[Any], Any]


class Call(NamedTuple):
    """SQL in the driver's dialect, and the parameters of each time that it runs."""

    sql: str
    parameters: Sequence[tuple[Any, ...]]
    selects: bool = False


class Bulk:
    """A statement on rows, which may have one set of columns or another.

    `build` returns it for the names of the columns, `kinds` has the types of their values. With
    `whole` its parameters are all rows, as `many.Document` takes them.
    """

    def __init__(
        self,
        dialect: Dialect,
        build: Callable[[Columns], Any],
        kinds: Mapping[str, TypeEngine[Any]],
        *,
        whole: bool = False,
        selects: bool = False,
    ) -> None:
        self._dialect = dialect
        self._build = build
        self._kinds = kinds
        self._whole = whole
        self._selects = selects
        self._compiled: dict[Columns, _EachRow | _AllRows] = {}

    def calls(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Call]:
        """Yield what runs it on these rows, in their order."""
        for columns, some in groupby(rows, key=tuple):
            compiled = self._compiled.get(columns)
            if compiled is None:
                compiled = self._compiled[columns] = self._compile(columns)
            yield Call(compiled.sql, compiled.parameters(some), self._selects)

    def _compile(self, columns: Columns) -> "_EachRow | _AllRows":
        # The columns of a document are in the statement already.
        keys = None if self._whole else list(columns)
        compiled = self._build(columns).compile(dialect=self._dialect, column_keys=keys)
        names: Sequence[str] = compiled.positiontup
        if self._whole:
            return _AllRows(compiled.string, names, self._processors(columns))
        fixed = {name: value for name, value in compiled.params.items() if name not in columns}
        return _EachRow(compiled.string, names, self._processors(names), fixed)

    def _processors(self, names: Sequence[str]) -> "dict[str, _Processor]":
        """Return what turns values into the driver's; within a document, documents are no texts."""
        kinds = {name: kind for name in names if (kind := self._kinds.get(name)) is not None}
        found = {
            name: kind.dialect_impl(self._dialect).bind_processor(self._dialect)
            for name, kind in kinds.items()
            # The drivers take bytes as they are.
            if not isinstance(kind, LargeBinary) and not (self._whole and isinstance(kind, JSON))
        }
        return {name: processor for name, processor in found.items() if processor is not None}


class _EachRow:
    """SQL that runs once a row."""

    def __init__(
        self, sql: str, names: Sequence[str], convert: Mapping[str, _Processor], fixed: Mapping[str, Any]
    ) -> None:
        self.sql = sql
        # One more than there are: a single one would not come as a tuple.
        self._pick = itemgetter(*names, names[0])
        self._convert = [(place, convert[name]) for place, name in enumerate(names) if name in convert]
        self._fixed = fixed

    def parameters(self, rows: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        return list(map(self._values, rows))

    def _values(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        *values, _ = self._pick({**row, **self._fixed} if self._fixed else row)
        for place, processor in self._convert:
            values[place] = processor(values[place])
        return tuple(values)


class _AllRows:
    """SQL that takes all rows as a document, and their bytes as arrays."""

    def __init__(self, sql: str, names: Sequence[str], convert: Mapping[str, _Processor]) -> None:
        self.sql = sql
        self._names = names
        self._bytes = [name for name in names if name != ROWS]
        self._convert = list(convert.items())

    def parameters(self, rows: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        arrays: dict[str, list[bytes]] = {name: [] for name in self._bytes}
        documents = []
        for number, row in enumerate(rows, 1):
            document = {**row, NUMBER: number}
            for name, array in arrays.items():
                array.append(document.pop(name))
            documents.append(document)
        text = _plain(documents) or self._converted(documents)
        return [tuple(text if name == ROWS else arrays[name] for name in self._names)]

    def _converted(self, documents: Iterable[dict[str, Any]]) -> str:
        for document in documents:
            for name, processor in self._convert:
                document[name] = processor(document[name])
        try:
            return orjson.dumps(documents).decode()
        except TypeError as error:
            raise DatabaseRefusedError(f"the database cannot take a record: {error}") from None


def _plain(documents: Iterable[dict[str, Any]]) -> str | None:
    """Return rows in which no text has to be escaped for the database, which is nearly always so.

    All that would be is no printable ASCII, or has a backslash in JSON or by itself.
    """
    try:
        text = orjson.dumps(documents)
    except TypeError:
        return None
    return text.decode() if text.isascii() and b"\\" not in text and b"\x7f" not in text else None
