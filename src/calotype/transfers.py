"""`Transfers`: what all transfers of a process share, so that no number of clients makes it grow.

Memory for passing bytes (`buffers.py`), threads that hash them, and slots: an upload holds one
from before anything is changed for it until its end.
"""

import os
from contextlib import AbstractContextManager

from calotype import errors
from calotype.buffers import PATIENCE, Buffers, Slots
from calotype.threads import ThreadPool


class Transfers:
    """One for a process. Its threads start at the first need, hence after a fork, and end when they are idle."""

    def __init__(self, memory: int, most: int, patience: float = PATIENCE) -> None:
        """`memory` is in bytes; at most `most` uploads are under way at once; `patience` is in seconds."""
        self.buffers = Buffers(memory)
        # More threads than processors would only take turns.
        self.hashing = ThreadPool(max(2, len(os.sched_getaffinity(0))), name="hashing")
        busy = errors.Busy("Too many uploads are under way in this process; try again in a moment.")
        self._slots = Slots(most, busy, patience)

    def slot(self) -> AbstractContextManager[None]:
        """A slot for one upload, for the length of the block. Waits a moment for one, then raises `Busy`."""
        return self._slots.hold()
