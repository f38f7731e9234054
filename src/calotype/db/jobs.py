"""The work queue: a row for each piece of work that must survive the process that began it.

A job is *pending* until a process claims it, and *running* while that process works on it. A finished job has no row.
`due_at` says when a pending job may start, by the database's clock. Each claim counts `attempt` up, and only the
process that holds the current attempt can finish the job: one that slept for too long finds that its attempt is over.
`leases.py` decides when a running job may be taken from its owner. An upload is a job that its uploader runs from the
start; the runner takes it over only if that process dies.
"""

import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from calotype.db.clock import db_now
from calotype.db.engine import Tx
from calotype.db.tables import jobs, notes, processes
from calotype.model import Job

#: The name of the table, as `images.delete` says it.
TABLE = jobs.name
LONGEST_BACKOFF: Final = timedelta(hours=1)
#: No backoff is this long. A `due_at` further ahead was written while the database's clock was fast, and is ignored.
_IMPLAUSIBLY_LATE: Final = 2 * LONGEST_BACKOFF
#: How many orphans one statement looks for.
_MAX_ORPHANS: Final = 50


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a job, the process that makes it, and the last heartbeat of that process, None if it sent none."""

    job_id: str
    attempt: int
    owner: str
    beat: int | None = None

    @property
    def token(self) -> str:
        return f"{self.job_id}-{self.attempt}"


def submit(
    tx: Tx,
    kind: str,
    image_id: str,
    payload: Mapping[str, Any],
    *,
    delay: timedelta = timedelta(0),
    owner: str | None = None,
    project: str | None = None,
    reserved: int = 0,
) -> Job:
    """Add a job. It is pending, and anybody may claim it after `delay`; with an `owner` it is running already.

    While the job exists, `reserved` bytes count as used by `project`.
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
            due_at=db_now(delay),
            payload=json.dumps(dict(payload)),
            created_at=db_now(),
            project=project,
            reserved=reserved,
        )
    )
    return job


def claim(
    tx: Tx, owner: str, *, dead: Collection[str] = (), orphans: Collection[Attempt] = (), exclude: Collection[str] = ()
) -> Job | None:
    """Take the oldest job that is due, or whose owner is dead, or whose attempt is one of the orphans.

    Jobs of the kinds in `exclude` stay, and so does an orphan whose owner has sent a heartbeat meanwhile.
    """
    statement = sa.select(jobs).where(_claimable(owner, dead, orphans, exclude)).order_by(jobs.c.due_at).limit(1)
    if tx.dialect.name != "sqlite":
        statement = statement.with_for_update(skip_locked=True)
    row = tx.execute(statement).first()
    if row is None:
        return None
    claimed = tx.execute(
        sa.update(jobs)
        .where(jobs.c.id == row.id, jobs.c.attempt == row.attempt)
        .values(state="running", owner=owner, attempt=row.attempt + 1, due_at=db_now())
    )
    return _job(row, owner=owner, attempt=row.attempt + 1) if claimed.rowcount else None


def running_attempts(tx: Tx, exclude: Collection[str] = ()) -> list[Attempt]:
    """All running attempts, except those of the owners in `exclude`."""
    joined = jobs.outerjoin(processes, processes.c.owner == jobs.c.owner)
    statement = sa.select(jobs.c.id, jobs.c.attempt, jobs.c.owner, processes.c.beat).select_from(joined)
    return [Attempt(*row) for row in tx.execute(statement.where(_is_running(exclude)))]


def any_running(tx: Tx, exclude: Collection[str] = ()) -> bool:
    """Whether `running_attempts` would find any."""
    return tx.execute(sa.select(jobs.c.id).where(_is_running(exclude)).limit(1)).first() is not None


def note(tx: Tx, job: Job, what: str) -> bool:
    """Keep what is needed to clean up after this attempt, in place of its last note. False: the job was taken away."""
    # The job is written as well: else one node of a Galera cluster could add the note while another revokes the job.
    if not tx.execute(sa.update(jobs).where(_is_current(job)).values(due_at=db_now())).rowcount:
        return False
    # The last note counts, so this one is added: replacing the row would cost one more statement.
    tx.execute(sa.insert(notes).values(job_id=job.id, note=json.dumps([job.token, what])))
    return True


def reserve(tx: Tx, job: Job, reserved: int) -> bool:
    """Change how many bytes the job keeps for its project. False when it was taken away."""
    return bool(tx.execute(sa.update(jobs).where(_is_current(job)).values(reserved=reserved)).rowcount)


def finish(tx: Tx, job: Job) -> bool:
    """Remove a job that is done. False when it was taken away: the caller then undoes the transaction."""
    return bool(tx.execute(sa.delete(jobs).where(_is_current(job))).rowcount)


def fail(tx: Tx, job: Job, error: str, *, delay: timedelta) -> bool:
    """Put a job back, to be tried again after a delay. `error` is the reason, for operators."""
    values = {"state": "pending", "owner": None, "due_at": db_now(delay), "error": error[:2000]}
    return bool(tx.execute(sa.update(jobs).where(_is_current(job)).values(values)).rowcount)


def backoff(job: Job) -> timedelta:
    """How long to wait before the next attempt: a minute, then twice as long each time, up to an hour."""
    return min(LONGEST_BACKOFF, timedelta(minutes=2 ** min(job.attempt - 1, 6)))


def release(tx: Tx, attempts: Collection[Attempt]) -> None:
    """Make the jobs of these attempts due for anybody, although their owner is alive: it does not work on them."""
    for one in attempts:
        tx.execute(sa.update(jobs).where(_is_attempt(one)).values(state="pending", owner=None, due_at=db_now()))


def revoke(tx: Tx, image_id: str) -> None:
    """Take the image's running jobs from their owners. They become due, and whoever claims them cleans up."""
    statement = sa.update(jobs).where(jobs.c.image_id == image_id, jobs.c.state == "running")
    tx.execute(statement.values(state="pending", owner=None, attempt=jobs.c.attempt + 1, due_at=db_now()))


def cancel(tx: Tx, kind: str, image_id: str) -> list[Job]:
    """Remove the image's jobs of a kind that needs no cleaning up, whoever owns them; returns the removed jobs."""
    which = (jobs.c.image_id == image_id) & (jobs.c.kind == kind)
    found = [_job(row, owner=row.owner, attempt=row.attempt) for row in tx.execute(sa.select(jobs).where(which))]
    tx.execute(sa.delete(jobs).where(which))
    return found


def resolve(tx: Tx, job: Job) -> tuple[bool, dict[str, str]] | None:
    """Find out what became of an attempt whose last COMMIT is in doubt.

    Returns whether the attempt is still the current one, and the notes by the attempts' tokens; None when the job is
    done. This writes to the job, and so waits for a transaction that is about to finish it. When it returns, a COMMIT
    that was sent over a broken connection has either happened or never will.
    """
    tx.execute(sa.update(jobs).where(_is_current(job)).values(due_at=db_now()))
    attempt = tx.execute(sa.select(jobs.c.attempt).where(jobs.c.id == job.id)).scalar()
    if attempt is None:
        return None
    found = tx.execute(sa.select(notes.c.note).where(notes.c.job_id == job.id).order_by(notes.c.id)).scalars()
    return attempt == job.attempt, dict(filter(None, (_noted(job.id, json.loads(one)) for one in found)))


def _noted(job_id: str, found: Any) -> tuple[str, str] | None:
    """Token and note of a row. Earlier releases left the token out, and noted in the first attempt only."""
    if isinstance(found, dict):
        return (f"{job_id}-1", found["object"]) if "object" in found else None
    token, what = found
    return token, what


def is_current(tx: Tx, job: Job) -> bool:
    """Whether the job exists and this attempt is its current one."""
    return tx.execute(sa.select(jobs.c.id).where(_is_current(job))).first() is not None


def exists(tx: Tx, token: str) -> bool:
    """Whether the job of an attempt exists, whoever owns it now."""
    return tx.execute(sa.select(jobs.c.id).where(jobs.c.id == token.rpartition("-")[0])).first() is not None


def any_claimable(
    tx: Tx,
    owner: str,
    *,
    dead: Collection[str] = (),
    orphans: Collection[Attempt] = (),
    exclude: Collection[str] = (),
) -> bool:
    """Whether `claim` would find a job."""
    return (
        tx.execute(sa.select(jobs.c.id).where(_claimable(owner, dead, orphans, exclude)).limit(1)).first() is not None
    )


def _claimable(
    owner: str, dead: Collection[str], orphans: Collection[Attempt], exclude: Collection[str]
) -> sa.ColumnElement[bool]:
    due = (jobs.c.due_at <= db_now()) | (jobs.c.due_at > db_now(_IMPLAUSIBLY_LATE))
    claimable: sa.ColumnElement[bool] = (jobs.c.state == "pending") & due
    if dead:
        claimable |= jobs.c.owner.in_(dead)
    for one in list(orphans)[:_MAX_ORPHANS]:
        orphan = _is_attempt(one)
        if one.owner != owner:
            # Its process may have sent a heartbeat since it was taken for silent.
            beat_again = processes.c.beat != one.beat if one.beat is not None else sa.true()
            orphan &= ~sa.exists().where(processes.c.owner == one.owner, beat_again)
        claimable |= orphan
    return claimable & jobs.c.kind.not_in(exclude) if exclude else claimable


def _is_attempt(one: Attempt) -> sa.ColumnElement[bool]:
    return (jobs.c.id == one.job_id) & (jobs.c.attempt == one.attempt) & (jobs.c.owner == one.owner)


def _is_running(exclude: Collection[str]) -> sa.ColumnElement[bool]:
    running = jobs.c.state == "running"
    return running & jobs.c.owner.not_in(exclude) if exclude else running


def _is_current(job: Job) -> sa.ColumnElement[bool]:
    return (jobs.c.id == job.id) & (jobs.c.attempt == job.attempt)


def _job(row: Any, *, owner: str | None, attempt: int) -> Job:
    return Job(row.id, row.kind, row.image_id, attempt, owner, json.loads(row.payload), row.reserved or 0)


# --- for who looks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as it is. `age` and `due` are seconds since it was made and until it may start, by the database's clock."""

    kind: str
    image_id: str
    project: str | None
    state: str
    attempt: int
    owner: str | None
    age: float
    due: float
    error: str | None
    store: str | None  #: where an upload goes


def counts(tx: Tx) -> list[tuple[str, str, int]]:
    """How many jobs there are of each kind and state."""
    statement = sa.select(jobs.c.kind, jobs.c.state, sa.func.count()).group_by(jobs.c.kind, jobs.c.state)
    return sorted((kind, state, count) for kind, state, count in tx.execute(statement))


def states(tx: Tx, most: int) -> list[JobState]:
    """The oldest jobs, at most so many."""
    statement = sa.select(jobs, db_now().label("present")).order_by(jobs.c.created_at, jobs.c.id).limit(most)
    return [
        JobState(
            row.kind,
            row.image_id,
            row.project,
            row.state,
            row.attempt,
            row.owner,
            (row.present - row.created_at).total_seconds(),
            (row.due_at - row.present).total_seconds(),
            row.error,
            json.loads(row.payload).get("store"),
        )
        for row in tx.execute(statement)
    ]
