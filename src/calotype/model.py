"""The nouns of the service as frozen dataclasses: images, members, tasks, metadata definitions, jobs, events.

Status machines and limits are tables and constants here, too. Nothing here knows SQL, HTTP or stores.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from calotype import errors

VISIBILITIES: Final = ("public", "private", "shared", "community")
MEMBER_STATUSES: Final = ("pending", "accepted", "rejected")

#: The statuses that may follow each status (contract: images.md §2). `killed` was left by API v1 in adopted rows.
TRANSITIONS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "queued": frozenset({"saving", "uploading", "importing", "active", "deleted"}),
        "saving": frozenset({"active", "queued", "killed", "deleted"}),
        "uploading": frozenset({"importing", "queued", "deleted"}),
        "importing": frozenset({"active", "queued", "deleted"}),
        "active": frozenset({"deactivated", "pending_delete", "deleted"}),
        "deactivated": frozenset({"active", "deleted"}),
        "pending_delete": frozenset({"active", "deleted"}),
        "killed": frozenset({"deleted"}),
        "deleted": frozenset(),
    }
)
STATUSES: Final = tuple(TRANSITIONS)

TASK_TYPES: Final = ("import", "api_image_import", "location_import")
#: For each status of a task, the statuses that may precede it.
TASK_TRANSITIONS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "pending": frozenset(),
        "processing": frozenset({"pending"}),
        "success": frozenset({"processing"}),
        "failure": frozenset({"pending", "processing"}),
    }
)
TASK_STATUSES: Final = tuple(TASK_TRANSITIONS)

#: Image statuses in which the formats may still be changed.
FORMATS_OPEN: Final = frozenset({"queued", "importing"})

#: Custom property names that belong to the service.
RESERVED_PREFIX: Final = "os_glance"
#: Properties of these that name a host. They are never shown.
HIDDEN_PROPERTIES: Final = frozenset({"os_glance_stage_host", "os_glance_hash_op_host"})

#: What a name has to be that stands in paths: a tag of an image, a member, a namespace and what is in it.
#: Web servers and proxies decode a path before they hand it on, so a slash in a name would end it, also an escaped one;
#: `.` and `..` go away with the segment before them, and control characters end a request.
PATH_NAME: Final = r"^(?!\.{1,2}$)(?!.*%2[Ff])[^/\x00-\x1f\x7f-\x9f\ufffd]+$"
PATH_NAME_RULE: Final = (
    "must be a name that a path can hold: not empty, . or .., and without /, %2F and control characters"
)
_PATH_NAME: Final = re.compile(PATH_NAME)

MAX_INT: Final = 2**31 - 1
MAX_NAME: Final = 255
#: The longest name of a namespace, of what is in it, and of a resource type.
MAX_METADEF_NAME: Final = 80
#: The most bytes of all custom properties of an image together, as JSON: a list may have a thousand images.
MAX_PROPERTIES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Location:
    """One copy of an image's bytes. `url` is opaque to all but the driver of the store."""

    id: int
    url: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> str | None:
        """The name of the store that holds the copy, None where an old row does not say."""
        name = self.metadata.get("store") or self.metadata.get("backend")
        return str(name) if name else None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is. `identity` is written there; `place` is in the words of operators; `former` are earlier places.

    It is `established` once the identity was surely written; a process of `host` does that.
    """

    identity: str
    name: str
    place: str
    former: tuple[str, ...] = ()
    host: str = ""
    established: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """The record of an image. Sizes are bytes, `min_disk` GiB, `min_ram` MiB, times naive UTC.

    `member` is the caller's project if the caller sees the image as a member, else None. `memo` is for cached records:
    callers keep in it what they derive from the record. It is None for other records, and `replace` does not copy it.
    """

    id: str
    name: str | None
    status: str
    visibility: str
    owner: str | None
    created_at: datetime
    updated_at: datetime
    protected: bool = False
    os_hidden: bool = False
    disk_format: str | None = None
    container_format: str | None = None
    size: int | None = None
    virtual_size: int | None = None
    min_disk: int = 0
    min_ram: int = 0
    checksum: str | None = None
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    locations: tuple[Location, ...] = ()
    member: str | None = None
    memo: dict[str, Any] | None = field(default=None, init=False, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Member:
    """A project that an image is shared with."""

    image_id: str
    member: str
    status: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Task:
    """A user's view of work that goes on after the answer: what was asked for, its progress, its result.

    `owner` is a project id, empty if the task has no owner. `expires_at` is set when the task ends; then it vanishes.
    `input`, `result` and `message` are not redacted yet; lists leave all three out.
    """

    id: str
    type: str
    status: str
    owner: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    image_id: str | None = None
    request_id: str | None = None
    user_id: str | None = None
    input: Any = None  # JSON
    result: Any = None  # JSON
    message: str = ""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A set of metadata definitions. `id` is that of its row; users know it by its `name`."""

    id: int
    name: str
    owner: str
    created_at: datetime
    updated_at: datetime
    display_name: str | None = None
    description: str | None = None
    visibility: str = "private"
    protected: bool = False


@dataclass(frozen=True, slots=True)
class MetadefProperty:
    """What a property means and which values it may have; `definition` has the fields that were given, as JSON."""

    name: str
    definition: Mapping[str, Any]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class MetadefObject:
    """Properties that belong together: definitions by name, and the names of those that must be there."""

    name: str
    properties: Mapping[str, Mapping[str, Any]]
    created_at: datetime
    updated_at: datetime
    description: str | None = None
    required: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetadefTag:
    """A word that a namespace suggests for things of its resource types."""

    name: str
    created_at: datetime
    updated_at: datetime


#: A part of a namespace. Its name is unique among the parts of its kind.
MetadefPart = MetadefProperty | MetadefObject | MetadefTag


@dataclass(frozen=True, slots=True)
class ResourceType:
    """A kind of thing that carries properties, such as `OS::Glance::Image`."""

    name: str
    created_at: datetime
    updated_at: datetime
    protected: bool = False


@dataclass(frozen=True, slots=True)
class Association:
    """A namespace is for a resource type. There its properties have names with `prefix` in front."""

    resource_type: str
    created_at: datetime
    updated_at: datetime
    prefix: str | None = None
    properties_target: str | None = None


@dataclass(frozen=True, slots=True)
class Definitions:
    """A namespace with all that is in it, in the order in which it was added."""

    namespace: Namespace
    associations: tuple[Association, ...] = ()
    properties: tuple[MetadefProperty, ...] = ()
    objects: tuple[MetadefObject, ...] = ()
    tags: tuple[MetadefTag, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One step of an update: `op` is add, replace or remove. `strict_add` refuses to add what exists (draft 2.0)."""

    op: str
    name: str
    value: Any = None
    strict_add: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """`column op value`; op is one of eq neq lt lte gt gte."""

    column: str
    op: str
    value: Any


@dataclass(frozen=True, slots=True)
class Query:
    """What a list asks for. `sort` is (key, direction) pairs without the tie-breakers that `db` appends."""

    limit: int
    marker: str | None = None
    sort: tuple[tuple[str, str], ...] = (("created_at", "desc"),)
    visibility: str | None = None
    member_status: str = "accepted"
    os_hidden: bool = False
    one_of: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    tags: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A unit of work that must survive the process that began it.

    `attempt` counts claims; only the current one can finish the job. `token` names the attempt, also in the names of
    temporary files. `reserved` is how many bytes it reserved for its project when it was read.

    `step` is the number of the next step of its kind, `checkpoint` what earlier steps have kept for it. With a
    `failure` its steps are undone; `cancel` is why somebody wants it to stop. `progress` is what was recorded last.

    `failures` is how many attempts have failed; those whose process ended, or that had to wait, did not.
    """

    id: str
    kind: str
    image_id: str
    attempt: int
    owner: str | None
    payload: Mapping[str, Any]
    reserved: int = 0
    project: str | None = None
    step: int = 0
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None
    cancel: str | None = None
    place: str | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    failures: int = 0

    @property
    def token(self) -> str:
        return f"{self.id}-{self.attempt}"


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of an image that a job writes into a store.

    It is *pending* until an attempt begins to write, then *writing*, and *done* once it is final in the store. It is
    *failed* if the job goes on without it. `note` is what the store needs to clean up after that `attempt`; `url`,
    `object_id` and `metadata` are known of a copy that is done.
    """

    store: str
    identity: str | None = None
    state: str = "pending"
    attempt: int | None = None
    note: str | None = None
    url: str | None = None
    object_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that consumers of notifications are told. `id` is that of the message, also if it is sent again.

    `number` is the id of its row in the outbox, once it has one.
    """

    id: str
    type: str
    priority: str
    payload: Mapping[str, Any] | str
    at: datetime
    number: int = 0


def check_path_names(names: Iterable[str], what: str) -> None:
    """Raise `Invalid` unless each of the names can stand in a path."""
    bad = next((name for name in names if not _PATH_NAME.fullmatch(name)), None)
    if bad is not None:
        raise errors.Invalid(f"{what} {bad[:64]!r} {PATH_NAME_RULE}.")
