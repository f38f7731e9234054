"""Queries for comparing records with stores: all images with data, and which records and jobs refer to a copy.

Nothing here changes a row. `images/checking.py` compares, `images/repair.py` repairs.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from calotype.db import documents
from calotype.db.documents import document
from calotype.db.engine import Tx
from calotype.db.tables import image_locations, images, jobs
from calotype.model import Image, Location

#: In these statuses data may be written or deleted without a job of ours, by a Glance on the same database.
_BUSY = ("saving", "uploading", "importing", "pending_delete")
_DATA = (images.c.deleted == sa.false()) & images.c.status.in_(("active", "deactivated"))


def images_with_data(tx: Tx, after: str, limit: int) -> list[Image]:
    """Active and deactivated images in the order of their ids."""
    statement = sa.select(images.c.id, document).where(_DATA, images.c.id > after).order_by(images.c.id).limit(limit)
    return [documents.image(row) for row in tx.execute(statement)]


def count_images_with_data(tx: Tx) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(images).where(_DATA)).scalar_one())


@dataclass(frozen=True, slots=True)
class Claims:
    """What refers to data: `copies` are the copies in records, `busy` the ids of images that somebody works on."""

    copies: list[Location] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)


def claims(tx: Tx, image_ids: Collection[str], since: datetime) -> Claims:
    """The claims of these images. Images deleted after `since` are busy: their data may be being removed."""
    ids = list(image_ids)
    busy: set[str] = set(tx.execute(sa.select(jobs.c.image_id).where(jobs.c.image_id.in_(ids))).scalars())
    working = images.c.status.in_(_BUSY) | (images.c.deleted_at >= since)
    busy |= set(tx.execute(sa.select(images.c.id).where(images.c.id.in_(ids), working)).scalars())
    return Claims(_copies(tx, image_locations.c.image_id.in_(ids)), busy)


def all_copies(tx: Tx, after: int, limit: int) -> list[Location]:
    """The copies in all records, in the order of the rows."""
    return _copies(tx, image_locations.c.id > after, limit)


def job_locations(tx: Tx) -> Iterator[Location]:
    """Copies that jobs have yet to delete."""
    for payload in tx.execute(sa.select(jobs.c.payload)).scalars():
        for place in json.loads(payload).get("locations", ()):
            yield Location(place["id"], place["url"], place["metadata"])


def _copies(tx: Tx, where: sa.ColumnElement[bool], limit: int | None = None) -> list[Location]:
    table = image_locations
    # Locations that Glance's scrubber has yet to delete are marked deleted already.
    named = (table.c.deleted == sa.false()) | (table.c.status == "pending_delete")
    statement = sa.select(table.c.id, table.c.value, table.c.meta_data).where(where, named)
    rows: list[Any] = list(tx.execute(statement.order_by(table.c.id).limit(limit)))
    return [Location(row.id, row.value, documents.metadata_of(row.meta_data)) for row in rows]
