"""Glance's schema where there is none yet, and our first tables beside it.

The Glance half is frozen at `2024_1_contract01`, so it is created from the metadata; ours is written out,
because the metadata will move on. What is there stays, whatever became of the note that it was made: a tombstone
that is lost gives an id away that is spent.
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
    # MariaDB compares no ids of two collations, and Glance does not take the one that is the database's own.
    options = sa.inspect(connection).get_table_options("images")
    alike = {name: value for name, value in options.items() if name.endswith("_collate")}
    op.create_table(
        "calotype_tombstones",
        sa.Column("image_id", sa.String(36), primary_key=True),
        sa.Column("deleted_at", _MOMENT, nullable=False),
        if_not_exists=True,
        **alike,
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
        if_not_exists=True,
        **alike,
    )
    known = {index["name"] for index in sa.inspect(connection).get_indexes("calotype_jobs")}
    for name, column in (("due", "due_at"), ("image", "image_id"), ("owner", "owner")):
        if f"calotype_jobs_{name}" not in known:
            op.create_index(f"calotype_jobs_{name}", "calotype_jobs", [column])
    # Rows that Glance deleted before we came: their ids are spent as well. So are the lower-case forms of living
    # ids with capitals, which Glance took for other ids.
    image = tables.images.c
    spent = sa.func.lower(image.id)
    connection.execute(
        sa.insert(tables.tombstones).from_select(
            ["image_id", "deleted_at"],
            sa.select(spent, sa.func.min(sa.func.coalesce(image.deleted_at, image.created_at)))
            .where((image.deleted == sa.true()) | (image.id != spent))
            .where(spent.not_in(sa.select(tables.tombstones.c.image_id)))
            .group_by(spent),
        )
    )


def _is_glances(connection: sa.Connection, there: set[str]) -> bool:
    """Whether Glance made its tables, or we did so to the end; not what a beginning of ours left."""
    if "alembic_version" not in there:
        return False
    return connection.execute(sa.select(tables.alembic_version)).first() is not None
