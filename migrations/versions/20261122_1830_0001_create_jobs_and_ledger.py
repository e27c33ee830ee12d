"""Create jobs and ledger."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INTEGER: Any = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DOCUMENT: Any = sa.JSON().with_variant(JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)

TOKENS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)
SUMS = (
    "requests",
    *TOKENS,
    "cost_nano_usd",
    "unpriced_requests",
    "estimated_requests",
    "estimated_cost_nano_usd",
)
GROUPS = ("tenant", "model", "kind", "account", "organization", "project")
DAY = {"sqlite": "date(occurred_at)", "postgresql": "CAST(occurred_at AT TIME ZONE 'UTC' AS date)"}
MONTH = {"sqlite": "strftime('%Y-%m', day)", "postgresql": "to_char(day, 'YYYY-MM')"}
APPEND_ONLY = {
    "sqlite": [
        f"""
        CREATE TRIGGER usage_ledger_no_{event} BEFORE {event} ON usage_ledger
        BEGIN SELECT RAISE(ABORT, 'usage_ledger is append-only'); END
        """
        for event in ("update", "delete")
    ],
    "postgresql": [
        """
        CREATE FUNCTION usage_ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          RAISE EXCEPTION 'usage_ledger is append-only' USING ERRCODE = 'restrict_violation';
        END $$
        """,
        """
        CREATE TRIGGER usage_ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_ledger
        FOR EACH STATEMENT EXECUTE FUNCTION usage_ledger_append_only()
        """,
        "ALTER TABLE usage_ledger ENABLE ALWAYS TRIGGER usage_ledger_append_only",
    ],
}


def upgrade() -> None:
    create_jobs()
    create_bodies()
    create_attempts()
    create_ledger()
    create_summary()
    create_budgets()
    create_workers()
    dialect = op.get_bind().dialect.name
    for statement in APPEND_ONLY[dialect]:
        op.execute(statement)
    op.execute("INSERT INTO usage_summary_mark (id, ledger_id) VALUES (1, 0)")
    op.execute(view("usage_daily", "day, tenant, model", "1, 2, 3", dialect))
    op.execute(view("usage_monthly", f"{MONTH[dialect]} AS month, tenant", "1, 2", dialect))


def downgrade() -> None:
    op.execute("DROP VIEW usage_monthly")
    op.execute("DROP VIEW usage_daily")
    for table in (
        "workers",
        "budget_holds",
        "budget_months",
        "usage_summary_mark",
        "usage_summary",
        "usage_ledger",
        "attempts",
        "checkpoints",
        "results",
        "requests",
        "jobs",
    ):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION usage_ledger_append_only()")


def create_jobs() -> None:
    op.create_table(
        "jobs",
        *key(),
        sa.Column("kind", sa.Text),
        sa.Column("lane", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        count("attempts"),
        sa.Column("labels", DOCUMENT, nullable=False),
        sa.Column("reply_status", sa.Text, nullable=False, server_default="none"),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("error_code", sa.Text),
        sa.Column("fingerprint", sa.LargeBinary),
        sa.Column("lease_owner", sa.Text),
        sa.Column("lease_token", INTEGER),
        count("takeovers"),
        count("worked_ms"),
        count("step_attempts"),
        sa.Column("next_attempt_at", TIME),
        sa.Column("waiting_for", sa.Text),
        sa.Column("cancel_requested_at", TIME),
        sa.Column("reply_to", sa.Text),
        sa.Column("correlation_id", sa.Text),
        sa.Column("reply_id", sa.Text),
        sa.Column("reply_due_at", TIME),
        count("reply_tries"),
        sa.PrimaryKeyConstraint("job_id", "tenant", name="pk_jobs"),
        one_of("jobs", "status", "waiting", "running", "succeeded", "failed", "cancelled", "expired"),
        one_of("jobs", "reply_status", "none", "pending", "sent", "undeliverable"),
    )
    op.create_index("ix_jobs_received_at", "jobs", ["received_at"])
    partial_index("ix_jobs_waiting", "jobs", ["next_attempt_at"], "status = 'waiting'")
    partial_index("ix_jobs_running", "jobs", ["lease_owner"], "status = 'running'")
    partial_index("ix_jobs_owed", "jobs", ["reply_due_at"], "reply_status = 'pending'")


def create_bodies() -> None:
    for table, column in (("requests", "body"), ("results", "body"), ("checkpoints", "state")):
        op.create_table(
            table,
            *key(),
            sa.Column(column, sa.LargeBinary, nullable=False),
            sa.PrimaryKeyConstraint("job_id", "tenant", name=f"pk_{table}"),
            of_job(table),
        )


def create_attempts() -> None:
    op.create_table(
        "attempts",
        *key(),
        sa.Column("attempt_no", INTEGER, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("http_status", INTEGER),
        sa.Column("error_code", sa.Text),
        sa.Column("openai_request_id", sa.Text),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("service_tier", sa.Text),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("organization", sa.Text),
        sa.Column("project", sa.Text),
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("lease_token", INTEGER, nullable=False),
        sa.Column("reserved_usage", DOCUMENT, nullable=False),
        sa.Column("reserved_cost_nano_usd", INTEGER),
        sa.Column("reserved_prices", DOCUMENT),
        sa.PrimaryKeyConstraint("job_id", "tenant", "attempt_no", name="pk_attempts"),
        one_of("attempts", "state", "in_flight", "succeeded", "rejected", "failed", "unknown"),
        of_job("attempts", erased_with_it=False),
    )


def create_ledger() -> None:
    op.create_table(
        "usage_ledger",
        sa.Column("id", INTEGER, sa.Identity(), nullable=False),
        *key(),
        sa.Column("attempt_no", INTEGER, nullable=False),
        sa.Column("entry", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("service_tier", sa.Text),
        *(count(name) for name in TOKENS),
        sa.Column("meters", DOCUMENT),
        sa.Column("cost_nano_usd", INTEGER, comment="10^-9 US dollars; null = unpriced"),
        sa.Column("prices", DOCUMENT),
        sa.Column("labels", DOCUMENT, nullable=False),
        sa.Column("organization", sa.Text),
        sa.Column("project", sa.Text),
        sa.Column("occurred_at", TIME, nullable=False),
        sa.Column("booked_at", TIME, server_default=sa.func.current_timestamp(), nullable=False),
        sa.Column("kind", sa.Text),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("requests", INTEGER, nullable=False),
        sa.Column("unpriced_requests", INTEGER, nullable=False),
        sa.Column("estimated_requests", INTEGER, nullable=False),
        sa.Column("estimated_cost_nano_usd", INTEGER, nullable=False),
        sa.Column("booking", sa.SmallInteger, server_default="1"),
        sa.PrimaryKeyConstraint("id", name="pk_usage_ledger"),
        one_of("usage_ledger", "entry", "measured", "estimated", "correction"),
        sa.CheckConstraint(
            "(entry = 'correction') = (booking IS NULL)", name=op.f("ck_usage_ledger_booking")
        ),
    )
    op.create_index("ix_usage_ledger_occurred_at_tenant", "usage_ledger", ["occurred_at", "tenant"])
    op.create_index(
        "uq_usage_ledger_attempt",
        "usage_ledger",
        ["job_id", "tenant", "attempt_no", "booking"],
        unique=True,
    )


def create_summary() -> None:
    op.create_table(
        "usage_summary",
        sa.Column("day", sa.Date, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in GROUPS),
        *(sa.Column(name, INTEGER, nullable=False) for name in SUMS),
        sa.PrimaryKeyConstraint("day", *GROUPS, name="pk_usage_summary"),
    )
    op.create_index("ix_usage_summary_tenant_day", "usage_summary", ["tenant", "day"])
    op.create_table(
        "usage_summary_mark",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("ledger_id", INTEGER, nullable=False),
        sa.Column("next_ledger_id", INTEGER),
        sa.Column("next_transaction", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_usage_summary_mark"),
        sa.CheckConstraint("id = 1", name=op.f("ck_usage_summary_mark_only")),
    )


def create_budgets() -> None:
    op.create_table(
        "budget_months",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("spent_nano_usd", INTEGER, nullable=False),
        sa.Column("warned_at", TIME),
        sa.PrimaryKeyConstraint("tenant", "month", name="pk_budget_months"),
    )
    op.create_table(
        "budget_holds",
        *key(),
        sa.Column("attempt_no", INTEGER, nullable=False),
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("nano_usd", INTEGER, nullable=False),
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("taken_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "job_id", "attempt_no", name="pk_budget_holds"),
    )


def view(name: str, groups: str, by: str, dialect: str) -> str:
    """Sum up what is summed up already, and the rest of the ledger."""
    columns = ", ".join(SUMS)
    sums = ", ".join(f"CAST(coalesce(sum({column}), 0) AS BIGINT) AS {column}" for column in SUMS)
    return f"""
        CREATE VIEW {name} AS SELECT {groups}, {sums} FROM (
            SELECT day, tenant, model, {columns} FROM usage_summary
            UNION ALL
            SELECT {DAY[dialect]}, tenant, model, {columns} FROM usage_ledger
             WHERE id > (SELECT ledger_id FROM usage_summary_mark)
        ) AS parts GROUP BY {by}
    """  # noqa: S608 (names from above)


def create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", INTEGER, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("alive_until", TIME, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="pk_workers"),
    )


def key() -> tuple[sa.Column[str], sa.Column[str]]:
    return sa.Column("tenant", sa.Text, nullable=False), sa.Column("job_id", sa.Text, nullable=False)


def one_of(table: str, name: str, *values: str) -> sa.CheckConstraint:
    # For `IN (...)` SQLite would build a table of the values anew for every row.
    either = " OR ".join(f"{name} = '{value}'" for value in values)
    return sa.CheckConstraint(either, name=op.f(f"ck_{table}_{name}"))


def count(name: str) -> sa.Column[int]:
    return sa.Column(name, INTEGER, nullable=False, server_default="0")


def of_job(table: str, *, erased_with_it: bool = True) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant", "job_id"],
        ["jobs.tenant", "jobs.job_id"],
        name=f"fk_{table}_jobs",
        ondelete="CASCADE" if erased_with_it else None,
    )


def partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(
        name,
        table,
        columns,
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )
