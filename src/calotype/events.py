"""`Events`: records what happened, for notifications; and the payload of each type of event.

A use-case calls a method of `Events` in its transaction, and the event becomes a row of that transaction
(`db/outbox.py`). Later `jobs/sender.py` sends it through the drivers in `notifiers.py`. Payloads are pure functions of
frozen values, as in the contract (notifications.md §2), and no payload has a location. A new kind of object gets a
function for its payload, and a method like `member`.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, ParamSpec

from oslo_config import cfg

from calotype import config
from calotype.model import (
    HIDDEN_PROPERTIES,
    Association,
    Event,
    Image,
    Member,
    MetadefObject,
    MetadefPart,
    MetadefProperty,
    Namespace,
    Task,
)

_P = ParamSpec("_P")

#: Properties with lists of stores as text. They are part of events about the data of an image.
_STORE_LISTS: Final = ("os_glance_importing_to_stores", "os_glance_failed_import")

#: The fields of a property definition in a payload; null for those that it lacks.
_DEFINITION_FIELDS: Final = (
    *("type", "title", "description", "default", "minimum", "maximum", "enum", "pattern", "minLength", "maxLength"),
    *("confidential", "items", "uniqueItems", "minItems", "maxItems", "additionalItems"),
)


class Events:
    """Records events in the transaction of the change. Without a driver each method returns at once.

    `put` adds an event to a transaction, and `read` reads an image in it. `nudge` tells the sender that there will be
    an event to send, once the transaction is committed.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        *,
        put: Callable[[Any, Event], None],
        read: Callable[[Any, str], Image | None],
        now: Callable[[], datetime],
        nudge: Callable[[], None] = lambda: None,
    ) -> None:
        self._has_drivers = bool(config.notification_drivers(conf))
        self._disabled = frozenset(conf.disabled_notifications)
        self._put, self._read, self._now, self._nudge = put, read, now, nudge

    def wants(self, event_type: str) -> bool:
        """Whether events of this type are sent: there is a driver, and neither the type nor its group is disabled.

        The group is the part of the type before the first dot.
        """
        return self._has_drivers and not self._disabled & {event_type, event_type.partition(".")[0]}

    def image(self, tx: Any, image: Image | str, *event_types: str, **extra: object) -> None:
        """Something happened to an image. Give its record as it is now, or its id: then it is read in the transaction.

        `extra` is added to the payloads.
        """
        wanted = [event_type for event_type in event_types if self.wants(event_type)]
        found = self._read(tx, image) if wanted and isinstance(image, str) else image
        if isinstance(found, Image):
            for event_type in wanted:
                payload = about_image(found)
                if event_type in ("image.prepare", "image.upload"):
                    payload |= about_import(found)
                self._add(tx, event_type, payload | extra)

    def deleted(self, tx: Any, image: Image, when: datetime) -> None:
        """An image was deleted."""
        if self.wants("image.delete"):
            self._add(tx, "image.delete", about_image(replace(image, status="deleted", updated_at=when), when))

    def upload_failed(self, tx: Any, image_id: str, why: str) -> None:
        """An upload failed after it had begun. `why` is a text that clients may read."""
        if self.wants("image.upload"):
            self._add(tx, "image.upload", f"Upload to image {image_id} failed: {why}", "ERROR")

    def sent(self, tx: Any, image: Image, *, count: int, expected: int, project: str | None, user: str | None) -> None:
        """A client was sent `count` of the `expected` bytes of an image."""
        payload = about_sending(image, count, project, user)
        self._add(tx, "image.send", payload, "INFO" if count == expected else "ERROR")

    def member(self, tx: Any, member: Member, event_type: str, deleted_at: datetime | None = None) -> None:
        """Something happened to a member of an image."""
        if self.wants(event_type):
            self._add(tx, event_type, about_member(member, deleted_at))

    def task(self, tx: Any, task: Task, event_type: str, deleted_at: datetime | None = None) -> None:
        """Something happened to a task."""
        if self.wants(event_type):
            self._add(tx, event_type, about_task(task, deleted_at))

    def metadef(
        self, tx: Any, event_type: str, about: Callable[_P, Mapping[str, Any]], *args: _P.args, **extra: _P.kwargs
    ) -> None:
        """Something happened to the catalogue of metadata definitions. `about` makes the payload of the arguments."""
        if self.wants(event_type):
            self._add(tx, event_type, about(*args, **extra))

    def _add(self, tx: Any, event_type: str, payload: Mapping[str, Any] | str, priority: str = "INFO") -> None:
        self._put(tx, Event(str(uuid.uuid4()), event_type, priority, payload, self._now()))
        self._nudge()


# --- payloads --------------------------------------------------------------------------------------------


def about_image(image: Image, deleted_at: datetime | None = None) -> dict[str, Any]:
    return {
        "id": image.id,
        "name": image.name,
        "status": image.status,
        "created_at": _time(image.created_at),
        "updated_at": _time(image.updated_at),
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "protected": image.protected,
        "checksum": image.checksum,
        "owner": image.owner,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "is_public": image.visibility == "public",
        "visibility": image.visibility,
        "properties": {name: value for name, value in image.properties.items() if name not in HIDDEN_PROPERTIES},
        "tags": list(image.tags),
        **_deletion(deleted_at),
    }


def about_import(image: Image) -> dict[str, list[str]]:
    """The stores that an import has yet to fill, and those where it failed."""
    return {name: [store for store in (image.properties.get(name) or "").split(",") if store] for name in _STORE_LISTS}


def about_sending(image: Image, count: int, project: str | None, user: str | None) -> dict[str, Any]:
    return {
        "bytes_sent": count,
        "image_id": image.id,
        "owner_id": image.owner,
        "receiver_tenant_id": project,
        "receiver_user_id": user,
    }


def about_member(member: Member, deleted_at: datetime | None = None) -> dict[str, Any]:
    return {
        "image_id": member.image_id,
        "member_id": member.member,
        "status": member.status,
        "created_at": _time(member.created_at),
        "updated_at": _time(member.updated_at),
        **_deletion(deleted_at),
    }


def about_task(task: Task, deleted_at: datetime | None = None) -> dict[str, Any]:
    """Without the task's input and result: these are for its owner alone."""
    return {
        "id": task.id,
        "type": task.type,
        "status": task.status,
        "result": None,
        "owner": task.owner,
        "message": None,
        "expires_at": _time(task.expires_at) if task.expires_at else None,
        "created_at": _time(task.created_at),
        "updated_at": _time(task.updated_at),
        **_deletion(deleted_at),
    }


def about_namespace(
    namespace: Namespace, old_name: str | None = None, deleted_at: datetime | None = None
) -> dict[str, Any]:
    return {
        "namespace": namespace.name,
        "namespace_old": old_name or namespace.name,
        "display_name": namespace.display_name,
        "protected": namespace.protected,
        "visibility": namespace.visibility,
        "owner": namespace.owner,
        "description": namespace.description,
        "created_at": _time(namespace.created_at),
        "updated_at": _time(namespace.updated_at),
        **_deletion(deleted_at),
    }


def about_part(
    namespace: str, part: MetadefPart, old_name: str | None = None, deleted_at: datetime | None = None
) -> dict[str, Any]:
    """A property, an object or a tag of a namespace."""
    payload: dict[str, Any] = {"namespace": namespace, "name": part.name, "name_old": old_name or part.name}
    if isinstance(part, MetadefProperty):
        return payload | _about_definition(part.definition) | _deletion(deleted_at)
    if isinstance(part, MetadefObject):
        payload["properties"] = [
            {"name": name, **_about_definition(definition)} for name, definition in part.properties.items()
        ]
        payload |= {"required": list(part.required), "description": part.description}
    return (
        payload | {"created_at": _time(part.created_at), "updated_at": _time(part.updated_at)} | _deletion(deleted_at)
    )


def about_association(namespace: str, link: Association, deleted_at: datetime | None = None) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "name": link.resource_type,
        "name_old": link.resource_type,
        "prefix": link.prefix,
        "properties_target": link.properties_target,
        "created_at": _time(link.created_at),
        "updated_at": _time(link.updated_at),
        **_deletion(deleted_at),
    }


def _about_definition(definition: Mapping[str, Any]) -> dict[str, Any]:
    return {name: definition.get(name) for name in _DEFINITION_FIELDS}


def _deletion(when: datetime | None) -> dict[str, Any]:
    return {"deleted": when is not None, "deleted_at": _time(when) if when else None}


def _time(when: datetime) -> str:
    return f"{when.isoformat(timespec='seconds')}Z"
