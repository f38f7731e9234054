"""Taps on passing bytes: everything that is learned about image data while it flows into stores.

`Passing` reads a `Source` to its end and puts each piece into writes of stores, none or one or several. On the way it
counts, caps, hashes and inspects the bytes (`inspection.py`), and raises when anything is wrong. Whoever called it
commits the writes afterwards, so no store makes bad data final. `check_hash_algo` is for reading the configuration.
Nothing here knows HTTP or the database; `api/body.py` makes sources of requests, `images/data.py` puts both together.

Memory: a transfer waits for its client without a buffer. It takes one from the budget of the process when there is
something to put into it, as large as its client is quick, and at most `RING` at a time. The taps are served by the
threads of the process (`transfers.py`).
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

#: One being filled or written, four waiting: enough to keep both hashers busy while the store syncs.
RING: Final = 5
#: The sizes of pieces; a client that does not bring the smallest in `PIECE_TIME` has what it sent taken as it comes.
SIZES: Final = (0, LITTLE, 4 * LITTLE, BUFFER)
#: The first one: in so much all formats show themselves, so that wrong data is refused before any of it is stored.
FIRST: Final = 4 * LITTLE
#: A piece should hold about what comes in this time, seconds.
PIECE_TIME: Final = 1 / 16
#: How long a piece may wait for more to be put into it, seconds.
FILL_TIME: Final = 0.25


class Source(Protocol):
    """Where bytes come from. Both methods raise `errors.BodyBroken`."""

    def ready(self, size: int) -> int:
        """Wait until about `size` bytes can be read at once, but not much longer than a second.

        How many can: fewer when no more came, at least 1 when all were read; 0 for nothing yet, to be asked again.
        Sources that cannot tell read so many into memory of their own.
        """

    def readinto(self, view: memoryview) -> int:
        """Put at least one byte into `view` and return how many; 0 at the clean end."""


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
    """Bytes of one image on their way into stores. `run` once; the facts are there when it has returned.

    Use it by `with`, around the writes: at its end no piece is left with a write.
    """

    size: int  #: bytes seen so far
    checksum: str | None  #: md5 in hex, None where it was not asked for
    hash_value: str  #: the multihash in hex
    virtual_size: int | None  #: bytes of the disk inside, where the format tells

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
        """`expect` is the announced size, `cap` the largest allowed one; `want` holds size, checksum, hash to equal.

        `alive` raises when the transfer must stop; it is asked about once a second and once more before the end.
        `admit` is told how many bytes there are with each piece before the store gets it; it raises for too many.
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
        self._inspection: Inspection | None = None  # begins with the first piece, which may be long in coming
        self._inspect = disk_format if container_format == "bare" else None
        self._rules = rules
        self._alive = alive
        self._admit = admit
        self._want = dict(want or {})
        self._clock = clock
        self._asked = clock()
        # Of the next piece; a small image of known size comes in one, with a byte more that shows a missing end.
        self._size = expect + 1 if expect is not None and expect < BUFFER else FIRST
        self._ran = False
        self._lent: list[_WriteWindow] = []

    def run(self, *writes: Write, failed: Callable[[Write, errors.StoreError], None] | None = None) -> None:
        """Read to the end, put every piece into each write, and verify. The caller commits the writes, or aborts them.

        A write that fails ends everything, unless `failed` returns: then the others go on without it. The last
        one's failure is raised all the same.
        """
        if self._ran:
            raise RuntimeError("bytes pass once")
        self._ran = True
        if self._expect is not None and self._expect > self._cap:
            raise self._over_limit()
        self._lent = [_WriteWindow(write, self._ask) for write in writes]
        going = list(self._lent)
        beside = [_TapRunner(tap, self._hashing) for tap in self._taps]
        count = awaited = 0
        ended = settled = False
        piece: Piece | None = None
        try:
            while not ended:
                if count - awaited == RING:
                    self._await(beside)  # the oldest
                    awaited += 1
                piece, ended = self._receive()
                if piece is None:
                    break
                if self._admit:
                    self._admit(self.size)
                if self._inspect:
                    self._inspection = self._inspection or Inspection(self._inspect, self._rules)
                    self._inspection.feed(piece.view)
                for one in beside:
                    one.feed(piece)
                count += 1
                if ended and count == 1:
                    # all is known: of a small image that is wrong no store gets a byte
                    self._await(beside)
                    awaited += 1
                    self._settle()
                    settled = True
                self._put(piece, going, failed)
                piece.release()
                piece = None
            while awaited < count:
                self._await(beside)
                awaited += 1
            if not settled:
                self._settle()
            if self._alive:
                self._alive()
        finally:
            for one in beside:
                one.stop()
            if piece is not None:
                piece.release()

    def close(self) -> None:
        """Take back what a write should have released when it was committed or aborted."""
        for lent in self._lent:
            lent.take_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @staticmethod
    def _put(
        piece: Piece, going: list["_WriteWindow"], failed: Callable[[Write, errors.StoreError], None] | None
    ) -> None:
        for lent in list(going):
            try:
                lent.put(piece)
            except errors.StoreError as exc:
                if failed is None or len(going) == 1:
                    raise
                failed(lent.write, exc)
                going.remove(lent)

    @staticmethod
    def _await(beside: list["_TapRunner"]) -> None:
        """Wait until the oldest piece has passed every tap."""
        for one in beside:
            one.wait()

    def _receive(self) -> tuple[Piece | None, bool]:
        """The next piece, if there is one, and whether the source ended with it."""
        begun = self._clock()
        # One byte past the limit is asked for, not a buffer: what is too long is refused as soon as it is seen.
        room = self._limit + 1 - self.size
        size = min(self._size or LITTLE, room)
        while not (there := self._source.ready(size)):
            self._ask()
        self._ask()
        slow = self._size == 0 or self._clock() - begun >= FILL_TIME
        piece = self._buffers.take(min(size, there) if slow else size, self._ask)
        try:
            have, ended = self._fill(piece.view, linger=not slow)
            if not have:
                piece.release()
                return None, ended
            piece.cut(have)
        except BaseException:
            piece.release()
            raise
        self._pace(have, self._clock() - begun)
        return piece, ended

    def _fill(self, view: memoryview, *, linger: bool) -> tuple[int, bool]:
        """Put into `view` what comes within a moment; how many bytes it holds and whether the source ended."""
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
        """So many bytes came in so long: choose the size of the next piece. It grows by one step at a time."""
        comes = size * PIECE_TIME / seconds if seconds else BUFFER
        step = next((place for place, one in enumerate(SIZES) if one >= self._size), 0) + 1
        self._size = max(one for one in SIZES[: step + 1] if one <= comes)

    def _ask(self) -> None:
        """Whether this is still wanted, about once a second. Raises if not."""
        if self._alive and self._clock() - self._asked >= 1.0:
            self._alive()
            self._asked = self._clock()

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


class _WriteWindow:
    """A write, and the pieces that it keeps: no more than its window."""

    def __init__(self, write: Write, wanted: Callable[[], object]) -> None:
        """`wanted` is called about once a second while a piece is waited for; what it raises ends the waiting."""
        self.write = write
        self._wanted = wanted
        self._room = threading.Semaphore(write.window)
        self._kept: list[Piece] = []

    def put(self, piece: Piece) -> None:
        """Put a piece that the write may keep, as soon as it keeps few enough."""
        window = self.write.window
        while window and not self._room.acquire(timeout=1.0):
            self._wanted()
        mine = piece.hold(self._room.release if window else None)
        try:
            self.write.put(mine)
        except BaseException:
            mine.release()
            raise
        if not window:
            mine.release()
        elif mine.held:
            self._kept = [one for one in self._kept if one.held]
            self._kept.append(mine)

    def take_back(self) -> None:
        kept = [one for one in self._kept if one.held]
        if kept:
            LOG.error("a write into a store has kept %s pieces of an image beyond its end", len(kept))
        for one in kept:
            one.release()


class _TapRunner:
    """A tap that looks on beside the receiver. Pieces are seen in order; one `wait` for each that was fed, in order."""

    def __init__(self, tap: Tap, threads: ThreadPool) -> None:
        self._tap = tap
        self._queue = SerialQueue(threads)
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._stopped = False

    def feed(self, piece: Piece) -> None:
        """Have the piece looked at, at its time; it is held until then."""
        piece = piece.hold()
        if len(piece.view) < LITTLE and self._queue.idle:
            self._update(piece)  # to wake a thread would take longer
        else:
            self._queue.submit(lambda: self._update(piece))

    def wait(self) -> None:
        """Wait for a piece; raise what the tap did."""
        failure = self._done.get()
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """What was not begun is not done."""
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
