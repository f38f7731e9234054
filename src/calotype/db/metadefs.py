"""Rows of the catalogue of metadata definitions: namespaces, their parts, and their resource types.

Names are compared by the database's collation, as its unique keys do; on MariaDB that ignores case. Owners are compared
exactly. A writer locks the row of the namespace (`lock`), so that changes of one namespace happen one after the other.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

import sqlalchemy as sa

from calotype import errors
from calotype.context import Context
from calotype.db.compare import exactly, paged
from calotype.db.engine import Tx, same_moment
from calotype.db.nesting import json_array, json_object_agg, json_subquery
from calotype.db.tables import (
    metadef_namespace_resource_types,
    metadef_namespaces,
    metadef_objects,
    metadef_properties,
    metadef_resource_types,
    metadef_tags,
)
from calotype.model import (
    Association,
    Definitions,
    MetadefObject,
    MetadefPart,
    MetadefProperty,
    MetadefTag,
    Namespace,
    ResourceType,
)

LOG = logging.getLogger(__name__)
P = TypeVar("P", bound=MetadefPart)

_NAMESPACE: Final = sa.select(metadef_namespaces)
_LOCKED: Final = _NAMESPACE.with_for_update()
#: What lists of namespaces can be sorted by.
SORT_KEYS: Final = tuple(
    "namespace display_name description visibility protected owner id created_at updated_at".split()
)
#: What lists of the parts of one can be sorted by.
PART_SORT_KEYS: Final = ("name", "id", "created_at", "updated_at")


# --- namespaces ------------------------------------------------------------------------------------------


def get(tx: Tx, ctx: Context, name: str, *, lock: bool = False) -> Namespace | None:
    """The namespace, if the caller sees it. With `lock` nobody else can change it until the transaction ends."""
    row = _find(tx, ctx, _LOCKED if lock else _NAMESPACE, name)
    return _namespace(row) if row is not None else None


def get_definitions(tx: Tx, ctx: Context, name: str) -> Definitions | None:
    """The namespace with all its parts, if the caller sees it; read by one statement, as of one moment.

    Raises `Busy` when it is larger than the database may answer.
    """
    row = _find(tx, ctx, _WHOLE, name)
    return _definitions(row) if row is not None else None


def _find(tx: Tx, ctx: Context, columns: sa.Select[Any], name: str) -> Any | None:
    to_project = not ctx.is_admin and bool(ctx.project)
    values = {"name": name} | ({"project": ctx.project} if to_project else {})
    return tx.execute(_named_namespace(columns, to_project, ctx.is_admin), values).first()


# Built once: building such a statement costs more than running it.
@lru_cache(maxsize=16)
def _named_namespace(columns: sa.Select[Any], to_project: bool, to_admin: bool) -> sa.Select[Any]:
    return columns.where(metadef_namespaces.c.namespace == sa.bindparam("name"), _visible(to_project, to_admin))


def by_id(tx: Tx, namespace_id: int) -> Namespace | None:
    """The namespace with this row id, whoever sees it."""
    row = tx.execute(_NAMESPACE.where(metadef_namespaces.c.id == namespace_id)).first()
    return _namespace(row) if row is not None else None


def page(
    tx: Tx,
    ctx: Context,
    *,
    limit: int,
    after: Namespace | None = None,
    sort_key: str = "created_at",
    descending: bool = True,
    visibility: str | None = None,
    resource_types: Sequence[str] | None = None,
    with_parts: bool = False,
) -> list[Definitions]:
    """A page of the namespaces that the caller sees; with `after`, of those that follow that one, which may be deleted.

    Each has its associations alone; `with_parts`, everything that is in it. `resource_types` leaves only namespaces
    that are for one of these. Sorted by a column of `SORT_KEYS`, rows without a value first when ascending; then by age
    and id, in the same direction.
    """
    to_project = not ctx.is_admin and bool(ctx.project)
    statement = (_WHOLE if with_parts else _LISTED).where(_visible(to_project, ctx.is_admin))
    if visibility is not None:
        statement = statement.where(sa.func.coalesce(metadef_namespaces.c.visibility, "private") == visibility)
    if resource_types is not None:
        links, types = metadef_namespace_resource_types, metadef_resource_types
        namespace_ids = sa.select(links.c.namespace_id).join(types, types.c.id == links.c.resource_type_id)
        statement = statement.where(metadef_namespaces.c.id.in_(namespace_ids.where(types.c.name.in_(resource_types))))
    place: Mapping[str, Any] | None = None
    if after is not None:
        # The row itself, if it still exists: it may have NULL where the `Namespace` has a value.
        row = tx.execute(_NAMESPACE.where(metadef_namespaces.c.id == after.id)).first()
        place = dict(row._mapping) if row is not None else _columns(after) | {"id": after.id}
    keys = ("created_at", "id") if sort_key == "created_at" else (sort_key, "created_at", "id")
    found = paged(statement, metadef_namespaces, keys, descending, place).limit(limit)
    rows = tx.execute(found, {"project": ctx.project} if to_project else {})
    return [_definitions(row) for row in rows]


def add(tx: Tx, namespace: Namespace) -> Namespace:
    """Add a namespace; the same with the number of its row. Raises `Conflict` when there is one of its name."""
    try:
        with tx.begin_nested():
            made = tx.execute(sa.insert(metadef_namespaces).values(_columns(namespace)))
    except sa.exc.IntegrityError as exc:
        raise errors.Conflict(f"There is a namespace {namespace.name} already.") from exc
    return replace(namespace, id=_inserted_id(made))


def update(tx: Tx, namespace: Namespace) -> None:
    """Write all its columns. Raises `Conflict` when another one has its name."""
    statement = sa.update(metadef_namespaces).where(metadef_namespaces.c.id == namespace.id)
    try:
        with tx.begin_nested():
            tx.execute(statement.values(_columns(namespace)))
    except sa.exc.IntegrityError as exc:
        raise errors.Conflict(f"There is a namespace {namespace.name} already.") from exc


def remove(tx: Tx, namespace_id: int) -> None:
    """Remove a namespace and all that is in it; resource types stay."""
    for table in (metadef_namespace_resource_types, metadef_objects, metadef_properties, metadef_tags):
        tx.execute(sa.delete(table).where(table.c.namespace_id == namespace_id))
    tx.execute(sa.delete(metadef_namespaces).where(metadef_namespaces.c.id == namespace_id))


def clear(tx: Tx) -> tuple[list[str], int]:
    """Remove everything; the names of the namespaces, and how many resource types that were."""
    # Locked first: a writer locks its namespace, so nobody adds a row meanwhile that would keep it from being deleted.
    statement = sa.select(metadef_namespaces.c.namespace).order_by(metadef_namespaces.c.id).with_for_update()
    names = list(tx.execute(statement).scalars())
    for table in (metadef_namespace_resource_types, metadef_objects, metadef_properties, metadef_tags):
        tx.execute(sa.delete(table))
    tx.execute(sa.delete(metadef_namespaces))
    return names, tx.execute(sa.delete(metadef_resource_types)).rowcount


# --- what is in them -------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A row of a part as it stands in a document."""

    name: str
    created_at: datetime
    updated_at: datetime | None
    json_schema: str = ""
    description: str | None = None
    required: str | None = None


@dataclass(frozen=True)
class Kind(Generic[P]):
    """One kind of part of a namespace: its `word` for messages, its table, and how to make a part of a row and back."""

    word: str
    table: sa.Table
    read: Callable[[Any], P]
    columns: Callable[[P], Mapping[str, Any]]


PROPERTY: Final = Kind(
    "property",
    metadef_properties,
    lambda row: MetadefProperty(row.name, _definition(_json(row.json_schema)), *_times(row)),
    lambda part: {"json_schema": json.dumps(part.definition)},
)
OBJECT: Final = Kind(
    "object",
    metadef_objects,
    lambda row: MetadefObject(
        row.name,
        {name: _definition(value) for name, value in _json(row.json_schema).items()},
        *_times(row),
        description=row.description,
        required=tuple(row.required.split(",")) if row.required else (),
    ),
    lambda part: {
        "description": part.description,
        "required": ",".join(part.required),
        "json_schema": json.dumps(part.properties),
    },
)
TAG: Final = Kind("tag", metadef_tags, lambda row: MetadefTag(row.name, *_times(row)), lambda _part: {})


#: What is in a namespace, in the order of the fields of `Definitions`.
_KINDS: Final[tuple[Kind[Any], ...]] = (PROPERTY, OBJECT, TAG)


def parts(tx: Tx, kind: Kind[P], namespace_id: int) -> list[P]:
    """All parts of a kind, in the order in which they were added."""
    table = kind.table
    statement = sa.select(table).where(table.c.namespace_id == namespace_id).order_by(table.c.id)
    return [kind.read(row) for row in tx.execute(statement)]


def part(tx: Tx, kind: Kind[P], namespace_id: int, name: str) -> P | None:
    row = tx.execute(sa.select(kind.table).where(*_part_named(kind, namespace_id, name))).first()
    return kind.read(row) if row is not None else None


def has_part(tx: Tx, kind: Kind[P], namespace_id: int, one: P) -> bool:
    """Whether this part exists, with the same content and time of writing."""
    row = tx.execute(sa.select(kind.table).where(*_part_named(kind, namespace_id, one.name))).mappings().first()
    wanted = {"name": one.name, **kind.columns(one)}
    return (
        row is not None
        and same_moment(row["updated_at"], one.updated_at)
        and all(row[name] == value for name, value in wanted.items())
    )


def add_parts(tx: Tx, kind: Kind[P], namespace_id: int, new: Iterable[P]) -> None:
    """Add all of them in one statement. Raises `Conflict` when a name is there already, or twice among them."""
    rows = [_part_columns(kind, one) | {"namespace_id": namespace_id, "created_at": one.created_at} for one in new]
    if not rows:
        return
    try:
        with tx.begin_nested():
            tx.execute(sa.insert(kind.table), rows)
    except sa.exc.IntegrityError as exc:
        one = rows[0]["name"] if len(rows) == 1 else "of one of these names, or two are alike"
        raise errors.Conflict(f"The namespace already has a {kind.word} {one}.") from exc


def update_part(tx: Tx, kind: Kind[P], namespace_id: int, name: str, changed: P) -> bool:
    """Write all of a part, its name as well. False when there is none; `Conflict` when another one has the name."""
    statement = sa.update(kind.table).where(*_part_named(kind, namespace_id, name))
    try:
        with tx.begin_nested():
            return bool(tx.execute(statement.values(_part_columns(kind, changed))).rowcount)
    except sa.exc.IntegrityError as exc:
        raise errors.Conflict(f"The namespace has a {kind.word} {changed.name} already.") from exc


def remove_part(tx: Tx, kind: Kind[P], namespace_id: int, name: str) -> bool:
    """False when there is none."""
    return bool(tx.execute(sa.delete(kind.table).where(*_part_named(kind, namespace_id, name))).rowcount)


def remove_parts(tx: Tx, kind: Kind[P], namespace_id: int) -> bool:
    """Remove all of a kind. False when there is none."""
    return bool(tx.execute(sa.delete(kind.table).where(kind.table.c.namespace_id == namespace_id)).rowcount)


def page_of_parts(
    tx: Tx,
    kind: Kind[P],
    namespace_id: int,
    *,
    limit: int | None,
    after: str | None,
    sort_key: str,
    descending: bool,
) -> list[P] | None:
    """Some parts of a kind, after the one that is named; None when there is no such one."""
    statement = sa.select(kind.table).where(kind.table.c.namespace_id == namespace_id)
    place: Mapping[str, Any] | None = None
    if after is not None:
        row = tx.execute(statement.where(kind.table.c.name == after)).first()
        if row is None:
            return None
        place = dict(row._mapping)
    keys = tuple(dict.fromkeys((sort_key, "created_at", "id")))
    found = tx.execute(paged(statement, kind.table, keys, descending, place).limit(limit))
    return [kind.read(row) for row in found]


# --- resource types --------------------------------------------------------------------------------------


def resource_types(tx: Tx) -> list[ResourceType]:
    """All resource types, in the order in which they were added."""
    found = tx.execute(sa.select(metadef_resource_types).order_by(metadef_resource_types.c.id))
    return [ResourceType(row.name, *_times(row), protected=bool(row.protected)) for row in found]


def associations(tx: Tx, namespace_id: int) -> list[Association]:
    """The associations of a namespace, in the order of the names of their resource types."""
    links, types = metadef_namespace_resource_types, metadef_resource_types
    statement = sa.select(links, types.c.name).join(types, types.c.id == links.c.resource_type_id)
    found = (
        Association(row.name, *_times(row), prefix=row.prefix, properties_target=row.properties_target)
        for row in tx.execute(statement.where(links.c.namespace_id == namespace_id))
    )
    return sorted(found, key=_type_name)


def resource_type(tx: Tx, name: str) -> str | None:
    """The name of a resource type as it was first written, if it exists."""
    return tx.execute(sa.select(metadef_resource_types.c.name).where(metadef_resource_types.c.name == name)).scalar()


def add_association(tx: Tx, namespace_id: int, new: Association, *, protected: bool = False) -> Association:
    """Add an association, and its resource type when it is new; the same, with the name that the type has.

    Raises `Conflict` when it is there already.
    """
    links = metadef_namespace_resource_types
    values: dict[str, Any] = {"properties_target": new.properties_target, "prefix": new.prefix}
    values |= {"created_at": new.created_at, "updated_at": new.updated_at}
    type_id, name = _resource_type(tx, new, protected)
    try:
        with tx.begin_nested():
            tx.execute(sa.insert(links).values(values | {"namespace_id": namespace_id, "resource_type_id": type_id}))
    except sa.exc.IntegrityError as exc:
        raise errors.Conflict(f"The namespace is for resource type {name} already.") from exc
    return replace(new, resource_type=name)


def remove_association(tx: Tx, namespace_id: int, resource_type: str) -> bool:
    """False when there is none. The resource type stays."""
    links, types = metadef_namespace_resource_types, metadef_resource_types
    type_id = sa.select(types.c.id).where(types.c.name == resource_type).scalar_subquery()
    statement = sa.delete(links).where(links.c.namespace_id == namespace_id, links.c.resource_type_id == type_id)
    return bool(tx.execute(statement).rowcount)


def update_association(tx: Tx, namespace_id: int, changed: Association) -> None:
    """Write the prefix and the target of an association that is there."""
    links, types = metadef_namespace_resource_types, metadef_resource_types
    type_id = sa.select(types.c.id).where(types.c.name == changed.resource_type).scalar_subquery()
    statement = sa.update(links).where(links.c.namespace_id == namespace_id, links.c.resource_type_id == type_id)
    values: dict[str, Any] = {"prefix": changed.prefix, "properties_target": changed.properties_target}
    tx.execute(statement.values(values | {"updated_at": changed.updated_at}))


def _resource_type(tx: Tx, new: Association, protected: bool) -> tuple[int, str]:
    """The id of a resource type, which is added if it is new, and its name as it was first written."""
    types = metadef_resource_types
    existing = sa.select(types.c.id, types.c.name).where(types.c.name == new.resource_type)
    found = tx.execute(existing).first()
    if found is not None:
        return found.id, found.name
    values: dict[str, Any] = {"name": new.resource_type, "protected": protected}
    values |= {"created_at": new.created_at, "updated_at": new.updated_at}
    try:
        with tx.begin_nested():
            return _inserted_id(tx.execute(sa.insert(types).values(values))), new.resource_type
    except sa.exc.IntegrityError:  # somebody else added it just now
        found = tx.execute(existing).one()
        return found.id, found.name


# --- rows ------------------------------------------------------------------------------------------------


def _visible(to_project: bool, to_admin: bool) -> sa.ColumnElement[bool]:
    if to_admin:
        return sa.true()
    public = metadef_namespaces.c.visibility == "public"
    mine: sa.BindParameter[str] = sa.bindparam("project", type_=sa.String())
    return public | exactly(metadef_namespaces.c.owner, mine) if to_project else public


# --- documents: what is in a namespace, as one value -----------------------------------------------------


def _rows_by_namespace(key: Any, rows: sa.FromClause, of: Any, *columns: Any) -> Any:
    """The rows of each namespace as JSON: arrays of `columns` by `key`, a number that gives their order."""
    found = sa.select(json_object_agg(key, json_array(*columns))).select_from(rows).where(of == metadef_namespaces.c.id)
    return json_subquery(found.correlate(metadef_namespaces).scalar_subquery())


def _parts_json(kind: Kind[Any]) -> Any:
    table = kind.table
    return _rows_by_namespace(table.c.id, table, table.c.namespace_id, *(table.c[name] for name in _fields(kind)))


def _fields(kind: Kind[Any]) -> list[str]:
    return [name for name in _Row._fields if name in kind.table.c]


def _associations_json() -> Any:
    links, types = metadef_namespace_resource_types, metadef_resource_types
    columns = (types.c.name, links.c.created_at, links.c.updated_at, links.c.prefix, links.c.properties_target)
    return _rows_by_namespace(
        types.c.id, links.join(types, types.c.id == links.c.resource_type_id), links.c.namespace_id, *columns
    )


_LISTED: Final = sa.select(metadef_namespaces, json_array(_associations_json()).label("document"))
_WHOLE: Final = sa.select(
    metadef_namespaces, json_array(_associations_json(), *map(_parts_json, _KINDS)).label("document")
)


def _definitions(row: Any) -> Definitions:
    """A namespace with what is in its document. Raises `Busy` if it is larger than the database may answer."""
    if row.document is None:
        LOG.error("namespace %s is larger than the database may answer (max_allowed_packet)", row.namespace)
        raise errors.Busy("The database cannot answer with all of this namespace.")
    links, *parts_ = row.document  # a list has the associations alone
    return Definitions(_namespace(row), _links(links), *map(_read, _KINDS, parts_))


def _links(found: dict[str, list[Any]] | None) -> tuple[Association, ...]:
    links = (
        Association(name, *_moments(created_at, updated_at), prefix=prefix, properties_target=target)
        for name, created_at, updated_at, prefix, target in _in_order(found)
    )
    return tuple(sorted(links, key=_type_name))


def _type_name(one: Association) -> str:
    return one.resource_type


def _read(kind: Kind[P], found: dict[str, list[Any]] | None) -> tuple[P, ...]:
    return tuple(
        kind.read(_Row(name, *_moments(created_at, updated_at), *more))
        for name, created_at, updated_at, *more in _in_order(found)
    )


def _in_order(found: dict[str, list[Any]] | None) -> list[list[Any]]:
    return [found[number] for number in sorted(found, key=int)] if found else []


def _moments(created_at: str, updated_at: str | None) -> tuple[datetime, datetime]:
    created = datetime.fromisoformat(created_at)
    return created, datetime.fromisoformat(updated_at) if updated_at else created


def _part_named(kind: Kind[Any], namespace_id: int, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    return kind.table.c.namespace_id == namespace_id, kind.table.c.name == name


def _part_columns(kind: Kind[P], one: P) -> dict[str, Any]:
    return {**kind.columns(one), "name": one.name, "updated_at": one.updated_at}


def _columns(namespace: Namespace) -> dict[str, Any]:
    names = ("display_name", "description", "visibility", "protected", "owner", "created_at", "updated_at")
    return {"namespace": namespace.name} | {name: getattr(namespace, name) for name in names}


def _namespace(row: Any) -> Namespace:
    created_at, updated_at = _times(row)
    return Namespace(
        row.id,
        row.namespace,
        row.owner,
        created_at,
        updated_at,
        display_name=row.display_name,
        description=row.description,
        visibility=row.visibility or "private",
        protected=bool(row.protected),
    )


def _times(row: Any) -> tuple[datetime, datetime]:
    return row.created_at, row.updated_at or row.created_at


def _inserted_id(made: sa.CursorResult[Any]) -> int:
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def _json(text: str) -> dict[str, Any]:
    """The JSON object in a row; empty if another program wrote something else there."""
    try:
        found = json.loads(text, parse_constant=lambda _: None)  # NaN is no JSON, whatever Python writes
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _definition(found: Any) -> dict[str, Any]:
    """The fields of a definition. In rows of Glance there is a name among them, and null for a missing field."""
    given = found if isinstance(found, dict) else {}
    return {name: value for name, value in given.items() if value is not None and name != "name"}
