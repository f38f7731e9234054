"""The interface of a store driver.

Read this to write a driver. `tests/stores/suite.py` tests what is promised here; every driver passes it. Drivers do not
hash data, limit its size or inspect its format. `images/stream.py` does, in the one loop that reads data and puts it
into writes.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import IO, Any, Protocol, runtime_checkable

from oslo_config import cfg

from calotype import errors
from calotype.buffers import Piece
from calotype.context import Context

LOG = logging.getLogger(__name__)

#: Saves a short text from which `clean` can remove what an interrupted write left, such as an upload id. It is durable
#: on return, and replaces the previous note of the same write.
Note = Callable[[str], None]


class Feature(Enum):
    """What a driver can do. The service acts by these; operators see them as `capabilities`."""

    READ = "read"  #: its data can be read; without it, downloads skip its copies and they cannot be verified
    WRITE = "write"  #: it stores data; without it, the store is shown as read-only and uploads to it are refused
    EPHEMERAL = "ephemeral"  #: the data is in the memory of one process; commands cannot see it and do not look for it
    #: Users name the URLs; the servers and the data are not ours. Any user may add such a location, and several images
    #: may share one. If one server fails, others may work, so the store is never set aside.
    USER_URLS = "user-urls"


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a store. Free and total are bytes, None if unknown; the error has no secrets."""

    ok: bool
    free: int | None = None
    total: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """One finished object: its location URL, its size in bytes, and metadata for the location row.

    `object_id` differs from that of every earlier or later object at the same URL; None if a driver has no such id.
    """

    url: str
    size: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    object_id: str | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """The backend has not finished: call again after so many seconds."""

    seconds: float


class Body(Protocol):
    """Data that is read from a store. Close it, whether it was read or not."""

    size: int  #: bytes that iterating yields

    def __iter__(self) -> Iterator[bytes]:
        """The bytes in order. Raises `StoreError` if they end early, and `Cancelled` after `cancel`.

        Raises `StoreUnavailable` if a piece does not come within the store's `read_timeout`. A read of a local file
        has no such timeout and cannot be interrupted: `Cancelled` is raised when it has returned.
        """

    def file(self) -> IO[bytes] | None:
        """A file positioned at the first byte, for sendfile; None if the data is not in a file."""

    def cancel(self) -> None:
        """End the reading: a reader that waits for a piece, or asks for the next one, gets `Cancelled` at once.

        Any thread may call it at any time, more than once, and after `close`. The reader must still close the body.
        """

    def close(self) -> None: ...


class Write(Protocol):
    """One object that is being written. One thread uses it, and ends it by `commit` or by `abort`."""

    window: int  #: how many pieces it may keep after `put` returns; with 0 the caller releases each piece

    def put(self, piece: Piece) -> None:
        """Write the next bytes of the object. Raises if this piece or an earlier one failed.

        It may return before they are written. Then the write owns the piece and must release it, without waiting for
        another piece: the memory for that one may not be free until this one is released. While `window` pieces are
        kept, no further piece comes.
        """

    def commit(self) -> Stored:
        """Make the whole object final, durable on return. It never overwrites. Called after the bytes were verified.

        Waits for pieces that are still being written. Raises `AlreadyStored`, `StoreError`, what `note` raises, and
        `Gone` if `clean` removed the attempt. If it raises, the caller calls `abort`.
        """

    def abort(self) -> None:
        """Remove everything that was written, and release all pieces. Does nothing after `commit` has returned."""


class Driver(Protocol):
    """Makes the stores of one type in `enabled_backends`. Other packages provide one by an entry point."""

    @property
    def options(self) -> Sequence[cfg.Opt]:
        """The options of the store's section, without the common ones (`registry.COMMON`)."""

    @property
    def timeouts(self) -> Collection[str]:
        """Which of `connect_timeout` and `read_timeout` the driver supports. Setting another one is an error."""

    def __call__(self, name: str, options: Mapping[str, Any], *, description: str, weight: int) -> "Store":
        """Make a store. Raises `ConfigError` for options that cannot be served, or not safely.

        `options` has the values of its options, and of its `timeouts` in seconds, None for the driver's own default. It
        also has `filters`: which URLs of users may be connected to (`net.Filters`), the `proxy` for these (`net.Proxy`
        or None), and `part_memory`, for drivers that send parts (`parts.py`). `access.py` applies all other common
        options, for every driver alike.
        """


class Store(Protocol):
    """One configured store. Thread-safe; holds no lock while data moves.

    A driver uses the credentials of the store's section for every caller. The `Context` says who the caller is, for the
    log; it has no token.
    """

    name: str  #: the operator's name for it
    kind: str  #: the driver's type in `enabled_backends`
    description: str
    weight: int
    features: frozenset[Feature]

    def check(self) -> Health:
        """Whether the store works, within two seconds; never raises."""

    def details(self) -> Mapping[str, Any]:
        """The driver's settings as `GET /v2/info/stores/detail` shows them; no secrets."""

    def owns(self, url: str) -> bool:
        """Whether the URL is in this store's own namespace. Looks at the text only."""

    def prefixes(self) -> Sequence[str]:
        """The prefixes of the URLs that this store owns, for searches in the database."""

    def begin(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> "Write":
        """Begin to write one object, which is not visible before `commit`. `size` is the announced size, or None.

        `attempt` is a fencing token, unique among the writes of this image. Every temporary name has it and the id of
        the image. `note` saves what `clean` needs besides these two. Call it before the object is final, and before
        making anything that can only be found by the note. It raises if the attempt was given up.

        Raises `AlreadyStored`, `StoreFull`, `StoreReadOnly`, `StoreUnavailable`, and leaves nothing behind then. After
        `StoreUnavailable` it may be called again with the same arguments.
        """

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        """`length` bytes from `offset` (to the end when None). Raises `Missing` here, before the first byte."""

    def size(self, url: str, *, ctx: Context) -> int:
        """The object's size in bytes. Raises `Missing`."""

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> "Later | None":
        """Remove the object, durably; None when it is removed, else when to call again. Raises `Missing`, `InUse`.

        With the `object_id` of `Stored` it removes only that object: if another one has the URL now, it is `Missing`.
        """

    def clean(self, image_id: str, attempt: str, note: str | None) -> None:
        """Remove what a dead attempt left under its temporary names, and the finished object that `note` refers to.

        `note` is the last note of this attempt; None if there is none, or if the caller may not remove a final object.

        Idempotent. However late it is called, it removes nothing that another attempt or another program stored.
        """


@contextlib.contextmanager
def writing(
    store: Store, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context
) -> Iterator[Write]:
    """Begin a write, and abort it if the block fails."""
    write = store.begin(image_id, attempt=attempt, size=size, note=note, ctx=ctx)
    with aborting(write, image_id):
        yield write


@contextlib.contextmanager
def aborting(write: Write, image_id: str) -> Iterator[None]:
    """Abort the write if the block fails."""
    try:
        yield
    except BaseException:
        try:
            write.abort()
        except errors.StoreError as exc:  # `clean` will remove what it left
            LOG.warning("a failed write of image %s left something: %s", image_id, errors.reason(exc))
        raise


@runtime_checkable
class Identified(Store, Protocol):
    """A store whose place, such as its directory, holds an identity. The database has the same (`images/places.py`).

    If the place has no identity, or another one, the store refuses writes and repair.
    """

    identity: str | None  #: the identity that the place must have; while it is None, writes are refused as well

    @property
    def place(self) -> str:
        """Where the store is, as in the configuration, such as a directory."""

    def overlap(self, other: "Identified") -> str | None:
        """Why this store and another one cannot both be served, as the end of a sentence; None if they can.

        They cannot if they have the same place, or one is within the other: each would delete data of the other.
        """

    def found_identity(self) -> str | None:
        """The identity in the place now; None if there is none, or no such place. Raises `StoreError`."""

    def establish(self, identity: str) -> None:
        """Make the place if it is missing, and write the identity into it, durably. Raises `StoreError`."""

    def is_empty(self) -> bool:
        """Whether the place is empty or does not exist. Raises `StoreError`."""

    def confirm(self) -> None:
        """Raise `StoreUnavailable` unless the place has the right identity."""

    def add_former(self, places: Iterable[str]) -> None:
        """Own URLs in former places of this store as well."""

    def current_url(self, url: str) -> str:
        """The URL of the same object in the present place."""


@runtime_checkable
class Peeks(Protocol):
    """A store that may be slow, and has one time limit for getting an object's size and first bytes together."""

    def peek(self, url: str, length: int, *, most: int, ctx: Context) -> tuple[int, bytes]:
        """The object's size in bytes, and its first `length` bytes, fewer if it is smaller. Raises as `read`.

        Nothing is read of an object of more than `most` bytes.
        """


@runtime_checkable
class Shares(Protocol):
    """A store that can let users of projects read its objects past this service."""

    def share(self, url: str, *, public: bool, projects: Iterable[str], ctx: Context) -> None:
        """Let these projects read the object, and nobody else; with `public`, all of them. Raises `StoreError`."""


@runtime_checkable
class Sweeps(Protocol):
    """A store that can list its temporary names cheaply. Only so are leftovers found that no job knows of."""

    def sweep(self, lives: Callable[[str], bool]) -> int:
        """Remove temporary names that are older than a lease and whose attempt is dead; return how many."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a store. `age` is in seconds since it was last changed or renamed, `size` in bytes.

    `attempt` is the token of the upload that a temporary name belongs to. `identity` changes if something else gets
    the same name.
    """

    name: str
    size: int
    age: float
    identity: str
    attempt: str | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Something in quarantine under `key`. `name` is its former name, `facts` what `quarantine` was given."""

    key: str
    name: str
    size: int
    facts: Mapping[str, Any]


@runtime_checkable
class Audits(Protocol):
    """A store that can list what is in it, and move something into quarantine: it is not served, but not lost."""

    def name_of(self, url: str) -> str | None:
        """The name in this store that a location URL refers to; None if it is elsewhere. Looks at the text only."""

    def entries(self) -> Iterator[Entry]:
        """Everything outside quarantine, in any order. What is removed meanwhile may be left out."""

    def entry(self, name: str) -> Entry | None:
        """The entry of this name as it is now; None if there is none."""

    def quarantine(self, entry: Entry, facts: Mapping[str, Any]) -> str | None:
        """Move it into quarantine with JSON facts, durably; return its key. If it changed since, do nothing: None."""

    def quarantined(self) -> Iterator[Quarantined]:
        """What is in quarantine."""

    def restore(self, key: str) -> Quarantined:
        """Undo `quarantine`, durably. Raises `Missing`, and `AlreadyStored` when the name is taken."""
