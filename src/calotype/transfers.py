"""`Transfers`: what all transfers of a process share, so that no number of clients makes it grow.

Memory for passing bytes (`buffers.py`), threads that hash them, and places: an upload has one from before anything is
changed for it until its end.
"""

import contextlib
import os
import time
from collections.abc import Iterator

from calotype import errors
from calotype.buffers import Budget, Buffers
from calotype.threads import Threads

#: Seconds that an upload waits for a place, with nothing read of its body.
PATIENCE = 10.0


class Transfers:
    """One for a process. Its threads start at the first need, hence after a fork, and end when they are idle."""

    def __init__(self, memory: int, most: int, patience: float = PATIENCE) -> None:
        """`memory` is in bytes; at most `most` uploads are under way at once."""
        self.buffers = Buffers(memory)
        # More threads than processors would only take turns.
        self.hashing = Threads(max(2, len(os.sched_getaffinity(0))), name="hashing")
        self._places = Budget(most)
        self._patience = patience

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for one upload, for the length of the block; waited for, but not long. Raises `Busy`."""
        refusal = errors.Busy("Too many uploads are under way in this process; try again in a moment.")
        if self._places.waiting * 4 > self._places.total:
            raise refusal  # those who wait have threads, too
        until = time.monotonic() + self._patience

        def wanted() -> None:
            if time.monotonic() >= until:
                raise refusal

        self._places.take(1, wanted)
        try:
            yield
        finally:
            self._places.give(1)
