"""Taps on passing bytes: everything that is learned about image data while it flows into a store.

`Passing` turns a `Source` into the chunks that a store's `write` consumes, and on the way counts, caps, hashes and
inspects them (`inspection.py`). Its last `next()` raises when anything is wrong, so a store that makes nothing final
before `StopIteration` never keeps bad data. `check_hash_algo` is for reading the configuration. Nothing here knows
HTTP, stores or the database; `api/body.py` makes sources of requests, `images/data.py` puts both together.

Memory: a transfer waits for its client without a buffer. It takes one from the budget of the process when there is
something to put into it, as large as its client is quick, and at most `RING` at a time. The taps are served by the
threads of the process (`transfers.py`).
"""

import hashlib
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Protocol, Self

from calotype import errors
from calotype.buffers import BUFFER, LITTLE, Piece
from calotype.images.inspection import FormatRules, Inspection
from calotype.stores.base import Chunk
from calotype.threads import Strand, Threads
from calotype.transfers import Transfers

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
    """Bytes of one image on their way into a store. Iterate once; the facts are there when the iteration has ended.

    A yielded view is valid until the next piece is asked for. Nothing is left of an iteration, however it ends; who
    stops early calls `close` or uses `with`.
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
        self._pieces: weakref.ref[Generator[Chunk, None, None]] | None = None

    def __iter__(self) -> Iterator[Chunk]:
        if self._pieces is not None:
            raise RuntimeError("bytes pass once")
        pieces = self._pass()
        # Weak, as the generator refers to this object: whoever drops an iteration half-way ends it.
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
        beside = [_Beside(tap, self._hashing) for tap in self._taps]
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
                    self._inspection.look(piece.view)
                for one in beside:
                    one.feed(piece)
                count += 1
                if ended and count == 1:
                    # all is known: a small image that is wrong never reaches the store
                    self._await(beside)
                    awaited += 1
                    self._settle()
                    settled = True
                yield piece.view
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

    @staticmethod
    def _await(beside: list["_Beside"]) -> None:
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


class _Beside:
    """A tap that looks on beside the receiver. Pieces are seen in order; one `wait` for each that was fed, in order."""

    def __init__(self, tap: Tap, threads: Threads) -> None:
        self._tap = tap
        self._strand = Strand(threads)
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._stopped = False

    def feed(self, piece: Piece) -> None:
        """Have the piece looked at, at its time; it is held until then."""
        piece = piece.hold()
        if len(piece.view) < LITTLE and self._strand.idle:
            self._look(piece)  # to wake a thread would take longer
        else:
            self._strand.submit(lambda: self._look(piece))

    def wait(self) -> None:
        """Wait for a piece; raise what the tap did."""
        failure = self._done.get()
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """What was not begun is not done."""
        self._stopped = True

    def _look(self, piece: Piece) -> None:
        try:
            if self._failure is None and not self._stopped:
                self._tap.update(piece.view)
        except BaseException as exc:  # noqa: BLE001 - it is raised where the pieces are waited for
            self._failure = exc
        finally:
            piece.release()
            self._done.put(self._failure)
