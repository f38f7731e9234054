"""Images in this process's memory: for tests and for trying things out. Nothing survives a restart."""

import io
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import IO, Any, ClassVar

from oslo_config import cfg

from calotype import errors
from calotype.buffers import Piece
from calotype.context import Context
from calotype.stores.base import Body, Feature, Health, Note, Stored, Write

OPTIONS: list[cfg.Opt] = [cfg.IntOpt("memory_store_size", default=256, min=1, help="Room of the store, MiB.")]


class MemoryStore:
    """A dictionary with a limit."""

    kind = "memory"
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    timeouts: ClassVar[Collection[str]] = ()
    features = frozenset({Feature.READ, Feature.WRITE, Feature.EPHEMERAL})

    def __init__(self, name: str, options: Mapping[str, Any], *, description: str = "", weight: int = 0) -> None:
        self.name = name
        self.description = description
        self.weight = weight
        self._room: int = options["memory_store_size"] << 20
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[str, bytes]] = {}
        self._fenced: set[tuple[str, str]] = set()

    def check(self) -> Health:
        with self._lock:
            return Health(ok=True, free=self._room - self._used(), total=self._room)

    def details(self) -> Mapping[str, Any]:
        return {"size": self._room}

    def prefixes(self) -> Sequence[str]:
        return [f"memory://{self.name}/"]

    def owns(self, url: str) -> bool:
        return re.fullmatch(f"memory://{re.escape(self.name)}/[0-9a-zA-Z-]+", url) is not None

    def begin(self, image_id: str, *, attempt: str, size: int | None, note: Note, ctx: Context) -> Write:
        url = f"memory://{self.name}/{image_id}"
        with self._lock:
            if url in self._objects:
                raise errors.AlreadyStored("The store already holds an object of this name.", self.name)
        note(attempt)
        write = _MemoryWrite(self, image_id, attempt)
        write.want_room(size or 0)
        return write

    def read(self, url: str, *, offset: int = 0, length: int | None = None, ctx: Context) -> Body:
        data = self._get(url)
        end = len(data) if length is None else offset + length
        if end > len(data):
            raise errors.StoreError("The object is shorter than its record says.", self.name)
        return _Bytes(data[offset:end])

    def size(self, url: str, *, ctx: Context) -> int:
        return len(self._get(url))

    def delete(self, url: str, *, object_id: str | None = None, ctx: Context) -> None:
        with self._lock:
            if url not in self._objects or object_id not in (None, self._objects[url][0]):
                raise errors.Missing("The image's data is not in the store.", self.name)
            del self._objects[url]

    def clean(self, image_id: str, attempt: str, note: str | None) -> None:
        url = f"memory://{self.name}/{image_id}"
        with self._lock:
            self._fenced.add((image_id, attempt))
            if url in self._objects and self._objects[url][0] == attempt:
                del self._objects[url]

    def _get(self, url: str) -> bytes:
        if not self.owns(url):
            raise errors.StoreError("The location is not in this store.", self.name)
        with self._lock:
            if url not in self._objects:
                raise errors.Missing("The image's data is not in the store.", self.name)
            return self._objects[url][1]

    def _used(self) -> int:
        return sum(len(data) for _, data in self._objects.values())


class _MemoryWrite:
    """`Write` of one object."""

    window = 0

    def __init__(self, store: MemoryStore, image_id: str, attempt: str) -> None:
        self._store = store
        self._image_id = image_id
        self._attempt = attempt
        self._data = bytearray()

    def want_room(self, size: int) -> None:
        if self._store._used() + size > self._store._room:
            raise errors.StoreFull("The store has no room for this image.", self._store.name)

    def put(self, piece: Piece) -> None:
        self.want_room(len(self._data) + len(piece.view))
        self._data += piece.view

    def commit(self) -> Stored:
        store, url = self._store, f"memory://{self._store.name}/{self._image_id}"
        with store._lock:
            if (self._image_id, self._attempt) in store._fenced:
                raise errors.Gone("The upload was given up while data was arriving.")
            if url in store._objects:
                raise errors.AlreadyStored("The store already holds an object of this name.", store.name)
            store._objects[url] = (self._attempt, bytes(self._data))
        return Stored(url, len(self._data), object_id=self._attempt)

    def abort(self) -> None:
        self._data = bytearray()


class _Bytes:
    """`Body` of a piece of memory."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = io.BytesIO(data)
        self._cancelled = False

    def __iter__(self) -> Iterator[bytes]:
        while not self._cancelled and (data := self._data.read(1 << 16)):
            yield data
        if self._cancelled:
            raise errors.Cancelled("The read was cancelled.")

    def cancel(self) -> None:
        self._cancelled = True

    def file(self) -> IO[bytes] | None:
        return None

    def close(self) -> None:
        self._data.close()
