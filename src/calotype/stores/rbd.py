"""Images as RBD images in a pool of Ceph, each with the name of its id and a protected snapshot `snap`, as Glance's.

A write goes to an image named `<id>.<attempt>.part`. When all of it is durable and has its snapshot, a change of its
name in the pool's directory makes it final: one step, which never overwrites, and which fails if a cleaner has taken
the temporary name (`rbd_names.py`). What is removed is first given a name that ends in `.aside`; so each name is free
as soon as the data is given up, however long the removal takes.

`librbd.py` calls Ceph's libraries; `patience.py` ends the waiting for calls that hang. An object in the pool has the
store's identity.
"""

import atexit
import contextlib
import json
import logging
import math
import os
import re
import select
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from errno import EACCES, EBUSY, EDQUOT, ENOENT, ENOSPC, ENOTCONN, ENOTEMPTY, EPERM, ESHUTDOWN, ETIMEDOUT
from typing import IO, Any, ClassVar, Final, TypeVar
from urllib.parse import quote, unquote

from oslo_config import cfg

from calotype import errors
from calotype.buffers import BUFFER, Piece
from calotype.context import Context
from calotype.stores import rbd_names as names
from calotype.stores.base import Body, Feature, Health, Identified, Later, Note, Stored, Write
from calotype.stores.librbd import Cluster, Image, Pool, Transfer, Watcher, encoded, failure
from calotype.stores.patience import Patience, StillRunning
from calotype.stores.processes import has_ended, this_process

LOG = logging.getLogger(__name__)

T = TypeVar("T")

OPTIONS: list[cfg.Opt] = [
    cfg.StrOpt("rbd_store_pool", default="images", help="Pool of the images."),
    cfg.StrOpt(
        "rbd_store_data_pool",
        help="Erasure-coded pool for the data of new images; rbd_store_pool then has their names and headers only.",
    ),
    cfg.StrOpt("rbd_store_user", help="Ceph user, without `client.`; default: that of the libraries, admin."),
    cfg.StrOpt(
        "rbd_store_ceph_conf",
        help="Configuration file of Ceph; default: the first one of those that Ceph's libraries look for, such as "
        "/etc/ceph/ceph.conf.",
    ),
    cfg.IntOpt(
        "rbd_store_chunk_size",
        default=8,
        min=1,
        max=32,
        help="Size of the objects that an image is cut into, MiB. One that is not a power of two is rounded down.",
    ),
    cfg.IntOpt("rbd_store_writes", default=8, min=1, max=64, help="Writes of one upload that are under way at once."),
    cfg.BoolOpt("rbd_thin_provisioning", default=False, help="Do not write blocks of zeros."),
    cfg.IntOpt(
        "rados_connect_timeout",
        default=0,
        help="Seconds that Ceph may take for a connection, if connect_timeout is not set; default: 10.",
    ),
]

_SNAPSHOT: Final = "snap"
#: The attribute of an image's header that tells which of our processes, by which connection, changes it or did so last.
_WRITER: Final = "calotype.writer"
_IDENTITY: Final = "calotype_store"  #: The object that holds the identity.
_PART: Final = re.compile(r"[0-9a-fA-F-]{36}\.([0-9a-f]+-[0-9]+)\.part")
_ASIDE: Final = re.compile(r"([0-9a-fA-F-]{36})\..+\.aside")
_UNKNOWN: Final = "00000000-0000-0000-0000-000000000000"  #: What Ceph takes for its cluster if it was not told.
_READ: Final = 1 << 20  #: Bytes of one read.
_AHEAD: Final = 4  #: How many of them are under way, so that a transfer has at most 4 MiB.
_TOGETHER: Final = 2 << 20  #: Bytes of one write, if they come fast enough: fewer, larger writes cost the cluster less.
_LEAST: Final = 16  #: How many pieces an upload may have under way and waiting, at least.
_BLOCK: Final = 256 << 10  #: Granularity of zeros that are not written, bytes.
_ZEROS: Final = bytes(_BLOCK)
_GROWTH: Final = 1 << 30  #: By how much an image of unknown size grows at most, bytes.
_SWEEP_AGE: Final = 60.0  #: Seconds, twice a lease: an upload that just began must not be swept.
_REMOVAL: Final = 30.0  #: How long a caller waits for a removal, seconds. A large image takes longer.
_SIGN_OF_LIFE: Final = 2  #: How long a client may take to confirm that it lives, seconds.
_BLOCKED: Final = 3600  #: How long a dead writer is refused, seconds.
_PAUSES: Final = (0.1, 0.3, 0.6, 1.0, 2.0, 3.0, 3.0)  #: Before a removal is tried again, seconds.
_EXIT: Final = 2.0  #: How long the end of the process waits for that of a connection, seconds.
_CHECK: Final = 1.8  #: How long a check may take, seconds.
_FEATURES: Final = {
    "layering": 1, "striping": 2, "exclusive-lock": 4, "object-map": 8, "fast-diff": 16, "deep-flatten": 32,
}  # fmt: skip
#: Those that an image may be created with. Not journaling: a change of a name would be missing in the journal.
_SERVED: Final = 1 | 4 | 8 | 16 | 32
_FULL: Final = (ENOSPC, EDQUOT)
#: After these a connection is of no more use. A user who was not allowed something may be, by another connection.
_LOST: Final = (ESHUTDOWN, ENOTCONN, ETIMEDOUT, EPERM, EACCES)
_CONNECTIONS: Final = {
    ENOENT: "there is no key for the user",
    EACCES: "the key of the user is not valid",
    EPERM: "the user is not allowed to connect",
}


@dataclass(frozen=True, slots=True)
class _Place:
    """What a location URL says. `fsid` and `pool` are None in URLs of old releases of Glance."""

    fsid: str | None
    pool: str | None
    name: str
    snapshot: str | None


def _parse(url: str) -> _Place | None:
    """The parts of a URL; None if it is not one of RBD."""
    scheme, _, rest = url.partition("://")
    parts = rest.split("/")
    if scheme != "rbd" or re.search(r"[?#\0]", rest):
        return None
    parts = [unquote(part) for part in parts]
    if not all(parts) or any("\0" in part or "/" in part for part in parts):
        return None
    if len(parts) == 1:
        return _Place(None, None, parts[0], None)
    return _Place(*parts) if len(parts) == 4 else None


class _Link:
    """A connection to the cluster with the pool of the store. It is ended when it was given up, and nobody uses it."""

    def __init__(self, cluster: Cluster, pool: Pool, fsid: str) -> None:
        self.cluster = cluster
        self.pool = pool
        self.fsid = fsid
        self.process = os.getpid()
        self.data_pool_checked = False
        self.users = 0
        self.given_up = False
        self._finalizer = weakref.finalize(self, _end, cluster, pool, os.getpid())  # at the latest with its store
        self._finalizer.atexit = False

    def end(self) -> None:
        self._finalizer()


class RbdStore:
    """Images in a pool. Thread-safe."""

    kind = "rbd"
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    timeouts: ClassVar[Collection[str]] = ("connect_timeout", "read_timeout")
    features = frozenset({Feature.READ, Feature.WRITE})

    def __init__(self, name: str, options: Mapping[str, Any], *, description: str = "", weight: int = 0) -> None:
        self.name = name
        self.description = description
        self.weight = weight
        self.identity: str | None = None
        self._pool: str = options["rbd_store_pool"]
        self._data_pool: str | None = options["rbd_store_data_pool"] or None
        self._user: str | None = options["rbd_store_user"] or None
        self._conf: str = options["rbd_store_ceph_conf"] or ""
        self._order = 20 + int(math.log2(options["rbd_store_chunk_size"]))
        self._thin: bool = options["rbd_thin_provisioning"]
        self._writes: int = options["rbd_store_writes"]
        glances = max(0, options["rados_connect_timeout"] or 0)
        self._connect_timeout: float = options.get("connect_timeout") or glances or 10.0
        self._read_timeout: float = options.get("read_timeout") or 60.0
        self._patience = Patience(f"store {name}")
        self._lock = threading.Lock()
        self._current: _Link | None = None
        self._connecting = threading.Lock()
        self._refused: tuple[float, errors.StoreError] | None = None
        self._ends_at_exit = False
        self._looking = threading.Lock()
        self._removing: set[str] = set()  # ids of images; and of those that this process writes
        self._writing: set[str] = set()
        self._sizes: Mapping[str, int] = {}  # bytes of what is in the trash, by id
        self._former: list[tuple[str, str]] = []
        if not self._pool:
            raise errors.ConfigError(f"Store {name}: set rbd_store_pool in section [{name}].")
        if 1 << (self._order - 20) != options["rbd_store_chunk_size"]:
            LOG.warning(
                "store %s: rbd_store_chunk_size is not a power of two; objects have %d MiB",
                name,
                1 << (self._order - 20),
            )
        if self._conf and not os.access(self._conf, os.R_OK):
            raise errors.ConfigError(f"Store {name}: rbd_store_ceph_conf {self._conf} cannot be read.")
        try:
            fsid = self._configured().setting("fsid")
        except (OSError, AttributeError) as exc:
            raise errors.ConfigError(_no_libraries(name, exc)) from exc
        self._fsid = None if fsid == _UNKNOWN else fsid

    # --- the connection ----------------------------------------------------------------------------------

    def _configured(self) -> Cluster:
        """A cluster that is not connected."""
        connect, answer = (str(math.ceil(seconds)) for seconds in (self._connect_timeout, self._read_timeout))
        settings = {
            "client_mount_timeout": connect,
            "rados_mon_op_timeout": connect,
            "rados_osd_op_timeout": answer,
            "rbd_cache": "false",  # nothing is read twice, and what is written is durable when its write has ended
            "rbd_disable_zero_copy_writes": "false",  # pieces do not change until they are released
            "err_to_stderr": "false",
            "log_to_stderr": "false",
        }
        return Cluster(self._user, self._conf or None, settings)

    @contextlib.contextmanager
    def _linked(self) -> Iterator[_Link]:
        """Use the connection. Errors of the libraries become ours, and after some the connection is made again."""
        link = self._take()
        try:
            with self._translated(link):
                yield link
        finally:
            self._give_back(link)

    def _take(self) -> _Link:
        link = self._usable() or self._connect()
        with self._lock:
            link.users += 1
        return link

    def _give_back(self, link: _Link) -> None:
        with self._lock:
            link.users -= 1
            over = link.given_up and not link.users
        if over:
            self._patience.start(link.end)

    def _give_up(self, link: _Link) -> None:
        """Do not use the connection for anything new."""
        with self._lock:
            if self._current is link:
                self._current = None
            over = not link.given_up and not link.users
            link.given_up = True
        if over:
            self._patience.start(link.end)

    def _usable(self) -> _Link | None:
        link = self._current
        # A child cannot use a connection of its parent, nor end it.
        return link if link is not None and link.process == os.getpid() else None

    def _connect(self) -> _Link:
        slow = errors.StoreUnavailable(f"Ceph does not answer within {self._connect_timeout:g} seconds.", self.name)
        begun = time.monotonic()
        if not self._connecting.acquire(timeout=self._connect_timeout):
            raise slow
        try:
            if link := self._usable():
                return link
            if self._refused and begun < self._refused[0]:
                raise self._refused[1]  # it was tried, in vain, while this thread waited
            try:
                link = self._patience.run(self._connected, self._connect_timeout + 0.5, undo=_Link.end)
            except OSError as exc:
                why = _CONNECTIONS.get(exc.errno or 0, os.strerror(exc.errno or 0))
                failure = slow if exc.errno == ETIMEDOUT else errors.StoreUnavailable(
                    f"No connection to Ceph: {why}.", self.name
                )  # fmt: skip
                self._refused = (time.monotonic(), failure)
                raise failure from exc
            self._refused = None
            if not self._ends_at_exit:
                self._ends_at_exit = True
                atexit.register(_end_at_exit, weakref.ref(self))
            with self._lock:
                self._fsid = link.fsid
                self._current = link
            return link
        finally:
            self._connecting.release()

    def _connected(self) -> _Link:
        cluster = self._configured()
        try:
            cluster.connect()
            try:
                pool = cluster.pool(self._pool)
            except FileNotFoundError as exc:
                raise errors.StoreUnavailable(f"Ceph has no pool {self._pool}.", self.name) from exc
            return _Link(cluster, pool, cluster.fsid())
        except BaseException:
            cluster.shutdown()
            raise

    def end_connection(self) -> None:
        """End the connection, unless something uses it; for the end of the process."""
        link = self._usable()
        if link is not None and not link.users:
            self._current = None
            with contextlib.suppress(OSError):
                self._patience.run(link.end, _EXIT)

    def _call(self, call: Callable[[], T], undo: Callable[[T], object] = lambda _: None) -> T:
        """Have the libraries do one thing, for at most the time that the store may take."""
        return self._patience.run(call, self._read_timeout * 1.1 + 0.5, undo)

    @contextlib.contextmanager
    def _translated(self, link: _Link | None = None) -> Iterator[None]:
        """Turn errors of the libraries into ours."""
        try:
            yield
        except OSError as exc:
            if link is not None and exc.errno in _LOST:
                self._give_up(link)
            raise self._error(exc) from exc

    def _error(self, exc: OSError) -> errors.StoreError:
        if exc.errno in _FULL:
            return errors.StoreFull("The store has no room for this image.", self.name)
        if exc.errno == ETIMEDOUT:
            return errors.StoreUnavailable(f"Ceph did not answer for {self._read_timeout:g} seconds.", self.name)
        return errors.StoreUnavailable(f"Ceph failed: {os.strerror(exc.errno or 0)}.", self.name)

    # --- facts -------------------------------------------------------------------------------------------

    def check(self) -> Health:
        if not self._looking.acquire(blocking=False):
            return Health(ok=False, error="Ceph does not answer.")  # to an earlier check

        def look() -> Health:
            try:
                with self._linked() as link:
                    link.pool.changed("rbd_directory")  # asks an OSD; what follows asks monitors only
                    self._check_data_pool(link)
                    free, total = self._room(link)
                    self._count_trash(link)
                self.confirm()
                return Health(ok=True, free=free, total=total)
            finally:
                self._looking.release()

        try:
            return self._patience.run(look, _CHECK, always=True)
        except TimeoutError:
            return Health(ok=False, error=f"Ceph does not answer within {_CHECK:g} seconds.")
        except errors.StoreError as exc:
            return Health(ok=False, error=str(exc))

    def _room(self, link: _Link) -> tuple[int | None, int | None]:
        """Bytes of images that still find room, and all: of the pool that has the data, within its quota.

        None if Ceph does not know, as while it has no manager.
        """
        name = self._data_pool or self._pool
        found = link.cluster.ask(prefix="df", detail="detail")["pools"]
        stats = next((pool["stats"] for pool in found if pool["name"] == name), None)
        if stats is None:
            return None, None
        stored, free = stats["stored"], stats["max_avail"]
        if stats["quota_bytes"]:
            free = max(0, min(free, stats["quota_bytes"] - stored))
        return free, stored + free

    def _check_data_pool(self, link: _Link) -> None:
        """Raise `StoreUnavailable` unless the data pool can take data."""
        name = self._data_pool
        if name is None or link.data_pool_checked:
            return

        def unfit(why: str) -> errors.StoreUnavailable:
            return errors.StoreUnavailable(f"rbd_store_data_pool {name} {why}.", self.name)

        try:
            found = link.cluster.ask(prefix="osd pool get", pool=name, var="all")
            if not found.get("erasure_code_profile"):
                raise unfit("is not erasure-coded; leave the option out")
            if not found.get("allow_ec_overwrites"):
                raise unfit(f"takes no overwrites: ceph osd pool set {name} allow_ec_overwrites true")
            pool = link.cluster.pool(name)
            with contextlib.closing(pool):
                pool.remove("calotype_probe")  # which does not exist; asks whether this may be written
        except FileNotFoundError as exc:
            raise unfit("does not exist") from exc
        except PermissionError as exc:
            self._give_up(link)  # what a connection is allowed is settled when it is made
            raise unfit(f"may not be written: the user needs osd 'profile rbd pool={name}'") from exc
        link.data_pool_checked = True

    def details(self) -> Mapping[str, Any]:
        found: dict[str, Any] = {
            "chunk_size": 1 << self._order,
            "pool": self._pool,
            "thin_provisioning": self._thin,
            "fsid": self._fsid,
        }
        if self._data_pool:
            found["data_pool"] = self._data_pool
        if sizes := self._sizes:
            found["trash"] = {"images": len(sizes), "bytes": sum(sizes.values())}
        return found

    def owns(self, url: str) -> bool:
        place = _parse(url)
        return place is not None and self._is_here(place)

    def _is_here(self, place: _Place) -> bool:
        if place.fsid is None:
            return True
        if (place.fsid, place.pool) in self._former:
            return True
        return place.pool == self._pool and self._fsid in (None, place.fsid)

    def prefixes(self) -> Sequence[str]:
        if self._fsid is None:
            with contextlib.suppress(errors.StoreError), self._linked():
                pass  # this finds it out
        own = [(self._fsid, self._pool)] if self._fsid else []
        return [_prefix(fsid, pool) for fsid, pool in (*own, *self._former)] or ["rbd://"]

    def _url(self, name: str) -> str:
        return f"{_prefix(self._fsid or '', self._pool)}{quote(name, '')}/{_SNAPSHOT}"

    def _meant(self, url: str) -> _Place:
        """The place of a URL. Raises `StoreError` if it is elsewhere, by the text or by the cluster's own id."""
        place = _parse(url)
        if place is not None and self._fsid is None and place.fsid is not None:
            with self._linked():
                pass
        if place is None or not self._is_here(place):
            raise errors.StoreError("The location is not in this store.", self.name)
        return place

    # --- identity ----------------------------------------------------------------------------------------

    @property
    def place(self) -> str:
        return _prefix(self._fsid, self._pool).rstrip("/") if self._fsid else f"pool {self._pool}"

    def overlap(self, other: Identified) -> str | None:
        if not isinstance(other, RbdStore) or self._pool != other._pool:
            return None
        if self._fsid and other._fsid:
            same = self._fsid == other._fsid
        else:
            same = self._conf == other._conf
        return "are on the same pool; give each its own" if same else None

    def found_identity(self) -> str | None:
        with self._linked() as link:
            data = self._call(lambda: link.pool.read(_IDENTITY))
        try:
            return None if data is None else str(json.loads(data)["identity"])
        except (ValueError, KeyError, TypeError) as exc:
            raise errors.StoreUnavailable(
                f"The object {_IDENTITY} cannot be read as what it should be.", self.name
            ) from exc

    def establish(self, identity: str) -> None:
        about = "Which store of Calotype this pool is. Keep this object: without it nothing is stored here."
        data = json.dumps({"identity": identity, "about": about}).encode()
        with self._linked() as link:
            self._call(lambda: link.pool.write(_IDENTITY, data))

    def is_empty(self) -> bool:
        with self._linked() as link:
            return not self._call(link.pool.images)

    def confirm(self) -> None:
        found = self.found_identity()
        if self.identity is None:
            raise errors.StoreUnavailable(
                f"Store {self.name} was not taken into use: the operator decides, by calotype store list.", self.name
            )
        if found is None:
            raise errors.StoreUnavailable(f"The pool of store {self.name} has lost its identity.", self.name)
        if found != self.identity:
            raise errors.StoreUnavailable(
                f"The pool of store {self.name} carries the identity of another store.", self.name
            )

    def add_former(self, places: Iterable[str]) -> None:
        for one in places:
            found = _parse(f"{one}/x/x")
            if found is not None and found.fsid and found.pool and (found.fsid, found.pool) not in self._former:
                self._former.append((found.fsid, found.pool))

    def current_url(self, url: str) -> str:
        return self._url(self._meant(url).name)

    # --- writing -----------------------------------------------------------------------------------------

    def begin(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> Write:
        self.confirm()
        part = f"{image_id}.{attempt}.part"
        with contextlib.ExitStack() as ending:
            link = ending.enter_context(self._linked())
            self._call(lambda: self._check_data_pool(link))
            if self._call(lambda: self._has(link, image_id)):
                raise errors.AlreadyStored("The store already holds an object of this name.", self.name)
            free, _ = self._call(lambda: self._room(link))
            if free is not None and free < max(1, size or 0):
                raise errors.StoreFull("The store has no room for this image.", self.name)
            features = _features(link.cluster.setting("rbd_default_features"))

            def create() -> tuple[str, Image]:
                link.pool.create(part, size or 0, features=features, order=self._order, data_pool=self._data_pool)
                found = names.id_of(link.pool, part)
                if found is None:
                    raise FileNotFoundError(ENOENT, "the new image is gone")
                self._claim(link, found)
                return found, link.pool.open_id(found)

            def undo(made: tuple[str, Image]) -> None:
                made[1].close()
                self._remove_attempt(link, made[0], part)

            try:
                internal, image = self._call(create, undo)
            except FileExistsError:  # left by an earlier call with the same attempt
                self.clean(image_id, attempt, None)
                internal, image = self._call(create, undo)
            except OSError as exc:
                if exc.errno != ETIMEDOUT:  # else the caller's `clean` removes it, when Ceph answers again
                    self.clean(image_id, attempt, None)
                raise
            self._writing.add(internal)
            write = _RbdWrite(self, link, image, internal, image_id, part, size, note)
            write.keep(ending.pop_all())
            return write

    def _has(self, link: _Link, name: str) -> bool:
        """Whether there is an image of this name. A name that leads nowhere is removed."""
        found = names.id_of(link.pool, name)
        if found is not None and names.clear(link.pool, found, name):
            found = None
        return found is not None or names.listed_id(link.pool, name) is not None

    # --- reading -----------------------------------------------------------------------------------------

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        with contextlib.ExitStack() as ending:
            link, image, proof = self._opened(url, ending)
            size = image.size()
            length = max(size - offset, 0) if length is None else length
            if offset + length > size:
                raise errors.StoreError("The object is shorter than its record says.", self.name)
            return _RbdBody(self, link, image, offset, length, proof, ending.pop_all())

    def size(self, url: str, *, ctx: Context) -> int:
        with contextlib.ExitStack() as ending:
            _, image, _ = self._opened(url, ending)
            return image.size()

    def _opened(self, url: str, ending: contextlib.ExitStack) -> tuple[_Link, Image, Callable[[], bool]]:
        """The image of a URL, open for reading until `ending`, and how to ask whether its data is still there."""
        place = self._meant(url)
        link = ending.enter_context(self._linked())

        def open_() -> tuple[Image, str, int | None]:
            found = names.id_of(link.pool, place.name)
            if found is None:
                raise FileNotFoundError(ENOENT, "there is no such image")
            image = link.pool.open_reading(found, place.snapshot)
            try:
                return image, found, image.snapshot_id(place.snapshot) if place.snapshot else None
            except BaseException:
                image.close()
                raise

        try:
            image, internal, snapshot = self._call(open_, lambda late: late[0].close())
        except FileNotFoundError as exc:
            raise errors.Missing("The image's data is not in the store.", self.name) from exc
        ending.callback(self._close, image)

        def is_there() -> bool:
            try:
                if snapshot is None:
                    return link.pool.changed(names.header(internal)) is not None
                link.pool.execute(names.header(internal), "get_snapshot_name", struct.pack("<Q", snapshot))
            except FileNotFoundError:
                return False
            return True

        return link, image, is_there

    def _close(self, image: Image) -> None:
        """Close an image, without waiting for what hangs."""

        def close() -> None:
            try:
                image.close()
            except OSError as exc:
                LOG.info("store %s: an image was not closed well: %s", self.name, exc)

        with contextlib.suppress(TimeoutError):
            self._patience.run(close, 0.2 if image.under_way else self._read_timeout)

    # --- removing ----------------------------------------------------------------------------------------

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> Later | None:
        place = self._meant(url)
        self.confirm()
        with self._linked() as link:
            found = self._call(lambda: names.id_of(link.pool, place.name))
            if object_id is not None and found != object_id:
                aside = _aside(place.name, object_id)
                if self._call(lambda: _is_aside(link.pool, object_id, aside)):
                    found = object_id  # its removal was begun, and interrupted
                elif self._call(lambda: names.clear(link.pool, object_id, aside)):
                    return None  # the same, and no more than this was left
                elif found is not None:
                    raise errors.Replaced("Another object has the name of the image's data.", self.name)
            if found is None:
                raise errors.Missing("The image's data is not in the store.", self.name)
            if found in self._removing:
                return Later(5)
            aside = self._call(lambda: self._free(link, found, place.name))
            return None if self._finish(link, found, aside) else Later(5)

    def clean(self, image_id: str, attempt: str, note: str | None) -> None:
        part = f"{image_id}.{attempt}.part"
        self.confirm()
        with self._linked() as link:
            asked = (names.id_of, names.listed_id)
            found = self._call(lambda: [ask(link.pool, name) for name in (part, f"{part}.aside") for ask in asked])
            trashed = [one.id for one in self._call(link.pool.trashed) if one.name == f"{part}.aside"]
            for internal in dict.fromkeys(one for one in (*found, *trashed, note) if one):
                self._remove_attempt(link, internal, part, final=image_id if internal == note else None)

    def _remove_attempt(self, link: _Link, internal: str, part: str, *, final: str | None = None) -> None:
        """Remove the image that an attempt has written, if it has the name `part`, `final` or one to be removed."""
        asides = {part: f"{part}.aside"} | ({final: _aside(final, internal)} if final else {})

        def take() -> str | None:
            """Take its name, so that it never becomes final. Returns the new one, None if there is no such image."""
            while (name := names.name_of(link.pool, internal)) in asides and name is not None:
                with contextlib.suppress(FileNotFoundError):  # its writer has made it final at this moment
                    names.move(link.pool, internal, name, asides[name])
            for one in asides:
                link.pool.remove(f"rbd_id.{one}", encoded(internal))  # a move was interrupted
            trashed = (one.name for one in link.pool.trashed() if one.id == internal)
            name = name or next(trashed, None)
            return name if name in asides.values() else None

        name = self._call(take)
        done = name is None or self._finish(link, internal, name)
        if done:
            self._call(lambda: [names.clear(link.pool, internal, one) for one in asides.values()])
        elif done is False and internal not in self._writing:  # else its writer removes it when it finds out
            raise errors.StoreUnavailable("The data of an upload that was given up is still open.", self.name)

    def _free(self, link: _Link, internal: str, name: str) -> str:
        """Take the name of an object that is to be removed, and return its new one. Raises `InUse`."""
        aside = _aside(name, internal)
        if _is_aside(link.pool, internal, aside):  # it was begun before, and interrupted
            link.pool.remove(f"rbd_id.{name}", encoded(internal))
            return aside
        if link.pool.changed(names.header(internal)) is not None:
            with contextlib.closing(link.pool.open_reading(internal)) as image:
                watchers, snapshots = image.watchers(), image.snapshots()
            if self._living(link, internal, watchers):
                raise errors.InUse("The image's data is open in another program.", self.name)
            self._claim(link, internal)
            if any(one.name == _SNAPSHOT for one in snapshots):
                with contextlib.closing(link.pool.open_id(internal)) as image:
                    try:
                        image.unprotect(_SNAPSHOT)
                    except OSError as exc:
                        if exc.errno == EBUSY:
                            raise errors.InUse("There are clones of the image's data.", self.name) from exc
                        raise
        try:
            names.move(link.pool, internal, name, aside)
        except FileNotFoundError as exc:
            names.clear(link.pool, internal, name)
            if names.name_of(link.pool, internal) != aside:
                raise errors.Missing("The image's data is not in the store.", self.name) from exc
        return aside

    def _finish(self, link: _Link, internal: str, name: str) -> bool | None:
        """Remove an image that has a name to be removed. False if somebody has it open, None if it takes longer."""
        with self._lock:
            if internal in self._removing:
                return None
            self._removing.add(internal)
            link.users += 1

        def finish() -> bool:
            try:
                return self._remove(link, internal, name)
            finally:
                with self._lock:
                    self._removing.discard(internal)
                self._give_back(link)

        try:
            return self._patience.run(finish, _REMOVAL, always=True)
        except StillRunning:
            return None

    def _remove(self, link: _Link, internal: str, name: str) -> bool:
        """Remove an image that has this name, or had it and is in the trash; False if somebody has it open.

        It goes by way of the trash, as librbd itself does it, and stays there while clones need it.
        """
        pool, needed = link.pool, False
        if pool.changed(names.header(internal)) is not None:
            with contextlib.closing(pool.open_reading(internal)) as image:
                watchers, snapshots = image.watchers(), image.snapshots()
            if internal in self._writing or self._living(link, internal, watchers):
                return False
            self._claim(link, internal)
            if snapshots:
                with contextlib.closing(pool.open_id(internal)) as image:
                    _drop_snapshots(image)
                    needed = bool(image.snapshots())
            if names.name_of(pool, internal) == name:
                names.settle(pool, internal, name)
                if not _unless_busy(lambda: pool.trash(name)):
                    return False
        if needed:
            return True  # `sweep` removes it when it is not needed any more
        if not _unless_busy(lambda: pool.purge(internal)):
            return False
        names.forget(pool, internal, name)
        return True

    def _claim(self, link: _Link, internal: str) -> None:
        """Write down that this process changes the image. So another one can tell, when this one is dead."""
        mark = this_process() + f" {link.cluster.instance()}".encode()
        link.pool.set_mark(names.header(internal), _WRITER, mark)

    def _living(self, link: _Link, internal: str, watchers: Sequence[Watcher]) -> list[Watcher]:
        """Those who have an image open, without this process and without one of ours that is dead.

        The dead one is shut out of the cluster, which would take it for alive for half a minute.
        """
        found = [one for one in watchers if one.instance != link.cluster.instance()]
        mark = link.pool.mark(names.header(internal), _WRITER) if found else None
        if mark is None:
            return found
        process, _, instance = mark.rpartition(b" ")
        for one in found:
            if str(one.instance).encode() != instance:
                continue
            if has_ended(process) or one.instance in link.pool.silent(names.header(internal), _SIGN_OF_LIFE):
                LOG.warning("store %s: the dead client %s is shut out of the cluster", self.name, one.address)
                link.cluster.blocklist(one.address, _BLOCKED)
                return [other for other in found if other != one]
        return found

    def sweep(self, lives: Callable[[str], bool]) -> int:
        swept = 0
        self.confirm()
        with self._linked() as link:
            for name, internal in self._call(link.pool.images):
                part, aside = _PART.fullmatch(name), _ASIDE.fullmatch(name)
                if not (part or aside):
                    continue
                made = self._call(lambda name=name: link.pool.changed(f"rbd_id.{name}"))  # type: ignore[misc]
                if made is not None and time.time() - made <= _SWEEP_AGE:
                    continue
                if aside:
                    swept += self._finish(link, internal, name) is True
                elif part and not lives(part[1]):
                    self._remove_attempt(link, internal, name)
                    swept += 1
            for one in self._call(link.pool.trashed):
                if _ASIDE.fullmatch(one.name) and self._call(lambda one=one: self._purge(link, one.id)):  # type: ignore[misc]
                    LOG.info("store %s: image %s, which clones needed, is removed", self.name, one.name)
        return swept

    def _purge(self, link: _Link, internal: str) -> bool:
        """Remove an image in the trash, unless clones need it. Returns whether it did."""
        try:
            with contextlib.closing(link.pool.open_id(internal)) as image:
                _drop_snapshots(image)
            link.pool.purge(internal)
        except OSError as exc:
            if exc.errno in (EBUSY, ENOTEMPTY, ENOENT):
                return False
            raise
        return True

    def _count_trash(self, link: _Link) -> None:
        """Count what was deleted, and is kept in the trash because clones need it."""
        known, sizes = self._sizes, {}
        for one in link.pool.trashed():
            if not _ASIDE.fullmatch(one.name):
                continue
            if one.id not in known:
                with contextlib.suppress(FileNotFoundError):
                    image = link.pool.open_reading(one.id)
                    sizes[one.id] = image.size()
                    image.close()
            else:
                sizes[one.id] = known[one.id]
        self._sizes = sizes


# --- reading and writing ---------------------------------------------------------------------------------


class _RbdBody:
    """`Body` of an image. A few reads are under way ahead of the reader."""

    def __init__(
        self,
        store: RbdStore,
        link: _Link,
        image: Image,
        offset: int,
        length: int,
        is_there: Callable[[], bool],
        ending: contextlib.ExitStack,
    ) -> None:
        """`ending` closes the image. `is_there` tells whether it was deleted: deleted data reads as zeros."""
        self.size = length
        self._store = store
        self._link = link
        self._image = image
        self._offset = offset
        self._end = offset + length
        self._is_there = is_there
        self._ending = ending
        self._cancelled = False

    def __iter__(self) -> Iterator[bytes]:
        ahead: deque[tuple[int, Transfer]] = deque()
        while True:
            if self._cancelled:
                raise errors.Cancelled("The read was cancelled.", self._store.name)
            with self._store._translated(self._link):
                while self._offset < self._end and len(ahead) < _AHEAD:
                    size = min(_READ - self._offset % _READ, self._end - self._offset)
                    ahead.append((size, self._image.read(self._offset, size)))
                    self._offset += size
                if not ahead:
                    return
                size, transfer = ahead.popleft()
                self._wait(transfer)
                if transfer.result < 0:
                    raise failure(transfer.result, "read")
                if transfer.result != size:
                    raise errors.StoreError("The object ended before its recorded size.", self._store.name)
                if self._offset >= self._end and not ahead and not self._store._call(self._is_there):
                    raise errors.Missing("The object was deleted meanwhile.", self._store.name)
            data, transfer.kept = transfer.kept, None
            yield data

    def _wait(self, transfer: Transfer) -> None:
        """Wait until a read has ended."""
        watched, event = select.poll(), self._image.events()
        watched.register(event, select.POLLIN)
        until = time.monotonic() + self._store._read_timeout
        while not transfer.ended:
            watched.poll(max(0.0, until - time.monotonic()) * 1000)
            self._image.collect()
            if self._cancelled:
                raise errors.Cancelled("The read was cancelled.", self._store.name)
            if not transfer.ended and time.monotonic() >= until:
                raise TimeoutError(ETIMEDOUT, "no data came")

    def file(self) -> IO[bytes] | None:
        return None

    def cancel(self) -> None:
        self._cancelled = True
        self._image.wake()

    def close(self) -> None:
        self._ending.close()


class _Lent:
    """A piece that is being written in so many parts."""

    def __init__(self, piece: Piece, parts: int) -> None:
        self.piece = piece
        self.parts = parts


@dataclass(slots=True)
class _Part:
    """A part of a piece, and its place in the image, in bytes."""

    lent: _Lent
    view: memoryview
    offset: int

    @property
    def end(self) -> int:
        return self.offset + len(self.view)


class _RbdWrite:
    """`Write` of one image.

    Parts that arrive while writes are under way wait until there are `_TOGETHER` bytes of them, or until a write has
    ended, and are sent together, up to the end of an object. A thread of its own collects the writes that have ended.
    """

    def __init__(
        self,
        store: RbdStore,
        link: _Link,
        image: Image,
        internal: str,
        image_id: str,
        part: str,
        size: int | None,
        note: Note,
    ) -> None:
        self.window = max(_LEAST, store._writes * _TOGETHER // BUFFER)
        self._store = store
        self._link = link
        self._image = image
        self._internal = internal
        self._image_id = image_id
        self._name = part
        self._note = note
        self._capacity = size or 0
        self._written = 0
        self._changed = threading.Condition()  # its lock is held while what follows is used
        self._waiting: deque[_Part] = deque()
        self._sent: dict[int, list[_Part]] = {}
        self._failure: BaseException | None = None
        self._progress = time.monotonic()
        self._collector: threading.Thread | None = None
        self._over = False
        self._is_open = True
        self._ended = False
        self._ending = contextlib.ExitStack()

    def keep(self, ending: contextlib.ExitStack) -> None:
        """What to close at the end."""
        self._ending = ending

    # --- pieces ------------------------------------------------------------------------------------------

    def put(self, piece: Piece) -> None:
        store, end = self._store, self._written + len(piece.view)
        with store._translated(self._link):
            self._raise_failure()
            if end > self._capacity:
                step = min(max(self._capacity, 1 << store._order), _GROWTH)
                capacity = max(end, self._capacity + step)
                store._call(lambda: self._image.resize(capacity))
                self._capacity = capacity
            spans = _spans(piece.view, self._written) if store._thin else [(0, len(piece.view))]
            lent = _Lent(piece, len(spans))
            parts = [_Part(lent, piece.view[first:last], self._written + first) for first, last in spans]
            with self._changed:
                if self._collector is None and parts:
                    self._collector = threading.Thread(target=self._collect, name=f"store {store.name}", daemon=True)
                    try:
                        self._collector.start()
                    except RuntimeError as exc:
                        self._collector = None
                        raise errors.StoreBusy("The system gives no thread for the store.", store.name) from exc
                self._waiting.extend(parts)
                self._send()
                self._changed.notify_all()
        self._written = end
        if not parts:
            piece.release()

    def _send(self) -> None:
        """Send what waits, as far as that is allowed."""
        while self._waiting and len(self._sent) < self._store._writes and self._failure is None:
            if self._sent and self._waiting[-1].end - self._waiting[0].offset < _TOGETHER:
                return  # more may come until a write ends
            first = self._waiting.popleft()
            parts, end = [first], first.end
            stop = ((first.offset >> self._store._order) + 1) << self._store._order
            while self._waiting and self._waiting[0].offset == end and self._waiting[0].end <= stop:
                parts.append(self._waiting.popleft())
                end = parts[-1].end
            if not self._sent:
                self._progress = time.monotonic()
            try:
                transfer = self._image.write(first.offset, [one.view for one in parts])
            except OSError as exc:
                self._waiting.extendleft(reversed(parts))
                self._failure = exc
            else:
                self._sent[id(transfer)] = parts

    def _collect(self) -> None:
        """Collect the writes that have ended, until the end."""
        watched, patience = select.poll(), self._store._read_timeout * 1.1 + 0.5
        watched.register(self._image.events(), select.POLLIN)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._sent or self._over)
                if self._over:
                    return
            watched.poll(min(patience, 1.0) * 1000)
            found = self._image.collect()
            with self._changed:
                done = [part for transfer in found for part in self._settle(transfer)]
                if found:
                    self._progress = time.monotonic()
                elif time.monotonic() - self._progress > patience:
                    self._failure = self._failure or TimeoutError(ETIMEDOUT, "no write has ended")
                    self._over = True
                self._send()
                if self._failure is not None:
                    done += self._drop()
                self._changed.notify_all()
            self._release(done)
            del found, done  # nothing may look at the pieces any more

    def _settle(self, transfer: Transfer) -> list[_Part]:
        transfer.kept = None
        if transfer.result < 0 and self._failure is None:
            self._failure = failure(transfer.result, "write")
        return self._sent.pop(id(transfer))

    def _drop(self) -> list[_Part]:
        """What is not to be sent any more."""
        parts = list(self._waiting)
        self._waiting.clear()
        return parts

    @staticmethod
    def _release(parts: Iterable[_Part]) -> None:
        for one in parts:
            one.view.release()
            one.lent.parts -= 1
            if not one.lent.parts:
                one.lent.piece.release()

    def _raise_failure(self) -> None:
        if isinstance(self._failure, FileNotFoundError):
            raise errors.Gone("The upload was given up while data was arriving.") from self._failure
        if self._failure is not None:
            raise self._failure

    def _wait(self) -> None:
        """Wait until nothing is under way, or until there was no progress for too long."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or not (self._sent or self._waiting))

    # --- the end -----------------------------------------------------------------------------------------

    def commit(self) -> Stored:
        store, pool, image = self._store, self._link.pool, self._image
        self._wait()
        try:
            with store._translated(self._link):
                self._raise_failure()
                store._call(image.flush)
                if self._capacity != self._written:
                    store._call(lambda: image.resize(self._written))
                store._call(lambda: image.take_snapshot(_SNAPSHOT))
                self._close()
                self._note(self._internal)  # by this a cleaner finds the object once it is final
                try:
                    store._call(lambda: names.move(pool, self._internal, self._name, self._image_id))
                except FileExistsError as exc:
                    raise errors.AlreadyStored("The store already holds an object of this name.", store.name) from exc
                except FileNotFoundError as exc:
                    raise errors.Gone("The upload was given up while data was arriving.") from exc
        except errors.StoreUnavailable as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                raise errors.Gone("The upload was given up while data was arriving.") from exc
            raise
        self._end()
        return Stored(store._url(self._image_id), self._written, object_id=self._internal)

    def abort(self) -> None:
        if self._ended:
            return
        with self._changed:
            self._failure = self._failure or errors.Gone("The upload was given up.")
            dropped = self._drop()
        self._release(dropped)
        try:
            self._wait()
            with self._store._translated(self._link):
                self._close()
                self._store._remove_attempt(self._link, self._internal, self._name, final=self._image_id)
        finally:
            self._end()

    def _close(self) -> None:
        """Close the image, and end the thread."""
        if not self._is_open:
            return
        self._is_open = False
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._image.wake()
        if self._collector is not None:
            self._collector.join()
        self._store._close(self._image)
        self._store._writing.discard(self._internal)

    def _end(self) -> None:
        self._ended = True
        try:
            self._close()
            with self._changed:
                stuck = [part for parts in self._sent.values() for part in parts]
                self._sent.clear()
            for one in stuck:  # their memory is not used again while the library looks at it
                one.lent.piece.release()
        finally:
            self._ending.close()


# --- helpers ---------------------------------------------------------------------------------------------


def _end(cluster: Cluster, pool: Pool, process: int) -> None:
    if process == os.getpid():
        pool.close()
        cluster.shutdown()


def _end_at_exit(known: "weakref.ref[RbdStore]") -> None:
    """Threads of the libraries that still run when the C library cleans up end the process with an error."""
    store = known()
    if store is not None:
        store.end_connection()


def _prefix(fsid: str, pool: str) -> str:
    return f"rbd://{quote(fsid, '')}/{quote(pool, '')}/"


def _aside(name: str, internal: str) -> str:
    """The name of an image that is being removed."""
    return f"{name}.{internal}.aside"


def _is_aside(pool: Pool, internal: str, aside: str) -> bool:
    """Whether an image is being removed: it has this name, or had it before it went to the trash."""
    return names.name_of(pool, internal) == aside or any(
        (one.id, one.name) == (internal, aside) for one in pool.trashed()
    )


def _unless_busy(remove: Callable[[], object]) -> bool:
    """Do this to an image that may be gone already; False if somebody has it open."""
    for pause in (*_PAUSES, None):
        try:
            remove()
        except FileNotFoundError:
            return True
        except OSError as exc:
            if exc.errno != EBUSY:
                raise
            if pause is None:
                return False
            time.sleep(pause)  # who was shut out, or has just closed it, may still be listed
        else:
            return True
    return False


def _drop_snapshots(image: Image) -> None:
    """Remove our snapshot, and removed ones that no clone needs any more. Others stay."""
    for one in image.snapshots():
        try:
            if one.name == _SNAPSHOT and not one.removed:
                image.unprotect(one.name)
                image.remove_snapshot(one)
            elif one.removed:
                image.remove_snapshot(one)
        except OSError as exc:
            if exc.errno != EBUSY:
                raise


def _spans(view: memoryview, offset: int) -> list[tuple[int, int]]:
    """The parts of a piece that are to be written: all but blocks of zeros, counted from the start of the image."""
    found: list[tuple[int, int]] = []
    first = 0
    while first < len(view):
        last = min(first + _BLOCK - (offset + first) % _BLOCK, len(view))
        if view[first:last] != _ZEROS[: last - first]:
            if found and found[-1][1] == first:
                found[-1] = found[-1][0], last
            else:
                found.append((first, last))
        first = last
    return found


def _features(setting: str) -> int:
    """The features of new images: Ceph's setting, as a number or as names; without one, that all clients can use."""
    if setting.isdigit():
        found = int(setting)
    else:
        found = sum(_FEATURES.get(name.strip(), 0) for name in setting.split(","))
    return found & _SERVED or _FEATURES["layering"]


def _no_libraries(store: str, exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.errno:
        return f"Store {store}: the configuration of Ceph cannot be read: {os.strerror(exc.errno)}."
    return (
        f"Store {store}: stores of type rbd need librbd.so.1 and librados.so.2 of Ceph 16 or later; on Debian, Ubuntu, "
        f"Fedora and their kin install the package librbd1 ({exc})."
    )
