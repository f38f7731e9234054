"""Image records: reading one, and changing it. Lists are in `pages.py`; who may see what is in `visibility.py`.

Functions here return frozen values, and know neither policy nor stores. A function that changes a row returns whether
it did, so that a caller who lost a race learns it.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from calotype import errors
from calotype.context import Context
from calotype.db import documents, tombstones, visibility
from calotype.db.compare import exactly, unindexed
from calotype.db.documents import COLUMNS, document
from calotype.db.engine import Tx
from calotype.db.record_cache import RecordCache, stamp, stamp_is
from calotype.db.tables import (
    draw_revision,
    image_locations,
    image_members,
    image_properties,
    image_tags,
    images,
    jobs,
)
from calotype.model import TRANSITIONS, Image, Location

_RECORD = sa.select(images.c.id, stamp, document)
#: The same, but without the document if the stamp is the one that the cache has.
_RECORD_UNLESS_KNOWN = sa.select(
    images.c.id, stamp, sa.case((stamp_is(sa.bindparam("known")), sa.null()), else_=document.element).label("document")
)
_LOCKED = sa.select(images.c.id).with_for_update()


# --- reading ---------------------------------------------------------------------------------------------


def get(tx: Tx, ctx: Context, image_id: str, *, lock: bool = False) -> Image | None:
    """The image, if it exists and the caller may see it. `lock` keeps other writers out until the commit."""
    if lock:
        # Locked first and read afterwards: so properties, tags and locations are read when earlier writers are done.
        locked = find(tx, ctx, _LOCKED, image_id)
        if locked is None:
            return None
        image_id = locked.id
    row = find(tx, ctx, _RECORD, image_id)
    return documents.seen_by(ctx, documents.image(row)) if row is not None else None


def show(tx: Tx, cache: RecordCache, ctx: Context, image_id: str) -> Image | None:
    """As `get`, in one statement; from the cache if the image did not change since."""
    before = cache.get(image_id) or cache.get(image_id.lower())
    row = find(tx, ctx, _RECORD_UNLESS_KNOWN, image_id, known=before[0] if before else None)
    if row is None:
        return None
    same = before is not None and row.stamp == before[0]
    return documents.seen_by(ctx, before[1] if before and same else cache.put(row.stamp, documents.image(row)))


def find(tx: Tx, ctx: Context, columns: sa.Select[Any], image_id: str, **values: Any) -> Any | None:
    """The row that `columns`, a select from `images` with the id, has for an image that the caller may see.

    Our ids are lower-case. Rows of Glance's may not be; they are found by the id as the caller wrote it.
    """
    statement = _visible(columns, ctx.is_admin, ctx.project is not None)
    values |= {"image_id": image_id, "lower": image_id.lower()} | visibility.parameters(ctx)
    rows = tx.execute(statement, values).all()
    return next((row for row in rows if row.id == image_id), rows[0] if rows else None)


# Cached: building such a statement costs more than running it.
@lru_cache(maxsize=256)
def _visible(columns: sa.Select[Any], to_admin: bool, to_project: bool) -> sa.Select[Any]:
    which = images.c.id.in_((sa.bindparam("image_id"), sa.bindparam("lower")))
    found = columns.where(images.c.deleted == sa.false(), which)
    if to_admin:
        return found
    return found.where(visibility.holds(visibility.branches(Context(project="" if to_project else None))))


# --- changing --------------------------------------------------------------------------------------------


_INSERT = sa.insert(images)
_INSERT_PROPERTIES = sa.insert(image_properties)
_INSERT_TAGS = sa.insert(image_tags)


def add(tx: Tx, image: Image, *, has_random_id: bool = False) -> None:
    """Insert a record with its properties and tags. Raises `Conflict` if the id is or was in use.

    `has_random_id` says that the id was just drawn at random: then no tombstone can have it, and none is looked for.
    """
    taken = errors.Conflict(f"The id {image.id} is in use, or was used by an image that is deleted.")
    try:
        tx.execute(_INSERT, {name: getattr(image, name) for name in COLUMNS} | {"deleted": False})
    except sa.exc.IntegrityError as exc:
        raise taken from exc
    # Looked for after the insert, which waits for a purge that is adding this tombstone.
    if not has_random_id and tombstones.exists(tx, image.id):
        raise taken
    _insert_properties(tx, image.id, image.properties, image.created_at)
    _put_tags(tx, image.id, image.tags, image.created_at)


def save(tx: Tx, before: Image, after: Image) -> None:
    """Write what differs between two states of a record; `before` was read with `lock` in the same transaction."""
    values = {name: getattr(after, name) for name in COLUMNS if getattr(after, name) != getattr(before, name)}
    when = after.updated_at
    tx.execute(sa.update(images).where(images.c.id == before.id).values(values | {"updated_at": when}))
    removed = [name for name in before.properties if name not in after.properties]
    if removed:
        _remove_named(tx, image_properties.c.name, before.id, removed)
    changed = {k: v for k, v in after.properties.items() if before.properties.get(k) != v}
    _put_properties(tx, before.id, changed, when)
    removed = [tag for tag in before.tags if tag not in after.tags]
    if removed:
        _remove_named(tx, image_tags.c.value, before.id, removed)
    _put_tags(tx, before.id, [tag for tag in after.tags if tag not in before.tags], when)


def move(tx: Tx, image_id: str, expected: str, to: str, *, now: datetime, **values: Any) -> bool:
    """Change the status if it is still the expected one, with other columns; False when it was not."""
    if to not in TRANSITIONS[expected]:
        raise ValueError(f"{expected} cannot become {to}")
    statement = (
        sa.update(images)
        .where(images.c.id == image_id, images.c.status == expected, images.c.deleted == sa.false())
        .values(status=to, updated_at=now, **values)
    )
    return bool(tx.execute(statement).rowcount)


_WHICH: sa.BindParameter[str] = sa.bindparam("which", type_=sa.String())
_WHEN: sa.BindParameter[datetime] = sa.bindparam("when", type_=sa.DateTime())
_CHILDREN = (image_properties, image_tags, image_members, image_locations)
_DELETE = (
    sa.update(images)
    .where(images.c.id == _WHICH, images.c.deleted == sa.false())
    .values(status="deleted", deleted=True, deleted_at=_WHEN, updated_at=_WHEN)
)


def _soft_delete(table: sa.Table) -> sa.Update:
    extra = {"status": "deleted"} if table is image_locations else {}
    statement = sa.update(table).where(table.c.image_id == _WHICH, table.c.deleted == sa.false())
    return statement.values(deleted=True, deleted_at=_WHEN, **extra)


_SOFT_DELETE = {table: _soft_delete(table) for table in _CHILDREN}


def _row_ids(table: sa.Table) -> Any:
    rows = sa.select(sa.literal(table.name).label("table"), sa.cast(table.c.id, sa.String(32)).label("row"))
    rows = rows.where(table.c.image_id == _WHICH)
    return rows if table is jobs else rows.where(unindexed(table.c.deleted) == sa.false())


_ATTACHED = sa.union_all(*(_row_ids(table) for table in (*_CHILDREN, jobs)))


def delete(tx: Tx, image: Image, now: datetime) -> dict[str, list[str]] | None:
    """Mark the record deleted, with its properties, tags, members and locations, and add a tombstone.

    Returns the ids of those rows, and of the image's jobs, which stay, by the names of their tables. None if another
    transaction deleted the image first.
    """
    values = {"which": image.id, "when": now}
    if not tx.execute(_DELETE, values).rowcount:
        return None
    rows: dict[str, list[str]] = {}
    for table, row in tx.execute(_ATTACHED, {"which": image.id}):
        rows.setdefault(table, []).append(row)
    for table in _CHILDREN:
        if table.name in rows:
            tx.execute(_SOFT_DELETE[table], values)
    tombstones.add(tx, [image.id], now)
    return rows


def restore(
    tx: Tx, image_id: str, status: str, rows: Mapping[str, Sequence[str]], *, without: Iterable[int] = ()
) -> None:
    """Undo `delete` for the `rows` that it returned, except for the locations `without`, whose data is gone."""
    tx.execute(sa.update(images).where(images.c.id == image_id).values(status=status, deleted=False, deleted_at=None))
    for table in _CHILDREN:
        ids = {int(row) for row in rows.get(table.name, ())}
        if table is image_locations:
            ids -= {*without}
        extra = {"status": "active"} if table is image_locations else {}
        back = {"deleted": False, "deleted_at": None} | extra
        for batch in _batches(sorted(ids)):
            tx.execute(sa.update(table).where(table.c.image_id == image_id, table.c.id.in_(batch)).values(back))
    tombstones.remove(tx, image_id)


def _draw_revision(tx: Tx, image_id: str) -> None:
    """Give the record a new stamp when only other tables change, so that caches see that the image has changed."""
    tx.execute(sa.update(images).where(images.c.id == image_id).values(calotype_revision=draw_revision()))


def add_location(
    tx: Tx, image_id: str, url: str, metadata: Mapping[str, Any], now: datetime, object_id: str | None = None
) -> None:
    """Add one copy; `object_id` tells it from earlier and later copies with the same URL."""
    _draw_revision(tx, image_id)
    values: dict[str, Any] = {"image_id": image_id, "value": url, "status": "active", "calotype_object": object_id}
    values["meta_data"] = json.dumps(dict(metadata))
    times = {"created_at": now, "updated_at": now, "deleted": False}
    tx.execute(sa.insert(image_locations).values(values | times))


def order_locations(tx: Tx, image_id: str, urls: Sequence[str]) -> None:
    """Put these copies of an image into this order among themselves."""
    table = image_locations.c
    content = (table.value, table.meta_data, table.calotype_object)
    named = (table.image_id == image_id) & (table.deleted == sa.false()) & table.value.in_(urls)
    rows = tx.execute(sa.select(table.id, *content).where(named).order_by(table.id)).all()
    wanted = sorted(rows, key=lambda row: urls.index(row.value))
    for place, row in zip(rows, wanted, strict=True):
        if place.id != row.id:
            values = {column.name: row._mapping[column] for column in content}
            tx.execute(sa.update(image_locations).where(table.id == place.id).values(values))


def move_location(tx: Tx, image_id: str, before: Location, url: str, metadata: Mapping[str, Any]) -> bool:
    """Change the URL or the store of a copy. False if somebody changed it meanwhile."""
    table = image_locations.c
    same = (table.id == before.id) & exactly(table.value, before.url) & (table.deleted == sa.false())
    values = {"value": url, "meta_data": json.dumps(dict(metadata))}
    if not tx.execute(sa.update(image_locations).where(same).values(values)).rowcount:
        return False
    _draw_revision(tx, image_id)
    return True


def has_location(tx: Tx, image_id: str, url: str, object_id: str | None) -> bool:
    """Whether this copy was ever added, even if it was removed since; without `object_id`, whether one is there now."""
    table = image_locations.c
    same = table.deleted == sa.false() if object_id is None else table.calotype_object == object_id
    statement = sa.select(table.id).where(table.image_id == image_id, table.value == url, same)
    return tx.execute(statement).first() is not None


def is_named(tx: Tx, image_id: str, url: str) -> bool:
    """Whether the record of an image names a copy at this URL."""
    return has_location(tx, image_id, url, None)


def object_ids(tx: Tx, location_ids: Collection[int]) -> dict[int, str]:
    """The object ids of these copies by their location ids, without those that are unknown."""
    table = image_locations.c
    found = sa.select(table.id, table.calotype_object).where(table.id.in_(location_ids))
    return {row.id: row.calotype_object for row in tx.execute(found) if row.calotype_object}


def is_used_elsewhere(tx: Tx, url: str, image_id: str) -> bool:
    """Whether another image has, or had, a copy with this URL. Scans all locations: URLs have no index."""
    statement = sa.select(image_locations.c.id).where(exactly(image_locations.c.value, url))
    return tx.execute(statement.where(image_locations.c.image_id != image_id).limit(1)).first() is not None


def put_size(tx: Tx, image_id: str, status: str, size: int, *, now: datetime) -> bool:
    """Write the size of data that has no copy yet. False unless the image is still in this status."""
    which = (images.c.id == image_id) & (images.c.status == status) & (images.c.deleted == sa.false())
    return bool(tx.execute(sa.update(images).where(which).values(size=size, updated_at=now)).rowcount)


def put_properties(
    tx: Tx,
    image_id: str,
    properties: Mapping[str, str],
    *,
    now: datetime,
    remove: Collection[str] = (),
    tags: Collection[str] = (),
) -> None:
    """Write some properties of an image that is locked, remove others, and add tags that it has not."""
    if remove:
        _remove_named(tx, image_properties.c.name, image_id, list(remove))
    _put_properties(tx, image_id, properties, now)
    _put_tags(tx, image_id, tags, now)
    _draw_revision(tx, image_id)


def put_facts(tx: Tx, image_id: str, *, now: datetime, **values: str | int | None) -> bool:
    """Write what was found out about an image's data, such as its digests. False if the image is deleted."""
    statement = sa.update(images).where(images.c.id == image_id, images.c.deleted == sa.false())
    return bool(tx.execute(statement.values(updated_at=now, **values)).rowcount)


def is_deleted(tx: Tx, image_id: str) -> bool:
    """Whether the record exists and is marked deleted."""
    return bool(tx.execute(sa.select(images.c.deleted).where(images.c.id == image_id)).scalar())


def remove_location(tx: Tx, image_id: str, location_id: int, now: datetime) -> bool:
    """Remove one copy from the record. False if it was removed already."""
    tx.execute(sa.update(images).where(images.c.id == image_id).values(updated_at=now))
    statement = (
        sa.update(image_locations)
        .where(image_locations.c.id == location_id, image_locations.c.deleted == sa.false())
        .values(deleted=True, deleted_at=now, status="deleted")
    )
    return bool(tx.execute(statement).rowcount)


def is_location_active(tx: Tx, location_id: int) -> bool:
    """Whether this copy is part of its image's record: it exists, and was not removed."""
    statement = sa.select(image_locations.c.deleted).where(image_locations.c.id == location_id)
    return tx.execute(statement).scalar() is False


def restore_location(tx: Tx, image_id: str, location_id: int) -> None:
    """Undo `remove_location`."""
    _draw_revision(tx, image_id)
    statement = sa.update(image_locations).where(image_locations.c.id == location_id)
    tx.execute(statement.values(deleted=False, deleted_at=None, status="active"))


def purge(tx: Tx, before: datetime, max_rows: int) -> tuple[int, int]:
    """Remove the rows of images that were deleted before a moment, oldest first; returns how many images and rows.

    Their ids get tombstones, if they have none. Properties, tags, members and locations that were removed from living
    images before that moment go as well. Locations that Glance's scrubber has yet to delete stay, with their images.
    `max_rows` limits the rows of each table.
    """

    def first_rows(statement: sa.Select[Any]) -> list[Any]:
        return list(tx.execute(statement.limit(max_rows)).scalars())

    rows = 0
    for table in _CHILDREN:
        old = sa.select(table.c.id).where(table.c.deleted == sa.true(), table.c.deleted_at < before)
        old = old.where(~sa.exists().where(jobs.c.image_id == table.c.image_id))  # its delete may still be undone
        ids = first_rows(old.where(table.c.status != "pending_delete") if table is image_locations else old)
        _delete_rows(tx, table.c.id, ids)
        rows += len(ids)
    old = sa.select(images.c.id).where(images.c.deleted == sa.true(), images.c.deleted_at < before)
    old = old.where(images.c.status != "pending_delete", ~sa.exists().where(jobs.c.image_id == images.c.id))
    for table in _CHILDREN:
        old = old.where(~sa.exists().where(table.c.image_id == images.c.id))
    removed = first_rows(old.order_by(images.c.deleted_at))
    tombstones.add(tx, removed, before)  # Those that a Glance deleted have no tombstone yet.
    _delete_rows(tx, images.c.id, removed)
    return len(removed), rows + len(removed)


def _delete_rows(tx: Tx, key: sa.Column[Any], ids: list[Any]) -> None:
    for batch in _batches(ids):
        tx.execute(sa.delete(key.table).where(key.in_(batch)))


def _batches(ids: list[Any]) -> Iterator[list[Any]]:
    """Parts that are small enough for one statement."""
    for start in range(0, len(ids), 500):
        yield ids[start : start + 500]


def _remove_named(tx: Tx, name: sa.Column[str], image_id: str, removed: list[str]) -> None:
    """Remove properties or tags of a living image. Marking the rows deleted would leave them to be read each time."""
    named = sa.or_(*[exactly(name, one) for one in removed])
    tx.execute(sa.delete(name.table).where(name.table.c.image_id == image_id, named))


def _put_properties(tx: Tx, image_id: str, properties: Mapping[str, str], when: datetime) -> None:
    """Insert properties; reuse the rows of removed ones, as a name can have only one row."""
    if not properties:
        return
    table = image_properties
    known = sa.select(table.c.id, table.c.name, table.c.deleted)
    rows = tx.execute(known.where(table.c.image_id == image_id, table.c.name.in_(list(properties)))).all()
    existing = {row.name: row for row in rows if row.name in properties}
    # Where MariaDB takes the name of an old row for the same in other letters, that row must go first.
    _delete_rows(tx, table.c.id, [row.id for row in rows if row.deleted and row.name not in properties])
    for name, row in existing.items():
        values = {"value": properties[name], "deleted": False, "deleted_at": None, "updated_at": when}
        tx.execute(sa.update(table).where(table.c.id == row.id).values(values))
    _insert_properties(tx, image_id, {k: v for k, v in properties.items() if k not in existing}, when)


def _insert_properties(tx: Tx, image_id: str, properties: Mapping[str, str], when: datetime) -> None:
    same = {"image_id": image_id, "created_at": when, "updated_at": when, "deleted": False}
    rows = [{"name": name, "value": value, **same} for name, value in properties.items()]
    if rows:
        tx.execute(_INSERT_PROPERTIES, rows)


def _put_tags(tx: Tx, image_id: str, tags: Iterable[str], when: datetime) -> None:
    same = {"image_id": image_id, "created_at": when, "updated_at": when, "deleted": False}
    rows = [{"value": tag, **same} for tag in tags]
    if rows:
        tx.execute(_INSERT_TAGS, rows)
