"""Ids of deleted images, refused for ever (OSSN-0075)."""

from collections.abc import Iterable
from datetime import datetime

import sqlalchemy as sa

from calotype.db.engine import Tx
from calotype.db.tables import tombstones

_INSERT = sa.insert(tombstones)
_HOLDS = sa.select(tombstones.c.image_id).where(tombstones.c.image_id == sa.bindparam("which"))


def bury(tx: Tx, image_ids: Iterable[str], when: datetime) -> None:
    """Remember that these ids were used; some of them may be remembered already."""
    for image_id in image_ids:
        if not holds(tx, image_id):
            tx.execute(_INSERT, {"image_id": image_id.lower(), "deleted_at": when})


def unbury(tx: Tx, image_id: str) -> None:
    """Forget one, for the image whose delete was undone. An id that Glance kept in upper case stays refused."""
    if image_id != image_id.lower():
        return
    tx.execute(sa.delete(tombstones).where(tombstones.c.image_id == image_id.lower()))


def holds(tx: Tx, image_id: str) -> bool:
    """Whether an image of this id was deleted before."""
    return tx.execute(_HOLDS, {"which": image_id.lower()}).first() is not None
