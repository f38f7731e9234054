"""Who is alive: one beat for all jobs that a process runs, and a lock file that dies with it.

No clock of a host or a database decides here. A process that holds jobs changes a number in its row every few seconds,
and others watch whether it changes (`watch.py`): a lease is how long they must have seen it silent. On the same host
nobody has to wait: each process keeps a file locked in the state directory, the kernel drops the lock when the process
dies, however it dies, and `dead()` names the owners whose lock is free.

A process never takes what it holds itself, nor what another living one of its host does. It counts the silence of
others only between two beats of its own: whoever was paused, or lost the database, lets others beat first.
"""

import contextlib
import fcntl
import functools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from calotype import errors
from calotype.db import jobs, processes
from calotype.db.engine import Database, Tx
from calotype.db.jobs import Running
from calotype.db.watch import Watch
from calotype.durable import make_directory, sync_directory
from calotype.model import Job

LOG = logging.getLogger(__name__)

#: How long a job of a silent process is left alone.
LEASE = timedelta(seconds=30)
_BEAT_SECONDS = 5.0
#: How long the file stays of a process that nobody knows and nobody can tell to be dead, seconds.
_KEPT = 12 * 3600


class Leases:
    """The leases of this process. Made before a fork, used after it: the owner's name is found at first use."""

    def __init__(self, db: Database, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._directory = directory
        self.clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._owner: tuple[int, str] | None = None
        self._begin()

    def _begin(self) -> None:
        self._held: dict[str, threading.Event] = {}
        self._remaining: dict[str, tuple[float, Running]] = {}
        self._silent: dict[str, Running] = {}
        self._watch = Watch(self.clock)
        self._beating = False
        self._has_beaten = False
        self._runs_jobs = False

    @property
    def owner(self) -> str:
        """This process's name in the table; its lock file exists and is locked from now on."""
        with self._lock:
            if self._owner is None or self._owner[0] != os.getpid():
                self._owner = (os.getpid(), self._announce())
                self._begin()
            return self._owner[1]

    # --- jobs --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def holding(self, job: Job) -> Iterator[Callable[[], None]]:
        """Keep the lease of a job while the block runs; yields a check that raises `Gone` once it is lost."""
        lost = threading.Event()
        with self._lock:
            self._start_beating()
            self._held[job.token] = lost
            self._silent.pop(job.id, None)

        def check() -> None:
            if lost.is_set():
                raise errors.Gone("The image was deleted, or its upload given up, while data was arriving.")

        try:
            yield check
        finally:
            with self._lock:
                self._held.pop(job.token, None)

    def leave(self, job: Job | None) -> None:
        """Nobody works on this job any more, if it is ours, and the table was not told, or perhaps not."""
        if job is not None:
            owner = self.owner
            with self._lock:
                self._start_beating()
                self._remaining[job.token] = (self.clock(), Running(job.id, job.attempt, owner))

    def orphans(self) -> list[Running]:
        """Attempts of this process that were left, and of others that have been silent for a lease."""
        with self._lock:
            return [one for _, one in self._remaining.values()] + list(self._silent.values())

    def beat(self) -> None:
        """Say that this process lives; learn which jobs it lost, and who else is silent. Raises `Busy`.

        Jobs of this process that nobody in it works on are given back.
        """
        owner = self.owner
        alive, _ = self._neighbours()
        with self._lock:
            begun = self.clock()
            before = dict(self._held)

        def work(tx: Tx) -> list[Running]:
            processes.beat(tx, owner, socket.gethostname())
            return jobs.running(tx, but=alive)

        running = {one.token: one for one in self._db.write(work)}
        self._has_beaten = True
        for token, lost in before.items():
            if token not in running:
                lost.set()
        patience = LEASE.total_seconds()
        with self._lock:
            held = before.keys() | self._held.keys()
            # What nobody here holds is just beginning, or of a commit whose answer got lost, and that nobody left.
            mine = {token for token, one in running.items() if one.owner == owner}
            watched = {token: one.beat for token, one in running.items() if token not in mine}
            self._watch.observe(watched | dict.fromkeys(mine - held))
            silent = [one for token, one in running.items() if self._watch.age(token) >= patience]
            self._silent = {one.job_id: one for one in silent if one.owner != owner}
            idle = [one for one in silent if one.owner == owner]
            idle += [running[token] for token in self._remaining.keys() & mine]
            # Such a commit may be carried out after it was looked for, but not that much later.
            self._remaining = {
                token: remaining
                for token, remaining in self._remaining.items()
                if token not in mine and begun - remaining[0] < patience
            }
        if idle:
            self._db.write(lambda tx: jobs.give_back(tx, idle))

    # --- processes of this host --------------------------------------------------------------------------

    def dead(self) -> list[str]:
        """Owners on this host whose process is gone. Their files stay until `forget`."""
        return self._neighbours()[1]

    def forget(self, owners: list[str]) -> None:
        """Remove what tells of dead owners, once none of their jobs is left."""
        if owners:
            self._db.write(lambda tx: processes.forget(tx, owners))
        for owner in owners:
            (self._directory / owner).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove old files that say nothing any more: of hosts that are gone, or of who died while it made one."""
        old = []
        for path in self._files():
            with contextlib.suppress(OSError):
                # A clock that is wrong does no harm: what lives without a file is known by its beat.
                if time.time() - path.stat().st_mtime > _KEPT and self._life(path) is not True:
                    old.append(path.name)
        known = self._db.snapshot(lambda tx: processes.known(tx, old)) if old else frozenset()
        for name in old:
            if name not in known:
                (self._directory / name).unlink(missing_ok=True)

    def _neighbours(self) -> tuple[list[str], list[str]]:
        """Other owners that have a file here and are alive, and those that are dead."""
        lives = {path.name: self._life(path) for path in self._files() if not path.name.startswith(".")}
        return [name for name, life in lives.items() if life], [name for name, life in lives.items() if life is False]

    def _files(self) -> list[Path]:
        mine = self._owner[1] if self._owner else None
        try:
            return [path for path in self._directory.iterdir() if path.name.count(":") >= 2 and path.name != mine]
        except FileNotFoundError:
            return []

    def _life(self, path: Path) -> bool | None:
        """Whether the process is alive whose file this is; None where that cannot be told."""
        try:
            with path.open("rb") as file:
                try:
                    # A lock to share: who looks at the same time must not take us for the one who lives.
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
                boot = file.read(100).decode(errors="replace")
        except OSError:
            return None
        if boot == _boot():
            return False  # Of this kernel, in whatever container: it has dropped the lock.
        if path.name.rsplit(":", 2)[0] == socket.gethostname():
            return False  # This host has been started since; or the file is of a release that wrote nothing into it.
        # Of another host. A directory on NFS may be mounted so that locks are known on their own host alone: that we
        # get this one does not mean that nobody has it.
        return None

    def _announce(self) -> str:
        make_directory(self._directory)
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        # Locked before it has the name that others look for, so that it is never seen unlocked while alive.
        hidden = self._directory / f".{owner}"
        self._file = os.open(hidden, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.write(self._file, _boot().encode())
        hidden.rename(self._directory / owner)
        # After lost power this name says who is dead; without it, jobs would wait for their leases to run out.
        sync_directory(self._directory)
        return owner

    # --- the runner --------------------------------------------------------------------------------------

    def pulse(self) -> None:
        """This process works off jobs; to be called while it does nothing else, and said by itself while it does."""
        self.owner  # noqa: B018  # a process that was forked begins anew
        with self._lock:
            self._runs_jobs = True
            self._start_beating()
        with contextlib.suppress(OSError):  # a disk that is full or broken is told of elsewhere
            age = self.pulse_age()
            if age is None or age >= _BEAT_SECONDS:
                make_directory(self._directory)
                temporary = self._directory / f".runner.{os.getpid()}"
                temporary.write_text(f"{time.monotonic()} {_boot()}")
                temporary.rename(self._directory / "runner")

    def pulse_age(self) -> float | None:
        """Seconds since a process on this host said that it works off jobs; None when none ever did since it booted."""
        try:
            moment, boot = (self._directory / "runner").read_text().split(" ", 1)
            # All processes of a boot have the same monotonic clock.
            return max(0.0, time.monotonic() - float(moment)) if boot == _boot() else None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Say good-bye: whatever this process still held may be taken over at once."""
        self._wake.set()
        owner = self._owner[1] if self._owner and self._owner[0] == os.getpid() else None
        rest = self._held or self._remaining
        if owner and self._has_beaten and not rest:
            with (
                contextlib.suppress(errors.CalotypeError),
                self._db.write_once() as tx,
            ):  # one try: others forget us as well
                processes.forget(tx, [owner])
        with self._lock:
            if owner:
                if not rest:
                    (self._directory / owner).unlink(missing_ok=True)
                os.close(self._file)
            self._owner = None

    # --- the thread --------------------------------------------------------------------------------------

    def _start_beating(self) -> None:
        if not self._beating:
            threading.Thread(target=self._run, name="leases", daemon=True).start()
            self._beating = True

    def _run(self) -> None:
        while not self._wake.wait(_BEAT_SECONDS):
            if self._runs_jobs and self._held:
                self.pulse()
            with self._lock:
                if not (self._held or self._remaining or self._runs_jobs):
                    self._beating = False
                    return
            try:
                if self._held or self._remaining or self._others_work():
                    self.beat()
            except Exception as exc:  # noqa: BLE001  # whatever it is: without this thread every lease would run out
                LOG.warning("leases could not be renewed: %s", errors.reason(exc))

    def _others_work(self) -> bool:
        alive, _ = self._neighbours()
        return self._db.read(lambda tx: jobs.any_running(tx, but=alive))


@functools.cache
def _boot() -> str:
    """What tells this start of this kernel from all others; nothing where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()}, some time"
