"""Image data in and out. This is where a PUT goes: read `upload` from top to bottom."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from calotype import errors
from calotype.context import SERVICE, Context
from calotype.db import copies as db_copies
from calotype.db import images as db_images
from calotype.db import jobs
from calotype.db.engine import Tx
from calotype.images import quota, sharing
from calotype.images.inspection import FormatRules
from calotype.images.stream import Passing, Source
from calotype.limits import Allowance
from calotype.model import Copy, Image, Job, Location
from calotype.policy import no_image
from calotype.service import Service
from calotype.stores.base import Body, Feature, Identified, Note, Store, Stored, Sweeps
from calotype.transfers import Upload

LOG = logging.getLogger(__name__)

T = TypeVar("T")

KIND = "upload"

#: An image with all of these properties asks for its signature to be verified.
SIGNATURE: Final = {f"img_signature{part}" for part in ("", "_hash_method", "_key_type", "_certificate_uuid")}


# --- in --------------------------------------------------------------------------------------------------


def upload(
    svc: Service,
    ctx: Context,
    image_id: str,
    source: Source,
    *,
    store_name: str | None,
    size: int | None,
    length: int | None = None,
) -> None:
    """Receive the data of a queued image into a store and make the image active.

    `size` is the announced size of the image in bytes, `length` that of the body of this request; None if unknown. They
    differ if a client repeats a request with the rest of a stream. Nothing is final before size, hash and format are
    verified. A failed upload leaves the image queued, with nothing in the store.

    Raises `NotFound`, `Forbidden`, `Conflict` in the wrong status or if the upload was given up meanwhile, `Invalid`,
    `BodyBroken`, `ContentRejected`, `OverLimit`, `Gone` if the image was deleted meanwhile, `Busy` if too many uploads
    are running, and `StoreError`s.
    """
    image = svc.db.snapshot(lambda tx: db_images.get(tx, ctx, image_id))
    if image is None:
        raise no_image(image_id)
    svc.policy.check_image(ctx, "upload_image", image)
    refuse_unready(image)
    store = svc.stores.for_writing(store_name)
    check_size(svc, size, length)
    allowed = quota.allowance(svc, ctx, image.owner)

    access = svc.stores.access(store)
    with access.upload_slot(), svc.transfers.slot():
        image, job = _intend(svc, ctx, image.id, store, allowed, size)
        room = quota.growing_reservation(svc, allowed, size, job)
        with (
            cleaning_up(svc, job),
            svc.leases.holding(job) as alive,
            Passing(
                source,
                svc.transfers,
                expect=size,
                cap=svc.conf.image_size_cap,
                hash_algo=svc.conf.hashing_algorithm,
                md5=svc.conf.md5_checksum,
                disk_format=image.disk_format,
                container_format=image.container_format,
                rules=format_rules(svc),
                alive=alive,
                admit=room.admit if room else None,
            ) as passing,
            svc.transfers.following(Upload(image.id, image.owner, store.name, size), lambda: passing.size),
        ):
            note = noting(svc, job, store.name)
            with access.writing(image.id, attempt=job.token, size=size, note=note, ctx=ctx) as write:
                passing.run(write)
                stored = write.commit()
            _activate(svc, job, store, stored, passing)
    sharing.tell_stores(svc, image_id)


def check_size(svc: Service, size: int | None, length: int | None) -> None:
    """Raise `OverLimit` or `Invalid` for the announced size of an image and the length of the body that brings it."""
    if size is not None and size > svc.conf.image_size_cap:
        raise errors.OverLimit(f"An image may have at most {svc.conf.image_size_cap} bytes.")
    if None not in (size, length) and size != length:
        raise errors.Invalid(f"The request says that the image has {size} bytes, and brings {length}.")


def format_rules(svc: Service) -> FormatRules:
    """The operator's rules about formats."""
    options = svc.conf.image_format
    return FormatRules(options.require_image_format_match, gpt_nonfatal=frozenset(options.gpt_safety_checks_nonfatal))


def refuse_unready(image: Image) -> None:
    """Raise `Conflict` or `Invalid` unless the image is queued and has its formats set."""
    if image.status != "queued":
        raise errors.Conflict(
            f"Image {image.id} is in status {image.status}: data can be uploaded to a queued one only."
        )
    if not image.disk_format or not image.container_format:
        raise errors.Invalid("Set disk_format and container_format before uploading data.")
    if image.properties.keys() >= SIGNATURE:
        raise errors.Invalid("This release does not verify signatures; remove the img_signature properties to upload.")


def _intend(
    svc: Service, ctx: Context, image_id: str, store: Store, allowed: Allowance | None, size: int | None
) -> tuple[Image, Job]:
    """Mark the image as saving and reserve quota. The job lets the sweeper clean up if this process dies.

    Returns the image as it is now: from here on its formats cannot change, so the data is inspected for these.
    """
    now = svc.now()
    owner = svc.leases.owner

    def work(tx: Tx) -> tuple[Image, Job]:
        image = db_images.get(tx, ctx, image_id, lock=True)
        if image is None:
            raise no_image(image_id)
        refuse_unready(image)
        db_images.move(tx, image.id, "queued", "saving", now=now)
        quota.check_uploading_count(tx, allowed)
        job = jobs.submit(
            tx,
            KIND,
            image.id,
            {},
            owner=owner,
            project=allowed.project if allowed else image.owner,
            reserved=quota.bytes_to_reserve(tx, allowed, size),
        )
        db_copies.add(tx, job, [(store.name, identity(store))], writing=True)
        saving = replace(image, status="saving", updated_at=now)
        svc.events.image(tx, saving, "image.update")
        svc.events.image(tx, saving, "image.prepare", backend=store.name)
        return image, job

    return svc.db.write(
        work, lambda tx, intent: jobs.is_current(tx, intent[1]), on_unknown=lambda intent: svc.leases.abandon(intent[1])
    )


def identity(store: Store) -> str | None:
    """The identity of a store's place, if the store has one."""
    return store.identity if isinstance(store, Identified) else None


def noting(svc: Service, job: Job, store: str) -> Note:
    """What keeps the notes of a job's copy in this store. It raises `Gone` once the job was taken away."""

    def note(what: str) -> None:
        if not svc.db.write(lambda tx: db_copies.note(tx, job, store, what)):
            raise errors.Gone("The work was given up.")

    return note


def _activate(svc: Service, job: Job, store: Store, stored: Stored, passing: Passing) -> None:
    """Add the location and set size, digests and status, in one transaction. Raises `Gone` if it was given up."""
    now = svc.now()

    def work(tx: Tx) -> None:
        # The image's row before the job's, as in a delete: another order could deadlock.
        active = db_images.move(
            tx,
            job.image_id,
            "saving",
            "active",
            now=now,
            size=stored.size,
            virtual_size=passing.virtual_size,
            checksum=passing.checksum,
            os_hash_algo=svc.conf.hashing_algorithm,
            os_hash_value=passing.hash_value,
        )
        if not active:
            raise errors.Gone("The image was deleted while its data was arriving.")
        if not jobs.finish(tx, job):
            raise errors.Gone("The upload took too long to report and was given up.")
        metadata = {**stored.metadata, "store": store.name}
        db_images.add_location(tx, job.image_id, stored.url, metadata, now, stored.object_id)
        svc.events.image(tx, job.image_id, "image.upload", "image.activate", "image.update")

    # No other transaction adds this object. If its location exists, the commit succeeded.
    svc.db.write(work, lambda tx, _: db_images.has_location(tx, job.image_id, stored.url, stored.object_id))


@contextlib.contextmanager
def cleaning_up(svc: Service, job: Job) -> Iterator[None]:
    """If the block raises, remove the data from the store and return the image to the queue."""
    try:
        yield
    except BaseException as failure:
        try:
            why = str(failure) if isinstance(failure, errors.CalotypeError) else "The service failed."
            give_up(svc, job, why)
        except errors.CalotypeError as exc:
            # The runner will retry this. The lease is abandoned, so that it need not wait for its end.
            LOG.error(
                "a failed upload of image %s is left to be cleaned up later: %s", job.image_id, errors.reason(exc)
            )
            svc.leases.abandon(job)
        if isinstance(failure, errors.Gone) and not _is_deleted(svc, job.image_id):
            raise errors.Conflict(
                "The upload was given up: it was taken for dead. If the image is queued, upload again."
            ) from failure
        raise


def _is_deleted(svc: Service, image_id: str) -> bool:
    """Whether the image is deleted; True if the database does not answer."""
    try:
        return svc.db.snapshot(lambda tx: db_images.get(tx, SERVICE, image_id)) is None
    except errors.CalotypeError:
        return True


def give_up(svc: Service, job: Job, why: str) -> None:
    """Remove what an upload left in the store, then return the image to the queue, unless it is deleted.

    `why` is the reason that the notification of the failed upload gives.

    If the job is finished it does nothing: the image is active after all, or another process has cleaned up. If
    another process has the job now, this removes only temporary names; that process does the rest.
    """
    current = svc.db.write(lambda tx: jobs.resolve(tx, job))
    if current is None:
        return
    if not current and (revoked := svc.db.snapshot(lambda tx: jobs.revoked(tx, job))):
        try:
            _clean_up(svc, revoked, why, current=True)  # nobody else takes the job before this process lets it go
        except BaseException:
            svc.db.write(lambda tx: jobs.let_go(tx, job))
            raise
        return
    _clean_up(svc, job, why, current=current)


def _clean_up(svc: Service, job: Job, why: str, *, current: bool) -> None:
    for copy in svc.db.snapshot(lambda tx: db_copies.of(tx, job)):
        try:
            clean(svc, job, copy, current=current)
        except errors.StoreError as exc:
            store = svc.stores.meant(copy.store, copy.identity)
            if copy.note or store is None or not isinstance(store, Sweeps) or not _is_away(store):
                raise
            # Nothing is final yet. When the place is back, `sweep` finds temporary names without the job.
            LOG.warning("what an upload of image %s left is swept up later: %s", job.image_id, errors.reason(exc))
    if not current:
        return

    def work(tx: Tx) -> None:
        status = "saving" if job.kind == KIND else "uploading"
        queued = db_images.move(tx, job.image_id, status, "queued", now=svc.now(), size=None, virtual_size=None)
        svc.events.upload_failed(tx, job.image_id, why)
        if queued:
            svc.events.image(tx, job.image_id, "image.update")
        if not jobs.finish(tx, job):
            raise errors.Gone("Somebody else has cleaned up.")  # this rolls back the change of the status

    with contextlib.suppress(errors.Gone):
        svc.db.write(work)


def clean(svc: Service, job: Job, copy: Copy, *, current: bool = True) -> None:
    """Remove what the last attempt that wrote this copy left in its store. Raises `StoreError`.

    Without the `current` attempt only temporary names are removed: final objects are for the process that has the job.
    """
    if copy.attempt is None:
        return
    store = svc.stores.meant(copy.store, copy.identity)
    if store is None:
        raise errors.StoreUnavailable("The store is not configured any more.", copy.store)
    store.clean(job.image_id, f"{job.id}-{copy.attempt}", copy.note if current else None)


def _is_away(store: Store) -> bool:
    """Whether the store's place is missing or has another identity. This may last for any time."""
    try:
        if isinstance(store, Identified):
            store.confirm()
    except errors.StoreError:
        return True
    return False


# --- out -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Download:
    """What a caller may download of an image; nothing was read yet. `size` is in bytes."""

    image: Image
    copies: Sequence[tuple[Store, Location]]
    size: int

    @property
    def etag(self) -> str | None:
        """A strong validator: the hash of the content. Old images without one have no validator (never MD5)."""
        return f'"{self.image.os_hash_value}"' if self.image.os_hash_value else None

    @property
    def empty(self) -> bool:
        """Whether there is no data at all, as with a queued image."""
        return not self.image.locations


def prepare(svc: Service, ctx: Context, image_id: str, prefer: Sequence[str] = ()) -> Download:
    """Find out what the caller may download.

    Raises `NotFound`, `Forbidden`, `Invalid` for an unknown preferred store, and `StoreError` if the record has no size
    and no copy tells it.
    """
    image = svc.db.read(lambda tx: db_images.show(tx, svc.db.record_cache, ctx, image_id))
    if image is None:
        raise no_image(image_id)
    svc.policy.check_image(ctx, "download_image", image)
    if prefer:
        svc.policy.check_image(ctx, "download_from_store", image)
        if unknown := [name for name in prefer if name not in svc.stores]:
            raise errors.Invalid(f"There is no store named {unknown[0]!r}; see GET /v2/info/stores.")
    if image.status == "deactivated" and not ctx.is_admin:
        raise errors.Forbidden("The image is deactivated; only an administrator may download it.")
    copies = svc.stores.by_preference(image.locations, prefer)
    if image.size or not image.locations:
        return Download(image, copies, image.size or 0)
    return _of_first_copy(svc, ctx, image, copies, partial(_measured, svc, ctx, image))


def _measured(svc: Service, ctx: Context, image: Image, store: Store, location: Location) -> Download:
    """A download of one copy of an image whose record has no size, or 0, which old releases of Glance wrote for none.

    The store tells the size. Raises `StoreError` if it contradicts the digests on record.
    """
    body = svc.stores.access(store).read(location.url, ctx=ctx)
    body.close()
    some = _has_content(image)
    if not (some is not False if body.size else some is not True and image.size == 0):
        raise errors.StoreError(f"A copy of {body.size} bytes is not what the record is about.", store.name)
    return Download(image, [(store, location)], body.size)


def _has_content(image: Image) -> bool | None:
    """Whether the digests on record are those of data, and not of zero bytes; None if there are no digests."""
    # Images of old releases of Glance may have an MD5 only.
    for algo, value in ((image.os_hash_algo or "", image.os_hash_value), ("md5", image.checksum)):
        if value and algo in hashlib.algorithms_available:
            digest = hashlib.new(algo, usedforsecurity=False)
            return value.lower() != digest.hexdigest() if digest.digest_size else None
    return None


def open_(svc: Service, ctx: Context, download: Download, *, offset: int = 0, length: int | None = None) -> Body:
    """Read from the first copy that works. Raises `StoreError` if none does.

    If a copy fails in the middle, the body continues with the next one, unless the server sends a file by sendfile.
    """
    length = download.size - offset if length is None else length
    reading = partial(_read, svc, ctx, download, end=offset + length)
    body, remaining = reading(download.copies, offset)
    if not remaining or body.file() is not None:
        return body
    return _FailoverBody(body, remaining, offset, length, reading)


_Copies = Sequence[tuple[Store, Location]]


def _read(
    svc: Service, ctx: Context, download: Download, copies: _Copies, offset: int, *, end: int
) -> tuple[Body, _Copies]:
    """The body of the first copy that works, and the other copies. One that continues must have the right size."""

    def work(store: Store, location: Location) -> tuple[Body, Location]:
        access = svc.stores.access(store)
        if len(copies) < len(download.copies) and access.size(location.url, ctx=ctx) != download.size:
            raise errors.StoreError("The copy has another size than its record says.", store.name)
        return access.read(location.url, offset=offset, length=end - offset, ctx=ctx), location

    body, chosen = _of_first_copy(svc, ctx, download.image, copies, work)
    return body, [copy for copy in copies if copy[1] is not chosen]


class _FailoverBody:
    """`Body` that continues with the next copy at the byte where one failed."""

    def __init__(
        self,
        body: Body,
        remaining: _Copies,
        offset: int,
        size: int,
        reading: Callable[[_Copies, int], tuple[Body, _Copies]],
    ) -> None:
        self.size = size
        self._body = body
        self._remaining = remaining
        self._offset = offset
        self._reading = reading

    def __iter__(self) -> Iterator[bytes]:
        end = self._offset + self.size
        while self._offset < end:
            try:
                for piece in self._body:
                    self._offset += len(piece)
                    yield piece
                if self._offset < end:
                    raise errors.StoreError("The object ended before its recorded size.")
            except errors.StoreError as exc:
                if not self._remaining or isinstance(exc, errors.Cancelled):
                    raise
                LOG.error("a copy failed at byte %s, another one goes on: %s", self._offset, errors.reason(exc))
                self._body.close()
                self._body, self._remaining = self._reading(self._remaining, self._offset)

    def file(self) -> None:
        return None

    def cancel(self) -> None:
        self._body.cancel()

    def close(self) -> None:
        self._body.close()


def _of_first_copy(
    svc: Service,
    ctx: Context,
    image: Image,
    copies: Sequence[tuple[Store, Location]],
    work: Callable[[Store, Location], T],
) -> T:
    """The result of `work` for the first copy where it succeeds. Raises `StoreError` if it fails for all copies."""
    failed: list[errors.StoreError] = []
    for store, location in sorted(copies, key=lambda copy: svc.stores.access(copy[0]).is_last):
        if Feature.READ not in store.features:
            continue
        try:
            found = work(store, location)
        except errors.StoreError as exc:
            failed.append(exc)
            continue
        for failure in failed:
            why = errors.reason(failure)
            LOG.error("image %s: a copy in store %s was passed over: %s", image.id, failure.store, why)
        return found
    if svc.db.snapshot(lambda tx: db_images.get(tx, ctx, image.id)) is None:
        raise no_image(image.id)  # deleted since its record was read
    last = failed[-1] if failed else None
    raise errors.StoreUnavailable("None of the image's copies can be read.", last.store if last else "") from last


def sent(svc: Service, ctx: Context, download: Download, count: int, expected: int) -> None:
    """Notify others of a download: `count` of the `expected` bytes were sent.

    The answer is complete by now, so a failure is only logged.
    """
    image = download.image

    def work(tx: Tx) -> None:
        svc.events.sent(tx, image, count=count, expected=expected, project=ctx.project, user=ctx.user)

    try:
        svc.db.write(work)
    except errors.CalotypeError as exc:
        LOG.warning("the notification of a download of image %s was lost: %s", image.id, errors.reason(exc))
