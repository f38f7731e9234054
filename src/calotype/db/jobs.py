"""The work queue: a row for each piece of work that must survive the process that began it.

A job is *pending* until a process claims it, and *running* while that process works on it. A finished job has no row.
`due_at` says when a pending job may start, by the database's clock. Each claim counts `attempt` up, and only the
process that holds the current attempt can finish the job: one that slept for too long finds that its attempt is over.
`leases.py` decides when a running job may be taken from its owner. An upload is a job that its uploader runs from the
start; the runner takes it over only if that process dies.

A job has a `step` and a `checkpoint`, which its kind gives a meaning (`jobs/kinds.py`). A `failure` is final: the steps
are undone. `cancel` asks whoever runs the job to fail it. A job with a `place` is for processes that have it.
"""

import json
import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from calotype import errors
from calotype.db import copies
from calotype.db.clock import db_now
from calotype.db.engine import Tx
from calotype.db.processes import OF_PROCESS
from calotype.db.tables import jobs, processes
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
    place: str | None = None,
) -> Job:
    """Add a job. It is pending, and anybody may claim it after `delay`; with an `owner` it is running already.

    While the job exists, `reserved` bytes count as used by `project`. With a `place`, only processes that have this
    staging directory, or this process, may claim it.
    """
    job = Job(
        secrets.token_hex(8), kind, image_id, 1 if owner else 0, owner, payload, reserved, project=project, place=place
    )
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
            place=place,
        )
    )
    return job


@dataclass(frozen=True, slots=True)
class Claims:
    """Which jobs a process may claim: of these `kinds`, with no place or one of its `places`, that are due or orphaned.

    Orphaned are jobs of `dead` owners, and these attempts unless their owner has sent a heartbeat meanwhile. With
    `fair`, projects take turns: one that runs fewer jobs of these kinds comes first. With `spare`, a project that
    any such job runs for gets nothing. Of the kinds `ending`, those that are to be undone may be claimed as well.
    """

    owner: str
    kinds: Collection[str]
    places: Collection[str] = ()
    dead: Collection[str] = ()
    orphans: Collection[Attempt] = ()
    fair: bool = False
    spare: bool = False
    ending: Collection[str] = ()


def claim(tx: Tx, claims: Claims) -> Job | None:
    """Take the oldest job that may be claimed; with `fair`, of the project whose turn it is."""
    found = sa.select(jobs).where(_claimable(claims)).order_by(jobs.c.due_at).limit(1)
    if tx.dialect.name != "sqlite":
        found = found.with_for_update(skip_locked=True)
    choices = [found.where(_of_project(one)) for one in _turns(tx, claims)] if claims.fair else [found]
    # Others may have locked all jobs of a project just now: then it is the turn of the next one.
    row = next((row for choice in choices if (row := tx.execute(choice).first()) is not None), None)
    if row is None:
        return None
    claimed = tx.execute(
        sa.update(jobs)
        .where(jobs.c.id == row.id, jobs.c.attempt == row.attempt)
        .values(state="running", owner=claims.owner, attempt=row.attempt + 1, due_at=db_now())
    )
    return replace(_job(row), owner=claims.owner, attempt=row.attempt + 1) if claimed.rowcount else None


def _turns(tx: Tx, claims: Claims) -> list[str | None]:
    """The projects that have a job to claim, in the order of their turns."""
    of_kinds = jobs.c.kind.in_(claims.kinds)
    waiting = sa.select(jobs.c.project, sa.func.min(jobs.c.due_at).label("due")).where(_claimable(claims))
    due: dict[str | None, Any] = {row.project: row.due for row in tx.execute(waiting.group_by(jobs.c.project))}
    if len(due) < 2 and not claims.spare:
        return list(due)
    running = sa.select(jobs.c.project).where(of_kinds, jobs.c.state == "running")
    counts: Counter[str | None] = Counter()
    for row in tx.execute(running):
        counts[row.project] += 1
    if claims.spare:
        due = {project: since for project, since in due.items() if not counts[project]}
    return sorted(due, key=lambda project: (counts[project], due[project]))


def _of_project(project: str | None) -> sa.ColumnElement[bool]:
    return jobs.c.project.is_(None) if project is None else jobs.c.project == project


def running_attempts(tx: Tx, exclude: Collection[str] = ()) -> list[Attempt]:
    """All running attempts, except those of the owners in `exclude`."""
    joined = jobs.outerjoin(processes, processes.c.owner == jobs.c.owner)
    statement = sa.select(jobs.c.id, jobs.c.attempt, jobs.c.owner, processes.c.beat).select_from(joined)
    return [Attempt(*row) for row in tx.execute(statement.where(_is_running(exclude)))]


def any_running(tx: Tx, exclude: Collection[str] = ()) -> bool:
    """Whether `running_attempts` would find any."""
    return tx.execute(sa.select(jobs.c.id).where(_is_running(exclude)).limit(1)).first() is not None


def reserve(tx: Tx, job: Job, reserved: int) -> bool:
    """Change how many bytes the job keeps for its project. False when it was taken away."""
    return bool(tx.execute(sa.update(jobs).where(_is_current(job)).values(reserved=reserved)).rowcount)


def finish(tx: Tx, job: Job) -> bool:
    """Remove a job that is done. False when it was taken away: the caller then undoes the transaction."""
    return bool(tx.execute(sa.delete(jobs).where(_is_current(job))).rowcount)


def fail(tx: Tx, job: Job, error: str, *, delay: timedelta) -> bool:
    """Put a job back, to be tried again after a delay. `error` is the reason, for operators."""
    values: dict[str, Any] = {"state": "pending", "owner": None, "due_at": db_now(delay), "error": error[:2000]}
    values["failures"] = job.failures + 1
    return bool(tx.execute(sa.update(jobs).where(_is_current(job)).values(values)).rowcount)


def postpone(tx: Tx, job: Job, why: str, *, delay: timedelta) -> bool:
    """As `fail`, but this attempt does not count as failed."""
    return fail(tx, replace(job, failures=job.failures - 1), why, delay=delay)


def advance(tx: Tx, job: Job, step: int, checkpoint: Mapping[str, Any]) -> bool:
    """Record that a step is done and what the next ones need to know. False when the job was taken away."""
    values = {"step": step, "checkpoint": json.dumps(dict(checkpoint)), "error": None, "due_at": db_now()}
    return bool(tx.execute(sa.update(jobs).where(_is_current(job)).values(values)).rowcount)


def park(tx: Tx, job: Job, checkpoint: Mapping[str, Any], *, delay: timedelta) -> None:
    """The attempt has done its part, and the job waits for another use of it, at most for `delay`. Raises `Gone`.

    The attempt is over: if its process does not learn that this was committed, it can take nothing back.
    """
    values: dict[str, Any] = {"state": "pending", "owner": None, "due_at": db_now(delay)}
    values["checkpoint"] = json.dumps(dict(checkpoint))
    values["attempt"] = job.attempt + 1
    if not tx.execute(sa.update(jobs).where(_is_current(job)).values(values)).rowcount:
        raise errors.Gone("The upload took too long to report and was given up.")


def is_parked(tx: Tx, job: Job) -> bool:
    """Whether the job waits as `park` has left it."""
    waits = (jobs.c.id == job.id) & (jobs.c.state == "pending") & jobs.c.checkpoint.is_not(None)
    untouched = jobs.c.cancel.is_(None) & jobs.c.error.is_(None)  # else somebody has begun to remove what it keeps
    return tx.execute(sa.select(jobs.c.id).where(waits, untouched)).first() is not None


def was_parked(tx: Tx, job: Job) -> bool | None:
    """Whether `park` took effect, whatever the job is used for by now; None if there is no such job any more."""
    row = tx.execute(sa.select(jobs.c.checkpoint).where(jobs.c.id == job.id)).first()
    return None if row is None else row.checkpoint is not None


def become(tx: Tx, job: Job, kind: str, payload: Mapping[str, Any], *, reserved: int) -> None:
    """Turn a parked job into one of another kind, which is due now. Raises `Conflict` if somebody took it meanwhile."""
    values = {"kind": kind, "payload": json.dumps(dict(payload)), "due_at": db_now(), "reserved": reserved}
    waits = _is_current(job) & (jobs.c.state == "pending")
    if not tx.execute(sa.update(jobs).where(waits).values(values)).rowcount:
        raise errors.Conflict("The staged data is just being removed.")


def fail_for_good(tx: Tx, job: Job, why: str) -> bool:
    """Record a failure that no other attempt can mend. False when the job was taken away."""
    values = {"failure": why[:2000], "due_at": db_now()}
    return bool(tx.execute(sa.update(jobs).where(_is_current(job)).values(values)).rowcount)


def report(tx: Tx, job: Job, progress: Mapping[str, Any] | None = None) -> str | None:
    """Record how far the job is, if that is given; returns why it shall stop, None if it shall go on. Raises `Gone`."""
    if progress is not None:
        tx.execute(sa.update(jobs).where(_is_current(job)).values(progress=json.dumps(dict(progress)), due_at=db_now()))
    row = tx.execute(sa.select(jobs.c.cancel).where(_is_current(job))).first()
    if row is None:
        raise errors.Gone("The job was taken away.")
    return None if row.cancel is None else str(row.cancel)


def ask_to_cancel(tx: Tx, job_id: str, why: str) -> bool:
    """Ask whoever runs a job to fail it with this reason; a pending one is due now. False if there is no such job."""
    waits = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.state == "pending").values(due_at=db_now())
    tx.execute(waits)
    return bool(tx.execute(sa.update(jobs).where(jobs.c.id == job_id).values(cancel=why[:2000])).rowcount)


def backoff(job: Job) -> timedelta:
    """How long to wait after this attempt has failed: a minute, then twice as long each time, up to an hour."""
    return min(LONGEST_BACKOFF, timedelta(minutes=2 ** min(job.failures, 6)))


def release(tx: Tx, attempts: Collection[Attempt]) -> None:
    """Make the jobs of these attempts due for anybody, although their owner is alive: it does not work on them."""
    for one in attempts:
        tx.execute(sa.update(jobs).where(_is_attempt(one)).values(state="pending", owner=None, due_at=db_now()))


def revoke(tx: Tx, image_id: str) -> None:
    """Take the image's running jobs from the attempts that run them, because the image is deleted.

    An owner keeps the job until it has noticed; then it cleans up itself (`revoked`), or lets the job go (`let_go`).
    So nobody cleans up while it may still be writing. Should it die, the job passes on like any other.
    """
    running = (jobs.c.image_id == image_id) & (jobs.c.state == "running")
    tx.execute(sa.update(jobs).where(running).values(attempt=jobs.c.attempt + 1, due_at=db_now()))


def let_go(tx: Tx, job: Job) -> bool:
    """The owner of a revoked attempt has ended it: the job is due for anybody, who then cleans up."""
    values = {"state": "pending", "owner": None, "due_at": db_now()}
    return bool(tx.execute(sa.update(jobs).where(_is_revoked(job)).values(values)).rowcount)


def revoked(tx: Tx, job: Job) -> Job | None:
    """The job as its owner still has it after `revoke`, so that the owner can clean up; None if another one has it."""
    is_mine = tx.execute(sa.select(jobs.c.id).where(_is_revoked(job))).first() is not None
    return replace(job, attempt=job.attempt + 1) if is_mine else None


def _is_revoked(job: Job) -> sa.ColumnElement[bool]:
    return (jobs.c.id == job.id) & (jobs.c.attempt == job.attempt + 1) & (jobs.c.owner == job.owner)


def cancel(tx: Tx, kind: str, image_id: str) -> list[Job]:
    """Remove the image's jobs of a kind that needs no cleaning up, whoever owns them; returns the removed jobs."""
    which = (jobs.c.image_id == image_id) & (jobs.c.kind == kind)
    found = [_job(row) for row in tx.execute(sa.select(jobs).where(which))]
    tx.execute(sa.delete(jobs).where(which))
    return found


def of_image(tx: Tx, image_id: str, *kinds: str) -> list[Job]:
    """The jobs of these kinds that an image has, oldest first."""
    which = (jobs.c.image_id == image_id) & jobs.c.kind.in_(kinds)
    return [_job(row) for row in tx.execute(sa.select(jobs).where(which).order_by(jobs.c.created_at, jobs.c.id))]


def of_kind(tx: Tx, kind: str) -> list[Job]:
    """All jobs of a kind."""
    return [_job(row) for row in tx.execute(sa.select(jobs).where(jobs.c.kind == kind))]


def get(tx: Tx, job_id: str) -> Job | None:
    """The job of this id."""
    row = tx.execute(sa.select(jobs).where(jobs.c.id == job_id)).first()
    return _job(row) if row is not None else None


def resolve(tx: Tx, job: Job) -> bool | None:
    """Whether an attempt whose last COMMIT is in doubt is still the current one; None when the job is done.

    This writes to the job, and so waits for a transaction that is about to finish it. When it returns, a COMMIT that
    was sent over a broken connection has either happened or never will.
    """
    tx.execute(sa.update(jobs).where(_is_current(job)).values(due_at=db_now()))
    attempt = tx.execute(sa.select(jobs.c.attempt).where(jobs.c.id == job.id)).scalar()
    return None if attempt is None else attempt == job.attempt


def waiting_places(tx: Tx) -> list[str]:
    """The places of jobs that may run at a certain place only, and cannot wait any longer if nobody is there."""
    return list(tx.execute(sa.select(jobs.c.place).where(_waits_at_place()).distinct()).scalars())


def let_run_anywhere(tx: Tx, place: str, why: str) -> int:
    """Nobody is at a place any more: its jobs are cancelled, by whoever claims them; returns how many."""
    there = _waits_at_place() & (jobs.c.place == place)
    values = {"place": None, "cancel": why, "due_at": db_now()}
    return int(tx.execute(sa.update(jobs).where(there).values(values)).rowcount)


def _waits_at_place() -> sa.ColumnElement[bool]:
    """Running or due; or waiting for a process, which never comes back. Staged data may wait for its import."""
    of_process = jobs.c.place.like(f"{OF_PROCESS}%")
    return jobs.c.place.is_not(None) & ((jobs.c.state == "running") | (jobs.c.due_at <= db_now()) | of_process)


def retry(tx: Tx, job_id: str) -> bool:
    """Make a pending job due now. False if there is none of this id that is pending."""
    waits = (jobs.c.id == job_id) & (jobs.c.state == "pending")
    return bool(tx.execute(sa.update(jobs).where(waits).values(due_at=db_now())).rowcount)


def drop(tx: Tx, job_id: str) -> bool:
    """Remove a job whatever becomes of its work, because an operator says so. False if there is none."""
    return bool(tx.execute(sa.delete(jobs).where(jobs.c.id == job_id)).rowcount)


def is_current(tx: Tx, job: Job) -> bool:
    """Whether the job exists and this attempt is its current one."""
    return tx.execute(sa.select(jobs.c.id).where(_is_current(job))).first() is not None


def exists(tx: Tx, token: str) -> bool:
    """Whether the job of an attempt exists, whoever owns it now."""
    return tx.execute(sa.select(jobs.c.id).where(jobs.c.id == token.rpartition("-")[0])).first() is not None


def any_claimable(tx: Tx, claims: Claims) -> bool:
    """Whether `claim` might find a job; it may leave it for another process."""
    return tx.execute(sa.select(jobs.c.id).where(_claimable(claims)).limit(1)).first() is not None


def _claimable(claims: Claims) -> sa.ColumnElement[bool]:
    # A parked job may have to wait for days.
    fast_clock = (jobs.c.due_at > db_now(_IMPLAUSIBLY_LATE)) & jobs.c.checkpoint.is_(None)
    due = (jobs.c.due_at <= db_now()) | fast_clock
    claimable: sa.ColumnElement[bool] = (jobs.c.state == "pending") & due
    if claims.dead:
        claimable |= jobs.c.owner.in_(claims.dead)
    for one in list(claims.orphans)[:_MAX_ORPHANS]:
        orphan = _is_attempt(one)
        if one.owner != claims.owner:
            # Its process may have sent a heartbeat since it was taken for silent.
            beat_again = processes.c.beat != one.beat if one.beat is not None else sa.true()
            orphan &= ~sa.exists().where(processes.c.owner == one.owner, beat_again)
        claimable |= orphan
    here = jobs.c.place.is_(None) | jobs.c.place.in_(claims.places)
    ends = jobs.c.kind.in_(claims.ending) & (jobs.c.cancel.is_not(None) | jobs.c.failure.is_not(None))
    return claimable & (jobs.c.kind.in_(claims.kinds) | ends) & here


def _is_attempt(one: Attempt) -> sa.ColumnElement[bool]:
    return (jobs.c.id == one.job_id) & (jobs.c.attempt == one.attempt) & (jobs.c.owner == one.owner)


def _is_running(exclude: Collection[str]) -> sa.ColumnElement[bool]:
    running = jobs.c.state == "running"
    return running & jobs.c.owner.not_in(exclude) if exclude else running


def _is_current(job: Job) -> sa.ColumnElement[bool]:
    return (jobs.c.id == job.id) & (jobs.c.attempt == job.attempt)


def _job(row: Any) -> Job:
    return Job(
        row.id,
        row.kind,
        row.image_id,
        row.attempt,
        row.owner,
        json.loads(row.payload),
        row.reserved or 0,
        row.project,
        row.step or 0,
        json.loads(row.checkpoint or "{}"),
        row.failure,
        row.cancel,
        row.place,
        json.loads(row.progress or "{}"),
        row.failures or 0,
    )


# --- for who looks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as it is. `age` and `due` are seconds since it was made and until it may start, by the database's clock."""

    id: str
    kind: str
    image_id: str
    project: str | None
    state: str
    step: int
    attempt: int
    owner: str | None
    place: str | None
    reserved: int
    task: str | None
    age: float
    due: float
    error: str | None  #: of the last attempt
    failure: str | None  #: why it is being undone
    cancel: str | None  #: why it was asked to stop
    progress: Mapping[str, Any]  #: what `report` recorded last
    copies: Sequence[tuple[str, str, str | None]]  #: store, state and error of each copy that it writes


def counts(tx: Tx) -> list[tuple[str, str, int]]:
    """How many jobs there are of each kind and state."""
    statement = sa.select(jobs.c.kind, jobs.c.state, sa.func.count()).group_by(jobs.c.kind, jobs.c.state)
    return sorted((kind, state, count) for kind, state, count in tx.execute(statement))


def states(
    tx: Tx,
    most: int,
    *,
    ids: Collection[str] = (),
    images: Collection[str] = (),
    kinds: Collection[str] = (),
) -> list[JobState]:
    """The oldest jobs, at most so many. Each collection that is not empty leaves only those in it."""
    statement = sa.select(jobs, db_now().label("present")).order_by(jobs.c.created_at, jobs.c.id).limit(most)
    for column, chosen in ((jobs.c.id, ids), (jobs.c.image_id, images), (jobs.c.kind, kinds)):
        if chosen:
            statement = statement.where(column.in_(chosen))
    rows = tx.execute(statement).all()
    written = copies.states(tx, [row.id for row in rows])
    return [
        JobState(
            row.id,
            row.kind,
            row.image_id,
            row.project,
            row.state,
            row.step or 0,
            row.attempt,
            row.owner,
            row.place,
            row.reserved or 0,
            json.loads(row.payload).get("task"),
            (row.present - row.created_at).total_seconds(),
            (row.due_at - row.present).total_seconds(),
            row.error,
            row.failure,
            row.cancel,
            json.loads(row.progress or "{}"),
            written.get(row.id, []),
        )
        for row in rows
    ]
