"""docs/billing.md: what it tells people to run, runs."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import NOON, a_claim, a_finish, a_job, a_ledger_entry, a_record, a_token, rows
from worker.adapters.database.opening import Database

GUIDE = (Path(__file__).parents[2] / "docs" / "billing.md").read_text(encoding="utf-8")
SQL = re.findall(r"```sql\n(.*?);\n```", GUIDE, re.DOTALL)


@pytest.fixture
async def billed(database: Database) -> Database:
    """Leave a priced and an unpriced row of acme."""
    for job_id, cost in (("invoice-4711-summary", 120_000), ("other", None)):
        job, token = a_job(job_id), a_token()
        await database.store.claim(a_claim(job, token))
        entry = a_ledger_entry(cost_nano_usd=cost, occurred_at=NOON)
        record = a_record(job.key, ledger=entry)
        await database.store.finish(a_finish(job, token, record=record))
    return database


EXPECTED: list[Any] = [
    [("acme", 2, 160, 40, 120_000, 1, 0)],
    1,
    [("gpt-6-luna", "default", 1, 160)],
    0,
    1,
    None,
    None,
    [("org-1", "proj-1", 120_000)],
    [("acme", "invoice-4711-summary", 120_000), ("acme", "other", None)],
    0,
]


def test_all_statements_are_held_to_something() -> None:
    """No statement of the guide goes untested."""
    assert len(SQL) == len(EXPECTED)


@pytest.mark.parametrize(("sql", "expected"), list(zip(SQL, EXPECTED, strict=False)))
async def test_statement_runs(sql: str, expected: Any, billed: Database, migrated_url: str) -> None:
    """Each statement runs as it is printed, on both databases, and finds what it is for."""
    found = await rows(migrated_url, sql.replace(":", "\\:"))
    if isinstance(expected, list):
        assert found == expected
    elif expected is not None:
        assert len(found) == expected
