"""What the runner does: a function for each kind of job, and the periodic sweep."""

import logging
from collections.abc import Callable
from typing import Final

from calotype.context import SERVICE
from calotype.db import jobs, processes, tasks
from calotype.images import data, locations, removal
from calotype.model import Job
from calotype.service import Service
from calotype.stores.base import Sweeps

LOG = logging.getLogger(__name__)


def abandon_upload(svc: Service, job: Job) -> None:
    """The uploader is dead: remove what its attempts left in the store, and queue the image again."""
    data.give_up(svc, job, [f"{job.id}-{attempt}" for attempt in range(1, job.attempt)], "The service ended meanwhile.")


def finish_delete(svc: Service, job: Job) -> None:
    """Carry out a delete whose process is dead, or whose data could not be removed earlier."""
    removal.carry_out(svc, SERVICE, job, asked=False)


def sweep(svc: Service) -> None:
    """Expire tasks, remove silent processes, and remove temporary files in stores that belong to no job.

    Such a file is left by an upload that lost its job, or by one that the database, restored from a backup, does not
    know. This lists whole stores, so one process of all hosts does it.
    """
    svc.db.write(tasks.expire)
    svc.db.write(processes.sweep)

    def job_exists(token: str) -> bool:
        return svc.db.snapshot(lambda tx: jobs.exists(tx, token))

    for store in svc.stores:
        if isinstance(store, Sweeps) and (count := store.sweep(job_exists)):
            LOG.warning("%d orphaned temporary files were removed from store %s", count, store.name)


CHORES: Final[dict[str, Callable[[Service, Job], None]]] = {
    data.KIND: abandon_upload,
    removal.KIND: finish_delete,
}
#: Jobs that read whole images. They run in a thread of their own; the last argument raises when the job must stop.
LONG_CHORES: Final[dict[str, Callable[[Service, Job, Callable[[], None]], None]]] = {
    locations.KIND: locations.hash_data,
}
