"""Use-cases without HTTP: a service's parts in this process, for what cannot be provoked from outside."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from calotype import config
from calotype.app import App
from calotype.context import Context
from calotype.db import tables
from calotype.db.engine import now
from calotype.db.leases import LEASE, Leases
from calotype.images import data, lifecycle, places
from calotype.images.lifecycle import NewImage
from calotype.service import Service
from tests import databases

ALICE = Context("req-1", "alice", "red", frozenset({"member", "reader"}))
BOB = Context("req-2", "bob", "blue", frozenset({"member", "reader"}))
ADMIN = Context("req-3", "admin", "admin", frozenset({"admin", "manager", "member", "reader"}), is_admin=True)

CONF = """\
[DEFAULT]
enabled_backends = one:file, two:file
[glance_store]
default_backend = one
[one]
filesystem_store_datadir = {path}/one
[two]
filesystem_store_datadir = {path}/two
"""


class Pieces:
    """A `Source` of given pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def ready(self, _size: int) -> int:
        if not self._rest:
            self._rest = next(self._pieces, b"")
        return len(self._rest) or 1

    def readinto(self, view: memoryview) -> int:
        self.ready(len(view))
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@contextmanager
def parts(path: Path, database_url: str, conf: str = CONF, more: str = "") -> Iterator[App]:
    """A configured service with an empty database; `more` are lines of the section [database]."""
    (path / "c.conf").write_text(conf.format(path=path) + f"[database]\nconnection = {database_url}\n{more}")
    databases.synced(database_url)
    app = App(config.load([str(path / "c.conf")], state_dir=str(path)))
    places.recognise(app.service)
    places.prepare_staging(app.service)
    try:
        yield app
    finally:
        app.service.leases.close()
        app.db.close()


def make_active(app: App, ctx: Context = ALICE, content: bytes = b"data", **values: Any) -> str:
    """The id of a new image with data in the default store."""
    new = NewImage(disk_format="raw", container_format="bare", **values)
    image = lifecycle.create(app.service, ctx, new)
    data.upload(app.service, ctx, image.id, Pieces([content]), store_name=None, size=None)
    return image.id


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@contextmanager
def another_host(app: App, path: Path) -> Iterator[tuple[Service, Clock]]:
    """The same service as a process of another host sees it: it has lock files of its own."""
    clock = Clock()
    leases = Leases(app.db, path / "elsewhere", clock)
    try:
        yield replace(app.service, leases=leases), clock
    finally:
        leases.close()


def wait_out(svc: Service, clock: Clock, seconds: float = LEASE.total_seconds()) -> None:
    """Let this process watch others for so long. Who does not beat meanwhile is silent then."""
    svc.leases.beat()
    for _ in range(int(seconds / 5)):
        clock.seconds += 5
        svc.leases.beat()


def hurry(app: App) -> None:
    """Nothing waits any longer for its next try."""
    with app.db.write_once() as tx:
        tx.execute(sa.update(tables.jobs).values(due_at=now()))


def backlog(app: App) -> int:
    """How many jobs there are, in whatever state."""
    with app.db.read_once() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(tables.jobs)).scalar_one())
