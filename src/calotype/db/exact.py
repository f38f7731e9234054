"""Equality that tells `demo` from `Demo` and from `demo ` on every database.

MariaDB compares text by a collation that ignores case and blanks at the end. That is no way to decide who sees
whose images. The plain comparison stays in the condition, because it is the one that has an index.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class exactly(FunctionElement[bool]):  # noqa: N801  # it reads as a verb where it is used
    """`exactly(column, value)`: the same text, character for character."""

    name = "exactly"
    type = sa.Boolean()
    inherit_cache = True


@compiles(exactly)
def _plain(element: Any, compiler: Any, **options: Any) -> str:
    column, value = element.clauses
    return f"{compiler.process(column, **options)} = {compiler.process(value, **options)}"


@compiles(exactly, "mysql", "mariadb")
def _binary(element: Any, compiler: Any, **options: Any) -> str:
    column, value = (compiler.process(part, **options) for part in element.clauses)
    return f"({column} = {value} AND CAST({column} AS BINARY) = CAST({value} AS BINARY))"
