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
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("images")}
    if "calotype_revision" not in there:  # MariaDB does not take it back when the migration breaks off after it
        op.add_column("images", sa.Column("calotype_revision", sa.BigInteger))
