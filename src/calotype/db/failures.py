"""What a database error means: whether to retry the transaction, whether the connection is lost, and which of our
errors it becomes.

Numbers are error codes of MariaDB and MySQL, texts of five characters are SQLSTATEs of PostgreSQL. No error of SQLite
is worth a retry: waiting for its lock is done in `drivers.py`.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext

from calotype import errors

#: The database has rolled the transaction back, also if this answers a COMMIT: it may be run again.
_UNDONE: Final = {
    1020,  # the record has changed since it was read (MariaDB 11.6 and later)
    1205,  # waited too long for a lock
    1213,  # deadlock; on Galera also: another node changed the same row first
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55P03",  # waited too long for a lock
}
#: The same, unless this answers a COMMIT: then the outcome is unknown.
_REFUSED: Final = {
    1047,  # this node of Galera is not ready, or not in the majority
    1305,  # the savepoint is gone: with the transaction, in a deadlock
    1317,  # interrupted, as Galera does with the loser of a conflict
}
#: The connection is lost. SQLAlchemy knows some of these, but not all.
_LOST: Final = {
    1040,  # too many connections
    1053,  # the server is shutting down
    1158,  # reading failed …
    1159,  # … or took too long
    1160,  # writing failed …
    1161,  # … or took too long
    1203,  # too many connections of this user
    1290,  # the server became read-only, as after a failover
    1836,  # the same
    1927,  # the connection was killed
    2002,  # nobody listens
    2003,  # the same
    2006,  # the server is gone
    2013,  # the connection broke
    2055,  # the same
    4031,  # idle for too long
    "25006",  # the server became read-only, as after a failover
    "53300",  # too many connections
    "57P01",  # shut down by an administrator
    "57P02",  # another process crashed
    "57P03",  # not up yet
    "57P05",  # idle for too long
}
#: Connecting again will not help: the user, the password or the name of the database is wrong.
_PERMANENT: Final = {1044, 1045, 1049, 1698, "28000", "28P01", "3D000"}


def watch(engine: Engine) -> None:
    """Let SQLAlchemy drop all pooled connections also when one is lost by an error of `_LOST`."""
    event.listen(engine, "handle_error", _mark_lost)


def _mark_lost(context: ExceptionContext) -> None:
    if isinstance(context.sqlalchemy_exception, sa.exc.DBAPIError) and _code(context.sqlalchemy_exception) in _LOST:
        context.is_disconnect = True


def is_transient(exc: sa.exc.SQLAlchemyError) -> bool:
    """Whether the transaction failed for a reason that passes. For an error of COMMIT see `outcome_unknown` as well."""
    if not isinstance(exc, sa.exc.DBAPIError) or _is_sqlite(exc):
        return False
    code = _code(exc)
    if code is None:
        # psycopg has no code when there is no server to send one: it is not connected, or no longer.
        return isinstance(exc, sa.exc.OperationalError | sa.exc.InterfaceError)
    if isinstance(code, str) and code.startswith("08"):
        return True
    return exc.connection_invalidated or code in _UNDONE or code in _REFUSED or code in _LOST


def outcome_unknown(exc: sa.exc.SQLAlchemyError) -> bool:
    """Whether the COMMIT that raised this may have succeeded all the same."""
    if not isinstance(exc, sa.exc.DBAPIError) or _is_sqlite(exc):
        return False
    return _code(exc) not in _UNDONE and not isinstance(exc, sa.exc.IntegrityError | sa.exc.DataError)


def is_permanent(exc: BaseException | None) -> bool:
    """Whether connecting again would fail for the same reason."""
    return isinstance(exc, sa.exc.DBAPIError) and (_is_sqlite(exc) or _code(exc) in _PERMANENT)


def translated(exc: sa.exc.SQLAlchemyError) -> Exception:
    """The error as one of ours, with its cause; the error itself if our code is to blame."""
    error: Exception
    if isinstance(exc, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError) or is_transient(exc):
        error = errors.Busy("The database cannot be reached, or is busy or full; try again later.")
    elif type(exc) is sa.exc.DatabaseError and _is_sqlite(exc):
        error = errors.Busy("The file of the database is damaged, or is not a database.")
    elif isinstance(exc, sa.exc.DataError):
        error = errors.Invalid("A value is longer than the database takes.")
    elif isinstance(exc, sa.exc.IntegrityError):
        error = errors.Conflict("Somebody else changed the same thing at the same time, or two names are one here.")
    else:
        return exc
    error.__cause__ = exc
    return error


def _code(exc: sa.exc.DBAPIError) -> int | str | None:
    first = exc.orig.args[0] if exc.orig is not None and exc.orig.args else None
    return first if isinstance(first, int) else getattr(exc.orig, "sqlstate", None)


def _is_sqlite(exc: sa.exc.DBAPIError) -> bool:
    return type(exc.orig).__module__ == "sqlite3"
