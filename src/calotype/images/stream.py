"""Taps on passing bytes: everything that is learned about image data while it flows into a store.

`Passing` turns a `Source` into the chunks that a store's `write` consumes, and on the way counts, caps, hashes and
inspects them. Its last `next()` raises when anything is wrong, so a store that makes nothing final before
`StopIteration` never keeps bad data. `check_hash_algo` is for reading the configuration. Nothing here knows HTTP,
stores or the database; `api/body.py` makes sources of requests, `images/data.py` puts both together.

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
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Protocol, Self

from oslo_utils.imageutils import format_inspector

from calotype import errors
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
#: The widest number of bytes a signed 64-bit column holds.
MAX_SIZE = 2**63 - 1

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


@dataclass(frozen=True, slots=True)
class FormatRules:
    """What the operator decided about formats; `gpt_nonfatal` names safety checks of gpt that do not reject."""

    require_match: bool = True
    gpt_nonfatal: frozenset[str] = frozenset()


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
        want: Mapping[str, str] | None = None,
        taps: Sequence[Tap] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`expect` is the announced size, `cap` the largest allowed one; `want` holds size, checksum, hash to equal.

        `alive` raises when the transfer must stop; it is asked about once a second and once more before the end.
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
        self._inspection: _Inspection | None = None  # begins with the first piece, which may be long in coming
        self._inspect = disk_format if container_format == "bare" else None
        self._rules = rules
        self._alive = alive
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
                piece = buffer[:filled]
                if self._inspect:
                    self._inspection = self._inspection or _Inspection(self._inspect, self._rules)
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
            self.virtual_size = (self._inspection or _Inspection(self._inspect, self._rules)).finish(self.size)


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


# --- what the bytes are ----------------------------------------------------------------------------------

#: Pieces in which an undecided inspector is fed: it finds where to look next only between two pieces.
_STEP = 64 << 10
#: Every header that tells a format fits in here; shorter data is judged as if zeros followed, as readers of disks do.
_SECTOR = 512
#: vmdk's footer: the only thing any inspector wants of the end of the data.
_FOOTER = 1536

_ADVICE = {
    "backing_file": "it names a backing file; flatten it, for example with `qemu-img convert`",
    "banned": "this format is never accepted; convert it to qcow2 or raw",
    "data_file": "it keeps its data in another file; convert it to one that stands alone",
    "descriptor": "its descriptor is not that of one self-contained disk; convert it to monolithicSparse or "
    "streamOptimized",
    "footer": "its footer and header do not agree; convert it again",
    "mbr": "its partition table is not a valid one; repair it",
    "unknown_features": "it uses features of qcow2 that are not known to be safe; convert it to plain version 3",
    "version": "only version 1 is accepted",
}


class _Inspection:
    """Finds out which format bytes have, and whether that is what the image says and safe.

    oslo.utils' inspectors read hostile data: whatever one of them raises is a finding about the data, never an
    accident. One whose signature is there but which fails is a match that cannot be proved safe, hence rejected.
    """

    def __init__(self, declared: str, rules: FormatRules) -> None:
        self._declared = declared
        self._rules = rules
        self._inspectors = [make() for name, make in format_inspector.ALL_FORMATS.items() if name != "raw"]
        self._fed = list(self._inspectors)
        self._broken: set[str] = set()  # raised while eating
        self._unclear: set[str] = set()  # cannot even say whether they match
        self._started = False
        self._judged = False
        self._trusted = False
        self._found: list[format_inspector.FileInspector] = []
        self._detected = "raw"

    def look(self, piece: memoryview) -> None:
        """See the next piece. Raises `ContentRejected` as soon as that is certain."""
        self._feed(piece)
        if not self._judged and not any(self._open(one) for one in self._inspectors):
            self._judge()
        if self._judged and not self._trusted and all(self._complete(one) for one in self._found):
            self._trust()

    def finish(self, size: int) -> int | None:
        """All was seen: raise, or tell the virtual size."""
        if size < _SECTOR:
            self._feed(memoryview(bytes(_SECTOR - size)))
        for one in self._inspectors:
            one.finish()
        if not self._judged:
            self._judge()
        if not self._trusted:
            self._trust()
        return self._virtual_size(size)

    def _feed(self, piece: memoryview) -> None:
        for one in self._fed:
            try:
                if one.NAME == "vmdk":
                    self._feed_vmdk(one, piece)
                elif one.complete:
                    one.eat_chunk(piece)  # type: ignore[arg-type]  # any buffer will do
                else:
                    for at in range(0, len(piece), _STEP):
                        one.eat_chunk(piece[at : at + _STEP])  # type: ignore[arg-type]
                        if at == 0 and not self._started and one.complete and not one.format_match:
                            break
            except Exception as exc:  # noqa: BLE001 - hostile data; see the class
                LOG.debug("the data cannot be read as %s: %s", one.NAME, exc)
                self._broken.add(one.NAME)
        self._started = True
        self._fed = [
            one for one in self._fed if one.NAME not in self._broken and (self._matches(one) or not one.complete)
        ]

    def _feed_vmdk(self, one: format_inspector.FileInspector, piece: memoryview) -> None:
        if not self._started:
            # A descriptor that is plain text is read from the first piece alone, so that must come whole. All else
            # gets as little as will do, for the inspector copies what it gets.
            head = bytes(piece[:_SECTOR])
            if not head.startswith(b"KDMV") and (b"\0" in head or not head.isascii()):
                piece = piece[:_SECTOR]
        elif one.has_region("footer") and one.region("descriptor").complete:
            piece = piece[-_FOOTER:]  # all it still wants are the last sectors
        one.eat_chunk(piece)  # type: ignore[arg-type]

    def _complete(self, one: format_inspector.FileInspector) -> bool:
        return one.NAME in self._broken or one.complete

    def _open(self, one: format_inspector.FileInspector) -> bool:
        """Whether more data may still turn this one into a match."""
        return not self._complete(one) and not self._matches(one)

    def _matches(self, one: format_inspector.FileInspector) -> bool:
        try:
            return one.format_match
        except Exception as exc:  # noqa: BLE001 - hostile data
            LOG.debug("the data may or may not be %s: %s", one.NAME, exc)
            self._unclear.add(one.NAME)
            return False

    def _judge(self) -> None:
        """Which format is it, and is it the one that was declared?"""
        self._judged = True
        self._unclear.clear()
        self._found = [one for one in self._inspectors if self._matches(one)]
        names = {one.NAME for one in self._found}
        if names == {"iso", "gpt"}:
            # a disc that boots from a stick, too; its partition table is a disguise that gpt's checks would refuse
            self._found = [one for one in self._found if one.NAME == "iso"]
            names = {"iso"}
        if self._unclear or len(names) > 1:
            self._detected = "unclear"
            either = ", ".join(sorted(names | self._unclear))
            self._mismatch(
                f"the data cannot be told to be one format (it may be {either}); convert it to plain {self._declared}"
            )
            return
        self._detected = names.pop() if names else "raw"
        declared, detected = self._declared, self._detected
        plain = detected in ("raw", "gpt")  # a disk with partitions is as raw as one without
        if detected == declared or (plain and (declared == "raw" or declared not in format_inspector.ALL_FORMATS)):
            return
        if declared == "raw":
            LOG.warning("the data of an image is %s, but its disk_format says raw", detected)
        elif detected == "raw":
            self._mismatch(
                f"the data is not {declared}, as disk_format says: it has the signature of no known format; "
                f"set disk_format to what it is, or upload {declared} data"
            )
        else:
            self._mismatch(
                f"the data is {detected}, but disk_format says {declared}; set disk_format to {detected}, "
                f"or upload {declared} data"
            )

    def _mismatch(self, message: str) -> None:
        if self._rules.require_match:
            raise errors.ContentRejected(message)
        LOG.warning("accepted, because require_image_format_match is off: %s", message)

    def _trust(self) -> None:
        """Raise unless every format that was found passes its own safety checks."""
        self._trusted = True
        for one in self._found:
            excused: frozenset[str] = frozenset()
            if one.NAME == "gpt":
                excused = self._rules.gpt_nonfatal
                if self._declared in ("aki", "ari"):
                    excused |= {"mbr"}  # the boot sector of a kernel looks like a partition table
            try:
                if one.NAME in self._broken:
                    raise format_inspector.ImageFormatError("reading it failed")
                one.safety_check()
            except format_inspector.SafetyCheckFailed as exc:
                failed = sorted(set(exc.failures) - excused)
                if failed:
                    advice = "; ".join(_ADVICE.get(name, "convert it to qcow2 or raw") for name in failed)
                    raise errors.ContentRejected(
                        f"the data is {one.NAME} and not safe to use ({', '.join(failed)}): {advice}"
                    ) from exc
            except Exception as exc:
                raise errors.ContentRejected(
                    f"the data is {one.NAME}, but damaged or incomplete, so that it cannot be proved safe; "
                    "convert it again"
                ) from exc

    def _virtual_size(self, size: int) -> int | None:
        if self._declared == "raw":
            return size or None
        if self._detected != self._declared or not self._found:
            return None
        try:
            virtual = self._found[0].virtual_size
        except Exception as exc:  # noqa: BLE001 - hostile data
            LOG.debug("no virtual size: %s", exc)
            self._mismatch(f"the {self._declared} data does not tell the size of its disk; convert it again")
            return None
        if virtual > MAX_SIZE:
            raise errors.ContentRejected(
                f"the {self._declared} data claims a disk of {virtual} bytes; convert it again"
            )
        return virtual if virtual > 0 else None
