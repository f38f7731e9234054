"""`Transfers`: what all transfers of a process share, so that no number of clients makes it grow.

Memory for passing bytes (`buffers.py`), threads that hash them, and slots: an upload holds one from before anything is
changed for it until its end. Uploads are visible while they run: in the log, and in a file of each process that
`calotype status` reads (`running`).
"""

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from calotype import errors
from calotype.buffers import PATIENCE, Buffers, Slots
from calotype.durable import make_directory, open_private
from calotype.threads import ThreadPool

LOG = logging.getLogger(__name__)

#: How often the file is written anew while uploads run, in seconds.
REPORT_INTERVAL = 1.0
#: A file that was not written for so long, in seconds, is of a process that is gone.
STALE = 10.0


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as it was a moment ago. Times are seconds, sizes bytes, `rate` bytes a second."""

    image_id: str
    project: str | None
    store: str
    expected: int | None  #: bytes that were announced, if any were
    size: int = 0  #: bytes that came so far
    age: float = 0.0
    rate: float = 0.0  #: since the last look


class Transfers:
    """One for a process. Its threads start at the first need, hence after a fork, and end when they are idle."""

    def __init__(self, memory: int, most: int, patience: float = PATIENCE, directory: Path | None = None) -> None:
        """`memory` is in bytes; at most `most` uploads are under way at once; `patience` is in seconds.

        What runs is told in files of `directory`.
        """
        self.buffers = Buffers(memory)
        # More threads than processors would only take turns.
        self.hashing = ThreadPool(max(2, len(os.sched_getaffinity(0))), name="hashing")
        busy = errors.Busy("Too many uploads are under way in this process; try again in a moment.")
        self._slots = Slots(most, busy, patience)
        self._directory = directory
        self._lock = threading.Lock()
        self._followed: set[_Followed] = set()
        self._reports = False

    def slot(self) -> AbstractContextManager[None]:
        """A slot for one upload, for the length of the block. Waits a moment for one, then raises `Busy`."""
        return self._slots.hold()

    @contextlib.contextmanager
    def following(self, upload: Upload, size: Callable[[], int]) -> Iterator[None]:
        """Let others see an upload for the length of the block, and log its begin and end. `size` tells how far it is.

        Nothing of it is written per byte, nor to the database: one thread looks at all uploads once a second.
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
        """Write down what runs, once a second, until nothing does."""
        assert self._directory is not None
        path = self._directory / f"{os.getpid()}-{secrets.token_hex(4)}"
        said = False
        while True:
            with self._lock:
                if not self._followed:
                    self._reports = False
                    break
                uploads = [asdict(one.now()) for one in self._followed]
            try:
                make_directory(self._directory)
                if not said:
                    _sweep(self._directory)
                temporary = path.with_name(f".{path.name}")
                with os.fdopen(open_private(temporary, os.O_WRONLY | os.O_TRUNC), "w") as file:
                    json.dump({"written": time.monotonic(), "uploads": uploads}, file)
                temporary.rename(path)
                said = True
            except OSError as exc:  # a disk that is full or broken is told of elsewhere
                LOG.debug("what runs cannot be written down: %s", exc)
            time.sleep(REPORT_INTERVAL)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def running(directory: Path) -> list[Upload]:
    """The uploads of all processes of this host that tell of theirs in `directory`, the oldest first."""
    found = [Upload(**one) for path in _files(directory) for one in _fresh(path)]
    return sorted(found, key=lambda upload: -upload.age)


@dataclass(eq=False, slots=True)
class _Followed:
    """An upload that runs, and what was last seen of it."""

    upload: Upload
    size: Callable[[], int]
    begun: float = field(default_factory=time.monotonic)
    seen: tuple[float, int] | None = None  #: moment and size

    def now(self, *, overall: bool = False) -> Upload:
        """As it is; the rate is that since the last call, or since its begin."""
        moment, size = time.monotonic(), self.size()
        since, before = (self.begun, 0) if overall or self.seen is None else self.seen
        self.seen = (moment, size)
        rate = (size - before) / max(moment - since, 1e-3)
        return replace(self.upload, size=size, age=moment - self.begun, rate=rate)


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def _fresh(path: Path) -> list[dict[str, Any]]:
    """What a file says, if its process is there: all processes of a boot have the same monotonic clock."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # it went away, or power was lost while it was written
        return []
    return list(found["uploads"]) if 0 <= time.monotonic() - found["written"] < STALE else []


def _sweep(directory: Path) -> None:
    """Remove what processes left that were killed."""
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 60:
                path.unlink()
