"""Pages of images: what a page costs depends on its length, not on how many images there are.

What a caller sees is a union of branches (`visibility.py`), and each branch lies in an index of its own in the order
that is asked for (`calotype_owner_…`, `calotype_visibility_…`). The first N of the union are among the first N of
each branch: a *walk* reads those from the indexes, merges them and fetches the rows of what remains.

A list is answered by the first of these that answers for certain:

- *few*: an index knows that at most `FEW` images meet a filter (id, checksum, os_hash_value, tag, property): these are
  looked at one by one and sorted. So is all that the caller sees, for an order that no index has;
- *walk*: in the order that is asked for, or among images with the same name, status, format or size. What no index
  knows is looked for in a *window* of the walk, and in larger ones;
- *sort*: all images that meet a filter which an index knows, or else all that the caller sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa

from calotype import errors
from calotype.context import Context
from calotype.db import documents, filters, visibility
from calotype.db import images as db_images
from calotype.db.compare import all_alike, beyond, join_from, none_unless
from calotype.db.documents import document
from calotype.db.engine import Tx
from calotype.db.tables import WALKED, image_members, image_properties, image_tags, images, walk_columns
from calotype.db.visibility import Branch
from calotype.model import Comparison, Image, Query

#: So many candidates are looked at one by one rather than looked for on a walk.
FEW: Final = 1000
#: Windows, one after the other: in pages, and the last in entries.
_WIDER: Final = (10, 60)
_WINDOW: Final = 5000
#: A project with more shares than this has its lists walk shared images and look for the share, not the reverse.
_SHARES: Final = 5000

_KEPT = [images.c.deleted == sa.false(), images.c.os_hidden == sa.bindparam("hidden", type_=sa.Boolean())]
_LISTED = images.c.status != "killed"  # what API v1 left
_WINDOW_SIZE: sa.BindParameter[int] = sa.bindparam("window", type_=sa.Integer())
_MOST: sa.BindParameter[int] = sa.bindparam("most", type_=sa.Integer())

#: Filters for one value of these walk the index of that column.
_FIXABLE: Final = tuple(key for key in ("name", "size", *WALKED) if key not in ("created_at", "updated_at", "id"))


def page(tx: Tx, ctx: Context, query: Query) -> list[Image]:
    """Up to `query.limit` images after `query.marker`. Raises `Invalid` for a marker that the caller cannot see."""
    if query.limit == 0:
        return []
    return [documents.image(found, ctx) for found in _Search(tx, ctx, query).documents()]


# --- walks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Walk:
    """A way through indexes, and all that its statement depends on but for values.

    `fixed`: only images whose `key` is the parameter `fixed`, in the order of their age. `start` says what the marker
    has in the first column: nothing as there is none, a value, or no value (unset). `bounds` are comparisons with the
    first column.
    """

    branches: tuple[Branch, ...]
    key: str
    descending: bool = True
    fixed: bool = False
    start: str = "nothing"
    bounds: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return walk_columns(self.key)[1 if self.fixed else 0 :]

    @property
    def order(self) -> filters.Order:
        return filters.Order(tuple((name, self.descending) for name in self.columns))


@lru_cache(maxsize=512)
def _window(walk: Walk) -> sa.Subquery:
    """The first `window` entries of all branches together: the columns of the order."""
    # SQLite takes no parentheses around a part of a union; a select around it is the same.
    parts = [sa.select(part.subquery()) for branch in walk.branches for part in _entries(walk, branch)]
    merged = (sa.union(*parts) if len(parts) > 1 else parts[0]).subquery()
    return sa.select(merged).order_by(*walk.order.by(merged.c)).limit(_WINDOW_SIZE).subquery("entries")


@lru_cache(maxsize=512)
def _records(walk: Walk) -> sa.Select[Any]:
    """The documents of a window, in order; of an image that is not listed, one without an id."""
    entries = _window(walk)
    joined = entries.outerjoin(images, (images.c.id == entries.c.id) & _LISTED)
    return sa.select(document).select_from(joined).order_by(*walk.order.by(entries.c))


@lru_cache(maxsize=512)
def _length(walk: Walk) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(_window(walk))


@lru_cache(maxsize=512)
def _ids(walk: Walk) -> sa.Select[Any]:
    return sa.select(_window(walk).c.id)


def _entries(walk: Walk, branch: Branch) -> Iterator[sa.Select[Any]]:
    """The first `window` entries of one branch, from its index; in parts, or more of them where that is cheaper."""
    index = f"calotype_{'owner' if branch.kind == 'owner' or branch.by_owner else 'visibility'}_{walk.key}"
    first = walk.columns[0]
    for segment, order in _segments(walk):
        entry = sa.select(*(images.c[name] for name in walk.columns)).where(*branch.conditions(), *_KEPT, *segment)
        if walk.fixed:
            entry = entry.where(images.c[walk.key] == _parameter("fixed", walk.key))
        for op in walk.bounds:
            entry = entry.where(filters.OPERATORS[op](images.c[first], _parameter(f"bound_{op}", first)))
        most: Any = _WINDOW_SIZE
        if branch.kind == "shared":
            few, entry, most = _shared(entry, branch)
            yield few
        # MariaDB would weigh two dozen indexes for each part, which costs more than reading one; and may be wrong.
        for name in ("mysql", "mariadb"):
            entry = entry.with_hint(images, f"FORCE INDEX ({index})", name)
        yield entry.order_by(*(sa.desc(column) if walk.descending else column for column in order)).limit(most)


def _shared(entry: sa.Select[Any], branch: Branch) -> tuple[sa.Select[Any], sa.Select[Any], Any]:
    """From a project's few shares to images, all of them; or from shared images to the project's share, if it has many.

    The database finds out which, and does not begin the other one.
    """
    member = sa.select(sa.literal(1)).where(*branch.membership())
    many = member.limit(1).offset(_SHARES).scalar_subquery()
    shares = join_from(image_members, images, image_members.c.image_id == images.c.id)
    # As a value, not EXISTS, which MariaDB would turn into a join in an order of its own.
    one = member.where(image_members.c.image_id == images.c.id).limit(1).correlate(images).scalar_subquery()
    return (
        entry.select_from(shares).where(*branch.membership(), many.is_(None)),
        entry.where(one.is_not(None), many.is_not(None)),
        none_unless(many, _WINDOW_SIZE),
    )


def _segments(walk: Walk) -> list[tuple[list[Any], list[Any]]]:
    """The entries beyond the marker: those with a value in the first column, and those without. Conditions, order."""
    columns = [images.c[name] for name in walk.columns]
    marker = [_parameter(f"marker_{name}", name) for name in walk.columns]
    first, others = columns[0], columns[1:]
    there: list[Any] = [beyond(columns, marker, descending=walk.descending)] if walk.start == "value" else []
    if not first.nullable:
        return [(there, columns)]
    valued: tuple[list[Any], list[Any]] = ([first.is_not(None), *there], columns)
    unset: tuple[list[Any], list[Any]] = ([first.is_(None)], [all_alike(first), *others])
    if walk.start == "unset":
        unset[0].append(beyond(others, marker[1:], descending=walk.descending))
        return [unset] if walk.descending else [unset, valued]
    return [valued] if walk.start == "value" and not walk.descending else [valued, unset]


def _driven(found: sa.Select[Any], candidates: sa.Select[Any]) -> sa.Select[Any]:
    """From candidates to images."""
    ids = candidates.distinct().subquery()
    for name in ("mysql", "mariadb"):  # which would rather have one of the indexes that end in the id
        found = found.with_hint(images, "FORCE INDEX (PRIMARY)", name)
    return found.select_from(join_from(ids, images, images.c.id == ids.c.id))


def _all(found: sa.Select[Any]) -> sa.Select[Any]:
    """From the table alone: MariaDB is too fond of indexes to read it through when that is quickest."""
    for name in ("mysql", "mariadb"):
        found = found.with_hint(images, "USE INDEX ()", name)
    return found


@lru_cache(maxsize=512)
def _keys(order: filters.Order) -> sa.Select[Any]:
    return sa.select(*(images.c[name] for name in order.names))


def _parameter(name: str, column: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=images.c[column].type)


def forget_statements() -> None:
    """For whoever changes the limits above."""
    for built in (_window, _records, _length, _ids):
        built.cache_clear()


# --- a search --------------------------------------------------------------------------------------------


@dataclass
class _Search:
    """One list: what was asked for, and the ways to answer it."""

    tx: Tx
    ctx: Context
    query: Query
    order: filters.Order = field(init=False)
    branches: tuple[Branch, ...] = field(init=False)
    marker: Sequence[Any] | None = field(init=False)
    values: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        query = self.query
        self.order = filters.Order.of(query)
        owner = query.one_of.get("owner", (None,))[0]
        self.branches = visibility.branches(
            self.ctx, visibility=query.visibility, member_status=query.member_status, owner=owner
        )
        self.marker = self._marker()
        self.values = visibility.parameters(self.ctx, owner) | {"hidden": query.os_hidden, "most": query.limit}
        self.values |= {
            f"marker_{name}": value for name, value in zip(self.order.names, self.marker or (), strict=False)
        }

    def documents(self) -> Sequence[list[Any]]:
        if not self.branches:
            return []
        found = self._if_few()
        if found is None and self.order.walk is not None:
            found = self._walked(self.order.walk)
        return found if found is not None else self._sorted()

    def _marker(self) -> Sequence[Any] | None:
        wanted = self.query.marker
        if wanted is None:
            return None
        row = db_images.find(self.tx, self.ctx, _keys(self.order), wanted)
        if row is None:
            raise errors.Invalid(f"The marker {wanted!r} names no image.")
        return tuple(row)

    # few

    def _if_few(self) -> Sequence[list[Any]] | None:
        for candidates in self._named():
            if self._at_most(FEW, candidates):
                return self._sorted(candidates)
        key = self._fixed()
        if self.order.walk is None or (key is not None and self.order.walk not in ("created_at", key)):
            seen = _ids(Walk(self.branches, key or "created_at", fixed=key is not None))
            self.values |= {"window": _WINDOW + 1, "fixed": self.query.one_of[key][0] if key else None}
            if self._at_most(_WINDOW, seen):
                return self._sorted(seen)
        return None

    def _named(self) -> Iterator[sa.Select[Any]]:
        """For each filter that an index knows: the ids of all images that meet it."""
        query = self.query
        for name in ("id", "os_hash_value", "checksum"):
            if name in query.one_of:
                yield sa.select(images.c.id).where(images.c[name].in_(query.one_of[name]))
        for tag in query.tags:
            yield sa.select(image_tags.c.image_id.label("id")).where(*filters.tagged(tag))
        for name, value in query.properties.items():
            yield sa.select(image_properties.c.image_id.label("id")).where(*filters.has_property(name, value))

    def _at_most(self, limit: int, candidates: sa.Select[Any]) -> bool:
        some = sa.select(sa.func.count()).select_from(candidates.limit(limit + 1).subquery())
        return bool(self.tx.execute(some, self.values).scalar_one() <= limit)

    # walk

    def _walked(self, key: str) -> Sequence[list[Any]] | None:
        query, (walk, values, rest) = self.query, self._plan(key)
        most = query.limit
        if not (rest or query.tags or query.properties):
            entries = self.tx.execute(_records(walk), values | {"window": most}).scalars().all()
            found = [entry for entry in entries if entry and entry[0] is not None]
            if len(found) == len(entries) or len(entries) < most:
                return found
        among = _window(walk)
        hanging = sa.select(among).where(*filters.hanging(query, among.c.id))
        joined = hanging.select_from(join_from(among, images, images.c.id == among.c.id)).where(_LISTED, *rest)
        # Tags and properties are found by the id; that nobody lists an image of API v1 is seen at the end.
        wanted = joined if rest or not (query.tags or query.properties) else hanging
        windows = [pages * most for pages in _WIDER]
        windows.append(max(windows[-1], _WINDOW))
        for window in dict.fromkeys(windows):
            values["window"] = window
            entries = self._chosen(wanted, walk.order, among.c, values)
            if None in entries:
                wanted = joined
                entries = self._chosen(wanted, walk.order, among.c, values)
            found = [entry for entry in entries if entry is not None]
            if len(found) == most:
                return found
            # To count costs as much as to look; it pays where there is little to see, and where a scan comes next.
            if window in (windows[0], windows[-1]) and self.tx.execute(_length(walk), values).scalar_one() < window:
                return found
        return None

    def _plan(self, key: str) -> tuple[Walk, dict[str, Any], list[sa.ColumnElement[bool]]]:
        """The walk for an order that an index has, its values, and the conditions that it leaves to be looked at."""
        query, values = self.query, dict(self.values)
        fixed = self._fixed()
        if fixed is not None and key in ("created_at", fixed):
            key, values["fixed"] = fixed, query.one_of[fixed][0]
        else:
            fixed = None
        first = walk_columns(key)[1 if fixed else 0]
        start = "nothing"
        if self.marker is not None:
            start = "unset" if values[f"marker_{first}"] is None else "value"
        bounds = {test.op: test for test in query.comparisons if test.column == first and test.op != "neq"}
        values |= {f"bound_{op}": test.value for op, test in bounds.items()}
        walk = Walk(self.branches, key, self.order.descending, fixed is not None, start, tuple(sorted(bounds)))
        settled: set[str | Comparison] = {fixed or "", *bounds.values()}
        return walk, values, filters.conditions(query, settled)

    def _fixed(self) -> str | None:
        """A column with an index that must have one value."""
        return next((key for key in _FIXABLE if len(self.query.one_of.get(key, ())) == 1), None)

    # sort

    def _sorted(self, candidates: sa.Select[Any] | None = None) -> list[list[Any]]:
        """All that is wanted of the candidates, sorted."""
        candidates = next(self._named(), None) if candidates is None else candidates
        found = sa.select(*(images.c[name] for name in self.order.names)).where(
            visibility.holds(self.branches),
            *_KEPT,
            _LISTED,
            *filters.conditions(self.query),
            *filters.hanging(self.query),
        )
        found = _driven(found, candidates) if candidates is not None else _all(found)
        if self.marker is not None:
            found = found.where(self.order.after(self.marker))
        return [entry for entry in self._chosen(found, self.order, images.c, self.values) if entry is not None]

    def _chosen(self, found: sa.Select[Any], order: filters.Order, columns: Any, values: Any) -> list[list[Any] | None]:
        """The documents of a page: first what sorts is sorted, then the rest is read. None for what is not listed."""
        entries = found.order_by(*order.by(columns)).limit(_MOST).subquery()
        listed = entries.outerjoin(images, (images.c.id == entries.c.id) & _LISTED)
        wanted = sa.select(document).select_from(listed).order_by(*order.by(entries.c))
        return [
            entry if entry and entry[0] is not None else None for entry in self.tx.execute(wanted, values).scalars()
        ]
