"""Use-cases for the parts of namespaces: properties, objects and tags. One function serves all three kinds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from calotype import errors
from calotype.context import Context
from calotype.db import metadefs
from calotype.db.engine import Tx, same_moment
from calotype.db.metadefs import OBJECT, PROPERTY, TAG, Kind
from calotype.events import about_namespace, about_part
from calotype.metadefs.namespaces import fetch, refuse_protected
from calotype.model import MetadefPart, MetadefProperty, MetadefTag, Namespace
from calotype.service import Service

P = TypeVar("P", bound=MetadefPart)


@dataclass(frozen=True, slots=True)
class _Rules:
    """The policy rules for one kind of part; `clear` has those for removing all at once."""

    list_: str
    show: str
    add: str
    modify: str
    remove: str
    clear: tuple[str, ...] = ("delete_metadef_namespace",)


_RULES: Final[Mapping[str, _Rules]] = {
    OBJECT.word: _Rules(
        "get_metadef_objects",
        "get_metadef_object",
        "add_metadef_object",
        "modify_metadef_object",
        "delete_metadef_object",
    ),
    PROPERTY.word: _Rules(
        "get_metadef_properties",
        "get_metadef_property",
        "add_metadef_property",
        "modify_metadef_property",
        "remove_metadef_property",
    ),
    TAG.word: _Rules(
        "get_metadef_tags",
        "get_metadef_tag",
        "add_metadef_tag",
        "modify_metadef_tag",
        "delete_metadef_tag",
        ("delete_metadef_namespace", "delete_metadef_tags"),
    ),
}
_PLURALS: Final = {OBJECT.word: "objects", PROPERTY.word: "properties", TAG.word: "tags"}


def list_(svc: Service, ctx: Context, namespace: str, kind: Kind[P]) -> list[P]:
    """All parts of a kind, in the order in which they were added. Raises `NotFound`, `Forbidden`."""

    def work(tx: Tx) -> list[P]:
        found = fetch(svc, tx, ctx, namespace, _RULES[kind.word].list_)
        return metadefs.parts(tx, kind, found.id)

    return svc.db.snapshot(work)


def page(
    svc: Service,
    ctx: Context,
    namespace: str,
    kind: Kind[P],
    *,
    limit: int | None,
    marker: str | None,
    sort_key: str,
    descending: bool,
) -> tuple[list[P], str | None]:
    """A page of parts, or all, and the marker of the next page if there is one. Raises as `list_`.

    Raises `NotFound` also for a marker that does not exist.
    """

    def work(tx: Tx) -> list[P]:
        found = fetch(svc, tx, ctx, namespace, _RULES[kind.word].list_)
        page = metadefs.page_of_parts(
            tx,
            kind,
            found.id,
            limit=None if limit is None else limit + 1,  # is there a next page?
            after=marker,
            sort_key=sort_key,
            descending=descending,
        )
        if page is None:
            raise _no_part(kind, namespace, marker or "")
        return page

    found = svc.db.snapshot(work)
    has_more = limit and len(found) > limit
    return found[:limit], found[limit - 1].name if limit and has_more else None


def show(svc: Service, ctx: Context, namespace: str, kind: Kind[P], name: str) -> P:
    """One part. Raises `NotFound`, `Forbidden`."""

    def work(tx: Tx) -> P:
        found = fetch(svc, tx, ctx, namespace, _RULES[kind.word].show)
        return _part(tx, kind, found, name)

    return svc.db.snapshot(work)


def show_for(svc: Service, ctx: Context, namespace: str, name: str, resource_type: str) -> MetadefProperty:
    """A property by the name that it has on a resource type: the prefix of the association, then its own name.

    It is returned under its own name. Raises `NotFound` when there is no such association, or the prefix is missing.
    """

    def work(tx: Tx) -> MetadefProperty:
        found = fetch(svc, tx, ctx, namespace, _RULES[PROPERTY.word].show, "get_metadef_resource_type")
        links = metadefs.associations(tx, found.id)
        link = next((link for link in links if link.resource_type == resource_type), None)
        if link is None:
            raise no_association(namespace, resource_type)
        if not name.startswith(link.prefix or ""):
            raise _no_part(PROPERTY, namespace, name)
        return _part(tx, PROPERTY, found, name.removeprefix(link.prefix or ""))

    return svc.db.snapshot(work)


def add(svc: Service, ctx: Context, namespace: str, kind: Kind[P], new: P) -> P:
    """Add a part. Raises `NotFound`, `Forbidden`, `Conflict` when there is one of its name."""

    def work(tx: Tx) -> P:
        found = fetch(svc, tx, ctx, namespace, _RULES[kind.word].add, lock=True)
        metadefs.add_parts(tx, kind, found.id, [new])
        _emit(svc, tx, "create", kind, found, new)
        return new

    return svc.db.write(work, lambda tx, added: _is_stored(tx, ctx, namespace, kind, added))


def add_tags(
    svc: Service, ctx: Context, namespace: str, new: Sequence[MetadefTag], *, append: bool
) -> list[MetadefTag]:
    """Add tags. Unless `append` is set, they replace the tags that exist, if any are given. Raises as `add`."""

    def work(tx: Tx) -> list[MetadefTag]:
        found = fetch(svc, tx, ctx, namespace, "add_metadef_tags", lock=True)
        if new and not append:
            existing = metadefs.parts(tx, TAG, found.id)
            if [tag.name for tag in existing] == [tag.name for tag in new] and _are_stored(existing, new):
                return list(new)  # a retry, and the commit in doubt has succeeded
            metadefs.remove_parts(tx, TAG, found.id)
        metadefs.add_parts(tx, TAG, found.id, new)
        for tag in new:
            _emit(svc, tx, "create", TAG, found, tag)
        return list(new)

    def committed(tx: Tx, added: list[MetadefTag]) -> bool:
        existing = metadefs.get(tx, ctx, namespace)
        return existing is not None and _are_stored(metadefs.parts(tx, TAG, existing.id), added)

    return svc.db.write(work, committed)


def change(svc: Service, ctx: Context, namespace: str, kind: Kind[P], name: str, new: P) -> P:
    """Replace a part, perhaps under a new name. It keeps `created_at`. Raises as `add`."""

    def work(tx: Tx) -> P:
        found = fetch(svc, tx, ctx, namespace, _RULES[kind.word].modify, lock=True)
        old = _part(tx, kind, found, name)
        changed = replace(new, created_at=old.created_at)
        if old.name == new.name and metadefs.has_part(tx, kind, found.id, changed):
            return changed  # a retry, and the commit in doubt has succeeded
        metadefs.update_part(tx, kind, found.id, name, changed)
        _emit(svc, tx, "update", kind, found, changed, old_name=old.name)
        return changed

    def committed(tx: Tx, changed: P) -> bool:
        existing = metadefs.get(tx, ctx, namespace)
        old = metadefs.part(tx, kind, existing.id, name) if existing else None
        return _is_stored(tx, ctx, namespace, kind, changed) and (old is None or old.name == changed.name)

    return svc.db.write(work, committed)


def remove(svc: Service, ctx: Context, namespace: str, kind: Kind[P], name: str) -> None:
    """Remove a part. Raises `NotFound`, `Forbidden`, also when the namespace is protected."""

    def work(tx: Tx) -> Namespace:
        found = fetch(svc, tx, ctx, namespace, _RULES[kind.word].remove, lock=True)
        old = _part(tx, kind, found, name)
        refuse_protected(found)
        metadefs.remove_part(tx, kind, found.id, name)
        _emit(svc, tx, "delete", kind, found, old, deleted_at=svc.now())
        return found

    svc.db.write(work, lambda tx, found: metadefs.part(tx, kind, found.id, name) is None)


def clear(svc: Service, ctx: Context, namespace: str, kind: Kind[P]) -> None:
    """Remove all parts of a kind. Raises as `remove`."""

    def work(tx: Tx) -> None:
        found = fetch(svc, tx, ctx, namespace, *_RULES[kind.word].clear, lock=True)
        refuse_protected(found)
        if metadefs.remove_parts(tx, kind, found.id):
            event_type = f"metadef_namespace.delete_{_PLURALS[kind.word]}"
            svc.events.metadef(tx, event_type, about_namespace, found, deleted_at=svc.now())

    svc.db.write(work)


def no_association(namespace: str, resource_type: str) -> errors.NotFound:
    return errors.NotFound(f"Namespace {namespace[:100]} is not associated with resource type {resource_type[:100]}.")


def _part(tx: Tx, kind: Kind[P], namespace: Namespace, name: str) -> P:
    found = metadefs.part(tx, kind, namespace.id, name)
    if found is None:
        raise _no_part(kind, namespace.name, name)
    return found


def _no_part(kind: Kind[Any], namespace: str, name: str) -> errors.NotFound:
    return errors.NotFound(f"Namespace {namespace[:100]} has no {kind.word} {name[:100]}.")


def _is_stored(tx: Tx, ctx: Context, namespace: str, kind: Kind[P], wanted: P) -> bool:
    """Whether a part is stored as a change left it."""
    existing = metadefs.get(tx, ctx, namespace)
    return existing is not None and metadefs.has_part(tx, kind, existing.id, wanted)


def _are_stored(existing: Sequence[MetadefTag], wanted: Sequence[MetadefTag]) -> bool:
    """Whether tags are among the existing ones as a change left them."""
    moments = {tag.name: tag.updated_at for tag in existing}
    return all(tag.name in moments and same_moment(moments[tag.name], tag.updated_at) for tag in wanted)


def _emit(svc: Service, tx: Tx, what: str, kind: Kind[P], namespace: Namespace, part: P, **details: Any) -> None:
    svc.events.metadef(tx, f"metadef_{kind.word}.{what}", about_part, namespace.name, part, **details)
