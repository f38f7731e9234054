"""What the runner does with a job of each kind, one line a kind; and what it does unasked."""

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
    """The uploader died: remove what its attempts left and queue the image again."""
    data.give_up(svc, job, [f"{job.id}-{attempt}" for attempt in range(1, job.attempt)], "The service ended meanwhile.")


def finish_delete(svc: Service, job: Job) -> None:
    """A delete was acknowledged, or is, as soon as the data is gone."""
    removal.carry_out(svc, SERVICE, job, asked=False)


def sweep(svc: Service) -> None:
    """Let tasks and processes go that are over, and remove temporary names that no job knows.

    Such a name is left by an upload that lost its job, or from before a restored backup. Lists whole stores: one
    process of all hosts does it.
    """
    svc.db.write(tasks.expire)
    svc.db.write(processes.sweep)

    def lives(token: str) -> bool:
        return svc.db.snapshot(lambda tx: jobs.exists(tx, token))

    for store in svc.stores:
        if isinstance(store, Sweeps) and (count := store.sweep(lives)):
            LOG.warning("%d orphaned temporary files were removed from store %s", count, store.name)


CHORES: Final[dict[str, Callable[[Service, Job], None]]] = {
    data.KIND: abandon_upload,
    removal.KIND: finish_delete,
}
#: The same of what reads whole images, beside the others. The last argument raises when the job must stop.
LONG: Final[dict[str, Callable[[Service, Job, Callable[[], None]], None]]] = {
    locations.KIND: locations.hash_data,
}
