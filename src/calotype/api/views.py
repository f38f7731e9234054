"""Converts values to the JSON of answers (contract: api.md §3, §5, §10)."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from calotype.images.stores import StoreFacts
from calotype.model import HIDDEN_PROPERTIES, Image, Location, Member, Task


def timestamp(when: datetime) -> str:
    return f"{when.isoformat(timespec='seconds')}Z"


def image(found: Image, store_names: Iterable[str], direct_url: str | None = None) -> dict[str, Any]:
    """An image as JSON. `store_names` are the stores that clients may see; `direct_url` is for services."""
    path = f"/v2/images/{found.id}"
    entity: dict[str, Any] = {
        name: value or "" for name, value in found.properties.items() if name not in HIDDEN_PROPERTIES
    }
    entity |= {
        "id": found.id,
        "name": found.name,
        "disk_format": found.disk_format,
        "container_format": found.container_format,
        "visibility": found.visibility,
        "size": found.size,
        "virtual_size": found.virtual_size,
        "status": found.status,
        "checksum": found.checksum,
        "protected": found.protected,
        "min_ram": found.min_ram,
        "min_disk": found.min_disk,
        "owner": found.owner,
        "os_hidden": found.os_hidden,
        "os_hash_algo": found.os_hash_algo,
        "os_hash_value": found.os_hash_value,
        "created_at": timestamp(found.created_at),
        "updated_at": timestamp(found.updated_at),
        "tags": list(found.tags),
        "self": path,
        "file": f"{path}/file",
        "schema": "/v2/schemas/image",
    }
    if stores := ",".join(dict.fromkeys(store_names)):
        entity["stores"] = stores
    if direct_url is not None:
        entity["direct_url"] = direct_url
    return entity


def member(found: Member) -> dict[str, Any]:
    return {
        "member_id": found.member,
        "image_id": found.image_id,
        "status": found.status,
        "created_at": timestamp(found.created_at),
        "updated_at": timestamp(found.updated_at),
        "schema": "/v2/schemas/member",
    }


def location(found: Location) -> dict[str, Any]:
    return {"url": found.url, "metadata": dict(found.metadata)}


def task_stub(found: Task) -> dict[str, Any]:
    """A task as lists show it."""
    return {
        "id": found.id,
        "type": found.type,
        "status": found.status,
        "owner": found.owner,
        "created_at": timestamp(found.created_at),
        "updated_at": timestamp(found.updated_at),
        **_known(expires_at=timestamp(found.expires_at) if found.expires_at else None),
        "self": f"/v2/tasks/{found.id}",
        "schema": "/v2/schemas/task",
    }


def task(found: Task) -> dict[str, Any]:
    said = {"input": found.input, "result": found.result, "message": found.message}
    whose = _known(image_id=found.image_id, request_id=found.request_id, user_id=found.user_id)
    return {**task_stub(found), **said, **whose}


def image_task(found: Task) -> dict[str, Any]:
    """A task in the list of its image: with all attributes, even those without a value, and without links."""
    entity = {"image_id": found.image_id, "request_id": found.request_id, "user_id": found.user_id, "expires_at": None}
    entity |= task(found) | {"deleted": False, "deleted_at": None}
    return {name: value for name, value in entity.items() if name not in ("self", "schema")}


def store(facts: StoreFacts) -> dict[str, Any]:
    """One store. Flags are strings, and present only if they are true, as clients expect."""
    entity: dict[str, Any] = {"id": facts.name}
    if facts.description:
        entity["description"] = facts.description
    if facts.default:
        entity["default"] = "true"
    if facts.read_only:
        entity["read-only"] = "true"
    if facts.details is not None:
        entity |= {"type": facts.kind, "weight": facts.weight, "properties": dict(facts.details)}
        entity["capabilities"] = list(facts.features)
    if facts.health is not None:
        entity["status"] = "available" if facts.health.ok else "unavailable"
        entity |= _known(free_bytes=facts.health.free, total_bytes=facts.health.total, last_error=facts.health.error)
    return entity


def _known(**values: Any) -> Mapping[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
