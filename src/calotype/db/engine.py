"""`Database`: runs functions in transactions, and retries them when the database fails for a reason that passes.

`Database.write`, `.snapshot` and `.read` call a function with a `Tx`. The other modules of this package take that `Tx`,
so that several of their functions commit together. Nothing else in Calotype opens a connection; `drivers.py` says how
one is made.
"""

import copy
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from calotype import errors, questions
from calotype.db import drivers, failures
from calotype.db.drivers import Pool, Settings
from calotype.db.fair_lock import FairLock
from calotype.db.record_cache import RecordCache

LOG = logging.getLogger(__name__)

#: More connections than there will ever be threads.
UNLIMITED = 1 << 20

Tx = Connection
T = TypeVar("T")

#: A transaction that began this long ago is not retried, seconds: it must end before the lease of a job does. All its
#: waiting together is limited by `[database] transaction_timeout`.
RETRY_SECONDS = 15.0
#: How long an answer may take on a connection of `background`, seconds: a third of a lease.
BACKGROUND_RESPONSE_SECONDS = 10.0
#: How long a transaction waits for an open connection, seconds, before it opens another one. Most transactions are
#: shorter than that, and cost less than opening a connection does.
_POOL_WAIT = 0.1
#: The pause before the first retry, and the longest one, seconds: they double.
FIRST_BACKOFF, LONGEST_BACKOFF = 0.01, 0.5
#: How often to try for the lock of SQLite while another process has it, seconds; and how often with priority.
_POLL, _PRIORITY_POLL = 0.005, 0.001


def now() -> datetime:
    """The present as the tables keep it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def same_moment(one: datetime | None, other: datetime | None) -> bool:
    """Whether two times are equal as far as a column of Glance's keeps them: whole seconds on MariaDB."""
    return one == other if one is None or other is None else abs(one - other) < timedelta(seconds=1)


_DEFAULTS = Settings()


class Database:
    """Connections for reading and for writing. Make it before forking, but begin the first transaction after.

    Readers and writers have separate pools, so that many lists at once keep no connection from a writer. Use `write`,
    `snapshot` and `read`. `write_once` and `read_once` do not retry; they are for commands that a person can repeat.
    """

    def __init__(self, url: str | sa.URL, settings: Settings = _DEFAULTS) -> None:
        self.url = drivers.parse(url, settings.connection_parameters)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._settings = settings
        self._background: Database | None = None
        self._retry_seconds = min(
            RETRY_SECONDS, settings.response_timeout or RETRY_SECONDS, settings.transaction_timeout
        )
        readers, writers = drivers.pools(settings)
        # SQLite has one writer at a time. Threads of this process queue for this lock; the one that has it waits for
        # other processes.
        self._writer_lock = FairLock() if self.is_sqlite else None
        self._has_priority = False
        writers = Pool(1, 0) if self.is_sqlite else writers
        self.reads: Engine = drivers.engine(self.url, settings, readers, writes=False)
        self.writes: Engine = drivers.engine(self.url, settings, writers, writes=True)
        self._pools = {self.reads: readers, self.writes: writers}
        self._slots: dict[Engine, tuple[threading.Semaphore, threading.Semaphore]] = {}
        self._snapshot = drivers.snapshot(self.url)
        self.record_cache = RecordCache()
        self._make_slots()

    # --- transactions ------------------------------------------------------------------------------------

    def write(
        self,
        work: Callable[[Tx], T],
        committed: Callable[[Tx, T], bool] | None = None,
        on_unknown: Callable[[T], object] | None = None,
    ) -> T:
        """Run `work` in a transaction that writes. It is durable on return, and rolled back if `work` raises.

        After a deadlock, a conflict on Galera or a lost connection `work` is run again, a limited number of times, with
        backoff. So it must change nothing but the database.

        A COMMIT whose answer is lost is in doubt: it may have succeeded or not. So `work` must be harmless to repeat
        after a success; else give `committed`, which tells from the tables, and from what `work` returned, whether that
        commit succeeded. `on_unknown` is called with what `work` returned if a commit is still in doubt at the end.

        Raises what `work` raises, and `Busy`.
        """
        in_doubt: list[T] = []  # what `work` returned before each COMMIT that is in doubt

        def succeeded(tx: Tx) -> list[T]:
            return [one for one in in_doubt if committed is not None and committed(tx, one)]

        try:
            try:
                result = self._write_with_retries(work, succeeded, in_doubt)
            except (errors.CalotypeError, sa.exc.SQLAlchemyError):
                # A commit in doubt may succeed after we looked for it: then `work` failed because of its own effect.
                if not in_doubt or not (found := self.snapshot(succeeded)):
                    raise
                result = found[0]
            in_doubt = [other for other in in_doubt if other is not result]
            return result
        finally:
            if on_unknown is not None:
                for one in in_doubt:
                    on_unknown(one)

    def _write_with_retries(self, work: Callable[[Tx], T], succeeded: Callable[[Tx], list[T]], in_doubt: list[T]) -> T:
        started, retries = time.monotonic(), 0
        with questions.Answers() as answers:
            while True:
                committing = False
                try:
                    with self._writing(started) as tx:
                        if in_doubt and (found := succeeded(tx)):
                            return found[0]
                        result = work(tx)
                        committing = True
                    return result
                except questions.Deferred as deferred:
                    started += _seconds_of(partial(answers.resolve, deferred))
                except sa.exc.SQLAlchemyError as exc:
                    outcome_unknown = committing and failures.outcome_unknown(exc)
                    if outcome_unknown:
                        in_doubt.append(result)
                    if not ((outcome_unknown or failures.is_transient(exc)) and self._back_off(retries, started, exc)):
                        raise failures.translated(exc)  # noqa: B904  # it has its cause
                    retries += 1

    def snapshot(self, work: Callable[[Tx], T]) -> T:
        """Run `work` in a transaction that only reads, and sees one moment throughout. Retries as `write` does."""
        return self._read_with_questions(work, self._snapshot)

    def read(self, work: Callable[[Tx], T]) -> T:
        """As `snapshot`, but without a transaction: each statement sees what is committed when it begins.

        For a single statement this is the same, and saves the one or two round trips of BEGIN and COMMIT.
        """
        return self._read_with_questions(work, "")

    def check(self) -> None:
        """Send the database a trivial query. Raises `Busy` when it does not answer."""
        self.read(lambda tx: tx.execute(sa.select(sa.literal(1))).scalar_one())

    def _read_with_questions(self, work: Callable[[Tx], T], begin: str) -> T:
        started = time.monotonic()
        try:
            return self._read_with_retries(work, begin, started)
        except questions.Deferred as first_deferred:
            deferred = first_deferred
        # Set up only now: hardly any work defers a question, and each GET comes through here.
        with questions.Answers() as answers:
            while True:
                started += _seconds_of(partial(answers.resolve, deferred))
                try:
                    return self._read_with_retries(work, begin, started)
                except questions.Deferred as another:
                    deferred = another

    def _read_with_retries(self, work: Callable[[Tx], T], begin: str, started: float) -> T:
        retries = 0
        while True:
            try:
                with self._reading(begin, started) as tx:
                    return work(tx)
            except sa.exc.SQLAlchemyError as exc:
                if not (failures.is_transient(exc) and self._back_off(retries, started, exc)):
                    raise failures.translated(exc)  # noqa: B904  # it has its cause
                retries += 1

    @contextmanager
    def write_once(self) -> Iterator[Tx]:
        """A transaction that writes, without retries: durable when the block ends, rolled back when it raises."""
        with _translated(), self._writing(time.monotonic()) as tx:
            yield tx

    @contextmanager
    def read_once(self) -> Iterator[Tx]:
        """A transaction that only reads, and sees one moment throughout, without retries."""
        with _translated(), self._reading(self._snapshot, time.monotonic()) as tx:
            yield tx

    def _back_off(self, retries: int, started: float, exc: Exception) -> bool:
        """Pause before a retry. False, without a pause, when there were enough of them."""
        if retries >= self._settings.db_max_retries or time.monotonic() - started > self._retry_seconds:
            return False
        LOG.debug("retrying a transaction: %s", exc)
        longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2**retries)
        time.sleep(random.uniform(longest / 2, longest))  # noqa: S311  # random, so that two that collided do not collide again
        return True

    # --- connections -------------------------------------------------------------------------------------

    def background(self) -> "Database":
        """The same database with two connections of its own, for leases and jobs: they must not wait behind requests.

        On SQLite they use the connection of the other writers, but with priority.
        """
        if self._background is None and self.is_sqlite:
            self._background = copy.copy(self)
            self._background._has_priority = True
        elif self._background is None:
            seconds = self._settings.response_timeout
            # After an answer that never came there must be time for another heartbeat before the lease runs out.
            seconds = seconds and min(seconds, BACKGROUND_RESPONSE_SECONDS)
            settings = replace(self._settings, max_pool_size=2, max_overflow=0, response_timeout=seconds)
            self._background = Database(self.url, settings)
        return self._background

    def wait(self, retries: int, pause: float) -> None:
        """Return once the database answers. Raises `Busy` after that many retries; -1 retries for ever."""
        while True:
            try:
                with self.read_once():
                    return
            except errors.Busy as exc:
                if retries == 0 or failures.is_permanent(exc.__cause__):
                    raise
                LOG.warning("waiting for the database, trying again in %g s: %s", pause, errors.reason(exc))
            retries -= 1
            time.sleep(pause)

    def _make_slots(self) -> None:
        for engine, pool in self._pools.items():
            overflow = UNLIMITED if pool.size == 0 or pool.overflow < 0 else pool.overflow
            self._slots[engine] = threading.Semaphore(pool.size or UNLIMITED), threading.Semaphore(overflow)

    def _deadline(self, started: float) -> float:
        """When a transaction that was started then must stop waiting (`time.monotonic`)."""
        if self._settings.response_timeout is None and not self.is_sqlite:
            return math.inf
        return started + self._settings.transaction_timeout

    @contextmanager
    def _connection(self, engine: Engine, deadline: float) -> Iterator[Tx]:
        """A connection of a pool: an open one if there is one soon, else one more within the limits."""
        kept, overflow = self._slots[engine]
        remaining = max(0.0, min(self._settings.pool_timeout, deadline - time.monotonic()))
        if kept.acquire(timeout=min(_POOL_WAIT, remaining)):
            slot = kept
        elif overflow.acquire(blocking=False):
            slot = overflow
        elif kept.acquire(timeout=max(0.0, remaining - _POOL_WAIT)):
            slot = kept
        else:
            raise errors.Busy("Too many wait for the database; try again later.")
        try:
            with engine.connect() as tx:
                if not self.is_sqlite:
                    drivers.set_deadline(tx, deadline)
                questions.connection_taken()
                try:
                    yield tx
                finally:
                    questions.connection_returned()
        finally:
            slot.release()

    @contextmanager
    def _writing(self, started: float) -> Iterator[Tx]:
        """A transaction that writes. Its connection goes back to the pool without a transaction in it."""
        deadline = self._deadline(started)
        lock: AbstractContextManager[None] = nullcontext()
        if self._writer_lock is not None:
            lock = self._writer_lock.acquire(deadline, has_priority=self._has_priority)
        with lock, self._connection(self.writes, deadline) as tx:
            tx.begin()
            try:
                if self._writer_lock is not None:
                    drivers.begin_writing(tx, self._settings, deadline, _PRIORITY_POLL if self._has_priority else _POLL)
                yield tx
            except BaseException:
                _roll_back(tx, tx.rollback)
                raise
            drivers.set_deadline(tx, math.inf)  # giving up now would only leave the commit in doubt
            try:
                tx.commit()
            except BaseException:
                tx.invalidate()  # to SQLAlchemy a failed COMMIT ends the transaction, to SQLite it does not
                raise

    @contextmanager
    def _reading(self, begin: str, started: float) -> Iterator[Tx]:
        """A connection that commits each statement by itself, or one transaction if there is a statement `begin`."""
        with self._connection(self.reads, self._deadline(started)) as tx:
            try:
                if begin:
                    tx.exec_driver_sql(begin)
                yield tx
                if begin:
                    tx.exec_driver_sql("COMMIT")
            except BaseException:
                if begin:
                    _roll_back(tx, lambda: tx.exec_driver_sql("ROLLBACK"))
                raise

    def dispose(self) -> None:
        """Forget pooled connections without closing them: a forked child calls this before its first transaction."""
        for engine in (self.reads, self.writes):
            engine.dispose(close=False)
        self._make_slots()
        self.record_cache.clear()
        if self._writer_lock is not None:
            self._writer_lock.reset()
        elif self._background is not None:
            self._background.dispose()

    def close(self) -> None:
        for engine in (self.reads, self.writes):
            engine.dispose()
        if self._background is not None and not self.is_sqlite:
            self._background.close()


def _seconds_of(action: Callable[[], None]) -> float:
    """Call the action; returns how many seconds it took."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


def _roll_back(tx: Tx, rollback: Callable[[], object]) -> None:
    try:
        rollback()
    except Exception:  # noqa: BLE001  # the caller raises the error that made it roll back
        tx.invalidate()


@contextmanager
def _translated() -> Iterator[None]:
    """Turns the driver's errors into ours."""
    try:
        yield
    except sa.exc.SQLAlchemyError as exc:
        raise failures.translated(exc)  # noqa: B904  # it has its cause
