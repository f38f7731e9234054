"""One writer at a time, in the order in which they came; those who are in a hurry go first."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from calotype import errors


class Turns:
    """A lock that is fair, and that nobody waits for beyond his time."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nobody has it and nobody waits, as in a process that was just forked."""
        self._lock = threading.Lock()
        self._taken = False
        #: Locks that are released when it is their owner's turn: of those in a hurry, and of the others.
        self._waiting: tuple[deque[threading.Lock], deque[threading.Lock]] = (deque(), deque())

    @contextmanager
    def take(self, until: float, *, hurry: bool) -> Iterator[None]:
        """Have it for the length of the block. Raises `Busy` when it is not free by then (`time.monotonic`)."""
        mine = threading.Lock()
        with self._lock:
            waits = self._taken
            self._taken = True
            if waits:
                mine.acquire()
                self._waiting[0 if hurry else 1].append(mine)
        if waits and not mine.acquire(timeout=max(0.0, until - time.monotonic())):
            self._leave(mine, hurry=hurry)
        try:
            yield
        finally:
            self._pass_on()

    def _leave(self, mine: threading.Lock, *, hurry: bool) -> None:
        with self._lock:
            if mine in (queue := self._waiting[0 if hurry else 1]):
                queue.remove(mine)
                raise errors.Busy("Too many wait for the database; try again later.")
        # It was passed on to us in the same moment.

    def _pass_on(self) -> None:
        with self._lock:
            if next(chain(*self._waiting), None) is None:
                self._taken = False
            else:
                (self._waiting[0] or self._waiting[1]).popleft().release()
