"""What alembic runs: our revisions on the connection that `db/schema.py` hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table="calotype_version")
with context.begin_transaction():
    context.run_migrations()
