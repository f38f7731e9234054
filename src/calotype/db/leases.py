"""Who is alive: one lease for all jobs that a process runs, and a lock file that dies with it.

A process that holds jobs renews their leases in one statement every few seconds. On the same host nobody has
to wait for a lease to run out: each process keeps a file locked in the state directory, the kernel drops the
lock when the process dies, however it dies, and `dead()` names the owners whose lock is free.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from calotype import errors
from calotype.db import jobs
from calotype.db.engine import Database
from calotype.durable import make_directory, sync_directory
from calotype.model import Job

LOG = logging.getLogger(__name__)

#: How long a job of a silent process is left alone.
LEASE = timedelta(seconds=30)
_BEAT_SECONDS = 5.0


class Leases:
    """The leases of this process. Made before a fork, used after it: the owner's name is found at first use."""

    def __init__(self, db: Database, directory: Path, now: Callable[[], datetime]) -> None:
        self._db = db
        self._directory = directory
        self._now = now
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._held: dict[str, threading.Event] = {}
        self._left: dict[str, datetime] = {}
        self._owner: tuple[int, str] | None = None
        self._beating = False
        self._runs_jobs = False

    @property
    def owner(self) -> str:
        """This process's name in the table; its lock file exists and is locked from now on."""
        with self._lock:
            if self._owner is None or self._owner[0] != os.getpid():
                self._owner = (os.getpid(), self._announce())
                self._beating = False
                self._held = {}
                self._left = {}
            return self._owner[1]

    def until(self) -> datetime:
        """When a lease taken now runs out."""
        return self._now() + LEASE

    @contextlib.contextmanager
    def holding(self, job: Job) -> Iterator[Callable[[], None]]:
        """Keep the lease of a job while the block runs; yields a check that raises `Gone` once it is lost."""
        lost = threading.Event()
        with self._lock:
            if not self._beating:
                threading.Thread(target=self._beat, name="leases", daemon=True).start()
                self._beating = True
            self._held[job.token] = lost

        def check() -> None:
            if lost.is_set():
                raise errors.Gone("The image was deleted, or its upload given up, while data was arriving.")

        try:
            yield check
        finally:
            with self._lock:
                self._held.pop(job.token, None)

    def leave(self, job: Job | None) -> None:
        """Nobody works on this job, if it is ours, and the table cannot be told: the database is away."""
        if job is not None:
            with self._lock:
                self._left[job.id] = self.until()

    def left(self) -> frozenset[str]:
        """Ids of jobs that were left, for as long as their leases may run."""
        with self._lock:
            self._left = {job_id: until for job_id, until in self._left.items() if until > self._now()}
            return frozenset(self._left)

    def dead(self) -> list[str]:
        """Owners on this host whose process is gone. Their files stay until `forget`."""
        dead = []
        for path in self._directory.glob(f"{socket.gethostname()}:*"):
            if self._owner and path.name == self._owner[1]:
                continue
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except OSError:
                continue  # Locked: alive.
            dead.append(path.name)
        return dead

    def forget(self, owners: list[str]) -> None:
        """Remove the files of dead owners, once none of their jobs is left."""
        for owner in owners:
            (self._directory / owner).unlink(missing_ok=True)

    def pulse(self) -> None:
        """This process works off jobs; to be called while it does nothing else, and said by itself while it does."""
        self._runs_jobs = True
        with contextlib.suppress(OSError):  # a disk that is full or broken is told of elsewhere
            age = self.pulse_age()
            if age is None or age >= _BEAT_SECONDS:
                make_directory(self._directory)
                self._pulse_file.touch(mode=0o600)

    def pulse_age(self) -> float | None:
        """Seconds since a process on this host said that it works off jobs; None when none ever did."""
        try:
            return max(0.0, time.time() - self._pulse_file.stat().st_mtime)
        except OSError:
            return None

    @property
    def _pulse_file(self) -> Path:
        return self._directory / "runner"

    def close(self) -> None:
        """Say good-bye: whatever this process still held may be taken over at once."""
        self._wake.set()
        with self._lock:
            if self._owner and self._owner[0] == os.getpid():
                if not self._held:
                    (self._directory / self._owner[1]).unlink(missing_ok=True)
                os.close(self._file)
            self._owner = None

    def _announce(self) -> str:
        make_directory(self._directory)
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        # Locked before it has the name that others look for, so that it is never seen unlocked while alive.
        hidden = self._directory / f".{owner}"
        self._file = os.open(hidden, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        hidden.rename(self._directory / owner)
        # After lost power this name says who is dead; without it, jobs would wait for their leases to run out.
        sync_directory(self._directory)
        return owner

    def _beat(self) -> None:
        while not self._wake.wait(_BEAT_SECONDS):
            if self._runs_jobs:
                self.pulse()
            with self._lock:
                if not self._held:
                    self._beating = False
                    return
                before = dict(self._held)
            try:
                kept = self._renew(before)
            except Exception as exc:  # noqa: BLE001  # whatever it is: without this thread every lease would run out
                LOG.warning("leases could not be renewed: %s", errors.reason(exc))
                continue
            for token, lost in before.items():
                if token not in kept:
                    lost.set()

    def _renew(self, tokens: Iterable[str]) -> frozenset[str]:
        ids = [token.rpartition("-")[0] for token in tokens]
        owner = self.owner
        return self._db.transact(lambda tx: jobs.beat(tx, owner, ids, self.until()))
