"""Imports from within: every method, several stores, what is refused, quotas, and what users see of it all."""

import hashlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.app import App
from calotype.context import SERVICE
from calotype.db import images as db_images
from calotype.db import jobs, tables, usage
from calotype.db import tasks as db_tasks
from calotype.db.engine import Tx
from calotype.images import fanout, importing, imports, lifecycle, quota, tasks, work
from calotype.images.imports import COPY_IMAGE, GLANCE_DIRECT, WEB_DOWNLOAD
from calotype.images.locations import Given
from calotype.images.sources import Pace
from calotype.jobs import worker
from calotype.jobs.worker import Runner
from calotype.service import Service
from tests.images.imports import (
    DATA,
    METHODS,
    STORES,
    Cut,
    Hang,
    Raise,
    ask,
    assert_active,
    assert_failed,
    at_once,
    begin,
    files,
    jobs_of,
    limited,
    lists,
    plant,
    queued,
    service,
    show,
    stage,
    task_of,
    waits,
    work_off,
    working,
)
from tests.images.samples import HOSTILE
from tests.inprocess import ALICE, BOB, Pieces, hurry, make_active
from tests.webserver import WebServer, serving

MIB = 1 << 20


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with service(tmp_path) as app:
        yield app


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as web:
        yield web


# --- what succeeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_each_method_puts_the_bytes_into_all_stores(
    tmp_path: Path, database_url: str, web: WebServer, method: str
) -> None:
    with service(tmp_path, database_url) as app:
        image_id = begin(app, method, web)
        image, task = show(app, image_id), task_of(app, image_id)
        importing_to = "two,three" if method == COPY_IMAGE else "one,two,three"
        assert image.status == ("active" if method == COPY_IMAGE else "importing")
        assert lists(image) == (task.id, importing_to, None)
        assert (task.status, task.type, task.expires_at) == ("pending", "api_image_import", None)
        assert task.input["backend"] == importing_to.split(",")
        work_off(app)
        assert_active(app, image_id)
        assert [place.store for place in show(app, image_id).locations] == list(STORES), (
            "in the order that was asked for"
        )
        assert lists(show(app, image_id)) == (None, "", "")
        task = task_of(app, image_id)
        assert (task.status, task.message, task.result) == ("success", "", {"image_id": image_id})
        left = task.expires_at - app.service.now() if task.expires_at else timedelta(0)
        assert timedelta(hours=47) < left <= timedelta(hours=48)
        assert len(web.seen) == (method == WEB_DOWNLOAD), "one read for all stores"


@pytest.mark.parametrize("content", [b"", b"x", DATA], ids=["nothing", "a byte", "more"])
@pytest.mark.parametrize("method", METHODS)
def test_images_of_any_size_are_imported_into_one_store(app: App, web: WebServer, method: str, content: bytes) -> None:
    image_id = begin(app, method, web, content, stores=["two"])
    work_off(app)
    assert_active(app, image_id, ["one", "two"] if method == COPY_IMAGE else ["two"], content)


def test_data_of_unknown_size_is_staged_and_fetched(app: App, web: WebServer) -> None:
    staged = queued(app)
    stage(app, staged, known=False)
    assert (show(app, staged).status, show(app, staged).size) == ("uploading", len(DATA))
    assert files(app) == {"os_glance_staging_store": [staged]}
    imports.start(app.service, ALICE, staged, ask(GLANCE_DIRECT))
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DATA), DATA)
    fetched = queued(app)
    web.files["/x"] = web.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    imports.start(app.service, ALICE, fetched, ask(WEB_DOWNLOAD, uri=f"{web.url}/x"))
    work_off(app)
    assert_active(app, staged)
    assert_active(app, fetched)


@pytest.mark.parametrize("algo", ["md5", "sha256", "sha512"])
def test_a_given_hash_is_compared(app: App, web: WebServer, algo: str) -> None:
    """Wrong bytes of the right length are refused as well as others, whatever the service's own hash."""
    right = Given(algo, hashlib.new(algo, DATA).hexdigest())
    good, bad = begin(app, WEB_DOWNLOAD, web, given=right), queued(app)
    web.files["/bad"] = DATA[:-1] + b"?"
    imports.start(app.service, ALICE, bad, ask(WEB_DOWNLOAD, uri=f"{web.url}/bad", given=right))
    hurry(app)
    work_off(app)
    assert_active(app, good)
    assert_failed(app, bad, f"has {algo} .*, and {right.value} was asked for")
    assert len([one for one in web.seen if one.path == "/bad"]) == 1, "another attempt would fetch the same"


def test_a_server_that_breaks_off_is_asked_for_the_rest(app: App, web: WebServer) -> None:
    image_id = queued(app)
    web.files["/x"] = cut = Cut(DATA, after=MIB, times=2)
    imports.start(app.service, ALICE, image_id, ask(WEB_DOWNLOAD, uri=f"{web.url}/x"))
    work_off(app)
    assert_active(app, image_id)
    assert (cut.asked, cut.bytes_sent) == (3, len(DATA))


# --- what fails ------------------------------------------------------------------------------------------


def test_a_server_that_drips_costs_no_more_than_its_time(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not tried again: that would cost as much again."""
    monkeypatch.setattr(importing, "Pace", partial(Pace, window=1.0))
    image_id = queued(app)
    web.files["/x"], web.rate = bytes(MIB), 2000
    imports.start(app.service, ALICE, image_id, ask(WEB_DOWNLOAD, uri=f"{web.url}/x"))
    work_off(app)
    assert_failed(app, image_id, "too slow: it sent fewer than 65536 bytes a second")
    assert len(web.seen) == 1


@pytest.mark.parametrize("method", [GLANCE_DIRECT, WEB_DOWNLOAD])
def test_hostile_images_are_refused_before_anything_is_final(
    app: App, web: WebServer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed: list[str] = []
    for name in STORES:
        plant(monkeypatch, app, name, lambda step: committed.append(step) if step == "commit" else None)
    samples = [one for one in HOSTILE if one.declared == "qcow2" and one.name.startswith("qcow2-backing")]
    assert len(samples) > 2
    for sample in samples[:4]:
        image_id = begin(app, method, web, sample.make(), disk_format="qcow2")
        work_off(app)
        assert_failed(app, image_id, "backing")
    assert committed == []


def test_a_hostile_image_that_is_active_is_not_copied(app: App) -> None:
    """It may be of a time when nobody looked."""
    hostile = next(one for one in HOSTILE if one.declared == "qcow2" and one.name.startswith("qcow2-backing")).make()
    image_id = begin(app, COPY_IMAGE, content=bytes(len(hostile)))
    (place,) = show(app, image_id).locations
    Path(place.url.removeprefix("file://")).write_bytes(hostile)
    with app.db.write_once() as tx:
        values = {"disk_format": "qcow2", "checksum": None, "os_hash_algo": None, "os_hash_value": None}
        tx.execute(sa.update(tables.images).values(values))
    work_off(app)
    image, task = show(app, image_id), task_of(app, image_id)
    assert (image.status, lists(image)) == ("active", (None, "", "two,three"))
    assert (task.status, "backing" in task.message) == ("failure", True)
    assert (files(app), jobs_of(app)) == ({"one": [image_id]}, [])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Raise("put", errors.StoreFull("There is no room in store two.", "two")), "no room"),
        (Raise("begin", errors.StoreUnavailable("Store two does not answer.", "two")), "does not answer"),
        (Raise("commit", errors.StoreError("Store two broke.", "two")), "broke"),
        (Raise("committed", errors.StoreError("Store two broke at its end.", "two")), "broke at its end"),
        (Raise("put", ZeroDivisionError("a driver")), "failed unexpectedly"),
    ],
    ids=["full", "away", "at the commit", "after the commit", "a fault of its driver"],
)
def test_a_store_that_fails_costs_the_import_or_only_itself(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str, fault: Raise, reason: str
) -> None:
    at_once(monkeypatch)
    plant(monkeypatch, app, "two", fault)
    some = begin(app, method, web, all_must=False)
    work_off(app)
    assert_active(app, some, ["one", "three"])
    task = task_of(app, some)
    assert lists(show(app, some)) == (None, "", "two")
    assert (task.status, reason in task.message, "store two: " in task.message) == ("success", True, True)
    fault.count = 0
    all_ = begin(app, method, web)
    work_off(app)
    if fault.step != "put":  # of which there are several
        assert fault.count == 5, "it may be a passing failure"
    if method == COPY_IMAGE:
        assert_active(app, all_, ["one"])
        assert lists(show(app, all_)) == (None, "", "two,three")
        assert reason in task_of(app, all_).message
    else:
        assert_failed(app, all_, reason)


def test_a_store_that_hangs_is_given_up_and_keeps_nothing(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "FanOut", partial(fanout.FanOut, patience=0.2))
    hang = Hang("put")
    plant(monkeypatch, app, "two", hang)
    image_id = begin(app, WEB_DOWNLOAD, web, all_must=False)
    work_off(app)
    image = show(app, image_id)
    assert (image.status, lists(image)) == ("active", (None, "", "two"))
    assert "has not answered" in task_of(app, image_id).message
    hang.free.set()
    waits(lambda: "two" not in files(app))
    assert_active(app, image_id, ["one", "three"])


@pytest.mark.parametrize("all_must", [True, False])
def test_if_no_store_takes_the_data_it_is_tried_again_and_ends_with_the_reason(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, all_must: bool
) -> None:
    at_once(monkeypatch)
    fault = Raise("put", errors.StoreUnavailable("Store two is away.", "two"), times=2)
    plant(monkeypatch, app, "two", fault)
    passing = begin(app, WEB_DOWNLOAD, web, stores=["two"], all_must=all_must)
    work_off(app)
    assert_active(app, passing, ["two"])
    fault.left, fault.count = 1000, 0
    lasting = begin(app, WEB_DOWNLOAD, web, stores=["two"], all_must=all_must)
    work_off(app)
    assert_failed(app, lasting, "Store two is away", ["two"])
    assert fault.count == 5


def test_a_web_server_that_is_away_for_a_while_is_asked_again_later(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once(monkeypatch)
    for times, ends in ((4, "active"), (5, "queued")):
        image_id = queued(app)
        web.files["/x"] = cut = Cut(DATA, after=0, times=0, statuses=[503] * times)
        imports.start(app.service, ALICE, image_id, ask(WEB_DOWNLOAD, uri=f"{web.url}/x"))
        work_off(app)
        assert (show(app, image_id).status, cut.asked) == (ends, 5)
    assert_failed(app, image_id, "answered 503")
    gone = queued(app)
    imports.start(app.service, ALICE, gone, ask(WEB_DOWNLOAD, uri=f"{web.url}/nothing"))
    web.seen.clear()
    work_off(app)
    assert_failed(app, gone, "answered 404")
    assert len(web.seen) == 1


def test_each_next_attempt_comes_later(app: App, web: WebServer) -> None:
    image_id = queued(app)
    web.files["/x"] = Cut(DATA, after=0, times=0, statuses=[503] * 9)
    imports.start(app.service, ALICE, image_id, ask(WEB_DOWNLOAD, uri=f"{web.url}/x"))
    pauses = []
    for _ in range(4):
        work_off(app)
        (state,) = app.db.snapshot(lambda tx: jobs.states(tx, 9))
        pauses.append(round(state.due))
        assert (state.state, show(app, image_id).status) == ("pending", "importing")
        assert "503" in (state.error or "")
        hurry(app)
    assert [abs(pause - 2**number) <= 1 for number, pause in enumerate(pauses, 1)] == [True] * 4, pauses
    work_off(app)
    assert_failed(app, image_id, "503")


def test_data_that_is_not_what_the_record_of_an_active_image_says_is_not_copied(app: App) -> None:
    """Nor what only its MD5 tells of, as with images of old releases; although new ones get none."""
    hashed, old = begin(app, COPY_IMAGE), begin(app, COPY_IMAGE)
    app.conf.set_override("md5_checksum", False)
    with app.db.write_once() as tx:
        which = sa.update(tables.images).where(tables.images.c.id == old)
        tx.execute(which.values(os_hash_algo=None, os_hash_value=None))
    for image_id in (hashed, old):
        (place,) = show(app, image_id).locations
        Path(place.url.removeprefix("file://")).write_bytes(DATA[:-1] + b"?")
    work_off(app)
    for image_id, words in ((hashed, "has hash"), (old, "has checksum")):
        assert words in task_of(app, image_id).message
        assert lists(show(app, image_id)) == (None, "", "two,three")
    assert files(app) == {"one": sorted([hashed, old])}


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_of_two_imports_of_an_image_the_second_is_refused_while_the_first_runs(
    tmp_path: Path, database_url: str, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    with service(tmp_path, database_url) as app:
        hang = Hang("put")
        plant(monkeypatch, app, "three", hang)
        image_id = begin(app, method, web, stores=["three"])
        again = ask(method, uri=f"{web.url}/x" if method == WEB_DOWNLOAD else None, stores=["two"])
        with pytest.raises(errors.Conflict):
            imports.start(app.service, ALICE, image_id, again)
        with working(app.service):
            waits(hang.reached.is_set)
            with pytest.raises(errors.Conflict):
                imports.start(app.service, ALICE, image_id, again)
            hang.free.set()
            waits(lambda: not jobs_of(app))
            first = ["one", "three"] if method == COPY_IMAGE else ["three"]
            assert_active(app, image_id, first)
            imports.start(app.service, ALICE, image_id, ask(COPY_IMAGE, stores=["two"]))
            waits(lambda: not jobs_of(app))
        assert_active(app, image_id, [*first, "two"])


def test_an_import_that_has_waited_for_hours_still_has_its_image(app: App) -> None:
    image_id = begin(app, COPY_IMAGE, stores=["two"])
    with app.db.write_once() as tx:
        tx.execute(sa.update(tables.tasks).values(updated_at=app.service.now() - timedelta(hours=5)))
    with pytest.raises(errors.Conflict):
        imports.start(app.service, ALICE, image_id, ask(COPY_IMAGE, stores=["three"]))
    work_off(app)
    assert_active(app, image_id, ["one", "two"])


@pytest.mark.parametrize("status", ["pending", "processing"])
def test_an_import_that_waits_shows_signs_of_life(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """A Glance on the same database takes the image from a task that shows none for an hour."""
    monkeypatch.setattr(worker, "_SIGN_OF_LIFE_SECONDS", 0.1)
    with service(tmp_path, database_url) as app:
        image_id = begin(app, COPY_IMAGE, stores=["two"])
        holder = show(app, image_id).properties[imports.LOCK]

        def age(minutes: int, status: str = status) -> None:
            """The job waits, and the last sign of life of its task is so old."""
            last = app.service.now() - timedelta(minutes=minutes)
            with app.db.write_once() as tx:
                tx.execute(sa.update(tables.jobs).values(due_at=app.service.now() + timedelta(hours=1)))
                tx.execute(sa.update(tables.tasks).values(updated_at=last, status=status))

        def silence() -> timedelta:
            task = app.db.snapshot(lambda tx: db_tasks.get(tx, SERVICE, holder, app.service.now()))
            assert task is not None
            return app.service.now() - task.updated_at

        age(6)
        with working(app.service):
            waits(lambda: silence() < timedelta(minutes=5))
            age(50)
            waits(lambda: silence() < timedelta(minutes=5))
        age(4)
        imports.keep_alive(app.service)
        assert silence() > timedelta(minutes=3), "nothing is written without need"
        age(50, "success")
        imports.keep_alive(app.service)
        assert silence() > timedelta(minutes=49), "the task has ended, and the job only tidies up"


def test_of_many_who_import_an_image_at_once_one_may(tmp_path: Path, database_url: str) -> None:
    with service(tmp_path, database_url) as app:
        image_id = queued(app)
        stage(app, image_id)
        barrier = threading.Barrier(4)

        def start() -> None:
            barrier.wait(20)
            imports.start(app.service, ALICE, image_id, ask(GLANCE_DIRECT))

        with ThreadPoolExecutor(4) as threads:
            ends = [one.exception() for one in [threads.submit(start) for _ in range(4)]]
        assert sorted(type(one).__name__ for one in ends) == ["Conflict"] * 3 + ["NoneType"]
        work_off(app)
        assert_active(app, image_id)


def test_an_image_that_is_active_can_be_copied_although_the_import_has_yet_to_tidy(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients go on as soon as they see it active."""
    image_id = begin(app, GLANCE_DIRECT, stores=["one"])
    staging = app.service.stores.staging
    with monkeypatch.context() as broken:
        broken.setattr(staging, "clean", raising(errors.StoreUnavailable("The disk is away.", staging.name)))
        work_off(app)
        assert show(app, image_id).status == "active"
        assert lists(show(app, image_id)) == (None, "", "")
        with pytest.raises(errors.Conflict, match="No import"):
            imports.cancel(app.service, ALICE, image_id)
        imports.start(app.service, ALICE, image_id, ask(COPY_IMAGE, stores=["two"]))
        work_off(app)
        assert len(show(app, image_id).locations) == 2
        assert len(jobs_of(app)) == 1
    hurry(app)
    work_off(app)
    assert_active(app, image_id, ["one", "two"])


def raising(exc: Exception) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise exc

    return call


@pytest.mark.parametrize(
    ("status", "minutes", "lives"),
    [
        ("pending", 119, True), ("pending", 121, False), ("processing", 59, True), ("processing", 61, False),
        ("success", 59, True), ("success", 61, False), ("failure", 59, True), ("failure", 61, False), (None, 0, False),
    ],
)  # fmt: skip
def test_the_lock_of_a_glance_is_honoured_while_its_task_lives(
    app: App, status: str | None, minutes: int, lives: bool
) -> None:
    image_id, now = make_active(app, content=DATA), app.service.now()

    def lock(tx: Tx) -> str:
        made = tasks.begin(app.service, tx, ALICE, "api_image_import", image_id, {})
        db_images.put_properties(tx, image_id, {imports.LOCK: made.id}, now=now)
        values = {"status": status, "updated_at": now - timedelta(minutes=minutes)}
        which = tables.tasks.c.id == made.id
        tx.execute(sa.update(tables.tasks).where(which).values(values if status else {"deleted": True}))
        return made.id

    holder = app.db.write(lock)
    if lives:
        with pytest.raises(errors.Conflict, match="Another import"):
            imports.start(app.service, ALICE, image_id, ask(COPY_IMAGE))
        assert jobs_of(app) == []
        return
    imports.start(app.service, ALICE, image_id, ask(COPY_IMAGE))
    found = app.db.snapshot(lambda tx: db_tasks.get(tx, SERVICE, holder, now))
    if found:
        assert found.status == ("success" if status == "success" else "failure")
    work_off(app)
    assert_active(app, image_id)


@pytest.mark.parametrize("late", [False, True], ids=["before it runs", "while it runs"])
def test_an_import_whose_image_a_glance_took_over_leaves_it_alone(
    app: App, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    hang = Hang("commit")
    plant(monkeypatch, app, "two", hang)
    image_id = begin(app, COPY_IMAGE, stores=["two"])

    def take(tx: Tx) -> None:
        theirs = {imports.LOCK: "another", imports.IMPORTING: "three"}
        db_images.put_properties(tx, image_id, theirs, now=app.service.now())

    if not late:
        hang.reached.set()
        app.db.write(take)
    with working(app.service):
        if late:
            waits(hang.reached.is_set)
            app.db.write(take)
            hang.free.set()
        waits(lambda: not jobs_of(app))
    assert lists(show(app, image_id)) == ("another", "three", None)
    assert "took the image over" in task_of(app, image_id).message
    assert files(app) == {"one": [image_id]}


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (ask(WEB_DOWNLOAD), errors.Invalid, "needs a uri"),
        (ask(WEB_DOWNLOAD, uri="http://127.0.0.1/x"), errors.UrlRefused, "address"),
        (ask(WEB_DOWNLOAD, uri="http://127.0.0.3/x", stores=["four"]), errors.Conflict, "four"),
        (ask(WEB_DOWNLOAD, uri="http://127.0.0.3/x", stores=[]), errors.Invalid, "empty"),
        (ask("glance-fetch"), errors.Invalid, "not enabled"),
        (ask(GLANCE_DIRECT), errors.Conflict, "queued"),
        (ask(COPY_IMAGE), errors.Conflict, "queued"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(
    app: App, request_: imports.Request, error: type[Exception], words: str
) -> None:
    image_id = queued(app)
    before = show(app, image_id)
    with pytest.raises(error, match=words):
        imports.start(app.service, ALICE, image_id, request_)
    assert (show(app, image_id), jobs_of(app), tasks.of_image(app.service, ALICE, image_id)) == (before, [], [])


def test_an_import_from_a_region_that_the_catalog_lacks_fails_with_this_reason(tmp_path: Path) -> None:
    """It is accepted, as clients expect."""
    with service(tmp_path, more="enabled_import_methods = glance-download") as app:
        image_id = queued(app)
        remote = imports.Remote(None, image_id, "the token")
        request = replace(ask(imports.GLANCE_DOWNLOAD), remote=remote)
        imports.start(app.service, ALICE, image_id, request)
        assert show(app, image_id).status == "importing"
        work_off(app)
        assert_failed(app, image_id, "catalog has no such endpoint")
        assert app.service.tokens == {}


def test_nobody_imports_into_the_image_of_another_project(app: App) -> None:
    image_id = queued(app)
    for call in (
        lambda: imports.stage(app.service, BOB, image_id, Pieces([b"x"]), size=1),
        lambda: imports.start(app.service, BOB, image_id, ask(GLANCE_DIRECT)),
        lambda: imports.cancel(app.service, BOB, image_id),
    ):
        with pytest.raises(errors.NotFound):
            call()


# --- what users see --------------------------------------------------------------------------------------


def test_the_message_of_a_task_tells_how_far_it_is_and_never_goes_back(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when another attempt begins anew."""
    at_once(monkeypatch)
    monkeypatch.setattr(work, "PROGRESS_SECONDS", 0.2)
    image_id, content = queued(app), bytes(6 * MIB)
    web.rate = 2 * MIB
    web.files["/x"] = content
    plant(monkeypatch, app, "one", Raise("commit", errors.StoreError("once", "one"), times=1))
    imports.start(app.service, ALICE, image_id, ask(WEB_DOWNLOAD, uri=f"{web.url}/x", stores=["one"]))
    said: list[str] = []
    counts: list[int] = []
    runner = Runner(app.service, 1)
    while jobs_of(app):
        runner.run_due_jobs()
        said.append(task_of(app, image_id).message)
        counts += [one.progress["bytes"] for one in app.db.snapshot(lambda tx: jobs.states(tx, 9)) if one.progress]
    assert_active(app, image_id, ["one"], content)
    assert len(web.seen) == 2
    received = [one for one in said if one.startswith("Receiving: ")]
    assert all(re.fullmatch(r"Receiving: \d+ of 6 MiB(, \d+\.\d MiB a second)?", one) for one in received)
    assert any("a second" in one for one in received)
    assert counts == sorted(counts)
    assert len(set(counts)) > 1


# --- quotas ----------------------------------------------------------------------------------------------


def used(app: App, svc: Service) -> dict[str, int]:
    names = ("stored", "reserved", "staged", "uploading")
    return app.db.snapshot(lambda tx: usage.usage(tx, "red", *names))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("method", [GLANCE_DIRECT, WEB_DOWNLOAD])
def test_every_copy_counts_before_it_is_written(
    app: App, web: WebServer, method: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "FIRST_STEP", 64 << 10)
    written: list[str] = []
    for name in STORES:
        plant(monkeypatch, app, name, written.append)
    for room, fits in ((3 * len(DATA), True), (3 * len(DATA) - 1, False)):
        svc = limited(app, size=room)
        image_id = queued(app)
        if method == GLANCE_DIRECT:
            stage(app, image_id, svc=svc, known=known)
            assert used(app, svc)["reserved"] >= len(DATA)
        head = b"Content-Length: %d" % len(DATA) if known else b"Transfer-Encoding: chunked"
        body = DATA if known else b"%x\r\n%b\r\n0\r\n\r\n" % (len(DATA), DATA)
        web.files["/x"] = web.raw(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (head, body))
        asked = ask(method, uri=f"{web.url}/x" if method == WEB_DOWNLOAD else None)
        written.clear()
        if method == GLANCE_DIRECT and not fits:
            with pytest.raises(errors.OverLimit):
                imports.start(svc, ALICE, image_id, asked)
            continue
        imports.start(svc, ALICE, image_id, asked)
        work_off(app, svc)
        if fits:
            assert_active(app, image_id)
            assert used(app, svc) == {"stored": 3 * len(DATA), "reserved": 0, "staged": 0, "uploading": 0}
            lifecycle.delete(app.service, ALICE, image_id)
        else:
            assert_failed(app, image_id, f"may store {room} bytes")
            assert "commit" not in written
            assert not known or not written
            assert used(app, svc) == {"stored": 0, "reserved": 0, "staged": 0, "uploading": 0}


def test_a_copy_of_an_active_image_counts(app: App) -> None:
    image_id = make_active(app, content=DATA)
    for room, fits in ((3 * len(DATA) - 1, False), (3 * len(DATA), True)):
        svc = limited(app, size=room)
        if fits:
            imports.start(svc, ALICE, image_id, ask(COPY_IMAGE))
            assert used(app, svc)["reserved"] == 2 * len(DATA)
            work_off(app, svc)
            assert_active(app, image_id)
        else:
            with pytest.raises(errors.OverLimit):
                imports.start(svc, ALICE, image_id, ask(COPY_IMAGE))
            assert (lists(show(app, image_id)), jobs_of(app)) == ((None, None, None), [])


def test_so_many_images_may_be_uploading_and_importing_as_the_limit_says(app: App, web: WebServer) -> None:
    svc = limited(app, uploading=1)
    staged, queued_, active = queued(app), queued(app), make_active(app, content=DATA)
    stage(app, staged, svc=svc)
    fetch = ask(WEB_DOWNLOAD, uri=f"{web.url}/x")
    for image_id, asked in ((queued_, fetch), (active, ask(COPY_IMAGE))):
        with pytest.raises(errors.OverLimit, match="may have 1 images that are uploading; it has 1"):
            imports.start(svc, ALICE, image_id, asked)
    with pytest.raises(errors.OverLimit):
        stage(app, queued_, svc=svc)
    imports.start(svc, ALICE, staged, ask(GLANCE_DIRECT))
    work_off(app, svc)
    imports.start(svc, ALICE, active, ask(COPY_IMAGE))
    with pytest.raises(errors.OverLimit):
        imports.start(svc, ALICE, queued_, fetch)
    work_off(app, svc)
    assert used(app, svc)["uploading"] == 0


@pytest.mark.parametrize("known", [True, False])
def test_no_more_is_staged_than_the_limit_says(app: App, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "FIRST_STEP", 64 << 10)
    svc = limited(app, staged=2 * len(DATA) + 5)
    first, second, third = queued(app), queued(app), queued(app)
    stage(app, first, svc=svc, known=known)
    stage(app, second, svc=svc, known=known)
    assert used(app, svc)["staged"] == 2 * len(DATA)
    with pytest.raises(errors.OverLimit, match="may stage" if known else "larger than the 5 bytes"):
        stage(app, third, DATA[:6], svc=svc, known=known)
    assert (show(app, third).status, used(app, svc)["staged"]) == ("queued", 2 * len(DATA))
    imports.start(svc, ALICE, first, ask(GLANCE_DIRECT))
    with pytest.raises(errors.OverLimit):  # it is staged until it is imported
        stage(app, third, DATA[:6], svc=svc, known=known)
    work_off(app, svc)
    stage(app, third, svc=svc, known=known)


@pytest.mark.parametrize("limit", ["size", "staged"])
@pytest.mark.parametrize("known", [True, False])
def test_uploads_to_staging_that_arrive_together_never_exceed_a_limit(
    app: App, known: bool, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "FIRST_STEP", 64 << 10)
    svc = limited(app, **{limit: 5 * MIB})
    ids = [queued(app) for _ in range(4)]
    barrier = threading.Barrier(4)

    def pieces() -> Iterator[bytes]:
        for number in range(8):
            if number == 1:
                barrier.wait(30)  # all have been let in that will be
            yield bytes(MIB // 4)

    def put(image_id: str) -> None:
        try:
            imports.stage(svc, ALICE, image_id, Pieces(pieces()), size=2 * MIB if known else None)
        except errors.OverLimit:
            barrier.abort() if not known else barrier.wait(30)
            raise

    with ThreadPoolExecutor(4) as threads:
        ends = [one.exception() for one in [threads.submit(put, one) for one in ids]]
    assert sum(one is None for one in ends) <= 2
    assert used(app, svc)["staged"] <= 5 * MIB
    if known:
        assert sum(one is None for one in ends) == 2


def test_imports_at_once_never_exceed_a_quota(
    tmp_path: Path, database_url: str, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five that would each fit alone, two do together."""
    monkeypatch.setattr(quota, "FIRST_STEP", 64 << 10)
    most = 7 * len(DATA)
    with service(tmp_path, database_url, more=f"user_storage_quota = {most}") as app:
        ids = [begin(app, WEB_DOWNLOAD, web) for _ in range(5)]
        over, uses = threading.Event(), [0]

        def watch() -> None:
            while not over.wait(0.01):
                uses.append(sum(used(app, app.service)[name] for name in ("stored", "reserved")))

        watcher = threading.Thread(target=watch)
        watcher.start()
        with working(app.service):
            waits(lambda: not jobs_of(app))
        over.set()
        watcher.join()
        assert sorted(show(app, one).status for one in ids) == ["active"] * 2 + ["queued"] * 3
        assert used(app, app.service)["stored"] == 6 * len(DATA)
        assert max(uses) <= most


def test_an_image_gets_no_more_copies_than_its_quota(tmp_path: Path, web: WebServer) -> None:
    with service(tmp_path, more="image_location_quota = 2") as app:
        for method in METHODS:
            image_id = begin(app, method, web, stores=["two"])
            work_off(app)
            assert show(app, image_id).status == "active"
        with pytest.raises(errors.OverLimit, match="limit of 2 locations"):
            begin(app, WEB_DOWNLOAD, web)
        with pytest.raises(errors.OverLimit, match="limit of 2 locations"):
            begin(app, COPY_IMAGE)
        assert jobs_of(app) == []
