"""Comparing records and stores: copies that are not what their record says, and data that no record knows.

Nothing here changes anything; `repair.py` does. A service, or a Glance, may work beside it all the time. So whatever
looks wrong is looked at again in the order that whoever changes it keeps: a record is deleted before its data, and
data is there before its record names it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import partial
from itertools import islice

from calotype import errors
from calotype.context import SERVICE
from calotype.db import audit, jobs
from calotype.db import images as db_images
from calotype.db.engine import Tx
from calotype.model import Image, Location
from calotype.service import Service
from calotype.stores.base import Audits, Entry, Feature, Identified, Store

_BATCH = 200


class Problem(StrEnum):
    """What can be wrong with a copy, or with a name in a store."""

    MISSING = "missing"
    SIZE = "size"
    HASH = "hash"
    STRAY = "stray"
    UNREADABLE = "unreadable"  #: nobody could look
    OUT_OF_SERVICE = "out of service"  #: the image is deactivated and has no data: known, and harmless


#: Findings that say that something is wrong.
WRONG = frozenset({Problem.MISSING, Problem.SIZE, Problem.HASH, Problem.STRAY})


@dataclass(frozen=True, slots=True)
class Finding:
    """One copy of an image, or one name in a store. `entry` is what was there when it was looked at."""

    problem: Problem
    words: str
    store: str
    image_id: str | None = None
    name: str | None = None
    location: Location | None = None
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What to look at: all stores and ids where none is named.

    Of `parts` of the images, by a hash of the id, those from `first` to `last`, counted from 1.
    `deep` reads and hashes every byte; without it, sizes alone are compared.
    """

    stores: tuple[str, ...] = ()
    image_ids: tuple[str, ...] = ()
    parts: int = 1
    first: int = 1
    last: int = 1
    deep: bool = True

    def has(self, image_id: str) -> bool:
        place = int(hashlib.sha256(image_id.lower().encode()).hexdigest()[:12], 16) % self.parts + 1
        return self.first <= place <= self.last

    def has_store(self, store: Store | None) -> bool:
        return not self.stores or (store is not None and store.name in self.stores)


@dataclass(slots=True)
class Tally:
    """What was looked at, in numbers; `unverifiable` copies have no hash on record: sizes alone were compared."""

    images: int = 0
    copies: int = 0
    bytes: int = 0
    unverifiable: int = 0
    sound: dict[str, int] = field(default_factory=dict)  #: by store


Pace = Callable[[int], None]  #: Told of bytes that were read; may sleep.


def images(svc: Service, what: Selection) -> Iterator[Image]:
    """Images with data, in the order of their ids, as they are when their batch is read. Raises `NotFound`."""
    for image_id in what.image_ids:
        image = record(svc, image_id)
        if image is None:
            raise errors.NotFound(f"No image found with ID {image_id}")
        if image.status in ("active", "deactivated"):
            yield image
    if what.image_ids:
        return
    after = ""
    while batch := svc.db.snapshot(partial(audit.images_with_data, after=after, limit=_BATCH)):
        yield from (image for image in batch if what.has(image.id))
        after = batch[-1].id


def record(svc: Service, image_id: str) -> Image | None:
    """The image as it is now, None when it is deleted."""
    return svc.db.snapshot(lambda tx: db_images.get(tx, SERVICE, image_id))


def verify(svc: Service, what: Selection, tally: Tally, pace: Pace = lambda _: None) -> Iterator[Finding]:
    """Compare every copy with its record; what is not sound comes out."""
    for image in images(svc, what):
        yield from verify_image(svc, image, what, tally, pace)
        tally.images += 1


def verify_image(svc: Service, image: Image, what: Selection, tally: Tally, pace: Pace) -> list[Finding]:
    """The copies of one image that are not sound, as they are now."""
    while True:
        found, count = [], Tally()
        for location in image.locations:
            if what.has_store(svc.stores.of(location)):
                count.copies += 1
                if (finding := _check(svc, image, location, what.deep, count, pace)) is not None:
                    found.append(finding)
        if not image.locations and image.size and not what.stores:
            found.append(Finding(Problem.MISSING, "the record names no copy", "", image.id))
        if found:
            # Deleted, or a copy removed, while we looked: then that is what we saw.
            now = record(svc, image.id)
            if now is None or now.status not in ("active", "deactivated"):
                return []
            if _facts(now) != _facts(image):
                image = now
                continue
        break
    tally.copies += count.copies
    tally.bytes += count.bytes
    tally.unverifiable += count.unverifiable
    for name, number in count.sound.items():
        tally.sound[name] = tally.sound.get(name, 0) + number
    gone = [finding for finding in found if finding.problem is Problem.MISSING]
    if image.status == "deactivated" and len(gone) >= len(image.locations):
        words = "the image is deactivated and has no data"
        return [Finding(Problem.OUT_OF_SERVICE, words, one.store, image.id, one.name, one.location) for one in gone]
    return found


def _facts(image: Image) -> tuple[object, ...]:
    places = {(place.id, place.url) for place in image.locations}
    return image.status, image.size, image.checksum, image.os_hash_algo, image.os_hash_value, places


def _check(svc: Service, image: Image, location: Location, deep: bool, count: Tally, pace: Pace) -> Finding | None:
    store = svc.stores.of(location)
    if store is None or Feature.READ not in store.features or Feature.EPHEMERAL in store.features:
        why = "the store is not configured" if store is None else "another process cannot read this store"
        return Finding(Problem.UNREADABLE, why, location.store or "", image.id, location=location)
    name = store.name_of(location.url) if isinstance(store, Audits) else None
    entry: Entry | None = None

    def finding(problem: Problem, words: str) -> Finding:
        return Finding(problem, words, store.name, image.id, name, location, entry)

    try:
        if isinstance(store, Audits) and name is not None:
            entry = store.entry(name)
        size = store.size(location.url, ctx=SERVICE)
        if image.size is not None and size != image.size:
            return finding(Problem.SIZE, f"{size} bytes, the record says {image.size}")
        if deep and (words := _compare(store, image, location, count, pace)):
            return finding(Problem.HASH, words)
    except errors.Missing:
        try:
            if isinstance(store, Identified):
                store.confirm()  # what is not mounted is not missing
        except errors.StoreError as exc:
            return finding(Problem.UNREADABLE, errors.reason(exc))
        return finding(Problem.MISSING, "the store does not have it")
    except (errors.StoreError, OSError) as exc:
        return finding(Problem.UNREADABLE, errors.reason(exc))
    count.sound[store.name] = count.sound.get(store.name, 0) + 1
    return None


def _compare(store: Store, image: Image, location: Location, count: Tally, pace: Pace) -> str:
    """What differs, in words; empty when nothing does."""
    # MD5 where there is nothing else, as with images from old releases of Glance.
    known = [(image.os_hash_algo or "", image.os_hash_value), ("md5", image.checksum)]
    algo, want = next(((a, v) for a, v in known if v and a in hashlib.algorithms_available), ("", None))
    digest = hashlib.new(algo, usedforsecurity=False) if algo else None
    body = store.read(location.url, ctx=SERVICE)
    try:
        size = 0
        for piece in body:
            size += len(piece)
            if digest is not None:
                digest.update(piece)
            count.bytes += len(piece)
            pace(len(piece))
    finally:
        body.close()
    if digest is None or want is None:
        count.unverifiable += 1
    elif digest.hexdigest() != want.lower():
        return f"its {algo} is {digest.hexdigest()}, the record says {want}"
    return f"{size} bytes could be read, the record says {image.size}" if size != (image.size or size) else ""


# --- the other direction -----------------------------------------------------------------------------------


def strays(svc: Service, what: Selection, age: timedelta) -> Iterator[Finding]:
    """Names in the stores, older than `age`, that no record and no job has a claim to."""
    for store in svc.stores:
        if not what.has_store(store) or Feature.EPHEMERAL in store.features:
            continue
        if not isinstance(store, Audits):
            yield Finding(Problem.UNREADABLE, "this kind of store cannot list what is in it", store.name)
            continue
        try:
            for entry in _unclaimed(svc, store, age):
                yield Finding(Problem.STRAY, f"{entry.size} bytes that no record knows", store.name, None, entry.name,
                              entry=entry)  # fmt: skip
        except errors.StoreError as exc:
            yield Finding(Problem.UNREADABLE, errors.reason(exc), store.name)


def _unclaimed(svc: Service, store: Audits, age: timedelta) -> Iterator[Entry]:
    old = (entry for entry in store.entries() if entry.age >= age.total_seconds())
    remaining = {entry.name: entry for batch in _batched(old) for entry in unclaimed(svc, store, batch, age)}
    if not remaining:
        return
    # What remains may still be named by a record of another image. Jobs before copies: one may become the other.
    for place in svc.db.snapshot(lambda tx: list(audit.job_locations(tx))):
        remaining.pop(store.name_of(place.url) or "", None)
    after = 0
    while rows := svc.db.snapshot(partial(audit.all_copies, after=after, limit=_BATCH)):
        for place in rows:
            remaining.pop(store.name_of(place.url) or "", None)
        after = rows[-1].id
    # Whoever was deleting it has removed it before the claim went.
    for batch in _batched(remaining.values()):
        for entry in unclaimed(svc, store, batch, age):
            now = store.entry(entry.name)
            if now is not None and now.identity == entry.identity:
                yield entry


def unclaimed(svc: Service, store: Audits, entries: Sequence[Entry], age: timedelta) -> list[Entry]:
    """Those that belong to no image, upload or delete of the id that they are called by."""
    ids = {_id(entry) for entry in entries}

    def work(tx: Tx) -> list[Entry]:
        found = audit.claims(tx, ids, svc.now() - age)
        taken = {store.name_of(place.url) for place in found.copies}
        free = [entry for entry in entries if entry.name not in taken and _id(entry) not in found.busy]
        return [entry for entry in free if entry.attempt is None or not jobs.exists(tx, entry.attempt)]

    return svc.db.snapshot(work)


def _batched(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    them = iter(entries)
    while batch := list(islice(them, _BATCH)):
        yield batch


def _id(entry: Entry) -> str:
    return entry.name.partition(".")[0]
