"""The steps of an import job: receive the data into all stores at once, end the import, tidy up.

Nothing is final before size, hash and format of the whole data were verified. Each store's copy has a row
(`db/copies.py`). The transaction that says there that a copy is done also adds it to the image's record. If not all
stores must succeed, the first of them makes the image active and is kept: should the import fail later, only the other
stores have failed. Else the image becomes active when all of them are done.

An attempt begins by removing what an earlier one left; copies that it had finished are kept, and the others are made
from one of them. `undo` removes everything, and returns the image to the queue.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from calotype import errors
from calotype.context import SERVICE
from calotype.db import copies as db_copies
from calotype.db import images as db_images
from calotype.db import jobs
from calotype.db.engine import Tx
from calotype.images import data, imports, quota, sharing, tasks
from calotype.images.fanout import FanOut, Target
from calotype.images.locations import ALGORITHMS
from calotype.images.reading import BodySource
from calotype.images.sources import Pace, RemoteImages, WebSource
from calotype.images.stream import Passing, Source
from calotype.images.work import Work
from calotype.model import MAX_NAME, RESERVED_PREFIX, Copy, Image, Job
from calotype.stores.base import Body, Store, Stored
from calotype.stores.registry import STAGING
from calotype.transfers import Upload

LOG = logging.getLogger(__name__)

#: What is known of the data once it is verified: columns of the record.
_FACTS: Final = ("size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value")
#: Hashes that prove nothing about who made the data.
_WEAK: Final = frozenset({"md5", "sha1"})


def receive(work: Work) -> None:
    """Write the data into every store of the job that has none yet, from one read."""
    image = _image(work)
    _begin_task(work)
    copies = _clean_earlier(work)
    targets = _targets(work, copies)
    if not targets:
        return  # an earlier attempt has finished the copies that there are
    with contextlib.ExitStack() as stack:
        source, size, wanted = _source(work, stack, image, copies)
        _transfer(work, _as_remote(work, image), source, size, wanted, targets)


def _as_remote(work: Work, image: Image) -> Image:
    """The image with the formats of the one in another region that it is a copy of."""
    record = work.facts.get("remote")
    return replace(image, **record["formats"]) if record else image


def _transfer(
    work: Work,
    image: Image,
    source: Source,
    size: int | None,
    wanted: dict[str, str],
    targets: dict[str, Store],
) -> None:
    svc, job = work.svc, work.job
    svc_algo = svc.conf.hashing_algorithm
    algo = image.os_hash_algo if job.payload["method"] == imports.COPY_IMAGE and image.os_hash_algo else svc_algo
    given = job.payload.get("given") or work.facts.get("remote", {}).get("given")
    tap = hashlib.new(given[0], usedforsecurity=False) if given else None
    allowed, count = svc.limits.of(job.project, image.owner), len(targets)
    if size is not None:
        quota.reserve(svc, allowed, size * count, job)
    room = quota.growing_reservation(svc, allowed, size, job)

    def failed(target: Target, failure: errors.CalotypeError) -> None:
        name = target.access.store.name
        LOG.error("image %s: store %s takes no part in the import: %s", image.id, name, errors.reason(failure))
        if job.payload["all_must_succeed"] or isinstance(failure, errors.Gone | errors.Busy):
            raise failure  # these are no failures of the store
        _give_up(work, name, str(failure))

    def alive() -> None:
        work.check()
        work.progress("Receiving", passing.size, size)

    where = [
        Target(svc.stores.access(store), job.token, data.noting(svc, job, name)) for name, store in targets.items()
    ]
    for name in targets:
        svc.db.write(lambda tx, name=name: _begin(work, tx, name))  # type: ignore[misc]
    with (
        Passing(
            source,
            svc.transfers,
            expect=size,
            cap=svc.conf.image_size_cap,
            hash_algo=algo,
            md5=svc.conf.md5_checksum or "checksum" in wanted,
            disk_format=image.disk_format,
            container_format=image.container_format,
            rules=data.format_rules(svc),
            alive=alive,
            admit=(lambda total: room.admit(total * count)) if room else None,
            want=wanted,
            taps=[tap] if tap else [],
        ) as passing,
        FanOut(image.id, where, size=size, ctx=replace(SERVICE, project=image.owner), failed=failed) as out,
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
            _record(work, target.access.store.name, stored)


def _begin(work: Work, tx: Tx, store: str) -> None:
    work.require(db_copies.begin(tx, work.job, store))
    work.svc.events.image(tx, work.job.image_id, "image.prepare", backend=store)


def _record(work: Work, store: str, stored: Stored) -> None:
    """Add a copy that is final in its store to the record. The first one that need not wait for others is kept."""
    svc, job = work.svc, work.job
    metadata = {**stored.metadata, "store": store}
    is_first = not job.payload["all_must_succeed"] and not work.facts.get("kept")
    activates = is_first and not _is_active(work)

    def change(tx: Tx) -> None:
        image = _locked(work, tx)
        work.require(db_copies.done(tx, job, store, stored.url, object_id=stored.object_id, metadata=metadata))
        facts = work.facts["verified"]
        if activates:
            _make_active(work, tx, image)
        elif not _is_active(work):
            db_images.put_facts(tx, image.id, now=svc.now(), **facts)
        if is_first:
            work.advance_in(tx, by=0, kept=True)
        db_images.add_location(tx, image.id, stored.url, metadata, svc.now(), stored.object_id)
        left = _show(work, tx, image)
        jobs.reserve(tx, job, facts["size"] * len(left))  # this copy counts as stored from now on
        svc.events.image(tx, image.id, "image.upload", *(["image.activate"] if activates else []), "image.update")

    svc.db.write(change, lambda tx, _: db_copies.is_done(tx, job, store))
    if is_first:
        work.advanced(by=0, kept=True)


def _give_up(work: Work, store: str, why: str) -> None:
    """The import goes on without this store."""

    def change(tx: Tx) -> None:
        image = db_images.get(tx, SERVICE, work.job.image_id, lock=True)
        work.require(db_copies.fail(tx, work.job, store, why))
        if image is not None and imports.has_image(work.job, image):
            _show(work, tx, image)
            work.svc.events.image(tx, image.id, "image.update")

    work.svc.db.write(change)


def _show(work: Work, tx: Tx, image: Image) -> list[str]:
    """Write into the record which stores are still to be written and which have failed; returns the former."""
    states = {copy.store: copy.state for copy in db_copies.of(tx, work.job)}
    wanted: list[str] = work.job.payload["stores"]
    left = [store for store in wanted if states[store] in ("pending", "writing")]
    failed = [store for store in imports.listed(image, imports.FAILED) if store not in wanted]
    failed += [store for store in wanted if states[store] == "failed"]
    values = {imports.IMPORTING: ",".join(left), imports.FAILED: ",".join(failed)}
    changed = {name: value for name, value in values.items() if image.properties.get(name, "") != value}
    db_images.put_properties(tx, image.id, changed, now=work.svc.now())
    return left


def _is_active(work: Work) -> bool:
    """Whether the image is in use, whatever becomes of the other stores."""
    return work.job.payload["method"] == imports.COPY_IMAGE or bool(work.facts.get("kept"))


def _make_active(work: Work, tx: Tx, image: Image) -> None:
    facts = {**work.facts["verified"], **_formats(work)}
    db_images.move(tx, image.id, "importing", "active", now=work.svc.now(), **facts)
    _take_over(work, tx, image)


def end(work: Work) -> None:
    """Make the image active, if it is not yet, in one transaction with the end of the task."""
    svc, job = work.svc, work.job

    def change(tx: Tx) -> None:
        image = _locked(work, tx)
        if not _is_active(work):
            _make_active(work, tx, image)
        _succeed(work, tx, image)
        work.advance_in(tx, ended=True)

    svc.db.write(change, lambda tx, _: (found := jobs.get(tx, job.id)) is not None and found.step > work.step)
    work.advanced(ended=True)
    sharing.tell_stores(svc, job.image_id)
    _forget_token(work)


def _succeed(work: Work, tx: Tx, image: Image) -> None:
    """Write the end of an import whose image is active: into the record, the task and the quota."""
    svc, job = work.svc, work.job
    copies = [copy for copy in db_copies.of(tx, job) if copy.store != STAGING]
    failed = [copy for copy in copies if copy.state != "done"]
    # They were finished in any order; clients compare the list of stores with what they asked for.
    urls = {copy.store: copy.url or "" for copy in copies if copy.state == "done"}
    db_images.order_locations(tx, image.id, [urls[name] for name in job.payload["stores"] if name in urls])
    _end(work, tx, image, [copy.store for copy in failed])
    result: dict[str, Any] = {"image_id": image.id}
    if "remote" in work.facts:
        result["verified"] = work.facts["remote"]["given"] is not None  # whether its source had a hash
    said = "; ".join(f"store {copy.store}: {copy.error}" for copy in failed)
    tasks.move(svc, tx, job.payload["task"], "success", message=said, result=result)
    jobs.reserve(tx, job, 0)
    activated = ["image.activate"] if image.status == "importing" else []
    svc.events.image(tx, image.id, *activated, "image.update")


def _locked(work: Work, tx: Tx) -> Image:
    """The image, locked, in the status in which the job may change it. Raises `Gone`, `Conflict`."""
    image = db_images.get(tx, SERVICE, work.job.image_id, lock=True)
    if image is None:
        raise errors.Gone("The image is deleted.")
    return _checked(work, image)


def _checked(work: Work, image: Image) -> Image:
    if image.status != ("active" if _is_active(work) else "importing"):
        raise errors.Conflict(f"Image {image.id} is {image.status} by now.")
    if not imports.has_image(work.job, image):
        raise errors.Conflict("Another import took the image over, because this one gave no sign of life.")
    return image


def tidy(work: Work) -> None:
    """Remove the staged data, and what failed stores have left."""
    _clean(work, lambda copy: copy.store == STAGING or copy.state == "failed")
    work.require(work.svc.db.write(lambda tx: jobs.finish(tx, work.job)))


def undo(work: Work) -> None:
    """Remove everything that was written, and return the image to the queue.

    If a store is away, the user is told all the same, and the job stays until the store is clean. Meanwhile the image
    may be imported again. If not all stores must succeed, and one has, then only the others are given up.
    """
    svc, job = work.svc, work.job
    if work.facts.get("kept"):
        _give_up_rest(work)
        return
    _withdraw(work)
    left: errors.StoreError | None = None
    try:
        _clean(work, lambda _: True)
    except errors.StoreError as exc:
        left = exc

    def change(tx: Tx) -> None:
        image = db_images.get(tx, SERVICE, job.image_id, lock=True)
        if left is None:
            work.require(jobs.finish(tx, job))
        else:
            work.advance_in(tx, by=0, ended=True)
            jobs.reserve(tx, job, 0)
        if work.facts.get("ended"):
            return  # by an earlier attempt; the image may have another import by now
        tasks.move(svc, tx, job.payload["task"], "failure", message=work.failure)
        if image is None or not imports.has_image(job, image):
            return
        if job.payload["method"] != imports.COPY_IMAGE:
            db_images.move(tx, image.id, "importing", "queued", now=svc.now(), **dict.fromkeys(_FACTS))
        _end(work, tx, image, job.payload["stores"])
        svc.events.upload_failed(tx, image.id, work.failure)
        svc.events.image(tx, image.id, "image.update")

    svc.db.write(change, lambda tx, _: _has_ended(tx, job))
    _forget_token(work)
    if left is not None:
        work.advanced(by=0, ended=True)
        raise left


def _withdraw(work: Work) -> None:
    """Take the copies that are done out of the record again, before their data is removed.

    A copy that the record has no more is not ours any more: who deleted it, or its active image, removes its data.
    """
    svc, job = work.svc, work.job

    def change(tx: Tx) -> None:
        image = db_images.get(tx, SERVICE, job.image_id, lock=True)
        places = {place.url: place.id for place in image.locations} if image is not None else {}
        done = [copy for copy in db_copies.of(tx, job) if copy.state == "done" and copy.store != STAGING]
        for copy in done:
            if copy.url in places:
                db_images.remove_location(tx, job.image_id, places[copy.url], svc.now())
            elif image is not None or _is_active(work):
                work.require(db_copies.clean(tx, job, copy.store))
            work.require(db_copies.fail(tx, job, copy.store, work.failure))
        if image is not None and done:
            jobs.reserve(tx, job, (image.size or 0) * len(done))
            svc.events.image(tx, image.id, "image.update")

    svc.db.write(change)


def _give_up_rest(work: Work) -> None:
    """End an import whose finished copies are kept: the stores that have none have failed."""
    svc, job = work.svc, work.job

    def change(tx: Tx) -> None:
        image = db_images.get(tx, SERVICE, job.image_id, lock=True)
        for copy in db_copies.of(tx, job):
            if copy.state in ("pending", "writing"):
                work.require(db_copies.fail(tx, job, copy.store, work.failure))
        if image is not None and imports.has_image(job, image):
            _succeed(work, tx, image)
        else:
            tasks.move(svc, tx, job.payload["task"], "failure", message=work.failure)
        work.advance_in(tx, by=0, ended=True)

    if not work.facts.get("ended"):
        svc.db.write(change, lambda tx, _: _has_ended(tx, job))
        work.advanced(by=0, ended=True)
        _forget_token(work)
    tidy(work)


def _has_ended(tx: Tx, job: Job) -> bool:
    found = jobs.get(tx, job.id)
    return found is None or bool(found.checkpoint.get("ended"))


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
    return _checked(work, image)


def _begin_task(work: Work) -> None:
    task = work.job.payload["task"]
    work.svc.db.write(lambda tx: tasks.move(work.svc, tx, task, "processing"))


def _clean_earlier(work: Work) -> list[Copy]:
    """Remove what earlier attempts left unfinished; returns the copies as they are now, without the staged one."""
    copies = [copy for copy in _copies(work) if copy.store != STAGING]
    # Without the facts that were verified before the first commit, a finished copy cannot be relied on.
    good = "verified" in work.facts and any(copy.state == "done" for copy in copies)
    for copy in copies:
        # When all begins anew, stores that failed have another chance.
        if copy.state == "writing" or (copy.state != "pending" and not good):
            data.clean(work.svc, work.job, copy)
            work.svc.db.write(lambda tx, name=copy.store: _reset(work, tx, name))  # type: ignore[misc]
    return [copy for copy in _copies(work) if copy.store != STAGING]


def _reset(work: Work, tx: Tx, store: str) -> None:
    image = db_images.get(tx, SERVICE, work.job.image_id, lock=True)
    work.require(db_copies.reset(tx, work.job, store))
    if image is not None and imports.has_image(work.job, image):
        _show(work, tx, image)


def _copies(work: Work) -> list[Copy]:
    return work.svc.db.snapshot(lambda tx: db_copies.of(tx, work.job))


def _clean(work: Work, which: Callable[[Copy], bool]) -> None:
    """Remove from the stores what these copies have there. Raises `StoreError` after trying all."""
    failure: errors.StoreError | None = None
    for copy in _copies(work):
        if copy.attempt is None or not which(copy):
            continue
        if copy.store == STAGING and work.svc.stores.meant(STAGING, copy.identity) is None:
            continue  # it is on a host that was given up, which removes it should it come back
        try:
            data.clean(work.svc, work.job, copy)
        except errors.StoreError as exc:
            failure = exc
            continue
        work.require(work.svc.db.write(lambda tx, name=copy.store: db_copies.clean(tx, work.job, name)))  # type: ignore[misc]
    if failure is not None:
        raise failure


def _targets(work: Work, copies: Sequence[Copy]) -> dict[str, Store]:
    """The stores that are to be written, by the names of their copies. Raises `Conflict` if one of them is gone.

    If not all must succeed, one that is gone has failed, and `Conflict` is raised if none is left.
    """
    targets = {}
    for copy in copies:
        if copy.state != "pending":
            continue
        try:
            targets[copy.store] = _store(work, copy)
        except errors.Conflict as exc:
            if work.job.payload["all_must_succeed"] or len(copies) == 1:
                raise
            _give_up(work, copy.store, str(exc))
    if not targets and not any(copy.state == "done" for copy in copies):
        raise errors.Conflict("None of the stores is configured any more.")
    return targets


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
        if staged.url is None:
            raise errors.Conflict("The staged data was removed.")
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
        return _reading(work, stack, body), body.size, wanted
    pace = Pace(rate=svc.conf.jobs.min_rate << 10)
    if method == imports.GLANCE_DOWNLOAD:
        source, size = _remote(work, pace)
        stack.callback(source.close)
        source.open()
        if size is not None and source.size not in (None, size):
            raise errors.Conflict(f"The other Image service sends {source.size} bytes of an image of {size}.")
        return source, size or source.size, {}
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


def _remote(work: Work, pace: Pace) -> tuple[WebSource, int | None]:
    """The data of an image in another region, and its size. What else is to be taken over of it is kept."""
    svc, job = work.svc, work.job
    endpoint, image_id, key = job.payload["remote"]
    if endpoint is None:
        raise errors.Conflict("Your catalog has no such endpoint of an Image service in that region.")
    token = svc.tokens.get(key)
    if token is None:
        raise errors.Conflict("The service was started again, and your token is gone; ask for the import again.")
    there = RemoteImages(svc.net, endpoint, token, check=work.check)
    record = there.record(image_id)
    if record.get("status") != "active":
        raise errors.Conflict(f"The image in the other region is {str(record.get('status'))[:20]}, and not active.")
    algo, value = record.get("os_hash_algo"), record.get("os_hash_value")
    given = [algo, str(value).lower()] if algo in ALGORITHMS and value else None
    if given is None and record.get("checksum"):
        given = ["md5", str(record["checksum"]).lower()]
    work.keep(remote=_taken_over(svc.conf.glance_download_properties.extra_properties, record) | {"given": given})
    source = there.data(
        image_id, cap=svc.conf.image_size_cap, verified=given is not None and given[0] not in _WEAK, pace=pace
    )
    size = record.get("size")
    return source, size if isinstance(size, int) and not isinstance(size, bool) else None


def _forget_token(work: Work) -> None:
    if remote := work.job.payload.get("remote"):
        work.svc.tokens.pop(remote[2], None)


def _taken_over(prefixes: Sequence[str], record: Mapping[str, Any]) -> dict[str, Any]:
    """What a copy of an image takes over: its formats, tags, min_*, and the properties that the operator names."""
    formats = {name: record[name] for name in ("disk_format", "container_format") if isinstance(record.get(name), str)}
    if len(formats) < 2:
        raise errors.Conflict("The image in the other region has no formats.")
    least = {
        name: record[name] for name in ("min_disk", "min_ram") if type(record.get(name)) is int and record[name] >= 0
    }
    properties = {
        name: value
        for name, value in record.items()
        if isinstance(value, str) and name.startswith(tuple(prefixes)) and not name.startswith(RESERVED_PREFIX)
    }
    tags = [tag for tag in record.get("tags", ()) if isinstance(tag, str) and 0 < len(tag) <= MAX_NAME]
    return {"formats": formats, "least": least, "properties": properties, "tags": tags}


def _formats(work: Work) -> dict[str, Any]:
    """Columns of the record that come from an image in another region."""
    record = work.facts.get("remote")
    return {**record["formats"], **record["least"]} if record else {}


def _take_over(work: Work, tx: Tx, image: Image) -> None:
    """Add the properties and tags of an image in another region."""
    if (record := work.facts.get("remote")) is None:
        return
    conf = work.svc.conf
    quota.check_limit(conf.image_property_quota, len({*image.properties, *record["properties"]}), "properties")
    quota.check_limit(conf.image_tag_quota, len({*image.tags, *record["tags"]}), "tags")
    tags = [tag for tag in dict.fromkeys(record["tags"]) if tag not in image.tags]
    db_images.put_properties(tx, image.id, record["properties"], now=work.svc.now(), tags=tags)


def _stored(
    work: Work, stack: contextlib.ExitStack, store: Store, url: str, size: int, value: str | None
) -> tuple[Source, int, dict[str, str]]:
    body = work.svc.stores.access(store).read(url, length=size, ctx=SERVICE)
    stack.callback(body.close)
    return _reading(work, stack, body), size, {"hash": value} if value else {}


def _reading(work: Work, stack: contextlib.ExitStack, body: Body) -> BodySource:
    source = BodySource(body, 0, work.check)
    stack.callback(source.close)
    return source


def _end(work: Work, tx: Tx, image: Image, failed: Sequence[str]) -> None:
    """Write the properties by which clients see the end of an import."""
    former = [name for name in imports.listed(image, imports.FAILED) if name not in work.job.payload["stores"]]
    values = {imports.IMPORTING: "", imports.FAILED: ",".join([*former, *failed])}
    db_images.put_properties(tx, image.id, values, now=work.svc.now(), remove=[imports.LOCK])
