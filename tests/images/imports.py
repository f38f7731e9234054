"""What tests of imports share: a service with three stores, faults in their steps, and a web server that breaks off.

Imports run when the test says so (`work_off`), or in a runner that it has started (`working`).
"""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype.app import App
from calotype.context import Context
from calotype.db import tables
from calotype.images import imports, lifecycle, places, tasks
from calotype.images.imports import COPY_IMAGE, GLANCE_DIRECT, WEB_DOWNLOAD, Request
from calotype.images.lifecycle import NewImage
from calotype.images.locations import Given
from calotype.jobs import kinds
from calotype.jobs.worker import Runner
from calotype.limits import Allowance
from calotype.model import Image, Task
from calotype.service import Service
from calotype.stores.base import Stored, Write
from tests.inprocess import ALICE, Pieces, make_active, parts
from tests.support import names, until
from tests.webserver import WebServer

STORES = ("one", "two", "three")
#: Those that need no other Image service.
METHODS = (GLANCE_DIRECT, WEB_DOWNLOAD, COPY_IMAGE)
CONF = """\
[DEFAULT]
enabled_backends = one:file, two:file, three:file
{more}
[glance_store]
default_backend = one
[one]
filesystem_store_datadir = {path}/one
[two]
filesystem_store_datadir = {path}/two
[three]
filesystem_store_datadir = {path}/three
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.3
"""
#: Of several pieces, however these are cut.
DATA = bytes(range(256)) * 12_000


@contextlib.contextmanager
def service(path: Path, database_url: str = "", *, more: str = "") -> Iterator[App]:
    (path / "policy.yaml").write_text('"copy_image": "role:member"\n')
    with parts(path, database_url or f"sqlite:///{path / 'c.db'}", CONF.replace("{more}", more)) as app:
        places.prepare_staging(app.service)
        yield app


def queued(app: App, disk_format: str = "raw", ctx: Context = ALICE) -> str:
    return lifecycle.create(app.service, ctx, NewImage(disk_format=disk_format, container_format="bare")).id


def show(app: App, image_id: str) -> Image:
    return lifecycle.show(app.service, ALICE, image_id)


def stage(app: App, image_id: str, content: bytes = DATA, *, svc: Service | None = None, known: bool = True) -> None:
    size = len(content) if known else None
    imports.stage(svc or app.service, ALICE, image_id, Pieces([content]), size=size)


def ask(
    method: str,
    *,
    uri: str | None = None,
    given: Given | None = None,
    stores: Sequence[str] | None = None,
    all_must: bool = True,
) -> Request:
    """A request to import into these stores; into all if none are named."""
    named = {"name": method} | ({"uri": uri} if uri else {})
    asked = {"method": named, "all_stores_must_succeed": all_must}
    return Request(
        method, asked, uri=uri, given=given, stores=stores, all_stores=stores is None, all_must_succeed=all_must
    )


def begin(
    app: App,
    method: str,
    web: WebServer | None = None,
    content: bytes = DATA,
    *,
    disk_format: str = "raw",
    svc: Service | None = None,
    **more: Any,
) -> str:
    """The id of an image whose import has been accepted."""
    svc = svc or app.service
    if method == COPY_IMAGE:
        image_id = make_active(app, content=content)
    else:
        image_id = queued(app, disk_format)
    if method == GLANCE_DIRECT:
        stage(app, image_id, content, svc=svc)
    if method == WEB_DOWNLOAD:
        assert web
        web.files.setdefault(f"/{image_id}", content)
        more["uri"] = f"{web.url}/{image_id}"
    imports.start(svc, ALICE, image_id, ask(method, **more))
    return image_id


def work_off(app: App, svc: Service | None = None) -> None:
    """Do all jobs that are due, the long ones to their end."""
    runner = Runner(svc or app.service, 1)
    busy = True
    while busy or runner.transfers:
        busy = bool(runner.transfers)  # then it may have left something
        busy |= runner.run_due_jobs() > 0
        time.sleep(0.005)


@contextlib.contextmanager
def working(svc: Service) -> Iterator[Runner]:
    """A runner that looks for jobs every few milliseconds."""
    runner = Runner(svc, 0.02)
    runner.start()
    try:
        yield runner
    finally:
        runner.stop()


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed attempts are followed by the next one without a pause."""
    for name, kind in kinds.KINDS.items():
        monkeypatch.setitem(kinds.KINDS, name, replace(kind, backoff=lambda job: timedelta(0)))  # type: ignore[arg-type]


def limited(app: App, **limits: int) -> Service:
    """The service with other limits, as Keystone might tell them."""

    class Told:
        def of(self, caller: str | None, owner: str | None) -> Allowance | None:
            return Allowance(owner or "", **limits)

    return replace(app.service, limits=Told())


# --- what is there ---------------------------------------------------------------------------------------


def task_of(app: App, image_id: str) -> Task:
    """The last task of an image."""
    return tasks.of_image(app.service, ALICE, image_id)[-1]


def lists(image: Image) -> tuple[str | None, str | None, str | None]:
    """The properties of an import: the lock, the stores that are importing, those that have failed."""
    lock, importing, failed = (image.properties.get(name) for name in (imports.LOCK, imports.IMPORTING, imports.FAILED))
    return lock, importing, failed


def files(app: App, image_id: str = "") -> dict[str, list[str]]:
    """The names in every store and the staging directory that have any; with an id those with it."""
    found = {}
    for store in (*app.service.stores, app.service.stores.staging):
        directory = Path(store.directory)  # type: ignore[attr-defined]
        there = [name for name in names(directory) if image_id in name] if directory.exists() else []
        if there:
            found[store.name] = there
    return found


def jobs_of(app: App) -> list[Any]:
    return app.db.snapshot(lambda tx: list(tx.execute(sa.select(tables.jobs))))


def assert_active(app: App, image_id: str, stores: Sequence[str] = STORES, content: bytes = DATA) -> None:
    """The image has these bytes in these stores, and nothing else is left of its import."""
    image = show(app, image_id)
    assert (image.status, image.size) == ("active", len(content))
    assert image.os_hash_value == hashlib.new(image.os_hash_algo or "", content).hexdigest()
    assert sorted(place.store or "" for place in image.locations) == sorted(stores)
    for place in image.locations:
        assert Path(place.url.removeprefix("file://")).read_bytes() == content
    assert files(app, image_id) == {store: [image_id] for store in stores}
    assert jobs_of(app) == []


def assert_failed(app: App, image_id: str, reason: str, stores: Sequence[str] = STORES) -> None:
    """The image is queued as it was, its task says why, and nothing is left of its import."""
    image, task = show(app, image_id), task_of(app, image_id)
    assert (image.status, image.size, image.os_hash_value, image.locations) == ("queued", None, None, ())
    assert lists(image) == (None, "", ",".join(stores))
    assert task.status == "failure"
    assert re.search(reason, task.message), task.message
    assert task.expires_at is not None
    assert files(app, image_id) == {}
    assert jobs_of(app) == []


# --- what goes wrong -------------------------------------------------------------------------------------

#: Called in a store's thread before each of its steps (`begin`, `put`, `commit`) and after its commit (`committed`).
Fault = Callable[[str], object]


class _Write:
    def __init__(self, write: Write, fault: Fault) -> None:
        self.window = write.window
        self._write = write
        self._fault = fault

    def put(self, piece: Any) -> None:
        self._fault("put")
        self._write.put(piece)

    def commit(self) -> Stored:
        self._fault("commit")
        stored = self._write.commit()
        self._fault("committed")
        return stored

    def abort(self) -> None:
        self._write.abort()


def plant(monkeypatch: pytest.MonkeyPatch, app: App, store_name: str, fault: Fault) -> None:
    """Have each step of each write into a store pass this fault."""
    store = app.service.stores.get(store_name) or app.service.stores.staging
    begin_ = store.begin

    def begin(*given: Any, **more: Any) -> Write:
        fault("begin")
        return _Write(begin_(*given, **more), fault)  # type: ignore[return-value]

    monkeypatch.setattr(store, "begin", begin)


class Raise:
    """A fault: a step raises, so often; then no more."""

    def __init__(self, step: str, exc: Exception, times: int = 1_000_000) -> None:
        self.step = step
        self.exc = exc
        self.left = times
        self.count = 0  #: how often the step was reached

    def __call__(self, step: str) -> None:
        if step == self.step:
            self.count += 1
            if self.left > 0:
                self.left -= 1
                raise self.exc


class Hang:
    """A fault: a step does not return until the test says so, when it is reached first."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.reached = threading.Event()
        self.free = threading.Event()

    def __call__(self, step: str) -> None:
        if step == self.step and not self.reached.is_set():
            self.reached.set()
            assert self.free.wait(60)


@dataclass
class Cut:
    """A file of a `WebServer` that breaks off after so many bytes, so often, and then goes on where it is asked to."""

    content: bytes
    after: int
    times: int = 1
    etag: str = '"v1"'
    statuses: Sequence[int] = ()  #: what the first requests are answered instead
    asked: int = 0
    bytes_sent: int = 0

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        handler.close_connection = True
        if self.asked <= len(self.statuses):
            handler.send_response(self.statuses[self.asked - 1])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start, end = 0, len(self.content)
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if wanted and handler.headers.get("If-Range") == self.etag:
            start = int(wanted[1])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(end - start))
        handler.send_header("ETag", self.etag)
        handler.end_headers()
        if self.times > 0:
            self.times -= 1
            end = min(end, start + self.after)
        handler.wfile.write(self.content[start:end])
        self.bytes_sent += end - start


def waits(condition: Callable[[], Any], seconds: float = 30) -> None:
    """`until`, for what takes its time on a busy machine."""
    until(condition, seconds)
