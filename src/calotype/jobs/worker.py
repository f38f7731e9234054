"""The runner: claims jobs that are due or orphaned, and does them, one at a time; one long one beside them.

A runner lives in every worker of `calotype serve`; each claim goes to one of them.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from calotype import errors, logs
from calotype.db import jobs, locks
from calotype.db.engine import Tx
from calotype.images import places
from calotype.jobs.chores import CHORES, LONG, sweep
from calotype.model import Job
from calotype.service import Service

LOG = logging.getLogger(__name__)

_SWEEP_SECONDS = 600.0
#: The row of `calotype_locks` that the runner has that sweeps, for all processes of all hosts.
_LOCK: Final = "sweep"
#: How often another one asks whether that is silent, seconds, and how long it must be.
_ASK_SECONDS = 30.0
_SILENCE: Final = timedelta(seconds=1.5 * _SWEEP_SECONDS)


class _Ending(Exception):
    """The runner is to stop: a long job is for another one."""


class Runner:
    """A thread that works off the queue until `stop`, and a second one while there is a long job."""

    def __init__(self, svc: Service, poll: float) -> None:
        self._svc = svc
        self._poll = poll
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._long: threading.Thread | None = None
        self._lock = locks.Lock(_LOCK, _SILENCE, svc.leases, step=2 * _ASK_SECONDS)
        self._sweeps = False
        self._next_ask = self._next_sweep = self._next_notice = 0.0

    def start(self) -> None:
        self._thread.start()

    def nudge(self) -> None:
        """There is something to do: look now."""
        self._wake.set()

    def stop(self) -> None:
        """End after the job at hand."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10)
        if self._long is not None:
            self._long.join(timeout=10)
        if self._sweeps:
            self._lock.release_at_exit(self._svc.db)

    def work_off(self) -> int:
        """Do everything that is due now, or begin it if it takes long; how much that was."""
        done = 0
        dead = self._svc.leases.dead_owners()
        while not self._stopping:
            busy = self._busy()
            job = self._claim(dead, tuple(LONG) if busy else ())
            if job is None:
                if not busy:  # Else jobs of the dead may be left, which nobody would know to be orphans any more.
                    self._svc.leases.forget_owners(dead)
                break
            if job.kind in LONG:
                self._long = threading.Thread(target=self._do_long, args=[job], name="long job", daemon=True)
                self._long.start()
            else:
                self._do(job)
            done += 1
        return done

    def _run(self) -> None:
        while not self._stopping:
            self._svc.leases.runner_heartbeat()
            try:
                self.work_off()
                self._sweep()
                self._notice()
            except errors.CalotypeError as exc:
                LOG.warning("the queue cannot be read: %s", errors.reason(exc))
            except Exception:
                LOG.exception("the runner failed and goes on")
            self._wake.wait(self._poll)
            self._wake.clear()

    def _sweep(self) -> None:
        """Sweep when it is time, if this is the process that does."""
        now = time.monotonic()
        if now < (self._next_sweep if self._sweeps else self._next_ask):
            return
        elected = self._sweeps
        self._sweeps = self._svc.db.write(self._lock.renew if elected else self._lock.acquire)
        self._next_ask = now + _ASK_SECONDS
        self._svc.leases.remove_stale_files()
        if self._sweeps:
            self._next_sweep = now + _SWEEP_SECONDS
            sweep(self._svc)

    def _notice(self) -> None:
        """Take notice now and then of what operators and other hosts wrote down of the places of stores."""
        if time.monotonic() >= self._next_notice:
            self._next_notice = time.monotonic() + _ASK_SECONDS
            places.refresh(self._svc)

    def _claim(self, dead: list[str], exclude: tuple[str, ...]) -> Job | None:
        db, leases = self._svc.db, self._svc.leases
        owner, orphans = leases.owner, leases.orphans()

        def work(tx: Tx) -> Job | None:
            return jobs.claim(tx, owner, dead=dead, orphans=orphans, exclude=exclude)

        def committed(tx: Tx, job: Job | None) -> bool:
            return job is not None and jobs.is_current(tx, job)

        if not db.snapshot(lambda tx: jobs.any_claimable(tx, owner, dead=dead, orphans=orphans, exclude=exclude)):
            return None  # Most looks find nothing; they should not queue for the write lock.
        return db.write(work, committed, leases.abandon)

    def _busy(self) -> bool:
        return self._long is not None and self._long.is_alive()

    def _go_on(self, holds: Callable[[], None]) -> None:
        holds()
        if self._stopping:
            raise _Ending

    def _do_long(self, job: Job) -> None:
        try:
            self._do(job)
        except Exception:
            LOG.exception("the runner failed and goes on")
        self._wake.set()

    def _do(self, job: Job) -> None:
        logs.begin(f"job-{job.id}", job.image_id)
        try:
            with self._svc.leases.holding(job) as holds:
                if job.kind in LONG:
                    LONG[job.kind](self._svc, job, lambda: self._go_on(holds))
                else:
                    CHORES[job.kind](self._svc, job)
            LOG.info("job %s of image %s done", job.kind, job.image_id)
        except _Ending:
            self._svc.db.write(lambda tx: jobs.fail(tx, job, "the service ended", delay=timedelta(0)))
        except errors.Busy as exc:
            LOG.warning("job %s of image %s waits for the database: %s", job.kind, job.image_id, errors.reason(exc))
            self._svc.leases.abandon(job)
        except Exception as exc:
            # Whatever it was, the job stays and is tried again; a later release may even know its kind.
            LOG.exception("job %s of image %s failed, attempt %d", job.kind, job.image_id, job.attempt)
            why = repr(exc)
            self._svc.db.write(lambda tx: jobs.fail(tx, job, why, delay=jobs.backoff(job)))
        finally:
            logs.end()
