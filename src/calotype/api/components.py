"""The components of the OpenAPI document: schemas of answers and of request bodies, by name.

They are made of the schemas that validate requests and that `/v2/schemas` serves (`schemas.py`, `metadef_schemas.py`).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from calotype.api import metadef_schemas as metadefs
from calotype.api import patch, schemas
from calotype.api.images import SETTABLE
from calotype.api.operation import Schema
from calotype.api.schemas import Schemas

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer"}
#: Attributes that only some answers about images have.
_AT_TIMES: Final = frozenset({"stores", "direct_url"})


def components(served: Schemas) -> dict[str, Schema]:
    """All components, for a configuration."""
    image = _timed(served.served["image"]["properties"])
    custom = {"type": "string", "maxLength": schemas.MAX_VALUE, "description": "A property of the image's own"}
    given = {name: image[name] for name in SETTABLE}
    return {
        "Image": _object(image, required=image.keys() - _AT_TIMES, more=_TEXT),
        "Images": _page("images", "Image"),
        "NewImage": _object(given, more=custom),
        "Patch21": {
            "type": "array",
            "maxItems": patch.MAX_CHANGES,
            "items": {
                "type": "object",
                "required": ["op", "path"],
                "properties": {"op": {"type": "string", "enum": list(patch.OPS)}, "path": _pointer(), "value": {}},
                "anyOf": [{"properties": {"op": {"const": "remove"}}}, {"required": ["value"]}],
            },
        },
        "Patch20": {
            "type": "array",
            "maxItems": patch.MAX_CHANGES,
            "items": {
                "type": "object",
                "properties": {**{op: _pointer() for op in patch.OPS}, "value": {}},
                "oneOf": [{"required": ["remove"]}, *({"required": [op, "value"]} for op in ("add", "replace"))],
            },
        },
        **_FIXED,
    }


def _object(
    properties: Mapping[str, Any], *, required: Iterable[str] | None = None, more: bool | Schema = False
) -> Schema:
    """An object with these properties, of which all or some are required."""
    schema: Schema = {"type": "object", "properties": dict(properties), "additionalProperties": more}
    return schema | ({"required": sorted(required)} if required else {})


def _answer(properties: Mapping[str, Any], *, without: Iterable[str] = ()) -> Schema:
    """An object that requires all of these properties except `without`."""
    return _object(properties, required=properties.keys() - set(without))


def _timed(properties: Mapping[str, Schema]) -> dict[str, Schema]:
    """The same, with the format of times, which `/v2/schemas` does not have."""
    return {
        name: schema | {"format": "date-time"} if name.endswith("_at") else schema
        for name, schema in properties.items()
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> Schema:
    return {"type": "array", "items": _ref(name)}


def _page(key: str, name: str) -> Schema:
    """A page of a list, with the link to the next page."""
    links = {
        "first": _TEXT | {"description": "Path of the first page"},
        "next": _TEXT | {"description": "Path of the next page, if there is one"},
        "schema": _TEXT | {"description": "Path of the schema of this answer"},
    }
    return _answer({key: _list(name), **links}, without={"next"})


def _pointer() -> Schema:
    return {"type": "string", "pattern": "^/", "description": "JSON pointer to an attribute, such as /name"}


def _body(schema: Schema) -> Schema:
    """The schema of a request, without its name and without read-only properties."""
    writable = {name: value for name, value in schema["properties"].items() if not value.get("readOnly")}
    return {name: value for name, value in schema.items() if name != "name"} | {"properties": writable}


_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_TIMES: Final = ("created_at", "updated_at")
_ITEMS: Final = metadefs.NAMESPACE["properties"]
#: A definition in an answer. Rows that Glance wrote may have other fields.
_DEFINITION: Final[Schema] = {"type": "object", "properties": metadefs.FIELDS}
_DEFINITIONS: Final[Schema] = {"type": "object", "additionalProperties": _ref("MetadefDefinition")}
_ASSOCIATION: Final = metadefs.ASSOCIATION["properties"]
_METADEF_OBJECT: Final = metadefs.OBJECT["properties"] | {"properties": _DEFINITIONS}
_NAMESPACE: Final = {
    name: schema
    for name, schema in _ITEMS.items()
    if name not in ("resource_type_associations", "properties", "objects", "tags")
}
_TAG_NAMES: Final[Schema] = {"type": "array", "items": _answer({"name": metadefs.TAG["properties"]["name"]})}
_LISTED: Final = {**_NAMESPACE, "resource_type_associations": _list("Association")}
_WHOLE: Final = {**_LISTED, "properties": _DEFINITIONS, "objects": _list("MetadefObject"), "tags": _TAG_NAMES}
_AT_TIMES_OF_NAMESPACES: Final = frozenset(
    ("display_name", "description", "resource_type_associations", "properties", "objects", "tags")
)

_TASK_AT_TIMES: Final = frozenset({"expires_at", "image_id", "request_id", "user_id"})
_MEMBER: Final = _timed(schemas.MEMBER)
_WHOLE_TASK: Final = _timed(schemas.TASK)
_STUB: Final = {name: _WHOLE_TASK[name] for name in schemas.TASK_STUB if name not in _TASK_AT_TIMES}
_TASK: Final = {name: schema for name, schema in _WHOLE_TASK.items() if name not in ("self", "schema")}
#: Any JSON: the input or the result of a task need not be an object.
_SAID: Final[Schema] = {
    "input": {"description": "What was asked for"},
    "result": {"description": "What came of it"},
}
_STORE: Final[Mapping[str, Schema]] = {
    "id": _TEXT | {"description": "Name of the store"},
    "description": _TEXT | {"description": "What the operator says of it"},
    "default": {"type": "string", "enum": ["true"], "description": "There where uploads go to it"},
    "read-only": {"type": "string", "enum": ["true"], "description": "There where it takes no data"},
}
_DETAILS: Final[Mapping[str, Schema]] = {
    "type": _TEXT | {"description": "Kind of the store"},
    "weight": _COUNT | {"description": "Copies in heavier stores are preferred"},
    "properties": {"type": "object", "description": "Settings of the store"},
    "capabilities": {"type": "array", "items": _TEXT, "description": "What the store can do"},
    "status": {"type": "string", "enum": ["available", "unavailable"], "description": "Whether it works"},
}
_HEALTH: Final[Mapping[str, Schema]] = {
    "free_bytes": _COUNT | {"description": "Room that is left"},
    "total_bytes": _COUNT | {"description": "Room that there is"},
    "last_error": _TEXT | {"description": "What went wrong last"},
}
_USED: Final = _answer({"usage": _COUNT, "limit": _COUNT | {"description": "-1 is no limit"}})

_FIXED: Final[Mapping[str, Schema]] = {
    "Member": _answer(_MEMBER),
    "Members": _answer({"members": _list("Member"), "schema": _TEXT}),
    "NewMember": _body(schemas.NEW_MEMBER),
    "MemberStatus": _body(schemas.MEMBER_STATUS),
    "Locations": {"type": "array", "items": _answer({"url": _TEXT, "metadata": {"type": "object"}})},
    "NewLocation": _body(schemas.NEW_LOCATION),
    "Task": _object(_WHOLE_TASK | _SAID, required=_WHOLE_TASK.keys() - _TASK_AT_TIMES),
    "TaskStub": _object(_STUB | {"expires_at": _TIME}, required=_STUB),
    "Tasks": _page("tasks", "TaskStub"),
    "ImageTasks": _answer(
        {
            "tasks": {
                "type": "array",
                "items": _answer(
                    _TASK
                    | _SAID
                    | _timed({name: {"type": ["null", "string"]} for name in _TASK_AT_TIMES})
                    | {"deleted": {"type": "boolean"}, "deleted_at": {"type": ["null", "string"]}}
                ),
            }
        }
    ),
    "NewImport": _body(schemas.NEW_IMPORT),
    "NewTask": _body(schemas.NEW_TASK),
    "ImportInfo": _answer(
        {
            "import-methods": _answer(
                {"description": _TEXT, "type": {"const": "array"}, "value": {"type": "array", "items": _TEXT}}
            )
        }
    ),
    "Stores": _answer({"stores": {"type": "array", "items": _object(_STORE, required=["id"])}}),
    "StoresDetail": _answer(
        {
            "stores": {
                "type": "array",
                "items": _object({**_STORE, **_DETAILS, **_HEALTH}, required=["id", *_DETAILS]),
            }
        }
    ),
    "Usage": _answer({"usage": {"type": "object", "additionalProperties": _USED}}),
    "Versions": _answer(
        {
            "versions": {
                "type": "array",
                "items": _answer(
                    {
                        "id": {"type": "string", "pattern": r"^v2\.\d+$"},
                        "status": {"type": "string", "enum": ["CURRENT", "SUPPORTED"]},
                        "links": {"type": "array", "items": _answer({"rel": {"const": "self"}, "href": _TEXT})},
                    }
                ),
            }
        }
    ),
    "Health": {
        "type": "object",
        "required": ["detailed", "reasons"],
        "properties": {
            "detailed": {"type": "boolean"},
            "healthy": {"type": "boolean"},
            "reasons": {
                "type": "array",
                "items": {"anyOf": [_TEXT, _answer({"class": _TEXT, "healthy": {"type": "boolean"}, "reason": _TEXT})]},
            },
        },
        "additionalProperties": False,
    },
    "JsonSchema": {"type": "object", "required": ["name", "properties"], "description": "A schema in JSON schema"},
    "Document": {"type": "object", "required": ["openapi", "info", "paths"], "description": "This document"},
    "Error": _answer({"message": _TEXT, "code": _TEXT, "title": _TEXT}),
    #
    "MetadefDefinition": _DEFINITION,
    "MetadefNamespace": _object(_WHOLE, required=_WHOLE.keys() - _AT_TIMES_OF_NAMESPACES),
    "MetadefNamespaceHead": _object(_NAMESPACE, required=_NAMESPACE.keys() - _AT_TIMES_OF_NAMESPACES),
    "MetadefNamespaceListed": _object(_LISTED, required=_LISTED.keys() - _AT_TIMES_OF_NAMESPACES),
    "MetadefNamespaces": _page("namespaces", "MetadefNamespaceListed"),
    "NewMetadefNamespace": _body(metadefs.NAMESPACE),
    "MetadefObject": _answer(_METADEF_OBJECT, without={"description"}),
    "MetadefObjects": _page("objects", "MetadefObject"),
    "NewMetadefObject": _body(metadefs.OBJECT),
    "MetadefProperty": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": metadefs.PROPERTY["properties"]["name"], **metadefs.FIELDS},
    },
    "MetadefProperties": _answer({"properties": _DEFINITIONS}),
    "NewMetadefProperty": _body(metadefs.PROPERTY),
    "MetadefTag": _answer(metadefs.TAG["properties"]),
    "MetadefTags": _page("tags", "MetadefTagName"),
    "MetadefTagName": _TAG_NAMES["items"],
    "MetadefTagNames": _answer({"tags": _TAG_NAMES}),
    "NewMetadefTag": _body(metadefs.TAG),
    "NewMetadefTags": _body(metadefs.TAG_NAMES),
    "ResourceTypes": _answer(
        {"resource_types": {"type": "array", "items": _answer({"name": _TEXT, **dict.fromkeys(_TIMES, _TIME)})}}
    ),
    "Association": _answer(_ASSOCIATION, without={"prefix", "properties_target"}),
    "Associations": _answer({"resource_type_associations": _list("Association")}),
    "NewAssociation": _body(metadefs.ASSOCIATION),
}
