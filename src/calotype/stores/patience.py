"""`Patience`: calls of libraries that may hang, each in a thread, and waited for only so long.

A thread that hangs in a library cannot be ended. It is left behind, and does its undoing when the call returns at last.
So that a backend that hangs does not take all memory, only so many threads exist; further calls wait for one of them.
"""

import logging
import os
import threading
from collections.abc import Callable
from errno import ETIMEDOUT
from typing import Any, Generic, TypeVar

from calotype.threads import ThreadPool

LOG = logging.getLogger(__name__)

T = TypeVar("T")


class StillRunning(TimeoutError):
    """The call has not returned in the given time."""


class Patience:
    """Runs calls in at most `most` threads. Thread-safe; a forked child has threads of its own."""

    def __init__(self, name: str, most: int = 64) -> None:
        self._name = name
        self._most = most
        self._lock = threading.Lock()
        self._threads: tuple[int, ThreadPool] | None = None

    def run(
        self,
        call: Callable[[], T],
        seconds: float,
        undo: Callable[[T], object] = lambda _: None,
        *,
        always: bool = False,
    ) -> T:
        """The result of `call`, or what it raises. Raises `StillRunning` if that takes longer than so many seconds.

        If it returns later all the same, `undo` is called with the result. If it has not begun by then, it never does,
        unless it must `always` be done.
        """
        task = _Task(call, undo, always)
        self.start(task)
        return task.wait(seconds)

    def start(self, task: Callable[[], object]) -> None:
        """Run a task that nobody waits for. It must not raise. Raises `TimeoutError` if the system gives no thread."""
        with self._lock:
            if self._threads is None or self._threads[0] != os.getpid():
                self._threads = (os.getpid(), ThreadPool(self._most, name=self._name))
            threads = self._threads[1]
        try:
            threads.submit(task)
        except RuntimeError as exc:
            raise TimeoutError(ETIMEDOUT, "The system gives no thread") from exc


class _Task(Generic[T]):
    def __init__(self, call: Callable[[], T], undo: Callable[[T], object], always: bool) -> None:
        self._always = always
        self._call = call
        self._undo = undo
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._given_up = False
        self._result: Any = None
        self._failure: BaseException | None = None

    def __call__(self) -> None:
        if self._given_up and not self._always:
            return
        try:
            self._result = self._call()
        except BaseException as exc:  # noqa: BLE001 - it is raised where the call is waited for
            self._failure = exc
        with self._lock:
            self._done.set()
            if not self._given_up or self._failure is not None:
                return
        try:
            self._undo(self._result)
        except Exception as exc:  # noqa: BLE001 - nobody is there to be told
            LOG.warning("a call that came back late could not be undone: %r", exc)

    def wait(self, seconds: float) -> T:
        if not self._done.wait(seconds):
            with self._lock:
                if not self._done.is_set():
                    self._given_up = True
                    raise StillRunning(ETIMEDOUT, f"no answer in {seconds:g} seconds")
        if self._failure is not None:
            raise self._failure
        result: T = self._result
        return result
