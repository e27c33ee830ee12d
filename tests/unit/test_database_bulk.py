"""Rows on their way into a statement."""

from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Integer, Text, bindparam, select
from sqlalchemy.dialects.postgresql import asyncpg

from worker.adapters.database.bulk import Bulk
from worker.adapters.database.errors import DatabaseRefusedError
from worker.adapters.database.many import ROWS
from worker.adapters.database.types import ForeignText

DIALECT = asyncpg.dialect()  # type: ignore[no-untyped-call]


def document(names: list[str], value: object = 1) -> list[dict[str, Any]]:
    """Return rows with these names as PostgreSQL gets them: in one document."""
    bulk = Bulk(
        DIALECT,
        lambda _columns: select(bindparam(ROWS, type_=Text)),
        {"name": ForeignText(), "value": Integer()},
        whole=True,
    )
    (call,) = bulk.calls([{"name": name, "value": value} for name in names])
    found: list[dict[str, Any]] = orjson.loads(call.parameters[0][0])
    return found


@given(st.lists(st.text(), min_size=1))
@example(["plain"])
@example(["a\\b"])
@example(["\x7f"])
@example(["\x85"])
@example(["\u2028", "plain"])
@example(["\ud800"])
@example(["\x00"])
def test_a_text_is_spelled_alike_whatever_comes_with_it(names: list[str]) -> None:
    """Else rows could not be found again by it."""
    spell = ForeignText().bind_processor(DIALECT)
    assert spell is not None
    assert [row["name"] for row in document(names)] == [spell(name) for name in names]


def test_what_is_no_json_is_refused() -> None:
    """With an error that belongs to the caller."""
    with pytest.raises(DatabaseRefusedError, match="cannot take"):
        document(["plain"], object())
