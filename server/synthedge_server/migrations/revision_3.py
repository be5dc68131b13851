"""Whether sites are to be told what follows from new reports."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Add the table; whoever reported before was told at once."""
    op.create_table(
        "tellings",
        sa.Column("dictionary_digest", sa.LargeBinary, primary_key=True),
        sa.Column("n_reported", sa.BigInteger, nullable=False),
        sa.Column("n_told", sa.BigInteger, nullable=False),
    )
