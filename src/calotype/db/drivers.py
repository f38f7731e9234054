"""Makes SQLAlchemy engines from URLs: the driver, the pools, and what each connection sets when it begins.

A database that hangs must not hold a thread for ever, so each answer of a connection has a time limit. `engine.py` says
what happens when the limit is over, or when a connection breaks.
"""

import functools
import inspect
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import QueuePool

from calotype import errors, insides
from calotype.db import failures

#: How long connecting may take, seconds.
CONNECT_SECONDS = 10
#: How long a statement may wait for a row lock, seconds. Our own transactions hold theirs for milliseconds.
LOCK_SECONDS = 10

#: For each kind of database its driver and the extra that installs it.
_DRIVERS = {
    "mariadb": ("pymysql", "mysql"),
    "mysql": ("pymysql", "mysql"),
    "postgresql": ("psycopg", "postgresql"),
    "sqlite": ("pysqlite", ""),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `[database]` that connections depend on, under their own names; times are seconds."""

    connection_parameters: str = ""
    connection_recycle_time: int = 3600
    db_max_retries: int = 20
    max_overflow: int = 50
    max_pool_size: int = 5
    mysql_sql_mode: str = "TRADITIONAL"
    mysql_wsrep_sync_wait: int | None = None
    pool_timeout: float = 30
    response_timeout: float | None = 30  #: None: as long as it takes, for migrations and the like
    transaction_timeout: float = 30  #: for all that a transaction waits for before its COMMIT


@dataclass(frozen=True, slots=True)
class Pool:
    """How many connections stay open, and how many more may be opened under load. 0 and -1 lift the limits."""

    size: int
    overflow: int


def pools(settings: Settings) -> tuple[Pool, Pool]:
    """The pools of readers and of writers: each gets half of what the operator allows, and at least one connection."""
    kept, more = settings.max_pool_size, settings.max_overflow
    if kept == 0 or more < 0:
        return Pool(kept, more), Pool(kept, more)
    total = max(2, kept + more)
    writers = max(1, kept // 2)
    readers = max(1, kept - writers)
    return Pool(readers, total - total // 2 - readers), Pool(writers, total // 2 - writers)


# --- URLs ------------------------------------------------------------------------------------------------


def parse(text: str | sa.URL, parameters: str = "") -> sa.URL:
    """The URL with our driver in it. Raises `ConfigError`, which never shows the password."""
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # of which some are about the port alone
        raise errors.ConfigError(
            "[database] connection is not the URL of a database, as mysql://USER:PASSWORD@HOST:PORT/NAME."
        ) from None
    kind, _, driver = url.drivername.partition("+")
    if kind not in _DRIVERS:
        raise errors.ConfigError(
            f"[database] connection: {kind} is not served; it must begin with mysql, postgresql or sqlite."
        )
    ours, extra = _DRIVERS[kind]
    if driver not in ("", ours):
        raise errors.ConfigError(
            f"[database] connection: the driver {driver} is not served. Write {kind}+{ours}://… and install the "
            f"driver: pip install 'calotype[{extra}]'"
        )
    url = url.set(drivername=f"{kind}+{ours}").update_query_pairs(parse_qsl(parameters))
    if kind == "sqlite" and (url.host or url.port):
        raise errors.ConfigError("[database] connection: write sqlite:////PATH, with four slashes for a whole path.")
    if url.query.get("charset") in ("utf8", "utf8mb3"):
        # Many configurations have it. With it, even looking for a name that has an emoji would be an error.
        url = url.update_query_dict({"charset": "utf8mb4"})
    return url


def engine(url: sa.URL, settings: Settings, pool: Pool, *, writes: bool) -> Engine:
    """Connections for transactions of one kind. Raises `ConfigError` when the driver is not installed."""
    kind = url.get_backend_name()
    options: dict[str, Any] = {
        "poolclass": QueuePool,
        "pool_size": pool.size,
        "max_overflow": pool.overflow,
        "pool_timeout": settings.pool_timeout,
        # `engine.py` returns no connection with a transaction in it, so a ROLLBACK on return would be a wasted round
        # trip. So would a ping before each use: whoever gets a stale connection notices that.
        "pool_reset_on_return": None,
        "query_cache_size": 200,  # compiled statements: lists have many shapes, and some are large
        "hide_parameters": True,  # in errors, which are logged: locations may hold credentials
    }
    if not writes:
        options |= {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
    elif kind != "sqlite":
        # Writers lock a row first, and then read what was committed last.
        options["isolation_level"] = "READ COMMITTED"
    if kind == "sqlite":
        options["connect_args"] = {"check_same_thread": False}
    else:
        options["pool_recycle"] = settings.connection_recycle_time
        arguments = _postgresql_arguments(settings) if kind == "postgresql" else _mysql_arguments(settings)
        options["connect_args"] = {name: value for name, value in arguments.items() if name not in url.query}
    try:
        made = sa.create_engine(url, **options)
    except ImportError as exc:
        extra = _DRIVERS[kind][1]
        raise errors.ConfigError(
            f"[database] connection: the driver is not installed: pip install 'calotype[{extra}]' ({exc})"
        ) from exc
    except sa.exc.ArgumentError as exc:
        raise errors.ConfigError(f"[database] connection has a parameter that nobody knows: {exc}.") from None
    if kind != "sqlite":
        _check_arguments(made, url)
    if kind == "sqlite":
        event.listen(made, "connect", functools.partial(_sqlite_connect, settings))
    elif kind != "postgresql" and not writes:
        event.listen(made, "connect", _mysql_isolate)
    if kind != "sqlite" and settings.response_timeout is not None:
        make = insides.limited_psycopg().connect if kind == "postgresql" else insides.limited_pymysql()
        _limit_waiting(made, make, settings)
    failures.watch(made)
    return made


def _check_arguments(made: Engine, url: sa.URL) -> None:
    """Raise `ConfigError` for a parameter of the URL that the driver does not know: no connection would be made."""
    driver: Any = made.dialect.loaded_dbapi
    try:
        if made.dialect.name == "postgresql":
            own = inspect.signature(driver.Connection.connect).parameters
            driver.conninfo.make_conninfo("", **{name: text for name, text in url.query.items() if name not in own})
        else:
            inspect.signature(driver.connect).bind(**made.dialect.create_connect_args(url)[1])
    except (TypeError, driver.Error) as exc:
        raise errors.ConfigError(
            f"[database] connection has a parameter that its driver does not know: {exc}."
        ) from None


def snapshot(url: sa.URL) -> str:
    """The statement that begins a transaction of a reader in which all statements see the same moment."""
    kinds = {"sqlite": "BEGIN", "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}
    return kinds.get(url.get_backend_name(), "START TRANSACTION READ ONLY")


def _connect_seconds(settings: Settings) -> int:
    return int(min(CONNECT_SECONDS, settings.response_timeout or CONNECT_SECONDS))


def _lock_seconds(settings: Settings) -> int | None:
    """How long to wait for a lock, seconds. Less than the time for an answer, so that waiting breaks no connection."""
    if settings.response_timeout is None:
        return None
    return max(1, min(LOCK_SECONDS, int(settings.response_timeout / 2)))


def _limit_waiting(made: Engine, make: Callable[..., Any], settings: Settings) -> None:
    """Make connections that break when an answer takes too long, or at the deadline that `set_deadline` gave them."""

    def connect(_dialect: object, _record: object, arguments: Any, named: dict[str, Any]) -> Any:
        connection = make(*arguments, **named)
        connection.answer_timeout = settings.response_timeout
        return connection

    event.listen(made, "do_connect", connect)


def set_deadline(connection: Connection, deadline: float) -> None:
    """Wait for no answer beyond this moment (`time.monotonic`). SQLite answers at once."""
    if connection.dialect.name != "sqlite" and not connection.invalidated:
        driver: Any = connection.connection.driver_connection
        driver.deadline = deadline


# --- MariaDB ---------------------------------------------------------------------------------------------


def _mysql_arguments(settings: Settings) -> dict[str, Any]:
    mode = settings.mysql_sql_mode
    if not mode:
        mode = "CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"
    elif mode.upper() == "TRADITIONAL" or "STRICT_" in mode.upper():
        mode = f"'{mode}'"
    else:
        mode = f"'{mode},STRICT_ALL_TABLES'"  # else values that are too long would be cut off silently
    commands = [f"sql_mode = {mode}"]
    if lock := _lock_seconds(settings):
        commands.append(f"innodb_lock_wait_timeout = {lock}")
    if settings.mysql_wsrep_sync_wait is not None:
        commands.append(f"wsrep_sync_wait = {settings.mysql_wsrep_sync_wait}")
    return {
        "connect_timeout": _connect_seconds(settings),
        "read_timeout": settings.response_timeout,
        "write_timeout": settings.response_timeout,
        # MariaDB would cache the results of subqueries that run once each, which costs more than running them. To MySQL
        # this part is a comment.
        "init_command": f"SET SESSION {', '.join(commands)} /*M! , optimizer_switch = 'subquery_cache=off' */",
    }


def _mysql_isolate(connection: Any, _record: object) -> None:
    # A transaction of `snapshot` has the isolation of its session, and an operator may have changed the default.
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")


# --- PostgreSQL ------------------------------------------------------------------------------------------


def _postgresql_arguments(settings: Settings) -> dict[str, Any]:
    arguments: dict[str, Any] = {"connect_timeout": _connect_seconds(settings)}
    if lock := _lock_seconds(settings):
        arguments["options"] = f"-c lock_timeout={lock}s"
    return arguments


# --- SQLite ----------------------------------------------------------------------------------------------


def _busy_timeout(settings: Settings) -> str:
    return f"PRAGMA busy_timeout = {int(settings.transaction_timeout * 1000)}"


def _sqlite_connect(settings: Settings, connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # We begin transactions, never the library.
    connection.execute(_busy_timeout(settings))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def begin_writing(connection: Connection, settings: Settings, deadline: float, pause: float) -> None:
    """Begin a transaction that writes to SQLite, once no other process has one; try again after each `pause`.

    A deferred transaction that reads and then writes fails at once with "database is locked" if another one wrote in
    between; IMMEDIATE waits instead. SQLite's own busy handler is not used: it tries less and less often, so that under
    load a process that has waited for long waits on.
    """
    raw: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    raw.execute("PRAGMA busy_timeout = 0")
    try:
        while time.monotonic() < deadline:
            try:
                raw.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break
            time.sleep(pause)
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the last attempt: it raises the error of SQLAlchemy
    finally:
        raw.execute(_busy_timeout(settings))
