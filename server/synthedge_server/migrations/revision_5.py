"""Challenges of the comparison of both ends' records: another process may answer the second question."""

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "challenges",
        sa.Column("site", sa.Text, sa.ForeignKey("sites.site"), primary_key=True),
        sa.Column("challenge", sa.LargeBinary, nullable=False),
    )
