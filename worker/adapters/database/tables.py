"""The tables. Columns that others rely on are those of the contract; the rest is the program's own.

Bodies (`requests`, `results`, `checkpoints`) live apart from the rows that
account for them, so that they can be erased earlier.
"""

from typing import Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

from worker.adapters.database.types import DOCUMENT, INTEGER, ForeignText, UtcDateTime

REVISION: Final = "0001"
"""The newest revision of the schema, which this program needs."""

# Conditions of partial indexes. A query uses such an index only where it spells the
# condition in the same way, with no parameter in it.
WAITING: Final = text("status = 'waiting'")
RUNNING: Final = text("status = 'running'")
OWED: Final = text("reply_status = 'pending'")
BOOKING: Final = text("entry <> 'correction'")
CORRECTION: Final = text("entry = 'correction'")

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _erased_with_job() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant", "job_id"], ["jobs.tenant", "jobs.job_id"], ondelete="CASCADE")


def _key() -> tuple[Column[str], Column[str]]:
    return Column("tenant", Text, primary_key=True), Column("job_id", Text, primary_key=True)


def _count(name: str) -> Column[int]:
    return Column(name, INTEGER, nullable=False, server_default="0")


jobs: Final = Table(
    "jobs",
    metadata,
    *_key(),
    # A cancel request may arrive before its job: then kind, lane, model and fingerprint are still unknown.
    Column("kind", Text),
    Column("lane", Text),
    Column("model", ForeignText),
    Column("status", Text, nullable=False),
    _count("attempts"),
    Column("labels", DOCUMENT, nullable=False),
    Column("reply_status", Text, nullable=False, server_default="none"),
    Column("received_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("error_code", ForeignText),
    Column("fingerprint", LargeBinary),
    Column("lease_owner", Text),
    Column("lease_token", INTEGER),
    _count("takeovers"),
    _count("step_attempts"),
    Column("next_attempt_at", UtcDateTime),
    Column("waiting_for", ForeignText),
    Column("cancel_requested_at", UtcDateTime),
    Column("reply_to", ForeignText),
    Column("correlation_id", ForeignText),
    Column("reply_id", Text),
    Column("reply_due_at", UtcDateTime),
    _count("reply_tries"),
    CheckConstraint(
        "status IN ('waiting', 'running', 'succeeded', 'failed', 'cancelled', 'expired')", name="status"
    ),
    CheckConstraint("reply_status IN ('none', 'pending', 'sent', 'undeliverable')", name="reply_status"),
    Index(None, "received_at"),
)
Index(
    "ix_jobs_waiting",
    jobs.c.next_attempt_at,
    sqlite_where=WAITING,
    postgresql_where=WAITING,
)
Index(
    "ix_jobs_running",
    jobs.c.lease_owner,
    sqlite_where=RUNNING,
    postgresql_where=RUNNING,
)
Index(
    "ix_jobs_owed",
    jobs.c.reply_due_at,
    sqlite_where=OWED,
    postgresql_where=OWED,
)

requests: Final = Table(
    "requests",
    metadata,
    *_key(),
    Column("body", LargeBinary, nullable=False),
    _erased_with_job(),
)

results: Final = Table(
    "results",
    metadata,
    *_key(),
    Column("body", LargeBinary, nullable=False),
    _erased_with_job(),
)

checkpoints: Final = Table(
    "checkpoints",
    metadata,
    *_key(),
    Column("state", LargeBinary, nullable=False),
    _erased_with_job(),
)

attempts: Final = Table(
    "attempts",
    metadata,
    *_key(),
    Column("attempt_no", INTEGER, primary_key=True),
    Column("state", Text, nullable=False),
    Column("http_status", INTEGER),
    Column("error_code", ForeignText),
    Column("openai_request_id", ForeignText),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("model", ForeignText, nullable=False),
    Column("service_tier", ForeignText),
    Column("account", Text, nullable=False),
    Column("organization", ForeignText),
    Column("project", ForeignText),
    Column("worker_id", Text, nullable=False),
    Column("lease_token", INTEGER, nullable=False),
    Column("reserved_usage", DOCUMENT, nullable=False),
    Column("reserved_cost_nano_usd", INTEGER),
    Column("reserved_prices", DOCUMENT),
    CheckConstraint(
        "state IN ('in_flight', 'succeeded', 'rejected', 'failed', 'unknown')",
        name="state",
    ),
    ForeignKeyConstraint(["tenant", "job_id"], ["jobs.tenant", "jobs.job_id"]),
)

usage_ledger: Final = Table(
    "usage_ledger",
    metadata,
    Column("id", INTEGER, Identity(), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("attempt_no", INTEGER, nullable=False),
    Column("entry", Text, nullable=False),
    Column("model", ForeignText, nullable=False),
    Column("service_tier", ForeignText),
    _count("input_tokens"),
    _count("cached_input_tokens"),
    _count("cache_write_tokens"),
    _count("output_tokens"),
    _count("reasoning_tokens"),
    Column("meters", DOCUMENT),
    Column("cost_nano_usd", INTEGER, comment="10^-9 US dollars; null = unpriced"),
    Column("prices", DOCUMENT),
    Column("labels", DOCUMENT, nullable=False),
    Column("organization", ForeignText),
    Column("project", ForeignText),
    Column("occurred_at", UtcDateTime, nullable=False),
    Column("kind", Text),
    Column("account", Text, nullable=False),
    # Signed counts, so that every report is a plain sum over any set of rows:
    # a correction takes back what the row that it corrects had counted.
    Column("requests", INTEGER, nullable=False),
    Column("unpriced_requests", INTEGER, nullable=False),
    Column("estimated_requests", INTEGER, nullable=False),
    Column("estimated_cost_nano_usd", INTEGER, nullable=False),
    CheckConstraint("entry IN ('measured', 'estimated', 'correction')", name="entry"),
    Index(None, "occurred_at"),
    Index(None, "tenant", "occurred_at"),
)
Index(
    "uq_usage_ledger_attempt",
    usage_ledger.c.tenant,
    usage_ledger.c.job_id,
    usage_ledger.c.attempt_no,
    unique=True,
    sqlite_where=BOOKING,
    postgresql_where=BOOKING,
)
Index(
    "ix_usage_ledger_correction",
    usage_ledger.c.tenant,
    usage_ledger.c.job_id,
    sqlite_where=CORRECTION,
    postgresql_where=CORRECTION,
)

workers: Final = Table(
    "workers",
    metadata,
    Column("worker_id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", INTEGER, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("alive_until", UtcDateTime, nullable=False),
)
