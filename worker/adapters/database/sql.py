"""What SQLite and PostgreSQL spell differently."""

from typing import Any, Final, Protocol

import orjson
from sqlalchemy import (
    ColumnElement,
    Double,
    Subquery,
    Table,
    Text,
    bindparam,
    cast,
    extract,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB
from typing_extensions import override

from worker.adapters.database.types import UtcDateTime
from worker.domain.job import JobKey

KEYS: Final = "keys"
"""The parameter that carries any number of job keys, so that a statement is prepared but once."""


def keys_value(keys: list[JobKey]) -> str:
    """Return the value of the parameter `KEYS`."""
    return orjson.dumps([tuple(key) for key in keys]).decode()


class Sql(Protocol):
    """The expressions that depend on the engine."""

    def insert_new(self, table: Table) -> Any:
        """Return an insert that leaves rows alone whose key exists."""

    def upsert(self, table: Table) -> Any:
        """Return an insert that overwrites the row whose primary key exists."""

    def keys(self) -> Subquery:
        """Return the keys of the parameter `KEYS` as a table of `tenant` and `job_id`."""

    def now(self) -> ColumnElement[Any]:
        """Return the database's clock, which goes on within a transaction."""

    def epoch(self) -> ColumnElement[float]:
        """Return the same as seconds since 1970."""

    def least(self, *values: ColumnElement[float]) -> ColumnElement[float]:
        """Return the smallest of several values."""

    def greatest(self, *values: ColumnElement[float]) -> ColumnElement[float]:
        """Return the largest of several values."""

    def day(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        """Return the UTC day of a time as `YYYY-MM-DD`."""

    def month(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        """Return the UTC month of a time as `YYYY-MM`."""


class SqliteSql(Sql):
    """SQLite's."""

    @override
    def insert_new(self, table: Table) -> Any:
        return sqlite.insert(table).on_conflict_do_nothing()

    @override
    def upsert(self, table: Table) -> Any:
        return overwriting(sqlite.insert(table), table)

    @override
    def keys(self) -> Subquery:
        entry = func.json_each(bindparam(KEYS, type_=Text)).table_valued("value", name="entry")
        return select(
            func.json_extract(entry.c.value, "$[0]").label("tenant"),
            func.json_extract(entry.c.value, "$[1]").label("job_id"),
        ).subquery("wanted")

    @override
    def now(self) -> ColumnElement[Any]:
        return type_coerce(func.strftime("%Y-%m-%d %H:%M:%f", "now"), UtcDateTime)

    @override
    def epoch(self) -> ColumnElement[float]:
        return type_coerce((func.julianday("now", type_=Double) - 2440587.5) * 86400.0, Double)

    @override
    def least(self, *values: ColumnElement[float]) -> ColumnElement[float]:
        return func.min(*values, type_=Double)

    @override
    def greatest(self, *values: ColumnElement[float]) -> ColumnElement[float]:
        return func.max(*values, type_=Double)

    @override
    def day(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        return func.strftime("%Y-%m-%d", column, type_=Text)

    @override
    def month(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        return func.strftime("%Y-%m", column, type_=Text)


class PostgresqlSql(Sql):
    """PostgreSQL's."""

    @override
    def insert_new(self, table: Table) -> Any:
        return postgresql.insert(table).on_conflict_do_nothing()

    @override
    def upsert(self, table: Table) -> Any:
        return overwriting(postgresql.insert(table), table)

    @override
    def keys(self) -> Subquery:
        entries = cast(bindparam(KEYS, type_=Text), JSONB)
        entry = func.jsonb_array_elements(entries).table_valued("value", name="entry")
        field = entry.c.value.op("->>")
        return (
            select(field(literal_column("0")).label("tenant"), field(literal_column("1")).label("job_id"))
            # True of all; but the planner expects a single one then, and looks it up.
            .where(func.jsonb_typeof(entry.c.value) == literal_column("'array'"))
            .subquery("wanted")
        )

    @override
    def now(self) -> ColumnElement[Any]:
        return func.clock_timestamp(type_=UtcDateTime)

    @override
    def epoch(self) -> ColumnElement[float]:
        return cast(extract("epoch", func.clock_timestamp()), Double)

    @override
    def least(self, *values: ColumnElement[float]) -> ColumnElement[float]:
        return func.least(*values, type_=Double)

    @override
    def greatest(self, *values: ColumnElement[float]) -> ColumnElement[float]:
        return func.greatest(*values, type_=Double)

    @override
    def day(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        return func.to_char(func.timezone("UTC", column), "YYYY-MM-DD", type_=Text)

    @override
    def month(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        return func.to_char(func.timezone("UTC", column), "YYYY-MM", type_=Text)


def sql_of(dialect: str) -> Sql:
    """Return the expressions of an engine by the name of its dialect."""
    return SqliteSql() if dialect == "sqlite" else PostgresqlSql()


def overwriting(insert: sqlite.Insert | postgresql.Insert, table: Table) -> Any:
    """Return an insert that overwrites all but the key of rows that exist."""
    fresh = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
    return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=fresh)
