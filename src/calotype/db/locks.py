"""What one process of all hosts does at a time: a name, who has it, and a number that changes as long as they do it.

A lock is free if nobody has it, if whoever has it is dead, or if they have been silent for the lock's lease, as the one
who wants it sees. A process that slept too long finds by `keep` that it has it no longer.
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
    """One lock, as this process sees it. Who waits for it asks for it at least every `step` seconds."""

    def __init__(self, name: str, lease: timedelta, leases: Leases, step: float = LONGEST_STEP) -> None:
        self._row = locks.c.name == name
        self._lease = lease.total_seconds()
        self._leases = leases
        self._watch = Watch(leases.clock, step)
        self._silent: tuple[str, int | None] | None = None

    def take(self, tx: Tx) -> bool:
        """Take it, if it is free or this process's already."""
        owner = self._leases.owner
        free = locks.c.owner.is_(None) | locks.c.owner.in_([owner, *self._leases.dead()])
        if self._silent is not None:
            silent, beat = self._silent
            free |= (locks.c.owner == silent) & (locks.c.beat == beat if beat is not None else locks.c.beat.is_(None))
        # Tried first, and looked at then: where nothing can be written, nobody's silence counts.
        if tx.execute(sa.update(locks).where(self._row, free).values(owner=owner, beat=draw_beat())).rowcount:
            self._silent = None
            return True
        row = tx.execute(sa.select(locks.c.owner, locks.c.beat).where(self._row)).one()
        self._watch.observe({"": (row.owner, row.beat)})
        self._silent = (row.owner, row.beat) if self._watch.age("") >= self._lease else None
        return False

    def keep(self, tx: Tx) -> bool:
        """Have it for longer. False when somebody else took it."""
        mine = self._row & (locks.c.owner == self._leases.owner)
        return bool(tx.execute(sa.update(locks).where(mine).values(beat=draw_beat())).rowcount)

    def release(self, tx: Tx) -> None:
        """Let others have it."""
        mine = self._row & (locks.c.owner == self._leases.owner)
        tx.execute(sa.update(locks).where(mine).values(owner=None))

    def give_up(self, db: Database) -> None:
        """Let others have it at the end of this process, if the database can be told at once; else they notice."""
        with contextlib.suppress(errors.CalotypeError), db.write_once() as tx:
            self.release(tx)
