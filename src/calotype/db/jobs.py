"""The work queue: rows for everything that must survive the process that began it.

A job is *pending* until somebody claims it and *running* under a lease while they work; `due_at` is when a
pending job may start, and when a running one's lease ends. Claiming counts `attempt` up, and whoever finishes
must still hold the attempt they were given: a process that slept past its lease finds that it is no longer
asked for. A finished job has no row. The intent of an upload is a job that its uploader holds from the start;
what the sweeper finds lapsed is what a dead process left.
"""

import json
import secrets
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from calotype.db.engine import Tx
from calotype.db.tables import jobs
from calotype.model import Job

#: The name of the table, as `images.delete` says it.
TABLE = jobs.name


def submit(
    tx: Tx,
    kind: str,
    image_id: str,
    payload: Mapping[str, Any],
    *,
    now: datetime,
    due: datetime,
    owner: str | None = None,
    project: str | None = None,
    reserved: int = 0,
) -> Job:
    """Add a job: pending until `due`, or, with an owner, already running under a lease until `due`.

    As long as there is one, `reserved` bytes count for what `project` uses.
    """
    job = Job(secrets.token_hex(8), kind, image_id, 1 if owner else 0, owner, payload, reserved)
    tx.execute(
        sa.insert(jobs).values(
            id=job.id,
            kind=kind,
            image_id=image_id,
            state="running" if owner else "pending",
            attempt=job.attempt,
            owner=owner,
            due_at=due,
            payload=json.dumps(dict(payload)),
            notes="[]",
            created_at=now,
            project=project,
            reserved=reserved,
        )
    )
    return job


def claim(
    tx: Tx,
    owner: str,
    *,
    now: datetime,
    lease_until: datetime,
    dead: Collection[str] = (),
    left: Collection[str] = (),
    but: Collection[str] = (),
) -> Job | None:
    """Take the oldest job that is due, whose lease ran out, whose owner is known to be dead, or that this one left.

    No job of the kinds in `but`.
    """
    statement = sa.select(jobs).where(_ready(owner, now, dead, left, but)).order_by(jobs.c.due_at).limit(1)
    if tx.dialect.name != "sqlite":
        statement = statement.with_for_update(skip_locked=True)
    row = tx.execute(statement).first()
    if row is None:
        return None
    claimed = tx.execute(
        sa.update(jobs)
        .where(jobs.c.id == row.id, jobs.c.attempt == row.attempt)
        .values(state="running", owner=owner, attempt=row.attempt + 1, due_at=lease_until)
    )
    return _job(row, owner=owner, attempt=row.attempt + 1) if claimed.rowcount else None


def beat(tx: Tx, owner: str, job_ids: Collection[str], lease_until: datetime) -> frozenset[str]:
    """Extend the leases of these jobs as far as the owner still has them; the tokens that it has."""
    held = (jobs.c.owner == owner) & (jobs.c.state == "running") & jobs.c.id.in_(job_ids)
    tx.execute(sa.update(jobs).where(held).values(due_at=lease_until))
    return frozenset(f"{row.id}-{row.attempt}" for row in tx.execute(sa.select(jobs.c.id, jobs.c.attempt).where(held)))


def note(tx: Tx, job: Job, what: Collection[Mapping[str, Any]]) -> bool:
    """Replace what a cleaner would need to know. False when the job was taken away."""
    statement = sa.update(jobs).where(_holds(job)).values(notes=json.dumps([dict(item) for item in what]))
    return bool(tx.execute(statement).rowcount)


def reserve(tx: Tx, job: Job, reserved: int) -> bool:
    """Change how many bytes the job keeps for its project. False when it was taken away."""
    return bool(tx.execute(sa.update(jobs).where(_holds(job)).values(reserved=reserved)).rowcount)


def finish(tx: Tx, job: Job) -> bool:
    """Remove a job that is done. False when it was taken away: undo the transaction then."""
    return bool(tx.execute(sa.delete(jobs).where(_holds(job))).rowcount)


def fail(tx: Tx, job: Job, error: str, *, due: datetime) -> bool:
    """Put a job back, to be tried again from `due`, with the reason for whoever looks."""
    statement = sa.update(jobs).where(_holds(job)).values(state="pending", owner=None, due_at=due, error=error[:2000])
    return bool(tx.execute(statement).rowcount)


def pause(job: Job) -> timedelta:
    """How long to wait before the next attempt: a minute, then twice as long each time, up to an hour."""
    return timedelta(minutes=min(60, 2 ** min(job.attempt - 1, 6)))


def revoke(tx: Tx, image_id: str, now: datetime) -> None:
    """Take the image's running jobs from whoever has them: they are due, for anybody to clean up after."""
    statement = sa.update(jobs).where(jobs.c.image_id == image_id, jobs.c.state == "running")
    tx.execute(statement.values(state="pending", owner=None, attempt=jobs.c.attempt + 1, due_at=now))


def call_off(tx: Tx, kind: str, image_id: str) -> list[Job]:
    """Remove the image's jobs of a kind that leaves nothing behind, whoever has them; what they were."""
    which = (jobs.c.image_id == image_id) & (jobs.c.kind == kind)
    found = [_job(row, owner=row.owner, attempt=row.attempt) for row in tx.execute(sa.select(jobs).where(which))]
    tx.execute(sa.delete(jobs).where(which))
    return found


def settle(tx: Tx, job: Job, lease_until: datetime) -> tuple[bool, list[dict[str, Any]]] | None:
    """Whether this attempt is still the one that counts, and the notes; None when the job is done.

    Writes to the job, and so waits for a transaction that is about to finish it: one whose COMMIT was sent over a
    connection that broke has either happened before this returns, or never will.
    """
    tx.execute(sa.update(jobs).where(_holds(job)).values(due_at=lease_until))
    row = tx.execute(sa.select(jobs.c.attempt, jobs.c.notes).where(jobs.c.id == job.id)).first()
    return None if row is None else (row.attempt == job.attempt, json.loads(row.notes))


def held(tx: Tx, job: Job) -> bool:
    """Whether this attempt is there, and the one that counts."""
    return tx.execute(sa.select(jobs.c.id).where(_holds(job))).first() is not None


def lives(tx: Tx, token: str) -> bool:
    """Whether the job of an attempt is there, whoever has it now."""
    return tx.execute(sa.select(jobs.c.id).where(jobs.c.id == token.rpartition("-")[0])).first() is not None


def ready(
    tx: Tx,
    owner: str,
    now: datetime,
    dead: Collection[str] = (),
    left: Collection[str] = (),
    but: Collection[str] = (),
) -> bool:
    """Whether `claim` would find a job."""
    return tx.execute(sa.select(jobs.c.id).where(_ready(owner, now, dead, left, but)).limit(1)).first() is not None


def _ready(
    owner: str, now: datetime, dead: Collection[str], left: Collection[str], but: Collection[str]
) -> sa.ColumnElement[bool]:
    ready: sa.ColumnElement[bool] = jobs.c.due_at <= now
    if dead:
        ready |= jobs.c.owner.in_(dead)
    if left:
        ready |= (jobs.c.owner == owner) & jobs.c.id.in_(left)
    return ready & jobs.c.kind.not_in(but) if but else ready


def _holds(job: Job) -> sa.ColumnElement[bool]:
    return (jobs.c.id == job.id) & (jobs.c.attempt == job.attempt)


def _job(row: Any, *, owner: str | None, attempt: int) -> Job:
    return Job(row.id, row.kind, row.image_id, attempt, owner, json.loads(row.payload), row.reserved or 0)
