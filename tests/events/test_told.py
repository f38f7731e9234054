"""What is told of each change: which events, in which order, with which payload; and that it goes with the change."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.app import App
from calotype.db import jobs, outbox, tables
from calotype.db.engine import Tx
from calotype.images import data, imports, lifecycle, repair, sharing, tasks
from calotype.images.imports import Request
from calotype.images.lifecycle import NewImage
from calotype.images.work import Work
from calotype.jobs.chores import abandon_upload
from calotype.jobs.worker import Runner
from calotype.model import Change, Event, Job, Task
from calotype.stores.file import FileStore
from tests.events.conftest import CONF
from tests.inprocess import ADMIN, ALICE, Pieces, backlog, make_active, parts
from tests.support import until


def told(app: App) -> list[Event]:
    """What waits in the outbox, which is empty then."""

    def work(tx: Tx) -> list[Event]:
        found = outbox.next_events(tx, 1000)
        outbox.remove(tx, found)
        return found

    return app.db.write(work)


def types(app: App) -> list[str]:
    return [event.type if event.priority == "INFO" else f"{event.priority} {event.type}" for event in told(app)]


def queued(app: App, **values: Any) -> str:
    values = {"disk_format": "raw", "container_format": "bare"} | values
    return lifecycle.create(app.service, ALICE, NewImage(**values)).id


def upload(app: App, image_id: str, content: bytes = b"some data", size: int | None = None) -> None:
    data.upload(app.service, ALICE, image_id, Pieces([content]), store_name=None, size=size)


def test_each_change_is_told_in_its_order(app: App) -> None:
    svc = app.service
    image_id = queued(app)
    assert types(app) == ["image.create"]
    lifecycle.update(svc, ALICE, image_id, [Change("replace", "name", "n")])
    lifecycle.update(svc, ALICE, image_id, [Change("replace", "name", "n")])  # changes nothing
    lifecycle.add_tag(svc, ALICE, image_id, "t")
    lifecycle.add_tag(svc, ALICE, image_id, "t")
    lifecycle.remove_tag(svc, ALICE, image_id, "t")
    assert types(app) == ["image.update"] * 3
    upload(app, image_id)
    assert types(app) == ["image.update", "image.prepare", "image.upload", "image.activate", "image.update"]
    sharing.add(svc, ALICE, image_id, "blue")
    sharing.set_status(svc, ADMIN, image_id, "blue", "accepted")
    sharing.remove(svc, ALICE, image_id, "blue")
    assert types(app) == ["image.member.create", "image.member.update", "image.member.delete"]
    lifecycle.deactivate(svc, ADMIN, image_id)
    lifecycle.deactivate(svc, ADMIN, image_id)
    lifecycle.reactivate(svc, ADMIN, image_id)
    repair._deactivate(svc, lifecycle.show(svc, ALICE, image_id))
    assert types(app) == ["image.update"] * 3
    lifecycle.delete(svc, ALICE, image_id)
    assert types(app) == ["image.delete"]


def test_an_import_tells_of_each_store_and_a_failed_one_why(app: App) -> None:
    image_id, stores = queued(app), [store.name for store in app.service.stores if app.service.stores.takes_data(store)]
    imports.stage(app.service, ALICE, image_id, Pieces([b"data"]), size=None)
    imports.start(app.service, ALICE, image_id, Request("glance-direct", {}, all_stores=True))
    told(app)
    carry_out(app)
    found = [event for event in told(app) if event.type.startswith("image.")]
    count = len(stores)
    uploads = ["image.upload", "image.update"] * count
    assert [one.type for one in found] == ["image.prepare"] * count + uploads + ["image.activate", "image.update"]
    left = [one.payload["os_glance_importing_to_stores"] for one in found if one.type == "image.upload"]  # type: ignore[index]
    assert [len(names) for names in left] == list(reversed(range(count)))
    assert {one.payload["backend"] for one in found[:count]} == set(stores)  # type: ignore[index]
    assert found[0].payload["os_glance_importing_to_stores"] == stores  # type: ignore[index]
    assert found[-1].payload["status"] == "active"  # type: ignore[index]
    image_id = queued(app, disk_format="qcow2")
    imports.stage(app.service, ALICE, image_id, Pieces([b"KDMV" + bytes(2000)]), size=None)
    imports.start(app.service, ALICE, image_id, Request("glance-direct", {}))
    told(app)
    carry_out(app)
    found = [event for event in told(app) if event.type.startswith("image.")]
    assert [(one.priority, one.type) for one in found] == [
        ("INFO", "image.prepare"), ("ERROR", "image.upload"), ("INFO", "image.update")
    ]  # fmt: skip
    assert "vmdk" in str(found[1].payload)
    assert lifecycle.show(app.service, ALICE, image_id).status == "queued"


def carry_out(app: App) -> None:
    """Do what jobs there are."""

    def done() -> bool:
        Runner(app.service, 1).run_due_jobs()
        return backlog(app) == 0

    until(done, 60)


def test_payloads_are_those_of_the_contract_and_name_no_place(app: App) -> None:
    image_id = queued(app, name="n", tags=("b", "a"), properties={"p": "1", "q": "ü"}, min_disk=1, min_ram=2)
    upload(app, image_id)
    svc = app.service
    shown = lifecycle.show(svc, ALICE, image_id)
    sharing.add(svc, ALICE, image_id, "blue")
    sharing.remove(svc, ALICE, image_id, "blue")
    lifecycle.delete(svc, ALICE, image_id)
    events = {(event.type, event.payload["status"]): event for event in told(app)}  # type: ignore[index]
    active = events["image.activate", "active"].payload
    assert active == {
        "id": image_id,
        "name": "n",
        "status": "active",
        "min_disk": 1,
        "min_ram": 2,
        "protected": False,
        "created_at": f"{shown.created_at.isoformat(timespec='seconds')}Z",
        "checksum": shown.checksum,
        "updated_at": f"{shown.updated_at.isoformat(timespec='seconds')}Z",
        "owner": "red",
        "size": 9,
        "disk_format": "raw",
        "container_format": "bare",
        "virtual_size": shown.virtual_size,
        "is_public": False,
        "visibility": "shared",
        "properties": {"p": "1", "q": "ü"},
        "tags": ["a", "b"],
        "deleted": False,
        "deleted_at": None,
    }
    lists = {"os_glance_importing_to_stores": [], "os_glance_failed_import": []}
    assert events["image.upload", "active"].payload == active | lists
    saving = events["image.update", "saving"].payload
    assert events["image.prepare", "saving"].payload == {**saving, **lists, "backend": "one"}  # type: ignore[dict-item]
    assert set(saving) == set(active)
    gone = events["image.delete", "deleted"].payload
    assert (gone["deleted"], gone["deleted_at"]) == (True, gone["updated_at"])  # type: ignore[index]
    member = events["image.member.create", "pending"].payload
    assert set(member) == set("image_id member_id status created_at updated_at deleted deleted_at".split())
    assert (member["image_id"], member["member_id"]) == (image_id, "blue")  # type: ignore[index]
    everything = json.dumps([event.payload for event in events.values()])
    assert app.conf.state_dir not in everything
    assert "://" not in everything


def test_a_task_is_told_without_what_it_was_given_and_what_came_of_it(app: App) -> None:
    now = app.service.now()
    secret = "http://user:secret@host/path"
    task = Task("1", "import", "failure", "red", now, now, input=secret, result={"url": secret}, message=secret)
    app.db.write(lambda tx: app.service.events.task(tx, task, "task.failure"))
    (event,) = told(app)
    assert isinstance(event.payload, dict)
    names = "id type status result owner message expires_at created_at updated_at deleted deleted_at"
    assert set(event.payload) == set(names.split())
    assert (event.type, event.payload["id"], event.payload["owner"]) == ("task.failure", "1", "red")
    assert "secret" not in json.dumps(event.payload)


def test_a_task_is_told_from_its_beginning_to_its_end(app: App) -> None:
    svc = app.service
    image_id = queued(app)
    types(app)
    for ends in ("success", "failure"):
        with app.db.write_once() as tx:
            task = tasks.begin(svc, tx, ALICE, "location_import", image_id, {"secret": "given"})
            for status in ("processing", ends):
                assert tasks.move(svc, tx, task.id, status, message="a secret")
                assert not tasks.move(svc, tx, task.id, "pending")
        events = told(app)
        assert [event.type for event in events] == ["task.create", "task.processing", f"task.{ends}"]
        assert [json.loads(json.dumps(event.payload))["status"] for event in events] == ["pending", "processing", ends]
        assert "secret" not in str(events)


def test_an_upload_that_fails_is_told_once_with_the_words_that_the_client_hears(app: App) -> None:
    image_id = queued(app)
    told(app)
    with pytest.raises(errors.BodyBroken) as failure:
        upload(app, image_id, b"short", size=1000)
    prepared, (failed, again) = (found := told(app))[:2], found[2:]
    assert [event.type for event in prepared] == ["image.update", "image.prepare"]
    assert (failed.type, failed.priority) == ("image.upload", "ERROR")
    assert failed.payload == f"Upload to image {image_id} failed: {failure.value}"
    assert (again.type, again.payload["status"]) == ("image.update", "queued")  # type: ignore[index]


def test_an_upload_whose_process_died_is_told_by_who_cleans_up(app: App) -> None:
    image_id = queued(app)
    _, job = data._intend(app.service, ALICE, image_id, app.service.stores.for_writing(None), None, None)
    told(app)
    for _ in range(2):
        abandon_upload(Work(app.service, job, lambda: None))
    assert types(app) == ["ERROR image.upload", "image.update"]


def test_an_image_that_is_in_use_is_told_to_be_there_again(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = make_active(app)
    told(app)

    def in_use(*_: Any, **__: Any) -> None:
        raise errors.InUse("a clone depends on it", "one")

    monkeypatch.setattr(FileStore, "delete", in_use)
    with pytest.raises(errors.Conflict):
        lifecycle.delete(app.service, ALICE, image_id)
    gone, back = told(app)
    assert (gone.type, back.type) == ("image.delete", "image.update")
    assert back.payload["status"] == "active"  # type: ignore[index]


def test_what_is_not_committed_is_not_told_and_what_is_run_again_is_told_once(app: App) -> None:
    """A transaction that the database gives up is run again: of each run, all goes or nothing."""
    image_id = queued(app)
    told(app)
    runs: list[Job] = []

    def work(tx: Tx) -> None:
        image = lifecycle.fetch(tx, ALICE, image_id)
        app.service.events.image(tx, image, "image.update")
        runs.append(jobs.submit(tx, "upload", image_id, {}))
        if len(runs) == 1:
            _given_up(tx)

    if app.db.is_sqlite:  # which has nothing to run again: writers take turns
        with pytest.raises(errors.Busy):
            app.db.write(work)
        assert types(app) == []
    else:
        app.db.write(work)
        assert len(runs) == 2
        assert types(app) == ["image.update"]

    def broken(tx: Tx) -> None:
        app.service.events.image(tx, image_id, "image.update")
        raise errors.Conflict("no")

    with pytest.raises(errors.Conflict):
        app.db.write(broken)
    assert types(app) == []


def _given_up(tx: Tx) -> None:
    """As each database says that the transaction is to be run again."""
    if tx.dialect.name == "sqlite":
        raise sa.exc.OperationalError("", {}, sqlite3.OperationalError("disk I/O error"))
    if tx.dialect.name == "postgresql":
        tx.exec_driver_sql("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$")
    tx.exec_driver_sql("SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'deadlock'")


def test_properties_that_are_as_long_as_they_may_be_are_told(app: App) -> None:
    long = {f"p{number}": "ü€" * 4000 for number in range(4)}
    image_id = queued(app, properties=long)
    (event,) = told(app)
    assert (event.payload["id"], event.payload["properties"]) == (image_id, long)  # type: ignore[index]


@pytest.mark.parametrize(
    ("disabled", "left"),
    [
        ("image", []),
        ("image.create", ["image.member.create"]),
        ("image.member", ["image.create", "image.member.create"]),
        ("image.member.create", ["image.create"]),
        ("task, image.create", ["image.member.create"]),
    ],
)
def test_a_type_is_disabled_by_its_name_or_what_stands_before_its_first_dot(
    tmp_path: Path, disabled: str, left: list[str]
) -> None:
    conf = CONF.replace("[DEFAULT]", f"[DEFAULT]\ndisabled_notifications = {disabled}")
    with parts(tmp_path, f"sqlite:///{tmp_path / 'db'}", conf) as app:
        sharing.add(app.service, ALICE, queued(app), "blue")
        assert types(app) == left


@pytest.mark.parametrize("lines", ["", "[oslo_messaging_notifications]\ndriver = noop\n"])
def test_without_a_driver_nothing_is_written(tmp_path: Path, lines: str) -> None:
    conf = CONF.partition("[oslo")[0] + lines
    with parts(tmp_path, f"sqlite:///{tmp_path / 'db'}", conf) as app:
        statements: list[str] = []
        listen: Callable[..., Any] = lambda *args: statements.append(args[2])  # noqa: E731
        sa.event.listen(app.db.writes, "before_cursor_execute", listen)
        lifecycle.delete(app.service, ALICE, make_active(app))
        assert len(statements) > 5
        assert not any(tables.outbox.name in statement for statement in statements)
