"""`ThreadPool`: a pool whose threads end when they are idle. `SerialQueue`: tasks that it runs one after the other.

7 s after 1,000 simultaneous requests a process has 1 thread and uses 73 MiB. With Python's executor it keeps 1,001
threads and 87 MiB; before the requests it used 54 MiB. `python -m bench.worth threads` measures this.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

LOG = logging.getLogger(__name__)

#: A thread without work ends after this time, seconds.
IDLE = 5.0

_Task = Callable[[], Any]


class ThreadPool:
    """Runs tasks in up to `most` threads. Python's own executor never ends a thread, and so keeps its memory."""

    def __init__(self, most: int, idle: float = IDLE, name: str = "request") -> None:
        self._most, self._idle_seconds, self._name = most, idle, name
        self._lock = threading.Lock()
        self._waiting: deque[_Task] = deque()
        # A stack: the thread that became idle last works next. So the others stay idle long enough to end.
        self._idle: list[SimpleQueue[_Task | None]] = []
        self._count = 0
        self._ended = False

    @property
    def busy(self) -> bool:
        """Whether a task waits for a thread."""
        return bool(self._waiting)

    def submit(self, task: _Task) -> None:
        """Run `task` as soon as a thread is free. Raises `RuntimeError` after `shutdown`."""
        with self._lock:
            if self._ended:
                raise RuntimeError("no work is taken any more")
            if self._idle:
                self._idle.pop().put(task)
            elif self._count >= self._most or not self._start(task):
                self._waiting.append(task)

    def shutdown(self, *, wait: bool = False) -> None:
        """Accept no more tasks. Running ones go on; this does not wait for them, whatever `wait` says."""
        with self._lock:
            self._ended = True
            for one in self._idle:
                one.put(None)
            self._idle.clear()

    def _start(self, task: _Task) -> bool:
        """Start a thread for `task`; False if the system gives none, but other threads exist to run it later."""
        self._count += 1
        try:
            # Daemons, so that a process that ends does not wait for slow clients.
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
            del task  # else an idle thread would keep its last task alive
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
            return mine.get()  # `submit` chose this thread at the same moment


class SerialQueue:
    """Runs tasks in the order of `submit`, one at a time, on threads of a pool."""

    def __init__(self, threads: ThreadPool) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._tasks: deque[_Task] = deque()
        self._working = False

    @property
    def idle(self) -> bool:
        """Whether all tasks are done."""
        return not self._working

    def submit(self, task: _Task) -> None:
        """Run `task` when all earlier ones are done. It must not raise."""
        with self._lock:
            self._tasks.append(task)
            if self._working:
                return
            self._working = True
        try:
            self._threads.submit(self._work)
        except RuntimeError:
            self._work()  # The system gives no thread, so the caller's own does it.

    def _work(self) -> None:
        while True:
            self._tasks.popleft()()
            with self._lock:
                if not self._tasks:
                    self._working = False
                    return
            if self._threads.busy:  # let the other tasks of the pool run first
                self._threads.submit(self._work)
                return
