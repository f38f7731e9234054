"""A column of ours in `images`: another value after every change of a record, so that a reader sees that there was one.

No row is written: NULL is the revision of what Glance left. A Glance beside us does not know the column.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    if "calotype_revision" not in {column["name"] for column in inspector.get_columns("images")}:
        # It is there when the migration broke off after it: MariaDB takes nothing back.
        op.add_column("images", sa.Column("calotype_revision", sa.BigInteger))
    # The first release let the database choose a collation, and MariaDB compares no ids of two of them.
    (wanted, *_) = (*_collation(inspector, "images"), None)
    for table in ("calotype_tombstones", "calotype_jobs"):
        if wanted and wanted not in _collation(inspector, table):
            charset = wanted.partition("_")[0]
            column = f"image_id VARCHAR(36) CHARACTER SET {charset} COLLATE {wanted} NOT NULL"
            op.execute(f"ALTER TABLE {table} MODIFY {column}")


def _collation(inspector: sa.Inspector, table: str) -> list[str]:
    options = inspector.get_table_options(table)
    return [str(value) for name, value in options.items() if name.endswith("_collate")]
