"""Turns a `model.Query` into SQL conditions and an order on `images`.

Building a statement costs more than running it. So statements are built once for each `FilterShape`, which says which
filters there are; their values are parameters.

The order is total and the same on every database: the wanted keys, then `created_at`, then `id`. An image without a
value in a column comes before all others when ascending, after them when descending.

What shapes without values buy: a list of 25 costs 0.9 CPU-ms of this process, and 3.1 where its statement is built
each time; by two keys 2.8, and 14.6. `python -m bench.worth filters`
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from calotype.db.compare import has_value, unindexed
from calotype.db.tables import INDEXED_VALUE, image_properties, image_tags, images, property_start, walk_columns
from calotype.model import Query

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}


# --- conditions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FilterShape:
    """Which filters a list has, without their values, and without `visibility`, `owner` and `os_hidden`.

    `single` are columns that must have one value, `multiple` columns that must have one of several values. `compared`
    are columns with their operators, `unset` columns that must have no value. `tags` and `properties` say how many of
    these there are.
    """

    single: tuple[str, ...] = ()
    multiple: tuple[str, ...] = ()
    compared: tuple[tuple[str, str], ...] = ()
    unset: tuple[str, ...] = ()
    tags: int = 0
    properties: int = 0

    @classmethod
    def of(cls, query: Query) -> "FilterShape":
        wanted = {name: len(values) for name, values in query.one_of.items() if name != "owner"}
        return cls(
            tuple(name for name, count in wanted.items() if count == 1),
            tuple(name for name, count in wanted.items() if count != 1),
            tuple((test.column, test.op) for test in query.comparisons),
            tags=len(query.tags),
            properties=len(query.properties),
        )

    def with_one_value(self, column: str, *, unset: bool = False) -> "FilterShape":
        """The same filters, and one more: a column must have one value, which these filters accept, or none."""
        if unset:
            return replace(self, unset=(*self.unset, column))
        if column in self.single:
            return self
        return replace(
            self, single=(*self.single, column), multiple=tuple(name for name in self.multiple if name != column)
        )

    def conditions(
        self, satisfied: tuple[str, int] = ("", 0), *, walked: str | None = None
    ) -> list[sa.ColumnElement[bool]]:
        """Conditions on `images`; all must hold.

        `satisfied` is the kind and number of a tag or property that needs no condition any more. `walked` is the column
        whose index is read: SQLite must not choose the index of another column.
        """
        found = [condition for _, condition in self._columns(walked)]
        hanging = [
            sa.select(sa.literal(1)).where(image_tags.c.image_id == images.c.id, *tagged(number))
            for number in range(self.tags)
            if satisfied != ("tag", number)
        ]
        hanging += [
            sa.select(sa.literal(1)).where(image_properties.c.image_id == images.c.id, *has_property(number))
            for number in range(self.properties)
            if satisfied != ("property", number)
        ]
        # Scalar subqueries: for EXISTS MariaDB would collect all images that have such a row.
        return found + [one.limit(1).correlate(images).scalar_subquery().is_not(None) for one in hanging]

    def on(self, column: str) -> list[sa.ColumnElement[bool]]:
        """The conditions on one column of `images`."""
        return [condition for name, condition in self._columns() if name == column]

    def _columns(self, walked: str | None = None) -> Iterator[tuple[str, sa.ColumnElement[bool]]]:
        for several, names in ((False, self.single), (True, self.multiple)):
            yield from ((name, is_one_of(name, several=several, walked=walked in (None, name))) for name in names)
        for number, (name, op) in enumerate(self.compared):
            yield name, OPERATORS[op](images.c[name], parameter(f"than_{number}", name))
        yield from ((name, images.c[name].is_(None)) for name in self.unset)

    @property
    def count(self) -> int:
        return (
            len(self.single) + len(self.multiple) + len(self.compared) + len(self.unset) + self.tags + self.properties
        )

    def excludes_unset(self, column: str) -> bool:
        """Whether one of the filters excludes images without a value in a column."""
        return column in self.single or column in self.multiple or any(name == column for name, _ in self.compared)


def values(query: Query) -> dict[str, Any]:
    """The values of a query for the parameters of the conditions."""
    found: dict[str, Any] = {}
    for name, wanted in query.one_of.items():
        found[f"is_{name}"] = wanted[0] if len(wanted) == 1 else list(wanted)
    for number, test in enumerate(query.comparisons):
        found[f"than_{number}"] = test.value
    for number, tag in enumerate(query.tags):
        found[f"tag_{number}"] = tag
    for number, (name, value) in enumerate(query.properties.items()):
        found |= {f"property_{number}": name, f"value_{number}": value, f"start_{number}": value[:INDEXED_VALUE]}
    return found


def parameter(name: str, column: str) -> sa.BindParameter[Any]:
    """A parameter of the type of a column of `images`."""
    return sa.bindparam(name, type_=images.c[column].type)


def is_one_of(name: str, *, several: bool, walked: bool = True) -> sa.ColumnElement[bool]:
    """Whether a column has the wanted value, or one of several. A text column uses its index only if it is `walked`."""
    column: Any = images.c[name]
    column = column if walked or not isinstance(column.type, sa.String) else unindexed(column)
    value: Any = sa.bindparam(f"is_{name}", type_=images.c[name].type, expanding=True) if several else None
    found: sa.ColumnElement[bool] = column.in_(value) if several else column == parameter(f"is_{name}", name)
    return found


def tagged(number: int) -> list[sa.ColumnElement[bool]]:
    """Conditions on `image_tags`: it is the tag with this number."""
    wanted: sa.BindParameter[str] = sa.bindparam(f"tag_{number}", type_=image_tags.c.value.type)
    return [image_tags.c.value == wanted, unindexed(image_tags.c.deleted) == sa.false()]


def has_property(number: int) -> list[sa.ColumnElement[bool]]:
    """Conditions on `image_properties`: it is the property with this number. The index has the beginning of a value."""
    table = image_properties.c
    name, start, value = (
        sa.bindparam(f"{part}_{number}", type_=sa.String()) for part in ("property", "start", "value")
    )
    starts = property_start == start
    return [table.name == name, starts, unindexed(table.value) == value, unindexed(table.deleted) == sa.false()]


# --- order -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """A total order: (column, descending) pairs, the tie-breakers among them."""

    keys: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, query: Query) -> "Order":
        """Tie-breakers have the direction of the keys if there is only one, else they descend. Keys after `id` are left
        out: it is unique."""
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
        return self.first if self.one_way and tuple(self.names) == walk_columns(self.first) else None

    @property
    def descending(self) -> bool:
        return self.keys[0][1]

    @property
    def one_way(self) -> bool:
        return len({descending for _, descending in self.keys}) == 1

    @property
    def first(self) -> str:
        return self.keys[0][0]

    @property
    def rest(self) -> "Order":
        """The order of images that have the same value in the first column."""
        return Order(self.keys[1:])

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.keys]

    def by(self, columns: Any = images.c) -> list[sa.ColumnElement[Any]]:
        """For ORDER BY, with the columns of `images` or of a subquery that has them."""
        found: list[sa.ColumnElement[Any]] = []
        for name, descending in self.keys:
            steps = [has_value(columns[name])] if images.c[name].nullable else []
            found += [sa.desc(step) if descending else sa.asc(step) for step in (*steps, columns[name])]
        return found

    def after(self, unset: Sequence[bool]) -> sa.ColumnElement[bool]:
        """What follows the image with the values `marker_…`; `unset` says for each key whether it has none."""
        steps = []
        for place, ((name, descending), nothing) in enumerate(zip(self.keys, unset, strict=True)):
            before = zip(self.keys[:place], unset, strict=False)
            same = [images.c[key].is_(None) if none else images.c[key] == marker(key) for (key, _), none in before]
            steps.append(sa.and_(*same, _beyond(name, descending, nothing)))
        return sa.or_(*steps)


def marker(name: str) -> sa.BindParameter[Any]:
    """The value of the marker, the image after which a page begins, in a column."""
    return parameter(f"marker_{name}", name)


def _beyond(name: str, descending: bool, unset: bool) -> sa.ColumnElement[bool]:
    column: Any = images.c[name]
    if unset:
        return sa.false() if descending else column.is_not(None)
    found: sa.ColumnElement[bool] = column < marker(name) if descending else column > marker(name)
    return found | column.is_(None) if descending and column.nullable else found
