"""Nobody is ever shown an old record for a new one, although records that did not change are not read again."""

import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from calotype import errors
from calotype.app import App
from calotype.context import SERVICE, Context
from calotype.db import images, pages, record_cache, tables
from calotype.db.engine import Database, now
from calotype.db.record_cache import RecordCache
from calotype.images import data, lifecycle, sharing, stores
from calotype.model import Change, Image, Location, Query
from tests import databases
from tests.inprocess import ADMIN, ALICE, BOB, Pieces, make_active, parts

FOR_EVER = 1e9


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with parts(tmp_path, database_url) as made:
        yield made


def fresh(db: Database, ctx: Context, image_id: str) -> Image | None:
    return db.snapshot(lambda tx: images.get(tx, ctx, image_id))


def remembered(db: Database, memory: RecordCache, ctx: Context, image_id: str) -> Image | None:
    return db.snapshot(lambda tx: images.show(tx, memory, ctx, image_id))


def listed(db: Database, memory: RecordCache, ctx: Context) -> list[Image]:
    return db.snapshot(lambda tx: pages.page(tx, memory, ctx, Query(100)))


def test_every_change_is_seen_by_those_who_know_the_record(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = now()  # always the same, as within a second on MariaDB
    svc, memory = replace(app.service, now=lambda: moment), RecordCache(max_age=FOR_EVER)
    image_id = lifecycle.create(
        svc, ALICE, lifecycle.NewImage(disk_format="raw", container_format="bare", properties={"a": "1"})
    ).id

    def change(name: str, value: object, op: str = "replace") -> None:
        lifecycle.update(svc, ALICE, image_id, [Change(op, name, value)])

    def refused_upload() -> None:
        with pytest.raises(errors.Invalid):
            data.upload(svc, ALICE, image_id, Pieces([b"too short"]), store_name=None, size=100)

    def another_copy(store: str) -> None:
        (tmp_path / store / image_id).write_bytes(b"data")
        with app.db.write_once() as tx:
            images.add_location(tx, image_id, f"file://{tmp_path}/{store}/{image_id}", {"store": store}, now())

    def in_use(url: str, *, object_id: str | None, ctx: object) -> None:
        remembered(app.db, memory, ALICE, image_id)  # while the copy is gone
        raise errors.InUse("a volume depends on it", "two")

    def refused(work: Callable[[], object]) -> Callable[[], None]:
        def steps() -> None:
            store = svc.stores.get("two")
            assert store
            with monkeypatch.context() as patch, pytest.raises(errors.Conflict):
                patch.setattr(store, "delete", in_use)
                work()

        return steps

    steps: list[Callable[[], object]] = [
        lambda: change("name", "new"),
        lambda: change("a", "2"),
        lambda: change("b", "1", "add"),
        lambda: change("a", None, "remove"),
        lambda: change("tags", ["x", "y"]),
        lambda: lifecycle.add_tag(svc, ALICE, image_id, "z"),
        lambda: lifecycle.remove_tag(svc, ALICE, image_id, "x"),
        refused_upload,
        lambda: data.upload(svc, ALICE, image_id, Pieces([b"data"]), store_name=None, size=4),
        lambda: lifecycle.deactivate(svc, ALICE, image_id),
        lambda: lifecycle.reactivate(svc, ALICE, image_id),
        lambda: another_copy("two"),
        refused(lambda: lifecycle.delete(svc, ALICE, image_id)),  # the other copy is gone
        lambda: another_copy("one"),
        refused(lambda: stores.remove_copy(svc, ADMIN, "two", image_id)),
        lambda: stores.remove_copy(svc, ADMIN, "two", image_id),
        lambda: sharing.add(svc, ALICE, image_id, "blue"),
        lambda: sharing.set_status(svc, BOB, image_id, "blue", "accepted"),
        lambda: sharing.remove(svc, ALICE, image_id, "blue"),
        lambda: change("visibility", "private"),
        lambda: lifecycle.delete(svc, ALICE, image_id),
    ]
    for number, step in enumerate(steps):
        for ctx in (ALICE, BOB, ADMIN):
            remembered(app.db, memory, ctx, image_id)
            listed(app.db, memory, ctx)
        step()
        for ctx in (ALICE, BOB, ADMIN):
            assert remembered(app.db, memory, ctx, image_id) == fresh(app.db, ctx, image_id), number
            assert listed(app.db, memory, ctx) == listed(app.db, RecordCache(), ctx), number


def test_what_was_acknowledged_is_seen_by_whoever_asks_afterwards(app: App) -> None:
    """Sixty changes in a row, while others read as fast as they can."""
    image_id = make_active(app, properties={"n": "0"})
    acknowledged, wrong, over = [0], [], threading.Event()

    def read() -> None:
        while not over.is_set():
            least = acknowledged[0]
            found = lifecycle.show(app.service, ALICE, image_id)
            (one,) = lifecycle.list_(app.service, ALICE, Query(1))[0]
            if int(found.properties["n"]) < least or int(one.properties["n"]) < least:
                wrong.append((least, found.properties, one.properties))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 61):
        lifecycle.update(app.service, ALICE, image_id, [Change("replace", "n", str(number))])
        acknowledged[0] = number
    over.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_a_record_that_did_not_change_is_not_read_again(app: App) -> None:
    ids = [make_active(app, properties={"a": "1"}) for _ in range(3)]
    lifecycle.list_(app.service, ALICE, Query(10))
    read: list[str] = []
    event.listen(app.db.reads, "before_cursor_execute", lambda *a: read.append(a[2]))
    lifecycle.list_(app.service, ALICE, Query(10))
    assert len([statement for statement in read if "image_properties" in statement]) == 0
    lifecycle.update(app.service, ALICE, ids[1], [Change("replace", "a", "2")])
    again: list[str] = []
    event.listen(app.db.reads, "before_cursor_execute", lambda *a: again.append(a[3]))
    assert [image.properties["a"] for image in lifecycle.list_(app.service, ALICE, Query(10))[0]].count("2") == 1
    assert sum(ids[1] in str(values) for values in again) == 1
    assert not any(ids[0] in str(values) for values in again)


def test_what_somebody_else_writes_into_the_tables_is_seen_after_a_while(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = make_active(app, properties={"a": "1"})
    memory = RecordCache()
    assert remembered(app.db, memory, ALICE, image_id)
    with app.db.write_once() as tx:
        tx.execute(sa.update(tables.image_properties).values(value="2"))
    seen = remembered(app.db, memory, ALICE, image_id)
    assert seen
    assert seen.properties["a"] == "1"  # nothing tells
    later = time.monotonic() + record_cache.MAX_AGE
    monkeypatch.setattr(time, "monotonic", lambda: later)
    seen = remembered(app.db, memory, ALICE, image_id)
    assert seen
    assert seen.properties["a"] == "2"
    assert listed(app.db, memory, ALICE)[0].properties["a"] == "2"


def test_a_changed_record_does_not_inherit_what_was_made_of_the_old_one(app: App) -> None:
    image_id = make_active(app)
    found = remembered(app.db, app.db.record_cache, ALICE, image_id)
    assert found
    assert found.memo == {}
    assert replace(found, name="other").memo is None
    assert fresh(app.db, ALICE, image_id).memo is None  # type: ignore[union-attr]


def test_memory_is_bounded_and_what_is_used_stays() -> None:
    when = now()
    most = 4 << 20

    def keep(memory: RecordCache, number: int) -> None:
        image = Image(f"{number:036d}", "n", "queued", "private", "red", when, when)
        memory.put(f"1/={image.id}", replace(image, properties={f"p{n}": "x" * 100 for n in range(10)}))

    tracemalloc.start()
    memory = RecordCache(most)
    for number in range(3000):
        keep(memory, number)
        assert memory.get(f"{0:036d}")
    used, _ = tracemalloc.get_traced_memory()
    assert used < most
    assert memory.get(f"{2999:036d}")
    assert memory.get(f"{1:036d}") is None
    # However much hangs on an image, and whatever is made of it.
    memory.clear()
    for number in range(200):
        tags = tuple(sorted(f"{tag}" + "\u4e2d" * 250 for tag in range(128)))
        place = Location(number, "file:///" + "x" * 1000)
        large = Image(f"{number:036d}", "n", "active", "private", "red", when, when, tags=tags, locations=(place,))
        kept = memory.put(f"1/={large.id}", large)
        assert kept.memo is not None
        kept.memo["json"] = json.dumps(tags).encode()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < most


def test_a_record_that_mariadb_cannot_answer_with_is_busy_and_left_out_of_lists(
    app: App, database_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    if database_kind != "mariadb":
        return  # the others have no such limit
    good, bad = make_active(app), make_active(app)
    with app.db.write_once() as tx:
        # The one that cannot be read comes first, however fast both were made.
        tx.execute(sa.update(tables.images).where(tables.images.c.id == good).values(created_at=datetime(2026, 1, 1)))
        before = tx.exec_driver_sql("SELECT @@global.max_allowed_packet").scalar_one()
        row = {"image_id": bad, "created_at": now(), "deleted": False, "value": "x" * 60_000}
        tx.execute(sa.insert(tables.image_properties), [row | {"name": f"p{number}"} for number in range(20)])
        tx.exec_driver_sql("SET GLOBAL max_allowed_packet = 1048576")
    try:
        app.db.close()
        with pytest.raises(errors.Busy):
            lifecycle.show(app.service, ALICE, bad)
        assert [image.id for image in lifecycle.list_(app.service, ALICE, Query(10))[0]] == [good]
        assert bad in caplog.text
        # Whoever reads page by page comes to the end all the same.
        assert lifecycle.list_(app.service, ALICE, Query(1)) == ([], bad)
        assert [image.id for image in lifecycle.list_(app.service, ALICE, Query(1, marker=bad))[0]] == [good]
    finally:
        with app.db.write_once() as tx:
            tx.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {before}")
        app.db.close()
    assert len(lifecycle.list_(app.service, ALICE, Query(10))[0]) == 2


def test_records_are_known_whatever_the_database_makes_of_texts_and_times(
    tmp_path: Path, database_kind: str, empty_database_url: str
) -> None:
    settings = {
        "mariadb": "CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",
        "postgresql": "SET datestyle = 'SQL, DMY'",
    }
    if database_kind == "postgresql":
        databases.synced(empty_database_url)  # afterwards it would undo the setting
    if database_kind in settings:
        database = Database(empty_database_url)
        with database.write_once() as tx:
            tx.exec_driver_sql(f"ALTER DATABASE {database.url.database} {settings[database_kind]}")
        database.close()
    with parts(tmp_path, empty_database_url) as app:
        image_id = make_active(app)
        for _ in range(2):
            assert lifecycle.show(app.service, ALICE, image_id).id == image_id
            assert [image.id for image in lifecycle.list_(app.service, ALICE, Query(10))[0]] == [image_id]


def test_the_service_knows_nothing_after_a_fork(app: App) -> None:
    image_id = make_active(app)
    remembered(app.db, app.db.record_cache, SERVICE, image_id)
    app.db.dispose()
    assert app.db.record_cache.get(image_id) is None


def test_an_image_that_changes_within_a_list_is_listed_as_it_is_or_not_at_all(app: App) -> None:
    """Its record is read after it was found: by then it may have become somebody's alone."""
    svc = app.service
    ids = [make_active(app, properties={"n": "old"}) for _ in range(2)]
    for image_id in ids:
        lifecycle.update(svc, ADMIN, image_id, [Change("replace", "visibility", "public")])
    hidden, other = ids

    def meanwhile(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "image_properties" in statement and changes:
            for change in changes.pop():
                lifecycle.update(svc, ALICE, hidden, [change])

    event.listen(app.db.reads, "before_cursor_execute", meanwhile)
    changes = [[Change("replace", "n", "new"), Change("replace", "visibility", "private")]]
    app.db.record_cache.clear()
    assert [image.id for image in lifecycle.list_(svc, BOB, Query(10))[0]] == [other]
    assert not changes
    changes = [[Change("replace", "n", "newest")]]
    app.db.record_cache.clear()
    found = {image.id: image.properties["n"] for image in lifecycle.list_(svc, ALICE, Query(10))[0]}
    assert found == {hidden: "newest", other: "old"}
    assert not changes
