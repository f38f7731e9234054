"""What the runner does with a job of each kind: one line a kind."""

from collections.abc import Callable
from typing import Final

from calotype.context import SERVICE
from calotype.images import data, removal
from calotype.model import Job
from calotype.service import Service


def abandon_upload(svc: Service, job: Job) -> None:
    """The uploader died: remove what its attempts left and queue the image again."""
    data.give_up(svc, job, [f"{job.id}-{attempt}" for attempt in range(1, job.attempt)])


def finish_delete(svc: Service, job: Job) -> None:
    """A delete was acknowledged, or is, as soon as the data is gone."""
    removal.carry_out(svc, SERVICE, job, asked=False)


CHORES: Final[dict[str, Callable[[Service, Job], None]]] = {
    data.KIND: abandon_upload,
    removal.KIND: finish_delete,
}
