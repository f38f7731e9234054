"""The steps of an import job: receive the data into all stores at once, activate the image, tidy up.

Nothing is final before size, hash and format of the whole data were verified. Each store's copy has a row
(`db/copies.py`). An attempt begins by removing what an earlier one left; copies that it had finished are kept, and the
others are made from one of them. `undo` removes everything, and returns the image to the queue.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

from calotype import errors
from calotype.context import SERVICE
from calotype.db import copies as db_copies
from calotype.db import images as db_images
from calotype.db import jobs
from calotype.db.engine import Tx
from calotype.images import data, imports, quota, tasks
from calotype.images.fanout import FanOut, Target
from calotype.images.locations import BodySource
from calotype.images.sources import Pace, WebSource
from calotype.images.stream import Passing, Source
from calotype.images.work import Work
from calotype.model import Copy, Image
from calotype.stores.base import Store
from calotype.stores.registry import STAGING
from calotype.transfers import Upload

LOG = logging.getLogger(__name__)

#: Hashes that prove nothing about who made the data.
_WEAK: Final = frozenset({"md5", "sha1"})


def receive(work: Work) -> None:
    """Write the data into every store of the job that has none yet, from one read."""
    image = _image(work)
    _begin_task(work)
    copies = _clean_earlier(work)
    targets = {copy.store: _store(work, copy) for copy in copies if copy.state == "pending"}
    if not targets:
        if not any(copy.state == "done" for copy in copies):
            raise errors.StoreError("No store took the data.")
        return
    with contextlib.ExitStack() as stack:
        source, size, wanted = _source(work, stack, image, copies)
        _transfer(work, image, source, size, wanted, targets)


def _transfer(
    work: Work, image: Image, source: Source, size: int | None, wanted: dict[str, str], targets: dict[str, Store]
) -> None:
    svc, job = work.svc, work.job
    svc_algo = svc.conf.hashing_algorithm
    algo = image.os_hash_algo if job.payload["method"] == imports.COPY_IMAGE and image.os_hash_algo else svc_algo
    given = job.payload.get("given")
    tap = hashlib.new(given[0], usedforsecurity=False) if given else None
    allowed = svc.limits.of(job.project, image.owner)
    room = quota.growing_reservation(svc, allowed, size, job)

    def failed(target: Target, failure: errors.CalotypeError) -> None:
        name = target.access.store.name
        LOG.error("image %s: store %s takes no part in the import: %s", image.id, name, errors.reason(failure))
        if job.payload["all_must_succeed"]:
            raise failure
        work.require(svc.db.write(lambda tx: db_copies.fail(tx, job, name, str(failure))))

    def alive() -> None:
        work.check()
        work.progress("Receiving", passing.size, size)

    where = [
        Target(svc.stores.access(store), job.token, data.noting(svc, job, name)) for name, store in targets.items()
    ]
    for name in targets:
        work.require(svc.db.write(lambda tx, name=name: db_copies.begin(tx, job, name)))  # type: ignore[misc]
    with (
        Passing(
            source,
            svc.transfers,
            expect=size,
            cap=svc.conf.image_size_cap,
            hash_algo=algo,
            md5=svc.conf.md5_checksum,
            disk_format=image.disk_format,
            container_format=image.container_format,
            rules=data.format_rules(svc),
            alive=alive,
            admit=(lambda total: room.admit(total * len(targets))) if room else None,
            want=wanted,
            taps=[tap] if tap else [],
        ) as passing,
        FanOut(image.id, where, size=size, ctx=SERVICE, failed=failed) as out,
        svc.transfers.following(Upload(image.id, image.owner, ",".join(targets), size), lambda: passing.size),
    ):
        out.receive(passing)
        if given and tap is not None and tap.hexdigest() != given[1]:
            raise errors.Invalid(f"The data has {given[0]} {tap.hexdigest()}, and {given[1]} was asked for.")
        facts = {
            "size": passing.size,
            "virtual_size": passing.virtual_size,
            "checksum": passing.checksum,
            "os_hash_algo": algo,
            "os_hash_value": passing.hash_value,
        }
        work.keep(verified=facts)
        for target, stored in out.commit():
            name, done = target.access.store.name, stored
            metadata = {**done.metadata, "store": name}
            work.require(
                svc.db.write(
                    lambda tx: db_copies.done(tx, job, name, done.url, object_id=done.object_id, metadata=metadata)  # noqa: B023
                )
            )


def activate(work: Work) -> None:
    """Add the copies to the record, and make the image active, in one transaction with the end of the task."""
    svc, job = work.svc, work.job
    facts = dict(work.facts["verified"])

    def change(tx: Tx) -> None:
        image = db_images.get(tx, SERVICE, job.image_id, lock=True)
        if image is None:
            raise errors.Gone("The image is deleted.")
        copies = [copy for copy in db_copies.of(tx, job) if copy.store in job.payload["stores"]]
        done = [copy for copy in copies if copy.state == "done"]
        if job.payload["method"] == imports.COPY_IMAGE:
            if image.status != "active":
                raise errors.Conflict(f"Image {image.id} is {image.status} by now.")
        elif not db_images.move(tx, image.id, "importing", "active", now=svc.now(), **facts):
            raise errors.Conflict(f"Image {image.id} is {image.status} by now.")
        for copy in done:
            db_images.add_location(tx, image.id, copy.url or "", copy.metadata, svc.now(), copy.object_id)
        failed = [copy.store for copy in copies if copy.state != "done"]
        _end(work, tx, image, failed)
        tasks.move(svc, tx, job.payload["task"], "success", message=_said(copies), result={"image_id": image.id})
        work.advance_in(tx)
        jobs.reserve(tx, job, 0)
        svc.events.image(tx, image.id, *(["image.update"] if image.status == "active" else _ACTIVATED))

    svc.db.write(change, lambda tx, _: (found := jobs.get(tx, job.id)) is not None and found.step > work.step)
    work.step += 1


_ACTIVATED: Final = ("image.upload", "image.activate", "image.update")


def tidy(work: Work) -> None:
    """Remove the staged data, and what failed stores have left."""
    _clean(work, lambda copy: copy.store == STAGING or copy.state == "failed")
    work.require(work.svc.db.write(lambda tx: jobs.finish(tx, work.job)))


def undo(work: Work) -> None:
    """Remove everything that was written, and return the image to the queue."""
    svc, job = work.svc, work.job
    if job.step > 1:
        raise RuntimeError("an import that has succeeded is not undone")
    _clean(work, lambda _: True)

    def change(tx: Tx) -> None:
        image = db_images.get(tx, SERVICE, job.image_id, lock=True)
        work.require(jobs.finish(tx, job))
        tasks.move(svc, tx, job.payload["task"], "failure", message=work.failure)
        if image is None:
            return
        if job.payload["method"] != imports.COPY_IMAGE:
            db_images.move(tx, image.id, "importing", "queued", now=svc.now(), size=None, virtual_size=None)
        _end(work, tx, image, job.payload["stores"])
        svc.events.image(tx, image.id, "image.update")

    svc.db.write(change)


def drop_staged(work: Work) -> None:
    """Staged data was never imported, or its upload died: remove it, and return the image to the queue."""
    svc, job = work.svc, work.job
    _clean(work, lambda _: True)

    def change(tx: Tx) -> None:
        image = db_images.get(tx, SERVICE, job.image_id, lock=True)
        work.require(jobs.finish(tx, job))
        if image is not None and db_images.move(
            tx, image.id, "uploading", "queued", now=svc.now(), size=None, virtual_size=None
        ):
            svc.events.image(tx, image.id, "image.update")

    svc.db.write(change)


# --- parts -----------------------------------------------------------------------------------------------


def _image(work: Work) -> Image:
    """The image, in the status in which the job may go on. Raises `Conflict` otherwise."""
    image = work.svc.db.snapshot(lambda tx: db_images.get(tx, SERVICE, work.job.image_id))
    if image is None:
        raise errors.Conflict("The image was deleted.")
    status = "active" if work.job.payload["method"] == imports.COPY_IMAGE else "importing"
    if image.status != status:
        raise errors.Conflict(f"Image {image.id} is {image.status} by now.")
    return image


def _begin_task(work: Work) -> None:
    task = work.job.payload["task"]
    work.svc.db.write(lambda tx: tasks.move(work.svc, tx, task, "processing"))


def _clean_earlier(work: Work) -> list[Copy]:
    """Remove what earlier attempts left unfinished; returns the copies as they are now, without the staged one."""
    copies = [copy for copy in _copies(work) if copy.store != STAGING]
    # Without the facts that were verified before the first commit, a finished copy cannot be relied on.
    good = "verified" in work.facts
    for copy in copies:
        if copy.state == "writing" or (copy.state == "done" and not good):
            data.clean(work.svc, work.job, copy)
            work.require(work.svc.db.write(lambda tx, name=copy.store: db_copies.reset(tx, work.job, name)))  # type: ignore[misc]
    return [copy for copy in _copies(work) if copy.store != STAGING]


def _copies(work: Work) -> list[Copy]:
    return work.svc.db.snapshot(lambda tx: db_copies.of(tx, work.job))


def _clean(work: Work, which: Callable[[Copy], bool]) -> None:
    """Remove from the stores what these copies have there. Raises `StoreError` after trying all."""
    failure: errors.StoreError | None = None
    for copy in _copies(work):
        if copy.attempt is None or not which(copy):
            continue
        try:
            data.clean(work.svc, work.job, copy)
        except errors.StoreError as exc:
            failure = exc
            continue
        work.require(work.svc.db.write(lambda tx, name=copy.store: db_copies.clean(tx, work.job, name)))  # type: ignore[misc]
    if failure is not None:
        raise failure


def _store(work: Work, copy: Copy) -> Store:
    store = work.svc.stores.meant(copy.store, copy.identity)
    if store is None:
        raise errors.Conflict(f"Store {copy.store} is not configured any more.")
    return store


def _source(
    work: Work, stack: contextlib.ExitStack, image: Image, copies: Sequence[Copy]
) -> tuple[Source, int | None, dict[str, str]]:
    """Where the data comes from, its size if that is known, and what it must be."""
    svc, job = work.svc, work.job
    finished = next((copy for copy in copies if copy.state == "done"), None)
    if finished is not None:  # by an earlier attempt, which had verified it
        facts = work.facts["verified"]
        return _stored(work, stack, _store(work, finished), finished.url or "", facts["size"], facts["os_hash_value"])
    method = job.payload["method"]
    if method == imports.GLANCE_DIRECT:
        staged = next(copy for copy in _copies(work) if copy.store == STAGING)
        facts = job.checkpoint
        same = facts.get("algo") == svc.conf.hashing_algorithm
        return _stored(
            work, stack, svc.stores.staging, staged.url or "", facts["size"], facts["hash"] if same else None
        )
    if method == imports.COPY_IMAGE:
        download = data.Download(image, svc.stores.by_preference(image.locations), image.size or 0)
        body = data.open_(svc, SERVICE, download)
        stack.callback(body.close)
        wanted = {"hash": image.os_hash_value} if image.os_hash_value else {}
        if image.checksum and not wanted:
            wanted["checksum"] = image.checksum
        return BodySource(body, 0, work.check), body.size, wanted
    pace = Pace(rate=svc.conf.jobs.min_rate << 10)
    given = job.payload.get("given")
    source = WebSource(
        svc.net,
        job.payload["uri"],
        cap=svc.conf.image_size_cap,
        verified=given is not None and given[0] not in _WEAK,
        pace=pace,
        check=work.check,
    )
    stack.callback(source.close)
    source.open()
    return source, source.size, {}


def _stored(
    work: Work, stack: contextlib.ExitStack, store: Store, url: str, size: int, value: str | None
) -> tuple[Source, int, dict[str, str]]:
    body = work.svc.stores.access(store).read(url, length=size, ctx=SERVICE)
    stack.callback(body.close)
    return BodySource(body, 0, work.check), size, {"hash": value} if value else {}


def _end(work: Work, tx: Tx, image: Image, failed: Sequence[str]) -> None:
    """Write the properties by which clients see the end of an import."""
    former = [name for name in imports.listed(image, imports.FAILED) if name not in work.job.payload["stores"]]
    values = {imports.IMPORTING: "", imports.FAILED: ",".join([*former, *failed])}
    db_images.put_properties(tx, image.id, values, now=work.svc.now(), remove=[imports.LOCK])


def _said(copies: Sequence[Copy]) -> str:
    failed = [f"store {copy.store}: {copy.error}" for copy in copies if copy.state != "done"]
    return "; ".join(failed)
