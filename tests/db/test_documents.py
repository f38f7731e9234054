"""An image comes back from the database as it went in, whatever is in it."""

from dataclasses import fields, replace

import pytest
import sqlalchemy as sa

from calotype.context import SERVICE
from calotype.db import documents, images, pages, tables
from calotype.db.engine import Database, now
from calotype.db.record_cache import RecordCache
from calotype.model import Image, Query

WHEN = now().replace(microsecond=0)
BASE = Image("00000000-0000-4000-8000-000000000001", "n", "queued", "private", "red", WHEN, WHEN)
STRANGE = (
    "",
    " ",
    'double " quote, single \' quote, backslash \\ slash / {"a": [1]}',
    "tab\t newline\n return\r bell\x07 unit\x1f delete\x7f",
    "\u00e9 \u4e2d \u2028 \u200b \ufffd",
    "null",
    "true",
    "%s %(name)s :name ?",
)


def stored(db: Database, image: Image) -> Image:
    with db.write_once() as tx:
        images.add(tx, image)
    with db.read_once() as tx:
        found = images.get(tx, SERVICE, image.id)
        assert found is not None
        assert pages.page(tx, RecordCache(), SERVICE, Query(5)) == [found]
    return found


def test_every_column_comes_back(db: Database) -> None:
    image = replace(
        BASE,
        protected=True,
        os_hidden=False,
        disk_format="raw",
        container_format="bare",
        size=2**62,
        virtual_size=2**53 + 1,
        min_disk=2**31 - 1,
        min_ram=7,
        checksum="c" * 32,
        os_hash_algo="sha512",
        os_hash_value="h" * 128,
    )
    assert stored(db, image) == image


@pytest.mark.parametrize("text", STRANGE)
def test_strange_texts_come_back(db: Database, text: str) -> None:
    image = replace(BASE, name=text, properties={"p": text, "q" + text.replace(" ", "_"): "v"}, tags=("t" + text,))
    assert stored(db, image) == image


def test_many_long_properties_come_back_whole(db: Database) -> None:
    image = replace(BASE, properties={f"p{number}": '"' * 60_000 for number in range(100)})
    assert stored(db, image) == image


def test_locations_come_back_with_what_is_known_of_them(db: Database) -> None:
    places = {f"file:///{number}": {"store": f"s{number}", "more": {"x": ['"', "\\"]}} for number in range(12)}
    with db.write_once() as tx:
        images.add(tx, BASE)
        for url, more in places.items():
            images.add_location(tx, BASE.id, url, more, WHEN)
        for url, text in (("file:///old", None), ("file:///odd", "null")):
            values = {"image_id": BASE.id, "value": url, "meta_data": text, "status": "active"}
            tx.execute(sa.insert(tables.image_locations).values(values | {"created_at": WHEN, "deleted": False}))
    with db.read_once() as tx:
        found = images.get(tx, SERVICE, BASE.id)
    assert found is not None
    assert [(place.url, dict(place.metadata)) for place in found.locations] == [
        *places.items(),
        ("file:///old", {}),
        ("file:///odd", {}),
    ]


def test_a_property_without_a_value_is_there(db: Database) -> None:
    with db.write_once() as tx:
        images.add(tx, BASE)
        values = {"image_id": BASE.id, "name": "empty", "value": None, "created_at": WHEN, "deleted": False}
        tx.execute(sa.insert(tables.image_properties).values(values))
    with db.read_once() as tx:
        found = images.get(tx, SERVICE, BASE.id)
    assert found is not None
    assert dict(found.properties) == {"empty": None}


def test_columns_stand_in_the_order_of_the_fields_of_a_record() -> None:
    assert [field.name for field in fields(Image)][: len(documents.COLUMNS)] == documents.COLUMNS
