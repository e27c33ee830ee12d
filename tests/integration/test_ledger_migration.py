"""A ledger from before it was keyed by time: what is in it is kept, and kept as safe as before."""

from typing import Final

import pytest
from alembic import command
from sqlalchemy.exc import DBAPIError

from tests.support.databases import execute, rows
from worker.adapters.database import setup
from worker.adapters.database.engine import Use, open_engine
from worker.adapters.database.setup import check, downgrade, upgrade

JOBS: Final = """
    INSERT INTO jobs (tenant, job_id, status, labels, received_at) VALUES
    ('acme', 'one', 'succeeded', '{}', '2026-11-22 11:59:58.123456'),
    ('globex', 'one', 'failed', '{}', '2026-11-22 11:59:57.000000'),
    ('acme', 'two', 'running', '{}', '2026-11-22 11:59:56.000001')
"""
BOOKED: Final = (
    ("acme", "one", 1, "estimated"),
    ("acme", "one", 1, "correction"),
    ("acme", "one", 1, "correction"),
    ("acme", "one", 2, "measured"),
    ("globex", "one", 1, "measured"),
    ("acme", "two", 1, "measured"),
    ("acme", "forgotten", 1, "measured"),
)
CONTENT: Final = """
    SELECT id, tenant, job_id, attempt_no, entry, model, service_tier, input_tokens, cached_input_tokens,
           cache_write_tokens, output_tokens, reasoning_tokens, meters, cost_nano_usd, prices, labels,
           organization, project, occurred_at, booked_at, kind, account, requests, unpriced_requests,
           estimated_requests, estimated_cost_nano_usd, booking
      FROM usage_ledger ORDER BY id
"""
SUMS: Final = ("SELECT * FROM usage_daily ORDER BY 1, 2, 3", "SELECT * FROM usage_monthly ORDER BY 1, 2")
TIMES: Final = """
    SELECT l.job_id, CASE WHEN l.received_at = j.received_at THEN 'the job''s'
                          WHEN l.received_at = l.occurred_at THEN 'its own' END
      FROM usage_ledger l LEFT JOIN jobs j ON j.tenant = l.tenant AND j.job_id = l.job_id ORDER BY l.id
"""


def booking(tenant: str, job_id: str, attempt_no: int, entry: str, received_at: str | None = None) -> str:
    """Return the statement that books a row at noon; without `received_at` as it was done before."""
    time, value = ("received_at,", f"{received_at},") if received_at else ("", "")
    return f"""
        INSERT INTO usage_ledger ({time} tenant, job_id, attempt_no, entry, booking, model, input_tokens,
               cost_nano_usd, prices, labels, occurred_at, booked_at, account, requests, unpriced_requests,
               estimated_requests, estimated_cost_nano_usd)
        VALUES ({value} '{tenant}', '{job_id}', {attempt_no}, '{entry}',
               {"NULL" if entry == "correction" else 1}, 'm', 80, 120000, '{{"input"\\: "1"}}',
               '{{"a"\\: "b"}}', '2026-11-22 12:00:00.000000', '2026-11-22 12:00:03.000000', 'main',
               1, 0, 0, 0)
    """  # noqa: S608 (values from here)


@pytest.fixture
async def old_url(database_url: str) -> str:
    """Give a database at revision 0002 with some rows."""
    engine = open_engine(database_url, Use.MIGRATE)
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.upgrade(setup._config(sync), "0002"))
    await engine.dispose()
    await execute(database_url, JOBS)
    for row in BOOKED:
        await execute(database_url, booking(*row))
    return database_url


async def test_rows_get_the_time_of_their_job_and_are_else_the_same(old_url: str) -> None:
    """What was booked and what it sums up to stays; a row without a job keeps to its own time."""
    before = [await rows(old_url, query) for query in (CONTENT, *SUMS)]
    await upgrade(old_url)
    assert await check(old_url) == []
    assert [await rows(old_url, query) for query in (CONTENT, *SUMS)] == before
    expected = ["its own" if job_id == "forgotten" else "the job's" for _, job_id, *_ in BOOKED]
    assert [time for _, time in await rows(old_url, TIMES)] == expected


async def test_the_ledger_is_guarded_as_before(old_url: str) -> None:
    """Nothing is changed or deleted, an attempt has one row, and none without its time gets in."""
    await upgrade(old_url)
    one = "(SELECT received_at FROM jobs WHERE tenant = 'acme' AND job_id = 'one')"
    for refused in (
        "UPDATE usage_ledger SET cost_nano_usd = 0",
        "DELETE FROM usage_ledger",
        booking("acme", "one", 1, "measured", one),
        booking("acme", "one", 2, "estimated", one),
        booking("acme", "one", 3, "measured"),
        booking("acme", "one", 3, "guessed", one),
        booking("acme", "one", 3, "correction", one).replace("NULL", "1"),
    ):
        with pytest.raises(DBAPIError):
            await execute(old_url, refused)
    await execute(old_url, booking("acme", "one", 3, "measured", one))
    await execute(old_url, booking("acme", "one", 3, "correction", one))
    assert [row[4] for row in await rows(old_url, CONTENT)][len(BOOKED) :] == ["measured", "correction"]


async def test_there_and_back(old_url: str) -> None:
    """The revision can be taken back, with the rows that are there by then."""
    before = [await rows(old_url, query) for query in (CONTENT, *SUMS)]
    await upgrade(old_url)
    await downgrade(old_url, "0002")
    assert [await rows(old_url, query) for query in (CONTENT, *SUMS)] == before
    for refused in ("DELETE FROM usage_ledger", booking(*BOOKED[0])):
        with pytest.raises(DBAPIError):
            await execute(old_url, refused)
    await upgrade(old_url)
    assert await check(old_url) == []


async def test_triggers_fire_for_replicas_too(postgres_url: str) -> None:
    """Nor can a session that replays changes get round what guards the ledger."""
    await upgrade(postgres_url)
    enabled = "SELECT CAST(tgenabled AS text) FROM pg_trigger WHERE tgname = 'usage_ledger_append_only'"
    assert await rows(postgres_url, enabled) == [("A",)]
