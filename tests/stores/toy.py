"""A driver for the suite's own test: a backend as networks have them, and faults that can be planted in the driver.

It takes pieces and writes them later, in a thread; so it also shows what `window` is for.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import IO, Any

from calotype import errors
from calotype.buffers import Piece
from calotype.context import Context
from calotype.stores.base import Body, Feature, Health, Note, Store, Stored, Write
from tests.stores.suite import Kit, Thing


class Fault(Enum):
    """What a driver may get wrong."""

    NO_NOTE = "nothing is noted"
    NO_FENCE = "whoever was cleaned away can finish"
    CLEANS_ANOTHERS = "clean removes what another attempt put there"
    OWNS_TOO_MUCH = "whatever begins alike is its own"
    RANGE_OFF_BY_ONE = "a range has one byte too many"
    DEBRIS = "a failed write leaves its part"
    FOREIGN_EXCEPTIONS = "the backend's errors pass through"
    DELETE_LEAVES_BYTES = "delete takes the name alone"
    SIZE_IGNORED = "the announced size is not looked at"
    ROOM_IGNORED = "what finds no room is dropped"
    SHORT_ENDS_CLEANLY = "a short object ends as if it were whole"
    NOT_DURABLE = "nothing is synced"
    READ_TIMEOUT_IGNORED = "a read that hangs is waited for"
    CANCEL_IGNORED = "who waits for a piece is not woken"
    ACTS_AS_THE_CALLER = "what a project stored only that project may read"
    NOTE_AFTER_FINAL = "the note comes when the object is final"


#: Bytes that a read asks for at once.
_PIECE = 256 << 10


class Failed(Exception):
    """What the backend's library raises."""


class Backend:
    """Keys and bytes, on the other side of a network."""

    def __init__(self, timeout: float = 1.0, room: int = 8 << 20) -> None:
        """`timeout`: seconds that the library waits for an answer. `room` is in bytes."""
        self.timeout = timeout
        self.room = room
        self.kept: dict[str, bytes] = {}
        self.volatile: set[str] = set()
        self.tags: dict[str, str] = {}
        self.broken = False
        self.silent = threading.Event()
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def asked(self, given_up: threading.Event | None = None, timeout: float | None = None) -> Iterator[None]:
        if self.silent.is_set():
            (given_up or threading.Event()).wait(timeout or self.timeout)
            raise Failed("timed out")
        if self.broken:
            raise Failed("500")
        with self._lock:
            yield

    def used(self) -> int:
        return sum(map(len, self.kept.values()))

    def room_now(self) -> tuple[int, int]:
        """Bytes that are free, and all."""
        with self.asked():
            return self.room - self.used(), self.room

    def sizes(self) -> dict[str, int]:
        """What is there, for who looks past the driver."""
        with self._lock:
            return {key: len(data) for key, data in self.kept.items()}

    def create(self, key: str, data: bytes = b"") -> None:
        with self.asked():
            self.kept[key] = data

    def append(self, key: str, data: bytes) -> None:
        with self.asked():
            if key not in self.kept:
                raise Failed("404")
            if self.used() + len(data) > self.room:
                raise Failed("507")
            self.kept[key] += data
            self.volatile.add(key)

    def sync(self, key: str) -> None:
        with self.asked():
            self.volatile.discard(key)

    def rename(self, key: str, to: str, tag: str) -> str:
        """What came of it: `done`, `taken` or `missing`."""
        with self.asked():
            if key not in self.kept:
                return "missing"
            if to in self.kept:
                return "taken"
            self.kept[to] = self.kept.pop(key)
            self.tags[to] = tag
            if key in self.volatile:
                self.volatile.remove(key)
                self.volatile.add(to)
            return "done"

    def remove(self, key: str, tag: str | None = None) -> bool:
        with self.asked():
            if key not in self.kept or (tag is not None and self.tags.get(key) != tag):
                return False
            del self.kept[key]
            return True

    def get(self, key: str) -> bytes | None:
        with self.asked():
            return self.kept.get(key)

    def piece(
        self, key: str, start: int, end: int, timeout: float | None, given_up: threading.Event | None = None
    ) -> bytes:
        with self.asked(given_up, timeout):
            if key not in self.kept:
                raise Failed("404")
            return self.kept[key][start:end]


class ToyStore:
    """A driver, with the faults that are planted in it."""

    kind = "toy"
    description = ""
    weight = 0
    features = frozenset({Feature.READ, Feature.WRITE})

    def __init__(self, name: str, backend: Backend, faults: frozenset[Fault]) -> None:
        self.name = name
        self.backend = backend
        self.faults = faults
        self._owners: dict[str, str | None] = {}

    def check(self) -> Health:
        try:
            free, total = self.backend.room_now()
            return Health(ok=True, free=free, total=total)
        except Failed as exc:
            return Health(ok=False, error=str(exc))

    def details(self) -> Mapping[str, Any]:
        return {}

    def prefixes(self) -> Sequence[str]:
        return [f"toy://{self.name}/"]

    def owns(self, url: str) -> bool:
        if Fault.OWNS_TOO_MUCH in self.faults:
            return url.startswith(f"toy://{self.name}")
        head, _, name = url.rpartition("/")
        return head == f"toy://{self.name}" and bool(name) and name.replace("-", "").isalnum()

    def begin(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> Write:
        url, part = f"toy://{self.name}/{image_id}", f"{self.name}/{image_id}.{attempt}.part"
        with self.translated():
            if self.backend.get(self.key(url)) is not None:
                raise errors.AlreadyStored("There is such an object.", self.name)
            if Fault.SIZE_IGNORED not in self.faults and (size or 0) > self.backend.room_now()[0]:
                raise errors.StoreFull("There is no room for so much.", self.name)
            self.backend.create(part)
        self._owners[url] = ctx.project
        return _ToyWrite(self, url, part, attempt, note)

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        if Fault.ACTS_AS_THE_CALLER in self.faults and ctx.project != self._owners.get(url, ctx.project):
            raise errors.StoreUnavailable("The token is not one of the owner.", self.name)
        size = len(self.get(url))
        end = size if length is None else offset + length
        if end > size and Fault.SHORT_ENDS_CLEANLY not in self.faults:
            raise errors.StoreError("The object is shorter than its record says.", self.name)
        return _ToyBody(self, self.key(url), offset, min(end + (Fault.RANGE_OFF_BY_ONE in self.faults), size))

    def size(self, url: str, *, ctx: Context) -> int:
        return len(self.get(url))

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> None:
        if not self.owns(url):
            raise errors.StoreError("The location is not in this store.", self.name)
        with self.translated():
            key = self.key(url)
            data = self.backend.get(key)
            if data is None or not self.backend.remove(key, object_id):
                raise errors.Missing("There is no such object.", self.name)
            if Fault.DELETE_LEAVES_BYTES in self.faults:
                self.backend.create(f"{key}.bytes", data)

    def clean(self, image_id: str, attempt: str, note: str | None) -> None:
        with self.translated():
            key = self.key(f"toy://{self.name}/{image_id}")
            if Fault.CLEANS_ANOTHERS in self.faults:
                for one in [one for one in self.backend.kept if one.startswith(f"{key}.")]:
                    self.backend.remove(one)
            if Fault.NO_FENCE not in self.faults:
                self.backend.remove(f"{key}.{attempt}.part")
            if note is not None:
                self.backend.remove(key, note)

    def get(self, url: str) -> bytes:
        if not self.owns(url):
            raise errors.StoreError("The location is not in this store.", self.name)
        with self.translated():
            data = self.backend.get(self.key(url))
        if data is None:
            raise errors.Missing("There is no such object.", self.name)
        return data

    @staticmethod
    def key(url: str) -> str:
        return url.removeprefix("toy://")

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except Failed as exc:
            if Fault.FOREIGN_EXCEPTIONS in self.faults:
                raise
            if str(exc) == "507":
                raise errors.StoreFull("There is no room.", self.name) from exc
            if str(exc) == "404":
                raise errors.Gone("The upload was given up.") from exc
            raise errors.StoreUnavailable("The backend failed.", self.name) from exc


class _ToyWrite:
    """`Write` that a thread carries out, in order."""

    window = 3

    def __init__(self, store: ToyStore, url: str, part: str, attempt: str, note: Note) -> None:
        self._store = store
        self._url = url
        self._part = part
        self._attempt = attempt
        self._note = note
        self._sent = 0
        self._thread = ThreadPoolExecutor(1)
        self._flying: list[Future[None]] = []
        self._done = False

    def put(self, piece: Piece) -> None:
        self._settle(wait=False)
        self._sent += len(piece.view)
        self._flying.append(self._thread.submit(self._send, piece))

    def _send(self, piece: Piece) -> None:
        try:
            self._store.backend.append(self._part, bytes(piece.view))
        except Failed as exc:
            if Fault.ROOM_IGNORED not in self._store.faults or str(exc) != "507":
                raise
        finally:
            piece.release()

    def _settle(self, *, wait: bool) -> None:
        with self._store.translated():
            for one in list(self._flying):
                if wait or one.done():
                    self._flying.remove(one)
                    one.result()

    def commit(self) -> Stored:
        store, faults = self._store, self._store.faults
        self._settle(wait=True)
        if not faults & {Fault.NO_NOTE, Fault.NOTE_AFTER_FINAL}:
            self._note(self._attempt)
        with store.translated():
            if Fault.NOT_DURABLE not in faults:
                store.backend.sync(self._part)
            found = store.backend.rename(self._part, store.key(self._url), self._attempt)
        if found == "taken":
            raise errors.AlreadyStored("There is such an object.", store.name)
        if found == "missing":
            raise errors.Gone("The upload was given up.")
        if Fault.NOTE_AFTER_FINAL in faults:
            self._note(self._attempt)
        self._end()
        return Stored(self._url, self._sent, object_id=self._attempt)

    def abort(self) -> None:
        if self._done:
            return
        self._end()
        if Fault.DEBRIS not in self._store.faults:
            with self._store.translated():
                self._store.backend.remove(self._part)

    def _end(self) -> None:
        self._done = True
        self._thread.shutdown()


class _ToyBody:
    """`Body` that asks for each piece when it is wanted."""

    def __init__(self, store: ToyStore, key: str, offset: int, end: int) -> None:
        self.size = end - offset
        self._store = store
        self._key = key
        self._offset = offset
        self._end = end
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        faults = self._store.faults
        given_up = threading.Event() if Fault.CANCEL_IGNORED in faults else self._cancelled
        while not self._cancelled.is_set() and self._offset < self._end:
            last = min(self._offset + _PIECE, self._end)
            try:
                with self._store.translated():
                    timeout = 3 * Toys.patience if Fault.READ_TIMEOUT_IGNORED in faults else None
                    piece = self._store.backend.piece(self._key, self._offset, last, timeout, given_up)
            except errors.Gone as exc:
                raise errors.Missing("The object was deleted meanwhile.", self._store.name) from exc
            except errors.StoreError:
                if self._cancelled.is_set():
                    break
                raise
            self._offset = last
            yield piece
        if self._cancelled.is_set():
            raise errors.Cancelled("The read was cancelled.", self._store.name)

    def file(self) -> IO[bytes] | None:
        return None

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        pass


class Toys(Kit):
    """The toy driver's kit, with all hooks."""

    patience = 4.0

    def __init__(self, _: Path | None = None, *faults: Fault) -> None:
        self.backend = Backend()
        self.faults = frozenset(faults)

    def store(self, name: str = "one") -> Store:
        return ToyStore(name, self.backend, self.faults)

    def things(self) -> list[Thing]:
        return [Thing(key) for key in self.backend.kept if key.startswith("one/")]

    @contextlib.contextmanager
    def full(self, store: Store) -> Iterator[None]:
        room, self.backend.room = self.backend.room, self.backend.used()
        yield
        self.backend.room = room

    @contextlib.contextmanager
    def broken(self, store: Store) -> Iterator[None]:
        self.backend.broken = True
        try:
            yield
        finally:
            self.backend.broken = False

    @contextlib.contextmanager
    def hanging(self, store: Store) -> Iterator[None]:
        self.backend.silent.set()
        try:
            yield
        finally:
            self.backend.silent.clear()

    def truncate(self, store: Store, url: str) -> None:
        key = ToyStore.key(url)
        self.backend.kept[key] = self.backend.kept[key][:-1]

    def lose_power(self) -> None:
        for key in self.backend.volatile:
            del self.backend.kept[key]
