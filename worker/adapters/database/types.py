"""Column types that mean the same on SQLite and PostgreSQL."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine
from typing_extensions import override

INTEGER: Final[TypeEngine[int]] = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits on both; SQLite numbers rows by itself only where the type is spelled INTEGER."""

DOCUMENT: Final[TypeEngine[Any]] = JSON(none_as_null=True).with_variant(
    JSONB(none_as_null=True), "postgresql"
)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out; SQLite keeps it as text that sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @override
    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        # The driver of PostgreSQL takes any time zone.
        return _spelled if dialect.name == "sqlite" else None

    @override
    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# A job's few moments are each stored in several places.
@lru_cache(maxsize=1024)
def _spelled(value: datetime | None) -> str | None:
    """Return what SQLAlchemy stores, at a fraction of its cost."""
    if value is None:
        return None
    # The last six characters are the time zone.
    return (value if value.tzinfo is UTC else value.astimezone(UTC)).isoformat(" ", "microseconds")[:-6]


def utc_of(stored: datetime | str) -> datetime:
    """Return a time from what a driver found."""
    return stored if isinstance(stored, datetime) else datetime.fromisoformat(stored).replace(tzinfo=UTC)


class ForeignText(TypeDecorator[str]):
    r"""Text that others chose, kept exactly.

    PostgreSQL takes neither NUL nor lone surrogates, and a record of money spent
    must not fail on them: such text, and any with a backslash, is stored escaped.
    """

    impl = Text
    cache_ok = True

    @override
    def bind_processor(self, dialect: Dialect) -> Callable[[str | None], Any]:
        return _escaped

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or "\\" not in value:
            return value
        return value.encode("ascii").decode("unicode_escape")


def _escaped(value: str | None) -> str | None:
    if value is None or (value.isprintable() and "\\" not in value):
        return value
    return value.encode("unicode_escape").decode("ascii")
