"""What users and operators learn about stores, and taking one copy of an image out of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calotype import errors
from calotype.context import Context
from calotype.db import jobs
from calotype.db.engine import Tx
from calotype.images import lifecycle, removal
from calotype.model import Job
from calotype.service import Service
from calotype.stores.base import Health, Store


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """One store as callers see it; `health` and `details` only in the detailed view."""

    name: str
    kind: str
    description: str
    default: bool
    read_only: bool
    weight: int
    features: tuple[str, ...]
    details: Mapping[str, Any] | None = None
    health: Health | None = None


def list_(svc: Service) -> list[StoreFacts]:
    """All configured stores, for everybody."""
    return [_facts(svc, store) for store in svc.stores]


def details(svc: Service, ctx: Context) -> list[StoreFacts]:
    """All stores with their settings and their health. A store that fails is one entry that says so."""
    svc.policy.check(ctx, "stores_info_detail", {})
    health = svc.stores.health()
    return [_facts(svc, store, health[store.name]) for store in svc.stores]


def remove_copy(svc: Service, ctx: Context, store_name: str, image_id: str) -> None:
    """Delete the image's copy in one store. Raises `Forbidden` for the last copy, `Conflict`, `NotFound`."""

    def work(tx: Tx) -> Job:
        image = lifecycle.fetch(tx, ctx, image_id)
        svc.policy.check_image(ctx, "get_image_location", image)
        svc.policy.check_image(ctx, "delete_image_location", image)
        store = svc.stores.get(store_name)
        if store is None:
            raise errors.Conflict(f"There is no store named {store_name!r} here.")
        if image.status != "active":
            raise errors.Conflict(
                f"Image {image.id} is in status {image.status}: copies of an active one can be removed."
            )
        here = [location for location in image.locations if svc.stores.of(location) is store]
        if not here:
            raise errors.NotFound(f"Image {image.id} has no copy in store {store_name}.")
        if len(image.locations) == 1:
            raise errors.Forbidden("This is the image's only copy; delete the image instead.")
        return removal.begin_copy(svc, tx, image, here[0])

    job = svc.db.write(work, jobs.is_current, on_unknown=svc.leases.abandon)
    removal.carry_out(svc, ctx, job, asked=True)


def _facts(svc: Service, store: Store, health: Health | None = None) -> StoreFacts:
    return StoreFacts(
        name=store.name,
        kind=store.kind,
        description=store.description,
        default=store.name == svc.stores.default,
        read_only=not svc.stores.takes_data(store),
        weight=store.weight,
        features=tuple(sorted(feature.value for feature in store.features)),
        details=store.details() if health else None,
        health=health,
    )
