"""Moves image data from a source into a store, and hashes and checks it on the way.

`Passing` reads a `Source` to its end and puts each piece into a write of a store. It counts, limits, hashes and
inspects the bytes (`inspection.py`), and raises if anything is wrong. The caller commits the write afterwards, so bad
data never becomes final. `fanout.py` puts the pieces into several stores. Nothing here knows HTTP or the database:
`api/body.py` makes a source of a request, and `images/data.py` calls both.

Memory: while a transfer waits for its client it holds no buffer. When bytes have come it takes one from the budget of
the process, larger for a faster client, and holds at most `RING`. Taps such as hashes run in threads that all transfers
share (`transfers.py`).
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Protocol, Self

from calotype import errors
from calotype.buffers import BUFFER, LITTLE, Piece
from calotype.images.inspection import FormatRules, Inspection
from calotype.stores.base import Write
from calotype.threads import SerialQueue, ThreadPool
from calotype.transfers import Transfers

LOG = logging.getLogger(__name__)

#: Buffers of one transfer: one is filled or written while four wait. This keeps both hashers busy during a sync.
RING: Final = 5
#: The sizes of pieces, bytes. 0: the client sends less than the smallest in `PIECE_TIME`, so any size is taken.
SIZES: Final = (0, LITTLE, 4 * LITTLE, BUFFER)
#: The size of the first piece. All formats can be told by it, so wrong data is refused before anything is stored.
FIRST: Final = 4 * LITTLE
#: The size of a piece follows what the client sends in this time, seconds.
PIECE_TIME: Final = 1 / 16
#: How long a piece that is not full waits for more bytes, seconds.
FILL_TIME: Final = 0.25


class Source(Protocol):
    """A source of bytes. Both methods raise `errors.BodyBroken`."""

    def ready(self, size: int) -> int:
        """Wait until about `size` bytes can be read without waiting, but not much longer than a second.

        Returns how many can be read: fewer if no more came in time, 0 if none did (call it again), and at least 1 at
        the end. A source that cannot tell reads the bytes into memory of its own.
        """

    def readinto(self, view: memoryview) -> int:
        """Read at least one byte into `view` and return how many; 0 at the end."""


class Tap(Protocol):
    """Sees all bytes, in a thread beside the receiver, such as a hash. The caller of `Passing` uses its result."""

    def update(self, data: memoryview, /) -> object: ...


class _Digest(Tap, Protocol):
    def hexdigest(self) -> str: ...


def check_hash_algo(name: str) -> None:
    """Raise `ConfigError` unless Python has a hash `name` of fixed length and at least 256 bits."""
    try:
        width = hashlib.new(name).digest_size
    except (ValueError, TypeError) as exc:
        raise errors.ConfigError(f"hashing_algorithm: {name!r} is not a hash that this Python knows") from exc
    if width == 0:
        raise errors.ConfigError(f"hashing_algorithm: {name!r} has no fixed length; use sha512")
    if width < 32:
        raise errors.ConfigError(f"hashing_algorithm: {name!r} has only {width * 8} bits, 256 are needed; use sha512")


class Passing:
    """Moves the bytes of one image into a store. Call `run` or `pass_to` once; it sets the attributes.

    Use it in a `with` statement around the write: at its end all pieces are taken back from it.
    """

    size: int  #: bytes received so far
    checksum: str | None  #: md5 in hex, None if it was not requested
    hash_value: str  #: the multihash in hex
    virtual_size: int | None  #: the size of the disk in bytes, None if the format does not tell

    def __init__(
        self,
        source: Source,
        transfers: Transfers,
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
        """`expect` is the announced size, `cap` the largest allowed one; `want` has the required size, checksum, hash.

        `alive` raises if the transfer must stop; it is called about once a second and once before the end. `admit` is
        called with the total size before each piece goes to the store; it raises if that is too much.
        """
        self.size = 0
        self.checksum = None
        self.hash_value = ""
        self.virtual_size = None
        self._source = source
        self._buffers = transfers.buffers
        self._hashing = transfers.hashing
        self._expect = expect
        self._cap = cap
        self._limit = cap if expect is None else min(cap, expect)
        self._hash: _Digest = hashlib.new(hash_algo)
        self._md5: _Digest | None = hashlib.md5(usedforsecurity=False) if md5 else None
        self._taps: list[Tap] = [self._hash, *([self._md5] if self._md5 else []), *taps]
        self._inspection: Inspection | None = None  # made for the first piece, which may come late
        self._inspect = disk_format if container_format == "bare" else None
        self._rules = rules
        self._alive = alive
        self._watch: Callable[[], None] | None = None
        self._admit = admit
        self._want = dict(want or {})
        self._clock = clock
        self._last_check = clock()
        # The size of the next piece. A small image of known size fits into one, with room for a byte too many.
        self._size = expect + 1 if expect is not None and expect < BUFFER else FIRST
        self._ran = False
        self._window: WriteWindow | None = None

    def run(self, write: Write | None = None) -> None:
        """Read to the end, put every piece into the write if there is one, and verify. The caller commits or aborts."""
        if write is None:
            self.pass_to(lambda _: None)
        else:
            self._window = WriteWindow(write, self.check)
            self.pass_to(self._window.put)

    def pass_to(self, put: Callable[[Piece], object], watch: Callable[[], None] | None = None) -> None:
        """Read to the end, call `put` with every piece, and verify. The piece is released when `put` returns.

        `watch` is called about once a second while the source, or memory, is waited for; it may raise to end the wait.
        """
        if self._ran:
            raise RuntimeError("bytes pass once")
        self._ran = True
        if self._expect is not None and self._expect > self._cap:
            raise self._over_limit()
        self._watch = watch
        runners = [_TapRunner(tap, self._hashing) for tap in self._taps]
        count = awaited = 0
        ended = settled = False
        piece: Piece | None = None
        try:
            while not ended:
                if count - awaited == RING:
                    self._await(runners)  # the oldest
                    awaited += 1
                piece, ended = self._receive()
                if piece is None:
                    break
                if self._admit:
                    self._admit(self.size)
                if self._inspect:
                    self._inspection = self._inspection or Inspection(self._inspect, self._rules)
                    self._inspection.feed(piece.view)
                for one in runners:
                    one.feed(piece)
                count += 1
                if ended and count == 1:
                    # the whole image is in this piece: verify it before a store gets a byte
                    self._await(runners)
                    awaited += 1
                    self._settle()
                    settled = True
                put(piece)
                piece.release()
                piece = None
            while awaited < count:
                self._await(runners)
                awaited += 1
            if not settled:
                self._settle()
            if self._alive:
                self._alive()
        finally:
            for one in runners:
                one.stop()
            if piece is not None:
                piece.release()

    def close(self) -> None:
        """Take back pieces that the write has not released by its commit or abort."""
        if self._window:
            self._window.take_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def check(self) -> None:
        """Call `alive`, which raises if the transfer must stop, if a second has passed since the last time."""
        if (self._alive or self._watch) and self._clock() - self._last_check >= 1.0:
            for one in (self._alive, self._watch):
                if one:
                    one()
            self._last_check = self._clock()

    @staticmethod
    def _await(runners: list["_TapRunner"]) -> None:
        """Wait until the oldest piece has passed every tap."""
        for one in runners:
            one.wait()

    def _receive(self) -> tuple[Piece | None, bool]:
        """The next piece, None if there is none, and whether the source has ended."""
        started = self._clock()
        # At most one byte beyond the limit is requested, so that data that is too long is refused at once.
        room = self._limit + 1 - self.size
        size = min(self._size or LITTLE, room)
        while not (available := self._source.ready(size)):
            self.check()
        self.check()
        slow = self._size == 0 or self._clock() - started >= FILL_TIME
        piece = self._buffers.take(min(size, available) if slow else size, self.check)
        try:
            have, ended = self._fill(piece.view, linger=not slow)
            if not have:
                piece.release()
                return None, ended
            piece.cut(have)
        except BaseException:
            piece.release()
            raise
        self._pace(have, self._clock() - started)
        return piece, ended

    def _fill(self, view: memoryview, *, linger: bool) -> tuple[int, bool]:
        """Fill `view` with what comes in `FILL_TIME`. Returns the number of bytes, and whether the source has ended."""
        have = 0
        until = self._clock() + FILL_TIME
        while True:
            with view[have:] as rest:
                got = self._source.readinto(rest)
            if got == 0:
                return have, True
            have += got
            self.size += got
            if self.size > self._limit:
                if self.size > self._cap:
                    raise self._over_limit()
                raise errors.Invalid(f"more data than the {self._expect} bytes that were announced")
            if have == len(view) or not linger or self._clock() >= until or not self._source.ready(len(view) - have):
                return have, False

    def _pace(self, size: int, seconds: float) -> None:
        """Choose the size of the next piece; this one had `size` bytes and took `seconds`. It grows by single steps."""
        comes = size * PIECE_TIME / seconds if seconds else BUFFER
        step = next((place for place, one in enumerate(SIZES) if one >= self._size), 0) + 1
        self._size = max(one for one in SIZES[: step + 1] if one <= comes)

    def _over_limit(self) -> errors.OverLimit:
        return errors.OverLimit(f"the image is larger than the {self._cap} bytes that are allowed")

    def _settle(self) -> None:
        """After the last byte: set the attributes, or raise if anything is wrong."""
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


class WriteWindow:
    """A write, and the pieces that it keeps: at most as many as its window."""

    def __init__(self, write: Write, poll: Callable[[], object], released: Callable[[], object] = lambda: None) -> None:
        """`poll` is called about once a second while `put` waits. If it raises, the wait ends with that exception.

        `released` is called, in any thread, for each piece that the write has done with.
        """
        self._write = write
        self._poll = poll
        self._released = released
        self._room = threading.Semaphore(write.window)
        self._kept: list[Piece] = []

    def put(self, piece: Piece) -> None:
        """Give the write a piece. Waits until it keeps fewer pieces than its window."""
        window = self._write.window
        while window and not self._room.acquire(timeout=1.0):
            self._poll()
        mine = piece.hold(self._give_back if window else self._released)
        try:
            self._write.put(mine)
        except BaseException:
            mine.release()
            raise
        if not window:
            mine.release()
        elif mine.held:
            self._kept = [one for one in self._kept if one.held]
            self._kept.append(mine)

    def take_back(self) -> None:
        """Release the pieces that the write keeps beyond its commit or abort."""
        kept = [one for one in self._kept if one.held]
        if kept:
            LOG.error("a write into a store has kept %s pieces of an image beyond its end", len(kept))
        for one in kept:
            one.release()

    def _give_back(self) -> None:
        self._room.release()
        self._released()


class _TapRunner:
    """Runs a tap in threads of the pool. It sees pieces in order; call `wait` once for each `feed`."""

    def __init__(self, tap: Tap, threads: ThreadPool) -> None:
        self._tap = tap
        self._queue = SerialQueue(threads)
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._stopped = False

    def feed(self, piece: Piece) -> None:
        """Give the tap a piece. It is held until the tap has seen it."""
        piece = piece.hold()
        if len(piece.view) < LITTLE and self._queue.idle:
            self._update(piece)  # waking a thread would take longer
        else:
            self._queue.submit(lambda: self._update(piece))

    def wait(self) -> None:
        """Wait until the tap has seen the oldest piece that was not waited for. Raises what the tap raised."""
        failure = self._done.get()
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Skip all pieces that the tap has not started on."""
        self._stopped = True

    def _update(self, piece: Piece) -> None:
        try:
            if self._failure is None and not self._stopped:
                self._tap.update(piece.view)
        except BaseException as exc:  # noqa: BLE001 - it is raised where the pieces are waited for
            self._failure = exc
        finally:
            piece.release()
            self._done.put(self._failure)
