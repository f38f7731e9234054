"""What tells a store's place from another one, and an object from another one with the same URL.

Each step looks first: MariaDB takes nothing back of a migration that breaks off.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    options = inspector.get_table_options("images")
    alike = {name: value for name, value in options.items() if name.endswith("_collate")}
    op.create_table(
        "calotype_stores",
        sa.Column("identity", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("former", sa.Text, nullable=False),
        sa.Column("established", sa.Boolean, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.UniqueConstraint("name", name="calotype_stores_name"),
        if_not_exists=True,
        **alike,
    )
    # No row is written: NULL is what is known of the objects that are there. A Glance beside us is not disturbed.
    if "calotype_object" not in {column["name"] for column in inspector.get_columns("image_locations")}:
        op.add_column("image_locations", sa.Column("calotype_object", sa.String(255)))
