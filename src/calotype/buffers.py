"""Memory that passing data may take: one budget for the whole process, handed out first come first served.

`Budget` counts; `Buffers` lends memory of a budget; a `Piece` is a part of an image in such memory. A transfer waits
for data without a buffer and takes one when there is something to put into it (`images/stream.py`), so what is lent
follows from the bytes that move and not from the number of clients. `Slots` limit how many do one thing at once.
"""

import contextlib
import logging
import mmap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from typing import Final

LOG = logging.getLogger(__name__)

#: 1 MiB: 64 KiB pieces cost about a tenth more CPU in wake-ups, larger ones fall out of the cache between the taps.
BUFFER: Final = 1 << 20
#: What is lent while the budget is half spent: who is slow to give back should not keep others from moving at all.
LITTLE: Final = 64 << 10
#: Idle buffers of 1 MiB that are kept, so that an upload does not begin with page faults.
SPARE: Final = 16
#: Seconds that somebody waits for a place.
PATIENCE: Final = 10.0


class Budget:
    """An amount of something that many share; whoever comes first gets his part first."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._lock = threading.Lock()
        self._used = 0
        self._waiting: deque[tuple[int, threading.Event]] = deque()

    @property
    def used(self) -> int:
        """How much is taken just now."""
        return self._used

    @property
    def waiting(self) -> int:
        """How many wait for their part."""
        return len(self._waiting)

    def take(self, amount: int, wanted: Callable[[], object]) -> None:
        """Take so much, at most all there is; wait for it if need be.

        `wanted` is called about once a second meanwhile; what it raises ends the waiting.
        """
        with self._lock:
            if not self._waiting and self._used + amount <= self.total:
                self._used += amount
                return
            turn = (amount, threading.Event())
            self._waiting.append(turn)
        try:
            while not turn[1].wait(1.0):
                wanted()
        except BaseException:
            with self._lock:
                if turn[1].is_set():
                    self._used -= amount
                else:
                    self._waiting.remove(turn)
                self._serve()
            raise

    def give(self, amount: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._used -= amount
            self._serve()

    def _serve(self) -> None:
        while self._waiting and self._used + self._waiting[0][0] <= self.total:
            amount, turn = self._waiting.popleft()
            self._used += amount
            turn.set()


class Slots:
    """At most so many hold a slot at once. Few may wait for one, and not for long."""

    def __init__(self, total: int, refusal: Exception, patience: float = PATIENCE) -> None:
        """`refusal` is what is raised, anew each time; `patience` is in seconds."""
        self._budget = Budget(total)
        self._refusal = refusal
        self._patience = patience

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return self._budget.waiting

    @property
    def used(self) -> int:
        """How many slots are held."""
        return self._budget.used

    @property
    def is_full(self) -> bool:
        """Whether the next `acquire` has to wait."""
        return self._budget.used >= self._budget.total

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """A slot for the length of the block. Raises the refusal."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> None:
        """A slot, until `release`. Raises the refusal."""
        if self._budget.waiting * 4 > self._budget.total:
            raise copy(self._refusal)  # those who wait have threads, too
        until = time.monotonic() + self._patience

        def wanted() -> None:
            if time.monotonic() >= until:
                raise copy(self._refusal)

        self._budget.take(1, wanted)

    def release(self) -> None:
        """Give a slot back."""
        self._budget.give(1)


class Buffers:
    """Memory of a budget of bytes. What is kept for later is part of it as well."""

    def __init__(self, total: int) -> None:
        self.budget = Budget(total)
        self._lock = threading.Lock()
        self._spare: list[mmap.mmap] = []

    @property
    def kept(self) -> int:
        """Bytes that nobody uses and that are kept for whoever comes next."""
        return len(self._spare) * BUFFER

    def take(self, size: int, wanted: Callable[[], object] = lambda: None) -> "Piece":
        """A piece with room for `size` bytes, or for `LITTLE` while half of the budget would be passed.

        Waits until there is room; `wanted` is called about once a second meanwhile, and may raise.
        """
        size = min(size, self.budget.total)
        if size > LITTLE and self.budget.used + size > self.budget.total // 2:
            size = LITTLE
        self.budget.take(size, wanted)
        try:
            return Piece(_Memory(self._memory(size), size, self._back))
        except BaseException:
            self.budget.give(size)
            raise

    def _memory(self, size: int) -> bytearray | mmap.mmap:
        if size < LITTLE:
            return bytearray(size)  # for a little, mapped memory is slower
        with self._lock:
            if size == BUFFER and self._spare:
                return self._spare.pop()
            while self._spare and self.budget.used + self.kept > self.budget.total:
                self._spare.pop()
        # Mapped, not allocated: what is not kept goes back to the system, where malloc kept 200 MiB after 100 uploads.
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _back(self, memory: bytearray | mmap.mmap, size: int) -> None:
        if isinstance(memory, mmap.mmap):
            try:
                memory.resize(len(memory))  # changes nothing, and is refused while anybody can still see the bytes
            except BufferError:
                LOG.warning("a piece of an image is still looked at after its time; its memory is not used again")
            else:
                with self._lock:
                    room = self.budget.used - size + self.kept + BUFFER <= self.budget.total
                    if size == BUFFER and room and len(self._spare) < SPARE:
                        self._spare.append(memory)
        del memory  # what was not kept is gone before anybody may take its place
        self.budget.give(size)


class _Memory:
    """A buffer and how many pieces see it."""

    __slots__ = ("back", "bytes", "count", "lock", "size")

    def __init__(
        self, memory: bytearray | mmap.mmap, size: int, back: Callable[[bytearray | mmap.mmap, int], None]
    ) -> None:
        self.bytes: bytearray | mmap.mmap | None = memory
        self.size = size
        self.back = back
        self.count = 0
        self.lock = threading.Lock()


class Piece:
    """A part of an image, in memory that is lent: `view` are its bytes, until `release`.

    Whoever passes it on to somebody with a time of his own passes on what `hold` returns. The memory goes back when all
    are released; to use one of them after its release is an error (`ValueError`). Any thread may release it.
    """

    __slots__ = ("_memory", "_released", "view")

    def __init__(self, memory: _Memory, size: int | None = None, released: Callable[[], object] | None = None) -> None:
        with memory.lock:
            if memory.bytes is None:
                raise ValueError("a piece was held after its release")
            memory.count += 1
            self.view = memoryview(memory.bytes)[:size]
        self._memory: _Memory | None = memory
        self._released = released

    @property
    def held(self) -> bool:
        """Whether it was not released yet."""
        return self._memory is not None

    def cut(self, size: int) -> None:
        """There are so many bytes, and no more."""
        whole = self.view
        self.view = whole[:size]
        whole.release()

    def hold(self, released: Callable[[], object] | None = None) -> "Piece":
        """The same bytes once more, with a release of its own, after which `released` is called."""
        memory = self._memory
        if memory is None:
            raise ValueError("a piece was held after its release")
        return Piece(memory, len(self.view), released)

    def release(self) -> None:
        """The bytes are not needed any more; harmless when they were not already."""
        memory = self._memory
        if memory is None:
            return
        with memory.lock:  # of two threads that release at once, one does
            if self._memory is None:
                return
            self._memory = None
        try:
            self.view.release()
        except BufferError:
            LOG.warning("a piece of an image was released while it was being read")
        found = None
        with memory.lock:
            memory.count -= 1
            if not memory.count:
                found, memory.bytes = memory.bytes, None
        if found is not None:
            memory.back(found, memory.size)
        if self._released is not None:
            self._released()
