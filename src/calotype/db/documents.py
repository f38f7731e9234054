"""Image documents: an image with its properties, tags and locations as one JSON value that the database makes.

So one statement reads an image, or a page of images, as of one moment. And a driver written in Python handles a few
long values instead of hundreds of short ones, which would be most of the cost of a list.

What that buys: 25 records that are not cached cost 4.4 + 2.8 CPU-ms (process + MariaDB), and 9.7 + 3.8 read by a
statement a table; 1,000 cost 103 + 54, and 270 + 48. `python -m bench.worth "documents and nesting"`
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa

from calotype import errors
from calotype.context import Context
from calotype.db.compare import unindexed
from calotype.db.nesting import json_array, json_object_agg, json_subquery
from calotype.db.tables import image_locations, image_properties, image_tags, images
from calotype.model import Image, Location

LOG = logging.getLogger(__name__)

#: Columns of `images` that a record has, in the order of the fields of `Image`.
COLUMNS: Final = (
    "id name status visibility owner created_at updated_at protected os_hidden disk_format "
    "container_format size virtual_size min_disk min_ram checksum os_hash_algo os_hash_value"
).split()


def _collected(table: sa.Table, name: Any, value: Any, *where: sa.ColumnElement[bool]) -> Any:
    living: sa.ColumnElement[bool] = unindexed(table.c.deleted) == sa.false()
    found = sa.select(json_object_agg(name, value)).where(table.c.image_id == images.c.id, living, *where)
    return json_subquery(found.correlate(images).scalar_subquery())


#: The document of a row of `images`.
document: Final = json_array(
    *(images.c[name] for name in COLUMNS),
    _collected(image_properties, image_properties.c.name, image_properties.c.value),
    _collected(image_tags, image_tags.c.value, image_tags.c.id),
    _collected(
        image_locations,
        image_locations.c.id,
        json_array(image_locations.c.value, image_locations.c.meta_data),
        image_locations.c.status == "active",
    ),
).label("document")


def image(row: Any) -> Image:
    """The record of a row with `id` and `document`. Fields are passed in order: a list makes a thousand records.

    Raises `Busy` if the document is larger than the database may answer.
    """
    found = row.document
    if found is None:
        LOG.error("the record of image %s is larger than the database may answer (max_allowed_packet)", row.id)
        raise errors.Busy("The database cannot answer with the record of this image.")
    image_id, name, status, visibility, owner, created_at, updated_at, protected, os_hidden, *more = found
    *plain, properties, tags, locations = more
    created = datetime.fromisoformat(created_at)
    values: list[Any] = [image_id, name, status, visibility, owner, created]
    values += [datetime.fromisoformat(updated_at) if updated_at else created, bool(protected), bool(os_hidden), *plain]
    values += [properties or {}, tuple(sorted(tags)) if tags else (), _locations(locations) if locations else ()]
    return Image(*values)


def seen_by(ctx: Context, record: Image) -> Image:
    """The record as the caller sees it."""
    if record.visibility != "shared" or record.owner == ctx.project or ctx.is_admin:
        return record
    shared = replace(record, member=ctx.project)
    object.__setattr__(shared, "memo", record.memo)  # it does not depend on `member`
    return shared


def _locations(found: dict[str, list[Any]]) -> tuple[Location, ...]:
    numbers = sorted(found, key=int)
    return tuple(Location(int(number), found[number][0], metadata_of(found[number][1])) for number in numbers)


@lru_cache(maxsize=1024)
def metadata_of(text: str | None) -> Mapping[str, Any]:
    """The metadata of a location. Cached, as most copies in a store have the same."""
    found = json.loads(text) if text else {}
    return MappingProxyType(found if isinstance(found, dict) else {})
