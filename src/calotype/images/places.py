"""Checks that each store is at the right place: the place has the identity that the database has for the store.

A new store with an empty place is taken into use at once. A place with data must be adopted once by the operator: by
`calotype store adopt`, or by `calotype db sync` if the data is that of the records. A place in the state directory with
the data of the records needs no adoption. If a place was moved or its store renamed, it is recognised by its identity.

In all other cases the store refuses writes and repair, until its place is back or the operator has decided.
"""

import logging
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import unquote, urlsplit

from calotype import errors, net
from calotype.context import SERVICE
from calotype.db import images as db_images
from calotype.db import stores as db_stores
from calotype.db.engine import Tx
from calotype.images.locations import without_secrets
from calotype.model import Location, Place
from calotype.service import Service
from calotype.stores.base import Identified, Store

LOG = logging.getLogger(__name__)

#: How many copies are looked for in a place, to see whether it has the data of the records.
_SAMPLE = 20
#: How many copies one transaction relocates.
_BATCH = 200
#: How many places without a store are reported one by one. More of them are summed up by their parent directories.
_MOST_REPORTED = 20
#: How long to wait for another process that writes an identity, seconds.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result for the place of a store. `words` say what was done, or what the operator has to do."""

    store: str
    ready: bool
    words: str


# --- recognising -----------------------------------------------------------------------------------------


def recognise(svc: Service, *, adopt: bool = False, change: bool = True) -> list[Verdict]:
    """Check for each store that it is at the right place, and let it take writes if so.

    With `adopt`, a place without an identity is taken into use if it has the data of the records. Without `change`
    nothing is written, neither to a place nor to the database. Raises `ConfigError` if two stores have the same place.
    """
    found = [
        _recognise(svc, store, adopt=adopt, change=change) for store in svc.stores if isinstance(store, Identified)
    ]
    _refuse_copies(svc.stores)
    for verdict in found:
        if not verdict.ready:
            LOG.error("store %s takes no writes: %s", verdict.store, verdict.words)
        elif verdict.words:
            LOG.warning("store %s: %s", verdict.store, verdict.words)
    return found


def prepare_staging(svc: Service) -> None:
    """Take the staging directory of this host into use: make it, and give it an identity, if need be.

    The identity is the name of the place for the jobs whose data is there. The database need not know it: what is
    staged is not relied on before it has been imported.
    """
    store = svc.stores.staging
    try:
        if (found := store.found_identity()) is None:
            store.establish(found := str(uuid.uuid4()))
            found = store.found_identity()  # that of another process, if it was first
        store.identity = svc.leases.staging = found
    except errors.StoreError as exc:
        LOG.error("the staging directory cannot be used, so that nothing can be staged: %s", errors.reason(exc))


def refresh(svc: Service) -> None:
    """Read what has changed in the database: places that the operator adopted, or that other hosts took into use."""
    known = {place.name: place for place in _known(svc)}
    for store in svc.stores:
        if not isinstance(store, Identified):
            continue
        place = known.get(store.name)
        if store.identity is None or (place is not None and not place.established):
            # Take no new place into use now: if it is empty, its file system may have been unmounted meanwhile.
            if place is None and not _carries(store, {one.identity for one in known.values()}):
                continue
            if _recognise(svc, store, adopt=False, change=True).ready:
                LOG.warning("store %s takes writes now", store.name)
        if place is not None:
            store.add_former([place.place, *place.former])


def _carries(store: Identified, identities: Container[str]) -> bool:
    """Whether the place has one of these identities."""
    try:
        return store.found_identity() in identities
    except errors.StoreError:
        return False


def adopt(svc: Service, name: str) -> str:
    """Take the place of a store into use, whatever is in it, because the operator says so. Returns a sentence about it.

    Raises `NotFound`, and `Conflict` if another store of this deployment has the place.
    """
    store = _identified(svc, name)
    known = {place.name: place for place in _known(svc)}
    by_identity = {place.identity: place for place in known.values()}
    found = store.found_identity()
    if found in by_identity and by_identity[found].name != name:
        raise errors.Conflict(
            f"{store.place} is the place of store {by_identity[found].name}, whose data is read by that name."
        )
    mine = known.get(name)
    if mine is not None:
        if found != mine.identity:
            store.establish(mine.identity)
        place = _moved_to(mine, store.place)
    else:
        # An identity of another deployment is replaced. If both wrote here, each would treat the other's data as stray.
        place = Place(str(uuid.uuid4()), name, store.place, host=_host(), established=True)
        _add(svc, replace(place, established=False))
        store.establish(place.identity)
    _save(svc, place)
    _accept(store, place)
    LOG.warning("store %s: %s was adopted as its place, by the operator", name, store.place)
    return f"Store {name} is at {store.place} from now on."


def _recognise(svc: Service, store: Identified, *, adopt: bool, change: bool) -> Verdict:
    def no(words: str) -> Verdict:
        return Verdict(store.name, False, words)

    known = _known(svc)
    mine = next((place for place in known if place.name == store.name), None)
    if mine is not None:
        store.identity = mine.identity  # so that the store works as soon as its place is back
        store.add_former([mine.place, *mine.former])
    try:
        found = store.found_identity()
        if found is None and mine is None:
            return _take_into_use(svc, store, known, adopt=adopt, change=change)
        unfinished = mine is not None and not mine.established and mine.host == _host()
        if found is None and mine is not None and unfinished and change and _is_free(svc, store, mine):
            store.establish(mine.identity)  # a process added it to the database, and was killed before it wrote it here
            found = mine.identity
    except errors.StoreError as exc:
        return no(errors.reason(exc))
    if found is None:
        return no(
            f"nothing in {store.place} says that it is this store's place. Is its file system mounted? If all of its "
            f"data is there all the same: calotype store adopt {store.name}"
        )
    if mine is None:
        mine = next((place for place in known if place.identity == found), None)
        if mine is None:
            return no(
                f"{store.place} is a store of another deployment, or of a database that is lost. If no other one "
                f"writes there: calotype store adopt {store.name}"
            )
        if mine.name in svc.stores:
            return no(f"{store.place} is the place of store {mine.name}.")
    if found != mine.identity:
        return no(f"{store.place} carries the identity of another store. The one that is meant was at {mine.place}.")
    words = [] if mine.name == store.name else [f"it was named {mine.name} before"]
    words += (
        [] if mine.place == store.place else [f"it was at {mine.place} before: calotype store relocate {store.name}"]
    )
    place = _moved_to(replace(mine, name=store.name, established=True), store.place)
    if place != mine and change:
        _save(svc, place)
    _accept(store, place)
    return Verdict(store.name, True, "; ".join(words))


def _take_into_use(svc: Service, store: Identified, known: Sequence[Place], *, adopt: bool, change: bool) -> Verdict:
    """Take a store into use that the database does not know, at a place without an identity."""
    if before := next((place for place in known if place.place == store.place), None):
        return Verdict(
            store.name,
            False,
            f"{store.place} was the place of store {before.name}, and does not say so any more. Is its file system "
            "mounted?",
        )
    copies, there, missing = _count_copies(svc, store)
    if not store.is_empty() or copies:
        # The state directory is only ours. If it has the data of the records, a release without identities stored it.
        own = Path(svc.conf.state_dir).absolute() in PurePath(store.place).parents
        if not ((adopt or own) and there and not missing):
            return Verdict(store.name, False, _what_to_do(store, copies, there))
        words = f"{store.place} was adopted as its place; of the copies on record {there} were looked at"
    else:
        words = ""
    if change:
        place = Place(str(uuid.uuid4()), store.name, store.place, host=_host())
        try:
            _add(svc, place)
        except errors.Conflict:  # Another process was first. If it is on another host, it may have another directory.
            return _wait_for(svc, store)
        store.establish(place.identity)
        place = replace(place, established=True)
        _save(svc, place)
        _accept(store, place)
    return Verdict(store.name, True, words)


def _count_copies(svc: Service, store: Identified) -> tuple[int, int, int]:
    """How many copies on record were looked for in the place, how many were found, and how many are missing.

    Copies of deactivated images do not count as missing: `calotype repair` moves their data into quarantine.
    """
    rows = svc.db.snapshot(lambda tx: db_stores.copies(tx, _prefixes(store), limit=_SAMPLE))
    found = [(_has(svc, store, image_id, location), image_id) for image_id, location in rows]
    missing = sum(_in_service(svc, image_id) for has, image_id in found if not has)
    return len(rows), sum(has for has, _ in found), missing


def _in_service(svc: Service, image_id: str) -> bool:
    image = svc.db.snapshot(lambda tx: db_images.get(tx, SERVICE, image_id))
    return image is not None and image.status != "deactivated"


def _is_free(svc: Service, store: Identified, place: Place) -> bool:
    """Whether the place has exactly the data on record for it: none, or all copies that were looked for."""
    store.add_former([place.place, *place.former])
    copies, present, missing = _count_copies(svc, store)
    return present > 0 and not missing if copies else store.is_empty()


def _wait_for(svc: Service, store: Identified) -> Verdict:
    """Wait for another process that is taking the store into use, then check whether that is this place."""
    if all(place.name != store.name for place in _known(svc)):
        return Verdict(store.name, False, "the name of another store differs in the case of letters only")
    until = time.monotonic() + _PATIENCE
    while store.found_identity() is None and time.monotonic() < until:
        time.sleep(0.05)
    return _recognise(svc, store, adopt=False, change=True)


def _host() -> str:
    return socket.gethostname()


def _what_to_do(store: Identified, copies: int, there: int) -> str:
    how = f"calotype store adopt {store.name}"
    if not copies:
        return f"there are files in {store.place}, and no record knows of any. If they may stay there: {how}"
    if not there:
        return f"records name data in {store.place}, and it is not there. Is its file system mounted? If so: {how}"
    return f"{store.place} has {there} of {copies} copies that were looked for, and was not taken into use yet: {how}"


def _accept(store: Identified, place: Place) -> None:
    store.identity = place.identity
    store.add_former(place.former)


def _moved_to(place: Place, where: str) -> Place:
    """The record with another place; the present one becomes a former one."""
    if place.place == where:
        return place
    former = dict.fromkeys((place.place, *place.former))
    former.pop(where, None)
    return replace(place, place=where, former=tuple(former))


def _refuse_copies(stores: Iterable[Store]) -> None:
    """Raise `ConfigError` if two stores have the same identity: one directory is a copy of the other."""
    seen: dict[str, str] = {}
    for store in stores:
        identity = store.identity if isinstance(store, Identified) else None
        if identity in seen:
            raise errors.ConfigError(
                f"The places of stores {seen[identity]} and {store.name} are copies of each other."
            )
        if identity is not None:
            seen[identity] = store.name


def _has(svc: Service, store: Store, image_id: str, location: Location) -> bool:
    """Whether the store has the copy, in the size that the record says."""
    image = svc.db.snapshot(lambda tx: db_images.get(tx, SERVICE, image_id))
    try:
        size = store.size(location.url, ctx=SERVICE)
    except errors.StoreError:
        return False
    return image is None or image.size in (None, size)


def _identified(svc: Service, name: str) -> Identified:
    store = svc.stores.get(name)
    if store is None:
        raise errors.NotFound(f"There is no store named {name!r}.")
    if not isinstance(store, Identified):
        raise errors.NotFound(f"Store {name} has no place that could be taken for another one.")
    return store


def _known(svc: Service) -> list[Place]:
    return svc.db.snapshot(db_stores.all_)


def _add(svc: Service, place: Place) -> None:
    svc.db.write(lambda tx: db_stores.add(tx, place, svc.now()), lambda tx, _: place in db_stores.all_(tx))


def _save(svc: Service, place: Place) -> None:
    svc.db.write(lambda tx: db_stores.save(tx, place))


# --- copies that no store serves, or by an old URL --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unserved:
    """Copies that no configured store owns: how many, their store by their records, and their common URL prefix."""

    copies: int
    store: str
    below: str

    def __str__(self) -> str:
        return (
            f"{self.copies} copies of images cannot be read: no configured store is at {self.below} (on record they "
            f"are of store {self.store or '-'}). Configure one there; or, if its files are in another store by now: "
            "calotype store relocate STORE --from DIRECTORY"
        )


def unserved(svc: Service) -> list[Unserved]:
    """Copies that no configured store owns, grouped, the largest group first. Reads all copies on record."""
    flat = [prefix for store in svc.stores if isinstance(store, Identified) for prefix in _prefixes(store)]
    prefixes = [prefix for store in svc.stores for prefix in store.prefixes()]

    def count(tx: Tx) -> Counter[tuple[str, str]]:
        others = (location for _, location in db_stores.other_copies(tx, prefixes, flat))
        return Counter((one.store or "", _below(one.url)) for one in others if svc.stores.of(one) is None)

    counted = svc.db.snapshot(count)
    while len(counted) > _MOST_REPORTED:  # for example if each image has a directory: group by the directory above
        higher: Counter[tuple[str, str]] = Counter()
        for (store, below), number in counted.items():
            higher[store, _above(below)] += number
        if higher == counted:
            break
        counted = higher
    return [Unserved(count, store, below) for (store, below), count in counted.most_common()]


def _below(url: str) -> str:
    """The URL without its last part, and without anything that may be a secret."""
    return _above(without_secrets(url).partition("?")[0])


def _above(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return scheme + mark + str(PurePosixPath(rest).parent)


@dataclass(frozen=True, slots=True)
class Relocation:
    """The result for one copy: it has a new URL (`done`), or the store does not have it in the recorded size."""

    image_id: str
    done: bool


def relocate(svc: Service, name: str, origin: str | None = None, *, change: bool = True) -> Iterator[Relocation]:
    """Change the records of copies that are in this store now: their URL and store. `origin` is their former directory.

    Without `origin` these are the store's known former places. If the store does not have a copy in the recorded size,
    its record stays. Raises `NotFound`, `StoreUnavailable`, and `Invalid` for an `origin` that is no path, or where
    another store is.
    """
    store = _identified(svc, name)
    store.confirm()
    if origin is not None:
        if "://" in origin:
            if not net.is_well_formed(origin):
                raise errors.Invalid("The URL of the place where the store was is malformed.")
            origin = unquote(urlsplit(origin).path)
        origin = os.path.normpath(origin)
        if not os.path.isabs(origin):
            raise errors.Invalid("Where the store was must be a whole path, from / on.")
        for other in svc.stores:
            if other is not store and isinstance(other, Identified) and other.place == origin:
                raise errors.Invalid(f"{origin} is the place of store {other.name}.")
        store.add_former([origin])
        mine = next(place for place in _known(svc) if place.name == name)
        former = tuple(dict.fromkeys((*mine.former, origin)))
        if change and origin != mine.place:
            _save(svc, replace(mine, former=former))
    after = 0
    while rows := svc.db.snapshot(partial(db_stores.copies, prefixes=_prefixes(store), after=after, limit=_BATCH)):
        after = rows[-1][1].id
        for image_id, location in rows:
            named = svc.stores.get(location.store or "")
            if (named is not None and named is not store) or not store.owns(location.url):
                continue
            url = store.current_url(location.url)
            if (url, name) == (location.url, location.store):
                continue
            if not _has(svc, store, image_id, location):
                yield Relocation(image_id, done=False)
                continue
            metadata = {key: value for key, value in location.metadata.items() if key != "backend"} | {"store": name}
            if change:
                move = partial(db_images.move_location, image_id=image_id, before=location, url=url, metadata=metadata)
                svc.db.write(move)
            yield Relocation(image_id, done=True)


def _prefixes(store: Store) -> list[str]:
    return list(store.prefixes())
