"""Rounds of discovery, what came of each site, and the keys of sites' Flower SuperNodes."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "rounds",
        sa.Column("round_id", sa.LargeBinary, primary_key=True),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("dictionary_digest", sa.LargeBinary, nullable=False),
        sa.Column("opened_at_ms", sa.BigInteger, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "round_answers",
        sa.Column("round_id", sa.LargeBinary, sa.ForeignKey("rounds.round_id"), primary_key=True),
        sa.Column("site", sa.Text, sa.ForeignKey("sites.site"), primary_key=True),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("answered_at_ms", sa.BigInteger),
    )
    op.create_table(
        "flower_nodes",
        sa.Column("site", sa.Text, sa.ForeignKey("sites.site"), primary_key=True),
        sa.Column("public_key", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("statement", sa.LargeBinary, nullable=False),
        sa.Column("announced_at_ms", sa.BigInteger, nullable=False),
    )
