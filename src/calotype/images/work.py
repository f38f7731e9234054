"""`Work`: one attempt at a job, as the steps of its kind see it (`jobs/kinds.py`)."""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from calotype import errors
from calotype.db import jobs, tasks
from calotype.db.engine import Tx
from calotype.model import Job
from calotype.service import Service

LOG = logging.getLogger(__name__)

#: How often `check` asks the database whether the job shall go on, seconds.
CHECK_SECONDS: Final = 0.5
#: How often progress is recorded, seconds.
PROGRESS_SECONDS: Final = 2.0


class Stopped(Exception):
    """The process ends: another one takes the job over at once."""


class Postponed(Exception):
    """The step is not done yet. The job is due again in `seconds`; this is no failure."""

    def __init__(self, seconds: float, why: str) -> None:
        super().__init__(why)
        self.seconds = seconds


class CancelAsked(errors.CalotypeError):
    """Somebody asked the job to stop; the message is the reason."""


class Failed(errors.CalotypeError):
    """The work failed, and another attempt would fail as well."""


class Work:
    """An attempt at a job. One thread uses it; another one may call `check` in its place."""

    def __init__(
        self, svc: Service, job: Job, alive: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`alive` raises `Stopped` if the process ends, and `Gone` if the job was taken away."""
        self.svc = svc
        self.job = job
        self.step = job.step
        self.failure = job.failure or ""  #: why the steps are undone
        self._facts = dict(job.checkpoint)
        self._alive = alive
        self._clock = clock
        self._checked_at = self._reported_at = clock()
        self._reported: int | None = None
        self._shown: dict[str, Any] = dict(job.progress)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What earlier steps, and earlier attempts at this one, have kept; JSON."""
        return self._facts

    def keep(self, **facts: Any) -> None:
        """Keep facts for later steps and attempts, durably. Raises `Gone`."""
        self._facts |= facts
        self._advance(self.step)

    def done(self) -> None:
        """The present step is done."""
        self._advance(self.step + 1)

    def _advance(self, step: int) -> None:
        self.require(self.svc.db.write(lambda tx: jobs.advance(tx, self.job, step, self._facts)))
        self.step = step

    def advance_in(self, tx: Tx, *, by: int = 1, **facts: Any) -> None:
        """Record in the caller's transaction that the step is done, or with `by=0` some facts. Raises `Gone`.

        That undoes the transaction. After its commit the caller calls `advanced`.
        """
        self.require(jobs.advance(tx, self.job, self.step + by, {**self._facts, **facts}))

    def advanced(self, *, by: int = 1, **facts: Any) -> None:
        """What `advance_in` recorded is committed."""
        self.step += by
        self._facts |= facts

    @staticmethod
    def require(current: bool) -> None:
        """Raise `Gone` unless this attempt is the current one."""
        if not current:
            raise errors.Gone("The job was taken away.")

    def check(self) -> None:
        """Raise if the work must stop: `Stopped`, `Gone`, `CancelAsked`. To be called at least once a second."""
        self._alive()
        now = self._clock()
        if now - self._checked_at < CHECK_SECONDS:
            return
        self._checked_at = now
        try:
            asked = self.svc.db.snapshot(lambda tx: jobs.report(tx, self.job))
        except errors.Busy as exc:
            LOG.warning("the job is not looked at while the database is away: %s", errors.reason(exc))
            return
        self._obey(asked)

    def _obey(self, asked: str | None) -> None:
        if asked is not None and not self.failure:  # what is being undone is stopped already
            raise CancelAsked(asked)

    def progress(self, name: str, size: int, expected: int | None) -> None:
        """Record how many bytes have passed, of how many, at most every two seconds. Never less than was recorded."""
        now = self._clock()
        if now - self._reported_at < PROGRESS_SECONDS:
            return
        since, before = now - self._reported_at, self._reported
        self._reported_at, self._reported = now, size
        rate = round((size - before) / since) if before is not None and size >= before else None
        # An earlier attempt at this step may have come further.
        shown = max(size, self._shown["bytes"]) if self._shown.get("step") == name else size
        self._record(name, shown, expected, rate)

    def _record(self, name: str, size: int, expected: int | None, rate: int | None) -> None:
        of = "" if expected is None else f" of {expected >> 20}"
        said = f"{name}: {size >> 20}{of} MiB" + ("" if rate is None else f", {rate / (1 << 20):.1f} MiB a second")
        facts = self._shown = {"step": name, "bytes": size, "of": expected, "rate": rate}

        def work(tx: Tx) -> str | None:
            asked = jobs.report(tx, self.job, facts)
            if task := self.job.payload.get("task"):
                tasks.progress(tx, task, said, self.svc.now())
            return asked

        try:
            asked = self.svc.db.write(work)
        except errors.Busy as exc:
            LOG.warning("progress is not recorded while the database is away: %s", errors.reason(exc))
            return
        self._obey(asked)


def backoff(job: Job) -> timedelta:
    """How long to wait after this attempt at a transfer failed: 2 s, then twice as long each time, up to 5 minutes."""
    return timedelta(seconds=min(300, 2 ** (job.failures + 1)))
