"""Locations: registers data that a service has put into a store, and shows services where the data of an image is.

`add` reads the first bytes. If they show that the data has the image's format and is safe, the image becomes active at
once, and a job hashes the data afterwards. If a hash was given to compare with, or the format is known only at the end,
the image is importing, without a location, until the job has read everything.

Before the image is active the data is not ours: it is left alone if anything fails.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl

from calotype import errors, net
from calotype.context import SERVICE, Context
from calotype.db import images as db_images
from calotype.db import jobs
from calotype.db.engine import Tx
from calotype.db.usage import lock_project
from calotype.images import data, quota, tasks
from calotype.images.inspection import FormatRules, Inspection
from calotype.images.reading import BodySource
from calotype.images.sources import Pace
from calotype.images.stream import Passing
from calotype.images.work import Failed, Work
from calotype.model import Image, Job, Location, Task
from calotype.policy import no_image
from calotype.service import Service
from calotype.stores.base import Feature, Store

LOG = logging.getLogger(__name__)

KIND = "hash"
#: The name of the lock that all additions of locations take, by `lock_project`.
_TURN: Final = "calotype:locations"

#: Schemes that are always refused: they name files of this host, or use an account of ours.
_REFUSED: Final = frozenset({"file", "filesystem", "swift+config"})
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[!-~]+")
#: The longest URL, characters.
_MOST: Final = 4096
#: How much is read before an image may become active, bytes; nearly all formats show themselves in less.
_HEAD: Final = 4 << 20
#: Query parameters that give access to the data, or may do so.
_SECRET: Final = re.compile(r"sig|token|secret|pass|pwd|key|credential|auth|session|jwt|sas|expires", re.IGNORECASE)
#: Lengths of digests in bytes, by algorithm. Weak ones are compared with the data, but never recorded unverified.
_WEAK: Final = {"md5": 16, "sha1": 20}
ALGORITHMS: Final = {**_WEAK, "sha256": 32, "sha512": 64}


@dataclass(frozen=True, slots=True)
class Given:
    """A hash that the data is said to have: one of `ALGORITHMS`, and hex in lower case."""

    algo: str
    value: str


def add(svc: Service, ctx: Context, image_id: str, url: str, given: Given | None) -> None:
    """Make data that is in a store the data of a queued image. The URL tells the store.

    Raises `NotFound`, `Forbidden`, `Conflict` unless the image is queued, `Invalid` for a URL that is not acceptable or
    leads to nothing, `ContentRejected`, `OverLimit`.
    """
    image = svc.db.snapshot(lambda tx: db_images.get(tx, ctx, image_id))
    if image is None:
        raise no_image(image_id)
    svc.policy.check_image(ctx, "add_image_location", image)
    store = _store(svc, ctx, url)
    data.refuse_unready(image)
    size, settled, virtual_size = _inspect(svc, ctx, store, url, image)
    allowed = quota.allowance(svc, ctx, image.owner)

    hashes = {"os_hash_algo": given.algo, "os_hash_value": given.value} if given else {}
    secure = svc.conf.do_secure_hash
    at_once = settled and not (given and secure)
    payload = {
        "url": url,
        "store": store.name,
        "size": size,
        "activate": not at_once,
        "formats": [image.disk_format, image.container_format],
        "given": [given.algo, given.value] if given else None,
    }
    now = svc.now()
    asked = {"image_id": image.id, "loc_url": url, "validation_data": hashes}

    def work(tx: Tx) -> Task:
        found = db_images.get(tx, ctx, image.id, lock=True)
        if found is None:
            raise no_image(image.id)
        data.refuse_unready(found)
        if _formats(found) != _formats(image):
            raise errors.Conflict("The image's formats were changed just now; ask again.")
        quota.check_location_count(svc, found)
        reserved = quota.bytes_to_reserve(tx, allowed, size)
        if at_once:
            reserved = 0  # the image becomes active, and so counts itself, in this transaction
            # An algorithm without a hash tells clients that the hash will follow.
            facts = hashes or ({"os_hash_algo": svc.conf.hashing_algorithm} if secure else {})
            _activate(svc, tx, found, store, url, size=size, virtual_size=virtual_size, **facts)
        else:
            _refuse_taken(tx, store, url, image.id)
            db_images.move(tx, image.id, "queued", "importing", now=now)
            quota.check_uploading_count(tx, allowed)
            svc.events.image(tx, image.id, "image.update")
        task = tasks.begin(svc, tx, ctx, "location_import", image.id, asked, status="processing")
        if at_once and not secure:
            tasks.move(svc, tx, task.id, "success", result={"image_id": image.id})
        else:
            project = allowed.project if allowed else found.owner
            work_facts = {**payload, "task": task.id}
            jobs.submit(tx, KIND, image.id, work_facts, project=project, reserved=reserved)
        return task

    svc.db.write(work, lambda tx, task: tasks.is_stored(svc, tx, task))
    svc.nudge()


def list_(svc: Service, ctx: Context, image_id: str) -> list[Location]:
    """The image's copies, in the order of reading. The policy allows it to services only, by default."""
    image = svc.db.snapshot(lambda tx: db_images.get(tx, ctx, image_id))
    if image is None:
        raise no_image(image_id)
    svc.policy.check_image(ctx, "fetch_image_location", image)
    return _shown(svc, ctx, image)


def _shown(svc: Service, ctx: Context, image: Image) -> list[Location]:
    """The copies in the order of reading, without credentials. Only administrators see those of a deactivated image."""
    if image.status == "deactivated" and not ctx.is_admin:
        return []
    known = [location for _, location in svc.stores.by_preference(image.locations)]
    places = known + [location for location in image.locations if location not in known]
    return [Location(place.id, without_secrets(place.url), place.metadata) for place in places]


def direct_urls(svc: Service, ctx: Context, images: Sequence[Image]) -> Mapping[str, str]:
    """The URL to show with each of these images, by image id, if the caller is a service and the operator allows it.

    Empty for other callers.
    """
    if not svc.policy.serves(ctx) or not svc.conf.show_image_direct_url:
        return {}
    return {image.id: places[0].url for image in images if (places := _shown(svc, ctx, image))}


def without_secrets(url: str) -> str:
    """A location's URL as services see it: no user, no password, and no query that holds a key.

    Keys for S3 and passwords for Swift may have slashes in them; only paths of web servers have an @.
    """
    head, mark, query = url.partition("?")
    scheme, sep, rest = head.partition("://")
    authority, slash, path = rest.partition("/") if scheme.lower() in ("http", "https") else (rest, "", "")
    clean = scheme + sep + authority.rpartition("@")[2] + slash + path
    return clean + (mark + query if query and not _has_secrets(query) else "")


# --- what may be added -----------------------------------------------------------------------------------


def _store(svc: Service, ctx: Context, url: str) -> Store:
    """The store whose namespace contains the URL. Raises `Forbidden`, `Invalid`."""
    scheme = url.partition("://")[0].lower()
    web = scheme in ("http", "https")
    if not _URL.fullmatch(url) or len(url) > _MOST:
        raise errors.Invalid(f"The URL is not one of plain ASCII with a scheme and at most {_MOST} characters.")
    if not net.is_well_formed(url):
        raise errors.Invalid("The URL is malformed: its host, its port or a percent sign in it.")
    if not svc.policy.serves(ctx):
        if not web:
            raise errors.Forbidden("Only services may add locations that are not http or https.")
        if not any(Feature.USER_URLS in store.features for store in svc.stores):
            raise errors.Forbidden("Locations of http cannot be added: no store of type http is configured.")
    if scheme in _REFUSED:
        raise errors.Invalid(f"Locations of {scheme} are not accepted from anybody.")
    if url != without_secrets(url):
        raise errors.Invalid("The URL holds credentials, or what looks like them; nobody could take them back.")
    if web:
        net.parse(url)  # raises with the exact reason
    store = next((store for store in svc.stores if store.owns(url)), None)
    if store is None:
        raise errors.Invalid("The URL lies in none of the stores that are configured here.")
    if Feature.USER_URLS not in store.features and not svc.policy.serves(ctx):
        raise errors.Forbidden("Only services may add locations in this store.")
    return store


def _has_secrets(query: str) -> bool:
    return any(_SECRET.search(name) for name, _ in parse_qsl(query.replace(";", "&"), keep_blank_values=True))


def _inspect(svc: Service, ctx: Context, store: Store, url: str, image: Image) -> tuple[int, bool, int | None]:
    """The size; whether the first bytes settle what the data is; and in that case the virtual size."""
    length = _HEAD if image.container_format == "bare" else 0
    try:
        size, first = svc.stores.access(store).peek(url, length, most=svc.conf.image_size_cap, ctx=ctx)
        if size <= 0:
            raise errors.Invalid("The URL leads to nothing: there are no bytes.")
        if size > svc.conf.image_size_cap:
            raise errors.OverLimit(f"An image may have at most {svc.conf.image_size_cap} bytes.")
        if image.container_format != "bare":
            return size, True, None
        inspection = Inspection(str(image.disk_format), _format_rules(svc))
        head = memoryview(first)
    except errors.StoreBusy:
        raise
    except errors.StoreError as exc:
        LOG.warning("image %s: a location was refused, store %s: %s", image.id, store.name, errors.reason(exc))
        raise errors.Invalid(f"The URL leads to no data that can be read: {exc}") from exc
    for start in range(0, len(head), 1 << 20):
        inspection.feed(head[start : start + (1 << 20)])
    if len(head) < size and not inspection.settled:
        return size, False, None
    return size, True, inspection.finish(size)


def _format_rules(svc: Service) -> FormatRules:
    """As for uploads, but data without any signature is accepted: users of Glance add such data."""
    return replace(data.format_rules(svc), plain_passes=True)


def _formats(image: Image) -> list[str | None]:
    return [image.disk_format, image.container_format]


# --- the change ------------------------------------------------------------------------------------------


def _activate(svc: Service, tx: Tx, image: Image, store: Store, url: str, **facts: str | int | None) -> None:
    """Add the location and set facts and status, in the caller's transaction, which has locked the image."""
    _refuse_taken(tx, store, url, image.id)
    db_images.move(tx, image.id, image.status, "active", now=svc.now(), **facts)
    db_images.add_location(tx, image.id, url, {"store": store.name}, svc.now())
    svc.events.image(tx, image.id, "image.update")


def _refuse_taken(tx: Tx, store: Store, url: str, image_id: str) -> None:
    """Raise if another image has this object: each would delete the other's data. Data on web servers may be shared."""
    if Feature.USER_URLS in store.features:
        return
    lock_project(tx, _TURN)  # of two simultaneous additions, the second one sees the first
    if db_images.is_used_elsewhere(tx, url, image_id):
        raise errors.Conflict("The data at this URL belongs to another image, or did.")


# --- the job ---------------------------------------------------------------------------------------------


def hash_data(work: Work) -> None:
    """Read all data to hash, compare and inspect it, and record the result.

    Nothing is recorded before the end, so an interrupted job starts again at the first byte.
    """
    svc, job = work.svc, work.job
    facts = job.payload
    given = Given(*facts["given"]) if facts["given"] else None
    weak = hashlib.new(given.algo, usedforsecurity=False) if given and given.algo in _WEAK else None
    algo = given.algo if given and not weak else svc.conf.hashing_algorithm
    store = svc.stores.get(facts["store"])
    if svc.db.snapshot(lambda tx: db_images.is_deleted(tx, job.image_id)):
        raise Failed("The image is deleted.")
    rate, pace = svc.conf.jobs.hash_rate << 20, Pace(rate=svc.conf.jobs.min_rate << 10)
    try:
        if store is None:
            raise errors.StoreUnavailable("The store is not configured any more.", facts["store"])
        body = svc.stores.access(store).read(facts["url"], length=facts["size"], ctx=SERVICE)
        with (
            contextlib.closing(body),
            contextlib.closing(BodySource(body, rate, work.check, pace=pace)) as source,
            Passing(
                source,
                svc.transfers,
                expect=facts["size"],
                cap=facts["size"],
                hash_algo=algo,
                md5=svc.conf.md5_checksum,
                disk_format=facts["formats"][0],
                container_format=facts["formats"][1],
                rules=_format_rules(svc),
                alive=source.check,
                admit=lambda size: work.progress("Hashing", size, facts["size"]),
                want={"hash": given.value} if given and not weak else None,
                taps=[weak] if weak else [],
            ) as passing,
        ):
            passing.run()
    except errors.ContentRejected:
        work.keep(unsafe=True)
        raise
    except (errors.StoreError, errors.BodyBroken) as exc:
        # A user's server that drips is not given another try: others wait for the place.
        drips = isinstance(exc, errors.StoreSlow) and store is not None and Feature.USER_URLS in store.features
        if not drips and job.failures < svc.conf.http_retries:
            raise
        raise Failed(str(exc)) from exc
    if weak and given and weak.hexdigest() != given.value:
        raise errors.Invalid(f"the data has another {given.algo} than was given")
    _record(svc, job, store, passing, algo)


def call_off(svc: Service, tx: Tx, image_id: str) -> None:
    """Cancel the job that reads the data of an importing image, which is deleted in this transaction."""
    for job in jobs.cancel(tx, KIND, image_id):
        _finish_task(svc, tx, job, "The image is deleted.")


def _record(svc: Service, job: Job, store: Store, passing: Passing, algo: str) -> None:
    found = {"checksum": passing.checksum, "os_hash_algo": algo, "os_hash_value": passing.hash_value}

    def work(tx: Tx) -> None:
        image = db_images.get(tx, SERVICE, job.image_id, lock=True)
        if image is None or not jobs.finish(tx, job):
            raise errors.Gone("The image was deleted while its data was being hashed.")
        _finish_task(svc, tx, job)
        if not job.payload["activate"]:
            db_images.put_facts(tx, image.id, now=svc.now(), **found)
            svc.events.image(tx, image.id, "image.update")
            return
        if image.status != "importing" or _formats(image) != job.payload["formats"]:
            raise errors.Conflict("The image was changed while its data was being hashed.")
        sizes = {"size": passing.size, "virtual_size": passing.virtual_size}
        _activate(svc, tx, image, store, job.payload["url"], **sizes, **found)

    def committed(tx: Tx, _: None) -> bool:
        image = db_images.get(tx, SERVICE, job.image_id)
        return image is not None and image.os_hash_value == passing.hash_value and not jobs.exists(tx, job.token)

    svc.db.write(work, committed)


def refuse(work: Work) -> None:
    """Undo `hash_data`: return an importing image to the queue, leave an active one without a hash.

    If an active image turned out to be unsafe, the server has changed its data since. It is taken out of service.
    """
    svc, job = work.svc, work.job

    def undo(tx: Tx) -> None:
        image = db_images.get(tx, SERVICE, job.image_id, lock=True)
        Work.require(jobs.finish(tx, job))
        _finish_task(svc, tx, job, work.failure)
        if image is None:
            return
        if job.payload["activate"]:
            db_images.move(tx, image.id, "importing", "queued", now=svc.now(), size=None, virtual_size=None)
        else:
            db_images.put_facts(tx, image.id, now=svc.now(), os_hash_algo=None)  # clients see: no hash will follow
            if work.facts.get("unsafe"):
                db_images.move(tx, image.id, "active", "deactivated", now=svc.now())
        svc.events.image(tx, image.id, "image.update")

    svc.db.write(undo, lambda tx, _: not jobs.exists(tx, job.token))


def _finish_task(svc: Service, tx: Tx, job: Job, failure: str = "") -> None:
    """Record the result in the task that the user sees."""
    if failure:
        tasks.move(svc, tx, job.payload["task"], "failure", message=failure)
    else:
        tasks.move(svc, tx, job.payload["task"], "success", message="", result={"image_id": job.image_id})
