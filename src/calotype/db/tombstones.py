"""Tombstones: the ids of deleted images. No new image gets one of these ids (OSSN-0075)."""

from collections.abc import Iterable
from datetime import datetime

import sqlalchemy as sa

from calotype.db.engine import Tx
from calotype.db.tables import tombstones

_INSERT = sa.insert(tombstones)
_HOLDS = sa.select(tombstones.c.image_id).where(tombstones.c.image_id == sa.bindparam("which"))


def add(tx: Tx, image_ids: Iterable[str], when: datetime) -> None:
    """Add tombstones for these ids; some may have one already."""
    for image_id in image_ids:
        if not exists(tx, image_id):
            tx.execute(_INSERT, {"image_id": image_id.lower(), "deleted_at": when})


def remove(tx: Tx, image_id: str) -> None:
    """Remove the tombstone of an image whose delete is undone. One with upper-case letters, from Glance, keeps it."""
    if image_id != image_id.lower():
        return
    tx.execute(sa.delete(tombstones).where(tombstones.c.image_id == image_id.lower()))


def exists(tx: Tx, image_id: str) -> bool:
    """Whether an image of this id was deleted."""
    return tx.execute(_HOLDS, {"which": image_id.lower()}).first() is not None
