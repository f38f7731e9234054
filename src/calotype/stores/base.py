"""The contract between Calotype and a place where bytes live.

Read this to write a driver; `tests/stores/suite.py` is the same text as assertions, and every driver
passes it. Hashing, size caps, format inspection and signatures are never a driver's business: they are taps on
the bytes that pass (`images/stream.py`), where the one loop is that reads bytes and puts them into writes.
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

#: Takes the one small value that a driver would need to remove what a write left that never returned: an upload id, a
#: prefix. It is durable on return, and takes the place of what the same write noted before.
Note = Callable[[str], None]


class Feature(Enum):
    """What a driver can do. Each one decides something, and operators see them as `capabilities`."""

    READ = "read"  #: gives bytes; without it, copies are passed over by downloads and cannot be verified
    WRITE = "write"  #: takes bytes; without it, the store is shown as read-only and uploads to it are refused
    EPHEMERAL = "ephemeral"  #: the data is in one process, which alone can see it, so no command looks for it
    #: Users name the URLs, whose servers and data are not ours: any user may add such a location, several images may
    #: share one, and a server that fails says nothing about the others, so the store is never set aside.
    USER_URLS = "user-urls"


@dataclass(frozen=True, slots=True)
class Health:
    """How a store is: `ok`, free and total bytes where the backend tells, and the last error without secrets."""

    ok: bool
    free: int | None = None
    total: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """One finished object: its location URL, its size in bytes, and metadata for the location row.

    `object_id` tells it from every other object that ever had, or will have, the same URL; None where a driver cannot.
    """

    url: str
    size: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    object_id: str | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """The backend still works on it: ask again after so many seconds."""

    seconds: float


class Body(Protocol):
    """Bytes on their way out. Close it, whether it was read or not."""

    size: int  #: bytes that iterating yields

    def __iter__(self) -> Iterator[bytes]:
        """The bytes in order; raises `StoreError` rather than end early, and `Cancelled` after `cancel`.

        Each piece is waited for as long as the store's `read_timeout` says; then this raises `StoreUnavailable`. Only
        the kernel ends a read of a local file: there is no such time-out, and `Cancelled` comes after it has answered.
        """

    def file(self) -> IO[bytes] | None:
        """A real file positioned at the first byte, for sendfile; None where the bytes are not in a file."""

    def cancel(self) -> None:
        """End the reading: whoever waits for a piece, or asks for another one, gets `Cancelled` at once.

        Any thread may call it at any time, more than once, and after `close`. The reader closes the body all the same.
        """

    def close(self) -> None: ...


class Write(Protocol):
    """One object on its way into a store. Used by one thread, and ended by `commit` or by `abort`."""

    window: int  #: how many pieces it may keep at once after `put`; 0: none, and they are released for it

    def put(self, piece: Piece) -> None:
        """Take the next bytes of the object, in order. Raises what failed, also of earlier pieces.

        It may return before they are written. Then the piece is the write's until its `release`; that must not wait for
        another piece, as the memory for it may be what is being waited for. When `window` pieces are kept, the next one
        comes after a release.
        """

    def commit(self) -> Stored:
        """Make the object final: all of it, durable on return, never overwriting. Called after the bytes were verified.

        Waits for what is in flight. Raises `AlreadyStored`, `StoreError`, what `note` raises, and `Gone` for an attempt
        that was cleaned away. `abort` follows where it raises.
        """

    def abort(self) -> None:
        """End without an object, leave nothing and keep no piece. Does nothing after `commit` has returned."""


class Driver(Protocol):
    """The class of a store, which `enabled_backends` means by its type. Other packages bring one as an entry point."""

    @property
    def options(self) -> Sequence[cfg.Opt]:
        """Those of the store's section, besides the common ones (`registry.COMMON`)."""

    @property
    def timeouts(self) -> Collection[str]:
        """Which of `connect_timeout` and `read_timeout` the driver keeps to. Where another is set, it is refused."""

    def __call__(self, name: str, options: Mapping[str, Any], *, description: str, weight: int) -> "Store":
        """A store. Raises `ConfigError` for options that cannot be served, or not safely.

        `options` has their values and those of its `timeouts`, in seconds, None for the driver's own default; besides,
        as `filters`, which URLs of users may be connected to (`net.Filters`). All other common options are seen to by
        `access.py`, in the same way for every driver.
        """


class Store(Protocol):
    """One configured place. Shared by threads; holds no lock while bytes move.

    A driver acts with the credentials of the store's section, for every caller alike. The `Context` that it is given
    says who asks, for its log, and holds no token of anybody.
    """

    name: str  #: as the operator calls it
    kind: str  #: the driver's type in `enabled_backends`
    description: str
    weight: int
    features: frozenset[Feature]

    def check(self) -> Health:
        """Whether the store works, within two seconds; never raises."""

    def details(self) -> Mapping[str, Any]:
        """The driver's settings as `GET /v2/info/stores/detail` shows them; no secrets."""

    def owns(self, url: str) -> bool:
        """Whether the URL lies in this store's own namespace. Looks at the text only."""

    def prefixes(self) -> Sequence[str]:
        """Texts of which one begins every URL that this store owns, for looking in the database."""

    def begin(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> "Write":
        """Begin to store one object; `size` is announced, None where nobody knows it. What is put is not there yet.

        `attempt` is a fencing token and part of every temporary name. `note` makes durable what `clean` needs besides
        the two; call it before there is anything that would be found by it alone, and in any case before the object is
        final. It raises when the attempt was given up. `begin` may be called again after `StoreUnavailable`, with the
        same arguments. Raises `AlreadyStored`, `StoreFull`, `StoreReadOnly`,
        `StoreUnavailable`, and leaves nothing when it raises.
        """

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        """`length` bytes from `offset` (to the end when None). Raises `Missing` here, before the first byte."""

    def size(self, url: str, *, ctx: Context) -> int:
        """The object's size in bytes. Raises `Missing`."""

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> "Later | None":
        """Remove the object, durably; None when it is gone, else when to ask again. Raises `Missing`, `InUse`.

        With `object_id`, as `Stored` told it, only that very one: if another has its URL by now, it is `Missing`.
        """

    def clean(self, image_id: str, attempt: str, note: str | None) -> None:
        """Remove what a dead attempt left under its own temporary names, and the finished object that `note` is about.

        `note` is the last one of this attempt; None where there is none, or what is final is not for the caller.

        Idempotent. Removes nothing that another attempt, or somebody else, put there, however late it comes.
        """


@contextlib.contextmanager
def writing(
    store: Store, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context
) -> Iterator[Write]:
    """A write that was begun, aborted if the block fails."""
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
        except errors.StoreError as exc:  # what it left is found by `clean`
            LOG.warning("a failed write of image %s left something: %s", image_id, errors.reason(exc))
        raise


@runtime_checkable
class Identified(Store, Protocol):
    """A store whose place carries an identity that is written there: a place that lost it, or has another's, takes
    no writes and no repair. Which identity is meant, the database knows (`images/places.py`).
    """

    identity: str | None  #: what must be written there; None until it is known, and then nothing is taken either

    @property
    def place(self) -> str:
        """Where the store is, as operators write it."""

    def overlap(self, other: "Identified") -> str | None:
        """Why this store and another one cannot both be served, in words after their names; None where they can.

        They cannot when they are at one place, or one is within the other: each would delete what the other one keeps.
        """

    def found_identity(self) -> str | None:
        """What is written in the place now; None when nothing is, or there is no such place. Raises `StoreError`."""

    def establish(self, identity: str) -> None:
        """Make the place if it is missing, and write the identity into it, durably. Raises `StoreError`."""

    def is_empty(self) -> bool:
        """Whether there is nothing in the place, or no place. Raises `StoreError`."""

    def confirm(self) -> None:
        """Raise `StoreUnavailable` unless the place carries the identity that is meant."""

    def add_former(self, places: Iterable[str]) -> None:
        """Own the URLs of places that this one was at before, too."""

    def current_url(self, url: str) -> str:
        """The URL of the same object by the place where the store is now."""


@runtime_checkable
class Peeks(Protocol):
    """A store that may be slow to answer, and sets one limit to the wait for an object's size and first bytes."""

    def peek(self, url: str, length: int, *, most: int, ctx: Context) -> tuple[int, bytes]:
        """The object's size in bytes, and so many bytes from its beginning, or all of them. Raises as `read`.

        Of an object of more than `most` bytes none is read.
        """


@runtime_checkable
class Sweeps(Protocol):
    """A store whose temporary names can be listed cheaply; debris without any job is found this way alone."""

    def sweep(self, lives: Callable[[str], bool]) -> int:
        """Remove temporary names older than a lease whose attempt does not live; how many."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a store, whatever it is. `age` is in seconds since it was last changed or got its name.

    `attempt` is the token of the upload that a temporary name belongs to; `identity` differs for whatever else may
    take the name later. `size` is bytes.
    """

    name: str
    size: int
    age: float
    identity: str
    attempt: str | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What was put aside: `key` names it, `name` is what it was called, `facts` is what was said of it."""

    key: str
    name: str
    size: int
    facts: Mapping[str, Any]


@runtime_checkable
class Audits(Protocol):
    """A store that can list what is in it, and put something aside so that nobody is served it and nothing is lost."""

    def name_of(self, url: str) -> str | None:
        """The name that a location URL means, None when it lies elsewhere. Looks at the text only."""

    def entries(self) -> Iterator[Entry]:
        """Everything that is there but for what is in quarantine, in any order; what vanishes meanwhile is left out."""

    def entry(self, name: str) -> Entry | None:
        """One of them, as it is now; None when there is none."""

    def quarantine(self, entry: Entry, facts: Mapping[str, Any]) -> str | None:
        """Put it aside, durably, with JSON facts; its key. None, and nothing done, if it is not there as it was."""

    def quarantined(self) -> Iterator[Quarantined]:
        """What was put aside."""

    def restore(self, key: str) -> Quarantined:
        """Undo `quarantine`, durably. Raises `Missing`, and `AlreadyStored` when the name is taken."""
