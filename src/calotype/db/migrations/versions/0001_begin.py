"""Glance's schema where there is none yet, and our first tables beside it.

The Glance half is frozen at `2024_1_contract01`, so it is created from the metadata; ours is written out,
because the metadata will move on.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from calotype.db import tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    connection = op.get_bind()
    inspector = sa.inspect(connection)
    there = set(inspector.get_table_names())
    if not _is_glances(connection, there):
        for table in tables.glance_tables().sorted_tables:
            # Indexes one by one: in an order, because SQLite chooses the last of two that it takes for equally good;
            # and those that are not there, because MariaDB commits each step and one before us may have broken off.
            known = {index["name"] for index in inspector.get_indexes(table.name)} if table.name in there else set()
            indexes = sorted(table.indexes, key=lambda index: str(index.name))
            table.indexes.clear()
            table.create(connection, checkfirst=True)
            for index in indexes:
                if index.name not in known:
                    index.create(connection)
        connection.execute(sa.insert(tables.alembic_version).values(version_num=tables.GLANCE_HEAD))
    for name in there & {"calotype_tombstones", "calotype_jobs"}:
        op.drop_table(name)  # empty, or filled below: this migration was not finished
    op.create_table(
        "calotype_tombstones",
        sa.Column("image_id", sa.String(36), primary_key=True),
        sa.Column("deleted_at", _MOMENT, nullable=False),
    )
    op.create_table(
        "calotype_jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(30), nullable=False),
        sa.Column("image_id", sa.String(36), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("due_at", _MOMENT, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("created_at", _MOMENT, nullable=False),
    )
    op.create_index("calotype_jobs_due", "calotype_jobs", ["due_at"])
    op.create_index("calotype_jobs_image", "calotype_jobs", ["image_id"])
    op.create_index("calotype_jobs_owner", "calotype_jobs", ["owner"])
    # Rows that Glance deleted before we came: their ids are spent as well. So are the lower-case forms of living
    # ids with capitals, which Glance took for other ids.
    connection.execute(
        sa.insert(tables.tombstones).from_select(
            ["image_id", "deleted_at"],
            sa.select(
                sa.func.lower(tables.images.c.id),
                sa.func.min(sa.func.coalesce(tables.images.c.deleted_at, tables.images.c.created_at)),
            )
            .where((tables.images.c.deleted == sa.true()) | (tables.images.c.id != sa.func.lower(tables.images.c.id)))
            .group_by(sa.func.lower(tables.images.c.id)),
        )
    )


def _is_glances(connection: sa.Connection, there: set[str]) -> bool:
    """Whether Glance made its tables, or we did so to the end; not what a beginning of ours left."""
    if "alembic_version" not in there:
        return False
    return connection.execute(sa.select(tables.alembic_version)).first() is not None
