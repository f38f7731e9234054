"""Pages of images. The cost of a page depends on its length, and not on how many images there are.

What a caller sees is a union of branches (`visibility.py`). Each branch has an index of its own for each order
(`calotype_owner_…`, `calotype_visibility_…`). The first N images of the union are among the first N of each branch. So
a *walk* reads the first N entries of each branch from its index, merges them, and fetches the stamps of the first N
(`record_cache.py`). Then the records that are not cached are read.

A list is answered by the first of these ways that fits:

- *few*: at most `FEW` images meet a filter that has an index (id, tag, property). They are all read and sorted. The
  same is done with images of one name or size, if their index does not have the order;
- *walk*: an index has the order, perhaps for the images with one name, status, format or size. Each branch is read
  until it has a page of images that meet the other filters. Images with one hash or checksum have one index for all
  branches (`calotype_os_hash_value`, `calotype_checksum`);
- *groups*: the order has several keys. The index of the first key is read; it has images with the same first value, a
  group, next to each other. One statement finds a group, counts it, and sorts it if it is not large; a large group is
  a list of its own, in the order of the other keys. Groups of a few images are sorted many at once. Images without a
  value in the first column are a group that is probably large; they are listed separately.

What it buys, of 10,000 images on MariaDB, in CPU-ms of process + database: a list of 25 costs 1.1 + 1.1, and 3.2 + 27
where all that the caller sees is sorted; by two keys 2.9 + 4.2, and 3.3 + 29. `python -m bench.worth pages`. A
hundred times as many images cost 1.05 times as much, the median of all orders (`python -m bench.growth`).
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import Any, Final

import sqlalchemy as sa

from calotype import errors
from calotype.context import Context
from calotype.db import documents, filters, visibility
from calotype.db import images as db_images
from calotype.db.compare import always_null, beyond, join_from, limit_unless_null, not_index_only
from calotype.db.documents import document
from calotype.db.engine import Tx
from calotype.db.filters import FilterShape, Order
from calotype.db.record_cache import RecordCache, id_of, stamp
from calotype.db.tables import BY_VALUE, image_members, image_properties, image_tags, images, walk_columns
from calotype.db.visibility import Branch
from calotype.model import Image, Query

#: Up to this many candidates are all read and sorted, instead of walking an index.
FEW: Final = 1000
#: The same for properties. Counting them takes longer, as no index has a whole value.
_FEW_PROPERTIES: Final = 250
#: The same for an order by several keys, for which the other ways take more than one statement.
_FEW_FOR_GROUPS: Final = 10_000
#: Up to this many images with one value are sorted, instead of walking an index that has another order.
_MAX_SORTED: Final = 40_000
#: For an order by several keys, how many entries more than a page are read: at both ends a group may be cut.
_TIES: Final = 25
#: Beyond this many shares of a project its lists walk all shared images and look each share up, not the reverse.
_MANY_SHARES: Final = 5000

#: How many records one statement reads: the number of parameters is limited.
_READ_BATCH: Final = 1000
#: A statement with more filters than this is not cached: it takes much memory, and callers can invent many.
_MAX_CACHED_FILTERS: Final = 8

_OS_HIDDEN = images.c.os_hidden == sa.bindparam("hidden", type_=sa.Boolean())
_LIVING = [images.c.deleted == sa.false(), _OS_HIDDEN]
_NOT_INDEX_ONLY = not_index_only(images.c.calotype_revision)  # which no index has
_LISTED = images.c.status != "killed"  # what API v1 left
_LIMIT: sa.BindParameter[int] = sa.bindparam("most", type_=sa.Integer())
_WINDOW: sa.BindParameter[int] = sa.bindparam("window", type_=sa.Integer())

_NONE: Final = FilterShape()
#: A filter for one value of these walks the index of that column; with several such filters, the first column in this
#: order, in which fewer images are likely to have one value.
_SELECTIVE: Final = (*BY_VALUE, "name", "size")
#: Columns of few values: many images have the same.
_COARSE: Final = ("status", "container_format", "disk_format")
#: The one of these in which nearly all images have the same value, so that its groups are not sorted before counting.
_DOMINATED: Final = "status"
_FIXABLE: Final = (*_SELECTIVE, *_COARSE)


class ChangedMeanwhile(Exception):
    """An image changed between two statements of one page, and may not belong on it any more."""


def needs_one_statement(query: Query) -> bool:
    """Whether a single statement finds the images of the page, so that no transaction is needed to find them."""
    return Order.of(query).walk is not None


def page(tx: Tx, cache: RecordCache, ctx: Context, query: Query) -> list[Image | str]:
    """Up to `query.limit` images after `query.marker`; only the id of an image that is too large for the database.

    Raises `Invalid` for a marker that the caller cannot see. Raises `ChangedMeanwhile` if an image changed between two
    statements, which happens only if `tx` does not see one moment throughout.
    """
    if query.limit == 0:
        return []
    stamps = _Search.of(tx, ctx, query).stamps()
    found: dict[str, Image | None] = {**cache.matching(stamps)}
    news = [one for one in stamps if one not in found]
    for start in range(0, len(news), _READ_BATCH):
        found |= _read(tx, cache, news[start : start + _READ_BATCH])
    if any(one not in found for one in stamps):
        raise ChangedMeanwhile
    return [documents.seen_by(ctx, image) if (image := found[one]) else id_of(one) for one in stamps]


_READ = sa.select(images.c.id, stamp, document).where(images.c.id.in_(sa.bindparam("ids", expanding=True)))


def _read(tx: Tx, cache: RecordCache, stamps: list[str]) -> dict[str, Image | None]:
    """The records of the images with these stamps, by stamp; None for one that is too large for the database."""
    found: dict[str, Image | None] = {}
    for row in tx.execute(_READ, {"ids": [id_of(one) for one in stamps]}):
        try:
            found[row.stamp] = cache.put(row.stamp, documents.image(row))
        except errors.Busy:
            found[row.stamp] = None  # `documents.image` has logged it
    return found


# --- walks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Walk:
    """A way through indexes: everything that its statement depends on, except for values.

    - `key`: the column whose indexes are read;
    - `fixed`: only images with one value in `key`, in the order of their age;
    - `start`: what the marker has in the first column: *nothing*, because there is no marker, a *value*, or *unset*;
    - `begins`: the first entry: the one *after* the marker, the first *at* its value, or the first *past* its value;
    - `strict`: without images that are never listed (`_LISTED`);
    - `valued`: without images that have no value in the first column;
    - `nulls_low`: to the database, NULL is less than any value, as it is to us.
    """

    branches: tuple[Branch, ...]
    key: str
    descending: bool = True
    fixed: bool = False
    start: str = "nothing"
    begins: str = "after"
    filter_shape: FilterShape = _NONE
    strict: bool = False
    valued: bool = False
    nulls_low: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return walk_columns(self.key)[1 if self.fixed else 0 :]

    @property
    def order(self) -> Order:
        return Order(tuple((name, self.descending) for name in self.columns))


def _merged(walk: Walk) -> sa.Select[Any]:
    """The first `window` entries of all branches together: the columns of the order."""
    if walk.key in BY_VALUE:
        return _of_one_value(walk)
    # SQLite allows no parentheses around a part of a union, so each part has a select around it.
    parts = [sa.select(part.subquery()) for branch in walk.branches for part in _entries(walk, branch)]
    merged = (sa.union(*parts) if len(parts) > 1 else parts[0]).subquery()
    return sa.select(merged).order_by(*walk.order.by(merged.c)).limit(_WINDOW)


def _of_one_value(walk: Walk) -> sa.Select[Any]:
    """The first `window` images with one hash that the caller sees, from an index for all branches."""
    ((beyond_marker, order),) = _segments(walk)
    wanted = [
        visibility.holds(walk.branches),
        *_LIVING,
        *walk.filter_shape.conditions(),
        *([_LISTED] if walk.strict else []),
    ]
    found = sa.select(*(images.c[name] for name in walk.columns)).where(*wanted, *beyond_marker)
    for name in ("mysql", "mariadb"):
        found = found.with_hint(images, f"FORCE INDEX (calotype_{walk.key})", name)
    return found.order_by(*order).limit(_WINDOW)


@lru_cache(maxsize=512)
def _walked(walk: Walk) -> sa.Select[Any]:
    """The stamps of a walk, in order; None for an image that is not listed."""
    return _stamped(_merged(walk), walk.order)


def _stamped(found: sa.Select[Any], order: Order) -> sa.Select[Any]:
    """The stamps of what is found, in order; None for an image that is not listed."""
    entries = found.subquery("entries")
    listed = entries.outerjoin(images, (images.c.id == entries.c.id) & _LISTED)
    return sa.select(stamp).select_from(listed).order_by(*order.by(entries.c))


@lru_cache(maxsize=512)
def _first_group(walk: Walk, order: Order, unset: tuple[bool, ...] | None) -> sa.Select[Any]:
    """The first `most` images of a group, after the marker, in an order. A group has one value in its first key.

    The group is that of the value that the walk is fixed to, or of no value; otherwise it is the first group of the
    walk. Each row has the stamp, and

    - `first`: the value of the group;
    - `at_marker`: whether the marker has that value, too;
    - `many`: whether a branch has more than `window` images in the group; then those were not read.

    A row without a stamp may come from a branch that has no image in the group, or too many.
    """
    parts = [
        sa.select(part.subquery()) for branch in walk.branches for part in _group_of_branch(walk, order, unset, branch)
    ]
    entries = (sa.union(*parts) if len(parts) > 1 else parts[0]).subquery("entries")
    first: Any = entries.c.first
    groups = sa.select(entries, sa.literal_column("1").label("place")).subquery("alike")
    if not walk.fixed:  # each branch has a first group of its own; the first of these is wanted
        by = [sa.case((first.is_(None), 1), else_=0), first.desc() if walk.descending else first]
        groups = sa.select(entries, sa.func.rank().over(order_by=by).label("place")).subquery("alike")
    at_marker: Any = sa.false() if unset is None or unset[0] else groups.c.first == filters.marker(walk.key)
    found = sa.select(
        sa.case((groups.c.id.is_not(None), stamp.element)).label("stamp"),
        groups.c.first,
        groups.c.many,
        sa.case((at_marker, 1), else_=0).label("at_marker"),
    ).select_from(groups.outerjoin(images, images.c.id == groups.c.id))
    missing = sa.case((groups.c.id.is_(None), 1), else_=0)
    found = found.where(groups.c.place == 1).order_by(groups.c.many.desc(), missing, *order.rest.by(groups.c))
    return found.limit(_LIMIT)


def _group_of_branch(
    walk: Walk, order: Order, unset: tuple[bool, ...] | None, branch: Branch
) -> Iterator[sa.Select[Any]]:
    """The same of one branch: `first`, `many`, and the columns of the order behind its first key."""
    key: Any = images.c[walk.key]
    one: Any = sa.literal_column("1")
    among = [*branch.conditions(), *_LIVING]
    wanted = [*walk.filter_shape.conditions(walked=walk.key), _LISTED, *([] if unset is None else [order.after(unset)])]
    wanted.append(_NOT_INDEX_ONLY)
    same_value, by = walk.filter_shape.on(walk.key), list[Any]()
    if not walk.fixed:
        ((beyond_marker, by), *_) = _segments(walk)
        same_value = [*same_value, *beyond_marker]
    most: Any = _LIMIT
    entry, shares = sa.select(one if walk.fixed else key).where(*among, *same_value), list[Any]()
    others = [*(images.c[name] for name in order.rest.names)]
    if branch.kind == "shared":
        few = sa.select(key.label("first"), sa.literal_column("0").label("many"), *others)
        few, shares, many_shares = _shared(few.where(*among, *same_value, *wanted), branch)
        entry, one, most = (
            entry.where(*shares),
            limit_unless_null(many_shares, one),
            limit_unless_null(many_shares, _LIMIT),
        )
        yield few
    entry = _by_index(entry, walk, branch).order_by(*by).limit(one)
    after = entry.offset(_WINDOW).scalar_subquery()
    many: sa.ColumnElement[bool]
    if walk.fixed:
        head = sa.select(after.label("after")).subquery("head")
        first, many = key, head.c.after.is_not(None)
    else:
        head = sa.select(entry.scalar_subquery().label("first"), after.label("after")).subquery("head")
        first, many = head.c.first, head.c.after == head.c.first
        same_value = [key == first]
    # Reads no row of a large group: `deleted` is in the index and never NULL, so comparing it with NULL ends the scan.
    blind = not walk.fixed and walk.key == _DOMINATED
    kept = images.c.deleted == (sa.literal_column("NULL") if blind else sa.case((many, None), else_=sa.false()))
    found = sa.select(first.label("first"), sa.case((many, 1), else_=0).label("many"), *others)
    on = sa.and_(*branch.conditions(), kept, _OS_HIDDEN, *same_value, *shares, *wanted)
    found = found.select_from(head.outerjoin(images, on))
    yield _by_index(found, walk, branch).order_by(*order.rest.by()).limit(most)


@lru_cache(maxsize=512)
def _window_with_ties(walk: Walk, order: Order, unset: tuple[bool, ...] | None) -> sa.Select[Any]:
    """Sorts a window of a walk: of its entries, the first `most` after the marker, in an order that begins with `key`.

    Each row has the stamp, None for an image that is not listed, and

    - `first`: the image's value in the first column;
    - `total`: how many entries the window has;
    - `place`: how many entries have this value or come before it; if that is `total`, its group may go on after the
      window;
    - `wanted`: whether the image follows the marker. The window's last entry is returned also if it does not;
    - `at_marker`: whether the image and the marker have the same value in the first column.
    """
    entries = _merged(walk).subquery("entries")
    count = sa.func.count()
    places = sa.select(
        entries.c.id,
        count.over(order_by=Order(order.keys[:1]).by(entries.c)).label("place"),
        sa.func.row_number().over(order_by=walk.order.by(entries.c)).label("number"),
        count.over().label("total"),
    ).subquery("places")
    first: Any = images.c[order.first]
    after: sa.ColumnElement[bool] = sa.true()
    at_marker: sa.ColumnElement[bool] = sa.true()
    if unset is not None:
        after, at_marker = order.after(unset), first.is_(None) if unset[0] else first == filters.marker(order.first)
    found = sa.select(
        sa.case((_LISTED, stamp.element)).label("stamp"),
        first.label("first"),
        places.c.place,
        places.c.total,
        sa.case((after, 1), else_=0).label("wanted"),
        sa.case((at_marker, 1), else_=0).label("at_marker"),
    ).select_from(join_from(places, images, images.c.id == places.c.id))
    if unset is not None:
        found = found.where(after | (places.c.number == places.c.total))
    return found.order_by(*order.by()).limit(_LIMIT)


def _entries(walk: Walk, branch: Branch) -> Iterator[sa.Select[Any]]:
    """The first `window` entries of one branch, from its index: one or more selects; together they may have more."""
    wanted = [
        *branch.conditions(),
        *_LIVING,
        *walk.filter_shape.conditions(walked=walk.key),
        *([_LISTED] if walk.strict else []),
    ]
    for segment, order in _segments(walk):
        entry = sa.select(*(images.c[name] for name in walk.columns)).where(*wanted, *segment)
        most: Any = _WINDOW
        if branch.kind == "shared":
            few, shares, many = _shared(entry, branch)
            entry, most = entry.where(*shares), limit_unless_null(many, _WINDOW)
            yield few
        yield _by_index(entry, walk, branch).order_by(*order).limit(most)


def _by_index(statement: sa.Select[Any], walk: Walk, branch: Branch) -> sa.Select[Any]:
    """MariaDB would weigh two dozen indexes for each part, which costs more than reading one; and may be wrong."""
    index = f"calotype_{'owner' if branch.kind == 'owner' or branch.by_owner else 'visibility'}_{walk.key}"
    for name in ("mysql", "mariadb"):
        statement = statement.with_hint(images, f"FORCE INDEX ({index})", name)
    return statement


def _shared(entry: sa.Select[Any], branch: Branch) -> tuple[sa.Select[Any], list[Any], sa.ScalarSelect[Any]]:
    """Two ways to the images that are shared with a project; the database runs one of them.

    Returns a statement that goes from the project's shares to the images, if it has few; conditions that go from the
    shared images to the project's share, if it has many; and an expression that is NULL if it has few.
    """
    member = sa.select(sa.literal(1)).where(*branch.membership())
    many = member.limit(1).offset(_MANY_SHARES).scalar_subquery()
    shares = join_from(image_members, images, image_members.c.image_id == images.c.id)
    # A scalar subquery: EXISTS MariaDB would turn into a join, in an order that it chooses.
    one = member.where(image_members.c.image_id == images.c.id).limit(1).correlate(images).scalar_subquery()
    few = entry.select_from(shares).where(*branch.membership(), many.is_(None))
    return few, [one.is_not(None), many.is_not(None)], many


_BEGINS: Final = {("at", False): "gte", ("at", True): "lte", ("past", False): "gt", ("past", True): "lt"}


def _segments(walk: Walk) -> list[tuple[list[Any], list[Any]]]:
    """The parts of a walk beyond the marker, each as conditions and ORDER BY: images with a value in the first column,
    and images without one."""
    return [
        (conditions, [sa.desc(column) if walk.descending else column for column in order])
        for conditions, order in _ascending_segments(walk)
    ]


def _ascending_segments(walk: Walk) -> list[tuple[list[Any], list[Any]]]:
    """The same, with the columns of the order before the walk's direction is applied."""
    columns = [images.c[name] for name in walk.columns]
    marker = [filters.marker(name) for name in walk.columns]
    first, others = columns[0], columns[1:]
    after_marker: list[Any] = []
    if walk.start == "value" and walk.begins == "after":
        after_marker = [beyond(columns, marker, descending=walk.descending)]
    elif walk.start == "value":
        after_marker = [filters.OPERATORS[_BEGINS[walk.begins, walk.descending]](first, marker[0])]
    if not first.nullable:
        return [(after_marker, columns)]
    valued: tuple[list[Any], list[Any]] = ([first.is_not(None), *after_marker], columns)
    unset: tuple[list[Any], list[Any]] = ([first.is_(None), _NOT_INDEX_ONLY], [always_null(first), *others])
    if walk.start == "unset" and walk.begins == "after":
        unset[0].append(beyond(others, marker[1:], descending=walk.descending))
    if first.name in walk.filter_shape.unset:
        return [unset]
    if walk.filter_shape.excludes_unset(first.name):
        nothing: tuple[list[Any], list[Any]] = ([sa.false()], columns)
        return [nothing if walk.start == "unset" and walk.descending else valued]
    if walk.valued:
        return [valued]
    if walk.start == "nothing" and walk.nulls_low:
        return [([], columns)]
    if walk.start == "unset":
        return [unset] if walk.descending else [valued] if walk.begins == "past" else [unset, valued]
    return [valued] if walk.start == "value" and not walk.descending else [valued, unset]


# --- candidates ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidates:
    """Images that an index finds: those with the wanted `ids`, with a tag or property, or on a walk.

    `selector` is the number of the tag or property, or the walk; `several` says that there are several ids.
    """

    kind: str
    selector: Any = None
    several: bool = False

    def ids(self) -> sa.Select[Any]:
        if self.kind == "ids":
            return sa.select(images.c.id).where(filters.is_one_of("id", several=self.several))
        if self.kind == "tag":
            return sa.select(image_tags.c.image_id.label("id")).where(*filters.tagged(self.selector))
        if self.kind == "property":
            return sa.select(image_properties.c.image_id.label("id")).where(*filters.has_property(self.selector))
        return sa.select(_merged(self.selector).subquery("entries").c.id)


@lru_cache(maxsize=512)
def _counted(candidates: Candidates) -> sa.Select[Any]:
    """How many candidates there are, if fewer than `window`; else `window`, or somewhat more."""
    if candidates.kind == "walk" and candidates.selector.key not in BY_VALUE:
        # An image in two branches is counted twice: finding that out would cost more.
        parts = [
            sa.select(sa.func.count()).select_from(part.subquery()).scalar_subquery()
            for branch in candidates.selector.branches
            for part in _entries(candidates.selector, branch)
        ]
        return sa.select(reduce(operator.add, parts))
    return sa.select(sa.func.count()).select_from(candidates.ids().limit(_WINDOW).subquery())


@lru_cache(maxsize=512)
def _sorted(
    candidates: Candidates,
    branches: tuple[Branch, ...],
    filter_shape: FilterShape,
    order: Order,
    unset: tuple[bool, ...] | None,
) -> sa.Select[Any]:
    """The stamps of a page of candidates. Their keys are sorted first; only then are their stamps read."""
    wanted = [
        visibility.holds(branches),
        *_LIVING,
        _LISTED,
        *filter_shape.conditions((candidates.kind, candidates.selector)),
    ]
    if unset is not None:
        wanted.append(order.after(unset))
    ids = candidates.ids().distinct().subquery()
    found = sa.select(*(images.c[name] for name in order.names)).where(*wanted)
    for name in ("mysql", "mariadb"):  # these would choose one of the indexes that end in the id
        found = found.with_hint(images, "FORCE INDEX (PRIMARY)", name)
    found = found.select_from(join_from(ids, images, images.c.id == ids.c.id))
    return _stamped(found.order_by(*order.by()).limit(_LIMIT), order)


@lru_cache(maxsize=512)
def _keys(order: Order) -> sa.Select[Any]:
    return sa.select(*(images.c[name] for name in order.names))


def forget_statements() -> None:
    """Drop cached statements. Needed when a test changes the limits above."""
    for built in (_walked, _counted, _sorted, _first_group, _window_with_ties):
        built.cache_clear()


# --- a search --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Search:
    """One list: what was asked for, and the ways to answer it. `marker` has the values of the order's columns."""

    tx: Tx
    branches: tuple[Branch, ...]
    order: Order
    filter_shape: FilterShape
    marker: Sequence[Any] | None
    values: dict[str, Any]
    limit: int

    @classmethod
    def of(cls, tx: Tx, ctx: Context, query: Query) -> "_Search":
        order, filter_shape = Order.of(query), FilterShape.of(query)
        owner = query.one_of.get("owner", (None,))[0]
        found = visibility.branches(ctx, visibility=query.visibility, member_status=query.member_status, owner=owner)
        marker = None
        if query.marker is not None:
            marker = db_images.find(tx, ctx, _keys(order), query.marker)
            if marker is None:
                raise errors.Invalid(f"The marker {query.marker[:64]!r} names no image.")
        values = visibility.parameters(ctx, owner) | filters.values(query) | {"hidden": query.os_hidden}
        values |= {f"marker_{name}": value for name, value in zip(order.names, marker or (), strict=False)}
        return cls(tx, found, order, filter_shape, marker, values, query.limit)

    def stamps(self) -> Sequence[str]:
        if not self.branches:
            return []
        for candidates in self._candidates():
            few = _FEW_PROPERTIES if candidates.kind == "property" else FEW
            if self._at_most(few if self.order.walk else _FEW_FOR_GROUPS, candidates):
                return self._sort(candidates)
        return self._in_order()

    def _candidates(self) -> Iterator[Candidates]:
        """For each filter that has an index: all images that meet it."""
        if "id" in (*self.filter_shape.single, *self.filter_shape.multiple):
            yield Candidates("ids", several="id" in self.filter_shape.multiple)
        for number in range(self.filter_shape.tags):
            yield Candidates("tag", number)
        for number in range(self.filter_shape.properties):
            yield Candidates("property", number)

    def _at_most(self, limit: int, candidates: Candidates) -> bool:
        return bool(self._run(_counted, candidates, window=limit + 1).scalar_one() <= limit)

    def _in_order(self) -> Sequence[str]:
        """By a walk or in groups; but images with one value in a selective column are sorted, if they are not many."""
        walk, key = self._walk(), self._fixed_column()
        if key in _SELECTIVE and not (walk is not None and walk.fixed):
            same_value = Candidates(
                "walk", Walk(self.branches, key, fixed=True, filter_shape=FilterShape(single=(key,)))
            )
            if self._at_most(_MAX_SORTED, same_value):
                return self._sort(same_value)
        return self._follow(walk) if walk is not None else self._in_groups()

    def _walk(self) -> Walk | None:
        """The walk for an order that an index has."""
        key = self.order.walk
        if key is None:
            return None
        fixed = self._fixed_column()
        # The marker's image may have got another value since.
        other = self.marker is not None and key == fixed and self.values[f"marker_{key}"] != self.values[f"is_{key}"]
        if fixed is not None and key in ("created_at", fixed) and not other:
            key = fixed
        else:
            fixed = None
        start = self._marker_state(walk_columns(key)[1 if fixed else 0])
        return replace(self._whole_walk(key, self.order.descending), fixed=fixed is not None, start=start)

    def _whole_walk(self, key: str, descending: bool) -> Walk:
        """A walk through all images that meet the filters, from the beginning."""
        nulls_low = self.tx.dialect.name != "postgresql"
        return Walk(self.branches, key, descending, filter_shape=self.filter_shape, nulls_low=nulls_low)

    def _fixed_column(self) -> str | None:
        """A column that a filter fixes to one value, and that has an index."""
        return next((key for key in _FIXABLE if key in self.filter_shape.single), None)

    def _marker_state(self, column: str) -> str:
        if self.marker is None:
            return "nothing"
        return "unset" if self.values[f"marker_{column}"] is None else "value"

    def _follow(self, walk: Walk) -> Sequence[str]:
        found = self._run(_walked, walk, window=self.limit).scalars().all()
        listed = [one for one in found if one is not None]
        if len(listed) == len(found) or len(found) < self.limit:
            return listed
        return self._run(_walked, replace(walk, strict=True), window=self.limit).scalars().all()

    def _in_groups(self) -> Sequence[str]:
        """Images without a value in the first column are one group, the first or the last; the others are many."""
        key, descending, start = self.order.first, self.order.descending, self._marker_state(self.order.first)
        unset = images.c[key].nullable and not self.filter_shape.excludes_unset(key)
        found = list[str]()
        if unset and not descending and start != "value":
            found += self._group(None, start == "unset", self.limit)
        if len(found) < self.limit and not (descending and start == "unset"):
            found += self._groups(self.limit - len(found))
        if len(found) < self.limit and unset and descending:
            found += self._group(None, start == "unset", self.limit - len(found))
        return found

    def _groups(self, limit: int) -> Sequence[str]:
        """Images with a value in the first column, a window of entries at a time.

        The last group of a window may go on behind it, and is read separately. Where groups are large, each one is.
        """
        key, found = self.order.first, list[str]()
        start = "value" if self._marker_state(key) == "value" else "nothing"
        search = self if start == "value" else replace(self, marker=None)
        walk = replace(self._whole_walk(key, self.order.descending), start=start, begins="at", valued=True)
        while True:
            remaining = limit - len(found)
            if key in _COARSE:
                rows = search._run(_first_group, walk, self.order, search._unset(), window=FEW, most=remaining).all()
                last = next((row for row in rows if row.first is not None), None)
                ended, many = last is None, last is not None and bool(last.many)
                separately = many or key == _DOMINATED
                found += [row.stamp for row in rows if row.stamp is not None and not separately]
            else:
                window = remaining + _TIES
                rows = search._window(walk, remaining, window)
                ended = not rows or rows[0].total < window
                found += [row.stamp for row in rows if row.wanted and (ended or row.place < row.total)][:remaining]
                last, many = next((row for row in rows if row.place == row.total), None), False
                separately = True
            if ended or last is None or len(found) == limit:
                return found
            if separately:
                found += search._group(last.first, bool(last.at_marker), limit - len(found), many=many)
            if len(found) == limit:
                return found
            search = replace(self, marker=None, values=self.values | {f"marker_{key}": last.first})
            walk = replace(walk, start="value", begins="past")

    def _window(self, walk: Walk, most: int, window: int) -> Sequence[Any]:
        """The rows of `_window_with_ties`, one more than `most`: the last entry may not be a wanted one."""
        search = replace(self, limit=most + 1)
        rows = search._run(_window_with_ties, walk, self.order, self._unset(), window=window).all()
        if all(row.stamp is not None for row in rows):
            return rows
        return search._run(
            _window_with_ties, replace(walk, strict=True), self.order, self._unset(), window=window
        ).all()

    def _group(self, value: Any, at_marker: bool, limit: int, *, many: bool = False) -> Sequence[str]:
        """Images with one value in the first column, or with none, in the order of the other columns.

        `at_marker` says that the marker has that value as well; `many` that the group is known to be large.
        """
        key, order, unset = self.order.first, self.order.rest, value is None
        group = replace(
            self,
            order=order,
            filter_shape=self.filter_shape.with_one_value(key, unset=unset),
            marker=self.marker[1:] if self.marker is not None and at_marker else None,
            values=self.values | {f"is_{key}": value},
            limit=limit,
        )
        same_value = Walk(self.branches, key, order.descending, fixed=not unset, filter_shape=group.filter_shape)
        if order.one_way and tuple(order.names) == walk_columns(key)[1:]:
            return group._follow(replace(same_value, start=group._marker_state(key if unset else order.first)))
        if not many:
            marker = self._unset() if at_marker else None
            rows = group._run(
                _first_group, replace(same_value, fixed=True), self.order, marker, window=_MAX_SORTED
            ).all()
            if not rows or not rows[0].many:
                return [row.stamp for row in rows if row.stamp is not None]
        return group._in_order()

    def _sort(self, candidates: Candidates) -> Sequence[str]:
        found = self._run(
            _sorted, candidates, self.branches, self.filter_shape, self.order, self._unset(), window=_MAX_SORTED
        )
        return [one for one in found.scalars() if one is not None]

    def _unset(self) -> tuple[bool, ...] | None:
        return tuple(value is None for value in self.marker) if self.marker is not None else None

    def _run(self, build: Any, *shape: Any, window: int, most: int | None = None) -> sa.CursorResult[Any]:
        values = self.values | {"most": self.limit if most is None else most, "window": window}
        if self.filter_shape.count <= _MAX_CACHED_FILTERS:
            return self.tx.execute(build(*shape), values)
        return self.tx.execute(build.__wrapped__(*shape), values, execution_options={"compiled_cache": None})
