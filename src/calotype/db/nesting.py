"""SQL functions that make JSON of rows, under one name for all databases.

With them one statement reads an image, or a namespace of definitions, with the rows of other tables that belong to it.
A driver takes less time for one long value than for hundreds of short ones: see `documents.py`; a namespace took three
times the CPU with a statement for each kind of definition (docs/performance.md).
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class json_array(FunctionElement[Any]):  # noqa: N801
    """A JSON array of columns and of other JSON."""

    type = sa.JSON()
    name = "json_array"
    inherit_cache = True


class json_object_agg(FunctionElement[Any]):  # noqa: N801
    """An aggregate: a JSON object of names and values; NULL when there are no rows."""

    type = sa.JSON()
    name = "json_collected"
    inherit_cache = True


class json_subquery(FunctionElement[Any]):  # noqa: N801
    """JSON that a subquery returns; without this SQLite would take it for text."""

    type = sa.JSON()
    name = "json_nested"
    inherit_cache = True


def _call(default: str, **names: str) -> Any:
    def compiled(element: Any, compiler: Any, **options: Any) -> str:
        return names.get(compiler.dialect.name, default) + f"({compiler.process(element.clauses, **options)})"

    return compiled


compiles(json_array)(_call("JSON_ARRAY", postgresql="json_build_array"))
compiles(json_object_agg)(_call("JSON_OBJECTAGG", postgresql="json_object_agg", sqlite="json_group_object"))
compiles(json_subquery)(_call("", sqlite="json"))
