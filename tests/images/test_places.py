"""Whether a store is where its data is: identities of places, what becomes of copies when stores move."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import app as assembly
from calotype import config, errors
from calotype.app import App
from calotype.cli import main
from calotype.db import images as db_images
from calotype.db import jobs, tables
from calotype.db import stores as db_stores
from calotype.db.engine import now
from calotype.images import checking, data, lifecycle, places, removal, stores
from calotype.images.checking import Problem, Selection, Tally
from calotype.images.lifecycle import NewImage
from calotype.jobs.worker import Runner
from calotype.model import Place
from calotype.stores import file
from calotype.stores.base import Stored
from tests.inprocess import ADMIN, ALICE, CONF, Pieces, backlog, make_active, parts
from tests.support import names


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with parts(tmp_path, database_url) as made:
        yield made


@contextmanager
def again(app: App, path: Path, conf: str = CONF) -> Iterator[App]:
    """Another start on the same database."""
    (path / "again.conf").write_text(
        conf.format(path=path) + f"[database]\nconnection = {app.conf.database.connection}\n"
    )
    made = assembly.build(config.load([str(path / "again.conf")], state_dir=str(path / "state")))
    try:
        yield made
    finally:
        made.service.leases.close()
        made.db.close()


def command(path: Path, *arguments: str, conf: str = "again.conf") -> int:
    return main.main([*arguments, "--config-file", str(path / conf), "--state-dir", str(path / "state")])


def known(app: App) -> dict[str, Place]:
    return {place.name: place for place in app.db.snapshot(db_stores.all_)}


def forget(app: App) -> None:
    """As a release without identities, or a Glance, left database and stores."""
    with app.db.write_once() as tx:
        tx.execute(sa.delete(tables.stores))
        tx.execute(sa.update(tables.image_locations).values(calotype_object=None))
    for store in app.service.stores:
        (Path(store.place) / ".calotype-store").unlink(missing_ok=True)  # type: ignore[attr-defined]


def refused(app: App, store: str = "one") -> bool:
    """Whether an upload is refused; then nothing is changed for it."""
    image_id = lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare")).id
    before = app.db.snapshot(
        lambda tx: tx.execute(sa.select(tables.images).where(tables.images.c.id == image_id)).one()
    )
    try:
        data.upload(app.service, ALICE, image_id, Pieces([b"x"]), store_name=store, size=None)
    except errors.StoreUnavailable:
        after = app.db.snapshot(
            lambda tx: tx.execute(sa.select(tables.images).where(tables.images.c.id == image_id)).one()
        )
        assert after == before
        return True
    return False


def readable(app: App, image_id: str) -> bool:
    try:
        body = data.open_(app.service, ADMIN, data.prepare(app.service, ADMIN, image_id))
    except errors.StoreError:
        return False
    body.close()
    return True


def test_a_new_store_is_taken_into_use_and_known_from_then_on(app: App, tmp_path: Path) -> None:
    before = known(app)
    assert {place.name: (place.place, place.established) for place in before.values()} == {
        name: (str(tmp_path / name), True) for name in ("one", "two")
    }
    assert before["one"].identity in (tmp_path / "one" / ".calotype-store").read_text()
    with again(app, tmp_path) as second:
        assert known(second) == before
        assert not refused(second)


@pytest.mark.any_database
def test_a_store_that_was_being_taken_into_use_when_the_service_died_is_ready_after_the_next_start(
    app: App, tmp_path: Path
) -> None:
    with app.db.write_once() as tx:
        tx.execute(sa.update(tables.stores).values(established=False))
    (tmp_path / "one" / ".calotype-store").unlink()
    with again(app, tmp_path) as second:
        assert known(second)["one"].established
        assert not refused(second)


@pytest.mark.any_database
def test_a_place_that_lost_its_identity_takes_nothing_and_is_not_made_anew(app: App, tmp_path: Path) -> None:
    image_id = make_active(app)
    (tmp_path / "one").rename(tmp_path / "unmounted")
    assert refused(app)
    for there in (False, True):
        if there:
            (tmp_path / "one").mkdir()  # the mount point without its file system
        with again(app, tmp_path) as second:
            assert (tmp_path / "one").exists() == there
            assert refused(second)
            assert not refused(second, "two")
            assert not readable(second, image_id)
            health = {one.name: one.health for one in stores.details(second.service, ADMIN)}["one"]
            assert health is not None
            assert not health.ok
            assert "mounted" in (health.error or "")
            assert command(tmp_path, "config", "check") == 1
            assert backlog(second) == 0
    assert names(tmp_path / "one") == []
    with again(app, tmp_path) as second:
        (tmp_path / "one").rmdir()
        (tmp_path / "unmounted").rename(tmp_path / "one")
        assert readable(second, image_id)  # without a restart
        assert not refused(second)


@pytest.mark.any_database
def test_a_store_that_never_had_an_image_is_not_made_anew_either(app: App, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "two")
    (tmp_path / "two").mkdir()
    with again(app, tmp_path) as second:
        assert refused(second, "two")
        assert list((tmp_path / "two").iterdir()) == []


@pytest.mark.any_database
def test_what_is_unmounted_while_copies_are_compared_is_not_missing(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_active(app)
    store = app.service.stores.get("one")
    assert store
    size = store.size

    def unmounted(url: str, **more: Any) -> int:
        (tmp_path / "one").rename(tmp_path / "unmounted")
        return size(url, **more)

    monkeypatch.setattr(store, "size", unmounted)
    (found,) = checking.verify(app.service, Selection(), Tally())
    assert found.problem is Problem.UNREADABLE


@pytest.mark.any_database
def test_a_delete_waits_for_a_place_that_is_away(app: App, tmp_path: Path) -> None:
    image_id = make_active(app)
    (tmp_path / "one").rename(tmp_path / "unmounted")
    (tmp_path / "one").mkdir()
    lifecycle.delete(app.service, ALICE, image_id)
    assert backlog(app) == 1
    (tmp_path / "one").rmdir()
    (tmp_path / "unmounted").rename(tmp_path / "one")
    assert names(tmp_path / "one") == [image_id]


@pytest.mark.any_database
def test_the_place_of_another_deployment_is_left_alone(app: App, tmp_path: Path) -> None:
    (tmp_path / "one" / ".calotype-store").write_text('{"identity": "of another deployment"}')
    (tmp_path / "one" / "11111111-2222-4333-8444-555555555555").write_bytes(b"theirs")
    with again(app, tmp_path) as second:
        assert refused(second)
    forget(app)
    (tmp_path / "one" / ".calotype-store").write_text('{"identity": "of another deployment"}')
    with again(app, tmp_path) as second:
        assert refused(second)
        assert command(tmp_path, "repair", "--yes", "--older-than", "0") == 3
    assert names(tmp_path / "one") == ["11111111-2222-4333-8444-555555555555"]


@pytest.mark.any_database
def test_a_directory_with_data_is_adopted_once_and_only_when_the_operator_says_so(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_id = make_active(app)
    forget(app)
    with again(app, tmp_path) as second:
        assert refused(second)
        assert readable(second, image_id)
        assert command(tmp_path, "config", "check") == 1
        assert "calotype store adopt one" in capsys.readouterr().out
        assert command(tmp_path, "store", "adopt", "one") == 0
        assert refused(second)
        places.refresh(second.service)  # as the runner does from time to time
        assert not refused(second)
        assert command(tmp_path, "config", "check") == 0
        lifecycle.delete(second.service, ALICE, image_id)
    assert image_id not in names(tmp_path / "one")


def test_sync_adopts_what_holds_the_data_of_the_records_and_nothing_else(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_id = make_active(app)
    forget(app)
    (tmp_path / "two" / "strange").write_bytes(b"of somebody")
    (tmp_path / "again.conf").write_text((tmp_path / "c.conf").read_text())
    (tmp_path / "one" / image_id).rename(tmp_path / "elsewhere")
    assert command(tmp_path, "db", "sync") == 0
    assert "Store one: takes no writes" in capsys.readouterr().out
    assert known(app) == {}
    (tmp_path / "elsewhere").rename(tmp_path / "one" / image_id)
    assert command(tmp_path, "db", "sync") == 0
    said = capsys.readouterr().out
    assert "Store one: " in said
    assert "adopted" in said
    assert "Store two: takes no writes" in said
    with again(app, tmp_path) as second:
        assert (refused(second), refused(second, "two")) == (False, True)


@pytest.mark.any_database
def test_a_bare_directory_is_not_taken_for_the_store_whose_images_are_on_record(app: App, tmp_path: Path) -> None:
    make_active(app)
    forget(app)
    shutil.rmtree(tmp_path / "one")
    with again(app, tmp_path) as second:
        assert refused(second)
        assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("named", ["one", "fast"])
@pytest.mark.any_database
def test_a_store_that_moved_or_was_renamed_is_recognised(app: App, tmp_path: Path, named: str) -> None:
    image_id, gone = make_active(app), make_active(app)
    (tmp_path / "one").rename(tmp_path / "moved")
    conf = CONF.replace("{path}/one", "{path}/moved").replace("one:file", f"{named}:file")
    conf = conf.replace("[one]", f"[{named}]").replace("default_backend = one", f"default_backend = {named}")
    with again(app, tmp_path, conf) as second:
        assert readable(second, image_id)
        assert not refused(second, named)
        lifecycle.delete(second.service, ALICE, gone)
        assert gone not in names(tmp_path / "moved")
        assert places.unserved(second.service) == []
        assert command(tmp_path, "store", "relocate", named, "--dry-run") == 0
        (before,) = lifecycle.show(second.service, ALICE, image_id).locations
        assert before.url == f"file://{tmp_path}/one/{image_id}"
        assert command(tmp_path, "store", "relocate", named) == 0
        (after,) = lifecycle.show(second.service, ALICE, image_id).locations
        assert (after.url, after.store) == (f"file://{tmp_path}/moved/{image_id}", named)
        assert readable(second, image_id)
        lifecycle.delete(second.service, ALICE, image_id)
        assert image_id not in names(tmp_path / "moved")


def test_copies_that_no_store_serves_are_counted_and_brought_back(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_ids = [make_active(app) for _ in range(3)]
    with app.db.write_once() as tx:
        db_images.add_location(tx, image_ids[0], "rbd://fsid/pool/image/snap", {"store": "ceph"}, now())
        db_images.add_location(tx, image_ids[0], f"file://{tmp_path}/two/below/x", {"store": "two"}, now())
    forget(app)
    (tmp_path / "one").rename(tmp_path / "restored")
    (tmp_path / "restored" / image_ids[2]).unlink()
    conf = CONF.replace("{path}/one", "{path}/restored")
    (tmp_path / "again.conf").write_text(
        conf.format(path=tmp_path) + f"[database]\nconnection = {app.conf.database.connection}\n"
    )
    assert command(tmp_path, "config", "check") == 1
    said = capsys.readouterr().out
    for line in (f"3 copies of images cannot be read: no configured store is at file://{tmp_path}/one",
                 "1 copies of images cannot be read: no configured store is at rbd://fsid/pool/image",
                 f"at file://{tmp_path}/two/below"):  # fmt: skip
        assert line in said
    assert command(tmp_path, "store", "adopt", "one") == 0
    assert command(tmp_path, "store", "relocate", "one", "--from", str(tmp_path / "one")) == 1  # one is not there
    with again(app, tmp_path, conf) as second:
        assert [readable(second, image_id) for image_id in image_ids] == [True, True, False]
        assert {one.below for one in places.unserved(second.service)} == {
            "rbd://fsid/pool/image", f"file://{tmp_path}/two/below",
        }  # fmt: skip


def test_two_copies_of_a_place_are_not_both_served(app: App, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "one", tmp_path / "three")
    conf = CONF.replace("two:file", "two:file, three:file") + "[three]\nfilesystem_store_datadir = {path}/three\n"
    with again(app, tmp_path, conf) as second:
        assert refused(second, "three")
        assert not refused(second, "one")
    swapped = (
        CONF.replace("{path}/one", "{path}/x").replace("{path}/two", "{path}/one").replace("{path}/x", "{path}/two")
    )
    with again(app, tmp_path, swapped) as second:
        assert refused(second, "one")
        assert refused(second, "two")


# --- objects -----------------------------------------------------------------------------------------------


def test_a_delete_that_waits_leaves_what_has_the_url_since(app: App, tmp_path: Path) -> None:
    for object_known in (True, False):
        image_id = make_active(app)
        with app.db.write_once() as tx:
            image = db_images.get(tx, ADMIN, image_id)
            assert image
            second = f"file://{tmp_path}/two/{image_id}"
            (tmp_path / "two" / image_id).write_bytes(b"data")
            db_images.add_location(tx, image_id, second, {"store": "two"}, now(), "1-4-1" if object_known else None)
            image = db_images.get(tx, ADMIN, image_id)
            assert image
            job = removal.begin_copy(app.service, tx, image, image.locations[1])
        (tmp_path / "two" / image_id).unlink()
        with app.db.write_once() as tx:  # as an import to this store does, while the job waits
            (tmp_path / "two" / image_id).write_bytes(b"data")
            db_images.add_location(tx, image_id, second, {"store": "two"}, now())
        removal.carry_out(app.service, ADMIN, job, asked=False)
        assert backlog(app) == 0
        assert (tmp_path / "two" / image_id).read_bytes() == b"data"


@pytest.mark.any_database
def test_a_copy_that_was_removed_is_not_taken_for_the_one_that_is_being_added(app: App) -> None:
    image_id = make_active(app)
    with app.db.write_once() as tx:
        image = db_images.get(tx, ADMIN, image_id)
        assert image
        (place,) = image.locations
        (object_id,) = db_images.object_ids(tx, [place.id]).values()
        assert db_images.has_location(tx, image_id, place.url, object_id)
        assert not db_images.has_location(tx, image_id, place.url, "another")
        assert db_images.remove_location(tx, image_id, place.id, now())
        assert db_images.has_location(tx, image_id, place.url, object_id)  # it was added, whatever became of it
        assert not db_images.is_named(tx, image_id, place.url)


def test_who_lost_its_job_leaves_what_is_final_to_who_has_it(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = app.service.stores.for_writing("one")
    cleaned: list[str | None] = []
    real = store.clean

    def clean(image_id: str, attempt: str, note: str | None) -> None:
        cleaned.append(note)
        real(image_id, attempt, note)

    monkeypatch.setattr(store, "clean", clean)
    image = lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare"))
    commit = file._FileWrite.commit

    def lost(write: file._FileWrite) -> Stored:
        done = commit(write)
        with app.db.write_once() as tx:  # it was silent for too long
            jobs.release(tx, jobs.running_attempts(tx))
            assert jobs.claim(tx, jobs.Claims("another", ("upload",)))
        return done

    monkeypatch.setattr(file._FileWrite, "commit", lost)
    with pytest.raises(errors.Conflict, match="given up"):
        data.upload(app.service, ALICE, image.id, Pieces([b"x" * 9]), store_name=None, size=None)
    assert cleaned == [None]
    assert names(tmp_path / "one") == [image.id]
    with app.db.write_once() as tx:
        jobs.release(tx, jobs.running_attempts(tx))
    assert Runner(app.service, 1).run_due_jobs() == 1
    assert cleaned[1]
    assert names(tmp_path / "one") == []


@pytest.mark.any_database
def test_data_in_the_state_directory_is_ours_without_a_word(app: App, tmp_path: Path) -> None:
    """What an upgrade from a release without identities finds, whatever the database."""
    image_id = make_active(app)
    forget(app)
    (tmp_path / "again.conf").write_text(
        CONF.format(path=tmp_path) + f"[database]\nconnection = {app.conf.database.connection}\n"
    )
    for there in (False, True):
        if not there:
            (tmp_path / "one" / image_id).rename(tmp_path / "elsewhere")
        else:
            (tmp_path / "elsewhere").rename(tmp_path / "one" / image_id)
        made = assembly.build(config.load([str(tmp_path / "again.conf")], state_dir=str(tmp_path)))
        assert refused(made) != there
        made.service.leases.close()
        made.db.close()


# --- what operators do ---------------------------------------------------------------------------------------


def put_at(app: App, image_id: str, directory: Path, url: str | None = None) -> None:
    """Move an image's data, as if Glance had written it there: URLs without escapes, no name of a store."""
    directory.mkdir(exist_ok=True)
    (copy,) = lifecycle.show(app.service, ADMIN, image_id).locations
    (Path(copy.url.removeprefix("file://"))).rename(directory / image_id)
    with app.db.write_once() as tx:
        assert db_images.move_location(tx, image_id, copy, url or f"file://{directory}/{image_id}", {})


@pytest.mark.any_database
def test_directories_of_glance_may_have_any_name(app: App, tmp_path: Path) -> None:
    named = "blank ümläut 100%_x a\\b a%20b"
    image_id = make_active(app)
    put_at(app, image_id, tmp_path / named)
    forget(app)
    conf = CONF.replace("{path}/one", "{path}/" + named)
    (tmp_path / "again.conf").write_text(
        conf.format(path=tmp_path) + f"[database]\nconnection = {app.conf.database.connection}\n"
    )
    assert command(tmp_path, "db", "sync") == 0
    with again(app, tmp_path, conf) as second:
        assert not refused(second)
        assert readable(second, image_id)
        assert places.unserved(second.service) == []
    (tmp_path / named).rename(tmp_path / "plain")
    with again(app, tmp_path, CONF.replace("{path}/one", "{path}/plain")) as third:
        assert readable(third, image_id)
        assert all(one.done for one in places.relocate(third.service, "one"))
        (copy,) = lifecycle.show(third.service, ADMIN, image_id).locations
        assert copy.url == f"file://{tmp_path}/plain/{image_id}"


def test_a_directory_of_the_same_letters_in_another_case_is_another_one(app: App, tmp_path: Path) -> None:
    image_id = make_active(app)
    put_at(app, image_id, tmp_path / "ONE")
    with again(app, tmp_path) as second:
        assert [one.below for one in places.unserved(second.service)] == [f"file://{tmp_path}/ONE"]
    forget(app)
    with again(app, tmp_path) as second:
        assert not refused(second)  # it is empty, and no record names anything in it


def test_where_a_store_was_may_be_written_as_people_write_it(app: App, tmp_path: Path) -> None:
    for number, origin in enumerate(("{path}/0/", "file://{path}/1", "{path}/./2")):
        image_id = make_active(app)
        put_at(app, image_id, tmp_path / "one", f"file://{tmp_path}/{number}/{image_id}")
        assert [one.done for one in places.relocate(app.service, "one", origin.format(path=tmp_path))] == [True]
        assert readable(app, image_id)
    assert known(app)["one"].former == tuple(str(tmp_path / str(number)) for number in range(3))


@pytest.mark.any_database
def test_a_store_was_neither_where_another_one_is_nor_nowhere(app: App, tmp_path: Path) -> None:
    for origin in (f"{tmp_path}/two", "old", "file://[::1", f"file://[zz]{tmp_path}", f"file://{tmp_path}/%zz"):
        with pytest.raises(errors.Invalid):
            list(places.relocate(app.service, "one", origin))
    assert known(app)["one"].former == ()


def test_a_name_that_differs_from_a_former_one_in_the_case_of_letters_only_is_no_endless_start(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_PATIENCE", 0)
    conf = CONF.replace("one:file", "ONE:file").replace("[one]", "[ONE]").replace("{path}/one", "{path}/three")
    with again(app, tmp_path, conf.replace("= one", "= ONE")) as second:
        assert not refused(second, "two")
        alike = app.db.snapshot(lambda tx: tx.execute(sa.text("SELECT 'a' = 'A'")).scalar())  # what MariaDB thinks
        assert refused(second, "ONE") == bool(alike)


def test_thousands_of_copies_that_no_store_serves_are_a_few_lines(app: App) -> None:
    image_id = make_active(app)
    with app.db.write_once() as tx:
        for number in range(40):
            db_images.add_location(tx, image_id, f"rbd://fsid/pool/{number}/snap", {"store": "ceph"}, now())
        db_images.add_location(tx, image_id, "rbd://fsid/other/1/snap", {"store": "cheap"}, now())
    found = places.unserved(app.service)
    assert [(one.copies, one.store) for one in found] == [(40, "ceph"), (1, "cheap")]
    assert "rbd://fsid/pool" in str(found[0])


@pytest.mark.any_database
def test_an_image_that_is_known_to_have_no_data_hinders_no_adoption(app: App, tmp_path: Path) -> None:
    image_id = make_active(app)
    make_active(app)
    (tmp_path / "one" / image_id).unlink()
    with again(app, tmp_path):
        command(tmp_path, "repair", "--yes")
    forget(app)
    assert command(tmp_path, "db", "sync") == 0
    with again(app, tmp_path) as second:
        assert not refused(second)


@pytest.mark.any_database
def test_a_place_with_data_that_was_being_adopted_is_not_made_anew_where_it_is_not_mounted(
    app: App, tmp_path: Path
) -> None:
    make_active(app)
    with app.db.write_once() as tx:
        tx.execute(sa.update(tables.stores).values(established=False))  # killed after the identity was written
    (tmp_path / "one").rename(tmp_path / "unmounted")
    (tmp_path / "one").mkdir()
    with again(app, tmp_path) as second:
        assert refused(second)
    assert not list((tmp_path / "one").iterdir())


@pytest.mark.any_database
def test_a_store_that_could_not_be_taken_into_use_is_as_soon_as_it_can(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full, read-only, or not to be entered."""
    forget(app)
    with monkeypatch.context() as patch:

        def fails(self: object, identity: str) -> None:
            raise errors.StoreFull("The store has no room for this image.", "one")

        patch.setattr("calotype.stores.file.FileStore.establish", fails)
        with again(app, tmp_path) as second:
            for _ in range(2):
                assert refused(second)
                places.refresh(second.service)
            patch.undo()
            places.refresh(second.service)
            assert not refused(second)


@pytest.mark.any_database
def test_a_renamed_store_whose_place_was_away_at_the_start_is_recognised_when_it_is_back(
    app: App, tmp_path: Path
) -> None:
    conf = CONF.replace("one:file", "fast:file").replace("[one]", "[fast]").replace("= one", "= fast")
    image_id = make_active(app)
    (tmp_path / "one").rename(tmp_path / "unmounted")
    with again(app, tmp_path, conf) as second:
        places.refresh(second.service)
        assert refused(second, "fast")
        assert not (tmp_path / "one").exists()
        (tmp_path / "unmounted").rename(tmp_path / "one")
        places.refresh(second.service)
        assert not refused(second, "fast")
        assert readable(second, image_id)
        assert known(second)["fast"].place == str(tmp_path / "one")


def test_what_died_in_a_store_is_cleaned_up_after_the_store_was_renamed(app: App, tmp_path: Path) -> None:
    conf = CONF.replace("one:file", "fast:file").replace("[one]", "[fast]").replace("= one", "= fast")
    image = lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare"))
    job = data._intend(app.service, ALICE, image.id, app.service.stores.for_writing("one"), None, None)[1]
    (tmp_path / "one" / f"{image.id}.{job.token}.part").write_bytes(b"half")
    app.service.leases.abandon(job)
    app.service.leases.close()
    with again(app, tmp_path, conf) as second:
        data.give_up(second.service, job, "The service died.")
        assert lifecycle.show(second.service, ALICE, image.id).status == "queued"
    assert names(tmp_path / "one") == []


def test_stores_are_looked_at_only_where_the_schema_is_ours(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.conf").write_text(CONF.format(path=tmp_path))
    (tmp_path / "state").mkdir()
    assert command(tmp_path, "store", "list", conf="empty.conf") == 1
    assert "calotype db sync" in capsys.readouterr().err
