"""Records of stores: the place and identity of each store, and the copies that are in it.

`images/places.py` compares these with what it finds in the places themselves.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from calotype import errors
from calotype.db import documents
from calotype.db.compare import exactly
from calotype.db.engine import Tx
from calotype.db.tables import image_locations, stores
from calotype.model import Location, Place

_COPY = sa.select(
    image_locations.c.id, image_locations.c.image_id, image_locations.c.value, image_locations.c.meta_data
)
_LIVING = image_locations.c.deleted == sa.false()


def all_(tx: Tx) -> list[Place]:
    """All places, also those of stores that are no longer configured."""
    return [
        Place(row.identity, row.name, row.place, tuple(json.loads(row.former)), row.host, bool(row.established))
        for row in tx.execute(sa.select(stores).order_by(stores.c.name))
    ]


def add(tx: Tx, place: Place, now: datetime) -> None:
    """Raises `Conflict` if there is one of this identity or name."""
    try:
        tx.execute(sa.insert(stores).values(_values(place) | {"created_at": now}))
    except sa.exc.IntegrityError as exc:
        raise errors.Conflict(f"There is a store named {place.name} already.") from exc


def save(tx: Tx, place: Place) -> None:
    """Write all of a place that was added before."""
    tx.execute(sa.update(stores).where(stores.c.identity == place.identity).values(_values(place)))


def _values(place: Place) -> dict[str, Any]:
    return {
        "identity": place.identity,
        "name": place.name,
        "place": place.place,
        "former": json.dumps(place.former),
        "host": place.host,
        "established": place.established,
    }


# --- copies ----------------------------------------------------------------------------------------------


def copies(tx: Tx, prefixes: Sequence[str], *, after: int = 0, limit: int) -> list[tuple[str, Location]]:
    """Copies whose URLs begin with one of these, in the order of their rows, with the ids of their images."""
    statement = _COPY.where(_LIVING, _begins(prefixes), image_locations.c.id > after)
    return [_copy(row) for row in tx.execute(statement.order_by(image_locations.c.id).limit(limit))]


def other_copies(tx: Tx, prefixes: Sequence[str], flat: Sequence[str]) -> Iterator[tuple[str, Location]]:
    """Copies whose URLs begin with none of these, or have a slash after one of `flat`; with the ids of their images.

    Looks at all copies.
    """
    url = image_locations.c.value
    below = [sa.and_(_begins([prefix]), sa.func.substr(url, len(prefix) + 1).like("%/%")) for prefix in flat]
    for row in tx.execute(_COPY.where(_LIVING, sa.or_(sa.not_(_begins(prefixes)), *below))):
        yield _copy(row)


def _begins(prefixes: Sequence[str]) -> sa.ColumnElement[bool]:
    url = image_locations.c.value
    # Not by LIKE, which ignores case in most databases.
    found = [exactly(sa.func.substr(url, 1, len(prefix)), sa.literal(prefix)) for prefix in prefixes]
    return sa.or_(sa.false(), *found)


def _copy(row: Any) -> tuple[str, Location]:
    return row.image_id, Location(row.id, row.value, documents.metadata_of(row.meta_data))
