"""The connection to the database: one transaction per `with`, and what each backend needs to keep its promises.

Functions of this package take the `Tx` that `Database.begin()` or `.read()` hands out, so that several of them
commit together. Nothing else in Calotype opens a connection.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import QueuePool

from calotype import errors

Tx = Connection

#: How long SQLite waits for another process's write transaction, milliseconds.
SQLITE_BUSY_MS = 30_000


def now() -> datetime:
    """The present as the tables keep it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


class Database:
    """Connections for reading and for writing. Make it before forking, but begin the first transaction after.

    Readers and writers have pools of their own: a crowd of lists must not keep the connection from a writer, least
    of all from the thread that renews leases.
    """

    def __init__(self, url: str, *, pool_size: int = 5, max_overflow: int = 20, pool_timeout: float = 30) -> None:
        pool = {"pool_size": pool_size, "max_overflow": max_overflow, "pool_timeout": pool_timeout}
        try:
            self.url = sa.make_url(url)
            if self.is_sqlite:
                options: dict[str, Any] = {"poolclass": QueuePool, "connect_args": {"check_same_thread": False}}
                self.reads: Engine = sa.create_engine(self.url, **pool, **options)
                self.writes: Engine = sa.create_engine(self.url, **options, pool_size=1, max_overflow=0)
            else:
                # An image's row and what hangs on it are two statements: both must see the same moment. Writers lock
                # the row first and want what was committed last.
                options = {"pool_pre_ping": True, **pool}
                self.reads = sa.create_engine(self.url, isolation_level="REPEATABLE READ", **options)
                self.writes = sa.create_engine(self.url, isolation_level="READ COMMITTED", **options)
        except (sa.exc.ArgumentError, ImportError) as exc:
            raise errors.ConfigError(f"[database] connection cannot be used: {exc}") from exc
        # SQLite has one writer. Threads of this process wait for it here, without polling; other processes are waited
        # for by SQLite's busy handler.
        self._writer: Any = threading.Lock() if self.is_sqlite else nullcontext()
        if self.is_sqlite:
            for engine in (self.reads, self.writes):
                event.listen(engine, "connect", _sqlite_connect)
            event.listen(self.reads, "begin", _sqlite_begin_reading)
            event.listen(self.writes, "begin", _sqlite_begin_writing)

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def begin(self) -> Iterator[Tx]:
        """A transaction that writes; durable when the block ends, undone when it raises."""
        with self._writer, _translated(), self.writes.begin() as tx:
            yield tx

    @contextmanager
    def read(self) -> Iterator[Tx]:
        """A transaction that only reads, and sees one moment throughout."""
        with _translated(), self.reads.begin() as tx:
            yield tx

    def dispose(self) -> None:
        """Forget pooled connections, as a forked child must do before its first transaction."""
        for engine in (self.reads, self.writes):
            engine.dispose(close=False)
        if self.is_sqlite:
            self._writer = threading.Lock()

    def close(self) -> None:
        for engine in (self.reads, self.writes):
            engine.dispose()


@contextmanager
def _translated() -> Iterator[None]:
    """The driver's errors in our words."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as exc:
        raise errors.Busy("The database cannot be reached, or is busy or full; try again later.") from exc
    except sa.exc.DataError as exc:
        raise errors.Invalid("A value is longer than the database takes.") from exc
    except sa.exc.IntegrityError as exc:
        raise errors.Conflict(
            "Somebody else changed the same thing at the same time, or two names are one here."
        ) from exc


def _sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # Transactions are begun below, never behind our back.
    connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _sqlite_begin_reading(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _sqlite_begin_writing(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails at once with "database is locked" when another
    # one wrote in between; IMMEDIATE waits for its turn instead.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
