"""What an error of a database means: may the transaction be run again, is the connection gone, what do we call it.

Numbers are MariaDB's and MySQL's, texts of five characters PostgreSQL's SQLSTATE. SQLite's own busy handler waits
for what can be waited for, so none of its errors is repeated.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext

from calotype import errors

#: The database undid the transaction, and said so: it may be run again.
_UNDONE: Final = {
    1020,  # the record has changed since it was read (MariaDB 11.6 and later)
    1205,  # waited too long for a lock
    1213,  # deadlock; on Galera also: another node changed the same row first
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55P03",  # waited too long for a lock
}
#: So it is with these, unless they answer a COMMIT; then nobody knows.
_REFUSED: Final = {
    1047,  # this node of Galera is not ready, or not in the majority
    1305,  # the savepoint is gone: with the transaction, in a deadlock
    1317,  # interrupted, as Galera does with the loser of a conflict
}
#: The connection is of no more use; SQLAlchemy knows some of these, but not all.
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
#: Connecting again will not help: the name, the password or the database's name is wrong.
_HOPELESS: Final = {1044, 1045, 1049, 1698, "28000", "28P01", "3D000"}


def watch(engine: Engine) -> None:
    """Have SQLAlchemy throw all pooled connections away when one of them is lost by our definition, too."""
    event.listen(engine, "handle_error", _notice)


def _notice(context: ExceptionContext) -> None:
    if isinstance(context.sqlalchemy_exception, sa.exc.DBAPIError) and _code(context.sqlalchemy_exception) in _LOST:
        context.is_disconnect = True


def repeatable(exc: sa.exc.SQLAlchemyError) -> bool:
    """Whether the transaction did not happen, for a reason that passes. Not for what a COMMIT raised: `doubtful`."""
    if not isinstance(exc, sa.exc.DBAPIError) or _is_sqlite(exc):
        return False
    code = _code(exc)
    if code is None:
        # PostgreSQL's library gives no code when there is nobody who could: not connected, or not any more.
        return isinstance(exc, sa.exc.OperationalError | sa.exc.InterfaceError)
    if isinstance(code, str) and code.startswith("08"):
        return True
    return exc.connection_invalidated or code in _UNDONE or code in _REFUSED or code in _LOST


def doubtful(exc: sa.exc.SQLAlchemyError) -> bool:
    """Whether the COMMIT that raised this may have happened all the same."""
    if not isinstance(exc, sa.exc.DBAPIError) or _is_sqlite(exc):
        return False
    return _code(exc) not in _UNDONE and not isinstance(exc, sa.exc.IntegrityError | sa.exc.DataError)


def hopeless(exc: BaseException | None) -> bool:
    """Whether trying to connect again is a waste of time."""
    return isinstance(exc, sa.exc.DBAPIError) and (_is_sqlite(exc) or _code(exc) in _HOPELESS)


def translated(exc: sa.exc.SQLAlchemyError) -> Exception:
    """The error in our words, with its cause; itself where it is a mistake of ours."""
    made: Exception
    if isinstance(exc, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError) or repeatable(exc):
        made = errors.Busy("The database cannot be reached, or is busy or full; try again later.")
    elif isinstance(exc, sa.exc.DataError):
        made = errors.Invalid("A value is longer than the database takes.")
    elif isinstance(exc, sa.exc.IntegrityError):
        made = errors.Conflict("Somebody else changed the same thing at the same time, or two names are one here.")
    else:
        return exc
    made.__cause__ = exc
    return made


def _code(exc: sa.exc.DBAPIError) -> int | str | None:
    first = exc.orig.args[0] if exc.orig is not None and exc.orig.args else None
    return first if isinstance(first, int) else getattr(exc.orig, "sqlstate", None)


def _is_sqlite(exc: sa.exc.DBAPIError) -> bool:
    return type(exc.orig).__module__ == "sqlite3"
