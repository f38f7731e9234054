"""Every table, as SQLAlchemy Core metadata.

The first half is Glance's schema at `2024_1_contract01`, name for name, so that a Glance database can be taken over and
given back. The tables at the end are ours, and so are the indexes and columns named `calotype_…`.
"""

import random
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    literal_column,
)
from sqlalchemy.dialects import mysql

metadata = MetaData()

#: Glance's own head; its `glance-manage db check` looks for this row in `alembic_version`.
GLANCE_HEAD = "2024_1_contract01"

BigInt = BigInteger().with_variant(Integer(), "sqlite")
#: MariaDB's TEXT ends at 64 KiB, which the locations or properties of one image may exceed.
LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
#: Our own rows keep microseconds everywhere; Glance's columns have whole seconds on MariaDB.
PreciseDateTime = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def _soft_delete_columns() -> list[Column[datetime] | Column[bool] | Column[datetime | None]]:
    """The four columns that every soft-deleted table carries."""
    return [
        Column("created_at", DateTime, nullable=False),
        Column("updated_at", DateTime),
        Column("deleted_at", DateTime),
        Column("deleted", Boolean, nullable=False, default=False),
    ]


#: Columns that lists may be sorted by. Each has two indexes of ours: they have the images of one owner, or of one
#: visibility, in the order of that column. `db/pages.py` reads pages from them.
WALKED = ("created_at", "name", "status", "container_format", "disk_format", "size", "updated_at", "id")


def walk_columns(key: str) -> tuple[str, ...]:
    """The columns of the total order by `key`."""
    return {"id": ("id",), "created_at": ("created_at", "id")}.get(key, (key, "created_at", "id"))


#: Columns with an index of ours that has the images with one value, whoever sees them, in the order of their age.
BY_VALUE = ("os_hash_value", "checksum")
#: More columns in the indexes of the default order, so that lists with filters on these need not read the table.
COVERED_COLUMNS = (
    *("name", "status", "container_format", "disk_format", "size", "virtual_size", "min_disk", "min_ram"),
    *("protected", "os_hash_algo"),
)


def _walk_indexes() -> list[Index]:
    found = []
    for key in WALKED:
        order = (*walk_columns(key), *(COVERED_COLUMNS if key == "created_at" else ()))
        found.append(Index(f"calotype_owner_{key}", "owner", "deleted", "os_hidden", *order, "visibility"))
        found.append(Index(f"calotype_visibility_{key}", "visibility", "deleted", "os_hidden", *order))
    for key in BY_VALUE:
        found.append(Index(f"calotype_{key}", key, "deleted", "os_hidden", "created_at", "id", "visibility", "owner"))
    return found


_random = random.SystemRandom()  # so that forked processes draw different numbers


def draw_revision() -> int:
    """A random revision, which no image has had before."""
    return _random.getrandbits(63)


images = Table(
    "images",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(255)),
    Column("disk_format", String(20)),
    Column("container_format", String(20)),
    Column("size", BigInt),
    Column("virtual_size", BigInt),
    Column("status", String(30), nullable=False),
    Column(
        "visibility",
        Enum("private", "public", "shared", "community", name="image_visibility"),
        nullable=False,
        server_default="shared",
    ),
    Column("checksum", String(32)),
    Column("os_hash_algo", String(64)),
    Column("os_hash_value", String(128)),
    Column("min_disk", Integer, nullable=False, default=0),
    Column("min_ram", Integer, nullable=False, default=0),
    Column("owner", String(255)),
    Column("protected", Boolean, nullable=False, server_default="0"),
    Column("os_hidden", Boolean, nullable=False, server_default="0"),
    *_soft_delete_columns(),
    # Ours: each change of the record draws a new one (`record_cache.py`). Glance does not know the column and leaves it
    # alone; `system` keeps it out of the table as Glance makes it.
    Column("calotype_revision", BigInteger, default=draw_revision, onupdate=draw_revision, system=True),
    Index("checksum_image_idx", "checksum"),
    Index("visibility_image_idx", "visibility"),
    Index("ix_images_deleted", "deleted"),
    Index("owner_image_idx", "owner"),
    Index("created_at_image_idx", "created_at"),
    Index("updated_at_image_idx", "updated_at"),
    Index("os_hidden_image_idx", "os_hidden"),
    Index("os_hash_value_image_idx", "os_hash_value"),
    *_walk_indexes(),
)


def _image_id() -> Column[str]:
    return Column("image_id", String(36), ForeignKey("images.id"), nullable=False)


image_properties = Table(
    "image_properties",
    metadata,
    Column("id", Integer, primary_key=True),
    _image_id(),
    Column("name", String(255), nullable=False),
    Column("value", Text),
    *_soft_delete_columns(),
    UniqueConstraint("image_id", "name", name="ix_image_properties_image_id_name"),
    Index("ix_image_properties_image_id", "image_id"),
    Index("ix_image_properties_deleted", "deleted"),
)
#: How much of a property's value its index holds, in characters.
INDEXED_VALUE = 64
#: A property's value as far as the index has it. MariaDB's index has a key length instead, and takes either.
property_start = func.substr(image_properties.c.value, literal_column("1"), literal_column(str(INDEXED_VALUE)))


def _index_properties(value: ColumnElement[str], *, mariadb: bool) -> None:
    """Add the index on properties, in the form for MariaDB or the one for other databases; see `index_is_for`."""
    table, length = image_properties.c, {"value": INDEXED_VALUE}
    index = Index(
        "calotype_property",
        table.name,
        value,
        table.image_id,
        mysql_length=length,
        mariadb_length=length,
        info={"mariadb": mariadb},
    )
    index.ddl_if(callable_=lambda *_, dialect, **__: index_is_for(index, dialect.name))


def index_is_for(index: Index, dialect: str) -> bool:
    """Whether an index is meant for this kind of database."""
    return index.info.get("mariadb") in (None, dialect in ("mysql", "mariadb"))


_index_properties(image_properties.c.value, mariadb=True)
_index_properties(property_start, mariadb=False)

image_tags = Table(
    "image_tags",
    metadata,
    Column("id", Integer, primary_key=True),
    _image_id(),
    Column("value", String(255), nullable=False),
    *_soft_delete_columns(),
    Index("ix_image_tags_image_id", "image_id"),
    Index("ix_image_tags_image_id_tag_value", "image_id", "value"),
    Index("calotype_tag", "value", "image_id", "deleted"),
)

image_locations = Table(
    "image_locations",
    metadata,
    Column("id", Integer, primary_key=True),
    _image_id(),
    Column("value", Text, nullable=False),
    Column("meta_data", Text),
    Column("status", String(30), nullable=False, server_default="active"),
    *_soft_delete_columns(),
    # Ours: tells this object from others that had, or will have, its URL (`Stored.object_id`). NULL for rows of Glance.
    Column("calotype_object", String(255), system=True),
    Index("ix_image_locations_image_id", "image_id"),
    Index("ix_image_locations_deleted", "deleted"),
)

image_members = Table(
    "image_members",
    metadata,
    Column("id", Integer, primary_key=True),
    _image_id(),
    Column("member", String(255), nullable=False),
    Column("can_share", Boolean, nullable=False, default=False),
    Column("status", String(20), nullable=False, server_default="pending"),
    *_soft_delete_columns(),
    UniqueConstraint("image_id", "member", "deleted_at", name="image_members_image_id_member_deleted_at_key"),
    Index("ix_image_members_deleted", "deleted"),
    Index("ix_image_members_image_id", "image_id"),
    Index("ix_image_members_image_id_member", "image_id", "member"),
    Index("calotype_member", "member", "status", "image_id", "deleted"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("type", String(30), nullable=False),
    Column("status", String(30), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("expires_at", DateTime),
    Column("image_id", String(36)),
    Column("request_id", String(64)),
    Column("user_id", String(64)),
    *_soft_delete_columns(),
    Index("ix_tasks_type", "type"),
    Index("ix_tasks_status", "status"),
    Index("ix_tasks_owner", "owner"),
    Index("ix_tasks_deleted", "deleted"),
    Index("ix_tasks_image_id", "image_id"),
    Index("ix_tasks_updated_at", "updated_at"),
)

task_info = Table(
    "task_info",
    metadata,
    Column("task_id", String(36), ForeignKey("tasks.id"), primary_key=True),
    Column("input", Text),
    Column("result", Text),
    Column("message", Text),
)

node_reference = Table(
    "node_reference",
    metadata,
    Column("node_reference_id", BigInt, primary_key=True),
    Column("node_reference_url", String(255), nullable=False),
    UniqueConstraint("node_reference_url", name="uq_node_reference_node_reference_url"),
)

cached_images = Table(
    "cached_images",
    metadata,
    Column("id", BigInt, primary_key=True),
    Column("image_id", String(36), nullable=False),
    Column("last_accessed", DateTime, nullable=False),
    Column("last_modified", DateTime, nullable=False),
    Column("size", BigInt, nullable=False),
    Column("hits", Integer, nullable=False),
    Column("checksum", String(32)),
    Column("node_reference_id", BigInt, ForeignKey("node_reference.node_reference_id"), nullable=False),
    UniqueConstraint("image_id", "node_reference_id", name="ix_cached_images_image_id_node_reference_id"),
)


def _times() -> list[Column[datetime] | Column[datetime | None]]:
    return [Column("created_at", DateTime, nullable=False), Column("updated_at", DateTime)]


def _namespace_id() -> Column[int]:
    return Column("namespace_id", Integer, ForeignKey("metadef_namespaces.id"), nullable=False)


metadef_namespaces = Table(
    "metadef_namespaces",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("namespace", String(80), nullable=False),
    Column("display_name", String(80)),
    Column("description", Text),
    Column("visibility", String(32)),
    Column("protected", Boolean),
    Column("owner", String(255), nullable=False),
    *_times(),
    UniqueConstraint("namespace", name="uq_metadef_namespaces_namespace"),
    Index("ix_metadef_namespaces_owner", "owner"),
)

metadef_objects = Table(
    "metadef_objects",
    metadata,
    Column("id", Integer, primary_key=True),
    _namespace_id(),
    Column("name", String(80), nullable=False),
    Column("description", Text),
    Column("required", Text),
    Column("json_schema", Text, nullable=False),
    *_times(),
    UniqueConstraint("namespace_id", "name", name="uq_metadef_objects_namespace_id_name"),
    Index("ix_metadef_objects_name", "name"),
)

metadef_properties = Table(
    "metadef_properties",
    metadata,
    Column("id", Integer, primary_key=True),
    _namespace_id(),
    Column("name", String(80), nullable=False),
    Column("json_schema", Text, nullable=False),
    *_times(),
    UniqueConstraint("namespace_id", "name", name="uq_metadef_properties_namespace_id_name"),
    Index("ix_metadef_properties_name", "name"),
)

metadef_tags = Table(
    "metadef_tags",
    metadata,
    Column("id", Integer, primary_key=True),
    _namespace_id(),
    Column("name", String(80), nullable=False),
    *_times(),
    UniqueConstraint("namespace_id", "name", name="uq_metadef_tags_namespace_id_name"),
    Index("ix_metadef_tags_name", "name"),
)

metadef_resource_types = Table(
    "metadef_resource_types",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(80), nullable=False),
    Column("protected", Boolean, nullable=False),
    *_times(),
    UniqueConstraint("name", name="uq_metadef_resource_types_name"),
)

metadef_namespace_resource_types = Table(
    "metadef_namespace_resource_types",
    metadata,
    Column("resource_type_id", Integer, ForeignKey("metadef_resource_types.id"), primary_key=True),
    Column("namespace_id", Integer, ForeignKey("metadef_namespaces.id"), primary_key=True),
    Column("properties_target", String(80)),
    Column("prefix", String(80)),
    *_times(),
    Index("ix_metadef_ns_res_types_namespace_id", "namespace_id"),
)

alembic_version = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))

# --- ours ------------------------------------------------------------------------------------------------

#: A row for the id of each deleted image. Never purged, so that an id names one content for ever.
tombstones = Table(
    "calotype_tombstones",
    metadata,
    Column("image_id", String(36), primary_key=True),
    Column("deleted_at", PreciseDateTime, nullable=False),
)

#: Places of stores, by the identity that is written there. `former` is a JSON list of the store's earlier places. A
#: place is `established` once its identity was surely written; a process of `host` does that.
stores = Table(
    "calotype_stores",
    metadata,
    Column("identity", String(36), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("place", Text, nullable=False),
    Column("former", Text, nullable=False),
    Column("established", Boolean, nullable=False),
    Column("host", String(255), nullable=False),
    Column("created_at", PreciseDateTime, nullable=False),
    UniqueConstraint("name", name="calotype_stores_name"),
)

#: Work that must survive its process (`jobs.py`). `state` is pending or running; a finished job has no row. `due_at` is
#: when a pending job may start, by the database's clock; of a running job, when it was last claimed, noted or resolved.
jobs = Table(
    "calotype_jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(30), nullable=False),
    Column("image_id", String(36), nullable=False),
    Column("state", String(10), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("owner", String(255)),
    Column("due_at", PreciseDateTime, nullable=False),
    Column("payload", LongText, nullable=False),
    Column("error", Text),
    Column("created_at", PreciseDateTime, nullable=False),
    # The bytes that the work may add to a project's usage (`usage.py`); the reservation ends with the row.
    Column("project", String(255)),
    Column("reserved", BigInt),
    Column("step", Integer),  # which step of its kind comes next; NULL: the first
    Column("checkpoint", LongText),  # what the steps keep for each other, JSON
    Column("failure", Text),  # why it failed for good: from then on its steps are undone
    Column("cancel", Text),  # why it shall stop; whoever runs it fails it with this reason
    Column("progress", Text),  # how far it is, for people, JSON
    Column("place", String(36)),  # of the staging directory with its data, or of a process: only there it may run
    Column("failures", Integer),  # attempts that have failed; null: none
    Index("calotype_jobs_due", "due_at"),
    Index("calotype_jobs_image", "image_id"),
    Index("calotype_jobs_owner", "owner"),
    Index("calotype_jobs_project", "project"),
)

#: The copies that a job writes (`copies.py`), one for each store. They go with their jobs.
copies = Table(
    "calotype_copies",
    metadata,
    Column("job_id", String(32), ForeignKey("calotype_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("store", String(64), primary_key=True),
    Column("identity", String(36)),  # of the store's place when the job was made
    Column("state", String(10), nullable=False),
    Column("attempt", Integer),  # the attempt of the job that wrote here last
    Column("note", LongText),  # what the store needs to clean up after that attempt
    Column("url", Text),
    Column("object", String(255)),
    Column("facts", LongText),  # metadata of the location, JSON
    Column("error", Text),
)

#: Processes that hold jobs, or did. Each heartbeat writes another number into `beat`.
processes = Table(
    "calotype_processes",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("seen_at", PreciseDateTime, nullable=False),
    Column("staging", String(36)),  # identity of its staging directory
)

#: A transaction writes a project's row before it compares usage with limits (`usage.py`), so that only one does at a
#: time. `turn` is a number for it to change.
projects = Table(
    "calotype_projects",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("turn", BigInteger, nullable=False),
)

#: Events that were committed with their changes and are not sent yet, in the order of their ids (`outbox.py`).
outbox = Table(
    "calotype_outbox",
    metadata,
    Column("id", BigInt, primary_key=True),
    Column("event_type", String(64), nullable=False),
    Column("priority", String(10), nullable=False),
    Column("message_id", String(36), nullable=False),
    Column("payload", LongText, nullable=False),
    Column("created_at", PreciseDateTime, nullable=False),
)

#: Locks across hosts (`locks.py`): the owner changes the number in `beat` for as long as it holds the lock.
locks = Table(
    "calotype_locks",
    metadata,
    Column("name", String(30), primary_key=True),
    Column("owner", String(255)),
    Column("beat", BigInteger),
)


def glance_tables() -> MetaData:
    """The tables of Glance's alone, without our indexes."""
    found = MetaData()
    for table in metadata.sorted_tables:
        if not table.name.startswith("calotype_"):
            copy = table.to_metadata(found)
            copy.indexes = {index for index in copy.indexes if not str(index.name).startswith("calotype_")}
    return found


def our_indexes(dialect: str) -> list[Index]:
    """The indexes that we add to Glance's tables, on this kind of database."""
    theirs = [table for table in metadata.sorted_tables if not table.name.startswith("calotype_")]
    every = [index for table in theirs for index in table.indexes if str(index.name).startswith("calotype_")]
    return sorted((index for index in every if index_is_for(index, dialect)), key=lambda index: str(index.name))
