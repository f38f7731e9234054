"""`make beside`: imports by Calotype and by a real Glance 33 that have one database and the same stores.

pytest finds these tests only if the file is named, because Glance takes minutes to install. What Glance writes into rows is
also in `tests/images/test_imports.py`, where all tests find it.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from bench import services
from bench.glance import Glance, install

from tests.keystone import Keystone, Memcached, TokenClient
from tests.support import Service, until
from tests.webserver import WebServer, serving

pytestmark = pytest.mark.needs("mariadbd", "mariadb-install-db")

PEER = Path(os.environ.get("CALOTYPE_PEER") or Path(__file__).parents[2] / ".peer")
STORES = ("fast", "cheap")
LOCK = "os_glance_import_task"
DATA = bytes(range(256)) * 4096  # 1 MiB
#: Takes either service long enough that it can be stopped while it copies them.
MUCH = 128
_CONF = """\
[DEFAULT]
enabled_backends = fast:file, cheap:file
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {stores}/fast
[cheap]
filesystem_store_datadir = {stores}/cheap
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.3
"""
_GLANCE = """\
[import_filtering_opts]
allowed_hosts = [127.0.0.3]
allowed_ports = []
"""


@dataclass
class Side:
    """One of the two services: its clients, and how to stop it where it is and to let it go on."""

    name: str
    user: TokenClient
    admin: TokenClient
    pid: Callable[[], int]

    def signal(self, number: int) -> None:
        os.killpg(self.pid(), number)

    def importing(self, image_id: str, method: str, **more: Any) -> int:
        """The status of the answer to an import; copies are for administrators, into the second store."""
        asked = {"method": {"name": method, **more}} | ({"stores": ["cheap"]} if method == "copy-image" else {})
        client = self.admin if method == "copy-image" else self.user
        return int(client.request("POST", f"/v2/images/{image_id}/import", json=asked).status_code)

    def image(self, image_id: str) -> dict[str, Any]:
        return self.admin.show(image_id)

    def tasks(self, image_id: str) -> list[dict[str, Any]]:
        answer = self.user.get(f"/v2/images/{image_id}/tasks")
        assert answer.status_code == 200, (self.name, answer.text)
        return list(answer.json()["tasks"])


@dataclass
class Pair:
    """Both, and their database."""

    glance: Side
    calotype: Side
    database: sa.Engine
    service: Service
    glance_log: Callable[[], str]

    @property
    def both(self) -> tuple[Side, Side]:
        return self.glance, self.calotype

    def rows(self, statement: str, **values: Any) -> list[Any]:
        with self.database.begin() as tx:
            found = tx.execute(sa.text(statement), values)
            return list(found) if found.returns_rows else []

    def holder(self, image_id: str) -> str | None:
        """The task that has the lock of an image, as the database has it."""
        statement = "SELECT value FROM image_properties WHERE image_id = :image AND name = :name AND NOT deleted"
        found = self.rows(statement, image=image_id, name=LOCK)
        return str(found[0].value) if found else None

    def task(self, task_id: str) -> Any:
        (found,) = self.rows("SELECT * FROM tasks WHERE id = :id AND NOT deleted", id=task_id)
        return found

    def silent_for(self, task_id: str, minutes: int) -> None:
        """The last sign of life of a task is so old now."""
        last = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=minutes)
        self.rows("UPDATE tasks SET updated_at = :last WHERE id = :id", last=last, id=task_id)

    def other(self, side: Side) -> Side:
        return self.glance if side is self.calotype else self.calotype


@pytest.fixture(scope="module")
def pair(keystone: Keystone, memcached: Memcached, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("beside")
    identity = keystone.conf(memcached)
    url = services.fresh("mariadb", root, 128)
    settings = "enabled_import_methods = [glance-direct,web-download,copy-image]"
    glance = Glance(install(PEER), root / "glance", url, STORES, authtoken=identity + _GLANCE, settings=settings)
    glance.prepare()
    services.sync(url)
    conf = _CONF.format(stores=glance.root)
    calotype = Service(root / "calotype", conf + identity, database=url, users=False)

    def side(name: str, url: str, process: Callable[[], Any]) -> Side:
        clients = (TokenClient(url, keystone.token(user)) for user in ("alice", "admin"))
        return Side(name, *clients, lambda: int(process().pid))

    database = sa.create_engine(url)
    try:
        glance.start()
        calotype.start()
        yield Pair(
            side("Glance", f"http://127.0.0.1:{glance.port}", lambda: glance.process),
            side("Calotype", calotype.url, lambda: calotype.process),
            database,
            calotype,
            lambda: glance.log,
        )
    finally:
        print(glance.log[-20000:], file=sys.stderr)
        database.dispose()
        glance.stop()
        if calotype.process:
            calotype.stop()


@dataclass
class Slow:
    """A file of which the second half is sent when it is told to."""

    reached: Event = field(default_factory=Event)
    free: Event = field(default_factory=Event)

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        half = len(DATA) // 2
        handler.wfile.write(DATA[:half])
        self.reached.set()
        assert self.free.wait(120)
        handler.wfile.write(DATA[half:])


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as server:
        yield server


@pytest.fixture(params=["glance", "calotype"])
def one(request: pytest.FixtureRequest, pair: Pair) -> Side:
    """The service that begins."""
    return getattr(pair, request.param)  # type: ignore[no-any-return]


def assert_same(pair: Pair, image_id: str, data: bytes, stores: set[str]) -> None:
    """Both show the same active image, and serve its data."""
    for side in pair.both:
        assert_has(side, image_id, data, stores)
        assert LOCK not in side.image(image_id)
    assert pair.holder(image_id) is None


def assert_has(side: Side, image_id: str, data: bytes, stores: set[str]) -> None:
    image = side.image(image_id)
    found = (image["status"], image["size"], set(image["stores"].split(",")))
    assert found == ("active", len(data), stores), side.name
    assert side.admin.file(image_id).content == data


def test_a_running_import_is_seen_and_respected_by_the_other(pair: Pair, one: Side, web: WebServer) -> None:
    """Its lock is the id of a task that both show."""
    other = pair.other(one)
    web.files["/slow"] = slow = Slow()
    image_id = one.user.queued()
    assert one.importing(image_id, "web-download", uri=f"{web.url}/slow") == 202
    assert slow.reached.wait(60)
    holder = pair.holder(image_id)
    assert holder is not None
    row = pair.task(holder)
    assert (row.type, row.image_id) == ("api_image_import", image_id)
    for side in pair.both:
        assert side.image(image_id)["status"] == "importing"
        assert side.image(image_id)[LOCK] == holder
        assert [task["id"] for task in side.tasks(image_id)] == [holder]
        shown = side.admin.get(f"/v2/tasks/{holder}")
        assert (shown.status_code, shown.json()["type"], shown.json()["status"]) == (200, row.type, "processing")
        assert shown.json()["input"]["import_req"]["method"]["name"] == "web-download"
        listed = side.admin.get("/v2/tasks?limit=500").json()["tasks"]
        assert holder in [task["id"] for task in listed]
    for side in (other, one):
        assert side.importing(image_id, "web-download", uri=f"{web.url}/slow") == 409, side.name
    slow.free.set()
    until(lambda: pair.holder(image_id) is None)
    assert_same(pair, image_id, DATA, {"fast"})
    for side in pair.both:
        (task,) = side.tasks(image_id)
        assert (task["status"], task["result"]) == ("success", {"image_id": image_id}), side.name


def test_an_import_that_failed_is_shown_by_the_other(pair: Pair, one: Side, web: WebServer) -> None:
    image_id = one.user.queued()
    assert one.importing(image_id, "web-download", uri=f"{web.url}/nothing") == 202
    until(lambda: pair.holder(image_id) is None)
    for side in pair.both:
        (task,) = side.tasks(image_id)
        assert (task["status"], side.image(image_id)["status"]) == ("failure", "queued"), side.name
        assert side.image(image_id)["os_glance_failed_import"] == "fast"
    web.files["/there"] = DATA
    assert pair.other(one).importing(image_id, "web-download", uri=f"{web.url}/there") == 202
    until(lambda: pair.holder(image_id) is None)
    assert_same(pair, image_id, DATA, {"fast"})


def stopped_while_copying(pair: Pair, one: Side) -> tuple[str, str]:
    """An image that one service was copying when it was stopped, and the task of the copy."""
    for _ in range(5):
        image_id = one.user.active(DATA * MUCH)
        assert one.importing(image_id, "copy-image") == 202
        holder = pair.holder(image_id) or ""
        until(lambda: pair.task(holder).status != "pending")  # noqa: B023
        one.signal(signal.SIGSTOP)
        if pair.task(holder).status == "processing":
            return image_id, holder
        one.signal(signal.SIGCONT)
    raise AssertionError(f"{one.name} copies too fast")


def test_the_lock_of_a_silent_service_is_honoured_for_an_hour_and_then_broken(pair: Pair, one: Side) -> None:
    """Who was silent, and goes on, leaves the image to the other."""
    other = pair.other(one)
    image_id, holder = stopped_while_copying(pair, one)
    try:
        for minutes in (0, 59):
            pair.silent_for(holder, minutes)
            assert other.importing(image_id, "copy-image") == 409
        assert pair.holder(image_id) == holder
        pair.silent_for(holder, 61)
        assert other.importing(image_id, "copy-image") == 202
        until(lambda: pair.holder(image_id) is None)
        assert pair.task(holder).status == "failure"
        assert_has(other, image_id, DATA * MUCH, {"fast", "cheap"})
    finally:
        one.signal(signal.SIGCONT)
    until(lambda: requests.get(f"{one.user.url}/healthcheck", timeout=60).ok)
    if one is pair.calotype:  # its job notices that the lock is lost, and ends
        until(lambda: not pair.rows("SELECT id FROM calotype_jobs WHERE image_id = :id", id=image_id))
    else:
        until(lambda: f"import task {holder} attempted to take action on image, but other task" in pair.glance_log())
    assert_same(pair, image_id, DATA * MUCH, {"fast", "cheap"})
    assert pair.task(holder).status == "failure"


def test_what_a_glance_is_at_is_left_alone(pair: Pair, web: WebServer) -> None:
    """Also by a Calotype that starts, and by one that is asked for the same."""
    web.files["/slow"] = slow = Slow()
    importing, staged = pair.glance.user.queued(), pair.glance.user.queued()
    octets = {"Content-Type": "application/octet-stream"}
    assert pair.glance.user.request("PUT", f"/v2/images/{staged}/stage", data=DATA, headers=octets).status_code == 204
    assert pair.glance.importing(importing, "web-download", uri=f"{web.url}/slow") == 202
    assert slow.reached.wait(60)
    columns = "id, status, size, updated_at, deleted"

    def rows() -> list[Any]:
        found = pair.rows(f"SELECT {columns} FROM images WHERE id IN (:a, :b) ORDER BY id", a=importing, b=staged)
        return [*found, pair.holder(importing)]

    before = rows()
    pair.service.stop()
    pair.service.start()
    # By then the runner has swept: it does so first, and hands the lock for sweeping back only when it ends.
    until(lambda: pair.rows("SELECT 1 FROM calotype_locks WHERE name = 'sweep'"))
    mine = pair.calotype.user.queued()
    web.files["/there"] = DATA
    assert pair.calotype.importing(mine, "web-download", uri=f"{web.url}/there") == 202
    until(lambda: pair.calotype.image(mine)["status"] == "active")
    assert pair.calotype.importing(staged, "glance-direct") == 409
    assert rows() == before
    slow.free.set()
    until(lambda: pair.holder(importing) is None)
    assert_same(pair, importing, DATA, {"fast"})
    assert pair.glance.importing(staged, "glance-direct") == 202
    until(lambda: pair.glance.image(staged)["status"] == "active")
    until(lambda: pair.holder(staged) is None)
    assert_same(pair, staged, DATA, {"fast"})


def test_the_longest_silence_of_an_import_that_waits_is_minutes(pair: Pair, web: WebServer) -> None:
    """A task that was silent for almost an hour is alive again as soon as a worker runs."""
    web.files["/slow"] = slow = Slow()
    image_id = pair.calotype.user.queued()
    assert pair.calotype.importing(image_id, "web-download", uri=f"{web.url}/slow") == 202
    assert slow.reached.wait(60)
    holder = pair.holder(image_id) or ""
    pair.service.kill()
    pair.silent_for(holder, 59)
    slow.free.set()
    slow.reached.clear()
    pair.service.start()

    def silence() -> timedelta:
        return datetime.now(UTC).replace(tzinfo=None) - pair.task(holder).updated_at

    until(lambda: silence() < timedelta(minutes=10))
    until(lambda: pair.holder(image_id) is None)
    assert_same(pair, image_id, DATA, {"fast"})
