"""Imports into several stores, as each of them is done: what the record shows, what is kept, and what is taken back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.app import App
from calotype.db import usage
from calotype.images import data, imports, lifecycle, stores
from calotype.images.imports import COPY_IMAGE, WEB_DOWNLOAD
from calotype.stores.file import FileStore
from tests.images.imports import (
    DATA,
    METHODS,
    STORES,
    Hang,
    Raise,
    ask,
    assert_active,
    assert_failed,
    begin,
    files,
    jobs_of,
    limited,
    lists,
    plant,
    service,
    show,
    task_of,
    waits,
    working,
)
from tests.inprocess import ADMIN, ALICE
from tests.webserver import WebServer, serving


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with service(tmp_path, database_url) as app:
        yield app


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as web:
        yield web


@contextmanager
def all_but_three(
    app: App,
    method: str,
    web: WebServer,
    monkeypatch: pytest.MonkeyPatch,
    fault: Any = None,
    *,
    free: threading.Event | None = None,
    **more: Any,
) -> Iterator[str]:
    """An image whose copies in all stores but three are done. That one commits at the end of the block, or `free`."""
    hang = Hang("commit")
    hang.free = free or hang.free
    plant(monkeypatch, app, "three", hang)
    if fault is not None:
        plant(monkeypatch, app, "two", fault)
    image_id = begin(app, method, web, **more)
    with working(more.get("svc", app.service)):
        try:
            waits(lambda: lists(show(app, image_id))[1] == "three")
            yield image_id
        finally:
            hang.free.set()
        waits(lambda: not jobs_of(app))


def places(app: App, image_id: str) -> list[str | None]:
    return sorted(place.store or "" for place in show(app, image_id).locations)


@pytest.mark.parametrize("all_must", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_the_record_shows_each_store_as_soon_as_it_is_done(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str, all_must: bool
) -> None:
    """And the image is active with the first one, unless all must succeed."""
    with all_but_three(app, method, web, monkeypatch, all_must=all_must) as image_id:
        image, task = show(app, image_id), task_of(app, image_id)
        is_active = method == COPY_IMAGE or not all_must
        assert image.status == ("active" if is_active else "importing")
        assert (lists(image), task.status) == ((task.id, "three", None), "processing")
        assert places(app, image_id) == ["one", "two"]
        assert (image.size, image.os_hash_algo) == (len(DATA), "sha512")
        with pytest.raises(errors.Conflict):
            imports.start(app.service, ALICE, image_id, ask(method, uri=f"{web.url}/x", stores=["three"]))
        if is_active:
            body = data.open_(app.service, ALICE, data.prepare(app.service, ALICE, image_id))
            assert b"".join(body) == DATA
            body.close()
    assert_active(app, image_id)
    assert lists(show(app, image_id)) == (None, "", "")


@pytest.mark.parametrize("all_must", [True, False])
def test_in_the_end_the_stores_are_in_the_order_of_the_request(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, all_must: bool
) -> None:
    """Whichever is done first: clients compare the list."""
    asked = ["three", "two", "one"]
    with all_but_three(app, WEB_DOWNLOAD, web, monkeypatch, stores=asked, all_must=all_must) as image_id:
        pass
    assert [place.store for place in show(app, image_id).locations] == asked
    assert_active(app, image_id)
    stores.remove_copy(app.service, ADMIN, "three", image_id)
    assert_active(app, image_id, ["one", "two"])


@pytest.mark.parametrize("method", METHODS)
def test_a_store_that_fails_is_shown_at_once(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fault = Raise("put", errors.StoreFull("There is no room in store two.", "two"))
    with all_but_three(app, method, web, monkeypatch, fault, all_must=False) as image_id:
        assert lists(show(app, image_id))[1:] == ("three", "two")
        assert (show(app, image_id).status, places(app, image_id)) == ("active", ["one"])
    assert_active(app, image_id, ["one", "three"])
    assert lists(show(app, image_id)) == (None, "", "two")


@pytest.mark.parametrize("all_must", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_every_copy_counts_once_while_some_are_done(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str, all_must: bool
) -> None:
    svc = limited(app, size=3 * len(DATA))

    def used() -> dict[str, int]:
        return app.db.snapshot(lambda tx: usage.usage(tx, "red", "stored", "reserved"))

    with all_but_three(app, method, web, monkeypatch, svc=svc, all_must=all_must):
        assert used() == {"stored": 2 * len(DATA), "reserved": len(DATA)}
    assert used() == {"stored": 3 * len(DATA), "reserved": 0}


@pytest.mark.parametrize("all_must", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_cancel_takes_back_what_is_done_unless_it_is_kept_already(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str, all_must: bool
) -> None:
    with all_but_three(app, method, web, monkeypatch, all_must=all_must) as image_id:
        imports.cancel(app.service, ALICE, image_id)
        waits(lambda: task_of(app, image_id).status in ("success", "failure"))
    image, task = show(app, image_id), task_of(app, image_id)
    assert "cancelled on request" in task.message
    if not all_must:
        assert (task.status, lists(image)) == ("success", (None, "", "three"))
        assert_active(app, image_id, ["one", "two"])
    elif method == COPY_IMAGE:
        assert (task.status, lists(image)) == ("failure", (None, "", "two,three"))
        assert_active(app, image_id, ["one"])
    else:
        assert_failed(app, image_id, "cancelled on request", STORES)


@pytest.mark.parametrize("all_must", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_is_deleted_while_some_stores_are_done_keeps_nothing(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str, all_must: bool
) -> None:
    with all_but_three(app, method, web, monkeypatch, all_must=all_must) as image_id:
        lifecycle.delete(app.service, ALICE, image_id)
    assert files(app) == {}
    with pytest.raises(errors.NotFound):
        show(app, image_id)


def test_an_image_that_is_not_active_yet_is_never_in_use(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a delete in vain would leave it importing, and nobody would import it."""

    def in_use(*_: Any, **__: Any) -> None:
        raise errors.InUse("a clone depends on it", "one")

    monkeypatch.setattr(FileStore, "delete", in_use)
    with all_but_three(app, WEB_DOWNLOAD, web, monkeypatch) as image_id:
        lifecycle.delete(app.service, ALICE, image_id)
    assert files(app) == {}
    with pytest.raises(errors.NotFound):
        show(app, image_id)


@pytest.mark.parametrize("sooner", [True, False])
@pytest.mark.parametrize(("method", "all_must"), [(COPY_IMAGE, True), (COPY_IMAGE, False), (WEB_DOWNLOAD, False)])
def test_an_image_that_is_in_use_is_whole_after_a_delete_in_vain(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, method: str, all_must: bool, sooner: bool
) -> None:
    """Its import ends before the delete is undone, or after."""
    free, delete = threading.Event(), FileStore.delete

    def in_use(store: FileStore, *given: Any, **more: Any) -> None:
        if store.name != "one":
            return delete(store, *given, **more)
        if sooner:
            free.set()
            waits(lambda: len(jobs_of(app)) == 1)  # that of the delete
        raise errors.InUse("a clone depends on it", "one")

    monkeypatch.setattr(FileStore, "delete", in_use)
    importing = all_but_three(app, method, web, monkeypatch, free=free, all_must=all_must)
    with importing as image_id, pytest.raises(errors.Conflict):
        lifecycle.delete(app.service, ALICE, image_id)
    image = show(app, image_id)
    assert image.status == "active"
    assert lists(image)[:2] == (None, "")
    assert_active(app, image_id, [place.store or "" for place in image.locations])


def test_a_copy_that_somebody_deletes_meanwhile_is_not_taken_back_twice(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with all_but_three(app, COPY_IMAGE, web, monkeypatch) as image_id:
        stores.remove_copy(app.service, ADMIN, "two", image_id)
        imports.cancel(app.service, ALICE, image_id)
        waits(lambda: task_of(app, image_id).status == "failure")
    assert_active(app, image_id, ["one"])
