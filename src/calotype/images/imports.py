"""Interoperable import: data is staged or fetched, and written into stores by a job (contract: import.md).

`stage` receives data into the staging directory of this host. `start` submits the job; `images/importing.py` has its
steps. Both are one transaction with the change of the image's status.
"""

import contextlib
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

from calotype import errors, net
from calotype.context import SERVICE, Context
from calotype.db import copies as db_copies
from calotype.db import images as db_images
from calotype.db import jobs
from calotype.db import tasks as db_tasks
from calotype.db.engine import Tx
from calotype.db.processes import place_of
from calotype.images import data, quota, tasks
from calotype.images.locations import Given
from calotype.images.redaction import redacted
from calotype.images.stream import Passing, Source
from calotype.limits import Allowance
from calotype.model import Image, Job, Task
from calotype.policy import no_image
from calotype.service import Service
from calotype.stores.base import Feature, Store
from calotype.transfers import Upload

LOG = logging.getLogger(__name__)

#: The type of the task that shows an import.
TASK: Final = "api_image_import"
#: The kind of a job that keeps staged data until it is imported, and of one that imports.
STAGED: Final = "stage"
KIND: Final = "import"

GLANCE_DIRECT: Final = "glance-direct"
WEB_DOWNLOAD: Final = "web-download"
GLANCE_DOWNLOAD: Final = "glance-download"
COPY_IMAGE: Final = "copy-image"
METHODS: Final = (GLANCE_DIRECT, WEB_DOWNLOAD, GLANCE_DOWNLOAD, COPY_IMAGE)
#: For each method, the status that the image must have.
STATUSES: Final[Mapping[str, str]] = {
    GLANCE_DIRECT: "uploading", WEB_DOWNLOAD: "queued", GLANCE_DOWNLOAD: "queued", COPY_IMAGE: "active",
}  # fmt: skip

#: Properties by which clients, and a Glance on the same database, see what is going on.
LOCK: Final = "os_glance_import_task"
IMPORTING: Final = "os_glance_importing_to_stores"
FAILED: Final = "os_glance_failed_import"

#: After this time without a sign of life a task has lost its image, ours to a Glance as well (contract: import.md §4).
_PATIENCE: Final = timedelta(minutes=60)
_PATIENCE_PENDING: Final = 2 * _PATIENCE
#: How old the last sign of life of a task of ours is at most, but for the time between two calls of `keep_alive`.
_SIGN_OF_LIFE: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Remote:
    """An image of another region: the endpoint of its Image service, its id, and the caller's token.

    Without an endpoint the import is accepted and fails, as clients expect.
    """

    endpoint: str | None
    image_id: str
    token: str = field(repr=False)
    key: str = field(default_factory=lambda: secrets.token_hex(8))  #: by which the job finds the token


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller wants to be imported. `asked` is the request as it came, for the task of `task_type`."""

    method: str
    asked: Mapping[str, Any]
    uri: str | None = None
    remote: Remote | None = None
    given: Given | None = None
    stores: Sequence[str] | None = None
    all_stores: bool = False
    all_must_succeed: bool = True
    task_type: str = TASK


def enabled_methods(svc: Service) -> list[str]:
    """The methods that this service offers, in the operator's order."""
    return [name for name in svc.conf.enabled_import_methods if name in METHODS]


# --- staging ---------------------------------------------------------------------------------------------


def stage(
    svc: Service, ctx: Context, image_id: str, source: Source, *, size: int | None, length: int | None = None
) -> None:
    """Receive the data of a queued image into the staging directory; the image is uploading until it is imported.

    `size` and `length` are as in `data.upload`. Raises what that raises, and `NotFound` if glance-direct is not
    offered.
    """
    if GLANCE_DIRECT not in enabled_methods(svc):
        raise errors.NotFound("Staging is not offered: the import method glance-direct is not enabled.")
    image = svc.db.snapshot(lambda tx: db_images.get(tx, ctx, image_id))
    if image is None:
        raise no_image(image_id)
    svc.policy.check_image(ctx, "modify_image", image)
    _refuse_unless(image, "queued")
    store = svc.stores.staging
    store.confirm()
    data.check_size(svc, size, length)
    allowed = quota.allowance(svc, ctx, image.owner)
    with svc.transfers.slot():
        job, most = _intend_staging(svc, ctx, image.id, store, allowed, size)
        room = quota.growing_reservation(svc, allowed, size, job)
        with (
            data.cleaning_up(svc, job),
            svc.leases.holding(job) as alive,
            Passing(
                source,
                svc.transfers,
                expect=size,
                cap=svc.conf.image_size_cap if most is None else min(most, svc.conf.image_size_cap),
                hash_algo=svc.conf.hashing_algorithm,
                md5=False,
                disk_format=None,  # it is inspected when it is imported: the format may be set until then
                container_format=None,
                rules=data.format_rules(svc),
                alive=alive,
                admit=room.admit if room else None,
            ) as passing,
            svc.transfers.following(Upload(image.id, image.owner, store.name, size), lambda: passing.size),
        ):
            note = data.noting(svc, job, store.name)
            access = svc.stores.access(store)
            with access.writing(image.id, attempt=job.token, size=size, note=note, ctx=ctx) as write:
                passing.run(write)
                stored = write.commit()
            facts = {"size": stored.size, "hash": passing.hash_value, "algo": svc.conf.hashing_algorithm}
            keep = timedelta(hours=svc.conf.jobs.staging_hours)

            def work(tx: Tx) -> None:
                if not db_images.put_size(tx, job.image_id, "uploading", stored.size, now=svc.now()):
                    raise errors.Gone("The image was deleted while its data was arriving.")
                if not db_copies.done(tx, job, store.name, stored.url, object_id=stored.object_id):
                    raise errors.Gone("The upload took too long to report and was given up.")
                quota.check_staged(tx, allowed, 0)
                jobs.park(tx, job, facts, delay=keep)
                svc.events.image(tx, job.image_id, "image.update")

            svc.db.write(work, lambda tx, _: _was_staged(tx, job))


def _was_staged(tx: Tx, job: Job) -> bool:
    """Whether the data was staged, even if somebody imports it by now, or has imported it."""
    parked = jobs.was_parked(tx, job)
    if parked is not None:
        return parked
    image = db_images.get(tx, SERVICE, job.image_id)
    return image is not None and image.status == "active"  # if its upload had been given up, it would be queued


def _intend_staging(
    svc: Service, ctx: Context, image_id: str, store: Store, allowed: Allowance | None, size: int | None
) -> tuple[Job, int | None]:
    """Mark the image as uploading, and reserve quota; returns the job, and how many bytes may be staged."""
    owner = svc.leases.owner

    def work(tx: Tx) -> tuple[Job, int | None]:
        image = db_images.get(tx, ctx, image_id, lock=True)
        if image is None:
            raise no_image(image_id)
        _refuse_unless(image, "queued")
        db_images.move(tx, image.id, "queued", "uploading", now=svc.now())
        quota.check_uploading_count(tx, allowed)
        most = quota.check_staged(tx, allowed, size or 1)
        job = jobs.submit(
            tx,
            STAGED,
            image.id,
            {},
            owner=owner,
            project=allowed.project if allowed else image.owner,
            reserved=quota.bytes_to_reserve(tx, allowed, size),
            place=data.identity(store),
        )
        db_copies.add(tx, job, [(store.name, data.identity(store))], writing=True)
        svc.events.image(tx, replace(image, status="uploading", updated_at=svc.now()), "image.update")
        return job, most

    return svc.db.write(
        work, lambda tx, made: jobs.is_current(tx, made[0]), on_unknown=lambda made: svc.leases.abandon(made[0])
    )


# --- importing -------------------------------------------------------------------------------------------


def start(svc: Service, ctx: Context, image_id: str, request: Request) -> None:
    """Submit the import of an image's data. It is importing from now on, except with copy-image.

    Raises `NotFound`, `Forbidden`, `Invalid`, `Conflict` in the wrong status, while another import runs, or for an
    unknown store, `StoreReadOnly`, `OverLimit`.
    """
    image = svc.db.snapshot(lambda tx: db_images.get(tx, ctx, image_id))
    if image is None:
        raise no_image(image_id)
    svc.policy.check_image(ctx, "copy_image" if request.method == COPY_IMAGE else "modify_image", image)
    check_method(svc, request.method)
    _refuse_unready(image, request.method)
    wanted = _stores(svc, image, request)
    if not wanted:
        return  # every store has a copy already
    check_source(svc, request)
    allowed = quota.allowance(svc, ctx, image.owner)

    def work(tx: Tx) -> Task:
        found = db_images.get(tx, ctx, image.id, lock=True)
        if found is None:
            raise no_image(image.id)
        _refuse_unready(found, request.method)
        _refuse_busy(svc, tx, found)
        return submit(svc, tx, ctx, found, request, wanted, allowed)

    with _handing_over(svc, request.remote):
        svc.db.write(work, lambda tx, task: tasks.is_stored(svc, tx, task))
    svc.nudge()


@contextlib.contextmanager
def _handing_over(svc: Service, remote: Remote | None) -> Iterator[None]:
    """Keep the caller's token for the job that the block adds, unless it fails."""
    if remote is not None:
        svc.tokens[remote.key] = remote.token
    try:
        yield
    except BaseException:
        if remote is not None:
            svc.tokens.pop(remote.key, None)
        raise


def check_method(svc: Service, method: str) -> None:
    """Raise `Invalid` for an import method that is not enabled."""
    if method not in enabled_methods(svc):
        raise errors.Invalid(f"The import method {method[:64]!r} is not enabled here; see GET /v2/info/import.")


def check_source(svc: Service, request: Request) -> None:
    """Raise `Invalid` unless the request says from where the data is to be fetched, if its method fetches any.

    Waits for a look-up of the URL's host, so it is not to be called in a transaction. Raises `Busy`.
    """
    if request.method == WEB_DOWNLOAD:
        if request.uri is None:
            raise errors.Invalid("web-download needs a uri in method.")
        try:
            svc.net.check(request.uri)
        except errors.FetchFailed as exc:
            raise errors.UrlRefused(str(exc)) from exc
    if request.method == GLANCE_DOWNLOAD:
        if request.remote is None:
            raise errors.Invalid("glance-download needs glance_region and glance_image_id in method.")
        if request.remote.endpoint is not None:
            net.parse(request.remote.endpoint)


def submit(
    svc: Service,
    tx: Tx,
    ctx: Context,
    image: Image,
    request: Request,
    stores: Sequence[Store],
    allowed: Allowance | None,
) -> Task:
    """Add the task and the job that import the data of an image, which this transaction has locked and found ready."""
    names = [store.name for store in stores]
    quota.check_limit(svc.conf.image_location_quota, len(image.locations) + len(names), "locations")
    taken = {place.store for place in image.locations}
    if request.method == COPY_IMAGE and any(name in taken for name in names):
        raise errors.Conflict("One of the stores got a copy just now; ask again.")
    remote = request.remote
    place = place_of(svc.leases.owner) if remote else None  # only this process has the token
    asked: Mapping[str, Any] = request.asked
    if request.task_type == TASK:
        asked = {"image_id": image.id, "import_req": dict(asked), "backend": names}
    task = tasks.begin(svc, tx, ctx, request.task_type, image.id, redacted(dict(asked), locations=True))
    payload = {
        "task": task.id,
        "method": request.method,
        "uri": request.uri,
        "remote": [remote.endpoint, remote.image_id, remote.key] if remote else None,
        "given": [request.given.algo, request.given.value] if request.given else None,
        "all_must_succeed": request.all_must_succeed,
        "stores": names,
    }
    project = allowed.project if allowed else image.owner
    if request.method == GLANCE_DIRECT:
        job = _staged(tx, image)
        reserved = quota.bytes_to_reserve(tx, allowed, (image.size or 0) * len(names), instead_of=job)
        jobs.become(tx, job, KIND, payload, reserved=reserved)
    else:
        size = (image.size or 0) * len(names) if request.method == COPY_IMAGE else None
        reserved = quota.bytes_to_reserve(tx, allowed, size)
        job = jobs.submit(tx, KIND, image.id, payload, project=project, reserved=reserved, place=place)
    db_copies.add(tx, job, [(store.name, data.identity(store)) for store in stores])
    if request.method != COPY_IMAGE:
        db_images.move(tx, image.id, image.status, "importing", now=svc.now())
    failed = [name for name in listed(image, FAILED) if name not in names]
    properties = {LOCK: task.id, IMPORTING: ",".join(names)}
    if FAILED in image.properties:
        properties[FAILED] = ",".join(failed)
    db_images.put_properties(tx, image.id, properties, now=svc.now())
    if request.method != GLANCE_DIRECT:  # else it was counted when its data was staged
        quota.check_uploading_count(tx, allowed)
        quota.check_staged(tx, allowed, 0)
    svc.events.image(tx, image.id, "image.update")
    return task


def cancel(svc: Service, ctx: Context, image_id: str) -> None:
    """Ask the import of an image to stop, by a caller who might have begun it. It fails within about a second.

    Raises `NotFound`, `Forbidden`, `Conflict` if none is under way.
    """

    def work(tx: Tx) -> None:
        image = db_images.get(tx, ctx, image_id)
        if image is None:
            raise no_image(image_id)
        running = _running(tx, image.id)
        copying = bool(running) and running[0].payload["method"] == COPY_IMAGE
        svc.policy.check_image(ctx, "copy_image" if copying else "modify_image", image)
        if not running:
            raise errors.Conflict("No import of this image is under way.")
        jobs.ask_to_cancel(tx, running[0].id, "The import was cancelled on request.")

    svc.db.write(work)
    svc.nudge()


def call_off(tx: Tx, image_id: str) -> bool:
    """The image is deleted in this transaction: give up its import, or what is staged. False if there is neither."""
    found = jobs.of_image(tx, image_id, KIND, STAGED)
    for job in found:
        jobs.ask_to_cancel(tx, job.id, "The image was deleted.")
    return bool(found)


def forget(svc: Service, tx: Tx, image_id: str) -> None:
    """The delete of the image was undone in this transaction, and its import may have ended meanwhile."""
    image = db_images.get(tx, SERVICE, image_id)
    if image is not None and LOCK in image.properties and not _running(tx, image_id):
        db_images.put_properties(tx, image_id, {IMPORTING: ""}, now=svc.now(), remove=[LOCK])


def keep_alive(svc: Service) -> None:
    """Show a Glance on the same database that imports are alive, also those that wait: it takes images from others.

    To be called more often than every five minutes, by any number of processes.
    """
    held = svc.db.snapshot(lambda tx: [job.payload["task"] for job in jobs.of_kind(tx, KIND)])
    if held:
        now = svc.now()
        svc.db.write(lambda tx: db_tasks.touch(tx, held, now=now, before=now - _SIGN_OF_LIFE))


# --- what may be imported --------------------------------------------------------------------------------


def listed(image: Image, name: str) -> list[str]:
    """The stores in a property of the image."""
    return [one for one in image.properties.get(name, "").split(",") if one]


def _refuse_unless(image: Image, status: str) -> None:
    if image.status != status:
        raise errors.Conflict(f"Image {image.id} is in status {image.status}: this needs one that is {status}.")


def _refuse_unready(image: Image, method: str) -> None:
    """Raise `Conflict` unless the image is ready for this method."""
    _refuse_unless(image, STATUSES[method])
    for name in ("container_format", "disk_format"):
        if getattr(image, name) is None and method != GLANCE_DOWNLOAD:  # which brings them
            raise errors.Conflict(f"Set {name} before importing data.")
    if image.properties.keys() >= data.SIGNATURE:
        raise errors.Invalid("This release does not verify signatures; remove the img_signature properties to import.")


def has_image(job: Job, image: Image) -> bool:
    """Whether the lock of the image is still that of this import: a Glance breaks one that gives no sign of life."""
    return bool(image.properties.get(LOCK) == job.payload["task"])


def _running(tx: Tx, image_id: str) -> list[Job]:
    """The imports of an image that have not ended; one that has may still have to tidy up."""
    return [job for job in jobs.of_image(tx, image_id, KIND) if not job.checkpoint.get("ended")]


def _refuse_busy(svc: Service, tx: Tx, image: Image) -> None:
    """Raise `Conflict` if another import has the image: one of ours, or of a Glance on the same database."""
    busy = errors.Conflict("Another import of this image is under way.")
    if _running(tx, image.id):
        raise busy
    if (holder := image.properties.get(LOCK)) and (task := db_tasks.get(tx, SERVICE, holder, svc.now())):
        # Also a task that has ended keeps its image for a while: a Glance writes its end before it drops the lock.
        patience = _PATIENCE_PENDING if task.status == "pending" else _PATIENCE
        if svc.now() - task.updated_at < patience:
            raise busy
        tasks.move(svc, tx, task.id, "failure", message="It gave no sign of life, and another import has begun.")


def _staged(tx: Tx, image: Image) -> Job:
    """The job that keeps the image's staged data. Raises `Conflict`."""
    found = jobs.of_image(tx, image.id, STAGED)
    if not found or not jobs.is_parked(tx, found[0]):
        raise errors.Conflict(f"No staged data of image {image.id} is here that could be imported.")
    return found[0]


def _stores(svc: Service, image: Image, request: Request) -> list[Store]:
    """The stores to import into. Raises `Conflict` for an unknown one, `Invalid`, `StoreReadOnly`."""
    have = {place.store for place in image.locations} if request.method == COPY_IMAGE else set()
    if request.all_stores:
        return [store for store in svc.stores if svc.stores.takes_data(store) and store.name not in have]
    names = list(dict.fromkeys(request.stores)) if request.stores is not None else [svc.stores.default]
    if not names:
        raise errors.Invalid("The list of stores is empty.")
    found = []
    for name in names:
        store = svc.stores.get(name)
        if store is None:
            raise errors.Conflict(f"There is no store named {name!r}; see GET /v2/info/stores.")
        if name in have:
            raise errors.Invalid(f"Store {name} has a copy of this image already.")
        if not svc.stores.takes_data(store):
            words = "is read-only" if Feature.WRITE in store.features else "takes no new data"
            raise errors.StoreReadOnly(f"Store {name} {words}.", name)
        found.append(store)
    return found
