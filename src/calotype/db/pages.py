"""Pages of images: what a page costs depends on its length, not on how many images there are.

What a caller sees is a union of branches (`visibility.py`), and each branch lies in an index of its own in the order
that is asked for (`calotype_owner_…`, `calotype_visibility_…`). The first N of the union are among the first N of
each branch: a *walk* reads those from the indexes, merges them and fetches the stamps (`known.py`) of what remains.
The records of those images that this process does not know are read then.

A list is answered by the first of these that it fits:

- *few*: an index knows that at most `FEW` images meet a filter (id, tag, property): these are looked at one by one and
  sorted. So is all that the caller sees, for an order that no index has;
- *walk*: in the order that is asked for, or among images with the same name, status, format or size. Each branch is
  read until it has brought a page of what meets the other filters, or ends. Images with the same hash or checksum are
  one way for all branches (`calotype_os_hash_value`, `calotype_checksum`);
- *sort*: all images that meet a filter which an index knows, or else all that the caller sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from calotype.db.filters import Order, Tests
from calotype.db.known import Known, id_of, stamp
from calotype.db.tables import BY_VALUE, image_members, image_properties, image_tags, images, walk_columns
from calotype.db.visibility import Branch
from calotype.model import Image, Query

#: So many candidates are looked at one by one rather than looked for on a walk.
FEW: Final = 1000
#: The same of properties, which take longer to count: no index holds a value whole.
_FEW_PROPERTIES: Final = 250
#: So many are sorted rather than read from an index that has them in another order.
_SORTED: Final = 40_000
#: A project with more shares than this has its lists walk shared images and look for the share, not the reverse.
_SHARES: Final = 5000

#: Records that are read by one statement: databases take so many parameters.
_AT_ONCE: Final = 1000
#: A statement with more filters than these is not kept: it takes much memory, and anybody can think of many.
_SIMPLE: Final = 8

_KEPT = [images.c.deleted == sa.false(), images.c.os_hidden == sa.bindparam("hidden", type_=sa.Boolean())]
_LISTED = images.c.status != "killed"  # what API v1 left
_MOST: sa.BindParameter[int] = sa.bindparam("most", type_=sa.Integer())
_WINDOW: sa.BindParameter[int] = sa.bindparam("window", type_=sa.Integer())

_NONE: Final = Tests()
#: Filters for one value of these walk the index of that column, the first of them that there is; it is likely that few
#: images have one value of the first ones.
_SELECTIVE: Final = (*BY_VALUE, "name", "size")
_FIXABLE: Final = (*_SELECTIVE, "status", "container_format", "disk_format")


class Moved(Exception):
    """An image changed between two statements, so that nobody knows whether it still belongs on the page."""


def page(tx: Tx, known: Known, ctx: Context, query: Query) -> list[Image | str]:
    """Up to `query.limit` images after `query.marker`; of one that the database cannot answer with, the id.

    Raises `Invalid` for a marker that the caller cannot see, and `Moved` if an image changed meanwhile, where `tx` does
    not see one moment throughout.
    """
    if query.limit == 0:
        return []
    stamps = _Search(tx, ctx, query).stamps()
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
    first column: nothing as there is none, a value, or no value (unset). `strict`: without images that nobody lists.
    """

    branches: tuple[Branch, ...]
    key: str
    descending: bool = True
    fixed: bool = False
    start: str = "nothing"
    tests: Tests = _NONE
    strict: bool = False

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
    return found.order_by(*(sa.desc(column) if walk.descending else column for column in order)).limit(_WINDOW)


@lru_cache(maxsize=512)
def _walked(walk: Walk) -> sa.Select[Any]:
    """The stamps of a walk, in order; None for an image that is not listed."""
    return _stamped(_merged(walk), walk.order)


def _stamped(found: sa.Select[Any], order: Order) -> sa.Select[Any]:
    """The stamps of what is found, in order; None for an image that is not listed."""
    entries = found.subquery("entries")
    listed = entries.outerjoin(images, (images.c.id == entries.c.id) & _LISTED)
    return sa.select(stamp).select_from(listed).order_by(*order.by(entries.c))


def _entries(walk: Walk, branch: Branch) -> Iterator[sa.Select[Any]]:
    """The first `window` entries of one branch, from its index; in parts, or more of them where that is cheaper."""
    index = f"calotype_{'owner' if branch.kind == 'owner' or branch.by_owner else 'visibility'}_{walk.key}"
    wanted = [*branch.conditions(), *_KEPT, *walk.tests.conditions(), *([_LISTED] if walk.strict else [])]
    for segment, order in _segments(walk):
        entry = sa.select(*(images.c[name] for name in walk.columns)).where(*wanted, *segment)
        most: Any = _WINDOW
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
        none_unless(many, _WINDOW),
    )


def _segments(walk: Walk) -> list[tuple[list[Any], list[Any]]]:
    """The entries beyond the marker: those with a value in the first column, and those without. Conditions, order."""
    columns = [images.c[name] for name in walk.columns]
    marker = [filters.marker(name) for name in walk.columns]
    first, others = columns[0], columns[1:]
    there: list[Any] = [beyond(columns, marker, descending=walk.descending)] if walk.start == "value" else []
    if not first.nullable:
        return [(there, columns)]
    valued: tuple[list[Any], list[Any]] = ([first.is_not(None), *there], columns)
    unset: tuple[list[Any], list[Any]] = ([first.is_(None)], [all_alike(first), *others])
    if walk.tests.reads(walk.columns[0]):
        nothing: tuple[list[Any], list[Any]] = ([sa.false()], columns)
        return [nothing if walk.start == "unset" and walk.descending else valued]
    if walk.start == "unset":
        unset[0].append(beyond(others, marker[1:], descending=walk.descending))
        return [unset] if walk.descending else [unset, valued]
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
    """How many there are, up to `window`."""
    return sa.select(sa.func.count()).select_from(candidates.ids().limit(_WINDOW).subquery())


@lru_cache(maxsize=512)
def _sorted(
    candidates: Candidates | None,
    branches: tuple[Branch, ...],
    tests: Tests,
    order: Order,
    unset: tuple[bool, ...] | None,
) -> sa.Select[Any]:
    """The stamps of all that is wanted of the candidates, or of all images; sorted first, and the rest is read then."""
    met = (candidates.kind, candidates.of) if candidates is not None else ("", 0)
    wanted = [visibility.holds(branches), *_KEPT, _LISTED, *tests.conditions(met)]
    if unset is not None:
        wanted.append(order.after(unset))
    found = sa.select(*(images.c[name] for name in order.names)).where(*wanted)
    # MariaDB would rather have one of the indexes that end in the id; or is too fond of indexes to read the table
    # through when that is quickest.
    for name in ("mysql", "mariadb"):
        found = found.with_hint(images, "FORCE INDEX (PRIMARY)" if candidates else "USE INDEX ()", name)
    if candidates is not None:
        ids = candidates.ids().distinct().subquery()
        found = found.select_from(join_from(ids, images, images.c.id == ids.c.id))
    return _stamped(found.order_by(*order.by()).limit(_MOST), order)


@lru_cache(maxsize=512)
def _keys(order: Order) -> sa.Select[Any]:
    return sa.select(*(images.c[name] for name in order.names))


def forget_statements() -> None:
    """For whoever changes the limits above."""
    for built in (_walked, _counted, _sorted):
        built.cache_clear()


# --- a search --------------------------------------------------------------------------------------------


@dataclass
class _Search:
    """One list: what was asked for, and the ways to answer it."""

    tx: Tx
    ctx: Context
    query: Query
    order: Order = field(init=False)
    branches: tuple[Branch, ...] = field(init=False)
    tests: Tests = field(init=False)
    marker: Sequence[Any] | None = field(init=False)
    values: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        query = self.query
        self.order, self.tests = Order.of(query), Tests.of(query)
        owner = query.one_of.get("owner", (None,))[0]
        self.branches = visibility.branches(
            self.ctx, visibility=query.visibility, member_status=query.member_status, owner=owner
        )
        self.marker = self._marker()
        self.values = visibility.parameters(self.ctx, owner) | filters.values(query)
        self.values |= {"hidden": query.os_hidden, "most": query.limit}
        self.values |= {
            f"marker_{name}": value for name, value in zip(self.order.names, self.marker or (), strict=False)
        }

    def stamps(self) -> Sequence[str]:
        if not self.branches:
            return []
        for candidates in self._named():
            if self._at_most(_FEW_PROPERTIES if candidates.kind == "property" else FEW, candidates):
                return self._sort(candidates)
        walk, key = self._walk(), self._fixed()
        if walk is None or (key in _SELECTIVE and not walk.fixed):
            tests = Tests(one=(key,)) if key else _NONE
            seen = Candidates("walk", Walk(self.branches, key or "created_at", fixed=bool(key), tests=tests))
            if self._at_most(_SORTED, seen):
                return self._sort(seen)
        return self._along(walk) if walk is not None else self._sort(next(self._named(), None))

    def _marker(self) -> Sequence[Any] | None:
        wanted = self.query.marker
        if wanted is None:
            return None
        row = db_images.find(self.tx, self.ctx, _keys(self.order), wanted)
        if row is None:
            raise errors.Invalid(f"The marker {wanted[:64]!r} names no image.")
        return tuple(row)

    def _named(self) -> Iterator[Candidates]:
        """For each filter that an index knows: all images that meet it."""
        if "id" in self.query.one_of:
            yield Candidates("ids", several="id" in self.tests.some)
        for number in range(self.tests.tags):
            yield Candidates("tag", number)
        for number in range(self.tests.properties):
            yield Candidates("property", number)

    def _at_most(self, limit: int, candidates: Candidates) -> bool:
        return bool(self._run(_counted, candidates, window=limit + 1).scalar_one() <= limit)

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
        start = "nothing"
        if self.marker is not None:
            start = "unset" if self.values[f"marker_{walk_columns(key)[1 if fixed else 0]}"] is None else "value"
        return Walk(self.branches, key, self.order.descending, fixed is not None, start, self.tests)

    def _fixed(self) -> str | None:
        """A column with an index that must have one value."""
        return next((key for key in _FIXABLE if key in self.tests.one), None)

    def _along(self, walk: Walk) -> Sequence[str]:
        found = self._run(_walked, walk, window=self.query.limit).scalars().all()
        listed = [one for one in found if one is not None]
        if len(listed) == len(found) or len(found) < self.query.limit:
            return listed
        return self._run(_walked, replace(walk, strict=True), window=self.query.limit).scalars().all()

    def _sort(self, candidates: Candidates | None) -> Sequence[str]:
        unset = tuple(value is None for value in self.marker) if self.marker is not None else None
        found = self._run(_sorted, candidates, self.branches, self.tests, self.order, unset, window=_SORTED)
        return [one for one in found.scalars() if one is not None]

    def _run(self, build: Any, *shape: Any, window: int) -> sa.CursorResult[Any]:
        values = self.values | {"window": window}
        if self.tests.count <= _SIMPLE:
            return self.tx.execute(build(*shape), values)
        return self.tx.execute(build.__wrapped__(*shape), values, execution_options={"compiled_cache": None})
