"""`ThreadPool`: as many threads as there is work for, up to a limit, and no more than that for long.

A `SerialQueue` is work that such threads do in its order, one thing after the other.

What they buy: 7 s after a crowd of 1,000 a process has 1 thread and 73 MiB; with Python's executor it keeps 1,001 and
87 MiB, of 54 before. `python -m bench.worth threads`
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

LOG = logging.getLogger(__name__)

#: Seconds without work after which a thread ends.
IDLE = 5.0

_Task = Callable[[], Any]


class ThreadPool:
    """Runs what is submitted. Python's own executor keeps every thread that it ever needed, and its memory."""

    def __init__(self, most: int, idle: float = IDLE, name: str = "request") -> None:
        self._most, self._idle_seconds, self._name = most, idle, name
        self._lock = threading.Lock()
        self._waiting: deque[_Task] = deque()
        # The last one that came free is the first to work again, so that the others grow old.
        self._idle: list[SimpleQueue[_Task | None]] = []
        self._count = 0
        self._ended = False

    @property
    def busy(self) -> bool:
        """Whether work waits for a thread."""
        return bool(self._waiting)

    def submit(self, task: _Task) -> None:
        """Call `task` as soon as there is a thread. Raises `RuntimeError` after `shutdown`."""
        with self._lock:
            if self._ended:
                raise RuntimeError("no work is taken any more")
            if self._idle:
                self._idle.pop().put(task)
            elif self._count >= self._most or not self._begin(task):
                self._waiting.append(task)

    def shutdown(self, *, wait: bool = False) -> None:
        """Take no more work. What runs goes on, and nobody waits for it."""
        with self._lock:
            self._ended = True
            for one in self._idle:
                one.put(None)
            self._idle.clear()

    def _begin(self, task: _Task) -> bool:
        """Start a thread. Where the system gives none, those that there are must do, if there are any."""
        self._count += 1
        try:
            # A daemon: the process does not wait for those whose client takes longer than its grace.
            threading.Thread(target=self._run, args=(task,), name=self._name, daemon=True).start()
        except RuntimeError:
            self._count -= 1
            if not self._count:
                raise
            return False
        return True

    def _run(self, task: _Task | None) -> None:
        mine: SimpleQueue[_Task | None] = SimpleQueue()
        while task is not None:
            try:
                task()
            except BaseException:
                LOG.exception("a %s was not served to its end", self._name)
            del task  # an idle thread keeps nothing alive
            task = self._next(mine)
        with self._lock:
            self._count -= 1

    def _next(self, mine: "SimpleQueue[_Task | None]") -> _Task | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._ended:
                return None
            self._idle.append(mine)
        try:
            return mine.get(timeout=self._idle_seconds)
        except Empty:
            with self._lock:
                if mine in self._idle:
                    self._idle.remove(mine)
                    return None
            return mine.get()  # it was chosen in the same moment


class SerialQueue:
    """Tasks that are done in their order, one at a time, by whichever threads are free."""

    def __init__(self, threads: ThreadPool) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._tasks: deque[_Task] = deque()
        self._working = False

    @property
    def idle(self) -> bool:
        """Whether everything is done."""
        return not self._working

    def submit(self, task: _Task) -> None:
        """Call `task`, which must not raise, when all before it are done."""
        with self._lock:
            self._tasks.append(task)
            if self._working:
                return
            self._working = True
        try:
            self._threads.submit(self._work)
        except RuntimeError:
            self._work()  # The system gives no thread at all just now.

    def _work(self) -> None:
        while True:
            self._tasks.popleft()()
            with self._lock:
                if not self._tasks:
                    self._working = False
                    return
            if self._threads.busy:  # others wait for their turn
                self._threads.submit(self._work)
                return
