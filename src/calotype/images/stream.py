"""Taps on passing bytes: everything that is learned about image data while it flows into a store.

`Passing` turns a `Source` into the chunks that a store's `write` consumes, and on the way counts, caps, hashes and
inspects them (`inspection.py`). Its last `next()` raises when anything is wrong, so a store that makes nothing final
before `StopIteration` never keeps bad data. `check_hash_algo` is for reading the configuration. Nothing here knows
HTTP, stores or the database; `api/body.py` makes sources of requests, `images/data.py` puts both together.

Memory: one transfer owns at most `RING` buffers of `BUFFER` bytes (5 MiB), a small image of known size only its own
size; `SPARE` buffers (16 MiB) are kept for the next transfer, whatever the number of transfers before.
"""

import hashlib
import logging
import mmap
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Protocol, Self

from calotype import errors
from calotype.images.inspection import FormatRules, Inspection
from calotype.stores.base import Chunk

LOG = logging.getLogger(__name__)

#: 1 MiB: 64 KiB pieces cost about a tenth more CPU in wake-ups, larger ones fall out of the cache between the taps.
BUFFER = 1 << 20
#: One being filled, one being written, three waiting: enough to keep both hashers busy while the store syncs.
RING = 5
#: Idle buffers kept by the process, so that an upload does not begin with page faults.
SPARE = 16
#: A buffer of fewer bytes than this is not worth a mapping of its own.
LITTLE = 64 << 10

#: Mapped, not allocated: what falls off the end goes back to the system, where malloc kept 200 MiB after 100 uploads.
_spare: deque[mmap.mmap] = deque(maxlen=SPARE)


class Source(Protocol):
    """Where bytes come from."""

    def readinto(self, view: memoryview) -> int:
        """Put at least one byte into `view` and return how many; 0 at the clean end. Raises `errors.BodyBroken`."""


class Tap(Protocol):
    """One more thing to know of the bytes; it runs beside the receiver. Verify what was seen in `Passing`'s caller."""

    def update(self, data: memoryview, /) -> object: ...


class _Digest(Tap, Protocol):
    def hexdigest(self) -> str: ...


def check_hash_algo(name: str) -> None:
    """Raise `ConfigError` unless `name` is a hash of fixed length and at least 256 bits that Python knows here."""
    try:
        width = hashlib.new(name).digest_size
    except (ValueError, TypeError) as exc:
        raise errors.ConfigError(f"hashing_algorithm: {name!r} is not a hash that this Python knows") from exc
    if width == 0:
        raise errors.ConfigError(f"hashing_algorithm: {name!r} has no fixed length; use sha512")
    if width < 32:
        raise errors.ConfigError(f"hashing_algorithm: {name!r} has only {width * 8} bits, 256 are needed; use sha512")


class Passing:
    """Bytes of one image on their way into a store. Iterate once; the facts are there when the iteration has ended.

    A yielded view is valid until the next piece is asked for. Threads run only for images larger than one buffer and
    end with the iteration, however that ends; who stops early calls `close` or uses `with`.
    """

    size: int  #: bytes seen so far
    checksum: str | None  #: md5 in hex, None where it was not asked for
    hash_value: str  #: the multihash in hex
    virtual_size: int | None  #: bytes of the disk inside, where the format tells

    def __init__(
        self,
        source: Source,
        *,
        expect: int | None,
        cap: int,
        hash_algo: str,
        md5: bool,
        disk_format: str | None,
        container_format: str | None,
        rules: FormatRules,
        alive: Callable[[], None] | None = None,
        admit: Callable[[int], object] | None = None,
        want: Mapping[str, str] | None = None,
        taps: Sequence[Tap] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`expect` is the announced size, `cap` the largest allowed one; `want` holds size, checksum, hash to equal.

        `alive` raises when the transfer must stop; it is asked about once a second and once more before the end.
        `admit` is told how many bytes there are with each piece before the store gets it; it raises for too many.
        """
        self.size = 0
        self.checksum = None
        self.hash_value = ""
        self.virtual_size = None
        self._source = source
        self._expect = expect
        self._cap = cap
        self._limit = cap if expect is None else min(cap, expect)
        self._hash: _Digest = hashlib.new(hash_algo)
        self._md5: _Digest | None = hashlib.md5(usedforsecurity=False) if md5 else None
        self._taps: list[Tap] = [self._hash, *([self._md5] if self._md5 else []), *taps]
        self._inspection: Inspection | None = None  # begins with the first piece, which may be long in coming
        self._inspect = disk_format if container_format == "bare" else None
        self._rules = rules
        self._alive = alive
        self._admit = admit
        self._want = dict(want or {})
        self._clock = clock
        self._asked = clock()
        self._pieces: weakref.ref[Generator[Chunk, None, None]] | None = None

    def __iter__(self) -> Iterator[Chunk]:
        if self._pieces is not None:
            raise RuntimeError("bytes pass once")
        pieces = self._pass()
        # Weak, as the generator refers to this object: whoever drops an iteration half-way ends its threads with it.
        self._pieces = weakref.ref(pieces)
        return pieces

    def close(self) -> None:
        """End the transfer early; harmless when it has ended."""
        pieces = self._pieces() if self._pieces is not None else None
        if pieces is not None:
            pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _pass(self) -> Generator[Chunk, None, None]:
        if self._expect is not None and self._expect > self._cap:
            raise self._over_limit()
        ring: list[bytearray | mmap.mmap] = []
        beside: list[_Beside] = []
        count = awaited = 0
        ended = settled = False
        try:
            while not ended:
                if count < RING:
                    ring.append(self._buffer(first=count == 0))
                elif beside:
                    self._await(beside)  # the piece that was in this buffer before
                    awaited += 1
                buffer = memoryview(ring[count % RING])
                filled, ended = self._fill(buffer)
                if not filled:
                    break
                if self._admit:
                    self._admit(self.size)
                piece = buffer[:filled]
                if self._inspect:
                    self._inspection = self._inspection or Inspection(self._inspect, self._rules)
                    self._inspection.look(piece)
                if not beside and not ended and count == 0 and self.size != self._expect:
                    # more than one buffer will come
                    for tap in self._taps:
                        beside.append(_Beside(tap))
                if beside:
                    for thread in beside:
                        thread.feed(piece)
                else:
                    for tap in self._taps:
                        tap.update(piece)
                    if ended:
                        # all is known: a small image that is wrong never reaches the store
                        self._settle()
                        settled = True
                count += 1
                out = buffer[:filled]
                yield out
                _release(out)
            while beside and awaited < count:
                self._await(beside)
                awaited += 1
            if not settled:
                self._settle()
            if self._alive:
                self._alive()
        finally:
            for thread in beside:
                thread.stop()
            _spare.extend(buffer for buffer in ring if isinstance(buffer, mmap.mmap) and len(buffer) == BUFFER)

    @staticmethod
    def _await(beside: list["_Beside"]) -> None:
        """Wait until the oldest piece has passed every tap."""
        for thread in beside:
            thread.wait()

    def _buffer(self, *, first: bool) -> bytearray | mmap.mmap:
        if first and self._expect is not None and self._expect < BUFFER:
            size = self._expect + 1  # the byte more shows a source that does not end in time
            # Mapped memory is taken as it is filled, which may never happen; but for a little it is slower.
            return bytearray(size) if size < LITTLE else _mapped(size)
        try:
            return _spare.pop()
        except IndexError:
            return _mapped(BUFFER)

    def _fill(self, view: memoryview) -> tuple[int, bool]:
        """Fill `view`; how many bytes it holds and whether the source ended."""
        have = 0
        while have < len(view):
            # One byte past the limit is asked for, not a buffer: what is too long is refused as soon as it is seen.
            got = self._source.readinto(view[have : have + self._limit + 1 - self.size])
            if got == 0:
                return have, True
            have += got
            self.size += got
            if self.size > self._limit:
                if self.size > self._cap:
                    raise self._over_limit()
                raise errors.Invalid(f"more data than the {self._expect} bytes that were announced")
            if self._alive and self._clock() - self._asked >= 1.0:
                self._alive()
                self._asked = self._clock()
        return have, False

    def _over_limit(self) -> errors.OverLimit:
        return errors.OverLimit(f"the image is larger than the {self._cap} bytes that are allowed")

    def _settle(self) -> None:
        """Everything was seen: write the facts down, or raise."""
        if self._expect is not None and self.size != self._expect:
            raise errors.BodyBroken(f"the data ended after {self.size} of {self._expect} bytes")
        self.hash_value = self._hash.hexdigest()
        self.checksum = self._md5.hexdigest() if self._md5 else None
        found = {"size": str(self.size), "checksum": self.checksum, "hash": self.hash_value}
        for fact, wanted in self._want.items():
            if found[fact] is not None and found[fact] != str(wanted).lower():
                raise errors.Invalid(f"the data has {fact} {found[fact]}, but the image says {wanted}")
        if self._inspect:
            self.virtual_size = (self._inspection or Inspection(self._inspect, self._rules)).finish(self.size)


def _mapped(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _release(view: memoryview) -> None:
    """Make use after its time an error instead of somebody else's bytes."""
    try:
        view.release()
    except BufferError:
        LOG.warning("a store still held a piece of an image after asking for the next one")


class _Beside:
    """A tap in a thread of its own. Pieces are seen in order; one `wait` for each piece that was fed, in order."""

    def __init__(self, tap: Tap) -> None:
        self._todo: SimpleQueue[memoryview | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        # The thread refers to no `_Beside` and no `Passing`, so that a forgotten iteration is collected and ends it.
        self._thread = threading.Thread(target=_run, args=(tap, self._todo, self._done), name="tap", daemon=True)
        self._thread.start()

    def feed(self, piece: memoryview) -> None:
        self._todo.put(piece)

    def wait(self) -> None:
        failure = self._done.get()
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """End the thread. What was not begun is not done."""
        try:
            while True:
                self._todo.get_nowait()
        except Empty:
            self._todo.put(None)
        self._thread.join()


def _run(tap: Tap, todo: SimpleQueue[memoryview | None], done: SimpleQueue[BaseException | None]) -> None:
    failure: BaseException | None = None
    while (piece := todo.get()) is not None:
        if failure is None:
            try:
                tap.update(piece)
            except BaseException as exc:  # noqa: BLE001 - it is raised where the pieces are waited for
                failure = exc
        done.put(failure)
