"""From a URL to an engine: which driver, how many connections, and what a database is told when one begins.

A database that hangs must not hold a thread for ever, so each of its answers has a time limit. What happens when
that is over, or when a connection breaks, stands in `engine.py`.
"""

import functools
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

#: A server that does not take a connection in this time, seconds, is not there.
CONNECT_SECONDS = 10
#: The longest wait for a row that another transaction has locked, seconds. Our own last milliseconds.
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
    """What of `[database]` connections depend on, by the options' names; times are seconds."""

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
    """How many connections stay open, and how many more a crowd gets. 0 and -1 lift the limits."""

    kept: int
    more: int


def pools(settings: Settings) -> tuple[Pool, Pool]:
    """For readers and for writers: half each of what the operator allows, and at least one connection."""
    size, overflow = settings.max_pool_size, settings.max_overflow
    if size == 0 or overflow < 0:
        return Pool(size, overflow), Pool(size, overflow)
    most = max(2, size + overflow)
    kept = max(1, size // 2)
    writers = Pool(kept, most // 2 - kept)
    kept = max(1, size - kept)
    readers = Pool(kept, most - most // 2 - kept)
    return readers, writers


# --- URLs ------------------------------------------------------------------------------------------------


def parse(text: str | sa.URL, parameters: str = "") -> sa.URL:
    """The URL with our driver in it. Raises `ConfigError`, which never shows the password."""
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise errors.ConfigError("[database] connection is not the URL of a database.") from None
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
    if url.query.get("charset") in ("utf8", "utf8mb3"):
        # As many a configuration has it. It would make a name with an emoji an error even where it is only looked for.
        url = url.update_query_dict({"charset": "utf8mb4"})
    return url


def engine(url: sa.URL, settings: Settings, pool: Pool, *, writes: bool) -> Engine:
    """Connections for transactions of one kind. Raises `ConfigError` when the driver is not installed."""
    kind = url.get_backend_name()
    options: dict[str, Any] = {
        "poolclass": QueuePool,
        "pool_size": pool.kept,
        "max_overflow": pool.more,
        "pool_timeout": settings.pool_timeout,
        # What `engine.py` gives back has no transaction left in it. A ROLLBACK to make sure would cost a round trip
        # each time, and a ping before each use another one: a stale connection is noticed by whoever gets it.
        "pool_reset_on_return": None,
        "query_cache_size": 200,  # compiled statements: lists have many shapes, and some are large
        "hide_parameters": True,  # in errors, which are logged: locations may hold credentials
    }
    if not writes:
        options |= {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
    elif kind != "sqlite":
        # Writers lock the row first and want what was committed last.
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
    if kind == "sqlite":
        event.listen(made, "connect", functools.partial(_sqlite_connect, settings))
    elif kind != "postgresql" and not writes:
        event.listen(made, "connect", _mysql_isolate)
    if kind != "sqlite" and settings.response_timeout is not None:
        make = insides.limited_psycopg().connect if kind == "postgresql" else insides.limited_pymysql()
        _limit_answers(made, make, settings)
    failures.watch(made)
    return made


def snapshot(url: sa.URL) -> str:
    """The statement that begins a transaction in which all statements see the same moment, on a reader's connection."""
    kinds = {"sqlite": "BEGIN", "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}
    return kinds.get(url.get_backend_name(), "START TRANSACTION READ ONLY")


def _connect_seconds(settings: Settings) -> int:
    return int(min(CONNECT_SECONDS, settings.response_timeout or CONNECT_SECONDS))


def _lock_seconds(settings: Settings) -> int | None:
    """Less than the time for an answer: a connection that waits for a lock is not lost."""
    if settings.response_timeout is None:
        return None
    return max(1, min(LOCK_SECONDS, int(settings.response_timeout / 2)))


def _limit_answers(made: Engine, make: Callable[..., Any], settings: Settings) -> None:
    """Make connections that break when an answer takes longer, or when the time is over that `limit` gave them."""

    def connect(_dialect: object, _record: object, arguments: Any, named: dict[str, Any]) -> Any:
        connection = make(*arguments, **named)
        connection.limit = settings.response_timeout
        return connection

    event.listen(made, "do_connect", connect)


def limit(connection: Connection, until: float) -> None:
    """Let no answer be waited for beyond that moment (`time.monotonic`). SQLite has none that is."""
    if connection.dialect.name != "sqlite" and not connection.invalidated:
        driver: Any = connection.connection.driver_connection
        driver.until = until


# --- MariaDB ---------------------------------------------------------------------------------------------


def _mysql_arguments(settings: Settings) -> dict[str, Any]:
    mode = settings.mysql_sql_mode
    if not mode:
        mode = "CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"
    elif mode.upper() == "TRADITIONAL" or "STRICT_" in mode.upper():
        mode = f"'{mode}'"
    else:
        mode = f"'{mode},STRICT_ALL_TABLES'"  # else what is too long would be cut off without a word
    commands = [f"sql_mode = {mode}"]
    if lock := _lock_seconds(settings):
        commands.append(f"innodb_lock_wait_timeout = {lock}")
    if settings.mysql_wsrep_sync_wait is not None:
        commands.append(f"wsrep_sync_wait = {settings.mysql_wsrep_sync_wait}")
    return {
        "connect_timeout": _connect_seconds(settings),
        "read_timeout": settings.response_timeout,
        "write_timeout": settings.response_timeout,
        # MariaDB would keep answers of subqueries that are asked once each, which costs more than asking. The comment
        # is one to MySQL.
        "init_command": f"SET SESSION {', '.join(commands)} /*M! , optimizer_switch = 'subquery_cache=off' */",
    }


def _mysql_isolate(connection: Any, _record: object) -> None:
    # What `snapshot` begins has the isolation of its session, and an operator may have another one for all sessions.
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
    connection.isolation_level = None  # Transactions are begun by us, never behind our back.
    connection.execute(_busy_timeout(settings))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def begin_writing(connection: Connection, settings: Settings, until: float, pause: float) -> None:
    """Begin a transaction of SQLite's that writes, when no other process has one; look again after each pause.

    A deferred transaction that reads and then writes fails at once with "database is locked" when another one wrote in
    between; IMMEDIATE waits for its turn instead. SQLite's own waiting looks more and more seldom, and comes last where
    many wait for one another.
    """
    raw: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    raw.execute("PRAGMA busy_timeout = 0")
    try:
        while time.monotonic() < until:
            try:
                raw.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break
            time.sleep(pause)
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # which raises what others expect
    finally:
        raw.execute(_busy_timeout(settings))
