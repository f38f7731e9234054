"""SQL constructs that databases need in different forms: comparisons, orders and joins.

`exactly` compares texts character for character on every database: MariaDB's collation ignores case and trailing
blanks, which must not decide who sees an image. `beyond` compares rows in the order of an index, and `paged` does so
without an index. `join_from` fixes the table with which a join begins. The rest keeps databases from choosing a bad
index.

`beyond` and `join_from` buy on MariaDB: a page in the middle of 10,000
images costs the database 1.6 CPU-ms, and 4.8 in standard SQL; a first page the same. `python -m bench.worth compare`
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class _Condition(FunctionElement[bool]):
    type = sa.Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        # Where there are no booleans, SQLAlchemy would compare a function with 1, and no index would be used.
        return self


# --- exactly ---------------------------------------------------------------------------------------------


class exactly(_Condition):  # noqa: N801  # it reads as a verb where it is used
    """`exactly(column, value)`: the same text, character for character."""

    name = "exactly"
    inherit_cache = True


@compiles(exactly)
def _plain(element: Any, compiler: Any, **options: Any) -> str:
    column, value = _processed(element, compiler, options)
    return f"{column} = {value}"


@compiles(exactly, "mysql")
@compiles(exactly, "mariadb")
def _binary(element: Any, compiler: Any, **options: Any) -> str:
    # The plain comparison stays, because only that one can use an index.
    column, value = _processed(element, compiler, options)
    return f"({column} = {value} AND CAST({column} AS BINARY) = CAST({value} AS BINARY))"


class identical(_Condition):  # noqa: N801
    """`identical(one, other)`: the same text, whatever their collations. It uses no index."""

    name = "identical"
    inherit_cache = True


compiles(identical)(_plain)


@compiles(identical, "mysql")
@compiles(identical, "mariadb")
def _bytes(element: Any, compiler: Any, **options: Any) -> str:
    one, other = _processed(element, compiler, options)
    return f"CAST({one} AS BINARY) = CAST({other} AS BINARY)"


# --- beyond ----------------------------------------------------------------------------------------------


class _RowAbove(_Condition):
    name = "row_above"
    inherit_cache = True
    sign = ">"


class _RowBelow(_Condition):
    name = "row_below"
    inherit_cache = True
    sign = "<"


def beyond(columns: Sequence[Any], values: Sequence[Any], *, descending: bool) -> sa.ColumnElement[bool]:
    """What follows the row of values in the order of these columns. None of them is NULL."""
    return (_RowBelow if descending else _RowAbove)(*columns, *values)


@compiles(_RowAbove)
@compiles(_RowBelow)
def _as_rows(element: Any, compiler: Any, **options: Any) -> str:
    parts = _processed(element, compiler, options)
    half = len(parts) // 2
    return f"({', '.join(parts[:half])}) {element.sign} ({', '.join(parts[half:])})"


@compiles(_RowAbove, "mysql")
@compiles(_RowAbove, "mariadb")
@compiles(_RowBelow, "mysql")
@compiles(_RowBelow, "mariadb")
def _as_ranges(element: Any, compiler: Any, **options: Any) -> str:
    # MariaDB uses no index for a comparison of rows, but finds the ranges in the same condition spelt out.
    parts = _processed(element, compiler, options)
    half = len(parts) // 2
    *pairs, (column, value) = zip(parts[:half], parts[half:], strict=True)
    text = f"{column} {element.sign} {value}"
    for column, value in reversed(pairs):
        text = f"{column} {element.sign} {value} OR ({column} = {value} AND ({text}))"
    return f"({text})"


def _processed(element: Any, compiler: Any, options: Any) -> list[str]:
    return [compiler.process(part, **options) for part in element.clauses]


def paged(
    statement: sa.Select[Any], table: sa.Table, keys: Sequence[str], descending: bool, after: Mapping[str, Any] | None
) -> sa.Select[Any]:
    """The statement, ordered by these columns of its table; rows without a value come first when ascending.

    `after` has the values of a row: then only rows that follow it are returned. It uses no index, so it is for tables
    that are not large.
    """
    if after is not None:
        steps: list[sa.ColumnElement[bool]] = []
        same: list[sa.ColumnElement[bool]] = []
        for key in keys:
            column, value = table.c[key], after[key]
            if value is None:
                steps.append(sa.and_(*same, sa.false() if descending else column.is_not(None)))
            else:
                bound = sa.literal(value, column.type)  # a bare True is an expression that has no order
                further = column < bound if descending else column > bound
                nothing = column.is_(None) if descending and column.nullable else sa.false()
                steps.append(sa.and_(*same, further | nothing))
            same.append(column.is_(None) if value is None else column == value)
        statement = statement.where(sa.or_(*steps))
    for key in keys:
        column = table.c[key]
        for step in (column.is_not(None), column) if column.nullable else (column,):
            statement = statement.order_by(step.desc() if descending else step.asc())
    return statement


# --- order -----------------------------------------------------------------------------------------------


class always_null(FunctionElement[Any]):  # noqa: N801  # it reads as a note to a column
    """`always_null(column)`, in ORDER BY: a column that is NULL in all rows that are sorted.

    PostgreSQL uses the index only if the column is named, MariaDB only if it is not.
    """

    name = "always_null"
    inherit_cache = True


@compiles(always_null)
def _itself(element: Any, compiler: Any, **options: Any) -> str:
    return str(_processed(element, compiler, options)[0])


@compiles(always_null, "mysql")
@compiles(always_null, "mariadb")
def _unnamed(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "NULL"


class has_value(FunctionElement[Any]):  # noqa: N801
    """`has_value(column)`, in ORDER BY before the column: NULL is less than any value.

    MariaDB sorts so anyway, and faster without it.
    """

    name = "has_value"
    inherit_cache = True


@compiles(has_value)
def _is_there(element: Any, compiler: Any, **options: Any) -> str:
    return f"{_processed(element, compiler, options)[0]} IS NOT NULL"


compiles(has_value, "mysql")(_unnamed)
compiles(has_value, "mariadb")(_unnamed)


class unindexed(FunctionElement[Any]):  # noqa: N801
    """`unindexed(column)`: the column, without its indexes: without statistics a database may choose a bad one.

    Text columns have this effect on SQLite alone. There it also keeps the value of one condition out of others.
    """

    name = "unindexed"
    inherit_cache = True


compiles(unindexed)(_itself)


@compiles(unindexed, "sqlite")
def _with_plus(element: Any, compiler: Any, **options: Any) -> str:
    return f"+{_processed(element, compiler, options)[0]}"


@compiles(unindexed, "mysql")
@compiles(unindexed, "mariadb")
def _with_zero(element: Any, compiler: Any, **options: Any) -> str:
    (column,) = element.clauses
    text = str(compiler.process(column, **options))
    return text if isinstance(column.type, sa.String) else f"({text} + 0)"


class not_index_only(_Condition):  # noqa: N801
    """`not_index_only(column)`: always true, but SQLite cannot answer it from an index that lacks the column.

    SQLite prefers to scan a whole index that has all columns and the wanted order, even where another index would lead
    it to a few rows.
    """

    name = "not_index_only"
    inherit_cache = True


@compiles(not_index_only)
def _true(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "1 = 1"


@compiles(not_index_only, "sqlite")
def _mentioned(element: Any, compiler: Any, **options: Any) -> str:
    return f"coalesce({_processed(element, compiler, options)[0]}, 0) IS NOT NULL"


class limit_unless_null(FunctionElement[int]):  # noqa: N801
    """`limit_unless_null(value, limit)`, as a LIMIT: on SQLite 0 if `value` is NULL. Others need no help."""

    type = sa.Integer()
    name = "limit_unless_null"
    inherit_cache = True


@compiles(limit_unless_null)
def _just_limit(element: Any, compiler: Any, **options: Any) -> str:
    _, limit = element.clauses
    return str(compiler.process(limit, **options))


@compiles(limit_unless_null, "sqlite")
def _limit_or_none(element: Any, compiler: Any, **options: Any) -> str:
    value, limit = _processed(element, compiler, options)
    return f"CASE WHEN {value} IS NULL THEN 0 ELSE {limit} END"


# --- joins -----------------------------------------------------------------------------------------------


class _JoinFrom(sa.Join):
    inherit_cache = True


def join_from(left: sa.FromClause, right: sa.FromClause, on: sa.ColumnElement[bool]) -> sa.Join:
    """A join that begins with `left`. PostgreSQL alone may choose, as it has statistics to choose by."""
    return _JoinFrom(left, right, on)


def _joined(word: str) -> Any:
    def compiled(element: Any, compiler: Any, **options: Any) -> str:
        options["asfrom"] = True
        left, right = (compiler.process(side, **options) for side in (element.left, element.right))
        return f"{left} {word} {right} ON {compiler.process(element.onclause, **options)}"

    return compiled


compiles(_JoinFrom)(_joined("JOIN"))
compiles(_JoinFrom, "sqlite")(_joined("CROSS JOIN"))
compiles(_JoinFrom, "mysql")(_joined("STRAIGHT_JOIN"))
compiles(_JoinFrom, "mariadb")(_joined("STRAIGHT_JOIN"))
