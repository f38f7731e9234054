"""Converts metadata definitions from `model.py` to JSON, and JSON of requests back (contract: api.md §13)."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from calotype import errors
from calotype.api.schemas import MAX_VALUE
from calotype.api.views import timestamp
from calotype.model import (
    Association,
    Definitions,
    MetadefObject,
    MetadefProperty,
    MetadefTag,
    Namespace,
    ResourceType,
)

NAMESPACES: Final = "/v2/metadefs/namespaces"
_SCHEMAS: Final = "/v2/schemas/metadefs"
#: The most levels that a definition may have. JSON parsers fail at some hundred levels, each at another number.
_DEEPEST: Final = 32
#: Fields of definitions that count something.
_COUNTS: Final = frozenset(("minLength", "maxLength", "minItems", "maxItems"))


# --- out -------------------------------------------------------------------------------------------------


def namespace(found: Namespace, **more: Any) -> dict[str, Any]:
    """A namespace as JSON, with the fields of `more` that are not empty."""
    return _known(
        namespace=found.name,
        display_name=found.display_name,
        description=found.description,
        visibility=found.visibility,
        protected=found.protected,
        owner=found.owner,
        **_times(found),
        **{name: value for name, value in more.items() if value},
        self=path(found.name),
        schema=f"{_SCHEMAS}/namespace",
    )


def definitions(found: Definitions, resource_type: str | None = None) -> dict[str, Any]:
    """A namespace with everything in it. With a resource type, properties get the prefix that it has for them."""
    prefix = next((link.prefix for link in found.associations if link.resource_type == resource_type), None) or ""
    return namespace(
        found.namespace,
        resource_type_associations=[association(one) for one in found.associations],
        properties=properties(found.properties, prefix),
        objects=[object_(found.namespace.name, one, prefix) for one in found.objects],
        tags=[{"name": one.name} for one in found.tags],
    )


def object_(of: str, found: MetadefObject, prefix: str = "") -> dict[str, Any]:
    return _known(
        name=found.name,
        required=[prefix + name for name in found.required],
        description=found.description,
        properties={prefix + name: dict(definition) for name, definition in found.properties.items()},
        **_times(found),
        self=path(of, "objects", found.name),
        schema=f"{_SCHEMAS}/object",
    )


def properties(found: Iterable[MetadefProperty], prefix: str = "") -> dict[str, Any]:
    """Definitions by property name."""
    return {prefix + one.name: dict(one.definition) for one in found}


def property_(found: MetadefProperty) -> dict[str, Any]:
    return {"name": found.name, **found.definition}


def tag(found: MetadefTag) -> dict[str, Any]:
    return {"name": found.name, **_times(found)}


def association(found: Association) -> dict[str, Any]:
    return _known(
        name=found.resource_type, prefix=found.prefix, properties_target=found.properties_target, **_times(found)
    )


def resource_type(found: ResourceType) -> dict[str, Any]:
    return {"name": found.name, **_times(found)}


def path(*names: str) -> str:
    """The path of a namespace, or of something in it."""
    return "/".join((NAMESPACES, *(quote(name, safe=":") for name in names)))


# --- in --------------------------------------------------------------------------------------------------


def to_namespace(values: Mapping[str, Any], owner: str, now: datetime) -> Namespace:
    """A namespace from a request. Its owner is the caller's project unless the request names another one."""
    return Namespace(
        0,
        values["namespace"],
        values.get("owner") or owner,
        now,
        now,
        display_name=values.get("display_name"),
        description=values.get("description"),
        visibility=values.get("visibility", "private"),
        protected=values.get("protected", False),
    )


def to_definitions(values: Mapping[str, Any], owner: str, now: datetime) -> Definitions:
    """A new namespace and its content from a request."""
    return Definitions(
        to_namespace(values, owner, now),
        tuple(to_association(one, now) for one in values.get("resource_type_associations", ())),
        tuple(to_property({**one, "name": name}, now) for name, one in values.get("properties", {}).items()),
        tuple(to_object(one, now) for one in values.get("objects", ())),
        tuple(to_tag(one, now) for one in values.get("tags", ())),
    )


def to_association(values: Mapping[str, Any], now: datetime) -> Association:
    return Association(
        values["name"], now, now, prefix=values.get("prefix"), properties_target=values.get("properties_target")
    )


def to_property(values: Mapping[str, Any], now: datetime) -> MetadefProperty:
    return MetadefProperty(values["name"], _kept(_definition(values)), now, now)


def to_object(values: Mapping[str, Any], now: datetime) -> MetadefObject:
    required = tuple(values.get("required", ()))
    if any("," in name for name in required):  # the column separates names by commas
        raise errors.Invalid("The name of a required property has no comma.")
    found = {name: _definition(one) for name, one in values.get("properties", {}).items()}
    description = values.get("description")
    _kept([description, required])
    return MetadefObject(values["name"], _kept(found), now, now, description=description, required=required)


def to_tag(values: Mapping[str, Any], now: datetime) -> MetadefTag:
    return MetadefTag(values["name"], now, now)


def _definition(values: Mapping[str, Any]) -> dict[str, Any]:
    """The definition of a property from a request. In JSON schema 1.0 is an integer, so such counts are converted."""
    return {name: int(value) if name in _COUNTS else value for name, value in values.items() if name != "name"}


def _kept(found: Any) -> Any:
    """The same value. Raises `Invalid` if the columns cannot hold it or it could not be parsed again."""
    level = [found]
    for _ in range(_DEEPEST):
        level = [inner for value in level if isinstance(value, Mapping | list) for inner in _inside(value)]
    if level:
        raise errors.Invalid("A definition is nested too deeply.")
    if len(json.dumps(found)) > MAX_VALUE:
        raise errors.Invalid(f"A property, or the properties of an object, may have at most {MAX_VALUE} bytes as JSON.")
    return found


def _inside(value: Mapping[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value


def _times(found: Any) -> dict[str, str]:
    return {name: timestamp(getattr(found, name)) for name in ("created_at", "updated_at")}


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
