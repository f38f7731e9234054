"""`FairLock`: a lock for the writers of SQLite. Threads get it in the order in which they asked, some before others."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from calotype import errors


class FairLock:
    """A lock with a queue, a priority and a deadline for each thread that waits."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the holder and all that wait. A forked child needs this: their threads exist in its parent only."""
        self._lock = threading.Lock()
        self._taken = False
        #: One locked lock for each thread that waits, released when its turn comes: with priority, and without.
        self._waiting: tuple[deque[threading.Lock], deque[threading.Lock]] = (deque(), deque())

    @contextmanager
    def acquire(self, deadline: float, *, has_priority: bool) -> Iterator[None]:
        """Hold the lock for the length of the block. Raises `Busy` if it is not free by `deadline` (monotonic)."""
        mine = threading.Lock()
        with self._lock:
            waits = self._taken
            self._taken = True
            if waits:
                mine.acquire()
                self._waiting[0 if has_priority else 1].append(mine)
        if waits and not mine.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._stop_waiting(mine, has_priority=has_priority)
        try:
            yield
        finally:
            self._release()

    def _stop_waiting(self, mine: threading.Lock, *, has_priority: bool) -> None:
        with self._lock:
            if mine in (queue := self._waiting[0 if has_priority else 1]):
                queue.remove(mine)
                raise errors.Busy("Too many wait for the database; try again later.")
        # Else the lock was handed to us just when we stopped waiting.

    def _release(self) -> None:
        with self._lock:
            if next(chain(*self._waiting), None) is None:
                self._taken = False
            else:
                (self._waiting[0] or self._waiting[1]).popleft().release()
