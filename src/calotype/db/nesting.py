"""JSON that the database puts together of rows: one long value costs a driver less than hundreds of short ones.

What it buys: documents of images, see `documents.py`; and of definitions, of which one namespace took three times the
CPU with a statement for each kind (docs/performance.md).
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class array(FunctionElement[Any]):  # noqa: N801
    """A JSON array of columns and of other JSON."""

    type = sa.JSON()
    name = "json_array"
    inherit_cache = True


class collected(FunctionElement[Any]):  # noqa: N801
    """An aggregate: a JSON object of names and values; null when there are no rows."""

    type = sa.JSON()
    name = "json_collected"
    inherit_cache = True


class nested(FunctionElement[Any]):  # noqa: N801
    """JSON from a subquery, which SQLite would take for text."""

    type = sa.JSON()
    name = "json_nested"
    inherit_cache = True


def _call(default: str, **names: str) -> Any:
    def compiled(element: Any, compiler: Any, **options: Any) -> str:
        return names.get(compiler.dialect.name, default) + f"({compiler.process(element.clauses, **options)})"

    return compiled


compiles(array)(_call("JSON_ARRAY", postgresql="json_build_array"))
compiles(collected)(_call("JSON_OBJECTAGG", postgresql="json_object_agg", sqlite="json_group_object"))
compiles(nested)(_call("", sqlite="json"))
