"""Deletes images and copies: first the record, then the data, by a job that survives a crash.

One transaction deletes the rows, keeps the id from being used again and adds a job with the locations. Then the data is
removed from the stores. If a store answers that it is in use while the client still waits, a second transaction
restores the record. If the process dies, the runner carries out the job.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from calotype import errors
from calotype.context import Context
from calotype.db import images as db_images
from calotype.db import jobs
from calotype.db.engine import Tx
from calotype.images import imports, locations
from calotype.model import Image, Job, Location
from calotype.service import Service
from calotype.stores.base import Later

LOG = logging.getLogger(__name__)

KIND = "delete"


def begin(svc: Service, tx: Tx, image: Image) -> Job | None:
    """Delete the record in the caller's transaction. Returns the job for its data, None if it has no data."""
    now = svc.now()
    rows = db_images.delete(tx, image, now)
    if rows is None:
        raise errors.NotFound(f"No image found with ID {image.id}")
    svc.events.deleted(tx, image, now)
    # An upload, an import or the removal of one copy may still be running. It loses its job, and the runner cleans up.
    if rows.pop(jobs.TABLE, None):
        if image.status == "importing":
            locations.call_off(svc, tx, image.id)
        is_imported = imports.call_off(tx, image.id)
        jobs.revoke(tx, image.id)
        if is_imported and image.status == "importing":
            return None  # what is there is removed by the import
    return _submit(svc, tx, image, image.locations, rows=rows)


def begin_copy(svc: Service, tx: Tx, image: Image, location: Location) -> Job:
    """Remove one copy from the record in the caller's transaction. Returns the job for its data."""
    if not db_images.remove_location(tx, image.id, location.id, svc.now()):
        raise errors.NotFound("The image has no copy in this store.")
    svc.events.image(tx, image.id, "image.update")
    job = _submit(svc, tx, image, (location,), rows=None)
    assert job is not None
    return job


def _submit(
    svc: Service, tx: Tx, image: Image, locations: tuple[Location, ...], *, rows: Mapping[str, list[str]] | None
) -> Job | None:
    """`rows` are the rows that the delete of a whole image marked as deleted; None for one copy."""
    if not locations:
        return None
    objects = db_images.object_ids(tx, [place.id for place in locations])
    payload: dict[str, Any] = {
        "status": image.status,
        "rows": rows,
        "locations": [
            {"id": place.id, "url": place.url, "metadata": dict(place.metadata), "object": objects.get(place.id)}
            for place in locations
        ],
    }
    return jobs.submit(
        tx,
        KIND,
        image.id,
        payload,
        owner=svc.leases.owner,
        project=image.owner,
        reserved=(image.size or 0) * len(locations),  # kept while the image may still be restored
    )


def carry_out(svc: Service, ctx: Context, job: Job, *, asked: bool) -> None:
    """Remove the data of a deleted image, or of one copy.

    With `asked`, a client waits for the result: if the data is in use, the record is restored and `Conflict` is raised.
    After any other failure the job stays and is retried.
    """
    removed: list[int] = []
    later: list[Later] = []
    failure: errors.StoreError | None = None
    with svc.leases.holding(job) if asked else contextlib.nullcontext():
        for location, object_id in _locations(job):
            try:
                if unfinished := _remove(svc, ctx, job.image_id, location, object_id):
                    later.append(unfinished)
                else:
                    removed.append(location.id)
            except errors.InUse as exc:
                if asked and _restore(svc, job, removed):
                    raise errors.Conflict(
                        f"Image {job.image_id} could not be deleted because it is in use: {exc}"
                    ) from exc
                failure = exc
            except errors.StoreError as exc:
                failure = exc  # go on with the other copies
    if failure is not None:
        _retry_later(svc, job, failure)
        return
    if later:
        delay = min(timedelta(seconds=max(one.seconds for one in later)), jobs.LONGEST_BACKOFF)
        with _leave_job_if_busy(svc, job):
            svc.db.write(lambda tx: _postpone(tx, job, "The store is still at it.", delay))
        return
    with _leave_job_if_busy(svc, job):
        svc.db.write(lambda tx: jobs.finish(tx, job) or jobs.let_go(tx, job))


def _remove(svc: Service, ctx: Context, image_id: str, location: Location, object_id: str | None) -> Later | None:
    store = svc.stores.for_removing(location)
    if object_id is None and svc.db.snapshot(lambda tx: db_images.is_named(tx, image_id, location.url)):
        LOG.info("store %s has other data of image %s by now, which stays", store.name, image_id)
        return None
    try:
        return svc.stores.access(store).delete(location.url, object_id=object_id, ctx=ctx)
    except errors.Replaced:
        LOG.warning(
            "store %s has other data than was stored for image %s, which is deleted: it was left alone; "
            "`calotype repair` puts aside what belongs to nobody", store.name, image_id,
        )  # fmt: skip
    except errors.Missing:
        LOG.info("store %s has no data to delete", store.name)
    return None


def _restore(svc: Service, job: Job, removed: list[int]) -> bool:
    """Restore the record without the copies whose data is removed. False if another process has the job now."""
    copy = job.payload["locations"][0]["id"]

    def work(tx: Tx) -> None:
        if not jobs.finish(tx, job):
            raise errors.Gone("Somebody else finishes this delete.")
        if _is_whole(job):
            db_images.restore(tx, job.image_id, job.payload["status"], job.payload["rows"], without=removed)
            imports.forget(svc, tx, job.image_id)
        else:
            db_images.restore_location(tx, job.image_id, copy)
        svc.events.image(tx, job.image_id, "image.update")

    def committed(tx: Tx, _: None) -> bool:
        if _is_whole(job):
            return not db_images.is_deleted(tx, job.image_id)
        return db_images.is_location_active(tx, copy)

    try:
        svc.db.write(work, committed)
    except errors.Gone:
        return False
    except errors.Busy:
        svc.leases.abandon(job)
        raise
    return True


def _retry_later(svc: Service, job: Job, exc: errors.StoreError) -> None:
    LOG.error("data of deleted image %s stays in store %s for now: %s", job.image_id, exc.store, errors.reason(exc))
    with _leave_job_if_busy(svc, job):
        svc.db.write(lambda tx: _postpone(tx, job, str(exc), jobs.backoff(job)))


def _postpone(tx: Tx, job: Job, why: str, delay: timedelta) -> None:
    jobs.reserve(tx, job, 0)  # from now on the image is never restored
    if not jobs.fail(tx, job, why, delay=delay):
        jobs.let_go(tx, job)


@contextlib.contextmanager
def _leave_job_if_busy(svc: Service, job: Job) -> Iterator[None]:
    """If the block raises `Busy`, leave the job to the runner: the record is deleted, and the caller may be told so."""
    try:
        yield
    except errors.Busy as exc:
        LOG.error("the delete of image %s is left to be finished later: %s", job.image_id, errors.reason(exc))
        svc.leases.abandon(job)


def _is_whole(job: Job) -> bool:
    return job.payload["rows"] is not None


def _locations(job: Job) -> Iterator[tuple[Location, str | None]]:
    """The copies, each with the id of its object, None if it has none."""
    for place in job.payload["locations"]:
        yield Location(place["id"], place["url"], place["metadata"]), place.get("object")
