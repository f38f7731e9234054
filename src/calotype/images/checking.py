"""Compares records with stores: finds copies that differ from their record, and data that no record refers to.

This changes nothing; `repair.py` does. A service, or a Glance, may change records and data meanwhile. It deletes a
record before the data, and writes data before the record. So what looks wrong is checked again in that order before it
is reported.
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
    """What can be wrong with a copy of an image, or with an entry in a store."""

    MISSING = "missing"
    SIZE = "size"
    HASH = "hash"
    STRAY = "stray"
    UNREADABLE = "unreadable"  #: it could not be checked
    OUT_OF_SERVICE = "out of service"  #: the image is deactivated and has no data: harmless


#: The problems that `repair.py` acts on.
WRONG = frozenset({Problem.MISSING, Problem.SIZE, Problem.HASH, Problem.STRAY})


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem with a copy of an image, or with an entry in a store. `entry` is what was found there."""

    problem: Problem
    words: str
    store: str
    image_id: str | None = None
    name: str | None = None
    location: Location | None = None
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What to check. Empty `stores` or `image_ids` mean all of them.

    A hash of the id divides images into `parts`; those from `first` to `last` are checked, counted from 1.
    `deep` reads and hashes every byte; otherwise sizes alone are compared.
    """

    stores: tuple[str, ...] = ()
    image_ids: tuple[str, ...] = ()
    parts: int = 1
    first: int = 1
    last: int = 1
    deep: bool = True

    def includes(self, image_id: str) -> bool:
        place = int(hashlib.sha256(image_id.lower().encode()).hexdigest()[:12], 16) % self.parts + 1
        return self.first <= place <= self.last

    def includes_store(self, store: Store | None) -> bool:
        return not self.stores or (store is not None and store.name in self.stores)


@dataclass(slots=True)
class Tally:
    """How much was checked. For `unverifiable` copies the record has no hash, so sizes alone were compared."""

    images: int = 0
    copies: int = 0
    bytes: int = 0
    unverifiable: int = 0
    sound: dict[str, int] = field(default_factory=dict)  #: copies without a problem, by store


Pace = Callable[[int], None]  #: Called with the number of bytes that were just read; may sleep to limit the rate.


def images(svc: Service, what: Selection) -> Iterator[Image]:
    """The selected images with data, in the order of their ids; read in batches. Raises `NotFound`."""
    for image_id in what.image_ids:
        image = find_image(svc, image_id)
        if image is None:
            raise errors.NotFound(f"No image found with ID {image_id}")
        if image.status in ("active", "deactivated"):
            yield image
    if what.image_ids:
        return
    after = ""
    while batch := svc.db.snapshot(partial(audit.images_with_data, after=after, limit=_BATCH)):
        yield from (image for image in batch if what.includes(image.id))
        after = batch[-1].id


def find_image(svc: Service, image_id: str) -> Image | None:
    """The image as it is now; None if it is deleted."""
    return svc.db.snapshot(lambda tx: db_images.get(tx, SERVICE, image_id))


def verify(svc: Service, what: Selection, tally: Tally, pace: Pace = lambda _: None) -> Iterator[Finding]:
    """Compare every copy with its record; yields the problems."""
    for image in images(svc, what):
        yield from verify_image(svc, image, what, tally, pace)
        tally.images += 1


def verify_image(svc: Service, image: Image, what: Selection, tally: Tally, pace: Pace) -> list[Finding]:
    """The problems with the copies of one image, as they are now."""
    while True:
        found, count = [], Tally()
        for location in image.locations:
            if what.includes_store(svc.stores.of(location)):
                count.copies += 1
                if (finding := _check_copy(svc, image, location, what.deep, count, pace)) is not None:
                    found.append(finding)
        if not image.locations and image.size and not what.stores:
            found.append(Finding(Problem.MISSING, "the record names no copy", "", image.id))
        if found:
            # The image may have been deleted or changed while we checked it: then that explains what we found.
            now = find_image(svc, image.id)
            if now is None or now.status not in ("active", "deactivated"):
                return []
            if _compared_fields(now) != _compared_fields(image):
                image = now
                continue
        break
    tally.copies += count.copies
    tally.bytes += count.bytes
    tally.unverifiable += count.unverifiable
    for name, number in count.sound.items():
        tally.sound[name] = tally.sound.get(name, 0) + number
    missing = [finding for finding in found if finding.problem is Problem.MISSING]
    if image.status == "deactivated" and len(missing) >= len(image.locations):
        words = "the image is deactivated and has no data"
        return [Finding(Problem.OUT_OF_SERVICE, words, one.store, image.id, one.name, one.location) for one in missing]
    return found


def _compared_fields(image: Image) -> tuple[object, ...]:
    places = {(place.id, place.url) for place in image.locations}
    return image.status, image.size, image.checksum, image.os_hash_algo, image.os_hash_value, places


def _check_copy(svc: Service, image: Image, location: Location, deep: bool, count: Tally, pace: Pace) -> Finding | None:
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
        if deep and (words := _compare_bytes(svc, store, image, location, count, pace)):
            return finding(Problem.HASH, words)
    except errors.Missing:
        try:
            if isinstance(store, Identified):
                store.confirm()  # if the store is not mounted, the copy is not missing
        except errors.StoreError as exc:
            return finding(Problem.UNREADABLE, errors.reason(exc))
        return finding(Problem.MISSING, "the store does not have it")
    except (errors.StoreError, OSError) as exc:
        return finding(Problem.UNREADABLE, errors.reason(exc))
    count.sound[store.name] = count.sound.get(store.name, 0) + 1
    return None


def _compare_bytes(svc: Service, store: Store, image: Image, location: Location, count: Tally, pace: Pace) -> str:
    """What differs, in words; empty when nothing does."""
    # MD5 if there is no other hash, as for images of old releases of Glance.
    known = [(image.os_hash_algo or "", image.os_hash_value), ("md5", image.checksum)]
    algo, want = next(((a, v) for a, v in known if v and a in hashlib.algorithms_available), ("", None))
    digest = hashlib.new(algo, usedforsecurity=False) if algo else None
    body = svc.stores.access(store).read(location.url, ctx=SERVICE)
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


# --- data without a record ---------------------------------------------------------------------------------


def strays(svc: Service, what: Selection, age: timedelta) -> Iterator[Finding]:
    """Entries in the stores, older than `age`, that no record and no job refers to."""
    for store in svc.stores:
        if not what.includes_store(store) or Feature.EPHEMERAL in store.features:
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
    # A record of another image may refer to the rest. Jobs are read before copies, as a job may become a copy.
    for place in svc.db.snapshot(lambda tx: list(audit.job_locations(tx))):
        remaining.pop(store.name_of(place.url) or "", None)
    after = 0
    while rows := svc.db.snapshot(partial(audit.all_copies, after=after, limit=_BATCH)):
        for place in rows:
            remaining.pop(store.name_of(place.url) or "", None)
        after = rows[-1].id
    # A delete removes the data before its job: what still exists now, and has no claim, was not being deleted.
    for batch in _batched(remaining.values()):
        for entry in unclaimed(svc, store, batch, age):
            now = store.entry(entry.name)
            if now is not None and now.identity == entry.identity:
                yield entry


def unclaimed(svc: Service, store: Audits, entries: Sequence[Entry], age: timedelta) -> list[Entry]:
    """The entries that no image, upload or delete refers to, of the image id that is in their name."""
    ids = {_id(entry) for entry in entries}

    def work(tx: Tx) -> list[Entry]:
        found = audit.claims(tx, ids, svc.now() - age)
        taken = {store.name_of(place.url) for place in found.copies}
        free = [entry for entry in entries if entry.name not in taken and _id(entry) not in found.busy]
        return [entry for entry in free if entry.attempt is None or not jobs.exists(tx, entry.attempt)]

    return svc.db.snapshot(work)


def _batched(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _id(entry: Entry) -> str:
    return entry.name.partition(".")[0]
