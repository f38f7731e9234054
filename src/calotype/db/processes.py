"""Heartbeats of processes that hold jobs: every few seconds a process writes a new number into its row.

Others decide by whether that number changes (`watch.py`); `seen_at` is for people. The next heartbeat inserts a missing
row, so removing one does no harm.
"""

import hashlib
import secrets
from collections.abc import Collection
from datetime import timedelta
from typing import Final

import sqlalchemy as sa

from calotype.db.clock import db_now
from calotype.db.engine import Tx
from calotype.db.tables import jobs, locks, processes

#: How long the row of a silent process without jobs stays.
_STALE_AFTER = timedelta(hours=12)


def draw_beat() -> int:
    """A number that nobody has drawn before."""
    return secrets.randbits(63)


#: How the places of processes begin. Other places are identities of staging directories.
OF_PROCESS: Final = "p-"


def place_of(owner: str) -> str:
    """The place of jobs that only this process can run."""
    return OF_PROCESS + hashlib.sha256(owner.encode()).hexdigest()[:32]


def beats_by_place(tx: Tx) -> dict[str, tuple[int, ...]]:
    """The last heartbeats of the processes at each place: at staging directories, and of each process alone."""
    found: dict[str, list[int]] = {}
    rows = tx.execute(sa.select(processes.c.owner, processes.c.staging, processes.c.beat).order_by(processes.c.owner))
    for row in rows:
        for place in (row.staging, place_of(row.owner)):
            if place is not None:
                found.setdefault(place, []).append(row.beat)
    return {place: tuple(beats) for place, beats in found.items()}


def beat(tx: Tx, owner: str, host: str, staging: str | None = None) -> None:
    """Record a heartbeat of this process, and the identity of its staging directory."""
    values = {"beat": draw_beat(), "seen_at": db_now(), "staging": staging}
    if not tx.execute(sa.update(processes).where(processes.c.owner == owner).values(values)).rowcount:
        tx.execute(sa.insert(processes).values(values | {"owner": owner, "host": host[:255]}))


def remove(tx: Tx, owners: Collection[str]) -> None:
    """Remove processes that have ended and have no jobs, and release their locks."""
    tx.execute(sa.update(locks).where(locks.c.owner.in_(owners)).values(owner=None))
    tx.execute(sa.delete(processes).where(processes.c.owner.in_(owners)))


def sweep(tx: Tx) -> None:
    """Remove processes that have no jobs and have been silent for long."""
    busy = sa.select(jobs.c.owner).where(jobs.c.owner.is_not(None))
    idle = processes.c.owner.not_in(busy) & (processes.c.seen_at < db_now(-_STALE_AFTER))
    tx.execute(sa.delete(processes).where(idle))


def in_use(tx: Tx, owners: Collection[str]) -> frozenset[str]:
    """The owners among these that have a job, a lock or a row."""
    found = [sa.select(table.c.owner).where(table.c.owner.in_(owners)) for table in (processes, jobs, locks)]
    return frozenset(tx.execute(sa.union(*found)).scalars())
