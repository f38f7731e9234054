"""From a `model.Query` to conditions and an order on `images`.

Order is total and the same on every database: the wanted keys, then `created_at`, then `id`; an unset name or
format sorts as the empty string and an unset size as 0, before everything else when ascending.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from calotype.db.tables import image_properties, image_tags, images
from calotype.model import Query

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
_WHEN_NULL: dict[str, Any] = {"name": "", "disk_format": "", "container_format": "", "size": 0}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of an order."""

    expression: sa.ColumnElement[Any]
    descending: bool

    @property
    def ordered(self) -> sa.ColumnElement[Any]:
        return self.expression.desc() if self.descending else self.expression.asc()


def conditions(query: Query) -> list[sa.ColumnElement[bool]]:
    """All that the caller asked for, without who they are."""
    wanted: list[sa.ColumnElement[bool]] = [images.c.os_hidden == sa.literal(query.os_hidden)]
    for name, values in query.one_of.items():
        column = images.c[name]
        wanted.append(column == values[0] if len(values) == 1 else column.in_(values))
    wanted += [_OPERATORS[test.op](images.c[test.column], test.value) for test in query.comparisons]
    for tag in query.tags:
        wanted.append(
            sa.exists().where(
                image_tags.c.image_id == images.c.id, image_tags.c.value == tag, image_tags.c.deleted == sa.false()
            )
        )
    for name, value in query.properties.items():
        wanted.append(
            sa.exists().where(
                image_properties.c.image_id == images.c.id,
                image_properties.c.name == name,
                image_properties.c.value == value,
                image_properties.c.deleted == sa.false(),
            )
        )
    return wanted


def order(query: Query) -> list[Key]:
    """The keys of a total order; the tie-breakers follow the only direction given, or descend."""
    directions = {direction for _, direction in query.sort}
    last = directions.pop() if len(directions) == 1 else "desc"
    pairs = dict(query.sort)
    for tie in ("created_at", "id"):
        pairs.setdefault(tie, last)
    return [Key(_sortable(name), direction == "desc") for name, direction in pairs.items()]


def after(keys: Sequence[Key], marker: Sequence[Any]) -> sa.ColumnElement[bool]:
    """What follows the marker in this order."""
    steps = []
    for place, key in enumerate(keys):
        same = [earlier.expression == value for earlier, value in zip(keys[:place], marker, strict=False)]
        beyond = key.expression < marker[place] if key.descending else key.expression > marker[place]
        steps.append(sa.and_(*same, beyond))
    return sa.or_(*steps)


def _sortable(name: str) -> sa.ColumnElement[Any]:
    column: sa.ColumnElement[Any] = images.c[name]
    if name == "updated_at":
        return sa.func.coalesce(column, images.c.created_at)
    return sa.func.coalesce(column, _WHEN_NULL[name]) if name in _WHEN_NULL else column
