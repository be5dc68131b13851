"""The tables as they were released first: every database was made with these or later ones."""

revision = "1"
down_revision = None
