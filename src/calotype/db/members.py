"""Projects that an image is shared with."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from calotype.db.compare import exactly
from calotype.db.engine import Tx
from calotype.db.tables import image_members
from calotype.model import Member

_COLUMNS = [image_members.c[name] for name in ("image_id", "member", "status", "created_at", "updated_at")]


def members_of(tx: Tx, image_id: str) -> list[Member]:
    """All members, oldest first."""
    statement = sa.select(*_COLUMNS).where(_living(image_id)).order_by(image_members.c.id)
    return [_member(row) for row in tx.execute(statement)]


def get(tx: Tx, image_id: str, member: str) -> Member | None:
    row = tx.execute(sa.select(*_COLUMNS).where(_living(image_id), exactly(image_members.c.member, member))).first()
    return _member(row) if row is not None else None


def add(tx: Tx, image_id: str, member: str, now: datetime) -> Member:
    """Add a pending member, reusing the row of one that was removed. The caller has locked the image's row."""
    old = sa.select(image_members.c.id).where(
        image_members.c.image_id == image_id,
        exactly(image_members.c.member, member),
        image_members.c.deleted == sa.true(),
    )
    number = tx.execute(old.limit(1)).scalar()
    values: dict[str, Any] = {"status": "pending", "can_share": False, "deleted": False, "deleted_at": None}
    values |= {"created_at": now, "updated_at": now}
    if number is None:
        tx.execute(sa.insert(image_members).values(values | {"image_id": image_id, "member": member}))
    else:
        tx.execute(sa.update(image_members).where(image_members.c.id == number).values(values))
    return Member(image_id, member, "pending", now, now)


def set_status(tx: Tx, image_id: str, member: str, status: str, now: datetime) -> bool:
    """Write the status of a member. False if there is no such member."""
    statement = sa.update(image_members).where(_living(image_id), exactly(image_members.c.member, member))
    return bool(tx.execute(statement.values(status=status, updated_at=now)).rowcount)


def remove(tx: Tx, image_id: str, member: str, now: datetime) -> bool:
    """Remove a member. False if there is no such member."""
    statement = sa.update(image_members).where(_living(image_id), exactly(image_members.c.member, member))
    return bool(tx.execute(statement.values(deleted=True, deleted_at=now)).rowcount)


def _living(image_id: str) -> sa.ColumnElement[bool]:
    return (image_members.c.image_id == image_id) & (image_members.c.deleted == sa.false())


def _member(row: Any) -> Member:
    return Member(row.image_id, row.member, row.status, row.created_at, row.updated_at or row.created_at)
