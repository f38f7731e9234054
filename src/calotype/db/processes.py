"""Processes that say that they live. Whoever holds jobs beats: its row gets another number, every few seconds.

What counts is that the number changes, as `watch.py` sees it; `seen_at` is for people. A row that is missing is made
by the next beat, so removing one does no harm.
"""

import secrets
from collections.abc import Collection
from datetime import timedelta

import sqlalchemy as sa

from calotype.db.clock import moment
from calotype.db.engine import Tx
from calotype.db.tables import jobs, locks, processes

#: How long the row of a process without jobs stays that says nothing any more.
_KEPT = timedelta(hours=12)


def draw_beat() -> int:
    """A number that nobody has drawn before."""
    return secrets.randbits(63)


def beat(tx: Tx, owner: str, host: str) -> None:
    """This process lives."""
    values = {"beat": draw_beat(), "seen_at": moment()}
    if not tx.execute(sa.update(processes).where(processes.c.owner == owner).values(values)).rowcount:
        tx.execute(sa.insert(processes).values(values | {"owner": owner, "host": host[:255]}))


def forget(tx: Tx, owners: Collection[str]) -> None:
    """These are gone, and so are their jobs: what they locked is free."""
    tx.execute(sa.update(locks).where(locks.c.owner.in_(owners)).values(owner=None))
    tx.execute(sa.delete(processes).where(processes.c.owner.in_(owners)))


def sweep(tx: Tx) -> None:
    """Forget processes that have no jobs and have been silent for long."""
    busy = sa.select(jobs.c.owner).where(jobs.c.owner.is_not(None))
    idle = processes.c.owner.not_in(busy) & (processes.c.seen_at < moment(-_KEPT))
    tx.execute(sa.delete(processes).where(idle))


def known(tx: Tx, owners: Collection[str]) -> frozenset[str]:
    """Those that have a job, a lock or a row."""
    found = [sa.select(table.c.owner).where(table.c.owner.in_(owners)) for table in (processes, jobs, locks)]
    return frozenset(tx.execute(sa.union(*found)).scalars())
