"""Use-cases for image records: create, show, list, update, tag, deactivate, delete.

Each use-case fetches the record, asks the policy, and acts, in that order. A change is one transaction that locks the
record first. So the second of two concurrent changes works on the result of the first.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from calotype import errors
from calotype.context import Context
from calotype.db import images as db_images
from calotype.db import jobs, pages
from calotype.db.engine import Tx, same_moment
from calotype.images import quota, removal, sharing
from calotype.images.quota import check_limit
from calotype.model import FORMATS_OPEN, MAX_PROPERTIES, RESERVED_PREFIX, Change, Image, Job, Query, check_path_names
from calotype.policy import no_image
from calotype.service import Service

#: Attributes that a client may write.
WRITABLE: Final = frozenset(
    "name visibility protected os_hidden owner container_format disk_format min_disk min_ram tags".split()
)
#: Attributes that only the service writes.
READ_ONLY: Final = frozenset(
    (
        "created_at updated_at status checksum size virtual_size direct_url self file schema id "
        "os_hash_algo os_hash_value stores"
    ).split()
)
#: Names that custom properties may not have.
RESERVED: Final = frozenset({"location", "locations", "deleted", "deleted_at"})

_VISIBILITY_RULES: Final = {"public": "publicize_image", "community": "communitize_image"}


@dataclass(frozen=True, slots=True)
class NewImage:
    """What a client asks for when it creates an image. Types and lengths are checked already."""

    id: str | None = None
    name: str | None = None
    visibility: str | None = None
    owner: str | None = None  #: None: the caller's project; empty: no owner
    protected: bool = False
    os_hidden: bool = False
    disk_format: str | None = None
    container_format: str | None = None
    min_disk: int = 0
    min_ram: int = 0
    tags: Sequence[str] = ()
    properties: dict[str, str] = field(default_factory=dict)


def owner_of(ctx: Context, new: NewImage) -> str | None:
    """The project that the image will belong to."""
    return ctx.project if new.owner is None else new.owner or None


def create(
    svc: Service, ctx: Context, new: NewImage, *, also: Callable[[Tx, Image], None] = lambda _tx, _image: None
) -> Image:
    """Add a queued image. Raises `Forbidden`, `OverLimit`; `Conflict` for an id that is or was in use.

    `also` does more in the same transaction, which may run again; what it raises undoes everything.
    """
    owner = owner_of(ctx, new)
    visibility = new.visibility or "shared"
    target = {"project_id": owner, "owner": owner, "visibility": new.visibility or "private"}
    if not ctx.is_admin and (owner is None or owner != ctx.project):
        raise errors.Forbidden("You are not permitted to create images owned by another project.")
    svc.policy.check(ctx, "add_image", target)
    if rule := _VISIBILITY_RULES.get(visibility):
        svc.policy.check(ctx, rule, target)
    check_limit(svc.conf.image_property_quota, _count_custom(new.properties), "properties")  # the cheapest check
    for name in new.properties:
        _refuse_special(name)
        svc.protections.check(ctx, "create", name)
    check_limit(MAX_PROPERTIES, _json_size(new.properties), "bytes for all properties")
    tags = tuple(sorted(set(new.tags)))
    check_limit(svc.conf.image_tag_quota, len(tags), "tags")
    check_path_names(tags, "The tag")
    now = svc.now()
    image = Image(
        id=(new.id or str(uuid.uuid4())).lower(),
        name=new.name,
        status="queued",
        visibility=visibility,
        owner=owner,
        created_at=now,
        updated_at=now,
        protected=new.protected,
        os_hidden=new.os_hidden,
        disk_format=new.disk_format,
        container_format=new.container_format,
        min_disk=new.min_disk,
        min_ram=new.min_ram,
        properties=new.properties,
        tags=tags,
    )

    allowed = quota.allowance(svc, ctx, owner)

    def work(tx: Tx) -> None:
        db_images.add(tx, image, has_random_id=new.id is None)
        quota.check_image_count(tx, allowed)
        svc.events.image(tx, image, "image.create")
        also(tx, image)

    def committed(tx: Tx, _: None) -> bool:
        found = db_images.get(tx, ctx, image.id)
        return found is not None and found.owner == owner and same_moment(found.created_at, now)

    svc.db.write(work, committed)
    return svc.protections.seen_by(ctx, image)


def show(svc: Service, ctx: Context, image_id: str) -> Image:
    """The image. Raises `NotFound` whenever the caller may not see it."""
    image = svc.db.read(lambda tx: db_images.show(tx, svc.db.record_cache, ctx, image_id))
    if image is None:
        raise no_image(image_id)
    svc.policy.check_image(ctx, "get_image", image)
    return svc.protections.seen_by(ctx, image)


def list_(svc: Service, ctx: Context, query: Query) -> tuple[list[Image], str | None]:
    """A page of images, and the marker of the next page if there is one."""
    svc.policy.check(ctx, "get_images", {"project_id": ctx.project})
    if not all(svc.protections.allows(ctx, "read", name) for name in query.properties):
        return [], None  # as if no image had the property: what a filter finds would tell its value
    wanted = replace(query, limit=query.limit + 1 if query.limit else 0)
    try:
        read = svc.db.read if pages.needs_one_statement(wanted) else svc.db.snapshot
        rows = read(lambda tx: pages.page(tx, svc.db.record_cache, ctx, wanted))
    except pages.ChangedMeanwhile:
        rows = svc.db.snapshot(lambda tx: pages.page(tx, svc.db.record_cache, ctx, wanted))
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    images = [row for row in rows if isinstance(row, Image)]
    last = rows[-1] if more else None
    shown = [svc.protections.seen_by(ctx, image) for image in svc.policy.readable(ctx, images)]
    return shown, last.id if isinstance(last, Image) else last


def update(svc: Service, ctx: Context, image_id: str, changes: Sequence[Change]) -> Image:
    """Apply changes in order, all or none. Raises `NotFound`, `Forbidden`, `Conflict`, `OverLimit`."""

    def work(tx: Tx) -> Image:
        before = fetch(tx, ctx, image_id)
        svc.policy.check_image(ctx, "modify_image", before)
        attributes: dict[str, Any] = {}
        properties = dict(before.properties)
        for change in changes:
            _apply(svc, ctx, before, attributes, properties, change)
        after = replace(before, **attributes, properties=properties)
        if after.visibility != before.visibility and (rule := _VISIBILITY_RULES.get(after.visibility)):
            svc.policy.check_image(ctx, rule, after)
        if set(after.properties) - set(before.properties):
            check_limit(svc.conf.image_property_quota, _count_custom(after.properties), "properties")
        if added := set(after.tags) - set(before.tags):
            check_limit(svc.conf.image_tag_quota, len(after.tags), "tags")
            check_path_names(sorted(added), "The tag")  # Those that Glance left may stay.
        if _json_size(after.properties) > _json_size(before.properties):
            check_limit(MAX_PROPERTIES, _json_size(after.properties), "bytes for all properties")
        if after == before:
            return before
        after = replace(after, updated_at=svc.now())
        db_images.save(tx, before, after)
        svc.events.image(tx, after, "image.update")
        return after

    def committed(tx: Tx, after: Image) -> bool:
        found = db_images.get(tx, ctx, image_id)
        return found is not None and all(_value(found, change.name) == _value(after, change.name) for change in changes)

    image = svc.db.write(work, committed)
    if any(change.name == "visibility" for change in changes):
        sharing.tell_stores(svc, image_id)
    return svc.protections.seen_by(ctx, image)


def _value(image: Image, name: str) -> Any:
    return getattr(image, name) if name in WRITABLE else image.properties.get(name)


def add_tag(svc: Service, ctx: Context, image_id: str, tag: str) -> None:
    """Add a tag, unless the image has it already."""

    def work(tx: Tx) -> None:
        image = fetch(tx, ctx, image_id)
        svc.policy.check_image(ctx, "modify_image", image)
        if tag in image.tags:
            return
        check_limit(svc.conf.image_tag_quota, len(image.tags) + 1, "tags")
        check_path_names([tag], "The tag")
        after = replace(image, tags=(*image.tags, tag), updated_at=svc.now())
        db_images.save(tx, image, after)
        svc.events.image(tx, after, "image.update")

    svc.db.write(work)


def remove_tag(svc: Service, ctx: Context, image_id: str, tag: str) -> None:
    """Remove a tag. Raises `NotFound` if the image does not have it."""

    def work(tx: Tx) -> None:
        image = fetch(tx, ctx, image_id)
        svc.policy.check_image(ctx, "modify_image", image)
        if tag not in image.tags:
            raise errors.NotFound(f"The image has no tag {tag!r}.")
        tags = tuple(other for other in image.tags if other != tag)
        after = replace(image, tags=tags, updated_at=svc.now())
        db_images.save(tx, image, after)
        svc.events.image(tx, after, "image.update")

    def committed(tx: Tx, _: None) -> bool:
        found = db_images.get(tx, ctx, image_id)
        return found is not None and tag not in found.tags

    svc.db.write(work, committed)


def deactivate(svc: Service, ctx: Context, image_id: str) -> None:
    """Let nobody but administrators read the data, until `reactivate`."""
    _set_active(svc, ctx, image_id, "deactivate", "active", "deactivated")


def reactivate(svc: Service, ctx: Context, image_id: str) -> None:
    """Undo `deactivate`."""
    _set_active(svc, ctx, image_id, "reactivate", "deactivated", "active")


def _set_active(svc: Service, ctx: Context, image_id: str, action: str, expected: str, to: str) -> None:
    def work(tx: Tx) -> None:
        image = fetch(tx, ctx, image_id)
        svc.policy.check_image(ctx, action, image)
        if image.status == to:
            return
        if image.status != expected:
            raise errors.Forbidden(f"An image in status {image.status} cannot be {action}d.")
        db_images.move(tx, image.id, expected, to, now=svc.now())
        svc.events.image(tx, image.id, "image.update")

    svc.db.write(work)


def delete(svc: Service, ctx: Context, image_id: str) -> None:
    """Delete the record and its data. Raises `NotFound`, `Forbidden`, `Conflict` when the data is in use."""

    def work(tx: Tx) -> tuple[Image, Job | None]:
        image = fetch(tx, ctx, image_id)
        svc.policy.check_image(ctx, "delete_image", image)
        if image.protected:
            raise errors.Forbidden(f"Image {image.id} is protected and cannot be deleted.")
        return image, removal.begin(svc, tx, image)

    def committed(tx: Tx, deleted: tuple[Image, Job | None]) -> bool:
        image, job = deleted
        return jobs.is_current(tx, job) if job else db_images.is_deleted(tx, image.id)

    image, job = svc.db.write(work, committed, on_unknown=lambda deleted: svc.leases.abandon(deleted[1]))
    if job is not None:
        removal.carry_out(svc, ctx, job, asked=True)
    if image.status == "saving":
        svc.nudge()


def fetch(tx: Tx, ctx: Context, image_id: str) -> Image:
    """The image, locked for a change. Raises `NotFound`."""
    image = db_images.get(tx, ctx, image_id, lock=True)
    if image is None:
        raise no_image(image_id)
    return image


def _apply(
    svc: Service,
    ctx: Context,
    image: Image,
    attributes: dict[str, Any],
    properties: dict[str, str],
    change: Change,
) -> None:
    """Apply one step of an update to `attributes`, the ones that are changed, and `properties` (contract: api.md §3.4).

    Both are changed in place, as there may be thousands of steps.
    """
    name, value = change.name, change.value
    if name in WRITABLE:
        attributes[name] = _attribute(ctx, image, change)
        return
    _refuse_special(name)
    is_readable = svc.protections.allows(ctx, "read", name)
    exists = is_readable and name in properties  # to the caller, a property that it may not read does not exist
    if change.op == "add" and exists and change.strict_add:
        raise errors.Conflict(f"Property {name} already present.")
    if change.op in ("replace", "remove") and not exists:
        raise errors.Conflict(f"Property {name} does not exist.")
    if change.op == "remove":
        svc.protections.check(ctx, "delete", name)
        del properties[name]
    else:
        if exists or not is_readable:
            svc.protections.check(ctx, "update", name)
        if not exists:  # one that the caller may not read takes both rights, so that no answer tells if it exists
            svc.protections.check(ctx, "create", name)
        properties[name] = value


def _attribute(ctx: Context, image: Image, change: Change) -> Any:
    """The value that a step gives an attribute. Raises `Forbidden`, `Conflict`."""
    name: str = change.name
    value: Any = change.value
    if change.op == "remove":
        raise errors.Forbidden(f"Property {name} may not be removed.")
    if change.op == "add" and change.strict_add:
        raise errors.Conflict(f"Property {name} already present.")
    if name == "owner":
        if not ctx.is_admin:
            raise errors.Forbidden("Only an administrator may change the owner of an image.")
        value = value or None
    if name == "tags":
        value = tuple(sorted(set(value)))
    if (
        name in ("disk_format", "container_format")
        and image.status not in FORMATS_OPEN
        and value != getattr(image, name)
    ):
        raise errors.Forbidden(f"Attribute {name} can only be replaced for a queued image.")
    return value


def _refuse_special(name: str) -> None:
    if name in READ_ONLY:
        raise errors.Forbidden(f"Attribute '{name}' is read-only.")
    if name in RESERVED or name.startswith(RESERVED_PREFIX):
        raise errors.Forbidden(f"Attribute '{name}' is reserved.")


def _count_custom(properties: Any) -> int:
    return sum(not name.startswith(RESERVED_PREFIX) for name in properties)


def _json_size(properties: Mapping[str, str]) -> int:
    return len(json.dumps(dict(properties)))
