"""Use-cases for members: the projects that an image is shared with, and whether they accept it."""

import logging

from calotype import errors
from calotype.context import SERVICE, Context
from calotype.db import images as db_images
from calotype.db import members
from calotype.db.engine import Tx, same_moment
from calotype.images.quota import check_limit
from calotype.model import Image, Member
from calotype.policy import member_target, no_image
from calotype.service import Service
from calotype.stores.base import Shares

LOG = logging.getLogger(__name__)


def list_(svc: Service, ctx: Context, image_id: str) -> list[Member]:
    """The members of an image; a member sees itself alone. Raises `Forbidden` if the image is not shared."""

    def work(tx: Tx) -> tuple[Image, list[Member]]:
        image = _get_shared(svc, tx, ctx, image_id)
        svc.policy.check_image(ctx, "get_members", image)
        return image, members.members_of(tx, image.id)

    image, found = svc.db.snapshot(work)
    if not _is_owner(ctx, image):
        found = [member for member in found if member.member == ctx.project]
    return [member for member in found if svc.policy.allows(ctx, "get_member", member_target(image, member))]


def show(svc: Service, ctx: Context, image_id: str, project: str) -> Member:
    """One member. Raises `NotFound`, whatever the reason to refuse."""

    def work(tx: Tx) -> Member:
        try:
            image = _get_shared(svc, tx, ctx, image_id)
        except errors.Forbidden as exc:
            raise _no_member(image_id, project) from exc
        return _get_member(svc, tx, ctx, image, project)

    return svc.db.snapshot(work)


def add(svc: Service, ctx: Context, image_id: str, project: str) -> Member:
    """Share the image with a project. Raises `Conflict` when it is a member already, `OverLimit`."""

    def work(tx: Tx) -> Member:
        image = _get_shared(svc, tx, ctx, image_id, lock=True)
        svc.policy.check_image(ctx, "add_member", image)
        existing = members.members_of(tx, image.id)
        if any(member.member == project for member in existing):
            raise errors.Conflict(f"{project} is a member of image {image.id} already.")
        check_limit(svc.conf.image_member_quota, len(existing) + 1, "members")
        added = members.add(tx, image.id, project, svc.now())
        svc.events.member(tx, added, "image.member.create")
        return added

    def committed(tx: Tx, added: Member) -> bool:
        found = members.get(tx, added.image_id, project)
        return found is not None and same_moment(found.created_at, added.created_at)

    added = svc.db.write(work, committed)
    tell_stores(svc, image_id)
    return added


def set_status(svc: Service, ctx: Context, image_id: str, project: str, status: str) -> Member:
    """A member sets its own status. Raises `Forbidden` for other callers, except administrators."""

    def work(tx: Tx) -> Member:
        image = _get_shared(svc, tx, ctx, image_id, lock=True)
        member = _get_member(svc, tx, ctx, image, project)
        target = member_target(image, member)
        svc.policy.check(ctx, "modify_member", target)
        if not (ctx.is_admin or ctx.project == project):
            raise errors.Forbidden("Only the member itself may change its status.")
        if member.status == status:
            return member
        if not members.set_status(tx, image.id, project, status, svc.now()):
            raise _no_member(image_id, project)
        found = members.get(tx, image.id, project)
        assert found is not None
        svc.events.member(tx, found, "image.member.update")
        return found

    return svc.db.write(work)


def remove(svc: Service, ctx: Context, image_id: str, project: str) -> None:
    """Stop sharing with a project. Only the owner can do this, not the member. Raises `NotFound`."""

    def work(tx: Tx) -> str:
        image = _get_shared(svc, tx, ctx, image_id, lock=True)
        member = _get_member(svc, tx, ctx, image, project)
        svc.policy.check_image(ctx, "delete_member", image)
        now = svc.now()
        if not members.remove(tx, image.id, project, now):
            raise _no_member(image_id, project)
        svc.events.member(tx, member, "image.member.delete", now)
        return image.id

    svc.db.write(work, lambda tx, removed_from: members.get(tx, removed_from, project) is None)
    tell_stores(svc, image_id)


def tell_stores(svc: Service, image_id: str) -> None:
    """Let stores that keep lists of readers know who may read the image. Called after each change of that.

    A store that fails is logged, and told again after the next change: this service does not rely on such lists.
    """
    if not any(isinstance(store, Shares) for store in svc.stores):
        return

    def work(tx: Tx) -> tuple[Image | None, list[Member]]:
        return db_images.get(tx, SERVICE, image_id), members.members_of(tx, image_id)

    image, found = svc.db.snapshot(work)
    if image is None:
        return
    projects = [member.member for member in found] if image.visibility == "shared" else []
    for location in image.locations:
        store = svc.stores.of(location)
        if not isinstance(store, Shares):
            continue
        try:
            store.share(
                location.url, public=image.visibility in ("public", "community"), projects=projects, ctx=SERVICE
            )
        except errors.StoreError as exc:
            LOG.warning("store %s was not told who may read image %s: %s", store.name, image_id, errors.reason(exc))


def _get_shared(svc: Service, tx: Tx, ctx: Context, image_id: str, *, lock: bool = False) -> Image:
    image = db_images.get(tx, ctx, image_id, lock=lock)
    if image is None:
        raise no_image(image_id)
    svc.policy.check_image(ctx, "get_image", image)
    if image.visibility != "shared":
        raise errors.Forbidden("Only shared images have members.")
    return image


def _get_member(svc: Service, tx: Tx, ctx: Context, image: Image, project: str) -> Member:
    member = members.get(tx, image.id, project)
    may_see = _is_owner(ctx, image) or ctx.project == project
    if member is None or not may_see or not svc.policy.allows(ctx, "get_member", member_target(image, member)):
        raise _no_member(image.id, project)
    return member


def _is_owner(ctx: Context, image: Image) -> bool:
    """Whether the caller may manage the members: it owns the image, or is an administrator."""
    return ctx.is_admin or (ctx.project is not None and ctx.project == image.owner)


def _no_member(image_id: str, project: str) -> errors.NotFound:
    return errors.NotFound(f"{project} is not a member of image {image_id}.")
