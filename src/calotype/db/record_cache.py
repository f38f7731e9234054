"""`RecordCache`: image records that this process has read, each with the stamp that it had then.

A *stamp* is a text that changes whenever the record does: it has the id, `updated_at`, and `calotype_revision`, a
random number that each change draws anew. Each request reads the stamp from the database, which costs a fraction of
reading the record, and uses the cached record only if the stamps are equal. So nobody is shown an old record.

Others who write to the tables draw no revision: a Glance that changes an image twice in a second, or a person with SQL.
So a record is read again after `MAX_AGE` seconds in any case.

What that buys, in CPU-ms of process + MariaDB: a list of 25 costs 1.1 + 1.2, and 4.3 + 3.1 with an empty cache; one of
1,000 8 + 7, and 88 + 44; GET of an image 0.6 + 0.5, and 0.8 + 0.6. `python -m bench.worth "record cache"`
"""

import json
import time
from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa

from calotype.db.compare import identical
from calotype.db.tables import images
from calotype.model import Image

#: Seconds after which a record is read again, even if its stamp is the same.
MAX_AGE: Final = 5.0
#: Bytes of memory that the records may take, roughly: see `_memory_of`.
MAX_BYTES: Final = 24 << 20

#: The stamp of a row of `images`; NULL where there is no row. The id is last, after a character that no time has.
stamp: Final = (
    sa.func.coalesce(sa.cast(images.c.calotype_revision, sa.String(20)), "")
    + "/"
    + sa.func.coalesce(sa.cast(images.c.updated_at, sa.String(40)), "")
    + "="
    + images.c.id
).label("stamp")

_Entry = tuple[str, Image, float, int]


class RecordCache:
    """Up to `max_bytes` of records. Threads share it without a lock: a race costs reading a record twice."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_age: float = MAX_AGE) -> None:
        self._max_bytes, self._max_age = max_bytes, max_age
        # Two generations: a record that is used moves to the recent one; when that is half full, the old goes.
        self._recent: dict[str, _Entry] = {}
        self._old: dict[str, _Entry] = {}
        self._bytes = 0

    def get(self, image_id: str) -> tuple[str, Image] | None:
        """The cached stamp and record of an image."""
        entry = self._entry(image_id, time.monotonic())
        return entry and entry[:2]

    def matching(self, stamps: Iterable[str]) -> dict[str, Image]:
        """The cached records that have these stamps, by stamp."""
        now = time.monotonic()
        found = {}
        for one in stamps:
            entry = self._entry(id_of(one), now)
            if entry is not None and entry[0] == one:
                found[one] = entry[1]
        return found

    def put(self, stamp_: str, record: Image) -> Image:
        """Add a record; returns it with an empty `memo` for what callers derive from it."""
        object.__setattr__(record, "memo", {})
        self._put(record.id, (stamp_, record, time.monotonic(), _memory_of(record)))
        return record

    def clear(self) -> None:
        self._recent, self._old, self._bytes = {}, {}, 0

    def _entry(self, image_id: str, now: float) -> _Entry | None:
        entry = self._recent.get(image_id)
        if entry is None:
            entry = self._old.pop(image_id, None)
            if entry is None:
                return None
            self._put(image_id, entry)
        return entry if now - entry[2] < self._max_age else None

    def _put(self, image_id: str, entry: _Entry) -> None:
        if self._bytes > self._max_bytes // 2:
            self._old, self._recent, self._bytes = self._recent, {}, 0
        self._bytes += entry[3]
        self._recent[image_id] = entry


def _memory_of(record: Image) -> int:
    """The most memory that a record takes, with its `memo`, in bytes."""
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
