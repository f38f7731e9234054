"""What running work will add to a project's usage, a row to lock for each project, and events that wait to be sent.

Each step looks first: MariaDB takes nothing back of a migration that breaks off.
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_BIGINT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    options = inspector.get_table_options("images")
    alike = {name: value for name, value in options.items() if name.endswith("_collate")}
    columns = {column["name"] for column in inspector.get_columns("calotype_jobs")}
    for column in (sa.Column("project", sa.String(255)), sa.Column("reserved", _BIGINT)):
        if column.name not in columns:
            op.add_column("calotype_jobs", column)
    if "calotype_jobs_project" not in {index["name"] for index in inspector.get_indexes("calotype_jobs")}:
        op.create_index("calotype_jobs_project", "calotype_jobs", ["project"])
    op.create_table(
        "calotype_projects",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("turn", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **alike,
    )
    op.create_table(
        "calotype_outbox",
        sa.Column("id", _BIGINT, primary_key=True),
        sa.Column("event_type", sa.String(64), nullable=False),
        sa.Column("priority", sa.String(10), nullable=False),
        sa.Column("message_id", sa.String(36), nullable=False),
        sa.Column("payload", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        if_not_exists=True,
        **alike,  # payloads hold names and properties of images
    )
    op.create_table(
        "calotype_locks",
        sa.Column("name", sa.String(30), primary_key=True),
        sa.Column("owner", sa.String(255)),
        sa.Column("until", _MOMENT, nullable=False),
        if_not_exists=True,
        **alike,
    )
    lock = sa.table("calotype_locks", sa.column("name", sa.String), sa.column("until", _MOMENT))
    if op.get_bind().execute(sa.select(lock.c.name).where(lock.c.name == "events")).first() is None:
        op.bulk_insert(lock, [{"name": "events", "until": datetime(1970, 1, 1)}])  # noqa: DTZ001  # as all of ours
