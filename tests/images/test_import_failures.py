"""Imports whose process dies or sleeps, that are cancelled, whose image is deleted, whose places are away.

Real kills are in `tests/crash`. Here a process dies, or sleeps, exactly where the test wants it: a step hangs, and a
process of another host takes the job over when the lease is out.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.app import App
from calotype.db import jobs, tables
from calotype.db.clock import db_now
from calotype.images import importing, imports, lifecycle, places
from calotype.images.imports import COPY_IMAGE, GLANCE_DIRECT, WEB_DOWNLOAD
from calotype.images.work import Work
from calotype.jobs.worker import Runner
from tests.images.imports import (
    DATA,
    METHODS,
    STORES,
    Hang,
    Raise,
    ask,
    assert_active,
    assert_failed,
    at_once,
    begin,
    files,
    jobs_of,
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
from tests.inprocess import ALICE, Pieces, another_host, hurry, wait_out
from tests.webserver import WebServer, serving

# What these say of records and locks is tested on every database in tests/jobs and tests/images/test_imports.py.
pytestmark = pytest.mark.any_database

MIB = 1 << 20
#: A second, as a busy machine measures it; without a cancel these imports would go on for at least 30.
SOON = 10.0


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with service(tmp_path, database_url) as app:
        yield app


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as web:
        yield web


# --- processes that die or sleep -------------------------------------------------------------------------


@contextlib.contextmanager
def silent(app: App) -> Iterator[None]:
    """No heartbeats of this process for the length of the block."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(app.service.leases, "beat", lambda: None)
        yield


@contextlib.contextmanager
def asleep(app: App, hang: Hang) -> Iterator[Runner]:
    """Let a process work until it hangs, and sleep for longer than its lease. At the end it wakes up, and is late."""
    runner = Runner(app.service, 1)
    runner.run_due_jobs()
    waits(hang.reached.is_set)
    try:
        with silent(app):
            yield runner
    finally:
        hang.free.set()
        waits(lambda: not runner.transfers)


def take_over(app: App, path: Path) -> None:
    """Another host does what there is to do. It has the same staging directory."""
    with another_host(app, path) as (svc, clock):
        svc.leases.staging = app.service.leases.staging

        def work() -> bool:
            wait_out(svc, clock)  # again if a heartbeat was under way as the process fell asleep
            work_off(app, svc)
            return not jobs_of(app)

        waits(work)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", ["begin", "put", "commit", "committed"])
def test_another_process_goes_on_from_where_one_died_and_the_dead_one_can_finish_nothing(
    app: App, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str, step: str
) -> None:
    hang = Hang(step)
    plant(monkeypatch, app, "two", hang)
    image_id = begin(app, method, web)
    with asleep(app, hang):
        take_over(app, tmp_path)
        assert_active(app, image_id)
        assert task_of(app, image_id).status == "success"
    assert_active(app, image_id)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", ["put", "commit", "committed", "fails"])
def test_a_process_that_wakes_up_while_another_one_has_its_job_changes_nothing(
    app: App, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str, step: str
) -> None:
    first, second = Hang("put" if step == "fails" else step), Hang("commit")

    def fault(at: str) -> None:
        sleeps = at == first.step and not first.reached.is_set()
        first(at)
        if sleeps and step == "fails":
            raise errors.StoreError("The store broke meanwhile.", "two")

    plant(monkeypatch, app, "two", fault)
    image_id = begin(app, method, web, stores=["two"])
    with asleep(app, first) as sleeper, another_host(app, tmp_path) as (svc, clock):
        svc.leases.staging = app.service.leases.staging
        plant(monkeypatch, app, "two", second)
        runner = Runner(svc, 1)

        def work() -> bool:
            wait_out(svc, clock)
            return bool(runner.run_due_jobs())

        waits(work)
        waits(second.reached.is_set)
        before = rows(app)
        first.free.set()
        waits(lambda: not sleeper.transfers)
        assert rows(app) == before
        second.free.set()
        waits(lambda: not runner.transfers)
    assert_active(app, image_id, ["one", "two"] if method == COPY_IMAGE else ["two"])


def rows(app: App) -> list[Any]:
    """What the tables say of jobs and their copies, but for the times."""
    table = tables.jobs.c
    with app.db.read_once() as tx:
        found = list(tx.execute(sa.select(table.id, table.state, table.attempt, table.owner, table.step, table.error)))
        return [*found, *tx.execute(sa.select(tables.copies))]


def test_copies_that_are_finished_are_kept_and_the_others_made_from_them(
    app: App, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched again: by now the server would send something else."""
    hang = Hang("commit")
    plant(monkeypatch, app, "three", hang)
    begun: list[str] = []
    for name in ("one", "two"):
        plant(monkeypatch, app, name, lambda step: begun.append(step) if step == "begin" else None)
    image_id = begin(app, WEB_DOWNLOAD, web)
    with asleep(app, hang):
        waits(lambda: states(app) == ["done", "done", "writing"])
        web.files[f"/{image_id}"] = b"something else"
        take_over(app, tmp_path)
        assert_active(app, image_id)
    assert_active(app, image_id)
    assert (len(web.seen), len(begun)) == (1, 2)


def states(app: App) -> list[str]:
    return app.db.snapshot(lambda tx: sorted(tx.execute(sa.select(tables.copies.c.state)).scalars()))


def test_a_process_that_dies_between_the_last_commit_and_the_end_has_done_all_the_work(
    app: App, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, done = Hang("done"), Work.done

    def hangs(work: Work) -> None:
        hang("done")
        done(work)

    monkeypatch.setattr(Work, "done", hangs)
    image_id = begin(app, WEB_DOWNLOAD, web)
    with asleep(app, hang):
        assert show(app, image_id).status == "importing"
        for name in STORES:
            plant(monkeypatch, app, name, Raise("begin", AssertionError("written again")))
        take_over(app, tmp_path)
        assert_active(app, image_id)
    assert_active(app, image_id)
    assert len(web.seen) == 1


def test_a_process_that_sleeps_while_it_tidies_or_gives_up_does_no_harm(
    app: App, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image may have been imported again meanwhile."""
    staging, hang = app.service.stores.staging, Hang("clean")
    clean = staging.clean

    def hangs(*given: Any) -> None:
        hang("clean")
        clean(*given)

    monkeypatch.setattr(staging, "clean", hangs)
    plant(monkeypatch, app, "two", Raise("put", errors.OverLimit("too much"), times=1))
    image_id = begin(app, GLANCE_DIRECT, web)
    with asleep(app, hang):
        take_over(app, tmp_path)
        assert_failed(app, image_id, "too much")
        stage(app, image_id)
        imports.start(app.service, ALICE, image_id, ask(GLANCE_DIRECT))
        take_over(app, tmp_path)
        assert_active(app, image_id)
    assert_active(app, image_id)


def test_staged_data_whose_upload_died_is_removed(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("put", "committed"):
        hang = Hang(step)
        with monkeypatch.context() as planted, ThreadPoolExecutor(1) as threads:
            plant(planted, app, app.service.stores.staging.name, hang)
            image_id = queued(app)
            upload = threads.submit(stage, app, image_id)
            try:
                waits(hang.reached.is_set)
                with silent(app):
                    take_over(app, tmp_path)
                assert (show(app, image_id).status, files(app), jobs_of(app)) == ("queued", {}, [])
            finally:
                hang.free.set()
            assert isinstance(upload.exception(30), errors.Conflict)
        assert (show(app, image_id).status, files(app), jobs_of(app)) == ("queued", {}, [])


@pytest.mark.parametrize("size", [None, len(DATA) + 1, len(DATA)])
def test_an_upload_to_staging_that_breaks_leaves_nothing(app: App, size: int | None) -> None:
    def breaks() -> Iterator[bytes]:
        yield DATA
        if size != len(DATA) + 1:
            raise errors.BodyBroken("the client went away")

    image_id = queued(app)
    with pytest.raises(errors.BodyBroken):
        imports.stage(app.service, ALICE, image_id, Pieces(breaks()), size=size)
    image = show(app, image_id)
    assert (image.status, image.size, files(app), jobs_of(app)) == ("queued", None, {}, [])
    stage(app, image_id)


def test_staged_data_that_nobody_imports_expires(app: App) -> None:
    image_id = queued(app)
    stage(app, image_id)
    work_off(app)
    assert (show(app, image_id).status, len(jobs_of(app))) == ("uploading", 1)
    later(app, -timedelta(hours=24))
    work_off(app)
    image = show(app, image_id)
    assert (image.status, image.size, files(app), jobs_of(app)) == ("queued", None, {}, [])


def later(app: App, age: timedelta) -> None:
    """All jobs are due since then."""
    with app.db.write_once() as tx:
        tx.execute(sa.update(tables.jobs).values(due_at=db_now(age)))


def test_staged_data_that_is_being_removed_cannot_be_imported(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = queued(app)
    stage(app, image_id)
    later(app, timedelta(0))
    with monkeypatch.context() as broken:
        broken.setattr(app.service.stores.staging, "clean", raising(errors.StoreUnavailable("The disk is away.")))
        work_off(app)
        with pytest.raises(errors.Conflict, match="staged data"):
            imports.start(app.service, ALICE, image_id, ask(GLANCE_DIRECT))
    hurry(app)
    work_off(app)
    assert (show(app, image_id).status, files(app), jobs_of(app)) == ("queued", {}, [])


def raising(exc: Exception) -> Callable[..., None]:
    def call(*_: Any, **__: Any) -> None:
        raise exc

    return call


# --- cancel, delete --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_an_import_that_waits_is_cancelled_although_there_is_no_place_for_it(
    app: App, web: WebServer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "_start_transfer", lambda *_: None)
    image_id = begin(app, method, web)
    with working(app.service):
        imports.cancel(app.service, ALICE, image_id)
        begun = time.monotonic()
        waits(lambda: not jobs_of(app))
        assert time.monotonic() - begun < SOON
    assert_cancelled(app, image_id, method)
    with pytest.raises(errors.Conflict):
        imports.cancel(app.service, ALICE, image_id)


def assert_cancelled(app: App, image_id: str, method: str, why: str = "cancelled") -> None:
    if method != COPY_IMAGE:
        assert_failed(app, image_id, why)
        return
    assert_active(app, image_id, ["one"])
    assert lists(show(app, image_id)) == (None, "", "two,three")
    assert (task_of(app, image_id).status, why in task_of(app, image_id).message) == ("failure", True)


@pytest.mark.parametrize("where", ["a server that hangs", "a server that drips", "a store that hangs"])
def test_an_import_that_runs_is_cancelled_at_once(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    over, sent = threading.Event(), threading.Event()

    def hangs(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA))
        sent.set()
        while not over.wait(0.05):
            if where == "a server that drips":
                with contextlib.suppress(OSError):
                    handler.wfile.write(b"x")

    image_id = queued(app)
    web.files["/x"] = DATA if where == "a store that hangs" else hangs
    if where == "a store that hangs":
        hang = Hang("put")
        hang.reached, hang.free = sent, over
        plant(monkeypatch, app, "two", hang)
    imports.start(app.service, ALICE, image_id, ask(WEB_DOWNLOAD, uri=f"{web.url}/x"))
    try:
        with working(app.service):
            waits(sent.is_set)
            begun = time.monotonic()
            imports.cancel(app.service, ALICE, image_id)
            waits(lambda: task_of(app, image_id).status == "failure")
            assert time.monotonic() - begun < SOON
            over.set()
            waits(lambda: not jobs_of(app) and not files(app))
    finally:
        over.set()
    assert_failed(app, image_id, "cancelled on request")


def test_an_import_is_not_cancelled_once_its_image_is_active(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = Hang("tidy")
    clean = importing._clean

    def hangs(*given: Any) -> None:
        hang("tidy")
        clean(*given)

    monkeypatch.setattr(importing, "_clean", hangs)
    image_id = begin(app, GLANCE_DIRECT)
    with working(app.service):
        waits(hang.reached.is_set)
        with pytest.raises(errors.Conflict):
            imports.cancel(app.service, ALICE, image_id)
        hang.free.set()
        waits(lambda: not jobs_of(app))
    assert_active(app, image_id)


def assert_gone(app: App, image_id: str) -> None:
    with pytest.raises(errors.NotFound):
        show(app, image_id)
    assert (files(app), jobs_of(app)) == ({}, [])
    with app.db.read_once() as tx:
        assert list(tx.execute(sa.select(tables.copies))) == []
        which = tables.tasks.c.image_id == image_id
        ended = set(tx.execute(sa.select(tables.tasks.c.status).where(which)).scalars())
        assert ended <= {"failure", "success"}


@pytest.mark.parametrize("known", [True, False])
def test_an_image_that_is_deleted_while_its_data_is_staged_keeps_nothing(app: App, known: bool) -> None:
    image_id = queued(app)

    def pieces() -> Iterator[bytes]:
        yield DATA
        lifecycle.delete(app.service, ALICE, image_id)
        yield DATA

    with pytest.raises(errors.Gone):
        imports.stage(app.service, ALICE, image_id, Pieces(pieces()), size=2 * len(DATA) if known else None)
    work_off(app)
    assert_gone(app, image_id)


def test_an_image_that_is_deleted_after_its_data_was_staged_keeps_nothing(app: App) -> None:
    image_id = queued(app)
    stage(app, image_id)
    lifecycle.delete(app.service, ALICE, image_id)
    work_off(app)
    assert_gone(app, image_id)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", ["waits", "begin", "put", "commit", "committed", "received", "tidies"])
def test_an_image_that_is_deleted_while_it_is_imported_keeps_nothing(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str, step: str
) -> None:
    hang, done, clean = Hang(step), Work.done, importing._clean

    def hangs(given: Callable[..., Any], at: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            hang(at)
            return given(*arguments)

        return call

    monkeypatch.setattr(Work, "done", hangs(done, "received"))
    monkeypatch.setattr(importing, "_clean", hangs(clean, "tidies"))
    plant(monkeypatch, app, "two", hang)
    image_id = begin(app, method, web)
    if step == "waits":
        lifecycle.delete(app.service, ALICE, image_id)
    with working(app.service):
        if step != "waits":
            waits(hang.reached.is_set)
            lifecycle.delete(app.service, ALICE, image_id)
            hang.free.set()
        waits(lambda: not jobs_of(app))
    assert_gone(app, image_id)


def test_a_process_that_dies_with_the_import_of_a_deleted_image_leaves_it_to_another_one(
    app: App, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = Hang("committed")
    plant(monkeypatch, app, "two", hang)
    image_id = begin(app, WEB_DOWNLOAD, web)
    with asleep(app, hang):
        lifecycle.delete(app.service, ALICE, image_id)
        work_off(app)
        assert "two" in files(app), "a living process may still be writing"
        take_over(app, tmp_path)
        assert_gone(app, image_id)
    assert_gone(app, image_id)


# --- places that are away --------------------------------------------------------------------------------


@pytest.mark.parametrize("all_must", [True, False])
def test_a_store_that_is_not_configured_any_more(app: App, tmp_path: Path, all_must: bool) -> None:
    image_id = begin(app, GLANCE_DIRECT, all_must=all_must)
    with configured_without(app, "two"):
        work_off(app)
        if all_must:
            assert_failed(app, image_id, "Store two is not configured any more")
        else:
            assert_active(app, image_id, ["one", "three"])
            assert "two is not configured" in task_of(app, image_id).message


@contextlib.contextmanager
def configured_without(app: App, name: str) -> Iterator[None]:
    store = app.service.stores._stores.pop(name)
    try:
        yield
    finally:
        app.service.stores._stores[name] = store


@pytest.mark.parametrize("method", METHODS)
def test_a_store_that_is_away_when_an_import_fails_does_not_keep_the_image(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """What lies there goes when it is back; and until then nobody waits for it."""
    two, three = (app.service.stores.get(name) for name in ("two", "three"))
    hidden = Path(two.directory).with_name("hidden")  # type: ignore[union-attr]
    image_id = begin(app, method, web)

    def unmounted(step: str) -> None:
        if step == "committed":
            waits(lambda: "done" in states(app))
            Path(two.directory).rename(hidden)  # type: ignore[union-attr]
            raise errors.OverLimit("enough")

    plant(monkeypatch, app, "three", unmounted)
    assert three
    work_off(app)
    image, task = show(app, image_id), task_of(app, image_id)
    failed = "two,three" if method == COPY_IMAGE else "one,two,three"
    assert (image.status, lists(image)) == ("active" if method == COPY_IMAGE else "queued", (None, "", failed))
    assert (task.status, task.message) == ("failure", "enough")
    assert len(jobs_of(app)) == 1
    monkeypatch.undo()
    again = ask(COPY_IMAGE if method == COPY_IMAGE else WEB_DOWNLOAD, uri=web_uri(web, method), stores=["three"])
    imports.start(app.service, ALICE, image_id, again)
    work_off(app)
    assert show(app, image_id).status == "active"
    hidden.rename(Path(two.directory))  # type: ignore[union-attr]
    hurry(app)
    work_off(app)
    assert_active(app, image_id, ["one", "three"] if method == COPY_IMAGE else ["three"])
    assert task_of(app, image_id).status == "success"


def web_uri(web: WebServer, method: str) -> str | None:
    web.files["/again"] = DATA
    return None if method == COPY_IMAGE else f"{web.url}/again"


@pytest.mark.parametrize("ends", ["import", "delete", "expiry"])
def test_a_job_whose_staged_data_is_on_a_host_that_is_given_up_ends(app: App, tmp_path: Path, ends: str) -> None:
    """That host removes what lies there, should it come back (`jobs/chores.py`)."""
    image_id = queued(app)
    stage(app, image_id)
    staging = app.service.stores.staging
    place = staging.identity or ""
    if ends == "import":
        imports.start(app.service, ALICE, image_id, ask(GLANCE_DIRECT))
    elif ends == "delete":
        lifecycle.delete(app.service, ALICE, image_id)
    else:
        later(app, timedelta(0))
    Path(staging.directory).rename(tmp_path / "lost")  # so it is for another host, and for this one after a loss
    staging.identity = None
    places.prepare_staging(app.service)
    work_off(app)
    assert len(jobs_of(app)) == 1, "it may come back"
    app.db.write(lambda tx: jobs.let_run_anywhere(tx, place, "The host that has the staged data is gone."))
    work_off(app)
    assert jobs_of(app) == []
    if ends == "import":
        assert_failed(app, image_id, "The host that has the staged data is gone")
    elif ends == "expiry":
        assert show(app, image_id).status == "queued"


def test_staged_data_that_is_gone_fails_its_import(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once(monkeypatch)
    image_id = begin(app, GLANCE_DIRECT)
    (Path(app.service.stores.staging.directory) / image_id).unlink()
    work_off(app)
    assert_failed(app, image_id, "not in the store")


def test_staged_data_that_was_changed_fails_its_import(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once(monkeypatch)
    image_id = begin(app, GLANCE_DIRECT)
    (Path(app.service.stores.staging.directory) / image_id).write_bytes(DATA[:-1] + b"?")
    work_off(app)
    image, task = show(app, image_id), task_of(app, image_id)
    assert (image.status, task.status, "has hash" in task.message) == ("queued", "failure", True)
