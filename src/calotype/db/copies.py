"""Copies that jobs write: a row for each store that a job writes an image into.

Only the current attempt of a job changes its copies. Each function that writes one also writes the job, and returns
False when the job was taken away: on a Galera cluster two nodes could else write the copy and revoke the job at once.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from calotype.db.clock import db_now
from calotype.db.engine import Tx
from calotype.db.tables import copies, jobs
from calotype.model import Copy, Job


def add(tx: Tx, job: Job, stores: Iterable[tuple[str, str | None]], *, writing: bool = False) -> None:
    """Add a copy for each store, given by its name and the identity of its place. With `writing` its attempt begins."""
    attempt = job.attempt if writing else None
    rows = [
        {
            "job_id": job.id,
            "store": name,
            "identity": identity,
            "state": "writing" if writing else "pending",
            "attempt": attempt,
        }
        for name, identity in stores
    ]
    if rows:
        tx.execute(sa.insert(copies), rows)


def of(tx: Tx, job: Job) -> list[Copy]:
    """The copies of a job, by the names of their stores."""
    found = tx.execute(sa.select(copies).where(copies.c.job_id == job.id).order_by(copies.c.store))
    return [
        Copy(
            row.store,
            row.identity,
            row.state,
            row.attempt,
            row.note,
            row.url,
            row.object,
            json.loads(row.facts or "{}"),
            row.error,
        )
        for row in found
    ]


def begin(tx: Tx, job: Job, store: str) -> bool:
    """This attempt begins to write the copy. What earlier attempts left there is removed by now."""
    return _set(tx, job, store, state="writing", attempt=job.attempt, note=None, url=None, object=None, error=None)


def note(tx: Tx, job: Job, store: str, what: str) -> bool:
    """Keep what is needed to clean up after this attempt, in place of its last note."""
    return _set(tx, job, store, note=what)


def done(
    tx: Tx, job: Job, store: str, url: str, *, object_id: str | None = None, metadata: Mapping[str, Any] | None = None
) -> bool:
    """The copy is final in its store, and part of the image's record from this transaction on. False if it is already.

    So who repeats the transaction, because the answer to its COMMIT was lost, adds nothing a second time.
    """
    facts = json.dumps(dict(metadata or {}))
    return _set(tx, job, store, copies.c.state == "writing", state="done", url=url, object=object_id, facts=facts)


def is_done(tx: Tx, job: Job, store: str) -> bool:
    """Whether `done` took effect."""
    which = (copies.c.job_id == job.id) & (copies.c.store == store) & (copies.c.state == "done")
    return tx.execute(sa.select(copies.c.store).where(which)).first() is not None


def fail(tx: Tx, job: Job, store: str, why: str) -> bool:
    """The job goes on without this copy. What was written is still to be cleaned up."""
    return _set(tx, job, store, state="failed", error=why[:2000])


def reset(tx: Tx, job: Job, store: str) -> bool:
    """What was written there is removed, and an attempt may begin again."""
    return _set(tx, job, store, state="pending", attempt=None, note=None, url=None, object=None)


def clean(tx: Tx, job: Job, store: str) -> bool:
    """Nothing is left in the store of what was written there."""
    return _set(tx, job, store, attempt=None, note=None, url=None, object=None)


def _set(tx: Tx, job: Job, store: str, *also: sa.ColumnElement[bool], **values: Any) -> bool:
    if not _touch(tx, job):
        return False
    which = sa.and_(copies.c.job_id == job.id, copies.c.store == store, *also)
    return bool(tx.execute(sa.update(copies).where(which).values(values)).rowcount)


def _touch(tx: Tx, job: Job) -> bool:
    current = (jobs.c.id == job.id) & (jobs.c.attempt == job.attempt)
    return bool(tx.execute(sa.update(jobs).where(current).values(due_at=db_now())).rowcount)


def states(tx: Tx, job_ids: Iterable[str]) -> Mapping[str, list[tuple[str, str, str | None]]]:
    """Store, state and error of the copies of these jobs, by the ids of the jobs."""
    found: dict[str, list[tuple[str, str, str | None]]] = {}
    statement = sa.select(copies.c.job_id, copies.c.store, copies.c.state, copies.c.error)
    for row in tx.execute(statement.where(copies.c.job_id.in_(list(job_ids))).order_by(copies.c.store)):
        found.setdefault(row.job_id, []).append((row.store, row.state, row.error))
    return found
