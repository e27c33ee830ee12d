"""Tables, triggers, views, and the revisions that make them."""

import asyncio
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from tests.support.databases import (
    a_claim,
    a_finish,
    a_job,
    a_ledger_entry,
    a_record,
    a_token,
    execute,
    rows,
)
from worker.adapters.database import setup
from worker.adapters.database.opening import Database
from worker.adapters.database.setup import check, downgrade, upgrade
from worker.adapters.database.tables import REVISION, metadata
from worker.domain.attempt import Entry

ROOT = Path(__file__).parents[2]

SUMS = (
    "requests, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,"
    " cost_nano_usd, unpriced_requests"
)
CONTRACT = {
    "jobs": "tenant, job_id, kind, lane, model, status, attempts, labels, reply_status,"
    " received_at, finished_at",
    "attempts": "tenant, job_id, attempt_no, state, http_status, error_code, openai_request_id,"
    " started_at, finished_at",
    "usage_ledger": "tenant, job_id, attempt_no, entry, model, service_tier, input_tokens,"
    " cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_nano_usd, prices,"
    " labels, organization, project, occurred_at",
    "usage_daily": f"day, tenant, model, {SUMS}",
    "usage_monthly": f"month, tenant, {SUMS}",
}


class TestRevisions:
    """From nothing to the newest tables and back."""

    async def test_upgrade_makes_the_tables_that_the_program_expects(self, database_url: str) -> None:
        """After an upgrade nothing differs; a second one changes nothing."""
        await upgrade(database_url)
        await upgrade(database_url)
        assert await check(database_url) == []
        assert await rows(database_url, "SELECT version_num FROM alembic_version") == [(REVISION,)]

    async def test_downgrade_leaves_nothing_behind(self, database_url: str) -> None:
        """Every revision can be taken back, and applied again."""
        await upgrade(database_url)
        await downgrade(database_url, "base")
        assert await check(database_url) == [f"the tables are at revision none, the newest is {REVISION}"]
        for table in metadata.tables:
            with pytest.raises(DBAPIError):
                await rows(database_url, f"SELECT 1 FROM {table}")  # noqa: S608 names from the program
        await upgrade(database_url)
        assert await check(database_url) == []

    async def test_check_names_what_differs(self, migrated_url: str) -> None:
        """A table changed by hand is found out."""
        await execute(migrated_url, "ALTER TABLE jobs ADD COLUMN favourite TEXT")
        await execute(migrated_url, "DROP INDEX ix_jobs_owed")
        assert sorted(await check(migrated_url)) == [
            "add_index: ix_jobs_owed",
            "remove_column: jobs favourite",
        ]

    async def test_many_may_upgrade_at_once(self, database_url: str) -> None:
        """Workers that start together on an empty database do not get in each other's way."""
        code = "import asyncio, sys; from worker.adapters.database.setup import upgrade;"
        code += " asyncio.run(upgrade(sys.argv[1]))"
        started = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, database_url, cwd=ROOT, stderr=subprocess.PIPE
            )
            for _ in range(4)
        ]
        outputs = await asyncio.gather(*(process.communicate() for process in started))
        assert [process.returncode for process in started] == [0] * 4, outputs
        assert await check(database_url) == []

    async def test_only_one_upgrades_at_a_time(self, postgres_url: str) -> None:
        """On a server, where tables do not lock each other, an upgrade waits for the one that runs."""
        other = await asyncpg.connect(postgres_url)
        await other.execute("SELECT pg_advisory_lock($1)", setup._LOCK)
        upgrading = asyncio.ensure_future(upgrade(postgres_url))
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"
        async with asyncio.timeout(20):
            while not await other.fetchval(waiting):  # noqa: ASYNC110 polls the server
                await asyncio.sleep(0.01)
        assert not upgrading.done()
        await other.close()
        await upgrading
        assert await check(postgres_url) == []

    async def test_path_with_a_percent_sign(self, tmp_path: Path) -> None:
        """A folder's name is not read as a template."""
        folder = tmp_path / "50% off"
        folder.mkdir()
        url = f"sqlite:///{folder / 'worker.db'}"
        await upgrade(url)
        assert await check(url) == []


@pytest.mark.parametrize("name", CONTRACT)
async def test_columns_that_others_read_are_there(name: str, migrated_url: str) -> None:
    """Tables and views have the columns of the contract by their names."""
    await rows(migrated_url, f"SELECT {CONTRACT[name]} FROM {name}")  # noqa: S608 names from above


async def finished(database: Database, job_id: str, **entry: object) -> None:
    """Finish a job with one ledger row."""
    job, token = a_job(job_id), a_token()
    await database.store.claim(a_claim(job, token))
    record = a_record(job.key, ledger=a_ledger_entry(**entry))
    assert await database.store.finish(a_finish(job, token, record=record))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE usage_ledger SET cost_nano_usd = 0",
        "UPDATE usage_ledger SET labels = labels WHERE attempt_no = 1",
        "DELETE FROM usage_ledger",
    ],
)
async def test_ledger_is_append_only(change: str, database: Database, migrated_url: str) -> None:
    """The database itself refuses to change or delete what was booked."""
    await finished(database, "job")
    with pytest.raises(DBAPIError, match="append-only"):
        await execute(migrated_url, change)
    assert await rows(migrated_url, "SELECT cost_nano_usd FROM usage_ledger") == [(120_000,)]


async def test_ledger_cannot_be_truncated(postgres_url: str) -> None:
    """Nor emptied at one go."""
    await upgrade(postgres_url)
    with pytest.raises(DBAPIError, match="append-only"):
        await execute(postgres_url, "TRUNCATE usage_ledger")


async def test_ledger_rows_cannot_be_replaced(sqlite_url: str) -> None:
    """Nor overwritten by SQLite's INSERT OR REPLACE."""
    await upgrade(sqlite_url)
    insert = (
        "INTO usage_ledger (id, tenant, job_id, received_at, attempt_no, entry, model, labels, occurred_at,"
        " account, requests, unpriced_requests, estimated_requests, estimated_cost_nano_usd)"
        " VALUES (1, 't', 'j', '2026-11-22 11:59:59', 1, 'measured', 'm', '{}', '2026-11-22 12:00:00',"
        " 'main', 1, 0, 0, 0)"
    )
    await execute(sqlite_url, f"INSERT {insert}")
    with pytest.raises(DBAPIError, match="append-only"):
        await execute(sqlite_url, f"INSERT OR REPLACE {insert}")


async def test_an_attempt_has_one_row_besides_corrections(migrated_url: str, database: Database) -> None:
    """A second measured or estimated row of an attempt is refused by the database; corrections are not."""
    await finished(database, "job")
    copy = (
        "INSERT INTO usage_ledger (tenant, job_id, received_at, attempt_no, entry, model, labels,"
        " occurred_at, account, requests, unpriced_requests, estimated_requests, estimated_cost_nano_usd,"
        " booking)"
        " SELECT tenant, job_id, {received}, attempt_no, '{entry}', model, labels, occurred_at, account,"
        " requests, unpriced_requests, estimated_requests, estimated_cost_nano_usd, {booking}"
        " FROM usage_ledger WHERE entry = 'measured'"
    )
    for entry, booking, received in (
        ("measured", "1", "received_at"),
        ("estimated", "1", "received_at"),
        ("measured", "NULL", "received_at"),
        ("correction", "1", "received_at"),
        ("measured", "1", "NULL"),
        ("correction", "NULL", "NULL"),
    ):
        with pytest.raises(DBAPIError):
            await execute(migrated_url, copy.format(entry=entry, booking=booking, received=received))
    for _ in range(2):
        await execute(migrated_url, copy.format(entry="correction", booking="NULL", received="received_at"))
    assert await rows(migrated_url, "SELECT count(*) FROM usage_ledger") == [(3,)]


async def test_views_sum_by_utc_day_and_month(database: Database, migrated_url: str) -> None:
    """The day and the month are those of UTC; unpriced and estimated requests are told apart."""
    at = a_ledger_entry().occurred_at.replace
    await finished(database, "one", occurred_at=at(hour=0, minute=0))
    await finished(database, "two", occurred_at=at(hour=23, minute=59), cost_nano_usd=None, prices=None)
    await finished(database, "three", occurred_at=at(month=12), entry=Entry.ESTIMATED)
    daily = await rows(
        migrated_url,
        "SELECT CAST(day AS TEXT), tenant, model, requests, input_tokens, cost_nano_usd, unpriced_requests,"
        " estimated_requests, estimated_cost_nano_usd FROM usage_daily ORDER BY day",
    )
    assert daily == [
        ("2026-11-22", "acme", "gpt-6-luna", 2, 160, 120_000, 1, 0, 0),
        ("2026-12-22", "acme", "gpt-6-luna", 1, 80, 120_000, 0, 1, 120_000),
    ]
    monthly = await rows(
        migrated_url,
        "SELECT month, tenant, requests, output_tokens, cost_nano_usd FROM usage_monthly ORDER BY 1",
    )
    assert monthly == [("2026-11", "acme", 2, 40, 120_000), ("2026-12", "acme", 1, 20, 120_000)]


async def test_sums_stay_exact(database: Database, migrated_url: str) -> None:
    """Money and tokens are whole numbers of 64 bits, also in sums."""
    most = 2**62 - 1
    await finished(database, "one", cost_nano_usd=most)
    await finished(database, "two", cost_nano_usd=most)
    assert await rows(migrated_url, "SELECT cost_nano_usd FROM usage_daily") == [(2 * most,)]
