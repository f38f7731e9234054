"""The database's clock, which all hosts share: for times that one process writes and another compares later."""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class db_now(FunctionElement[datetime]):  # noqa: N801  # it reads as a value where it is used
    """`db_now()` is the present in UTC, as our columns keep it; `db_now(delay)` is that much later."""

    type = sa.DateTime()
    name = "db_now"
    inherit_cache = True

    def __init__(self, delay: timedelta = timedelta(0)) -> None:
        super().__init__(sa.literal(delay // timedelta(microseconds=1), sa.BigInteger()))


@compiles(db_now, "postgresql")
def _postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"(statement_timestamp() AT TIME ZONE 'UTC' + {_delay(element, compiler, options)} * interval '1us')"


@compiles(db_now, "mysql")
@compiles(db_now, "mariadb")
def _mariadb(element: Any, compiler: Any, **options: Any) -> str:
    return f"(UTC_TIMESTAMP(6) + INTERVAL {_delay(element, compiler, options)} MICROSECOND)"


@compiles(db_now, "sqlite")
def _sqlite(element: Any, compiler: Any, **options: Any) -> str:
    # SQLite has milliseconds, and compares times as texts, which must have one length.
    seconds = f"({_delay(element, compiler, options)} / 1000000.0) || ' seconds'"
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', {seconds}) || '000')"


def _delay(element: Any, compiler: Any, options: Any) -> str:
    (delay,) = element.clauses
    return str(compiler.process(delay, **options))
