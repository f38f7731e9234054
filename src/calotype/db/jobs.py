"""The work queue: rows for everything that must survive the process that began it.

A job is *pending* until somebody claims it and *running* while they work; `due_at` says when a pending one may start,
by the database's clock. Who holds a running job, and may lose it, is decided in `leases.py`. Claiming counts `attempt`
up, and whoever finishes must still hold the attempt they were given: a process that slept for too long finds that it is
no longer asked for. A finished job has no row. The intent of an upload is a job that its uploader holds from the start;
what the runner takes over is what a dead process left.
"""

import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from calotype.db.clock import moment
from calotype.db.engine import Tx
from calotype.db.tables import jobs, notes, processes
from calotype.model import Job

#: The name of the table, as `images.delete` says it.
TABLE = jobs.name
LONGEST_PAUSE: Final = timedelta(hours=1)
#: Nothing waits for so long: who wrote a moment that lies further ahead had a clock that was set back since.
_FAR_AHEAD: Final = 2 * LONGEST_PAUSE
#: As many orphans are looked for at once.
_MANY: Final = 50


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt at a job, who makes it, and that process's last beat, None where there was none."""

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
    """Add a job: pending, for anybody after a delay, or, with an owner, already running.

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
            due_at=moment(delay),
            payload=json.dumps(dict(payload)),
            created_at=moment(),
            project=project,
            reserved=reserved,
        )
    )
    return job


def claim(
    tx: Tx, owner: str, *, dead: Collection[str] = (), orphans: Collection[Running] = (), but: Collection[str] = ()
) -> Job | None:
    """Take the oldest job that is due, or whose owner is dead, or whose attempt is one of the orphans.

    No job of the kinds in `but`, and none whose owner was heard since it was taken for silent.
    """
    statement = sa.select(jobs).where(_ready(owner, dead, orphans, but)).order_by(jobs.c.due_at).limit(1)
    if tx.dialect.name != "sqlite":
        statement = statement.with_for_update(skip_locked=True)
    row = tx.execute(statement).first()
    if row is None:
        return None
    claimed = tx.execute(
        sa.update(jobs)
        .where(jobs.c.id == row.id, jobs.c.attempt == row.attempt)
        .values(state="running", owner=owner, attempt=row.attempt + 1, due_at=moment())
    )
    return _job(row, owner=owner, attempt=row.attempt + 1) if claimed.rowcount else None


def running(tx: Tx, but: Collection[str] = ()) -> list[Running]:
    """All attempts that are being made, but for those of some owners."""
    joined = jobs.outerjoin(processes, processes.c.owner == jobs.c.owner)
    statement = sa.select(jobs.c.id, jobs.c.attempt, jobs.c.owner, processes.c.beat).select_from(joined)
    return [Running(*row) for row in tx.execute(statement.where(_running(but)))]


def any_running(tx: Tx, but: Collection[str] = ()) -> bool:
    """Whether there are such attempts."""
    return tx.execute(sa.select(jobs.c.id).where(_running(but)).limit(1)).first() is not None


def note(tx: Tx, job: Job, what: str) -> bool:
    """Keep what a cleaner of this attempt would need to know, in place of what was kept. False: it was taken away."""
    # The job is written as well: of two nodes of a Galera cluster one could note and the other take the job away.
    if not tx.execute(sa.update(jobs).where(_holds(job)).values(due_at=moment())).rowcount:
        return False
    # Added, as the last one counts: to replace the row would be one more question to the database.
    tx.execute(sa.insert(notes).values(job_id=job.id, note=json.dumps([job.token, what])))
    return True


def reserve(tx: Tx, job: Job, reserved: int) -> bool:
    """Change how many bytes the job keeps for its project. False when it was taken away."""
    return bool(tx.execute(sa.update(jobs).where(_holds(job)).values(reserved=reserved)).rowcount)


def finish(tx: Tx, job: Job) -> bool:
    """Remove a job that is done. False when it was taken away: undo the transaction then."""
    return bool(tx.execute(sa.delete(jobs).where(_holds(job))).rowcount)


def fail(tx: Tx, job: Job, error: str, *, delay: timedelta) -> bool:
    """Put a job back, to be tried again after a delay, with the reason for whoever looks."""
    values = {"state": "pending", "owner": None, "due_at": moment(delay), "error": error[:2000]}
    return bool(tx.execute(sa.update(jobs).where(_holds(job)).values(values)).rowcount)


def pause(job: Job) -> timedelta:
    """How long to wait before the next attempt: a minute, then twice as long each time, up to an hour."""
    return min(LONGEST_PAUSE, timedelta(minutes=2 ** min(job.attempt - 1, 6)))


def give_back(tx: Tx, attempts: Collection[Running]) -> None:
    """Nobody makes these attempts, whatever their owner's beat says: the jobs are due, for anybody."""
    for one in attempts:
        tx.execute(sa.update(jobs).where(_is(one)).values(state="pending", owner=None, due_at=moment()))


def revoke(tx: Tx, image_id: str) -> None:
    """Take the image's running jobs from whoever has them: they are due, for anybody to clean up after."""
    statement = sa.update(jobs).where(jobs.c.image_id == image_id, jobs.c.state == "running")
    tx.execute(statement.values(state="pending", owner=None, attempt=jobs.c.attempt + 1, due_at=moment()))


def call_off(tx: Tx, kind: str, image_id: str) -> list[Job]:
    """Remove the image's jobs of a kind that leaves nothing behind, whoever has them; what they were."""
    which = (jobs.c.image_id == image_id) & (jobs.c.kind == kind)
    found = [_job(row, owner=row.owner, attempt=row.attempt) for row in tx.execute(sa.select(jobs).where(which))]
    tx.execute(sa.delete(jobs).where(which))
    return found


def settle(tx: Tx, job: Job) -> tuple[bool, dict[str, str]] | None:
    """Whether this attempt is still the one that counts, and the notes by the attempts' tokens; None: the job is done.

    Writes to the job, and so waits for a transaction that is about to finish it: one whose COMMIT was sent over a
    connection that broke has either happened before this returns, or never will.
    """
    tx.execute(sa.update(jobs).where(_holds(job)).values(due_at=moment()))
    attempt = tx.execute(sa.select(jobs.c.attempt).where(jobs.c.id == job.id)).scalar()
    if attempt is None:
        return None
    found = tx.execute(sa.select(notes.c.note).where(notes.c.job_id == job.id).order_by(notes.c.id)).scalars()
    return attempt == job.attempt, dict(filter(None, (_noted(job.id, json.loads(one)) for one in found)))


def _noted(job_id: str, found: Any) -> tuple[str, str] | None:
    """Token and note of a row. Earlier releases wrote what an upload noted without its token: it was the first."""
    if isinstance(found, dict):
        return (f"{job_id}-1", found["object"]) if "object" in found else None
    token, what = found
    return token, what


def held(tx: Tx, job: Job) -> bool:
    """Whether this attempt is there, and the one that counts."""
    return tx.execute(sa.select(jobs.c.id).where(_holds(job))).first() is not None


def lives(tx: Tx, token: str) -> bool:
    """Whether the job of an attempt is there, whoever has it now."""
    return tx.execute(sa.select(jobs.c.id).where(jobs.c.id == token.rpartition("-")[0])).first() is not None


def ready(
    tx: Tx,
    owner: str,
    *,
    dead: Collection[str] = (),
    orphans: Collection[Running] = (),
    but: Collection[str] = (),
) -> bool:
    """Whether `claim` would find a job."""
    return tx.execute(sa.select(jobs.c.id).where(_ready(owner, dead, orphans, but)).limit(1)).first() is not None


def _ready(
    owner: str, dead: Collection[str], orphans: Collection[Running], but: Collection[str]
) -> sa.ColumnElement[bool]:
    due = (jobs.c.due_at <= moment()) | (jobs.c.due_at > moment(_FAR_AHEAD))
    ready: sa.ColumnElement[bool] = (jobs.c.state == "pending") & due
    if dead:
        ready |= jobs.c.owner.in_(dead)
    for one in list(orphans)[:_MANY]:
        orphan = _is(one)
        if one.owner != owner:
            # Its process may have come back since it was taken for silent.
            heard = processes.c.beat != one.beat if one.beat is not None else sa.true()
            orphan &= ~sa.exists().where(processes.c.owner == one.owner, heard)
        ready |= orphan
    return ready & jobs.c.kind.not_in(but) if but else ready


def _is(one: Running) -> sa.ColumnElement[bool]:
    return (jobs.c.id == one.job_id) & (jobs.c.attempt == one.attempt) & (jobs.c.owner == one.owner)


def _running(but: Collection[str]) -> sa.ColumnElement[bool]:
    running = jobs.c.state == "running"
    return running & jobs.c.owner.not_in(but) if but else running


def _holds(job: Job) -> sa.ColumnElement[bool]:
    return (jobs.c.id == job.id) & (jobs.c.attempt == job.attempt)


def _job(row: Any, *, owner: str | None, attempt: int) -> Job:
    return Job(row.id, row.kind, row.image_id, attempt, owner, json.loads(row.payload), row.reserved or 0)
