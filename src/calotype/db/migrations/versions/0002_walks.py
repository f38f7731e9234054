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
    # with what filters read, so that a list in the default order need not look at the table
    "created_at": (
        *("created_at", "id", "name", "status", "container_format", "disk_format", "size", "virtual_size"),
        *("min_disk", "min_ram", "protected", "os_hash_algo"),
    ),
    "id": ("id",),
    **{
        key: (key, "created_at", "id")
        for key in ("name", "status", "container_format", "disk_format", "size", "updated_at")
    },
}


def upgrade() -> None:
    for key, order in _ORDERS.items():
        _add("images", f"calotype_owner_{key}", ["owner", "deleted", "os_hidden", *order, "visibility"])
        _add("images", f"calotype_visibility_{key}", ["visibility", "deleted", "os_hidden", *order])
    for key in ("os_hash_value", "checksum"):
        _add("images", f"calotype_{key}", [key, "deleted", "os_hidden", "created_at", "id", "visibility", "owner"])
    _add("image_members", "calotype_member", ["member", "status", "image_id", "deleted"])
    _add("image_tags", "calotype_tag", ["value", "image_id", "deleted"])
    # PostgreSQL refuses long values in an index, MariaDB wants to be told a length.
    value = "value" if _on_mariadb() else sa.text("substr(value, 1, 64)")
    _add("image_properties", "calotype_property", ["name", value, "image_id"], **_LENGTH)


def _add(table: str, name: str, columns: list[Any], **options: Any) -> None:
    # An index may be there: MariaDB commits each by itself, also when the migration breaks off later. MySQL does not
    # know IF NOT EXISTS, and SQLite does not describe an index on an expression.
    if _on_mariadb() and name in {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}:
        return
    op.create_index(name, table, columns, if_not_exists=not _on_mariadb(), **options)


def _on_mariadb() -> bool:
    return op.get_bind().dialect.name in ("mysql", "mariadb")
