"""Indexes that lists walk: images in each order that they are sorted by, tags and properties by value, members.

None of them changes what a Glance beside us reads or writes.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LENGTH: Any = {f"{name}_length": {"value": 64} for name in ("mysql", "mariadb")}
_ORDERS = {
    "created_at": ("created_at", "id"),
    "id": ("id",),
    **{
        key: (key, "created_at", "id")
        for key in ("name", "status", "container_format", "disk_format", "size", "updated_at")
    },
}


def upgrade() -> None:
    for key, order in _ORDERS.items():
        op.create_index(f"calotype_owner_{key}", "images", ["owner", "deleted", "os_hidden", *order, "visibility"])
        op.create_index(f"calotype_visibility_{key}", "images", ["visibility", "deleted", "os_hidden", *order])
    op.create_index("calotype_member", "image_members", ["member", "image_id", "status", "deleted"])
    op.create_index("calotype_tag", "image_tags", ["value", "image_id", "deleted"])
    on_mariadb = op.get_bind().dialect.name in ("mysql", "mariadb")
    # PostgreSQL refuses long values in an index, MariaDB wants to be told a length.
    value = "value" if on_mariadb else sa.text("substr(value, 1, 64)")
    op.create_index("calotype_property", "image_properties", ["name", value, "image_id"], **_LENGTH)
