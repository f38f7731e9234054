"""Images as objects in Swift, each named by its image id, as Glance lays them out.

A small image is one object. A large one has segments, which several threads send at once (`parts.py`), in the same
container. A static large object of the image's name joins them: its manifest lists them with their hashes.

| Name | What it is |
|---|---|
| `<id>` | the image: data, or a manifest. Metadata of the object tells the attempt that wrote it |
| `<id>.<attempt>` | an empty object, the mark of an upload that is under way |
| `<id>.<attempt>-00001` | a segment |
| `<id>.<attempt>-m00001` | a manifest that others list, where one is not enough |
| `<id>-00001` | a segment of Glance |

The mark stops a writer that was given up. `clean` removes it first. The writer makes its object final, and then removes
the mark: if there was none, it removes its object again. A static large object cannot be made without its segments
either. Marks and segments of an unfinished upload expire by themselves. The segments lose their expiry before the
manifest is written, so those of an image never expire.

`swift_write.py` writes an image, `swift_read.py` reads one. `swift_objects.py` lists and removes objects,
`swift_account.py` sends the requests, `swift_options.py` has the options.
"""

import contextlib
import itertools
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import quote, unquote

from oslo_config import cfg

from calotype import errors, net
from calotype.buffers import Budget
from calotype.context import Context
from calotype.stores.base import Body, Feature, Health, Later, Note, Write
from calotype.stores.parts import HEAD
from calotype.stores.swift_account import Account, Network
from calotype.stores.swift_objects import ATTEMPT, GLANCES, NAME, OURS, Entry, Place, image_of, pages
from calotype.stores.swift_options import OPTIONS, UNIT, logins
from calotype.stores.swift_read import length_of, open_
from calotype.stores.swift_write import Plan, SwiftWrite
from calotype.threads import ThreadPool

LOG = logging.getLogger(__name__)

_READ_TIMEOUT: Final = 60.0
#: How long what Swift tells of its limits is kept, seconds; and that it tells nothing.
_LIMITS_KEPT: Final = 3600.0
_LIMITS_UNKNOWN: Final = 60.0
#: A writer may have died with its last request on the way: how long `clean` waits for that, seconds.
_SETTLE: Final = 1.0
#: How long a delete removes segments before it says that it is not done, and when it goes on, seconds.
_DELETE_TIME: Final = 20.0
_DELETE_PAUSE: Final = 2.0
_CHECK_TIME: Final = 1.8
#: The age from which what is left is swept, seconds: of our uploads, twice a lease; of Glance's, which leave no mark.
_SWEEP_AGE: Final = 60.0
_GLANCE_AGE: Final = 86400.0

#: How far a write is, by its note: from the second one on its object may become final.
_BEGUN: Final = "begun"
_ENDING: Final = "ending"

_SILENT: Final = Health(ok=False, error="The store does not answer.")
_OLD: Final = re.compile(r"(swift|swift\+http|swift\+https)://(?:(.*)@)?([^@]*)")
_TENANTS: Final = re.compile(r"swift\+(https?://[^/?#@]+(?:/[^/?#]+)+)")


@dataclass(frozen=True, slots=True)
class _Limits:
    """What Swift allows, with the defaults of Swift: bytes of an object, segments in a manifest, bytes of a segment."""

    size: int = 5 << 30
    segments: int = 1000
    least: int = 1
    static: bool = True  #: whether it has static large objects


class SwiftStore:
    """Images in containers of Swift. Thread-safe."""

    kind = "swift"
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    timeouts: ClassVar[Collection[str]] = ("connect_timeout", "read_timeout")
    features = frozenset({Feature.READ, Feature.WRITE})

    def __init__(self, name: str, options: Mapping[str, Any], *, description: str = "", weight: int = 0) -> None:
        self.name = name
        self.description = description
        self.weight = weight
        self._at_once: int = options["swift_store_thread_pool_size"]
        self.network = Network(
            options.get("connect_timeout") or net.CONNECT_TIMEOUT,
            options.get("read_timeout") or _READ_TIMEOUT,
            ca_file=options["swift_store_cacert"],
            insecure=options["swift_store_auth_insecure"],
            region=options["swift_store_region"],
            interface=options["swift_store_endpoint_type"].removesuffix("URL"),
            service_type=options["swift_store_service_type"],
            endpoint=options["swift_store_endpoint"],
        )
        threads = ThreadPool(max(128, 4 * self._at_once), name="swift")
        self._accounts = {
            reference: Account(name, login, self.network, threads) for reference, login in logins(name, options).items()
        }
        self._reference: str = options["default_swift_reference"]
        self._account = self._accounts[self._reference]
        self._container: str = options["swift_store_container"]
        if not self._container or "/" in self._container or len(self._container) > 200:
            raise errors.ConfigError(f"Store {name}: swift_store_container must be a name without a slash.")
        self._seed: int = options["swift_store_multiple_containers_seed"]
        self._tenants: bool = options["swift_store_multi_tenant"]
        self._create: bool = options["swift_store_create_container_on_put"] or self._tenants
        self._admins: Sequence[str] = options["swift_store_admin_tenants"]
        self._large: int = options["swift_store_large_object_size"] * UNIT
        self._chunk: int = options["swift_store_large_object_chunk_size"] * UNIT
        self._resumes: int = options["swift_store_retry_get_count"]
        self._memory: Budget = options["part_memory"]
        self._known: tuple[float, _Limits] | None = None
        self._checking = threading.Lock()
        try:
            self.network.prepare()
        except OSError as exc:
            raise errors.ConfigError(
                f"Store {name}: swift_store_cacert cannot be read, or holds no certificate."
            ) from exc

    # --- facts -------------------------------------------------------------------------------------------

    def check(self) -> Health:
        # In a thread, because Swift, Keystone and the names of both may each take their time.
        if not self._checking.acquire(blocking=False):
            return _SILENT
        found: list[Health] = []
        done = threading.Event()

        def run() -> None:
            try:
                found.append(self._health())
            except errors.StoreError as exc:
                found.append(Health(ok=False, error=str(exc)))
            finally:
                self._checking.release()
                done.set()

        try:
            self._account.threads.submit(run)
        except RuntimeError:
            self._checking.release()
            return Health(ok=False, error="The system gives no thread to ask the store.")
        done.wait(_CHECK_TIME)
        return found[0] if found else _SILENT

    def _health(self) -> Health:
        rooms = [_room(self._account.request("HEAD", tries=1).headers, "Account")]
        if not self._tenants and not self._seed:
            reply = Place(self._account, self._container).request("HEAD", allowed=(404,), tries=1)
            if reply.status == 404 and not self._create:
                return Health(ok=False, error="The container is missing.")
            rooms.append(_room(reply.headers, "Container"))
        known = [room for room in rooms if room is not None]
        free, total = min(known) if known else (None, None)
        return Health(ok=True, free=free, total=total)

    def details(self) -> Mapping[str, Any]:
        return {
            "container": self._container,
            "large_object_size": self._large,
            "large_object_chunk_size": self._chunk,
            "thread_pool_size": self._at_once,
            "multi_tenant": self._tenants,
        }

    def owns(self, url: str) -> bool:
        return self._find(url) is not None

    def prefixes(self) -> Sequence[str]:
        if self._tenants:
            return ["swift+https://", "swift+http://"]
        end = "_" if self._seed else "/"
        ours = [f"swift+config://{one}/{quote(self._container, safe='')}{end}" for one in self._accounts]
        tenants = {account.login.tenant for account in self._accounts.values()} - {""}
        old = [f"{scheme}://{quote(one)}" for one in tenants for scheme in ("swift+https", "swift+http", "swift")]
        return ours + old

    def _find(self, url: str) -> Place | None:
        """Where an object is by its location; None if that is not in this store. Looks at the text only."""
        head, _, image = url.rpartition("/")
        base, _, quoted = head.rpartition("/")
        container = unquote(quoted)
        if not NAME.fullmatch(image) or not self._is_ours(container, image):
            return None
        if self._tenants:
            found = _TENANTS.fullmatch(base)
            return Place(self._account, container, unquote(found[1].rpartition("/")[2]), found[1]) if found else None
        for reference, account in self._accounts.items():
            if base == f"swift+config://{reference}" or _is_old_form(base, account):
                return Place(account, container)
        return None

    def _is_ours(self, container: str, image: str) -> bool:
        if self._tenants:
            return container == f"{self._container}_{image}"
        start, _, seed = container.rpartition("_")
        is_seeded = start == self._container and re.fullmatch("[0-9a-f-]{1,32}", seed) is not None
        return container == self._container or (self._seed > 0 and is_seeded)

    def _at(self, url: str) -> tuple[Place, str]:
        """Where an object is, and its name. Raises `StoreError` if it is not in this store."""
        place = self._find(url)
        if place is None:
            raise errors.StoreError("The location is not in this store.", self.name)
        if place.base is not None and place.account.url(place.name) != place.base:
            raise errors.LocationRefused("The location is in another Swift.", self.name)  # it gets no token of ours
        return place, url.rpartition("/")[2]

    def _home(self, image_id: str, project: str | None) -> Place:
        """Where a new image goes."""
        if self._tenants:
            return Place(self._account, f"{self._container}_{image_id}", self._account.name_for(project))
        seeded = f"{self._container}_{image_id.lower()[: self._seed]}" if self._seed else self._container
        return Place(self._account, seeded)

    def _url(self, place: Place, image_id: str) -> str:
        if self._tenants:
            return f"swift+{place.account.url(place.name)}{place.path(image_id)}"
        return f"swift+config://{self._reference}{place.path(image_id)}"

    def _limits(self) -> _Limits:
        """What Swift allows. It may not tell."""
        if self._known is not None and time.monotonic() < self._known[0]:
            return self._known[1]
        limits, kept = _Limits(), _LIMITS_UNKNOWN
        root = re.sub(r"/v1(\.0)?/[^/]*$", "", self._account.url())
        try:
            with contextlib.closing(self.network.ask("GET", f"{root}/info", {})) as answer:
                told = json.loads(b"".join(answer)) if answer.status == 200 else None
            if told is not None:
                static = told.get("slo") or {}
                limits = _Limits(
                    int(told["swift"].get("max_file_size") or limits.size),
                    int(static.get("max_manifest_segments") or limits.segments),
                    int(static.get("min_segment_size") or limits.least),
                    bool(static),
                )
                kept = _LIMITS_KEPT
        except (errors.FetchFailed, ValueError, KeyError, TypeError, AttributeError) as exc:
            LOG.info("store %s does not tell its limits: %s", self.name, errors.reason(exc))
        self._known = time.monotonic() + kept, limits
        return limits

    # --- writing -----------------------------------------------------------------------------------------

    def begin(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> Write:
        place = self._home(image_id, ctx.project)
        plan = self._plan(size)
        if size is not None:
            self._check_room(place, size, plan)
        if self._tenants:  # else `clean` knows where
            note(_noted(_BEGUN, place))
        write = SwiftWrite(
            place,
            image_id,
            attempt,
            plan,
            memory=self._memory,
            note=lambda: note(_noted(_ENDING, place)),
            make_container=lambda: self._make_container(place),
            url=lambda: self._url(place, image_id),
            lone=self._tenants,
        )

        def look() -> None:
            if place.head(image_id) is not None:
                raise errors.AlreadyStored("The store already holds an object of this name.", self.name)

        try:
            self._account.together([write.mark, look])
        except BaseException:
            with contextlib.suppress(errors.StoreError):  # `clean` will remove what it left
                write.abort()
            raise
        return write

    def _plan(self, size: int | None) -> Plan:
        limits = self._limits()
        # As large as the operator wants, unless that would leave no memory for several at once.
        segment = max(min(self._chunk, self._memory.total // self._at_once), limits.least, HEAD)
        if size is not None:
            segment = max(segment, min(-(-size // limits.segments), self._memory.total))
        return Plan(
            large=min(self._large, limits.size + 1),
            segment=min(segment, limits.size),
            at_once=self._at_once,
            most=limits.segments,
            static=self._at_once > 1 and limits.static,
        )

    def _check_room(self, place: Place, size: int, plan: Plan) -> None:
        if size > plan.segment * plan.most**2:
            raise errors.StoreFull("The image is larger than the store allows.", self.name)
        room = _room(place.request("HEAD", allowed=(404,)).headers, "Container")
        if room is not None and room[0] < size:
            raise errors.StoreFull("The store has no room for this image.", self.name)

    def _make_container(self, place: Place) -> None:
        if not self._create:
            raise errors.StoreError(
                f"The container of store {self.name} is missing: make it, or set swift_store_create_container_on_put.",
                self.name,
            )
        writers = {"X-Container-Write": _projects(self._admins)} if self._tenants and self._admins else {}
        place.request("PUT", headers=writers, body=b"")

    def share(self, url: str, *, public: bool, projects: Iterable[str], ctx: Context) -> None:
        if self._tenants:
            place, _ = self._at(url)
            place.request("POST", headers={"X-Container-Read": "*:*" if public else _projects(projects)})

    # --- reading -----------------------------------------------------------------------------------------

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        return open_(*self._at(url), offset, length, resumes=self._resumes)

    def size(self, url: str, *, ctx: Context) -> int:
        place, image = self._at(url)
        found = place.head(image)
        if found is None:
            raise errors.Missing("The image's data is not in the store.", self.name)
        return length_of(found, self.name)

    # --- removing ----------------------------------------------------------------------------------------

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> Later | None:
        place, image = self._at(url)
        found = place.head(image)
        if found is None:
            raise errors.Missing("The image's data is not in the store.", self.name)
        if object_id is not None and found.get(ATTEMPT) != object_id:
            raise errors.Replaced("Another object has the name of the image's data.", self.name)
        # Segments first: as long as the manifest is there, a delete that was interrupted finds the others again.
        if not place.remove(place.segments_of(image, found), time.monotonic() + _DELETE_TIME):
            return Later(_DELETE_PAUSE)
        place.remove([image])
        if self._tenants:
            place.remove_container()
        return None

    def clean(self, image_id: str, attempt: str, note: str | None) -> None:
        if note is None and self._tenants:
            return  # only who has the note knows where
        step, place = _noted_place(self._account, note) if note else (_BEGUN, self._home(image_id, None))
        mark = f"{image_id}.{attempt}"
        place.remove([mark])  # from now on its writer cannot finish
        final = self._final_of(place, image_id, attempt, wait=step == _ENDING)
        if final is None:
            # The first segment also by its name, which a listing may not have yet: without it there is no manifest.
            place.remove([f"{mark}-00001"])
            place.remove(place.left_by(mark))
        elif note is not None:
            place.remove([*place.segments_of(image_id, final), image_id])
            place.remove(place.left_by(mark))
        if self._tenants:
            place.remove_container()

    def _final_of(self, place: Place, image_id: str, attempt: str, *, wait: bool) -> Mapping[str, str] | None:
        """The headers of the object of this name, if this attempt made it. With `wait`, it may be on its way yet."""
        found = place.head(image_id, newest=True)
        if found is None and wait:
            time.sleep(_SETTLE)
            found = place.head(image_id, newest=True)
        return found if found is not None and found.get(ATTEMPT) == attempt else None

    def sweep(self, lives: Callable[[str], bool]) -> int:
        """Also removes what uploads of Glance left, when it is a day old. Accounts of projects are not looked at."""
        if self._tenants:
            return 0
        swept = 0
        for container in self._containers():
            place = Place(self._account, container)
            for image, entries in itertools.groupby(place.entries(), lambda entry: image_of(entry.name)):
                if image is not None:
                    swept += self._sweep_image(place, image, list(entries), lives)
        return swept

    def _containers(self) -> list[str]:
        if not self._seed:
            return [self._container]
        found = pages(self._account, "", None, f"{self._container}_")
        return [entry.name for entry in found if self._is_ours(entry.name, "")]

    def _sweep_image(self, place: Place, image: str, entries: list[Entry], lives: Callable[[str], bool]) -> int:
        """Remove what belongs to no image, of the names that have to do with this one."""
        dead: list[str] = []
        is_listed = any(entry.name == image for entry in entries)
        ours = [(found["attempt"], entry) for entry in entries if (found := OURS.fullmatch(entry.name))]
        for attempt in {attempt for attempt, _ in ours}:
            mine = [entry for one, entry in ours if one == attempt]
            if min(entry.age for entry in mine) <= _SWEEP_AGE or lives(attempt):
                continue
            final = place.head(image, newest=True)
            if final is None and is_listed:
                continue  # Swift is not of one mind
            # Of a whole image only the mark may go, which its writer could not remove.
            whole = final is not None and final.get(ATTEMPT) == attempt
            dead += [entry.name for entry in mine if not whole or entry.name == f"{image}.{attempt}"]
        glances = [entry for entry in entries if GLANCES.fullmatch(entry.name)]
        is_old = glances and min(entry.age for entry in glances) > _GLANCE_AGE
        if is_old and not is_listed and place.head(image, newest=True) is None:
            dead += [entry.name for entry in glances]
        place.remove(dead)
        return len(dead)


def _noted(step: str, place: Place) -> str:
    """For `clean`: how far a write is, the account, which is empty for the own one, and the container."""
    return f"{step}/{place.name or ''}/{place.container}"


def _noted_place(account: Account, note: str) -> tuple[str, Place]:
    step, name, container = note.split("/")
    return step, Place(account, container, name or None)


def _is_old_form(base: str, account: Account) -> bool:
    """Whether a location that Glance recorded, with credentials, is in the account of a login."""
    found = _OLD.fullmatch(base)
    if found is None:
        return False
    scheme = "http" if found[1] == "swift+http" else "https"
    tenant = unquote(found[2] or "").partition(":")[0]
    login = account.login
    return f"{scheme}://{found[3]}".rstrip("/") == login.address.rstrip("/") and tenant == login.tenant


def _room(headers: Mapping[str, str], of: str) -> tuple[int, int] | None:
    """What is free within the quota of a container or an account, and the quota, in bytes; None without one."""
    total, used = headers.get(f"X-{of}-Meta-Quota-Bytes") or "", headers.get(f"X-{of}-Bytes-Used") or "0"
    if not total.isdigit() or not used.isdigit():
        return None
    return max(int(total) - int(used), 0), int(total)


def _projects(names: Iterable[str]) -> str:
    """An access control list that names all users of these projects."""
    return ",".join(f"{one}:*" for one in names)
