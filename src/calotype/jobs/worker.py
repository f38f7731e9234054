"""`Runner`: a thread that claims jobs that are due or orphaned, and does one at a time.

A long job runs in a second thread beside them, also one at a time. Every worker of `calotype serve` has a runner, and
`calotype worker` is one. They all claim from the same queue.
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
from calotype.jobs.chores import CHORES, LONG_CHORES, sweep
from calotype.model import Job
from calotype.service import Service

LOG = logging.getLogger(__name__)

_SWEEP_SECONDS = 600.0
#: The name of the lock that a runner needs to sweep.
_LOCK: Final = "sweep"
#: How often runners without the lock try to get it, seconds, and how long it lasts without being renewed.
_LOCK_POLL_SECONDS = 30.0
_SWEEP_LEASE: Final = timedelta(seconds=1.5 * _SWEEP_SECONDS)


class _Stopping(Exception):
    """The runner stops: another one takes its long job over."""


class Runner:
    """A thread that works through the queue until `stop`, and a second thread while there is a long job."""

    def __init__(self, svc: Service, poll: float) -> None:
        self._svc = svc
        self._poll = poll
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._long: threading.Thread | None = None
        self._lock = locks.Lock(_LOCK, _SWEEP_LEASE, svc.leases, step=2 * _LOCK_POLL_SECONDS)
        self._has_sweep_lock = False
        self._next_lock_poll = self._next_sweep = self._next_place_refresh = 0.0

    def start(self) -> None:
        self._thread.start()

    def nudge(self) -> None:
        """Look for jobs now: there is one."""
        self._wake.set()

    def stop(self) -> None:
        """End after the current job. Reads of stores that are under way are cancelled, in this process."""
        self._stopping = True
        self._svc.stores.cancel_reads()
        self._wake.set()
        self._thread.join(timeout=10)
        if self._long is not None:
            self._long.join(timeout=10)
        if self._has_sweep_lock:
            self._lock.release_at_exit(self._svc.db)

    def run_due_jobs(self) -> int:
        """Do all jobs that are due now, and start one long job at most; returns how many jobs that were."""
        done = 0
        dead = self._svc.leases.dead_owners()
        while not self._stopping:
            has_long_job = self._has_long_job()
            job = self._claim(dead, tuple(LONG_CHORES) if has_long_job else ())
            if job is None:
                if not has_long_job:  # else long jobs of dead owners may remain, which only their files show as orphans
                    self._svc.leases.forget_owners(dead)
                break
            if job.kind in LONG_CHORES:
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
                self.run_due_jobs()
                self._sweep()
                self._refresh_places()
            except errors.CalotypeError as exc:
                LOG.warning("the queue cannot be read: %s", errors.reason(exc))
            except Exception:
                LOG.exception("the runner failed and goes on")
            self._wake.wait(self._poll)
            self._wake.clear()

    def _sweep(self) -> None:
        """Sweep if it is time, and this process has the lock for it."""
        now = time.monotonic()
        if now < (self._next_sweep if self._has_sweep_lock else self._next_lock_poll):
            return
        had_lock = self._has_sweep_lock
        self._has_sweep_lock = self._svc.db.write(self._lock.renew if had_lock else self._lock.acquire)
        self._next_lock_poll = now + _LOCK_POLL_SECONDS
        self._svc.leases.remove_stale_files()
        if self._has_sweep_lock:
            self._next_sweep = now + _SWEEP_SECONDS
            sweep(self._svc)

    def _refresh_places(self) -> None:
        """Learn now and then what operators and other hosts have recorded about the places of stores."""
        if time.monotonic() >= self._next_place_refresh:
            self._next_place_refresh = time.monotonic() + _LOCK_POLL_SECONDS
            places.refresh(self._svc)

    def _claim(self, dead: list[str], exclude: tuple[str, ...]) -> Job | None:
        db, leases = self._svc.db, self._svc.leases
        owner, orphans = leases.owner, leases.orphans()

        def work(tx: Tx) -> Job | None:
            return jobs.claim(tx, owner, dead=dead, orphans=orphans, exclude=exclude)

        def committed(tx: Tx, job: Job | None) -> bool:
            return job is not None and jobs.is_current(tx, job)

        if not db.snapshot(lambda tx: jobs.any_claimable(tx, owner, dead=dead, orphans=orphans, exclude=exclude)):
            return None  # Most polls find nothing, and should not wait for the write lock.
        return db.write(work, committed, leases.abandon)

    def _has_long_job(self) -> bool:
        return self._long is not None and self._long.is_alive()

    def _check_continues(self, check_lease: Callable[[], None]) -> None:
        check_lease()
        if self._stopping:
            raise _Stopping

    def _do_long(self, job: Job) -> None:
        try:
            self._do(job)
        except Exception:
            LOG.exception("the runner failed and goes on")
        self._wake.set()

    def _do(self, job: Job) -> None:
        logs.begin(f"job-{job.id}", job.image_id)
        try:
            with self._svc.leases.holding(job) as check_lease:
                if job.kind in LONG_CHORES:
                    LONG_CHORES[job.kind](self._svc, job, lambda: self._check_continues(check_lease))
                else:
                    CHORES[job.kind](self._svc, job)
            LOG.info("job %s of image %s done", job.kind, job.image_id)
        except _Stopping:
            self._svc.db.write(lambda tx: jobs.fail(tx, job, "the service ended", delay=timedelta(0)))
        except errors.Busy as exc:
            LOG.warning("job %s of image %s waits for the database: %s", job.kind, job.image_id, errors.reason(exc))
            self._svc.leases.abandon(job)
        except Exception as exc:
            # Whatever failed, the job stays and is retried; its kind may be one that only a later release knows.
            LOG.exception("job %s of image %s failed, attempt %d", job.kind, job.image_id, job.attempt)
            why = repr(exc)
            self._svc.db.write(lambda tx: jobs.fail(tx, job, why, delay=jobs.backoff(job)))
        finally:
            logs.end()
