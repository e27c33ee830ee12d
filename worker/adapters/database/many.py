"""Statements on many rows, as each engine takes them at the least cost."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    DateTime,
    LargeBinary,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    cast,
    column,
    exists,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.types import TypeEngine
from typing_extensions import override

from worker.adapters.database.sql import overwriting
from worker.adapters.database.types import INTEGER, UtcDateTime

ROWS: Final = "rows"
"""The parameter with all that is no bytes, a list of objects."""
NUMBER: Final = "n"
"""In these objects, the row's place in the arrays of bytes, from 1."""


class Many(Protocol):
    """Builds statements for rows that have these columns."""

    whole: bool
    """Whether all rows are parameters together, as `ROWS` and arrays, or the statement runs once a row."""

    def insert(self, table: Table, columns: Sequence[str]) -> Any:
        """Return an insert that leaves rows alone whose key exists."""

    def insert_counted(self, table: Table, columns: Sequence[str]) -> Any:
        """Return the same; where all rows are one statement, it finds a row for each that was new."""

    def upsert(self, table: Table, columns: Sequence[str]) -> Any:
        """Return an insert that overwrites the row whose primary key exists."""

    def update(
        self, table: Table, key: Mapping[str, Column[Any]], columns: Sequence[str], *only: ColumnElement[bool]
    ) -> Any:
        """Return an update of the rows whose key columns equal the parameters of these names."""

    def lock_equal(self, table: Table, key: Sequence[str], columns: Mapping[str, ColumnElement[Any]]) -> Any:
        """Return a select that locks the rows that are as given, in the order of their keys.

        Where all rows are parameters together it finds a row for each, else it counts them.
        """


class EachRow(Many):
    """SQLite's: a statement has parameters for one row; what inserts or counts is spelled for several."""

    whole = False

    @override
    def insert(self, table: Table, columns: Sequence[str]) -> Any:
        return sqlite.insert(table).on_conflict_do_nothing()

    @override
    def insert_counted(self, table: Table, columns: Sequence[str]) -> Any:
        return self.insert(table, columns)

    @override
    def upsert(self, table: Table, columns: Sequence[str]) -> Any:
        return overwriting(sqlite.insert(table), table)

    @override
    def update(
        self, table: Table, key: Mapping[str, Column[Any]], columns: Sequence[str], *only: ColumnElement[bool]
    ) -> Any:
        same = [column == bindparam(name, type_=column.type) for name, column in key.items()]
        return update(table).where(*same, *only)

    @override
    def lock_equal(self, table: Table, key: Sequence[str], columns: Mapping[str, ColumnElement[Any]]) -> Any:
        # Who writes has the whole file for itself. A join could be read from the table's side.
        rows = text(f"(VALUES ({', '.join(f':{name}' for name in columns)})) AS v")
        given: dict[str, ColumnElement[Any]] = {
            name: literal_column(f"v.column{place}") for place, name in enumerate(columns, 1)
        }
        same = [columns[name] == given[name] for name in key]
        rest = [columns[name].is_not_distinct_from(given[name]) for name in columns if name not in key]
        return select(func.count()).select_from(rows).where(exists().where(*same, *rest))


class Document(Many):
    """PostgreSQL's: all rows in one statement, which says what to do with them but once.

    They come as one JSON document, but for what is no text: columns of bytes are arrays of their own.
    A driver writes each value of an array by itself, at several times the cost of the whole document.
    """

    whole = True

    @override
    def insert(self, table: Table, columns: Sequence[str]) -> Any:
        return self._insert(table, columns).on_conflict_do_nothing()

    @override
    def insert_counted(self, table: Table, columns: Sequence[str]) -> Any:
        return self._insert(table, columns).on_conflict_do_nothing().returning(literal_column("1"))

    @override
    def upsert(self, table: Table, columns: Sequence[str]) -> Any:
        return overwriting(self._insert(table, columns), table)

    @override
    def update(
        self, table: Table, key: Mapping[str, Column[Any]], columns: Sequence[str], *only: ColumnElement[bool]
    ) -> Any:
        types = {name: key[name].type if name in key else table.c[name].type for name in columns}
        rows = _rows(types)
        same = [column == rows[name] for name, column in key.items()]
        fresh = {name: rows[name] for name in columns if name not in key}
        return update(table).where(*same, *only, _few(rows)).values(fresh)

    @override
    def lock_equal(self, table: Table, key: Sequence[str], columns: Mapping[str, ColumnElement[Any]]) -> Any:
        rows = _rows({name: column.type for name, column in columns.items()})
        return (
            select(literal_column("1"))
            .where(*(columns[name] == rows[name] for name in key), _few(rows))
            .where(*(columns[name].is_not_distinct_from(rows[name]) for name in columns if name not in key))
            .order_by(*(columns[name] for name in key))
            .with_for_update(of=table)
        )

    def _insert(self, table: Table, columns: Sequence[str]) -> postgresql.Insert:
        rows = _rows({name: table.c[name].type for name in columns})
        return postgresql.insert(table).from_select(list(columns), select(*(rows[name] for name in columns)))


def _rows(types: Mapping[str, TypeEngine[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return the columns of a table made of the document, and of the arrays by the rows' numbers."""
    binary = {name: kind for name, kind in types.items() if isinstance(kind, LargeBinary)}
    plain = {name: _plain(kind) for name, kind in types.items() if name not in binary} | {NUMBER: INTEGER}
    document = func.json_to_recordset(cast(bindparam(ROWS, type_=Text), postgresql.JSON))
    table = document.table_valued(*(column(name, kind) for name, kind in plain.items()))
    derived = table.render_derived(name="v", with_types=True)
    arrays = {name: Grouping(bindparam(name, type_=ARRAY(kind))) for name, kind in binary.items()}
    found = {name: arrays[name][derived.c[NUMBER]] if name in binary else derived.c[name] for name in types}
    return found | {NUMBER: derived.c[NUMBER]}


def _few(rows: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
    """Return what is true of all rows, but has the planner expect a single one.

    It expects a hundred in a document, for which to read a table whole that has been empty looks cheaper
    than to look them up; and its plans are kept.
    """
    return rows[NUMBER].between(literal_column("1"), literal_column("2147483647"))


def _plain(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return what the database takes from a document: values are converted before."""
    if isinstance(kind, JSON):
        return JSONB()
    if isinstance(kind, UtcDateTime):
        return DateTime(timezone=True)
    return Text() if isinstance(kind, TypeDecorator) else kind


def many_of(dialect: str) -> Many:
    """Return the statements of an engine by the name of its dialect."""
    return EachRow() if dialect == "sqlite" else Document()
