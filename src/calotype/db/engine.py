"""The database: transactions that survive what databases do. Connections are made in `drivers.py`.

Functions of this package take the `Tx` that `Database.write`, `.snapshot` or `.read` hands to the work, so that
several of them commit together. Nothing else in Calotype opens a connection.
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
from calotype.db.known import Known
from calotype.db.turns import Turns

LOG = logging.getLogger(__name__)

#: As many connections as there are threads and more.
UNLIMITED = 1 << 20

Tx = Connection
T = TypeVar("T")

#: A transaction that is this old is not begun again, seconds; it ends before the lease of a job does. What it may wait
#: for in all is `[database] transaction_timeout`.
PATIENCE = 15.0
#: How long the database may take for an answer on a connection of `reserve`, seconds: a third of a lease.
RESERVE_SECONDS = 10.0
#: How long a transaction waits for a connection that is kept open, seconds, before it opens one more for itself. Most
#: are over sooner, and opening one costs more than they do.
_MOMENT = 0.1
#: Pauses between two tries, seconds: the first, and what they double up to.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
#: How often another process that writes to SQLite is looked after, seconds; and by those who are in a hurry.
_POLL, _POLL_IN_HURRY = 0.005, 0.001


def now() -> datetime:
    """The present as the tables keep it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def same_moment(one: datetime | None, other: datetime | None) -> bool:
    """Whether one may be the other, read back: on MariaDB Glance's columns keep whole seconds."""
    return one == other if one is None or other is None else abs(one - other) < timedelta(seconds=1)


_DEFAULTS = Settings()


class Database:
    """Connections for reading and for writing. Make it before forking, but begin the first transaction after.

    Readers and writers have pools of their own: a crowd of lists must not keep the connection from a writer. Use
    `write`, `snapshot` and `read`; `write_once` and `read_once` try once, for commands that a person can repeat.
    """

    def __init__(self, url: str | sa.URL, settings: Settings = _DEFAULTS) -> None:
        self.url = drivers.parse(url, settings.connection_parameters)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._settings = settings
        self._reserve: Database | None = None
        # Who waited for an answer in vain for so long does not wait again.
        self._patience = min(PATIENCE, settings.response_timeout or PATIENCE, settings.transaction_timeout)
        readers, writers = drivers.pools(settings)
        # SQLite has one writer. Threads of this process wait for it here, in order; other processes are waited for by
        # whoever has the turn.
        self._turns = Turns() if self.is_sqlite else None
        self._hurry = False
        writers = Pool(1, 0) if self.is_sqlite else writers
        self.reads: Engine = drivers.engine(self.url, settings, readers, writes=False)
        self.writes: Engine = drivers.engine(self.url, settings, writers, writes=True)
        self._pools = {self.reads: readers, self.writes: writers}
        self._seats: dict[Engine, tuple[threading.Semaphore, threading.Semaphore]] = {}
        self._snapshot = drivers.snapshot(self.url)
        self.known = Known()
        self._take_seats()

    # --- transactions ------------------------------------------------------------------------------------

    def write(
        self,
        work: Callable[[Tx], T],
        committed: Callable[[Tx, T], bool] | None = None,
        on_unknown: Callable[[T], object] | None = None,
    ) -> T:
        """Run `work` in a transaction that writes; it is durable on return, and undone when `work` raises.

        What the database gives up (a deadlock, a conflict on Galera, a lost connection) is run again, a number of
        times, with pauses. So `work` changes nothing but the database, and is harmless to repeat, even when it
        was committed and only the answer to that got lost; or else `committed` tells from the tables, and from what
        `work` returned, whether that commit is in force. `on_unknown` is told what `work` returned when in the end
        nobody knows whether that was committed. Raises what `work` raises, and `Busy`.
        """
        unheard: list[T] = []  # what the work returned before each COMMIT that nobody answered

        def in_force(tx: Tx) -> list[T]:
            return [one for one in unheard if committed is not None and committed(tx, one)]

        try:
            try:
                result = self._persist(work, in_force, unheard)
            except (errors.CalotypeError, sa.exc.SQLAlchemyError):
                # A commit may come into force after we looked for it; then it is what the work stumbled over now.
                if not unheard or not (found := self.snapshot(in_force)):
                    raise
                result = found[0]
            unheard = [other for other in unheard if other is not result]
            return result
        finally:
            if on_unknown is not None:
                for one in unheard:
                    on_unknown(one)

    def _persist(self, work: Callable[[Tx], T], in_force: Callable[[Tx], list[T]], unheard: list[T]) -> T:
        begun, tries = time.monotonic(), 0
        with questions.Answers() as answers:
            while True:
                committing = False
                try:
                    with self._writing(begun) as tx:
                        if unheard and (found := in_force(tx)):
                            return found[0]
                        result = work(tx)
                        committing = True
                    return result
                except questions.Later as later:
                    begun += _took(partial(answers.find, later))
                except sa.exc.SQLAlchemyError as exc:
                    doubtful = committing and failures.doubtful(exc)
                    if doubtful:
                        unheard.append(result)
                    if not ((doubtful or failures.repeatable(exc)) and self._pause(tries, begun, exc)):
                        raise failures.translated(exc)  # noqa: B904  # it has its cause
                    tries += 1

    def snapshot(self, work: Callable[[Tx], T]) -> T:
        """Run `work` in a transaction that only reads, and sees one moment throughout; again, as `write` does."""
        return self._answered(work, self._snapshot)

    def read(self, work: Callable[[Tx], T]) -> T:
        """As `snapshot`, but each statement sees what is committed when it begins. For one statement that is the same.

        Without a transaction there is a round trip less, or two: what a process waits for costs it caches as well.
        """
        return self._answered(work, "")

    def check(self) -> None:
        """Ask it something that costs nothing. Raises `Busy` when there is no answer."""
        self.read(lambda tx: tx.execute(sa.select(sa.literal(1))).scalar_one())

    def _answered(self, work: Callable[[Tx], T], begin: str) -> T:
        begun = time.monotonic()
        try:
            return self._answer(work, begin, begun)
        except questions.Later as first:
            later = first
        # Only now, as hardly any work has questions and this is the way of each GET.
        with questions.Answers() as answers:
            while True:
                begun += _took(partial(answers.find, later))
                try:
                    return self._answer(work, begin, begun)
                except questions.Later as another:
                    later = another

    def _answer(self, work: Callable[[Tx], T], begin: str, begun: float) -> T:
        tries = 0
        while True:
            try:
                with self._reading(begin, begun) as tx:
                    return work(tx)
            except sa.exc.SQLAlchemyError as exc:
                if not (failures.repeatable(exc) and self._pause(tries, begun, exc)):
                    raise failures.translated(exc)  # noqa: B904  # it has its cause
                tries += 1

    @contextmanager
    def write_once(self) -> Iterator[Tx]:
        """One try of a transaction that writes; durable when the block ends, undone when it raises."""
        with _translated(), self._writing(time.monotonic()) as tx:
            yield tx

    @contextmanager
    def read_once(self) -> Iterator[Tx]:
        """One try of a transaction that only reads, and sees one moment throughout."""
        with _translated(), self._reading(self._snapshot, time.monotonic()) as tx:
            yield tx

    def _pause(self, tries: int, begun: float, exc: Exception) -> bool:
        """Pause before another try; False when there were enough of them."""
        if tries >= self._settings.db_max_retries or time.monotonic() - begun > self._patience:
            return False
        LOG.debug("a transaction is run again: %s", exc)
        most = min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries)
        time.sleep(random.uniform(most / 2, most))  # noqa: S311  # so that those who collided do not meet again
        return True

    # --- connections -------------------------------------------------------------------------------------

    def reserve(self) -> "Database":
        """The same database with two connections of its own, for threads that must not wait behind requests.

        On SQLite they write with the same connection as the others, and before them.
        """
        if self._reserve is None and self.is_sqlite:
            self._reserve = copy.copy(self)
            self._reserve._hurry = True
        elif self._reserve is None:
            seconds = self._settings.response_timeout
            # Whoever waits for an answer in vain must be able to beat again before others take it for dead.
            seconds = seconds and min(seconds, RESERVE_SECONDS)
            settings = replace(self._settings, max_pool_size=2, max_overflow=0, response_timeout=seconds)
            self._reserve = Database(self.url, settings)
        return self._reserve

    def wait(self, tries: int, pause: float) -> None:
        """Return once the database answers; `Busy` when it still does not after so many more tries (-1: no end)."""
        while True:
            try:
                with self.read_once():
                    return
            except errors.Busy as exc:
                if tries == 0 or failures.hopeless(exc.__cause__):
                    raise
                LOG.warning("waiting for the database, trying again in %g s: %s", pause, errors.reason(exc))
            tries -= 1
            time.sleep(pause)

    def _take_seats(self) -> None:
        for engine, pool in self._pools.items():
            more = UNLIMITED if pool.kept == 0 or pool.more < 0 else pool.more
            self._seats[engine] = threading.Semaphore(pool.kept or UNLIMITED), threading.Semaphore(more)

    def _until(self, begun: float) -> float:
        """When a transaction that was begun then has waited enough."""
        if self._settings.response_timeout is None and not self.is_sqlite:
            return math.inf
        return begun + self._settings.transaction_timeout

    @contextmanager
    def _connection(self, engine: Engine, until: float) -> Iterator[Tx]:
        """A connection of a pool, once there is one or it is worth while to open one more."""
        kept, more = self._seats[engine]
        remaining = max(0.0, min(self._settings.pool_timeout, until - time.monotonic()))
        if kept.acquire(timeout=min(_MOMENT, remaining)):
            seat = kept
        elif more.acquire(blocking=False):
            seat = more
        elif kept.acquire(timeout=max(0.0, remaining - _MOMENT)):
            seat = kept
        else:
            raise errors.Busy("Too many wait for the database; try again later.")
        try:
            with engine.connect() as tx:
                if not self.is_sqlite:
                    drivers.limit(tx, until)
                questions.connect()
                try:
                    yield tx
                finally:
                    questions.disconnect()
        finally:
            seat.release()

    @contextmanager
    def _writing(self, begun: float) -> Iterator[Tx]:
        """A transaction that writes, and its connection back to the pool with nothing left in it."""
        until = self._until(begun)
        turn: AbstractContextManager[None] = nullcontext()
        if self._turns is not None:
            turn = self._turns.take(until, hurry=self._hurry)
        with turn, self._connection(self.writes, until) as tx:
            tx.begin()
            try:
                if self._turns is not None:
                    drivers.begin_writing(tx, self._settings, until, _POLL_IN_HURRY if self._hurry else _POLL)
                yield tx
            except BaseException:
                _undo(tx, tx.rollback)
                raise
            drivers.limit(tx, math.inf)  # what is nearly done is not given up to be looked for
            try:
                tx.commit()
            except BaseException:
                tx.invalidate()  # SQLAlchemy takes a failed COMMIT for the end of the transaction; SQLite does not
                raise

    @contextmanager
    def _reading(self, begin: str, begun: float) -> Iterator[Tx]:
        """A connection that commits each statement by itself, but for a transaction that `begin` begins."""
        with self._connection(self.reads, self._until(begun)) as tx:
            try:
                if begin:
                    tx.exec_driver_sql(begin)
                yield tx
                if begin:
                    tx.exec_driver_sql("COMMIT")
            except BaseException:
                if begin:
                    _undo(tx, lambda: tx.exec_driver_sql("ROLLBACK"))
                raise

    def dispose(self) -> None:
        """Forget pooled connections, as a forked child must do before its first transaction."""
        for engine in (self.reads, self.writes):
            engine.dispose(close=False)
        self._take_seats()
        self.known.forget()
        if self._turns is not None:
            self._turns.forget()
        elif self._reserve is not None:
            self._reserve.dispose()

    def close(self) -> None:
        for engine in (self.reads, self.writes):
            engine.dispose()
        if self._reserve is not None and not self.is_sqlite:
            self._reserve.close()


def _took(what: Callable[[], None]) -> float:
    """Do it; how many seconds that took."""
    begun = time.monotonic()
    what()
    return time.monotonic() - begun


def _undo(tx: Tx, how: Callable[[], object]) -> None:
    try:
        how()
    except Exception:  # noqa: BLE001  # why the block failed is what counts
        tx.invalidate()


@contextmanager
def _translated() -> Iterator[None]:
    """The driver's errors in our words."""
    try:
        yield
    except sa.exc.SQLAlchemyError as exc:
        raise failures.translated(exc)  # noqa: B904  # it has its cause
