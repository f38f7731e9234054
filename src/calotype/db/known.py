"""Records that this process has read before, and reads again only when they changed.

To look whether an image changed costs the database and its driver a fraction of what the record costs. What tells is
its *stamp*: a text of its id, of `images.calotype_revision`, which every change of the record draws anew at random, and
of `updated_at`. So nobody is ever shown an old record for a new one: the stamp is read with each request.

Only one who writes to the tables beside us draws no revision: a Glance in the same second, a person with SQL. So a
record is read again after `AGE` seconds all the same.

What that buys, in CPU-ms of process + MariaDB: a list of 25 costs 1.1 + 1.2, and 4.3 + 3.1 where nothing is known;
one of 1,000 8 + 7, and 88 + 44; GET of an image 0.6 + 0.5, and 0.8 + 0.6. `python -m bench.worth known`
"""

import json
import time
from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa

from calotype.db.compare import identical
from calotype.db.tables import images
from calotype.model import Image

#: Seconds after which a record is not trusted any longer, whatever its stamp says.
AGE: Final = 5.0
#: Bytes of memory that may be used, roughly: see `_weight`.
MOST: Final = 24 << 20

#: The stamp of a row of `images`; NULL where there is no row. The id is last, after a character that no time has.
stamp: Final = (
    sa.func.coalesce(sa.cast(images.c.calotype_revision, sa.String(20)), "")
    + "/"
    + sa.func.coalesce(sa.cast(images.c.updated_at, sa.String(40)), "")
    + "="
    + images.c.id
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
        self._put(record.id, (stamp_, record, time.monotonic(), _weight(record)))
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


def _weight(record: Image) -> int:
    """The memory that a record takes at most, with what is made of it, in bytes."""
    texts = [*record.properties, *record.properties.values(), *record.tags]
    texts += [text for place in record.locations for text in (place.url, json.dumps(dict(place.metadata)))]
    # A character takes up to four bytes, or fewer than its escape in JSON; the JSON comes on top.
    return 4_000 + 100 * len(texts) + 5 * len(json.dumps([record.name, texts]))


def id_of(stamp_: str) -> str:
    """The id in a stamp."""
    return stamp_.partition("=")[2]


def stamp_is(value: sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    """Whether a row of `images` still has this stamp."""
    return identical(stamp.element, value)
