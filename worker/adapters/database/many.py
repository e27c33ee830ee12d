"""Statements on many rows, as each engine takes them at the least cost."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    DateTime,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    cast,
    column,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import TypeEngine
from typing_extensions import override

from worker.adapters.database.sql import overwriting
from worker.adapters.database.types import UtcDateTime


class Many(Protocol):
    """Builds statements for rows that have these columns; each is a parameter of the same name."""

    arrays: bool
    """Whether a parameter is the array of all rows' values, or the statement runs once a row."""

    def insert(self, table: Table, columns: Sequence[str]) -> Any:
        """Return an insert that leaves rows alone whose key exists."""

    def insert_found(self, table: Table, found: Sequence[ColumnElement[Any]], columns: Sequence[str]) -> Any:
        """Return the same for rows that a select in the same run is to find, as it does, too."""

    def upsert(self, table: Table, columns: Sequence[str]) -> Any:
        """Return an insert that overwrites the row whose primary key exists."""

    def update(
        self, table: Table, key: Mapping[str, Column[Any]], columns: Sequence[str], *only: ColumnElement[bool]
    ) -> Any:
        """Return an update of the rows whose key columns equal the parameters of these names."""


class EachRow(Many):
    """SQLite's: a statement is run once a row, which costs next to nothing inside the process."""

    arrays = False

    @override
    def insert(self, table: Table, columns: Sequence[str]) -> Any:
        return sqlite.insert(table).on_conflict_do_nothing()

    @override
    def insert_found(self, table: Table, found: Sequence[ColumnElement[Any]], columns: Sequence[str]) -> Any:
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


class Arrays(Many):
    """PostgreSQL's: all rows in one statement, which says what to do with them but once."""

    arrays = True

    @override
    def insert(self, table: Table, columns: Sequence[str]) -> Any:
        return self._insert(table, columns).on_conflict_do_nothing()

    @override
    def insert_found(self, table: Table, found: Sequence[ColumnElement[Any]], columns: Sequence[str]) -> Any:
        return self._insert(table, columns).on_conflict_do_nothing().returning(*found)

    @override
    def upsert(self, table: Table, columns: Sequence[str]) -> Any:
        return overwriting(self._insert(table, columns), table)

    @override
    def update(
        self, table: Table, key: Mapping[str, Column[Any]], columns: Sequence[str], *only: ColumnElement[bool]
    ) -> Any:
        types = {name: key[name].type if name in key else table.c[name].type for name in columns}
        rows = _unnested(types)
        same = [column == rows[name] for name, column in key.items()]
        fresh = {name: rows[name] for name in columns if name not in key}
        return update(table).where(*same, *only).values(fresh)

    def _insert(self, table: Table, columns: Sequence[str]) -> postgresql.Insert:
        rows = _unnested({name: table.c[name].type for name in columns})
        return postgresql.insert(table).from_select(list(columns), select(*rows.values()))


def _unnested(types: Mapping[str, TypeEngine[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return the columns of a table made of one array parameter each."""
    plain = {name: _plain(kind) for name, kind in types.items()}
    rows = func.unnest(*(bindparam(name, type_=ARRAY(kind)) for name, kind in plain.items()))
    table = rows.table_valued(*(column(name, kind) for name, kind in plain.items()), name="v")
    derived = table.render_derived()
    return {
        name: cast(derived.c[name], JSONB) if isinstance(kind, JSON) else derived.c[name]
        for name, kind in types.items()
    }


def _plain(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return what the driver takes in an array: values are converted before, and documents are texts."""
    if isinstance(kind, JSON):
        return Text()
    if isinstance(kind, UtcDateTime):
        return DateTime(timezone=True)
    return Text() if isinstance(kind, TypeDecorator) else kind


def many_of(dialect: str) -> Many:
    """Return the statements of an engine by the name of its dialect."""
    return EachRow() if dialect == "sqlite" else Arrays()
