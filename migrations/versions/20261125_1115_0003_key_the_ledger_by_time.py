"""Key the ledger by time: its rows go to the end of the index, whatever the ids of jobs are.

Rows take the time from their job; without one, which only a damaged database has, from themselves.
SQLite copies the table, PostgreSQL writes each row again: both need that much room on the disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLE, INDEX = "usage_ledger", "uq_usage_ledger_attempt"
OLD = ["job_id", "tenant", "attempt_no", "booking"]
TIME = sa.DateTime(timezone=True)
FILL = """
    UPDATE usage_ledger SET received_at = coalesce(
        (SELECT jobs.received_at FROM jobs
          WHERE jobs.job_id = usage_ledger.job_id AND jobs.tenant = usage_ledger.tenant),
        occurred_at)
"""


def upgrade() -> None:
    with unguarded():
        op.drop_index(INDEX, TABLE)
        op.add_column(TABLE, sa.Column("received_at", TIME))
        op.execute(FILL)
        with op.batch_alter_table(TABLE) as table:
            table.alter_column("received_at", nullable=False)
        op.create_index(INDEX, TABLE, ["received_at", *OLD], unique=True)


def downgrade() -> None:
    with unguarded():
        op.drop_index(INDEX, TABLE)
        op.drop_column(TABLE, "received_at")
        op.create_index(INDEX, TABLE, OLD, unique=True)


@contextmanager
def unguarded() -> Iterator[None]:
    """Lift what forbids changes to the ledger; on SQLite also the views, which stand in the way of a copy."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        op.execute("ALTER TABLE usage_ledger DISABLE TRIGGER usage_ledger_append_only")
        yield
        op.execute("ALTER TABLE usage_ledger ENABLE ALWAYS TRIGGER usage_ledger_append_only")
        return
    found = sa.text(
        "SELECT type, name, sql FROM sqlite_master"
        " WHERE type = 'view' OR (type = 'trigger' AND tbl_name = 'usage_ledger')"
    )
    lifted = connection.execute(found).all()
    for kind, name, _ in lifted:
        op.execute(f"DROP {kind} {name}")
    yield
    for *_, statement in lifted:
        op.execute(sa.text(statement.replace(":", "\\:")))
