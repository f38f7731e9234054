"""The database's clock: the only one that all hosts share. For moments that are kept in a row and compared later."""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class moment(FunctionElement[datetime]):  # noqa: N801  # it reads as a value where it is used
    """`moment()` is the present in UTC, `moment(delay)` is later than that; as our columns keep it."""

    type = sa.DateTime()
    name = "moment"
    inherit_cache = True

    def __init__(self, delay: timedelta = timedelta(0)) -> None:
        super().__init__(sa.literal(delay // timedelta(microseconds=1), sa.BigInteger()))


@compiles(moment, "postgresql")
def _postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"(statement_timestamp() AT TIME ZONE 'UTC' + {_delay(element, compiler, options)} * interval '1us')"


@compiles(moment, "mysql")
@compiles(moment, "mariadb")
def _mariadb(element: Any, compiler: Any, **options: Any) -> str:
    return f"(UTC_TIMESTAMP(6) + INTERVAL {_delay(element, compiler, options)} MICROSECOND)"


@compiles(moment, "sqlite")
def _sqlite(element: Any, compiler: Any, **options: Any) -> str:
    # It knows milliseconds, and compares moments as texts of one length.
    seconds = f"({_delay(element, compiler, options)} / 1000000.0) || ' seconds'"
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', {seconds}) || '000')"


def _delay(element: Any, compiler: Any, options: Any) -> str:
    (delay,) = element.clauses
    return str(compiler.process(delay, **options))
