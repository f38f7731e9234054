"""Small work of the runner: what uploads and deletes of dead processes leave to do, and the periodic sweep."""

import contextlib
import logging
import re
from functools import partial
from typing import Final

from calotype import errors
from calotype.context import SERVICE
from calotype.db import images, jobs, processes, tasks
from calotype.db.engine import Tx
from calotype.images import data, imports, removal
from calotype.images.work import Work
from calotype.service import Service
from calotype.stores.base import Sweeps

LOG = logging.getLogger(__name__)

#: Seconds that staged data without a job is left alone.
_STAGED_AGE: Final = 3600.0
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def abandon_upload(work: Work) -> None:
    """The uploader is dead: remove what it left in the store, and queue the image again."""
    data.give_up(work.svc, work.job, "The service ended meanwhile.")


def finish_delete(work: Work) -> None:
    """Carry out a delete whose process is dead, or whose data could not be removed earlier."""
    removal.carry_out(work.svc, SERVICE, work.job, asked=False)


def sweep_staging(svc: Service) -> None:
    """Remove staged data of this host that nobody will import: its host was given up, or the database is an older one.

    A Glance may have the same directory. What it has staged has no job of ours, but an image that waits for it.
    """
    staging = svc.stores.staging
    if staging.identity is None:
        return
    try:
        staging.sweep(lambda token: svc.db.snapshot(lambda tx: jobs.exists(tx, token)))
        for entry in staging.entries():
            if entry.attempt is not None or entry.age < _STAGED_AGE or not _UUID.fullmatch(entry.name):
                continue
            if svc.db.snapshot(partial(_is_awaited, image_id=entry.name)):
                continue
            with contextlib.suppress(errors.Missing):
                staging.delete(staging.url_of(entry.name), ctx=SERVICE)
            LOG.warning("staged data of image %s, which nobody waits for, was removed", entry.name)
    except errors.StoreError as exc:  # the other stores are swept all the same
        LOG.warning("the staging directory cannot be swept: %s", errors.reason(exc))


def _is_awaited(tx: Tx, image_id: str) -> bool:
    """Whether staged data of this image may yet be imported, by us or by a Glance."""
    if jobs.of_image(tx, image_id, imports.STAGED, imports.KIND):
        return True
    image = images.get(tx, SERVICE, image_id)
    return image is not None and (image.status in ("uploading", "importing") or imports.LOCK in image.properties)


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
        try:
            if isinstance(store, Sweeps) and (count := store.sweep(job_exists)):
                LOG.warning("%d orphaned temporary files were removed from store %s", count, store.name)
        except errors.StoreError as exc:  # the other stores are swept all the same
            LOG.warning("store %s cannot be swept: %s", store.name, errors.reason(exc))
