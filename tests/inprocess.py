"""Use-cases without HTTP: a service's parts in this process, for what cannot be provoked from outside."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from calotype import config
from calotype.app import App
from calotype.context import Context
from calotype.db import schema, tables
from calotype.images import data, lifecycle
from calotype.images.lifecycle import NewImage

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
    app = App(config.load([str(path / "c.conf")], state_dir=str(path)))
    schema.sync(app.db)
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


def backlog(app: App) -> int:
    """How many jobs there are, in whatever state."""
    with app.db.read() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(tables.jobs)).scalar_one())
