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
_WRITE = "calotype_write"


def now() -> datetime:
    """The present as the tables keep it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


class Database:
    """One engine. Make it before forking if you like, but begin the first transaction after."""

    def __init__(self, url: str, *, pool_size: int = 5, max_overflow: int = 20, pool_timeout: float = 30) -> None:
        try:
            self.url = sa.make_url(url)
            options: dict[str, Any] = {
                "pool_size": pool_size,
                "max_overflow": max_overflow,
                "pool_timeout": pool_timeout,
            }
            if self.is_sqlite:
                options |= {"poolclass": QueuePool, "connect_args": {"check_same_thread": False}}
            else:
                options |= {"pool_pre_ping": True, "isolation_level": "READ COMMITTED"}
            self.engine: Engine = sa.create_engine(self.url, **options)
        except (sa.exc.ArgumentError, ImportError) as exc:
            raise errors.ConfigError(f"[database] connection cannot be used: {exc}") from exc
        # SQLite has one writer. Threads of this process queue here, fairly and without polling; other
        # processes are waited for by SQLite's busy handler.
        self._writer: Any = threading.Lock() if self.is_sqlite else nullcontext()
        if self.is_sqlite:
            event.listen(self.engine, "connect", _sqlite_connect)
            event.listen(self.engine, "begin", _sqlite_begin)

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def begin(self) -> Iterator[Tx]:
        """A transaction that writes; durable when the block ends, undone when it raises."""
        with self._writer, self._connect() as connection:
            tx = connection.execution_options(**{_WRITE: True})
            with tx.begin():
                yield tx

    @contextmanager
    def read(self) -> Iterator[Tx]:
        """A transaction that only reads, one consistent view on SQLite."""
        with self._connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _connect(self) -> Iterator[Tx]:
        try:
            with self.engine.connect() as connection:
                yield connection
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as exc:
            raise errors.Busy("The database cannot be reached, or is busy or full; try again later.") from exc

    def dispose(self) -> None:
        """Forget pooled connections, as a forked child must do before its first transaction."""
        self.engine.dispose(close=False)
        if self.is_sqlite:
            self._writer = threading.Lock()

    def close(self) -> None:
        self.engine.dispose()


def _sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # Transactions are begun by `_sqlite_begin`, never behind our back.
    connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _sqlite_begin(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails at once with "database is locked" when another
    # one wrote in between; IMMEDIATE waits for its turn instead.
    writes = connection.get_execution_options().get(_WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
