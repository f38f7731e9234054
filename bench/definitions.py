"""Many metadata definitions in a database, the same ones every time: what lists and shows of namespaces are asked for.

`fill` writes rows straight into the tables of Glance's schema, of Glance's own database as well as of Calotype's.
"""

import json
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from calotype.db import tables

BEGIN = datetime(2026, 1, 1)
TYPES = 20  #: resource types
ASSOCIATIONS, OBJECTS, FIELDS, TAGS = 2, 3, 4, 5  #: of each namespace; `FIELDS` are the properties of an object


def name(number: int) -> str:
    return f"OS::Bench::Namespace{number:05}"


def fill(engine: sa.Engine, namespaces: int, properties: int, owner: str) -> None:
    """Add namespaces of a project, a tenth of them private, each with so many properties and some of the rest."""
    made = {"created_at": BEGIN, "updated_at": BEGIN}
    columns = {
        "description": "What a property that stands in a catalogue is for, in a sentence.",
        "operators": ["<in>"],
    }
    definitions = [
        {"type": "integer", "minimum": 1, "maximum": 1024, "default": "1"} | columns,
        {"type": "string", "enum": ["none", "one", "two", "three"], "default": "none"} | columns,
        {"type": "boolean"} | columns,
        {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "minItems": 1, "maxItems": 2} | columns,
    ]

    def definition(*place: int) -> dict[str, Any]:
        """One of a kind: nobody has many alike."""
        return definitions[place[-1] % len(definitions)] | {"title": f"Property {place}"}

    rows: dict[sa.Table, list[dict[str, Any]]] = {
        tables.metadef_resource_types: [
            {"id": 1 + one, "name": f"OS::Bench::Type{one}", "protected": False} | made for one in range(TYPES)
        ]
    }

    def add(table: sa.Table, **row: Any) -> None:
        rows.setdefault(table, []).append(row)

    for number in range(namespaces):
        moment = BEGIN + timedelta(minutes=number)
        times = {"created_at": moment, "updated_at": moment}
        add(
            tables.metadef_namespaces,
            id=number + 1,
            namespace=name(number),
            display_name=f"Namespace {number}",
            description="What a namespace of a catalogue is about, in a sentence or two, as they are written.",
            visibility="private" if number % 10 == 0 else "public",
            protected=False,
            owner=owner,
            **times,
        )
        of: dict[str, Any] = {"namespace_id": number + 1, **times}
        for one in range(ASSOCIATIONS):
            type_id = 1 + (number + one) % TYPES
            add(tables.metadef_namespace_resource_types, resource_type_id=type_id, prefix=f"p{one}:", **of)
        for one in range(properties):
            add(
                tables.metadef_properties,
                name=f"property_{one:03}",
                json_schema=json.dumps(definition(number, one)),
                **of,
            )
        for one in range(OBJECTS):
            fields = {f"field_{field}": definition(number, one, field) for field in range(FIELDS)}
            add(tables.metadef_objects, name=f"object_{one}", required="field_0", json_schema=json.dumps(fields), **of)
        for one in range(TAGS):
            add(tables.metadef_tags, name=f"tag_{one}", **of)
    with engine.begin() as connection:
        for table, some in rows.items():
            for begin in range(0, len(some), 1000):
                connection.execute(sa.insert(table), some[begin : begin + 1000])
