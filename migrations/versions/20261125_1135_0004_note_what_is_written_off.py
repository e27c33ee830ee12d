"""Note what is written off while its claim stays: an outcome that comes after that is late."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INTEGER: Any = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("written_off", INTEGER, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("jobs", "written_off")
