"""The tables. Columns that others rely on are those of the contract; the rest is the program's own.

Bodies (`requests`, `results`, `checkpoints`) live apart from the rows that
account for them, so that they can be erased earlier.
"""

from typing import Any, Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Date,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)

from worker.adapters.database.types import DOCUMENT, INTEGER, ForeignText, UtcDateTime

REVISION: Final = "0004"
"""The newest revision of the schema, which this program needs."""

# Conditions of partial indexes. A query uses such an index only where it spells the
# condition in the same way, with no parameter in it.
WAITING: Final = text("status = 'waiting'")
RUNNING: Final = text("status = 'running'")
OWED: Final = text("reply_status = 'pending'")

TOKENS: Final = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)
"""Columns of the ledger that count tokens."""

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
    """Return the key of a job, in this order for the sake of inserts.

    Ids that count up, or begin with the time, then go to the last page of an index, whoever
    the tenants are; with the tenant first, each of them would have a last page of its own.
    """
    return Column("job_id", Text, primary_key=True), Column("tenant", Text, primary_key=True)


def _one_of(name: str, *values: str) -> CheckConstraint:
    """Return the check of a column that has one of these values.

    Not as `IN (...)`: for that, SQLite builds a table of them anew for every row that it checks.
    """
    return CheckConstraint(" OR ".join(f"{name} = '{value}'" for value in values), name=name)


def _count(name: str) -> Column[int]:
    return Column(name, INTEGER, nullable=False, server_default="0")


def _number(name: str) -> Column[float]:
    return Column(name, Double, nullable=False, server_default="0")


def _meter(name: str) -> tuple[Column[Any], ...]:
    """Return the columns of one bucket; limits in units a minute."""
    return (
        Column(f"{name}_limit", Double),
        Column(f"{name}_told", Double, comment="the limit that OpenAI named"),
        Column(f"{name}_gap", Double, comment="OpenAI's count of what remains, less ours without any drift"),
        _number(f"{name}_level"),
        _number(f"{name}_drift"),
    )


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
    _count("worked_ms"),
    _count("step_attempts"),
    # Attempts up to this number were written off while their claim stayed.
    _count("written_off"),
    Column("next_attempt_at", UtcDateTime),
    Column("waiting_for", ForeignText),
    Column("cancel_requested_at", UtcDateTime),
    Column("reply_to", ForeignText),
    Column("correlation_id", ForeignText),
    Column("reply_id", Text),
    Column("reply_due_at", UtcDateTime),
    _count("reply_tries"),
    _one_of("status", "waiting", "running", "succeeded", "failed", "cancelled", "expired"),
    _one_of("reply_status", "none", "pending", "sent", "undeliverable"),
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
    _one_of("state", "in_flight", "succeeded", "rejected", "failed", "unknown"),
    ForeignKeyConstraint(["tenant", "job_id"], ["jobs.tenant", "jobs.job_id"]),
)

usage_ledger: Final = Table(
    "usage_ledger",
    metadata,
    Column("id", INTEGER, Identity(), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    # When the job was received first. It is the job's, so that it leads to the rows of an attempt as
    # the job's key does, and it grows, so that they go to the end of the index whatever the key is.
    Column("received_at", UtcDateTime, nullable=False),
    Column("attempt_no", INTEGER, nullable=False),
    Column("entry", Text, nullable=False),
    Column("model", ForeignText, nullable=False),
    Column("service_tier", ForeignText),
    *(_count(name) for name in TOKENS),
    Column("meters", DOCUMENT),
    Column("cost_nano_usd", INTEGER, comment="10^-9 US dollars; null = unpriced"),
    Column("prices", DOCUMENT),
    Column("labels", DOCUMENT, nullable=False),
    Column("organization", ForeignText),
    Column("project", ForeignText),
    Column("occurred_at", UtcDateTime, nullable=False),
    # A correction stands in the period of what it corrects; this tells when it came.
    Column("booked_at", UtcDateTime, nullable=False, server_default=func.current_timestamp()),
    Column("kind", Text),
    Column("account", Text, nullable=False),
    # Signed counts, so that every report is a plain sum over any set of rows:
    # a correction takes back what the row that it corrects had counted.
    Column("requests", INTEGER, nullable=False),
    Column("unpriced_requests", INTEGER, nullable=False),
    Column("estimated_requests", INTEGER, nullable=False),
    Column("estimated_cost_nano_usd", INTEGER, nullable=False),
    # Null in corrections, of which there may be any number: nulls differ from each other.
    Column("booking", SmallInteger, server_default="1"),
    _one_of("entry", "measured", "estimated", "correction"),
    CheckConstraint("(entry = 'correction') = (booking IS NULL)", name="booking"),
    # What grows comes first: a row costs the same however many there are.
    Index(None, "occurred_at", "tenant"),
    Index(
        "uq_usage_ledger_attempt",
        "received_at",
        "job_id",
        "tenant",
        "attempt_no",
        "booking",
        unique=True,
    ),
)

SUMMED: Final = (
    "requests",
    *TOKENS,
    "cost_nano_usd",
    "unpriced_requests",
    "estimated_requests",
    "estimated_cost_nano_usd",
)
"""Columns of the ledger that reports sum up."""

SUMMARY_GROUPS: Final = ("tenant", "model", "kind", "account", "organization", "project")

usage_summary: Final = Table(
    "usage_summary",
    metadata,
    Column("day", Date, primary_key=True),
    # Text, not null: what is null in the ledger is empty here.
    *(Column(name, ForeignText, primary_key=True) for name in SUMMARY_GROUPS),
    *(Column(name, INTEGER, nullable=False) for name in SUMMED),
    Index(None, "tenant", "day"),
)

usage_summary_mark: Final = Table(
    "usage_summary_mark",
    metadata,
    Column("id", INTEGER, primary_key=True, autoincrement=False),
    # The ledger up to here is in the summary.
    Column("ledger_id", INTEGER, nullable=False),
    # Up to here it will be, once all transactions before that one have ended.
    Column("next_ledger_id", INTEGER),
    Column("next_transaction", Text),
    CheckConstraint("id = 1", name="only"),
)

budget_months: Final = Table(
    "budget_months",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("month", Text, primary_key=True),
    Column("spent_nano_usd", INTEGER, nullable=False),
    Column("warned_at", UtcDateTime),
)

budget_holds: Final = Table(
    "budget_holds",
    metadata,
    # Few rows, which are summed up by tenant.
    Column("tenant", Text, primary_key=True),
    Column("job_id", Text, primary_key=True),
    Column("attempt_no", INTEGER, primary_key=True),
    Column("month", Text, nullable=False),
    Column("nano_usd", INTEGER, nullable=False),
    # A hold lives as long as its worker; then it is written off with its attempt.
    Column("worker_id", Text, nullable=False),
    Column("taken_at", UtcDateTime, nullable=False),
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

# Times of the limits are seconds since the epoch on the database's clock: they are computed with.
buckets: Final = Table(
    "buckets",
    metadata,
    Column("account", Text, primary_key=True),
    Column("name", Text, primary_key=True, comment="model, or glob of models"),
    *_meter("requests"),
    *_meter("tokens"),
    _number("updated_at"),
    _number("closed_until"),
    Column("closed_for", ForeignText, nullable=False, server_default=""),
    _number("gentle_until"),
    _number("gentle_seconds"),
    _count("closings"),
    Column("paused", INTEGER, nullable=False, server_default="0"),
)

bucket_users: Final = Table(
    "bucket_users",
    metadata,
    Column("worker_id", Text, primary_key=True),
    Column("account", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    _count("waiting"),
    _count("running"),
    _number("reserved"),
    _number("seen_at"),
)

account_gates: Final = Table(
    "account_gates",
    metadata,
    Column("account", Text, primary_key=True),
    _number("closed_until"),
    Column("closed_for", ForeignText, nullable=False, server_default=""),
)

model_samples: Final = Table(
    "model_samples",
    metadata,
    Column("model", ForeignText, primary_key=True),
    _number("requests"),
    _number("estimated_input"),
    _number("used_input"),
    _number("open_requests"),
    _number("open_output"),
)
