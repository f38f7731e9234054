"""The schemas of requests and answers: the same ones validate requests and are served at `/v2/schemas`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import fastjsonschema

from calotype import errors
from calotype.api import metadef_schemas
from calotype.api.operation import Schema
from calotype.images.locations import ALGORITHMS
from calotype.model import (
    MAX_INT,
    MAX_NAME,
    MEMBER_STATUSES,
    PATH_NAME,
    PATH_NAME_RULE,
    STATUSES,
    TASK_STATUSES,
    TASK_TYPES,
    VISIBILITIES,
)

UUID_PATTERN: Final = "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$"

#: The longest property value, bytes: what a TEXT column of MariaDB holds.
MAX_VALUE: Final = 65_535


def _text(description: str, *, null: bool = False, most: int | None = MAX_NAME, read_only: bool = False) -> Schema:
    schema: Schema = {"type": ["null", "string"] if null else "string", "description": description}
    if most is not None:
        schema["maxLength"] = most
    return schema | ({"readOnly": True} if read_only else {})


def _count(description: str, *, null: bool = False, read_only: bool = False, most: int | None = None) -> Schema:
    schema: Schema = {"type": ["null", "integer"] if null else "integer", "description": description}
    if not read_only:
        schema["minimum"] = 0
    if most is not None:
        schema["maximum"] = most
    return schema | ({"readOnly": True} if read_only else {})


def image_properties(disk_formats: Iterable[str], container_formats: Iterable[str]) -> Schema:
    """The attributes of an image, each with its schema."""
    return {
        "id": _text("Names the image for ever", most=None) | {"pattern": UUID_PATTERN},
        "name": _text("What people call the image", null=True),
        "status": _text("Where the image is in its life", most=None, read_only=True) | {"enum": list(STATUSES)},
        "visibility": _text("Who may see the image", most=None) | {"enum": list(VISIBILITIES)},
        "protected": {"type": "boolean", "description": "Whether deleting the image is refused"},
        "os_hidden": {"type": "boolean", "description": "Whether lists leave the image out unless asked for it"},
        "checksum": _text("MD5 of the data, for old clients only", null=True, most=32, read_only=True),
        "os_hash_algo": _text("Algorithm of os_hash_value", null=True, most=64, read_only=True),
        "os_hash_value": _text("Hash of the data, in hex", null=True, most=128, read_only=True),
        "owner": _text("Project that the image belongs to", null=True),
        "size": _count("Length of the data in bytes", null=True, read_only=True),
        "virtual_size": _count("Size of the disk inside the data, in bytes", null=True, read_only=True),
        "container_format": _text("What the disk is wrapped in", null=True, most=None)
        | {"enum": [None, *container_formats]},
        "disk_format": _text("Format of the disk", null=True, most=None) | {"enum": [None, *disk_formats]},
        "created_at": _text("When the record was made", most=None, read_only=True),
        "updated_at": _text("When the record changed last", most=None, read_only=True),
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": MAX_NAME},
            "description": "Words attached to the image",
        },
        "direct_url": _text("Where the first copy lies, for services", most=None, read_only=True),
        "min_ram": _count("Memory a machine needs to run the image, in MiB", most=MAX_INT),
        "min_disk": _count("Disk a machine needs to run the image, in GiB", most=MAX_INT),
        "self": _text("Path of this record", most=None, read_only=True),
        "file": _text("Path of the data", most=None, read_only=True),
        "stores": _text("Stores that hold a copy, joined by commas", most=None, read_only=True),
        "schema": _text("Path of this schema", most=None, read_only=True),
    }


MEMBER: Final[Schema] = {
    "created_at": _text("When the image was shared with the member", most=None),
    "image_id": _text("The shared image", most=None) | {"pattern": UUID_PATTERN},
    "member_id": _text("Project that the image is shared with"),
    "schema": _text("Path of this schema", most=None, read_only=True),
    "status": _text("What the member says to it", most=None) | {"enum": list(MEMBER_STATUSES)},
    "updated_at": _text("When the entry changed last", most=None),
}


TASK_STUB: Final[Schema] = {
    "id": _text("Names the task", most=None) | {"pattern": UUID_PATTERN},
    "type": _text("What kind of work it is", most=None) | {"enum": list(TASK_TYPES)},
    "status": _text("How far the work is", most=None) | {"enum": list(TASK_STATUSES)},
    "owner": _text("Project that the task belongs to", most=None),
    "image_id": _text("Image that is worked on", most=None),
    "request_id": _text("Request that asked for it", most=None),
    "user_id": _text("User who asked for it", most=None),
    "expires_at": _text("When the task will vanish, once it has ended", null=True, most=None),
    "created_at": _text("When it was asked for", most=None),
    "updated_at": _text("When it got on last", most=None),
    "self": _text("Path of this task", most=None, read_only=True),
    "schema": _text("Path of this schema", most=None, read_only=True),
}
TASK: Final[Schema] = TASK_STUB | {
    "input": {"type": ["null", "object"], "description": "What was asked for"},
    "result": {"type": ["null", "object"], "description": "What came of it"},
    "message": _text("How it goes, or why it failed", most=None),
}


#: Bodies of requests other than images.
NEW_MEMBER: Final[Schema] = {
    "name": "member",
    "type": "object",
    "required": ["member"],
    "properties": {
        "member": _text("Project that the image is to be shared with") | {"minLength": 1, "pattern": PATH_NAME}
    },
}
MEMBER_STATUS: Final[Schema] = {
    "name": "member",
    "type": "object",
    "required": ["status"],
    "properties": {"status": MEMBER["status"]},
}
NEW_LOCATION: Final[Schema] = {
    "name": "location",
    "type": "object",
    "required": ["url"],
    "additionalProperties": False,
    "properties": {
        "url": _text("Where the data lies", most=None),
        "validation_data": {
            "type": ["null", "object"],
            "description": "What the hash of the data has to be",
            "anyOf": [{"type": "null"}, {"maxProperties": 0}, {"required": ["os_hash_algo", "os_hash_value"]}],
            "additionalProperties": False,
            "properties": {
                "os_hash_algo": {"type": "string", "enum": list(ALGORITHMS), "description": "Algorithm of the hash"},
                "os_hash_value": _text("The hash in hex", most=None) | {"pattern": "^[0-9A-Fa-f]*$"},
            },
        },
    },
}
NEW_IMPORT: Final[Schema] = {
    "name": "import",
    "type": "object",
    "required": ["method"],
    "properties": {
        "method": {
            "type": "object",
            "description": "Where the data comes from",
            "required": ["name"],
            "dependencies": {"os_hash_algo": ["os_hash_value"], "os_hash_value": ["os_hash_algo"]},
            "properties": {
                "name": {"type": "string", "description": "One of the methods that GET /v2/info/import lists"},
                "uri": _text("For web-download, where the data lies", most=4096),
                "glance_region": _text("For glance-download, the region of the other Image service"),
                "glance_image_id": _text("For glance-download, the image there", most=None),
                "glance_service_interface": _text("For glance-download, which endpoint to use; public by default"),
                "os_hash_algo": {"type": "string", "enum": list(ALGORITHMS), "description": "Algorithm of the hash"},
                "os_hash_value": _text("What the hash of the data has to be, in hex", most=None)
                | {"pattern": "^[0-9A-Fa-f]*$"},
            },
        },
        "stores": {"type": "array", "items": {"type": "string"}, "description": "Stores to write to"},
        "all_stores": {"type": "boolean", "description": "Write to every store that takes data"},
        "all_stores_must_succeed": {
            "type": "boolean",
            "description": "Whether one store that fails fails the import; true unless it says false",
        },
    },
}
NEW_TASK: Final[Schema] = {
    "name": "task",
    "type": "object",
    "required": ["type", "input"],
    "properties": {
        "type": TASK_STUB["type"],
        "input": {"type": "object", "description": "What is asked for"},
    },
}
#: The input of a task of type import.
IMPORT_TASK: Final[Schema] = {
    "name": "import_task",
    "type": "object",
    "required": ["import_from"],
    "properties": {
        "import_from": _text("Where the data lies", most=4096),
        "import_from_format": _text("The disk format, unless image_properties say it", null=True),
        "image_properties": {"type": "object", "description": "The image, as a create describes it"},
    },
}


def _links(**links: str) -> list[Schema]:
    return [{"rel": rel, "href": href} for rel, href in links.items()]


class Schemas:
    """The schemas of one configuration, compiled."""

    def __init__(self, disk_formats: Iterable[str], container_formats: Iterable[str]) -> None:
        properties = image_properties(disk_formats, container_formats)
        image: Schema = {
            "name": "image",
            "properties": properties,
            "additionalProperties": {"type": "string"},
            "links": _links(self="{self}", enclosure="{file}", describedby="{schema}"),
        }
        member: Schema = {"name": "member", "properties": MEMBER}
        #: What `GET /v2/schemas/{name}` serves.
        self.served: dict[str, Schema] = {
            "image": image,
            "images": {
                "name": "images",
                "properties": {
                    "images": {"type": "array", "items": image},
                    "first": {"type": "string"},
                    "next": {"type": "string"},
                    "schema": {"type": "string"},
                },
                "links": _links(first="{first}", next="{next}", describedby="{schema}"),
            },
            "member": member,
            "members": {
                "name": "members",
                "properties": {"members": {"type": "array", "items": member}, "schema": {"type": "string"}},
                "links": _links(describedby="{schema}"),
            },
            "task": {"name": "task", "properties": TASK},
            "tasks": {
                "name": "tasks",
                "properties": {
                    "tasks": {"type": "array", "items": {"name": "task", "properties": TASK_STUB}},
                    "schema": {"type": "string"},
                },
                "links": _links(describedby="{schema}"),
            },
        }
        self.served |= {f"metadefs/{name}": schema for name, schema in metadef_schemas.SERVED.items()}
        self._image = _compile({"type": "object", **image})

    def check_image(self, values: Mapping[str, Any]) -> None:
        """Raise `Invalid` for attributes of the wrong type, length or value, and properties that are not text."""
        for name in values:
            if not 0 < len(name) <= MAX_NAME:
                raise errors.Invalid(f"A property name has 1 to {MAX_NAME} characters.")
        for name, value in values.items():
            if isinstance(value, float):  # in JSON schema 1.0 is an integer; it must not go into a column of integers
                raise errors.Invalid(f"Provided object does not match schema 'image': {name} must not be a fraction.")
            if isinstance(value, str) and len(value.encode()) > MAX_VALUE:
                raise errors.Invalid(f"Property {name[:64]} has more than {MAX_VALUE} bytes.")
        _check("image", self._image, values)


def check(schema: Schema, values: Mapping[str, Any]) -> None:
    """Raise `Invalid` if a body does not match a schema. The schema is compiled when it is first used."""
    if id(schema) not in _COMPILED:
        _COMPILED[id(schema)] = _compile(schema)
    _check(schema["name"], _COMPILED[id(schema)], values)


#: Compiled schemas by `id(schema)`: schemas are constants.
_COMPILED: Final[dict[int, Callable[[Any], Any]]] = {}


def _check(name: str, compiled: Callable[[Any], Any], values: Mapping[str, Any]) -> None:
    try:
        compiled(dict(values))
    except fastjsonschema.JsonSchemaValueException as exc:
        where = ".".join(str(step)[:100] for step in exc.path[1:]) or "the body"
        reason = _reason(exc.message)
        broken = exc.rule_definition.get("pattern") if exc.rule == "propertyNames" else exc.rule_definition
        if broken == PATH_NAME:
            reason = PATH_NAME_RULE
        raise errors.Invalid(f"Provided object does not match schema '{name}': {where} {reason}") from exc


def _compile(schema: Schema) -> Callable[[Any], Any]:
    compiled: Callable[[Any], Any] = fastjsonschema.compile(
        {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
    )
    return compiled


def _reason(message: str) -> str:
    """The end of fastjsonschema's sentence `data.name must be …`, bounded."""
    return message.partition(" must ")[1].strip() + " " + message.partition(" must ")[2][:300]
