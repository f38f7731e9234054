"""Pages of images: what a page costs depends on its length, not on how many images there are.

What a caller sees is a union of branches (`visibility.py`), and each branch lies in an index of its own in the order
that is asked for (`calotype_owner_…`, `calotype_visibility_…`). The first N of the union are among the first N of
each branch: a *walk* reads those from the indexes, merges them and fetches the stamps (`known.py`) of what remains.
The records of those images that this process does not know are read then.

A list is answered by the first of these that it fits:

- *few*: an index knows that at most `FEW` images meet a filter (id, tag, property): these are looked at one by one and
  sorted. So are images with one name or size, for an order that their index has not;
- *walk*: in the order that is asked for, or among images with the same name, status, format or size. Each branch is
  read until it has brought a page of what meets the other filters, or ends. Images with the same hash or checksum are
  one way for all branches (`calotype_os_hash_value`, `calotype_checksum`);
- *groups*, for an order by several keys: along the index of the first one, which brings images that are alike in it one
  after the other. One statement finds such a group, counts and sorts it, if it is not large; else it is a list of its
  own, in the order of the other keys. Groups of a few images are sorted many at once. Images that have nothing in the
  first column are a group that is likely to be large, and looked at apart.

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
from calotype.db.compare import all_alike, beside, beyond, join_from, none_unless
from calotype.db.documents import document
from calotype.db.engine import Tx
from calotype.db.filters import Order, Tests
from calotype.db.known import Known, id_of, stamp
from calotype.db.tables import BY_VALUE, image_members, image_properties, image_tags, images, walk_columns
from calotype.db.visibility import Branch
from calotype.model import Image, Query

#: So many candidates are looked at one by one rather than looked for on a walk.
FEW: Final = 1000
#: The same of properties, which take longer to count: no index holds a value whole.
_FEW_PROPERTIES: Final = 250
#: The same for an order by several keys, which takes more than one look.
_FEW_FOR_GROUPS: Final = 10_000
#: So many are sorted rather than read from an index that has them in another order.
_SORTED: Final = 40_000
#: So many entries more than a page are read for an order by several keys: at its ends images are alike in the first.
_TIES: Final = 25
#: A project with more shares than this has its lists walk shared images and look for the share, not the reverse.
_SHARES: Final = 5000

#: Records that are read by one statement: databases take so many parameters.
_AT_ONCE: Final = 1000
#: A statement with more filters than these is not kept: it takes much memory, and anybody can think of many.
_SIMPLE: Final = 8

_THERE = images.c.os_hidden == sa.bindparam("hidden", type_=sa.Boolean())
_KEPT = [images.c.deleted == sa.false(), _THERE]
_UNCOVERED = beside(images.c.calotype_revision)  # which no index has
_LISTED = images.c.status != "killed"  # what API v1 left
_MOST: sa.BindParameter[int] = sa.bindparam("most", type_=sa.Integer())
_WINDOW: sa.BindParameter[int] = sa.bindparam("window", type_=sa.Integer())

_NONE: Final = Tests()
#: Filters for one value of these walk the index of that column, the first of them that there is; it is likely that few
#: images have one value of the first ones.
_SELECTIVE: Final = (*BY_VALUE, "name", "size")
#: Many images have one value of these.
_COARSE: Final = ("status", "container_format", "disk_format")
#: Of these, the one that nearly all images have the same value of: it is in vain to sort before that is known.
_DOMINATED: Final = "status"
_FIXABLE: Final = (*_SELECTIVE, *_COARSE)


class Moved(Exception):
    """An image changed between two statements, so that nobody knows whether it still belongs on the page."""


def one_statement(query: Query) -> bool:
    """Whether one statement says which images are on the page, so that it need not be in a transaction with others."""
    return Order.of(query).walk is not None


def page(tx: Tx, known: Known, ctx: Context, query: Query) -> list[Image | str]:
    """Up to `query.limit` images after `query.marker`; of one that the database cannot answer with, the id.

    Raises `Invalid` for a marker that the caller cannot see, and `Moved` if an image changed meanwhile, where `tx` does
    not see one moment throughout.
    """
    if query.limit == 0:
        return []
    stamps = _Search.of(tx, ctx, query).stamps()
    found: dict[str, Image | None] = {**known.matching(stamps)}
    news = [one for one in stamps if one not in found]
    for start in range(0, len(news), _AT_ONCE):
        found |= _read(tx, known, news[start : start + _AT_ONCE])
    if any(one not in found for one in stamps):
        raise Moved
    return [documents.seen_by(ctx, image) if (image := found[one]) else id_of(one) for one in stamps]


_READ = sa.select(images.c.id, stamp, document).where(images.c.id.in_(sa.bindparam("ids", expanding=True)))


def _read(tx: Tx, known: Known, stamps: list[str]) -> dict[str, Image | None]:
    """The records of the images with these stamps; None for one that cannot be had."""
    found: dict[str, Image | None] = {}
    for row in tx.execute(_READ, {"ids": [id_of(one) for one in stamps]}):
        try:
            found[row.stamp] = known.keep(row.stamp, documents.image(row))
        except errors.Busy:
            found[row.stamp] = None  # the log says so
    return found


# --- walks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Walk:
    """A way through indexes, and all that its statement depends on but for values.

    `fixed`: only images with one value in `key`, in the order of their age. `start` says what the marker has in the
    first column: nothing as there is none, a value, or no value (unset). `begins` says with what it begins then: what
    is *after* the marker, the first image *at* its value, or the first one *past* that. `strict`: without images that
    nobody lists. `valued`: without images that have nothing in the first column. `nulls_low`: to the database nothing
    is less than any value, as it is to us.
    """

    branches: tuple[Branch, ...]
    key: str
    descending: bool = True
    fixed: bool = False
    start: str = "nothing"
    begins: str = "after"
    tests: Tests = _NONE
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
    # SQLite takes no parentheses around a part of a union; a select around it is the same.
    parts = [sa.select(part.subquery()) for branch in walk.branches for part in _entries(walk, branch)]
    merged = (sa.union(*parts) if len(parts) > 1 else parts[0]).subquery()
    return sa.select(merged).order_by(*walk.order.by(merged.c)).limit(_WINDOW)


def _of_one_value(walk: Walk) -> sa.Select[Any]:
    """The first `window` images with one hash, of which the index says who sees them."""
    ((beyond_marker, order),) = _segments(walk)
    wanted = [visibility.holds(walk.branches), *_KEPT, *walk.tests.conditions(), *([_LISTED] if walk.strict else [])]
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
def _alike(walk: Walk, order: Order, unset: tuple[bool, ...] | None) -> sa.Select[Any]:
    """The first `most` in an order, after the marker, of the images that are alike in its first key.

    What they have there is the one value that the walk is fixed to, or nothing; or else what its first images have,
    which comes as `first`; `here`: the marker has it, too. `many`: a branch has more than `window` of them, and no look
    was taken at these. A branch without any may have a row without a stamp; so have all where many are to be expected.
    """
    parts = [sa.select(part.subquery()) for branch in walk.branches for part in _group(walk, order, unset, branch)]
    entries = (sa.union(*parts) if len(parts) > 1 else parts[0]).subquery("entries")
    first: Any = entries.c.first
    groups = sa.select(entries, sa.literal_column("1").label("place")).subquery("alike")
    if not walk.fixed:  # the branches begin with different values
        by = [sa.case((first.is_(None), 1), else_=0), first.desc() if walk.descending else first]
        groups = sa.select(entries, sa.func.rank().over(order_by=by).label("place")).subquery("alike")
    here: Any = sa.false() if unset is None or unset[0] else groups.c.first == filters.marker(walk.key)
    found = sa.select(
        sa.case((groups.c.id.is_not(None), stamp.element)).label("stamp"),
        groups.c.first,
        groups.c.many,
        sa.case((here, 1), else_=0).label("here"),
    ).select_from(groups.outerjoin(images, images.c.id == groups.c.id))
    missing = sa.case((groups.c.id.is_(None), 1), else_=0)
    found = found.where(groups.c.place == 1).order_by(groups.c.many.desc(), missing, *order.rest.by(groups.c))
    return found.limit(_MOST)


def _group(walk: Walk, order: Order, unset: tuple[bool, ...] | None, branch: Branch) -> Iterator[sa.Select[Any]]:
    """The same of one branch: `first`, `many`, and the columns of the order behind its first key."""
    key: Any = images.c[walk.key]
    one: Any = sa.literal_column("1")
    among = [*branch.conditions(), *_KEPT]
    wanted = [*walk.tests.conditions(walked=walk.key), _LISTED, *([] if unset is None else [order.after(unset)])]
    wanted.append(_UNCOVERED)
    alike, by = walk.tests.on(walk.key), list[Any]()
    if not walk.fixed:
        ((beyond_marker, by), *_) = _segments(walk)
        alike = [*alike, *beyond_marker]
    most: Any = _MOST
    entry, shares = sa.select(one if walk.fixed else key).where(*among, *alike), list[Any]()
    others = [*(images.c[name] for name in order.rest.names)]
    if branch.kind == "shared":
        few = sa.select(key.label("first"), sa.literal_column("0").label("many"), *others)
        few, shares, many_shares = _shared(few.where(*among, *alike, *wanted), branch)
        entry, one, most = entry.where(*shares), none_unless(many_shares, one), none_unless(many_shares, _MOST)
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
        alike = [key == first]
    # Nothing is read where a column must be NULL that never is: the index says so, on all databases.
    blind = not walk.fixed and walk.key == _DOMINATED
    kept = images.c.deleted == (sa.literal_column("NULL") if blind else sa.case((many, None), else_=sa.false()))
    found = sa.select(first.label("first"), sa.case((many, 1), else_=0).label("many"), *others)
    on = sa.and_(*branch.conditions(), kept, _THERE, *alike, *shares, *wanted)
    found = found.select_from(head.outerjoin(images, on))
    yield _by_index(found, walk, branch).order_by(*order.rest.by()).limit(most)


@lru_cache(maxsize=512)
def _tied(walk: Walk, order: Order, unset: tuple[bool, ...] | None) -> sa.Select[Any]:
    """Of the entries of a walk, the first `most` in an order whose first key is that of the walk, after the marker.

    With the stamp, None for an image that is not listed, comes its value in the `first` column; `total`, how many
    entries there were; `place`, how many of them were not beyond it in the first column: as many as there were mean
    that more images may be like it. The last entry is there unless the page is full without it; it is `wanted`, like
    the others, if it follows the marker. `here`: it is like the marker in the first column.
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
    here: sa.ColumnElement[bool] = sa.true()
    if unset is not None:
        after, here = order.after(unset), first.is_(None) if unset[0] else first == filters.marker(order.first)
    found = sa.select(
        sa.case((_LISTED, stamp.element)).label("stamp"),
        first.label("first"),
        places.c.place,
        places.c.total,
        sa.case((after, 1), else_=0).label("wanted"),
        sa.case((here, 1), else_=0).label("here"),
    ).select_from(join_from(places, images, images.c.id == places.c.id))
    if unset is not None:
        found = found.where(after | (places.c.number == places.c.total))
    return found.order_by(*order.by()).limit(_MOST)


def _entries(walk: Walk, branch: Branch) -> Iterator[sa.Select[Any]]:
    """The first `window` entries of one branch, from its index; in parts, or more of them where that is cheaper."""
    wanted = [
        *branch.conditions(),
        *_KEPT,
        *walk.tests.conditions(walked=walk.key),
        *([_LISTED] if walk.strict else []),
    ]
    for segment, order in _segments(walk):
        entry = sa.select(*(images.c[name] for name in walk.columns)).where(*wanted, *segment)
        most: Any = _WINDOW
        if branch.kind == "shared":
            few, shares, many = _shared(entry, branch)
            entry, most = entry.where(*shares), none_unless(many, _WINDOW)
            yield few
        yield _by_index(entry, walk, branch).order_by(*order).limit(most)


def _by_index(statement: sa.Select[Any], walk: Walk, branch: Branch) -> sa.Select[Any]:
    """MariaDB would weigh two dozen indexes for each part, which costs more than reading one; and may be wrong."""
    index = f"calotype_{'owner' if branch.kind == 'owner' or branch.by_owner else 'visibility'}_{walk.key}"
    for name in ("mysql", "mariadb"):
        statement = statement.with_hint(images, f"FORCE INDEX ({index})", name)
    return statement


def _shared(entry: sa.Select[Any], branch: Branch) -> tuple[sa.Select[Any], list[Any], sa.ScalarSelect[Any]]:
    """From a project's few shares to images, all of them; or from shared images to the project's share, if it has many.

    That is a statement, then conditions, and what is NULL if it has few. The database finds out which, and does not
    begin the other one.
    """
    member = sa.select(sa.literal(1)).where(*branch.membership())
    many = member.limit(1).offset(_SHARES).scalar_subquery()
    shares = join_from(image_members, images, image_members.c.image_id == images.c.id)
    # As a value, not EXISTS, which MariaDB would turn into a join in an order of its own.
    one = member.where(image_members.c.image_id == images.c.id).limit(1).correlate(images).scalar_subquery()
    few = entry.select_from(shares).where(*branch.membership(), many.is_(None))
    return few, [one.is_not(None), many.is_not(None)], many


_BEGINS: Final = {("at", False): "gte", ("at", True): "lte", ("past", False): "gt", ("past", True): "lt"}


def _segments(walk: Walk) -> list[tuple[list[Any], list[Any]]]:
    """The entries beyond the marker: those with a value in the first column, and those without. Conditions, order."""
    return [
        (conditions, [sa.desc(column) if walk.descending else column for column in order])
        for conditions, order in _stretches(walk)
    ]


def _stretches(walk: Walk) -> list[tuple[list[Any], list[Any]]]:
    """The same where the index has the order, with the columns of it that all have one direction."""
    columns = [images.c[name] for name in walk.columns]
    marker = [filters.marker(name) for name in walk.columns]
    first, others = columns[0], columns[1:]
    there: list[Any] = []
    if walk.start == "value" and walk.begins == "after":
        there = [beyond(columns, marker, descending=walk.descending)]
    elif walk.start == "value":
        there = [filters.OPERATORS[_BEGINS[walk.begins, walk.descending]](first, marker[0])]
    if not first.nullable:
        return [(there, columns)]
    valued: tuple[list[Any], list[Any]] = ([first.is_not(None), *there], columns)
    unset: tuple[list[Any], list[Any]] = ([first.is_(None), _UNCOVERED], [all_alike(first), *others])
    if walk.start == "unset" and walk.begins == "after":
        unset[0].append(beyond(others, marker[1:], descending=walk.descending))
    if first.name in walk.tests.unset:
        return [unset]
    if walk.tests.reads(first.name):
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
    """Images that an index knows of: those with the `ids` that are wanted, with a tag or property, or on a walk."""

    kind: str
    of: Any = None
    several: bool = False

    def ids(self) -> sa.Select[Any]:
        if self.kind == "ids":
            return sa.select(images.c.id).where(filters.is_one_of("id", several=self.several))
        if self.kind == "tag":
            return sa.select(image_tags.c.image_id.label("id")).where(*filters.tagged(self.of))
        if self.kind == "property":
            return sa.select(image_properties.c.image_id.label("id")).where(*filters.has_property(self.of))
        return sa.select(_merged(self.of).subquery("entries").c.id)


@lru_cache(maxsize=512)
def _counted(candidates: Candidates) -> sa.Select[Any]:
    """How many there are, up to `window`, or somewhat more than that."""
    if candidates.kind == "walk" and candidates.of.key not in BY_VALUE:
        # Whoever counts need not find out what is in two branches.
        parts = [
            sa.select(sa.func.count()).select_from(part.subquery()).scalar_subquery()
            for branch in candidates.of.branches
            for part in _entries(candidates.of, branch)
        ]
        return sa.select(reduce(operator.add, parts))
    return sa.select(sa.func.count()).select_from(candidates.ids().limit(_WINDOW).subquery())


@lru_cache(maxsize=512)
def _sorted(
    candidates: Candidates,
    branches: tuple[Branch, ...],
    tests: Tests,
    order: Order,
    unset: tuple[bool, ...] | None,
) -> sa.Select[Any]:
    """The stamps of all that is wanted of the candidates; sorted first, and the rest is read then."""
    wanted = [visibility.holds(branches), *_KEPT, _LISTED, *tests.conditions((candidates.kind, candidates.of))]
    if unset is not None:
        wanted.append(order.after(unset))
    ids = candidates.ids().distinct().subquery()
    found = sa.select(*(images.c[name] for name in order.names)).where(*wanted)
    for name in ("mysql", "mariadb"):  # which would rather have one of the indexes that end in the id
        found = found.with_hint(images, "FORCE INDEX (PRIMARY)", name)
    found = found.select_from(join_from(ids, images, images.c.id == ids.c.id))
    return _stamped(found.order_by(*order.by()).limit(_MOST), order)


@lru_cache(maxsize=512)
def _keys(order: Order) -> sa.Select[Any]:
    return sa.select(*(images.c[name] for name in order.names))


def forget_statements() -> None:
    """For whoever changes the limits above."""
    for built in (_walked, _counted, _sorted, _alike, _tied):
        built.cache_clear()


# --- a search --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Search:
    """One list: what was asked for, and the ways to answer it. `marker` are the values of the order's columns."""

    tx: Tx
    branches: tuple[Branch, ...]
    order: Order
    tests: Tests
    marker: Sequence[Any] | None
    values: dict[str, Any]
    limit: int

    @classmethod
    def of(cls, tx: Tx, ctx: Context, query: Query) -> "_Search":
        order, tests = Order.of(query), Tests.of(query)
        owner = query.one_of.get("owner", (None,))[0]
        found = visibility.branches(ctx, visibility=query.visibility, member_status=query.member_status, owner=owner)
        marker = None
        if query.marker is not None:
            marker = db_images.find(tx, ctx, _keys(order), query.marker)
            if marker is None:
                raise errors.Invalid(f"The marker {query.marker[:64]!r} names no image.")
        values = visibility.parameters(ctx, owner) | filters.values(query) | {"hidden": query.os_hidden}
        values |= {f"marker_{name}": value for name, value in zip(order.names, marker or (), strict=False)}
        return cls(tx, found, order, tests, marker, values, query.limit)

    def stamps(self) -> Sequence[str]:
        if not self.branches:
            return []
        for candidates in self._named():
            few = _FEW_PROPERTIES if candidates.kind == "property" else FEW
            if self._at_most(few if self.order.walk else _FEW_FOR_GROUPS, candidates):
                return self._sort(candidates)
        return self._ordered()

    def _named(self) -> Iterator[Candidates]:
        """For each filter that an index knows: all images that meet it."""
        if "id" in (*self.tests.one, *self.tests.some):
            yield Candidates("ids", several="id" in self.tests.some)
        for number in range(self.tests.tags):
            yield Candidates("tag", number)
        for number in range(self.tests.properties):
            yield Candidates("property", number)

    def _at_most(self, limit: int, candidates: Candidates) -> bool:
        return bool(self._run(_counted, candidates, window=limit + 1).scalar_one() <= limit)

    def _ordered(self) -> Sequence[str]:
        """By a walk, or in groups; but what has one value in a selective column is sorted."""
        walk, key = self._walk(), self._fixed()
        if key in _SELECTIVE and not (walk is not None and walk.fixed):
            alike = Candidates("walk", Walk(self.branches, key, fixed=True, tests=Tests(one=(key,))))
            if self._at_most(_SORTED, alike):
                return self._sort(alike)
        return self._along(walk) if walk is not None else self._in_groups()

    def _walk(self) -> Walk | None:
        """The walk for an order that an index has."""
        key = self.order.walk
        if key is None:
            return None
        fixed = self._fixed()
        # A marker may have got another value since.
        other = self.marker is not None and key == fixed and self.values[f"marker_{key}"] != self.values[f"is_{key}"]
        if fixed is not None and key in ("created_at", fixed) and not other:
            key = fixed
        else:
            fixed = None
        start = self._start(walk_columns(key)[1 if fixed else 0])
        return replace(self._way(key, self.order.descending), fixed=fixed is not None, start=start)

    def _way(self, key: str, descending: bool) -> Walk:
        """A walk through all that meets the filters, from its beginning."""
        nulls_low = self.tx.dialect.name != "postgresql"
        return Walk(self.branches, key, descending, tests=self.tests, nulls_low=nulls_low)

    def _fixed(self) -> str | None:
        """A column with an index that must have one value."""
        return next((key for key in _FIXABLE if key in self.tests.one), None)

    def _start(self, column: str) -> str:
        if self.marker is None:
            return "nothing"
        return "unset" if self.values[f"marker_{column}"] is None else "value"

    def _along(self, walk: Walk) -> Sequence[str]:
        found = self._run(_walked, walk, window=self.limit).scalars().all()
        listed = [one for one in found if one is not None]
        if len(listed) == len(found) or len(found) < self.limit:
            return listed
        return self._run(_walked, replace(walk, strict=True), window=self.limit).scalars().all()

    def _in_groups(self) -> Sequence[str]:
        """Images that have nothing in the first column come first, or last; those with a value are many groups."""
        key, descending, start = self.order.first, self.order.descending, self._start(self.order.first)
        unset = images.c[key].nullable and not self.tests.reads(key)
        found = list[str]()
        if unset and not descending and start != "value":
            found += self._group(None, start == "unset", self.limit)
        if len(found) < self.limit and not (descending and start == "unset"):
            found += self._groups(self.limit - len(found))
        if len(found) < self.limit and unset and descending:
            found += self._group(None, start == "unset", self.limit - len(found))
        return found

    def _groups(self, limit: int) -> Sequence[str]:
        """Of what has a value in the first column, a window of entries at a time.

        The last ones may be like others behind it; these are looked at apart. Where many are alike, each group is.
        """
        key, found = self.order.first, list[str]()
        start = "value" if self._start(key) == "value" else "nothing"
        search = self if start == "value" else replace(self, marker=None)
        walk = replace(self._way(key, self.order.descending), start=start, begins="at", valued=True)
        while True:
            remaining = limit - len(found)
            if key in _COARSE:
                rows = search._run(_alike, walk, self.order, search._unset(), window=FEW, most=remaining).all()
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
                found += search._group(last.first, bool(last.here), limit - len(found), many=many)
            if len(found) == limit:
                return found
            search = replace(self, marker=None, values=self.values | {f"marker_{key}": last.first})
            walk = replace(walk, start="value", begins="past")

    def _window(self, walk: Walk, most: int, window: int) -> Sequence[Any]:
        """The rows of `_tied`; one more than the most, as the last entry may be none of those that are wanted."""
        search = replace(self, limit=most + 1)
        rows = search._run(_tied, walk, self.order, self._unset(), window=window).all()
        if all(row.stamp is not None for row in rows):
            return rows
        return search._run(_tied, replace(walk, strict=True), self.order, self._unset(), window=window).all()

    def _group(self, value: Any, here: bool, limit: int, *, many: bool = False) -> Sequence[str]:
        """Images with one value in the first column, or with none, in the order of the others.

        `here` says that the marker has it as well, if there is one; `many` that it is known that many have it.
        """
        key, order, unset = self.order.first, self.order.rest, value is None
        group = replace(
            self,
            order=order,
            tests=self.tests.alike(key, unset=unset),
            marker=self.marker[1:] if self.marker is not None and here else None,
            values=self.values | {f"is_{key}": value},
            limit=limit,
        )
        alike = Walk(self.branches, key, order.descending, fixed=not unset, tests=group.tests)
        if order.one_way and tuple(order.names) == walk_columns(key)[1:]:
            return group._along(replace(alike, start=group._start(key if unset else order.first)))
        if not many:
            marker = self._unset() if here else None
            rows = group._run(_alike, replace(alike, fixed=True), self.order, marker, window=_SORTED).all()
            if not rows or not rows[0].many:
                return [row.stamp for row in rows if row.stamp is not None]
        return group._ordered()

    def _sort(self, candidates: Candidates) -> Sequence[str]:
        found = self._run(_sorted, candidates, self.branches, self.tests, self.order, self._unset(), window=_SORTED)
        return [one for one in found.scalars() if one is not None]

    def _unset(self) -> tuple[bool, ...] | None:
        return tuple(value is None for value in self.marker) if self.marker is not None else None

    def _run(self, build: Any, *shape: Any, window: int, most: int | None = None) -> sa.CursorResult[Any]:
        values = self.values | {"most": self.limit if most is None else most, "window": window}
        if self.tests.count <= _SIMPLE:
            return self.tx.execute(build(*shape), values)
        return self.tx.execute(build.__wrapped__(*shape), values, execution_options={"compiled_cache": None})
