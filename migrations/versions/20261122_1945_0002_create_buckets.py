"""Create buckets."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INTEGER: Any = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "buckets",
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False, comment="model, or glob of models"),
        *meter("requests"),
        *meter("tokens"),
        number("updated_at"),
        number("closed_until"),
        sa.Column("closed_for", sa.Text, nullable=False, server_default=""),
        number("gentle_until"),
        number("gentle_seconds"),
        count("closings"),
        count("paused"),
        sa.PrimaryKeyConstraint("account", "name", name="pk_buckets"),
    )
    op.create_table(
        "bucket_users",
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        count("waiting"),
        count("running"),
        number("reserved"),
        number("seen_at"),
        sa.PrimaryKeyConstraint("worker_id", "account", "name", name="pk_bucket_users"),
    )
    op.create_table(
        "account_gates",
        sa.Column("account", sa.Text, nullable=False),
        number("closed_until"),
        sa.Column("closed_for", sa.Text, nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("account", name="pk_account_gates"),
    )
    op.create_table(
        "model_samples",
        sa.Column("model", sa.Text, nullable=False),
        *(number(name) for name in SAMPLE),
        sa.PrimaryKeyConstraint("model", name="pk_model_samples"),
    )


def downgrade() -> None:
    for table in ("model_samples", "account_gates", "bucket_users", "buckets"):
        op.drop_table(table)


SAMPLE = ("requests", "estimated_input", "used_input", "open_requests", "open_output")


def meter(name: str) -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column(f"{name}_limit", sa.Double),
        sa.Column(f"{name}_told", sa.Double, comment="the limit that OpenAI named"),
        sa.Column(
            f"{name}_gap", sa.Double, comment="OpenAI's count of what remains, less ours without any drift"
        ),
        number(f"{name}_level"),
        number(f"{name}_drift"),
    )


def number(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False, server_default="0")


def count(name: str) -> sa.Column[int]:
    return sa.Column(name, INTEGER, nullable=False, server_default="0")
