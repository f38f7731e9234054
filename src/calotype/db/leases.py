"""Leases: which processes are alive, and which jobs may be taken from processes that are not.

A process that runs jobs sends a heartbeat for all of them: it changes a number in its row every few seconds. Others
watch that number on their own monotonic clock (`watch.py`), so no clock of a host or a database decides. A process
whose number has not changed for `LEASE` loses its jobs.

On one host nobody has to wait that long. Each process keeps a file locked in the state directory, and the kernel drops
that lock when the process dies, however it dies. `dead_owners()` names the owners whose lock is free.

A process takes no job that it holds itself, and none of a living process of its host. It counts the silence of others
only between two heartbeats of its own: after a pause, or an outage of the database, others can send theirs first.
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
from calotype.db.jobs import Attempt
from calotype.db.watch import Watch
from calotype.durable import make_directory, open_private, sync_directory
from calotype.model import Job

LOG = logging.getLogger(__name__)

#: How long a job of a silent process is left alone.
LEASE = timedelta(seconds=30)
_BEAT_SECONDS = 5.0
#: Age from which an owner file is removed if its process has no row and may be alive or dead, seconds.
_STALE_SECONDS = 12 * 3600


class Leases:
    """The leases of this process. It may be made before a fork: the owner's name is made at first use."""

    def __init__(self, db: Database, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._directory = directory
        self.clock = clock
        self.staging: str | None = None  #: the identity of this host's staging directory, once it is known
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._owner: tuple[int, str] | None = None
        self._reset()

    def _reset(self) -> None:
        self._held: dict[str, threading.Event] = {}
        self._abandoned: dict[str, tuple[float, Attempt]] = {}
        self._silent: dict[str, Attempt] = {}
        self._watch = Watch(self.clock)
        self._has_thread = False
        self._has_beaten = False
        self._runs_jobs = False

    @property
    def owner(self) -> str:
        """This process's name in the table. Its owner file exists and is locked from now on."""
        with self._lock:
            if self._owner is None or self._owner[0] != os.getpid():
                self._owner = (os.getpid(), self._create_owner_file())
                self._reset()
            return self._owner[1]

    @property
    def places(self) -> tuple[str, ...]:
        """Where jobs must be for this process to run them, besides those that may run anywhere."""
        mine = processes.place_of(self.owner)
        return (mine,) if self.staging is None else (mine, self.staging)

    # --- jobs --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def holding(self, job: Job) -> Iterator[Callable[[], None]]:
        """Keep the lease of a job while the block runs; yields a check that raises `Gone` once it is lost."""
        lost = threading.Event()
        with self._lock:
            self._start_thread()
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

    def abandon(self, job: Job | None) -> None:
        """Nobody in this process works on this job any more, and the database may not know it: give it back later."""
        if job is not None:
            owner = self.owner
            with self._lock:
                self._start_thread()
                self._abandoned[job.token] = (self.clock(), Attempt(job.id, job.attempt, owner))

    def orphans(self) -> list[Attempt]:
        """Abandoned attempts of this process, and attempts of processes that have been silent for a lease."""
        with self._lock:
            return [one for _, one in self._abandoned.values()] + list(self._silent.values())

    def beat(self) -> None:
        """Send a heartbeat; learn which jobs this process has lost, and which other processes are silent.

        Jobs of this process that nobody in it works on become due for anybody. Raises `Busy`.
        """
        owner = self.owner
        alive, _ = self._host_owners()
        with self._lock:
            started = self.clock()
            before = dict(self._held)

        def work(tx: Tx) -> list[Attempt]:
            processes.beat(tx, owner, socket.gethostname(), self.staging)
            return jobs.running_attempts(tx, exclude=alive)

        running = {one.token: one for one in self._db.write(work)}
        self._has_beaten = True
        for token, lost in before.items():
            if token not in running:
                lost.set()
        lease = LEASE.total_seconds()
        with self._lock:
            held = before.keys() | self._held.keys()
            # What nobody here holds has just begun, or a commit in doubt made it ours and nobody abandoned it.
            mine = {token for token, one in running.items() if one.owner == owner}
            watched = {token: one.beat for token, one in running.items() if token not in mine}
            # Nor is it idle whose attempt was revoked: it lets the job go itself (`jobs.revoke`).
            revoked = {token.rpartition("-")[0] for token in held - running.keys()}
            mine = {token for token in mine if running[token].job_id not in revoked}
            self._watch.observe(watched | dict.fromkeys(mine - held))
            silent = [one for token, one in running.items() if self._watch.age(token) >= lease]
            self._silent = {one.job_id: one for one in silent if one.owner != owner}
            idle = [one for one in silent if one.owner == owner]
            idle += [running[token] for token in self._abandoned.keys() & mine]
            # A commit in doubt may take effect after we looked for it, but not more than a lease later.
            self._abandoned = {
                token: (since, attempt)
                for token, (since, attempt) in self._abandoned.items()
                if token not in mine and started - since < lease
            }
        if idle:
            self._db.write(lambda tx: jobs.release(tx, idle))

    # --- processes of this host --------------------------------------------------------------------------

    def dead_owners(self) -> list[str]:
        """Owners on this host whose process is dead. Their files stay until `forget_owners`."""
        return self._host_owners()[1]

    def forget_owners(self, owners: list[str]) -> None:
        """Remove the rows and files of dead owners, once none of their jobs is left."""
        if owners:
            self._db.write(lambda tx: processes.remove(tx, owners))
        for owner in owners:
            (self._directory / owner).unlink(missing_ok=True)

    def remove_stale_files(self) -> None:
        """Remove old owner files that are of no use: of hosts that are gone, or of a process that died making one."""
        old = []
        for path in self._files():
            with contextlib.suppress(OSError):
                # A wrong clock does no harm: a living process without a file is known by its heartbeat.
                if time.time() - path.stat().st_mtime > _STALE_SECONDS and self._is_alive(path) is not True:
                    old.append(path.name)
        known = self._db.snapshot(lambda tx: processes.in_use(tx, old)) if old else frozenset()
        for name in old:
            if name not in known:
                (self._directory / name).unlink(missing_ok=True)

    def _host_owners(self) -> tuple[list[str], list[str]]:
        """Other owners that have a file here: those that are alive, and those that are dead."""
        found = {path.name: self._is_alive(path) for path in self._files() if not path.name.startswith(".")}
        return [name for name, alive in found.items() if alive], [
            name for name, alive in found.items() if alive is False
        ]

    def _files(self) -> list[Path]:
        mine = self._owner[1] if self._owner else None
        try:
            return [path for path in self._directory.iterdir() if path.name.count(":") >= 2 and path.name != mine]
        except FileNotFoundError:
            return []

    def _is_alive(self, path: Path) -> bool | None:
        """Whether the process that this file belongs to is alive; None if that cannot be known here."""
        try:
            with path.open("rb") as file:
                try:
                    # A shared lock: another process that looks at the same time must not take us for the owner.
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
                boot = file.read(100).decode(errors="replace")
        except OSError:
            return None
        if boot == _boot_id():
            return False  # It ran under this kernel, in whatever container, and the kernel has dropped its lock.
        if path.name.rsplit(":", 2)[0] == socket.gethostname():
            return False  # This host has booted since; or the file is of a release that wrote no boot id into it.
        # It ran on another host. NFS may be mounted so that each host sees its own locks alone: getting this lock does
        # not mean that nobody holds it.
        return None

    def _create_owner_file(self) -> str:
        make_directory(self._directory)
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        # Locked before it gets the name that others look for, so that nobody sees it unlocked while we live.
        hidden = self._directory / f".{owner}"
        self._file = open_private(hidden, os.O_RDWR)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.write(self._file, _boot_id().encode())
        hidden.rename(self._directory / owner)
        # After a power loss this name tells who is dead; without it, jobs would wait for their leases to run out.
        sync_directory(self._directory)
        return owner

    # --- the runner --------------------------------------------------------------------------------------

    def runner_heartbeat(self) -> None:
        """Report that this process runs a job runner. The runner calls this while idle; the thread here does it while
        the runner is busy with a job."""
        self.owner  # noqa: B018  # a process that was forked begins anew
        with self._lock:
            self._runs_jobs = True
            self._start_thread()
        with contextlib.suppress(OSError):  # a disk that is full or broken is reported elsewhere
            age = self.runner_heartbeat_age()
            if age is None or age >= _BEAT_SECONDS:
                make_directory(self._directory)
                temporary = self._directory / f".runner.{os.getpid()}"
                with os.fdopen(open_private(temporary, os.O_WRONLY | os.O_TRUNC), "w") as file:
                    file.write(f"{time.monotonic()} {_boot_id()}")
                temporary.rename(self._directory / "runner")

    def runner_heartbeat_age(self) -> float | None:
        """Seconds since the last heartbeat of any runner on this host; None if there was none since it booted."""
        try:
            moment, boot = (self._directory / "runner").read_text().split(" ", 1)
            # All processes of a boot have the same monotonic clock.
            return max(0.0, time.monotonic() - float(moment)) if boot == _boot_id() else None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Drop the owner's lock: others may take over at once what this process still holds."""
        self._stopping.set()
        owner = self._owner[1] if self._owner and self._owner[0] == os.getpid() else None
        has_jobs = self._held or self._abandoned
        if owner and self._has_beaten and not has_jobs:
            # One attempt is enough: if it fails, another process removes the row.
            with contextlib.suppress(errors.CalotypeError), self._db.write_once() as tx:
                processes.remove(tx, [owner])
        with self._lock:
            if owner:
                if not has_jobs:
                    (self._directory / owner).unlink(missing_ok=True)
                os.close(self._file)
            self._owner = None

    # --- the thread --------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        if not self._has_thread:
            threading.Thread(target=self._run, name="leases", daemon=True).start()
            self._has_thread = True

    def _run(self) -> None:
        while not self._stopping.wait(_BEAT_SECONDS):
            if self._runs_jobs and self._held:
                self.runner_heartbeat()
            with self._lock:
                if not (self._held or self._abandoned or self._runs_jobs):
                    self._has_thread = False
                    return
            try:
                if self._held or self._abandoned or self._others_run_jobs():
                    self.beat()
            except Exception as exc:  # noqa: BLE001  # without this thread every lease would run out
                LOG.warning("leases could not be renewed: %s", errors.reason(exc))

    def _others_run_jobs(self) -> bool:
        alive, _ = self._host_owners()
        return self._db.read(lambda tx: jobs.any_running(tx, exclude=alive))


@functools.cache
def _boot_id() -> str:
    """The kernel's id of this boot. Where it tells none, a text that is the same on this host at all times."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()}, some time"
