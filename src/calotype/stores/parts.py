"""`Parts`: cuts the bytes of one write into parts and sends several of them at once, for drivers of object stores.

The driver says how one part is sent, and how the object is completed. A part stays in memory until it is sent, so the
driver may send it again. Threads of the store send.

Memory: all writes of a process share one `Budget` for parts. A write takes memory for its first part when it has more
than `HEAD` bytes, and further memory only if it is free; else it waits until one of its own parts is sent. While it
waits for the first part it holds no piece. So writes that wait cannot block each other, and a silent client holds at
most `HEAD`. A write holds at most `at_once` parts, `HEAD`, and one piece.
"""

import mmap
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from calotype import errors, logs
from calotype.buffers import PATIENCE, Budget, Piece
from calotype.threads import ThreadPool

T = TypeVar("T")

#: Bytes that a write keeps before it takes memory for a part.
HEAD: Final = 256 << 10


class Parts(Generic[T]):
    """The parts of one write, which one thread uses. Call `finish` or `close` at its end, in any case `close`."""

    #: For `Write.window` of the driver: a piece may be released before `put` returns.
    window: Final = 1

    def __init__(
        self,
        send: Callable[[int, memoryview], T],
        *,
        size: Callable[[int], int],
        at_once: int,
        memory: Budget,
        threads: ThreadPool,
        store: str,
        patience: float = PATIENCE,
    ) -> None:
        """`send(number, data)` sends a part; numbers begin at 1. It returns what the driver needs of it later.

        `size(number)` is the size of a part in bytes, at least `HEAD`; the last part may be smaller, but not empty.
        `at_once` is how many parts are kept and sent at the same time. A write that gets no memory for its first part
        within `patience` seconds raises `StoreBusy`, with the name of the store.
        """
        self.total = 0  #: bytes put so far
        self.cancelled = threading.Event()  #: set by `close`: a `send` that waits should end
        self._send, self._size, self._at_once = send, size, at_once
        self._memory, self._threads, self._store, self._patience = memory, threads, store, patience
        self._log = logs.follow()
        self._changed = threading.Condition()
        self._head = bytearray()
        self._part: mmap.mmap | None = None  # the part that is being filled, up to `_filled`
        self._filled = 0
        self._number = 0  # of that part
        self._spare: mmap.mmap | None = None
        self._held = 0  # parts in memory: the one that is being filled, those on their way, and the spare one
        self._flying = 0
        self._sent: dict[int, T] = {}
        self._failure: BaseException | None = None

    def put(self, piece: Piece) -> None:
        """`Write.put`. Raises what `send` raised for an earlier part, and `StoreBusy`."""
        try:
            self._raise_failure()
            if not self._number and len(self._head) + len(piece.view) <= HEAD:
                self._head += piece.view
                self.total += len(piece.view)
                return
            have: memoryview = piece.view
            if self._part is None and not self._next_part(wait=False):
                have = memoryview(bytes(have))
                piece.release()
                self._next_part(wait=True)
            done = 0
            while done < len(have):
                if self._part is None:
                    self._next_part(wait=True)
                done += self._fill(have, done)
        finally:
            piece.release()

    def whole(self) -> memoryview | None:
        """All bytes, if no part was sent so far: a small object is better sent in one request. Release the view."""
        if not self._number:
            return memoryview(self._head)
        if self._number == 1 and self._part is not None:
            return memoryview(self._part)[: self._filled]
        return None

    def finish(self) -> list[T]:
        """Send the last part, wait until all are sent, and return what `send` returned, by number.

        Raises what `send` raised. There is at least one part, which may be empty.
        """
        if not self._number:
            self._next_part(wait=True)
        if self._part is not None:
            self._dispatch()
        with self._changed:
            self._changed.wait_for(lambda: not self._flying)
        self._raise_failure()
        return [self._sent[number] for number in sorted(self._sent)]

    def close(self) -> None:
        """Wait for the parts that are being sent, send no more, and give back all memory. May be called again."""
        self.cancelled.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._flying)
            kept = [one for one in (self._part, self._spare) if one is not None]
            self._part = self._spare = None
        for one in kept:
            self._give_back(one)
        self._head.clear()

    # --- memory ------------------------------------------------------------------------------------------

    def _next_part(self, *, wait: bool) -> bool:
        """Begin the next part; False if the process has no memory for the first one now and this must not wait."""
        size = self._size(self._number + 1)
        memory = None
        while memory is None:
            with self._changed:
                self._raise_failure()
                spare, self._spare = self._spare, None
                alone = not self._held
                may_take = self._held < self._at_once
            if spare is not None and len(spare) == size:
                memory = spare
                break
            if spare is not None:  # parts have grown
                self._give_back(spare)
                continue
            if may_take and self._memory.take_now(size):
                memory = self._make(size)
            elif not alone:
                with self._changed:
                    self._changed.wait_for(lambda: self._spare or self._failure or not self._held)
            elif wait:
                self._take_patiently(size)
                memory = self._make(size)
            else:
                return False
        self._part, self._filled = memory, 0
        self._number += 1
        if self._head:
            self._filled = len(self._head)
            memory[: self._filled] = bytes(self._head)
            self._head.clear()
        return True

    def _take_patiently(self, size: int) -> None:
        until = time.monotonic() + self._patience

        def poll() -> None:
            if time.monotonic() >= until:
                raise errors.StoreBusy(
                    f"Too many uploads to store {self._store} are under way in this process.", self._store
                )

        self._memory.take(size, poll)

    def _make(self, size: int) -> mmap.mmap:
        try:
            made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except BaseException:
            self._memory.give(size)
            raise
        with self._changed:
            self._held += 1
        return made

    def _give_back(self, memory: mmap.mmap) -> None:
        size = len(memory)
        memory.close()
        self._memory.give(size)
        with self._changed:
            self._held -= 1
            self._changed.notify_all()

    # --- sending -----------------------------------------------------------------------------------------

    def _fill(self, data: memoryview, start: int) -> int:
        """Add bytes to the current part, and send it when it is full. Returns how many were added."""
        part = self._part
        assert part is not None
        count = min(len(part) - self._filled, len(data) - start)
        with data[start : start + count] as some:
            part[self._filled : self._filled + count] = some
        self._filled += count
        self.total += count
        if self._filled == len(part):
            self._dispatch()
        return count

    def _dispatch(self) -> None:
        part, number, filled = self._part, self._number, self._filled
        assert part is not None
        self._part = None
        with self._changed:
            self._flying += 1

        def run() -> None:
            self._log()
            self._carry_out(number, part, filled)

        try:
            self._threads.submit(run)
        except RuntimeError:  # the system gives no thread, so the caller's own does it
            run()

    def _carry_out(self, number: int, part: mmap.mmap, filled: int) -> None:
        """Send one part. It becomes the spare one, or its memory goes back."""
        try:
            if not self._failure and not self.cancelled.is_set():
                with memoryview(part) as view, view[:filled] as data:
                    self._sent[number] = self._send(number, data)
        except BaseException as exc:  # noqa: BLE001 - the caller of `put` or `finish` gets it
            with self._changed:
                self._failure = self._failure or exc
        with self._changed:
            keep = self._spare is None and not self.cancelled.is_set()
            if keep:
                self._spare = part
        if not keep:
            self._give_back(part)
        with self._changed:
            self._flying -= 1
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
