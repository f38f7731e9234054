"""Use-cases for namespaces of metadata definitions: list, show, create, update, delete. `parts.py` has their parts."""

from collections.abc import Sequence
from dataclasses import replace

from calotype import errors
from calotype.context import Context
from calotype.db import metadefs
from calotype.db.engine import Tx, same_moment
from calotype.db.metadefs import OBJECT, PROPERTY, TAG
from calotype.events import about_association, about_namespace, about_part
from calotype.model import Definitions, Namespace
from calotype.policy import namespace_target, no_namespace
from calotype.service import Service


def list_(
    svc: Service,
    ctx: Context,
    *,
    limit: int,
    marker: str | None,
    sort_key: str,
    descending: bool,
    visibility: str | None,
    resource_types: Sequence[str] | None,
) -> tuple[list[Definitions], str | None]:
    """A page of namespaces with their associations alone, and the marker of the next page if there is one.

    `resource_types` leaves only namespaces that are for one of these. Raises `Forbidden`; `NotFound`, also for a marker
    that does not exist.
    """
    svc.policy.check_namespace(ctx, "get_metadef_namespaces", None)

    def work(tx: Tx) -> list[Definitions]:
        after = metadefs.get(tx, ctx, marker) if marker is not None else None
        if marker is not None and after is None:
            raise no_namespace(marker)
        return metadefs.page(
            tx,
            ctx,
            limit=limit + 1,  # is there a next page?
            after=after,
            sort_key=sort_key,
            descending=descending,
            visibility=visibility,
            resource_types=resource_types,
        )

    if not limit:
        return [], None
    found = svc.db.read(work) if marker is None else svc.db.snapshot(work)
    shown = [
        one for one in found[:limit] if svc.policy.allows(ctx, "get_metadef_namespace", namespace_target(one.namespace))
    ]
    for one in shown:
        svc.policy.check_namespace(ctx, "list_metadef_resource_types", one.namespace)
    return shown, found[limit - 1].namespace.name if len(found) > limit else None


def show(svc: Service, ctx: Context, name: str) -> Definitions:
    """A namespace with all that is in it; the newest tags come first. Raises `NotFound`, `Forbidden`."""

    def work(tx: Tx) -> Definitions:
        found = metadefs.get_definitions(tx, ctx, name)
        if found is None:
            raise no_namespace(name)
        for action in (
            "get_metadef_namespace",
            "list_metadef_resource_types",
            "get_metadef_objects",
            "get_metadef_properties",
            "get_metadef_tags",
        ):
            svc.policy.check_namespace(ctx, action, found.namespace)
        return replace(found, tags=found.tags[::-1])

    return svc.db.read(work)


def create(svc: Service, ctx: Context, new: Definitions) -> Definitions:
    """Add a namespace with all that is in it; all or nothing. Raises `NotFound`, `Forbidden`, `Conflict`."""
    svc.policy.check_namespace(ctx, "add_metadef_namespace", None, new=new.namespace)
    for action, given in (
        ("add_metadef_resource_type_association", new.associations),
        ("add_metadef_object", new.objects),
        ("add_metadef_property", new.properties),
        ("add_metadef_tag", new.tags),
    ):
        if given:
            svc.policy.check_namespace(ctx, action, None, new=new.namespace)

    def work(tx: Tx) -> Definitions:
        return add_contents(svc, tx, replace(new, namespace=metadefs.add(tx, new.namespace)))

    return svc.db.write(work, lambda tx, added: _is_stored(tx, added.namespace))


def add_contents(svc: Service, tx: Tx, new: Definitions) -> Definitions:
    """Add all that is in a namespace whose row was just added, and send events; returns it as stored."""
    namespace = new.namespace
    svc.events.metadef(tx, "metadef_namespace.create", about_namespace, namespace)
    # New resource types are added in one order: two requests with the same types never wait for each other.
    links = {}
    for link in sorted(new.associations, key=lambda link: link.resource_type.lower()):
        links[link] = metadefs.add_association(tx, namespace.id, link)
        svc.events.metadef(tx, "metadef_resource_type.create", about_association, namespace.name, links[link])
    metadefs.add_parts(tx, PROPERTY, namespace.id, new.properties)
    metadefs.add_parts(tx, OBJECT, namespace.id, new.objects)
    metadefs.add_parts(tx, TAG, namespace.id, new.tags)
    for kind, parts in ((PROPERTY, new.properties), (OBJECT, new.objects), (TAG, new.tags)):
        for part in parts:
            svc.events.metadef(tx, f"metadef_{kind.word}.create", about_part, namespace.name, part)
    return replace(new, associations=tuple(links[link] for link in new.associations))


def update(svc: Service, ctx: Context, name: str, new: Namespace) -> Namespace:
    """Replace all fields of a namespace; its parts stay.

    Raises `NotFound`, `Forbidden`, `Conflict` when another one has the new name.
    """

    def work(tx: Tx) -> Namespace:
        found = fetch(svc, tx, ctx, name, "modify_metadef_namespace", lock=True)
        changed = replace(new, id=found.id, created_at=found.created_at)
        if _equals(found, changed):
            return changed  # a retry, and the commit in doubt has succeeded
        metadefs.update(tx, changed)
        svc.events.metadef(tx, "metadef_namespace.update", about_namespace, changed, found.name)
        return changed

    return svc.db.write(work, _is_stored)


def delete(svc: Service, ctx: Context, name: str) -> None:
    """Delete a namespace and all that is in it. Raises `NotFound`, `Forbidden`, also when it is protected."""

    def work(tx: Tx) -> Namespace:
        found = fetch(svc, tx, ctx, name, "delete_metadef_namespace", lock=True)
        refuse_protected(found)
        metadefs.remove(tx, found.id)
        svc.events.metadef(tx, "metadef_namespace.delete", about_namespace, found, deleted_at=svc.now())
        return found

    svc.db.write(work, lambda tx, found: metadefs.by_id(tx, found.id) is None)


def fetch(svc: Service, tx: Tx, ctx: Context, name: str, *actions: str, lock: bool = False) -> Namespace:
    """The namespace, if the caller sees it and the policy allows these actions. Raises `NotFound`, `Forbidden`."""
    found = metadefs.get(tx, ctx, name, lock=lock)
    if found is None:
        raise no_namespace(name)
    for action in actions or ("get_metadef_namespace",):
        svc.policy.check_namespace(ctx, action, found)
    return found


def refuse_protected(namespace: Namespace) -> None:
    """Raise `Forbidden` for a protected namespace: nothing of it may be deleted."""
    if namespace.protected:
        raise errors.Forbidden(
            f"Metadata definition namespace {namespace.name} is protected: nothing of it is deleted."
        )


def _is_stored(tx: Tx, wanted: Namespace) -> bool:
    """Whether the namespace is stored as a change left it."""
    found = metadefs.by_id(tx, wanted.id)
    return found is not None and _equals(found, wanted)


def _equals(found: Namespace, wanted: Namespace) -> bool:
    """Whether a row is what was written, as precisely as databases keep times."""
    same_times = replace(found, created_at=wanted.created_at, updated_at=wanted.updated_at)
    return same_moment(found.updated_at, wanted.updated_at) and same_times == wanted
