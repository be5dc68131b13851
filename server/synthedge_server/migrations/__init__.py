"""What changes a database's tables from one version to the next: one Alembic revision a version, named by its number.

A revision never imports `store`: that tells of the newest tables, a revision of those of its own time. SQLite changes
little of a table in place: use ``op.batch_alter_table`` there.
"""
