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
    glance = tables.glance_tables()
    there = sa.inspect(connection).get_table_names()
    for table in glance.sorted_tables:
        if table.name not in there:
            # One by one, in an order: SQLite chooses the last of two indexes that it takes for equally good.
            indexes = sorted(table.indexes, key=lambda index: str(index.name))
            table.indexes.clear()
            table.create(connection)
            for index in indexes:
                index.create(connection)
    if connection.execute(sa.select(tables.alembic_version)).first() is None:
        connection.execute(sa.insert(tables.alembic_version).values(version_num=tables.GLANCE_HEAD))
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
