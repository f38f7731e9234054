"""`Transfers`: the resources that all transfers of a process share. They are limited, however many clients there are.

These are memory for image data (`buffers.py`), threads that hash it, and slots for uploads. An upload takes its slot
before it changes anything, and holds it until its end. Running uploads are visible in the log, and in a file of each
process that `calotype status` reads (`running`).
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from calotype import errors
from calotype.buffers import PATIENCE, Buffers, Slots
from calotype.durable import make_directory, open_private
from calotype.threads import ThreadPool

LOG = logging.getLogger(__name__)

#: How often the file is rewritten while uploads run, in seconds.
REPORT_INTERVAL = 1.0
#: The process of a file that is older than this, in seconds, is taken to be dead.
STALE = 10.0


@dataclass(frozen=True, slots=True)
class Upload:
    """The state of an upload at one moment. Times are seconds, sizes bytes, `rate` bytes a second."""

    image_id: str
    project: str | None
    store: str
    expected: int | None  #: the announced size, if there is one
    size: int = 0  #: bytes received so far
    age: float = 0.0
    rate: float = 0.0  #: since the previous report


class HostSlots:
    """A number of slots that all processes of a host share. Each is a file; who has it locked holds the slot."""

    def __init__(self, directory: Path, most: int) -> None:
        self._directory = directory
        self._most = most

    def take(self) -> tuple[Callable[[], None], bool] | None:
        """Take a slot; returns what gives it back, and whether it is the last of several. None if all are taken.

        The kernel gives back the slots of the dead.
        """
        make_directory(self._directory)
        for number in range(self._most):
            file = open_private(self._directory / str(number), os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            return partial(os.close, file), 1 <= number == self._most - 1
        return None


class Transfers:
    """One object for each process. Its threads start when they are first needed, so after a fork, and end when idle."""

    def __init__(self, memory: int, most: int, patience: float = PATIENCE, directory: Path | None = None) -> None:
        """`memory` is in bytes. At most `most` uploads run at once; the next one waits `patience` seconds for a slot.

        Running uploads are reported in files in `directory`.
        """
        self.buffers = Buffers(memory)
        # More threads than processors would gain nothing.
        self.hashing = ThreadPool(max(2, len(os.sched_getaffinity(0))), name="hashing")
        busy = errors.Busy("Too many uploads are under way in this process; try again in a moment.")
        self._slots = Slots(most, busy, patience)
        self._directory = directory
        self._lock = threading.Lock()
        self._followed: set[_Followed] = set()
        self._reports = False

    def slot(self) -> AbstractContextManager[None]:
        """Hold a slot for one upload for the length of the block. Raises `Busy` if none becomes free in time."""
        return self._slots.hold()

    @contextlib.contextmanager
    def following(self, upload: Upload, size: Callable[[], int]) -> Iterator[None]:
        """Report an upload for the length of the block, and log its start and end. `size` returns the bytes so far.

        The database is not involved: one thread reads the sizes of all uploads once a second and writes the file.
        """
        one = _Followed(upload, size)
        with self._lock:
            self._followed.add(one)
            if self._directory is not None and not self._reports:
                threading.Thread(target=self._report, name="transfers", daemon=True).start()
                self._reports = True
        announced = "an unknown number of" if upload.expected is None else upload.expected
        LOG.info("upload begins: %s bytes into store %s", announced, upload.store)
        failure = "it was broken off"
        try:
            yield
            failure = ""
        except errors.CalotypeError as exc:
            failure = str(exc)
            raise
        finally:
            with self._lock:
                self._followed.discard(one)
            done = one.now(overall=True)
            facts = (done.size, upload.store, done.age, done.rate / (1 << 20))
            if failure:
                LOG.info("upload failed: %d bytes for store %s in %.1f s, %.1f MiB/s: %s", *facts, failure)
            else:
                LOG.info("upload done: %d bytes into store %s in %.1f s, %.1f MiB/s", *facts)

    def _report(self) -> None:
        """Write the running uploads to the file once a second, until none runs."""
        assert self._directory is not None
        path = self._directory / f"{os.getpid()}-{secrets.token_hex(4)}"
        swept = False
        while True:
            with self._lock:
                if not self._followed:
                    self._reports = False
                    break
                uploads = [asdict(one.now()) for one in self._followed]
            try:
                make_directory(self._directory)
                if not swept:
                    _sweep(self._directory)
                temporary = path.with_name(f".{path.name}")
                with os.fdopen(open_private(temporary, os.O_WRONLY | os.O_TRUNC), "w") as file:
                    json.dump({"written": time.monotonic(), "uploads": uploads}, file)
                temporary.rename(path)
                swept = True
            except OSError as exc:  # other code reports a disk that is full or broken
                LOG.debug("the running uploads cannot be reported: %s", exc)
            time.sleep(REPORT_INTERVAL)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def running(directory: Path) -> list[Upload]:
    """The running uploads of all processes of this host that report to `directory`, the oldest first."""
    found = [Upload(**one) for path in _files(directory) for one in _fresh(path)]
    return sorted(found, key=lambda upload: -upload.age)


@dataclass(eq=False, slots=True)
class _Followed:
    """A running upload, and its size when it was last reported."""

    upload: Upload
    size: Callable[[], int]
    started: float = field(default_factory=time.monotonic)
    seen: tuple[float, int] | None = None  #: moment and size

    def now(self, *, overall: bool = False) -> Upload:
        """Its present state. The rate is since the previous call; with `overall`, or without one, since the start."""
        moment, size = time.monotonic(), self.size()
        since, before = (self.started, 0) if overall or self.seen is None else self.seen
        self.seen = (moment, size)
        rate = (size - before) / max(moment - since, 1e-3)
        return replace(self.upload, size=size, age=moment - self.started, rate=rate)


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def _fresh(path: Path) -> list[dict[str, Any]]:
    """The uploads in a file, if it is recent. Since the last boot all processes have the same monotonic clock."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # it was removed, or power was lost while it was written
        return []
    return list(found["uploads"]) if 0 <= time.monotonic() - found["written"] < STALE else []


def _sweep(directory: Path) -> None:
    """Remove the files of processes that were killed."""
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 60:
                path.unlink()
