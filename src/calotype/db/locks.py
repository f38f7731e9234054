"""Locks across all hosts, for work that only one process may do at a time.

A lock is a row with a name, an owner and a number that the owner keeps changing. It is free if it has no owner, if its
owner is dead, or if the process that wants it has not seen the number change for the lock's lease. An owner that slept
too long learns from `renew` that it has lost the lock.
"""

import contextlib
from datetime import timedelta

import sqlalchemy as sa

from calotype import errors
from calotype.db.engine import Database, Tx
from calotype.db.leases import Leases
from calotype.db.processes import draw_beat
from calotype.db.tables import locks
from calotype.db.watch import LONGEST_STEP, Watch


class Lock:
    """One lock, as this process sees it. A process that wants it calls `acquire` at least every `step` seconds."""

    def __init__(self, name: str, lease: timedelta, leases: Leases, step: float = LONGEST_STEP) -> None:
        self._row = locks.c.name == name
        self._lease = lease.total_seconds()
        self._leases = leases
        self._watch = Watch(leases.clock, step)
        self._silent_owner: tuple[str, int | None] | None = None

    def acquire(self, tx: Tx) -> bool:
        """Take the lock if it is free, or this process has it already; returns whether it has it now."""
        owner = self._leases.owner
        is_free = locks.c.owner.is_(None) | locks.c.owner.in_([owner, *self._leases.dead_owners()])
        if self._silent_owner is not None:
            silent, beat = self._silent_owner
            same_beat = locks.c.beat.is_(None) if beat is None else locks.c.beat == beat
            is_free |= (locks.c.owner == silent) & same_beat
        # Written first and observed afterwards: while the database takes no writes, nobody's silence is counted.
        if tx.execute(sa.update(locks).where(self._row, is_free).values(owner=owner, beat=draw_beat())).rowcount:
            self._silent_owner = None
            return True
        row = tx.execute(sa.select(locks.c.owner, locks.c.beat).where(self._row)).one()
        self._watch.observe({"": (row.owner, row.beat)})
        self._silent_owner = (row.owner, row.beat) if self._watch.age("") >= self._lease else None
        return False

    def renew(self, tx: Tx) -> bool:
        """Keep the lock for another lease. False when another process has taken it."""
        mine = self._row & (locks.c.owner == self._leases.owner)
        return bool(tx.execute(sa.update(locks).where(mine).values(beat=draw_beat())).rowcount)

    def release(self, tx: Tx) -> None:
        """Give the lock up."""
        mine = self._row & (locks.c.owner == self._leases.owner)
        tx.execute(sa.update(locks).where(mine).values(owner=None))

    def release_at_exit(self, db: Database) -> None:
        """Give the lock up at the end of this process, with one attempt; if that fails, others wait for its lease."""
        with contextlib.suppress(errors.CalotypeError), db.write_once() as tx:
            self.release(tx)
