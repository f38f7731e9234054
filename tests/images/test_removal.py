"""Deletes that do not go smoothly: data in use, stores that fail, processes that die half-way."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.app import App
from calotype.context import Context
from calotype.db import images as db_images
from calotype.db import tables
from calotype.db.engine import now
from calotype.images import lifecycle, removal, sharing, stores
from calotype.jobs.worker import Runner
from calotype.stores.base import Later, Store
from tests.inprocess import ADMIN, ALICE, BOB, backlog, hurry, make_active, parts


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with parts(tmp_path, database_url) as made:
        yield made


def store(app: App, name: str = "one") -> Store:
    found = app.service.stores.get(name)
    assert found
    return found


def fail_delete(app: App, monkeypatch: pytest.MonkeyPatch, error: Exception, name: str = "one") -> None:
    """What a cloned volume, or a store that is down, does to a delete: a fault of foreign parts."""

    def refuse(url: str, *, object_id: str | None, ctx: object) -> None:
        raise error

    monkeypatch.setattr(store(app, name), "delete", refuse)


def two_copies(app: App, tmp_path: Path) -> str:
    image_id = make_active(app)
    (tmp_path / "two" / image_id).write_bytes(b"data")
    with app.db.write_once() as tx:
        db_images.add_location(tx, image_id, f"file://{tmp_path}/two/{image_id}", {"store": "two"}, now())
    return image_id


def test_data_in_use_is_a_conflict_and_everything_is_as_before(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = make_active(app, tags=("t",), properties={"a": "b"})
    before = lifecycle.show(app.service, ALICE, image_id)
    fail_delete(app, monkeypatch, errors.InUse("a volume depends on it", "one"))
    with pytest.raises(errors.Conflict, match="in use"):
        lifecycle.delete(app.service, ALICE, image_id)
    after = lifecycle.show(app.service, ALICE, image_id)
    assert after.status == "active"
    assert (after.tags, after.properties, after.locations) == (before.tags, before.properties, before.locations)
    assert backlog(app) == 0
    monkeypatch.undo()
    lifecycle.delete(app.service, ALICE, image_id)


def test_a_deactivated_image_in_use_stays_deactivated(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = make_active(app)
    lifecycle.deactivate(app.service, ALICE, image_id)
    fail_delete(app, monkeypatch, errors.InUse("x", "one"))
    with pytest.raises(errors.Conflict):
        lifecycle.delete(app.service, ALICE, image_id)
    assert lifecycle.show(app.service, ALICE, image_id).status == "deactivated"


def test_a_copy_that_was_deleted_before_another_proved_in_use_is_not_restored(
    app: App, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image_id = two_copies(app, tmp_path)
    fail_delete(app, monkeypatch, errors.InUse("x", "two"), "two")
    with pytest.raises(errors.Conflict):
        lifecycle.delete(app.service, ALICE, image_id)
    assert [place.store for place in lifecycle.show(app.service, ALICE, image_id).locations] == ["two"]


def test_a_store_that_fails_does_not_undo_a_delete_and_is_asked_again(
    app: App, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image_id = make_active(app)
    fail_delete(app, monkeypatch, errors.StoreUnavailable("down", "one"))
    lifecycle.delete(app.service, ALICE, image_id)
    with pytest.raises(errors.NotFound):
        lifecycle.show(app.service, ADMIN, image_id)
    assert backlog(app) == 1
    assert (tmp_path / "one" / image_id).exists()
    runner = Runner(app.service, 1)
    assert runner.run_due_jobs() == 0  # it is not due yet
    monkeypatch.undo()
    hurry(app)
    assert runner.run_due_jobs() == 1
    assert backlog(app) == 0
    assert not (tmp_path / "one" / image_id).exists()


def test_a_store_that_needs_time_for_a_delete_is_asked_again_when_it_said(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = make_active(app)
    real = store(app).delete
    monkeypatch.setattr(store(app), "delete", lambda *_, **__: Later(1800))
    lifecycle.delete(app.service, ALICE, image_id)
    with app.db.write_once() as tx:
        due = tx.execute(sa.select(tables.jobs.c.due_at)).scalar_one()
    assert timedelta(seconds=1700) < due - now() < timedelta(seconds=1900)
    asked: list[str] = []
    monkeypatch.setattr(store(app), "delete", lambda url, **more: (asked.append(url), real(url, **more))[1])
    hurry(app)
    assert Runner(app.service, 1).run_due_jobs() == 1
    assert len(asked) == 1
    assert backlog(app) == 0


def test_data_that_proves_in_use_after_a_crash_keeps_its_job(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = make_active(app)
    fail_delete(app, monkeypatch, errors.InUse("x", "one"))
    with app.db.write_once() as tx:
        image = db_images.get(tx, ADMIN, image_id)
        assert image
        job = removal.begin(app.service, tx, image)
    assert job
    removal.carry_out(app.service, ADMIN, job, asked=False)
    assert backlog(app) == 1
    with pytest.raises(errors.NotFound):
        lifecycle.show(app.service, ADMIN, image_id)


def test_a_copy_in_use_stays_in_its_store(app: App, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image_id = two_copies(app, tmp_path)
    fail_delete(app, monkeypatch, errors.InUse("x", "two"), "two")
    with pytest.raises(errors.Conflict):
        stores.remove_copy(app.service, ADMIN, "two", image_id)
    assert len(lifecycle.show(app.service, ALICE, image_id).locations) == 2
    assert backlog(app) == 0


def test_data_in_a_store_that_is_not_configured_is_remembered(app: App, tmp_path: Path) -> None:
    image_id = make_active(app)
    with app.db.write_once() as tx:
        db_images.add_location(tx, image_id, "rbd://fsid/pool/x/snap", {"store": "gone"}, now())
    lifecycle.delete(app.service, ALICE, image_id)
    with pytest.raises(errors.NotFound):
        lifecycle.show(app.service, ADMIN, image_id)
    assert backlog(app) == 1  # until the store is back, or an operator decides
    assert not (tmp_path / "one" / image_id).exists()


def test_a_copy_whose_removal_proves_in_use_while_the_image_is_deleted_goes_in_the_end(
    tmp_path: Path, database_url: str
) -> None:
    with parts(tmp_path, database_url) as app:
        image_id = make_active(app)
        copy = tmp_path / "two" / image_id
        copy.write_bytes(b"data")
        with app.db.write_once() as tx:
            db_images.add_location(tx, image_id, f"file://{copy}", {"store": "two"}, now())
        two = app.service.stores.get("two")
        assert two is not None
        real = two.delete

        def in_use(url: str, *, object_id: str | None, ctx: Context) -> None:
            two.delete = real  # type: ignore[method-assign]
            lifecycle.delete(app.service, ALICE, image_id)
            raise errors.InUse("a clone depends on it", "two")

        two.delete = in_use  # type: ignore[method-assign]
        stores.remove_copy(app.service, ADMIN, "two", image_id)
        hurry(app)
        assert Runner(app.service, 1).run_due_jobs() > 0
        assert (copy.exists(), backlog(app)) == (False, 0)


def test_members_go_with_their_image_and_come_back_with_it(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = make_active(app)
    sharing.add(app.service, ALICE, image_id, "blue")
    fail_delete(app, monkeypatch, errors.InUse("a volume depends on it", "one"))
    with pytest.raises(errors.Conflict):
        lifecycle.delete(app.service, ALICE, image_id)
    assert lifecycle.show(app.service, BOB, image_id).member == "blue"
    monkeypatch.undo()
    lifecycle.delete(app.service, ALICE, image_id)
    with app.db.write_once() as tx:  # what is not marked stays for ever, and its image with it
        assert db_images.purge(tx, now() + timedelta(days=1), 100) == (1, 3)


def test_what_was_removed_in_the_same_second_does_not_come_back_with_its_image(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = make_active(app, tags=("kept",))
    sharing.add(app.service, ALICE, image_id, "blue")
    sharing.add(app.service, ALICE, image_id, "green")
    moment = now()
    object.__setattr__(app.service, "now", lambda: moment)
    sharing.remove(app.service, ALICE, image_id, "blue")
    with app.db.write_once() as tx:
        db_images.add_location(tx, image_id, "file:///gone", {"store": "one"}, moment)
        image = db_images.get(tx, ADMIN, image_id)
        assert image
        assert db_images.remove_location(tx, image_id, image.locations[1].id, moment)
    before = lifecycle.show(app.service, ALICE, image_id)
    fail_delete(app, monkeypatch, errors.InUse("a volume depends on it", "one"))
    with pytest.raises(errors.Conflict):
        lifecycle.delete(app.service, ALICE, image_id)
    assert [member.member for member in sharing.list_(app.service, ALICE, image_id)] == ["green"]
    after = lifecycle.show(app.service, ALICE, image_id)
    assert (after.tags, after.locations) == (before.tags, before.locations)
    assert len(after.locations) == 1
