"""Use-cases for resource types, and for the associations of namespaces with them."""

from calotype.context import Context
from calotype.db import metadefs
from calotype.db.engine import Tx, same_moment
from calotype.events import about_association
from calotype.metadefs.namespaces import fetch, refuse_protected
from calotype.metadefs.parts import no_association
from calotype.model import Association, Namespace, ResourceType
from calotype.policy import namespace_target
from calotype.service import Service


def types(svc: Service, ctx: Context) -> list[ResourceType]:
    """All resource types, in the order in which they were added. Raises `NotFound`, `Forbidden`."""
    svc.policy.check_namespace(ctx, "list_metadef_resource_types", None)
    return svc.db.read(metadefs.resource_types)


def list_(svc: Service, ctx: Context, namespace: str) -> list[Association]:
    """The associations of a namespace; none if the caller may not see them. Raises `NotFound`, `Forbidden`."""

    def work(tx: Tx) -> list[Association]:
        found = fetch(svc, tx, ctx, namespace, "list_metadef_resource_types")
        if not svc.policy.allows(ctx, "get_metadef_resource_type", namespace_target(found)):
            return []
        return metadefs.associations(tx, found.id)

    return svc.db.snapshot(work)


def add(svc: Service, ctx: Context, namespace: str, new: Association) -> Association:
    """Associate a namespace with a resource type, which is added if it is new.

    Raises `NotFound`, `Forbidden`, `Conflict`.
    """

    def work(tx: Tx) -> tuple[Namespace, Association]:
        found = fetch(svc, tx, ctx, namespace, "add_metadef_resource_type_association", lock=True)
        added = metadefs.add_association(tx, found.id, new)
        svc.events.metadef(tx, "metadef_resource_type.create", about_association, found.name, added)
        return found, added

    _, added = svc.db.write(work, lambda tx, made: _is_stored(tx, *made))
    return added


def remove(svc: Service, ctx: Context, namespace: str, resource_type: str) -> None:
    """Remove an association. Raises `NotFound`, `Forbidden`, also when the namespace is protected."""

    def work(tx: Tx) -> Namespace:
        found = fetch(svc, tx, ctx, namespace, "remove_metadef_resource_type_association", lock=True)
        link = _association(tx, found, resource_type)
        if link is None:
            raise no_association(namespace, resource_type)
        refuse_protected(found)
        metadefs.remove_association(tx, found.id, resource_type)
        now = svc.now()
        svc.events.metadef(tx, "metadef_resource_type.delete", about_association, found.name, link, now)
        return found

    svc.db.write(work, lambda tx, found: _association(tx, found, resource_type) is None)


def _association(tx: Tx, namespace: Namespace, resource_type: str) -> Association | None:
    links = metadefs.associations(tx, namespace.id)
    return next((link for link in links if link.resource_type == resource_type), None)


def _is_stored(tx: Tx, namespace: Namespace, wanted: Association) -> bool:
    found = _association(tx, namespace, wanted.resource_type)
    if found is None or not same_moment(found.created_at, wanted.created_at):
        return False
    return (found.prefix, found.properties_target) == (wanted.prefix, wanted.properties_target)
