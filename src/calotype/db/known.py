"""Records that this process has read before, and reads again only when they changed.

To look whether an image changed costs the database and its driver a fraction of what the record costs. What tells is
its *stamp*: a text of its id, of `images.calotype_revision`, which every change of the record draws anew at random, and
of `updated_at`. So nobody is ever shown an old record for a new one: the stamp is read with each request.

Only one who writes to the tables beside us draws no revision: a Glance in the same second, a person with SQL. So a
record is read again after `AGE` seconds all the same.
"""

import time
from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa

from calotype.db.tables import images
from calotype.model import Image

#: Seconds after which a record is not trusted any longer, whatever its stamp says.
AGE: Final = 5.0
#: Bytes of memory that may be used, roughly. A record with its JSON takes some `_RECORD` and what its properties have.
MOST: Final = 24 << 20
_RECORD: Final = 5_000

#: The stamp of a row of `images`; NULL where there is no row.
stamp: Final = (
    images.c.id
    + "/"
    + sa.func.coalesce(sa.cast(images.c.calotype_revision, sa.String(20)), "")
    + "/"
    + sa.func.coalesce(sa.cast(images.c.updated_at, sa.String(32)), "")
).label("stamp")

_Entry = tuple[str, Image, float, int]


class Known:
    """Up to `MOST` bytes of records. Shared by threads without a lock: who loses a race reads a record twice."""

    def __init__(self, most: int = MOST, age: float = AGE) -> None:
        self._most, self._age = most, age
        # Two generations: a record that is used moves to the young one; when that is half of all, the old one goes.
        self._young: dict[str, _Entry] = {}
        self._old: dict[str, _Entry] = {}
        self._weight = 0

    def of(self, image_id: str) -> tuple[str, Image] | None:
        """The last stamp and record of an image."""
        entry = self._entry(image_id, time.monotonic())
        return entry and entry[:2]

    def matching(self, stamps: Iterable[str]) -> dict[str, Image]:
        """The records that are known, by their stamps."""
        now = time.monotonic()
        found = {}
        for one in stamps:
            entry = self._entry(id_of(one), now)
            if entry is not None and entry[0] == one:
                found[one] = entry[1]
        return found

    def keep(self, stamp_: str, record: Image) -> Image:
        """Remember a record; the same, with room for what will be made of it."""
        object.__setattr__(record, "memo", {})
        weight = _RECORD + 4 * sum(len(name) + len(value or "") for name, value in record.properties.items())
        self._put(record.id, (stamp_, record, time.monotonic(), weight))
        return record

    def forget(self) -> None:
        self._young, self._old, self._weight = {}, {}, 0

    def _entry(self, image_id: str, now: float) -> _Entry | None:
        entry = self._young.get(image_id)
        if entry is None:
            entry = self._old.pop(image_id, None)
            if entry is None:
                return None
            self._put(image_id, entry)
        return entry if now - entry[2] < self._age else None

    def _put(self, image_id: str, entry: _Entry) -> None:
        if self._weight > self._most // 2:
            self._old, self._young, self._weight = self._young, {}, 0
        self._weight += entry[3]
        self._young[image_id] = entry


def id_of(stamp_: str) -> str:
    """The id in a stamp. An id that Glance let in may hold anything."""
    return stamp_.rsplit("/", 2)[0]


def stamp_is(value: sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    """Whether a row of `images` still has this stamp."""
    return stamp.element == value
