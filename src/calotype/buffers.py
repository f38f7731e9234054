"""Memory for image data on its way: one budget for the whole process, first come first served.

`Budget` counts. `Buffers` lends memory within a budget; a `Piece` is a part of an image in such memory. `Slots` limit
how many threads do one thing at once.

A transfer takes a buffer only when there are bytes to put into it (`images/stream.py`). So memory grows with the bytes
that move, not with the number of clients.
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

#: 1 MiB: with 64 KiB pieces wake-ups cost about a tenth more CPU; larger ones leave the CPU cache between the taps.
BUFFER: Final = 1 << 20
#: The largest buffer that is lent once half of the budget is used. So slow clients do not stop all others.
LITTLE: Final = 64 << 10
#: How many unused buffers of 1 MiB are kept, so that an upload does not begin with page faults.
SPARE: Final = 16
#: How long a caller waits for a slot, seconds.
PATIENCE: Final = 10.0


class Budget:
    """An amount of something that threads share, first come first served."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._lock = threading.Lock()
        self._used = 0
        self._waiting: deque[tuple[int, threading.Event]] = deque()

    @property
    def used(self) -> int:
        """The amount that is taken at present."""
        return self._used

    @property
    def waiting(self) -> int:
        """How many threads wait in `take`."""
        return len(self._waiting)

    def take(self, amount: int, poll: Callable[[], object]) -> None:
        """Take an amount, which must not be more than `total`. Waits until it is free.

        Meanwhile `poll` is called about once a second. If it raises, the waiting ends with that exception.
        """
        with self._lock:
            if not self._waiting and self._used + amount <= self.total:
                self._used += amount
                return
            turn = (amount, threading.Event())
            self._waiting.append(turn)
        try:
            while not turn[1].wait(1.0):
                poll()
        except BaseException:
            with self._lock:
                if turn[1].is_set():
                    self._used -= amount
                else:
                    self._waiting.remove(turn)
                self._serve()
            raise

    def take_now(self, amount: int) -> bool:
        """Take an amount if it is free and nobody waits; returns whether it did."""
        with self._lock:
            if self._waiting or self._used + amount > self.total:
                return False
            self._used += amount
            return True

    def give(self, amount: int) -> None:
        """Give back an amount that was taken."""
        with self._lock:
            self._used -= amount
            self._serve()

    def _serve(self) -> None:
        while self._waiting and self._used + self._waiting[0][0] <= self.total:
            amount, turn = self._waiting.popleft()
            self._used += amount
            turn.set()


class Slots:
    """A semaphore with a limited wait. While more than a quarter of `total` wait, further callers are refused."""

    def __init__(self, total: int, refusal: Exception, patience: float = PATIENCE) -> None:
        """A copy of `refusal` is raised to a caller that gets no slot within `patience`, in seconds."""
        self._budget = Budget(total)
        self._refusal = refusal
        self._patience = patience

    @property
    def waiting(self) -> int:
        """How many threads wait for a slot."""
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
        """Hold a slot for the length of the block. Raises the refusal."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> None:
        """Take a slot. Raises the refusal."""
        if self._budget.waiting * 4 > self._budget.total:
            raise copy(self._refusal)  # each one that waits occupies a thread
        until = time.monotonic() + self._patience

        def poll() -> None:
            if time.monotonic() >= until:
                raise copy(self._refusal)

        self._budget.take(1, poll)

    def release(self) -> None:
        """Give a slot back."""
        self._budget.give(1)


class Buffers:
    """Lends memory within a budget of bytes. Unused buffers that are kept count as well."""

    def __init__(self, total: int) -> None:
        self.budget = Budget(total)
        self._lock = threading.Lock()
        self._spare: list[mmap.mmap] = []

    @property
    def kept(self) -> int:
        """Bytes in unused buffers, which are kept for the next `take`."""
        return len(self._spare) * BUFFER

    def take(self, size: int, poll: Callable[[], object] = lambda: None) -> "Piece":
        """A piece with room for `size` bytes, or for `LITTLE` if more than half of the budget would be used.

        Waits until the memory is free. Meanwhile `poll` is called about once a second, and may raise to end the wait.
        """
        size = min(size, self.budget.total)
        if size > LITTLE and self.budget.used + size > self.budget.total // 2:
            size = LITTLE
        self.budget.take(size, poll)
        try:
            return Piece(_Memory(self._memory(size), size, self._back))
        except BaseException:
            self.budget.give(size)
            raise

    def _memory(self, size: int) -> bytearray | mmap.mmap:
        if size < LITTLE:
            return bytearray(size)  # for small sizes mapped memory is slower
        with self._lock:
            if size == BUFFER and self._spare:
                return self._spare.pop()
            while self._spare and self.budget.used + self.kept > self.budget.total:
                self._spare.pop()
        # Mapped memory goes back to the system at once; malloc kept 200 MiB after 100 uploads.
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _back(self, memory: bytearray | mmap.mmap, size: int) -> None:
        if isinstance(memory, mmap.mmap):
            try:
                memory.resize(len(memory))  # changes nothing, but raises while a view of the bytes exists
            except BufferError:
                LOG.warning("a piece of an image is still looked at after its time; its memory is not used again")
            else:
                with self._lock:
                    room = self.budget.used - size + self.kept + BUFFER <= self.budget.total
                    if size == BUFFER and room and len(self._spare) < SPARE:
                        self._spare.append(memory)
        del memory  # unless it is kept, it must be freed before `give` lets another thread take as much
        self.budget.give(size)


class _Memory:
    """A buffer, and how many pieces refer to it."""

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
    """A part of an image in lent memory. `view` has its bytes until `release`.

    To give it to code that releases it at another time, pass on what `hold` returns. The memory goes back when all
    pieces that refer to it are released. Using a released piece raises `ValueError`. Any thread may release it.
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
        """Shorten the piece to its first `size` bytes."""
        whole = self.view
        self.view = whole[:size]
        whole.release()

    def hold(self, released: Callable[[], object] | None = None) -> "Piece":
        """Another piece of the same bytes with its own release, after which `released` is called."""
        memory = self._memory
        if memory is None:
            raise ValueError("a piece was held after its release")
        return Piece(memory, len(self.view), released)

    def release(self) -> None:
        """Give up the bytes. A second call does nothing."""
        memory = self._memory
        if memory is None:
            return
        with memory.lock:  # if two threads release at once, only one goes on
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
