"""Lists against a plain model of them: every caller, order and filter, page by page, whichever way answers."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from calotype import errors
from calotype.app import App
from calotype.context import Context
from calotype.db import images, members, pages, tables
from calotype.db.engine import Database
from calotype.db.record_cache import RecordCache
from calotype.images import lifecycle
from calotype.model import STATUSES, VISIBILITIES, Comparison, Image, Query
from tests.inprocess import BOB, parts

COUNT = 120
#: There are more statements here than an engine remembers, and to compile one takes longer than to run it.
COMPILED: dict[Any, Any] = {}
KEYS = tables.WALKED
BEGIN = datetime(2026, 1, 1)
CALLERS = {
    "admin": Context(project="admin", is_admin=True),
    "admin without a project": Context(is_admin=True),
    "red": Context(project="red"),
    "blue": Context(project="blue"),
    "stranger": Context(project="stranger"),
    "nobody": Context(),
}

KNOWN = RecordCache()


@dataclass(frozen=True)
class Entry:
    image: Image
    shares: dict[str, str]


def some_images() -> list[Entry]:
    choose = random.Random(20261122)
    found = []
    for number in range(COUNT):
        created = BEGIN + timedelta(seconds=choose.randrange(40))
        image = Image(
            id=f"{choose.getrandbits(32):08x}-0000-4000-8000-{number:012d}",
            name=choose.choice((None, "", "a", "b", f"n{number}")),
            status=choose.choice(("active", "active", "active", "queued", "deactivated", "killed")),
            visibility=choose.choice(VISIBILITIES),
            owner=choose.choice(("red", "red", "blue", "green", "admin", None, "")),
            created_at=created,
            updated_at=created + timedelta(seconds=choose.randrange(3)),
            os_hidden=choose.random() < 0.1,
            protected=choose.random() < 0.3,
            disk_format=choose.choice((None, "raw", "qcow2")),
            container_format=choose.choice((None, "bare")),
            size=choose.choice((None, 0, 1, 2**40)),
            min_ram=choose.choice((0, 512)),
            checksum=choose.choice((None, "c1", "c2")),
            os_hash_value=choose.choice((None, "h1", f"h{number}")),
            tags=tuple(sorted(choose.sample(("t1", "t2", "t3"), choose.randrange(3)))),
            properties={"distro": choose.choice(("d1", "d2")), "long": "x" * 80 + choose.choice("ab")},
        )
        shares = {
            project: choose.choice(("pending", "accepted", "accepted", "rejected"))
            for project in ("red", "blue")
            if choose.random() < 0.5
        }
        found.append(Entry(image, shares))
    return found


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return some_images()


@pytest.fixture(scope="module")
def full(module_db: Database, entries: list[Entry]) -> Database:
    with module_db.write_once() as tx:
        for entry in entries:
            images.add(tx, entry.image)
        rows = [
            {"image_id": e.image.id, "member": project, "status": status, "created_at": BEGIN, "deleted": False}
            for e in entries
            for project, status in e.shares.items()
        ]
        tx.execute(sa.insert(tables.image_members), rows)
        # An image that was deleted and one that never changed are in nobody's way.
        unset = sa.update(tables.images).where(tables.images.c.id == entries[0].image.id)
        tx.execute(unset.values(updated_at=None))
    return module_db


# --- the model -------------------------------------------------------------------------------------------


def listed(entry: Entry, ctx: Context, query: Query) -> bool:
    image = entry.image
    own = ctx.project is not None and image.owner == ctx.project
    seen = ctx.is_admin or own or image.visibility in ("public", "community")
    if ctx.project is not None and image.visibility == "shared":
        status = entry.shares.get(ctx.project)
        seen = seen or (status is not None and query.member_status in ("all", status))
    if query.visibility is None:
        seen = seen and (own or image.visibility != "community")
    elif query.visibility != "all":
        seen = seen and image.visibility == query.visibility
    return seen and image.status != "killed" and image.os_hidden == query.os_hidden and wanted(image, query)


def wanted(image: Image, query: Query) -> bool:
    compare: dict[str, Callable[[Any, Any], bool]] = {
        "eq": lambda a, b: a == b,
        "neq": lambda a, b: a is not None and a != b,
        "lt": lambda a, b: a is not None and a < b,
        "lte": lambda a, b: a is not None and a <= b,
        "gt": lambda a, b: a is not None and a > b,
        "gte": lambda a, b: a is not None and a >= b,
    }
    return (
        all(getattr(image, name) in values for name, values in query.one_of.items())
        and all(compare[test.op](getattr(image, test.column), test.value) for test in query.comparisons)
        and set(query.tags) <= set(image.tags)
        and all(image.properties.get(name) == value for name, value in query.properties.items())
    )


def ordered(found: list[Entry], query: Query) -> list[str]:
    """Sorted by the last key first, each time stably."""
    directions = {direction for _, direction in query.sort}
    last = directions.pop() if len(directions) == 1 else "desc"
    keys = dict(query.sort)
    keys.setdefault("created_at", last)
    keys.setdefault("id", last)
    rows = [entry.image for entry in found]
    for name, direction in reversed(list(keys.items())):
        value: Callable[[Image], Any] = lambda image, name=name: (  # noqa: E731
            getattr(image, name) is not None,
            getattr(image, name) if getattr(image, name) is not None else 0,
        )
        rows.sort(key=value, reverse=direction == "desc")
    return [image.id for image in rows]


def expected(entries: list[Entry], ctx: Context, query: Query) -> list[str]:
    changed = [e if n else replace(e, image=replace(e.image, updated_at=None)) for n, e in enumerate(entries)]
    return ordered([entry for entry in changed if listed(entry, ctx, query)], query)


def walked(db: Database, ctx: Context, query: Query) -> list[str]:
    """All pages, one after the other."""
    found: list[str] = []
    with db.read_once() as tx:
        tx.execution_options(compiled_cache=COMPILED)
        while True:
            page = pages.page(tx, KNOWN, ctx, replace(query, marker=found[-1] if found else None))
            assert len(page) <= query.limit
            found += [image.id for image in page]
            if len(page) < query.limit:
                return found
            assert len(found) <= COUNT, "an image comes again"


def queries() -> Iterator[Query]:
    choose = random.Random(7)
    orders: list[tuple[tuple[str, str], ...]] = [((key, way),) for key in KEYS for way in ("asc", "desc")]
    orders += [
        (("name", "asc"), ("size", "desc")),
        (("status", "desc"), ("name", "desc")),
        (("id", "asc"), ("name", "desc")),
        (("disk_format", "asc"), ("created_at", "asc")),
        (("created_at", "desc"), ("name", "asc")),
    ]
    filters: list[dict[str, Any]] = [
        {},
        *({"visibility": each} for each in (*VISIBILITIES, "all")),
        *({"member_status": each} for each in ("pending", "rejected", "all")),
        {"visibility": "all", "member_status": "all"},
        {"os_hidden": True},
        *({"one_of": {"owner": (each,)}} for each in ("red", "blue", "green", "admin", "none")),
        {"one_of": {"owner": ("green",)}, "visibility": "all"},
        {"one_of": {"owner": ("green",)}, "visibility": "private"},
        {"one_of": {"owner": ("green",)}, "visibility": "shared", "member_status": "all"},
        *({"one_of": {"name": each}} for each in (("a",), ("",), ("a", "b"), ("no such",))),
        *({"one_of": {"status": each}} for each in (("active",), ("queued", "deactivated"), ("saving",))),
        {"one_of": {"size": (0,)}},
        {"one_of": {"size": (0,), "name": ("a",), "status": ("active",)}},
        {"one_of": {"disk_format": ("raw",), "protected": (True,)}},
        {"one_of": {"checksum": ("c1",)}},
        {"one_of": {"os_hash_value": ("h1",), "min_ram": (512,)}},
        {"comparisons": (Comparison("size", "gte", 1),)},
        {"comparisons": (Comparison("size", "lte", 1), Comparison("min_ram", "gte", 1))},
        {"comparisons": (Comparison("created_at", "gt", BEGIN + timedelta(seconds=20)),)},
        {"comparisons": (Comparison("created_at", "lte", BEGIN + timedelta(seconds=20)),), "one_of": {"name": ("a",)}},
        {
            "comparisons": (
                Comparison("created_at", "neq", BEGIN),
                Comparison("updated_at", "lt", BEGIN + timedelta(10)),
            )
        },
        {"comparisons": tuple(Comparison("created_at", "lt", BEGIN + timedelta(seconds=s)) for s in (30, 10))},
        {"tags": ("t1",)},
        {"tags": ("t1", "t2")},
        {"tags": ("none",)},
        {"properties": {"distro": "d1"}},
        {"properties": {"long": "x" * 80 + "a"}, "tags": ("t3",)},
    ]
    for chosen in filters:
        yield Query(limit=1000, **chosen)
        for order in choose.sample(orders, 1):
            yield Query(limit=choose.choice((9, 30, 1000)), sort=order, **chosen)
    for order in orders:
        yield Query(limit=choose.choice((7, 9)), sort=order)
        yield Query(limit=20, sort=order, visibility="all", member_status="all")


@pytest.fixture(params=["as it is", "few are two"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Limits so low that every way of answering has its turn."""
    if request.param != "as it is":
        monkeypatch.setattr(pages, "FEW", 2)
        monkeypatch.setattr(pages, "_FEW_PROPERTIES", 1)
        monkeypatch.setattr(pages, "_MAX_SORTED", 4)
        monkeypatch.setattr(pages, "_FEW_FOR_GROUPS", 5)
        monkeypatch.setattr(pages, "_TIES", 3)
        monkeypatch.setattr(pages, "_MANY_SHARES", 3)
        monkeypatch.setattr(pages, "_READ_BATCH", 7)
    pages.forget_statements()
    yield request.param
    pages.forget_statements()


@pytest.mark.slow
def test_every_list_is_what_the_plain_model_says(
    full: Database, entries: list[Entry], ways: str, database_kind: str
) -> None:
    """SQLite answers three callers in each of both ways; a server, where only the answering differs, one in one way."""
    names, turn = list(CALLERS), ways == "as it is"
    for number, query in enumerate(queries()):
        if database_kind == "sqlite":
            asks = names[(number + turn) % 2 :: 2]
        else:
            asks = [names[number // 2 % 6]] if number % 2 == turn else []
        for name in asks:
            assert walked(full, CALLERS[name], query) == expected(entries, CALLERS[name], query), (name, query)


@pytest.mark.slow
def test_an_order_by_several_keys_brings_every_image_once_and_in_order(
    full: Database, entries: list[Entry], ways: str, database_kind: str
) -> None:
    """Many images are alike in each of the keys, and some have no value; so pages end, and begin, among such."""
    choose = random.Random(20261130)
    filters: list[dict[str, Any]] = [
        *({},) * 6,
        {"visibility": "all", "member_status": "all"},
        {"one_of": {"status": ("active",)}},
        {"one_of": {"name": ("a", "b"), "status": ("active", "queued")}},
        {"one_of": {"name": ("a",)}},
        {"comparisons": (Comparison("size", "gte", 0),)},
        {"tags": ("t1",)},
    ]
    for number in range(24 if database_kind == "sqlite" else 8):
        keys = choose.sample(KEYS, choose.choice((2, 2, 3)))
        order = tuple((key, choose.choice(("asc", "desc"))) for key in keys)
        query = Query(choose.choice((1, 4, 9, 9, 50)), sort=order, **choose.choice(filters))
        for name in ("admin", choose.choice(list(CALLERS))) if number % 3 == 0 else (choose.choice(list(CALLERS)),):
            found = walked(full, CALLERS[name], query)
            assert found == expected(entries, CALLERS[name], query), (name, query)


@pytest.mark.slow
def test_images_whose_names_a_database_takes_for_the_same_are_each_on_one_page(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MariaDB does not tell `A` from `a`: whoever has one of them is alike, also where a page begins."""
    monkeypatch.setattr(pages, "_TIES", 3)
    with db.write_once() as tx:
        for number in range(24):
            image_id = f"{number:08}-0000-4000-8000-000000000000"
            images.add(tx, Image(image_id, "aA"[number % 2], "active", "shared", "red", BEGIN, BEGIN, size=number // 6))
    for key in ("size", "status", "created_at"):
        for way in ("asc", "desc"):
            query = Query(limit=1, sort=(("name", "asc"), (key, way)))
            found = walked(db, CALLERS["red"], query)
            assert len(found) == len(set(found)) == 24


def test_statements_that_anybody_can_think_up_are_not_kept(full: Database) -> None:
    def kept() -> int:
        return len(COMPILED) + sum(
            built.cache_info().currsize
            for built in (pages._walked, pages._counted, pages._sorted, pages._first_group, pages._window_with_ties)
        )

    walked(full, CALLERS["red"], Query(10))
    before = kept()
    for count in range(9, 14):
        many = {f"p{number}": "x" for number in range(count)}
        assert walked(full, CALLERS["red"], Query(10, properties=many, one_of={"min_disk": (0,)})) == []
    assert kept() == before


def test_all_that_can_be_listed_is_all_that_can_be_fetched(full: Database, entries: list[Entry]) -> None:
    assert set(STATUSES) >= {entry.image.status for entry in entries}
    for name, ctx in CALLERS.items():
        with full.read_once() as tx:
            fetched = {e.image.id for e in entries if e.image.status != "killed" and images.get(tx, ctx, e.image.id)}
        both = [Query(1000, visibility="all", member_status="all", os_hidden=hidden) for hidden in (True, False)]
        assert {each for query in both for each in walked(full, ctx, query)} == fetched, name


def test_on_sqlite_what_others_share_with_others_costs_a_list_nothing(tmp_path: Path) -> None:
    """A project with few shares looks at those, and at no more of the images that are shared with somebody."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    def share(app: App, numbers: range, project: str) -> None:
        with app.db.write_once() as tx:
            for number in numbers:
                image_id = f"00000000-0000-4000-8000-{number:012}"
                images.add(tx, Image(image_id, "n", "active", "shared", "red", BEGIN, BEGIN))
                members.add(tx, image_id, project, BEGIN)
                members.set_status(tx, image_id, project, "accepted", BEGIN)

    with parts(tmp_path, f"sqlite:///{tmp_path / 'calotype.db'}") as app:
        event.listen(app.db.reads, "checkout", lambda connection, *_: connection.set_progress_handler(step, 1))
        share(app, range(3), "blue")
        costs = []
        for others in (range(10, 20), range(20, 100), range(100, 1100)):
            share(app, others, "green")
            before = steps
            found, _ = lifecycle.list_(app.service, BOB, Query(limit=25))
            assert len(found) == 3
            costs.append(steps - before)
    assert 0 < costs[2] <= costs[1]  # the first one also read the schema


def test_on_sqlite_a_list_costs_what_its_page_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what all images would, whether few or many are alike in the first key, and with and without a marker.

    For an order by one key, with a filter, it might take another index.
    """
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    monkeypatch.setattr(pages, "FEW", 50)
    with parts(tmp_path, f"sqlite:///{tmp_path / 'calotype.db'}") as app:
        event.listen(app.db.reads, "checkout", lambda connection, *_: connection.set_progress_handler(step, 1))

        def add(numbers: range) -> None:
            row = {"visibility": "shared", "owner": "blue", "protected": False, "os_hidden": False, "deleted": False}
            row |= {"min_disk": 0, "min_ram": 0, "container_format": "bare"}
            with app.db.write_once() as tx:
                rows = [
                    row
                    | {
                        "id": f"00000000-0000-4000-8000-{number:012}",
                        "name": f"n{number * 7919 % 10_007 // 3}",
                        "status": "active" if number % 4 else "queued",
                        "disk_format": ("raw", "qcow2")[number % 2],
                        "size": number * 6007 % 10_007,
                        "created_at": BEGIN + timedelta(seconds=number // 2),
                    }
                    for number in numbers
                ]
                tx.execute(sa.insert(tables.images), rows)

        costs: dict[Any, list[int]] = {}
        for begin, end in ((0, 500), (500, 5_000)):
            add(range(begin, end))
            for order, wanted in (
                ((("disk_format", "desc"),), "bare"),
                ((("name", "asc"), ("created_at", "desc")), None),
                ((("name", "asc"), ("size", "desc")), None),
                ((("size", "asc"), ("name", "asc")), None),
                ((("created_at", "desc"), ("name", "asc")), None),
                ((("status", "asc"), ("name", "asc")), None),
                ((("container_format", "asc"), ("disk_format", "asc"), ("size", "asc")), None),
                ((("disk_format", "desc"), ("size", "asc")), None),
            ):
                first = Query(25, sort=order, one_of={"container_format": (wanted,)} if wanted else {})
                _, marker = lifecycle.list_(app.service, BOB, first)
                for query in (first, replace(first, marker=marker)):
                    before = steps
                    found, _ = lifecycle.list_(app.service, BOB, query)
                    assert len(found) == 25
                    costs.setdefault((order, query.marker is None), []).append(steps - before)
        for which, (few, many) in costs.items():
            assert many < 1.5 * few, (which, few, many)


def test_a_page_begins_where_its_marker_would_be_also_when_that_does_not_meet_the_filters(
    full: Database, entries: list[Entry], ways: str, database_kind: str
) -> None:
    """The last image of the page before may have been changed since."""
    choose = random.Random(11)
    ctx = CALLERS["admin"]
    seen = [entry for entry in entries if entry.image.status != "killed" and not entry.image.os_hidden]
    filters: list[dict[str, Any]] = [
        {"one_of": {"name": ("a", "b")}},
        {"one_of": {"name": ("a",)}},
        {"one_of": {"size": (0,)}},
        {"one_of": {"status": ("active",)}},
        {"one_of": {"disk_format": ("raw",)}},
        {"comparisons": (Comparison("size", "gte", 1),)},
    ]
    for chosen in filters:
        for key in ("name", "size", "status", "disk_format", "created_at"):
            for way in ("asc", "desc"):
                query = Query(1000, visibility="all", member_status="all", sort=((key, way),), **chosen)
                for marker in choose.sample(seen, 6 if database_kind == "sqlite" else 2):
                    everything = expected(entries, ctx, replace(query, one_of={}, comparisons=()))
                    wanted = set(expected(entries, ctx, query))
                    after = everything[everything.index(marker.image.id) + 1 :]
                    with full.read_once() as tx:
                        page = pages.page(tx, KNOWN, ctx, replace(query, marker=marker.image.id))
                    assert [image.id for image in page] == [one for one in after if one in wanted], (query, marker)


def test_a_marker_that_the_caller_cannot_see_is_refused(full: Database, entries: list[Entry]) -> None:
    private = next(e.image.id for e in entries if e.image.visibility == "private" and e.image.owner == "green")
    with full.read_once() as tx, pytest.raises(errors.Invalid):
        pages.page(tx, KNOWN, CALLERS["red"], Query(5, marker=private))
