"""An index for the transfers a site asked for: every request counts those that are under way."""

from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    """Add the index."""
    op.create_index("transfers_by_recipient", "transfers", ["recipient", "state"])
