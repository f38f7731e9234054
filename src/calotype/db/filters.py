"""From a `model.Query` to conditions and an order on `images`.

The order is total and the same on every database: the wanted keys, then `created_at`, then `id`. A column without a
value comes before all values when ascending, after all when descending.
"""

import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from calotype.db.compare import apart
from calotype.db.tables import INDEXED_VALUE, image_properties, image_tags, images, property_start, walk_columns
from calotype.model import Comparison, Query

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}


# --- conditions ------------------------------------------------------------------------------------------


def conditions(query: Query, without: Collection[str | Comparison] = ()) -> list[sa.ColumnElement[bool]]:
    """What the caller asked for of columns, but for who sees what (`visibility`, `owner`) and `os_hidden`.

    `without` leaves out columns and comparisons that are taken care of elsewhere.
    """
    wanted: list[sa.ColumnElement[bool]] = []
    for name, values in query.one_of.items():
        if name != "owner" and name not in without:
            column = images.c[name]
            wanted.append(column == values[0] if len(values) == 1 else column.in_(values))
    wanted += [
        OPERATORS[test.op](images.c[test.column], test.value) for test in query.comparisons if test not in without
    ]
    return wanted


def hanging(query: Query, image_id: sa.ColumnElement[str] = images.c.id) -> list[sa.ColumnElement[bool]]:
    """The tags and properties that the caller asked for, of the image with an id; looked up for each image.

    As values, not EXISTS: of that MariaDB would collect all images that have such a row.
    """
    found = [sa.select(sa.literal(1)).where(image_tags.c.image_id == image_id, *tagged(tag)) for tag in query.tags]
    for name, value in query.properties.items():
        found.append(
            sa.select(sa.literal(1)).where(image_properties.c.image_id == image_id, *has_property(name, value))
        )
    return [one.limit(1).scalar_subquery().is_not(None) for one in found]


def tagged(tag: str) -> list[sa.ColumnElement[bool]]:
    """On `image_tags`."""
    return [image_tags.c.value == tag, apart(image_tags.c.deleted) == sa.false()]


def has_property(name: str, value: str) -> list[sa.ColumnElement[bool]]:
    """On `image_properties`; the beginning of the value is what its index has."""
    table = image_properties.c
    start = property_start == value[:INDEXED_VALUE]
    return [table.name == name, start, apart(table.value) == value, apart(table.deleted) == sa.false()]


# --- order -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """A total order: (column, descending) pairs, the tie-breakers among them."""

    keys: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, query: Query) -> "Order":
        """The tie-breakers follow the only direction given, or descend. Nothing after a unique key counts."""
        directions = {direction for _, direction in query.sort}
        last = directions.pop() if len(directions) == 1 else "desc"
        pairs = dict(query.sort)
        for tie in ("created_at", "id"):
            pairs.setdefault(tie, last)
        keys = [(name, direction == "desc") for name, direction in pairs.items()]
        return cls(tuple(keys[: 1 + [name for name, _ in keys].index("id")]))

    @property
    def walk(self) -> str | None:
        """The column whose index has this order, forwards or backwards; None where no index has it."""
        names = tuple(name for name, _ in self.keys)
        one_way = len({descending for _, descending in self.keys}) == 1
        return names[0] if one_way and names == walk_columns(names[0]) else None

    @property
    def descending(self) -> bool:
        return self.keys[0][1]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.keys]

    def by(self, columns: Any = images.c) -> list[sa.ColumnElement[Any]]:
        """For ORDER BY, with the columns of `images` or of a subquery that has them."""
        found: list[sa.ColumnElement[Any]] = []
        for name, descending in self.keys:
            steps = [columns[name].is_not(None)] if images.c[name].nullable else []
            found += [step.desc() if descending else step.asc() for step in (*steps, columns[name])]
        return found

    def after(self, marker: Sequence[Any]) -> sa.ColumnElement[bool]:
        """What follows an image with these values."""
        steps = []
        for place, ((name, descending), value) in enumerate(zip(self.keys, marker, strict=True)):
            before = zip(self.keys[:place], marker, strict=False)
            same = [
                images.c[key] == there if there is not None else images.c[key].is_(None) for (key, _), there in before
            ]
            steps.append(sa.and_(*same, _beyond(images.c[name], descending, value)))
        return sa.or_(*steps)


def _beyond(column: Any, descending: bool, value: Any) -> sa.ColumnElement[bool]:
    if value is None:
        return sa.false() if descending else column.is_not(None)
    found: sa.ColumnElement[bool] = column < value if descending else column > value
    return found | column.is_(None) if descending and column.nullable else found
