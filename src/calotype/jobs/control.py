"""What an operator may do with a job: `calotype job` (`cli/job.py`) calls this.

`cancel` asks whoever runs the job to undo it. `drop` forgets a job, and leaves whatever it has made; `remains` says
what that is.
"""

from typing import Final

from calotype import errors
from calotype.context import SERVICE
from calotype.db import copies as db_copies
from calotype.db import images as db_images
from calotype.db import jobs
from calotype.db import tasks as db_tasks
from calotype.db.engine import Tx
from calotype.images import data, imports, locations, removal, tasks
from calotype.jobs.kinds import KINDS
from calotype.model import Job
from calotype.service import Service

_UNDOABLE: Final = {
    data.KIND: "An upload ends with its client's request; what is left of one that died is cleaned up anyway.",
    removal.KIND: "A delete cannot be cancelled: its image is deleted already, and only the data is left to remove.",
    imports.STAGED: "Staged data is removed when its image is deleted, or when this job is due.",
}
#: Statuses that an image leaves only when its job ends.
_PASSING: Final = ("saving", "importing", "uploading")


def get(svc: Service, job_id: str) -> Job:
    """The job of this id. Raises `NotFound`."""
    return _get(svc.db.snapshot(lambda tx: jobs.get(tx, job_id)), job_id)


def retry(svc: Service, job_id: str) -> bool:
    """Make a job due now. False if it is running. Raises `NotFound`, and `Conflict` if it waits for its user."""

    def work(tx: Tx) -> bool:
        _get(jobs.get(tx, job_id), job_id)
        (state,) = jobs.states(tx, 1, ids=[job_id])
        if state.kind == imports.STAGED and state.error is None and state.due > 0:
            raise errors.Conflict(
                f"Job {job_id} has not failed: when it is due, data that somebody has staged is removed."
            )
        return jobs.retry(tx, job_id)

    return svc.db.write(work)


def cancel(svc: Service, job_id: str, why: str) -> Job:
    """Ask whoever runs a job to undo it; users are told why. Returns the job as it was.

    Raises `NotFound`, and `Conflict` with the reason if the job cannot be undone.
    """

    def work(tx: Tx) -> Job:
        job = _get(jobs.get(tx, job_id), job_id)
        kind = KINDS.get(job.kind)
        if kind is None or not any(step.undo for step in kind.steps):
            raise errors.Conflict(_UNDOABLE.get(job.kind, f"Nothing of a job of kind {job.kind} can be undone."))
        if not kind.can_undo(job.step):
            raise errors.Conflict(f"What job {job_id} was for is done; only tidying up is left.")
        jobs.ask_to_cancel(tx, job_id, why)
        return job

    return svc.db.write(work)


def remains(svc: Service, job_id: str) -> list[str]:
    """What would be left behind if this job were dropped now, in sentences. Raises `NotFound`."""

    def work(tx: Tx) -> list[str]:
        job = _get(jobs.get(tx, job_id), job_id)
        image = db_images.get(tx, SERVICE, job.image_id)
        stores = {copy.store for copy in db_copies.of(tx, job) if copy.attempt is not None or copy.state == "done"}
        found = []
        if job.owner is not None:
            found.append(f"{job.owner} runs it; it stops within seconds and cleans nothing up.")
        if job.kind == removal.KIND:
            kept = {place["metadata"].get("store") for place in job.payload["locations"]} - {None}
            found += [f"Store {store}: the data of the deleted image stays." for store in sorted(kept)]
        found += [f"Store {store}: what the job has written there stays." for store in sorted(stores)]
        if image is not None and image.status in _PASSING:
            found.append(f"Image {image.id} stays {image.status}, and takes no data: delete it.")
        if image is not None and job.kind == locations.KIND and image.status not in _PASSING:
            found.append(f"Image {image.id} gets no hash.")
        if job.payload.get("task"):
            found.append(f"Task {job.payload['task']} fails.")
        if stores or job.kind == removal.KIND:
            found.append("`calotype repair` finds data that no record knows, and puts it aside.")
        return found

    return svc.db.snapshot(work)


def drop(svc: Service, job_id: str) -> None:
    """Remove a job whatever becomes of its work; its task fails. Raises `NotFound`."""

    def work(tx: Tx) -> None:
        job = _get(jobs.get(tx, job_id), job_id)
        jobs.drop(tx, job_id)
        if task := job.payload.get("task"):
            tasks.move(svc, tx, task, "failure", message="An operator has dropped the job.")

    svc.db.write(work, lambda tx, _: jobs.get(tx, job_id) is None)


def ending(svc: Service, job: Job) -> str | None:
    """The status of the task of a job that is gone; None if it had none."""
    task = job.payload.get("task")
    found = svc.db.snapshot(lambda tx: db_tasks.get(tx, SERVICE, task, svc.now())) if task else None
    return found.status if found is not None else None


def _get(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise errors.NotFound(f"There is no job {job_id}, or no more: see calotype job list.")
    return job
