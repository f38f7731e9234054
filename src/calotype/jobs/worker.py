"""`Runner`: claims jobs that are due or orphaned, and does them.

Chores are done one after another by the runner's own thread. Transfers, which read or move whole images, have a thread
each, and a limited number of places in the process and on the host. Projects take turns at these. Every worker of
`calotype serve` has a runner, and `calotype worker` is one. They all claim from the same queue.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Final

from calotype import config, errors, logs
from calotype.db import jobs, leases, locks, processes
from calotype.db.engine import Tx
from calotype.db.watch import Watch
from calotype.images import imports, places
from calotype.images.work import CancelAsked, Postponed, Stopped, Work
from calotype.jobs import chores
from calotype.jobs.kinds import KINDS, Kind, Lane, is_final, of_lane, undoable
from calotype.model import Job
from calotype.service import Service
from calotype.transfers import HostSlots

LOG = logging.getLogger(__name__)

_SWEEP_SECONDS = 600.0
#: The name of the lock that a runner needs to sweep.
_LOCK: Final = "sweep"
#: How often runners without the lock try to get it, seconds, and how long it lasts without being renewed.
_LOCK_POLL_SECONDS = 30.0
_SIGN_OF_LIFE_SECONDS = 120.0
_SWEEP_LEASE: Final = timedelta(seconds=1.5 * _SWEEP_SECONDS)
_HOST_LOST: Final = "The host that has the staged data is gone."
_TOKEN_LOST: Final = "The service ended, and your token with it; ask for the import again."  # noqa: S105  # a sentence
#: A job whose process dies so often fails: it may be the reason.
_MOST_ATTEMPTS: Final = 50
#: How long `stop` waits for transfers to end, seconds.
_STOP_SECONDS: Final = 10.0


class Runner:
    """A thread that works through the queue until `stop`, and a thread for each transfer."""

    def __init__(self, svc: Service, poll: float) -> None:
        self._svc = svc
        self._poll = poll
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._transfers: set[threading.Thread] = set()
        self._most: int = svc.conf.jobs.transfers
        self._host = HostSlots(config.state_path(svc.conf, "slots"), svc.conf.jobs.transfers_per_host)
        self._lock = locks.Lock(_LOCK, _SWEEP_LEASE, svc.leases, step=2 * _LOCK_POLL_SECONDS)
        self._has_sweep_lock = False
        self._next_lock_poll = self._next_sweep = self._next_place_refresh = self._next_look = 0.0
        self._next_sign_of_life = 0.0
        self._places = Watch(svc.leases.clock, 2 * _LOCK_POLL_SECONDS)

    def start(self) -> None:
        self._thread.start()

    def nudge(self) -> None:
        """Look for jobs now: there is one."""
        self._wake.set()

    def stop(self) -> None:
        """End after the current chore. Transfers are handed back; their reads of stores are cancelled."""
        self._stopping = True
        self._svc.stores.cancel_reads()
        self._wake.set()
        until = time.monotonic() + _STOP_SECONDS
        for thread in (self._thread, *self._transfers):
            if thread.ident is not None:
                thread.join(timeout=max(0.0, until - time.monotonic()))
        if self._has_sweep_lock:
            self._lock.release_at_exit(self._svc.db)

    @property
    def transfers(self) -> int:
        """How many transfers are running in this process."""
        return sum(thread.is_alive() for thread in tuple(self._transfers))

    def run_due_jobs(self) -> int:
        """Do all chores that are due now, and start transfers while there are places; returns how many jobs."""
        done = 0
        dead = self._svc.leases.dead_owners()
        self._end_lost(dead)
        all_seen = False
        while not self._stopping:
            started = self._start_transfer(dead)
            job = self._claim(Lane.CHORE, dead)
            if job is not None:
                self._do(job)
            done += bool(job) + bool(started)
            if job is None and not started:
                all_seen = started is not None
                break
        if all_seen:  # else transfers of dead owners may remain, which only their files show as orphans
            self._svc.leases.forget_owners(dead)
        return done

    def _run(self) -> None:
        while not self._stopping:
            self._svc.leases.runner_heartbeat()
            try:
                self.run_due_jobs()
                self._sweep()
                self._look_for_lost_places()
                self._refresh_places()
                self._keep_imports_alive()
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
        chores.sweep_staging(self._svc)
        if self._has_sweep_lock:
            self._next_sweep = now + _SWEEP_SECONDS
            chores.sweep(self._svc)

    def _end_lost(self, dead: list[str]) -> None:
        """Fail the jobs that only processes could run which are dead, or silent for a lease."""
        mine, db = self._svc.leases, self._svc.db
        gone = {*dead, *(one.owner for one in mine.orphans())} - {mine.owner}
        if not gone:
            return
        for place in {processes.place_of(owner) for owner in gone}.intersection(db.snapshot(jobs.waiting_places)):
            db.write(partial(jobs.let_run_anywhere, place=place, why=_TOKEN_LOST))

    def _look_for_lost_places(self) -> None:
        """Fail the jobs that can only run where nobody has been for long. One process of all hosts looks."""
        now = self._svc.leases.clock()
        if not self._has_sweep_lock or now < self._next_look:
            return
        self._next_look = now + _LOCK_POLL_SECONDS
        db = self._svc.db
        waiting = db.snapshot(jobs.waiting_places)
        # A living process at such a place claims the jobs, or sends heartbeats for those that it has.
        beats = db.snapshot(processes.beats_by_place) if waiting else {}
        self._places.observe({place: beats.get(place) for place in waiting})
        for place in waiting:
            if place.startswith(processes.OF_PROCESS):
                patience, why = leases.LEASE.total_seconds(), _TOKEN_LOST
            else:
                patience, why = 60.0 * self._svc.conf.jobs.host_patience, _HOST_LOST
            if self._places.age(place) >= patience:
                count = db.write(partial(jobs.let_run_anywhere, place=place, why=why))
                LOG.error("%d jobs end because nobody can run them any more: %s", count, why)
                self._wake.set()

    def _refresh_places(self) -> None:
        """Learn now and then what operators and other hosts have recorded about the places of stores."""
        if time.monotonic() >= self._next_place_refresh:
            self._next_place_refresh = time.monotonic() + _LOCK_POLL_SECONDS
            places.refresh(self._svc)

    def _keep_imports_alive(self) -> None:
        if time.monotonic() >= self._next_sign_of_life:
            self._next_sign_of_life = time.monotonic() + _SIGN_OF_LIFE_SECONDS
            imports.keep_alive(self._svc)

    # --- claiming ----------------------------------------------------------------------------------------

    def _claim(self, lane: Lane, dead: list[str], *, spare: bool = False) -> Job | None:
        db, mine = self._svc.db, self._svc.leases
        claims = jobs.Claims(
            mine.owner,
            of_lane(lane),
            mine.places,
            dead=dead,
            orphans=mine.orphans(),
            fair=lane is Lane.TRANSFER,
            spare=spare,
            # A transfer that is to end does not wait until there is a place for another one.
            ending=undoable() if lane is Lane.CHORE else (),
        )

        def work(tx: Tx) -> Job | None:
            return jobs.claim(tx, claims)

        def committed(tx: Tx, job: Job | None) -> bool:
            return job is not None and jobs.is_current(tx, job)

        if not db.snapshot(lambda tx: jobs.any_claimable(tx, claims)):
            return None  # Most polls find nothing, and should not wait for the write lock.
        return db.write(work, committed, mine.abandon)

    def _start_transfer(self, dead: list[str]) -> bool | None:
        """Start a transfer that is due. False if none is; None if that is unknown, because no place is free for it."""
        running = self.transfers
        if running >= self._most:
            return None
        taken = self._host.take()
        if taken is None:
            return None
        give_back, is_last = taken
        spare = is_last or 1 <= running == self._most - 1
        try:
            job = self._claim(Lane.TRANSFER, dead, spare=spare)
        except BaseException:
            give_back()
            raise
        if job is None:
            give_back()
            return None if spare else False
        thread = threading.Thread(target=self._transfer, args=[job, give_back], name="transfer", daemon=True)
        thread.start()
        self._transfers = {one for one in self._transfers if one.is_alive()} | {thread}
        return True

    def _transfer(self, job: Job, give_back: Callable[[], None]) -> None:
        try:
            self._do(job)
        except Exception:
            LOG.exception("the runner failed and goes on")
        finally:
            give_back()
            self._wake.set()

    # --- doing -------------------------------------------------------------------------------------------

    def _do(self, job: Job) -> None:
        logs.begin(f"job-{job.id}", job.image_id)
        try:
            with self._svc.leases.holding(job) as check_lease:
                work = Work(self._svc, job, lambda: self._check_continues(check_lease))
                self._attempt(work, KINDS[job.kind])
            LOG.info("job %s of image %s %s", job.kind, job.image_id, "undone" if work.failure else "done")
        except Postponed as exc:
            self._postpone(job, str(exc), timedelta(seconds=exc.seconds))
        except Stopped:
            self._postpone(job, "the service ended", timedelta(0))
        except errors.Gone as exc:
            LOG.info("job %s of image %s was taken away: %s", job.kind, job.image_id, exc)
            self._svc.db.write(lambda tx: jobs.let_go(tx, job))
            self._wake.set()
        except errors.Busy as exc:
            LOG.warning("job %s of image %s waits for the database: %s", job.kind, job.image_id, errors.reason(exc))
            self._svc.leases.abandon(job)
        except errors.CalotypeError as exc:
            why = errors.reason(exc)
            LOG.error("job %s of image %s failed, attempt %d: %s", job.kind, job.image_id, job.attempt, why)
            self._put_back(job, str(exc), KINDS[job.kind].backoff(job))
        except Exception as exc:
            # Whatever failed, the job stays and is retried.
            LOG.exception("job %s of image %s failed, attempt %d", job.kind, job.image_id, job.attempt)
            self._put_back(job, repr(exc), KINDS[job.kind].backoff(job))
        finally:
            logs.end()

    def _attempt(self, work: Work, kind: Kind) -> None:
        """Run the steps that are left; after a final failure, undo those that ran."""
        job = work.job
        failure = job.failure
        if failure is None and job.cancel is not None and kind.can_undo(work.step):
            failure = self._fail_for_good(job, job.cancel)
        while failure is None and work.step < len(kind.steps):
            step = kind.steps[work.step]
            number = work.step
            try:
                step.run(work)
                if number == len(kind.steps) - 1:
                    return
                if work.step == number:  # else its own transaction has recorded that it is done
                    work.done()
            except (Stopped, Postponed, errors.Gone, errors.Busy):
                raise
            except Exception as exc:
                if self._stopping and isinstance(exc, errors.Cancelled):
                    raise Stopped from exc  # the read was cancelled because the process ends
                is_last = kind.attempts is not None and (
                    job.failures + 1 >= kind.attempts or job.attempt >= _MOST_ATTEMPTS
                )
                if not (is_final(exc) or is_last) or not kind.can_undo(work.step):
                    raise
                LOG.log(
                    logging.INFO if isinstance(exc, CancelAsked) else logging.ERROR,
                    "job %s of image %s fails at %s: %s", job.kind, job.image_id, step.name, errors.reason(exc),
                )  # fmt: skip
                why = str(exc) if isinstance(exc, errors.CalotypeError) else "The service failed."
                failure = self._fail_for_good(job, why)
        work.failure = failure or ""
        for step in reversed(kind.steps[: work.step + 1]):
            if step.undo:
                step.undo(work)

    def _fail_for_good(self, job: Job, why: str) -> str:
        Work.require(self._svc.db.write(lambda tx: jobs.fail_for_good(tx, job, why)))
        return why

    def _check_continues(self, check_lease: Callable[[], None]) -> None:
        check_lease()
        if self._stopping:
            raise Stopped

    def _postpone(self, job: Job, why: str, delay: timedelta) -> None:
        self._svc.db.write(lambda tx: jobs.postpone(tx, job, why, delay=delay))

    def _put_back(self, job: Job, why: str, delay: timedelta) -> None:
        self._svc.db.write(lambda tx: jobs.fail(tx, job, why, delay=delay))
