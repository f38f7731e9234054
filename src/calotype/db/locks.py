"""What one process of all hosts does at a time: a name, who has it, and until when.

A lease and no more: a process that slept too long finds by `keep` that it has it no longer.
"""

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from calotype.db.engine import Tx
from calotype.db.tables import locks


def take(tx: Tx, name: str, owner: str, *, now: datetime, until: datetime, dead: Collection[str] = ()) -> bool:
    """Take it, if nobody has it, its time is over, its owner is known to be dead, or it is the caller's already."""
    free = (locks.c.until <= now) | locks.c.owner.in_([owner, *dead]) | locks.c.owner.is_(None)
    statement = sa.update(locks).where(locks.c.name == name, free).values(owner=owner, until=until)
    return bool(tx.execute(statement).rowcount)


def keep(tx: Tx, name: str, owner: str, *, until: datetime) -> bool:
    """Have it for longer. False when somebody else took it."""
    statement = sa.update(locks).where(locks.c.name == name, locks.c.owner == owner).values(until=until)
    return bool(tx.execute(statement).rowcount)


def release(tx: Tx, name: str, owner: str) -> None:
    """Let others have it."""
    tx.execute(sa.update(locks).where(locks.c.name == name, locks.c.owner == owner).values(owner=None))
