"""What the service tells others: the type and payload of each event, and which of them are wanted.

A use-case says in its transaction what happened, and the event is a row of the same transaction (`db/outbox.py`);
`jobs/sender.py` hands it to the drivers of `notifiers.py` afterwards. Payloads are the contract's (notifications.md
§2): pure functions of frozen values. Nothing in them names a location. An object of a new kind gets a function for its
payload, and a method beside `member`.
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

#: Lists that an image's properties hold as text, told with the events about its data.
_LISTS: Final = ("os_glance_importing_to_stores", "os_glance_failed_import")

#: What is told of a definition of a property, null where it does not say.
_TOLD_OF_DEFINITIONS: Final = (
    *("type", "title", "description", "default", "minimum", "maximum", "enum", "pattern", "minLength", "maxLength"),
    *("confidential", "items", "uniqueItems", "minItems", "maxItems", "additionalItems"),
)


class Events:
    """What happened, said in the transaction in which it did. Without a driver each method returns at once.

    `put` adds an event to the transaction, `read` gets the image of an id in it, `nudge` says that there will be
    something to send once it is committed.
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
        self._on = bool(config.notification_drivers(conf))
        self._disabled = frozenset(conf.disabled_notifications)
        self._put, self._read, self._now, self._nudge = put, read, now, nudge

    def wants(self, event_type: str) -> bool:
        """Whether such an event is to be sent: its type is not disabled, nor its group, what stands before the dot."""
        return self._on and not self._disabled & {event_type, event_type.partition(".")[0]}

    def image(self, tx: Any, image: Image | str, *event_types: str, **more: object) -> None:
        """Something happened to an image, as it is now; one that is given by its id is read in the transaction.

        `more` goes into the payloads.
        """
        wanted = [event_type for event_type in event_types if self.wants(event_type)]
        found = self._read(tx, image) if wanted and isinstance(image, str) else image
        if isinstance(found, Image):
            for event_type in wanted:
                payload = about_image(found)
                if event_type in ("image.prepare", "image.upload"):
                    payload |= about_import(found)
                self._add(tx, event_type, payload | more)

    def deleted(self, tx: Any, image: Image, when: datetime) -> None:
        """The record was removed."""
        if self.wants("image.delete"):
            self._add(tx, "image.delete", about_image(replace(image, status="deleted", updated_at=when), when))

    def upload_failed(self, tx: Any, image_id: str, why: str) -> None:
        """No data came of an upload that had begun. `why` is what a client may read."""
        if self.wants("image.upload"):
            self._add(tx, "image.upload", f"Upload to image {image_id} failed: {why}", "ERROR")

    def sent(self, tx: Any, image: Image, *, count: int, expected: int, project: str | None, user: str | None) -> None:
        """A client was sent so many of the bytes that it had asked for."""
        payload = about_sending(image, count, project, user)
        self._add(tx, "image.send", payload, "INFO" if count == expected else "ERROR")

    def member(self, tx: Any, member: Member, event_type: str, deleted_at: datetime | None = None) -> None:
        """Something happened to a member of an image."""
        if self.wants(event_type):
            self._add(tx, event_type, about_member(member, deleted_at))

    def task(self, tx: Any, task: Task, event_type: str, deleted_at: datetime | None = None) -> None:
        """Something happened to a task: whoever moves it along says so."""
        if self.wants(event_type):
            self._add(tx, event_type, about_task(task, deleted_at))

    def metadef(
        self, tx: Any, event_type: str, about: Callable[_P, Mapping[str, Any]], *given: _P.args, **more: _P.kwargs
    ) -> None:
        """Something happened to the catalogue of metadata definitions; `about` makes the payload of what is given."""
        if self.wants(event_type):
            self._add(tx, event_type, about(*given, **more))

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
    """The stores that an import is still to fill, and those where it failed."""
    return {name: [store for store in (image.properties.get(name) or "").split(",") if store] for name in _LISTS}


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
    """Without what it was given and what came of it: that is for its owner alone."""
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
    return {name: definition.get(name) for name in _TOLD_OF_DEFINITIONS}


def _deletion(when: datetime | None) -> dict[str, Any]:
    return {"deleted": when is not None, "deleted_at": _time(when) if when else None}


def _time(when: datetime) -> str:
    return f"{when.isoformat(timespec='seconds')}Z"
