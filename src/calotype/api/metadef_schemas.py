"""The schemas of metadata definitions: they validate requests, and `/v2/schemas/metadefs/{name}` serves them."""

from collections.abc import Mapping
from typing import Final

from calotype.api.operation import Schema
from calotype.model import MAX_INT, MAX_METADEF_NAME, PATH_NAME

#: The longest description of a namespace, characters.
MAX_DESCRIPTION: Final = 500
TYPES: Final = ("array", "boolean", "integer", "number", "object", "string")


def _text(description: str, *, most: int | None = None, least: int | None = None, read_only: bool = False) -> Schema:
    schema: Schema = {"type": "string", "description": description}
    if least is not None:
        schema["minLength"] = least
    if most is not None:
        schema["maxLength"] = most
    return schema | ({"readOnly": True} if read_only else {})


def _name(description: str) -> Schema:
    return _text(description, least=1, most=MAX_METADEF_NAME) | {"pattern": PATH_NAME}


def _count(description: str) -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": MAX_INT, "description": description}


def _times(what: str) -> Schema:
    return {
        "created_at": _text(f"When the {what} was added", read_only=True) | {"format": "date-time"},
        "updated_at": _text(f"When the {what} changed last", read_only=True) | {"format": "date-time"},
    }


def _paths(what: str) -> Schema:
    return {
        "self": _text(f"Path of the {what}", read_only=True),
        "schema": _text("Path of its schema", read_only=True),
    }


_STRINGS: Final[Schema] = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}

_VALUES: Final[Schema] = {
    "type": "array",
    "items": {"type": ["string", "null"]},
    "description": "Values that there are, as text",
}

#: The fields of a property's definition, without its name.
FIELDS: Final[Schema] = {
    "title": _text("Name of the property for people"),
    "description": _text("What the property means"),
    "type": {"type": "string", "enum": list(TYPES), "description": "JSON type of its value"},
    "operators": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Operators that its value may begin with",
    },
    "default": {"description": "Value that is meant when there is none"},
    "readonly": {"type": "boolean", "description": "Whether users are not meant to change it"},
    "confidential": {"type": "boolean", "description": "Whether its value is meant for few people"},
    "minimum": {"type": "number", "description": "Least value of a number"},
    "maximum": {"type": "number", "description": "Greatest value of a number"},
    "enum": _VALUES,
    "pattern": _text("Regular expression that a text matches"),
    "minLength": _count("Fewest characters of a text"),
    "maxLength": _count("Most characters of a text"),
    "items": {
        "type": "object",
        "description": "What the entries of an array are",
        "required": ["type"],
        "properties": {
            "type": {"type": "string", "enum": list(TYPES), "description": "JSON type of an entry"},
            "enum": _VALUES,
        },
        "additionalProperties": False,
    },
    "uniqueItems": {"type": "boolean", "description": "Whether the entries of an array differ from each other"},
    "minItems": _count("Fewest entries of an array"),
    "maxItems": _count("Most entries of an array"),
    "additionalItems": {"type": "boolean", "description": "Whether an array may have further entries"},
}
_DEFINITION: Final[Schema] = {
    "type": "object",
    "required": ["title", "type"],
    "additionalProperties": False,
    "properties": {"name": _text("Ignored: the key is the name", most=MAX_METADEF_NAME), **FIELDS},
}
_DEFINITIONS: Final[Schema] = {
    "type": "object",
    "description": "Definitions of properties by their names",
    "additionalProperties": _DEFINITION,
}

_ASSOCIATION_FIELDS: Final[Schema] = {
    "name": _name("Resource type, such as OS::Glance::Image"),
    "prefix": _text("What stands before the names of properties with this type", most=MAX_METADEF_NAME),
    "properties_target": _text("Which properties of the type are meant, where it has several", most=MAX_METADEF_NAME),
}
_OBJECT_FIELDS: Final[Schema] = {
    "name": _name("Name of the object"),
    "description": _text("What the object is for"),
    "required": _STRINGS | {"description": "Names of its properties that have to be there"},
    "properties": _DEFINITIONS,
}
_TAG_FIELDS: Final[Schema] = {"name": _name("The tag")}


def _part(fields: Schema) -> Schema:
    """The schema of an object, tag or association within its namespace. Requests may have its read-only fields.

    These are ignored. They are in the schema because clients validate answers by it as well.
    """
    return {"type": "object", "required": ["name"], "additionalProperties": False, "properties": fields}


_TAGS: Final[Schema] = {"type": "array", "description": "Tags of the namespace", "items": _part(_TAG_FIELDS)}

PROPERTY: Final[Schema] = {
    "name": "property",
    "type": "object",
    "required": ["name", "title", "type"],
    "additionalProperties": False,
    "properties": {"name": _name("Name of the property"), **FIELDS},
}
OBJECT: Final[Schema] = {
    "name": "object",
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {**_OBJECT_FIELDS, **_paths("object"), **_times("object")},
}
TAG: Final[Schema] = {
    "name": "tag",
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {**_TAG_FIELDS, **_times("tag")},
}
ASSOCIATION: Final[Schema] = {
    "name": "resource_type_association",
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {**_ASSOCIATION_FIELDS, **_times("association")},
}
NAMESPACE: Final[Schema] = {
    "name": "namespace",
    "type": "object",
    "required": ["namespace"],
    "additionalProperties": False,
    "properties": {
        # No slash: the name must be usable in a path.
        "namespace": _name("Name of the namespace, the only one of its kind"),
        "display_name": _text("Name of the namespace for people", most=MAX_METADEF_NAME),
        "description": _text("What the namespace is about", most=MAX_DESCRIPTION),
        "visibility": {"type": "string", "enum": ["public", "private"], "description": "Who may see the namespace"},
        "protected": {"type": "boolean", "description": "Whether deleting it, or anything in it, is refused"},
        "owner": _text("Project that the namespace belongs to", most=255),
        **_paths("namespace"),
        **_times("namespace"),
        "resource_type_associations": {
            "type": "array",
            "description": "Resource types that the namespace is for",
            "items": _part(ASSOCIATION["properties"]),
        },
        "properties": _DEFINITIONS
        | {"propertyNames": {"minLength": 1, "maxLength": MAX_METADEF_NAME, "pattern": PATH_NAME}},
        "objects": {
            "type": "array",
            "description": "Objects of the namespace",
            "items": _part(OBJECT["properties"]),
        },
        "tags": _TAGS,
    },
}
#: The body of `POST …/tags`.
TAG_NAMES: Final[Schema] = {
    "name": "tags",
    "type": "object",
    "required": ["tags"],
    "additionalProperties": False,
    "properties": {"tags": _TAGS},
}


def _links(*names: str) -> list[Schema]:
    hrefs = {"first": "{first}", "next": "{next}", "describedby": "{schema}"}
    return [{"rel": name, "href": hrefs[name]} for name in names]


def _collection(name: str, items: Schema, *, paged: bool = False) -> Schema:
    properties: Schema = {name: items, "schema": _text("Path of this schema", read_only=True)}
    if paged:
        properties |= {"first": _text("Path of the first page"), "next": _text("Path of the next page")}
    return {
        "name": name,
        "properties": properties,
        "links": _links(*(["first", "next"] if paged else []), "describedby"),
    }


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


#: What `GET /v2/schemas/metadefs/{name}` serves.
SERVED: Final[Mapping[str, Schema]] = {
    "namespace": NAMESPACE,
    "namespaces": _collection("namespaces", _array(NAMESPACE), paged=True),
    "object": OBJECT,
    "objects": _collection("objects", _array(OBJECT), paged=True),
    "property": PROPERTY,
    "properties": _collection("properties", {"type": "object", "additionalProperties": PROPERTY}, paged=True),
    "tag": TAG,
    "tags": _collection("tags", _array(TAG), paged=True),
    "resource_type": ASSOCIATION,
    "resource_types": _collection("resource_type_associations", _array(ASSOCIATION)),
}
