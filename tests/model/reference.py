"""The contract of images in a few lines: what each call of the API answers and changes, one at a time.

It knows nothing of the service. `tests/model/test_model.py` compares the two call by call, and
`tests/api/test_pairs.py` asks whether what many clients saw at once can be explained by calls one after another.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support import USERS

Answer = tuple[int, Any]  #: status, and what is told: a view of the image, its data, or None
Steps = Iterator[None]


@dataclass
class Image:
    owner: str | None
    values: dict[str, Any]
    status: str = "queued"
    data: bytes | None = None
    tags: set[str] = field(default_factory=set)
    properties: dict[str, str] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)

    def view(self) -> dict[str, Any]:
        """The record, as far as the model knows it; `view_of` makes the same of an answer."""
        size = len(self.data) if self.data is not None and self.status in ("active", "deactivated") else None
        return {
            **self.values, "status": self.status, "owner": self.owner, "size": size,
            "tags": sorted(self.tags), **self.properties,
        }  # fmt: skip


def view_of(record: dict[str, Any]) -> dict[str, Any]:
    known = ("name", "visibility", "protected", "os_hidden", "status", "owner", "size", "p", "q", "r")
    return {name: record[name] for name in known if name in record} | {"tags": sorted(record["tags"])}


@dataclass(frozen=True)
class Call:
    """One request. `what` is a method of `World`, `value` its argument."""

    user: str
    what: str
    id: str
    value: Any = None

    @property
    def project(self) -> str:
        return USERS[self.user][0]

    @property
    def admin(self) -> bool:
        return self.user == "admin"

    @property
    def writes(self) -> bool:
        return self.user != "reader"

    def request(self) -> tuple[str, str, Any]:
        """Method, path and body: bytes, what becomes JSON, or None."""
        image, value = f"/v2/images/{self.id}", self.value
        match self.what:
            case "create":
                formats = {"disk_format": "raw", "container_format": "bare"}
                return "POST", "/v2/images", {"id": self.id, **formats, **value}
            case "show":
                return "GET", image, None
            case "list":
                return "GET", f"/v2/images?limit=1000&{value}", None
            case "download":
                return "GET", f"{image}/file", None
            case "upload":
                return "PUT", f"{image}/file", value
            case "patch":
                return "PATCH", image, [value]
            case "tag":
                return "PUT", f"{image}/tags/{value}", None
            case "untag":
                return "DELETE", f"{image}/tags/{value}", None
            case "share":
                return "POST", f"{image}/members", {"member": value}
            case "answer":
                return "PUT", f"{image}/members/{value[0]}", {"status": value[1]}
            case "unshare":
                return "DELETE", f"{image}/members/{value}", None
            case "delete":
                return "DELETE", image, None
        return "POST", f"{image}/actions/{self.what}", None


class World:
    def __init__(self) -> None:
        self.images: dict[str, Image] = {}
        self.used: set[str] = set()

    def sees(self, call: Call, image: Image) -> bool:
        shared = image.values["visibility"] == "shared" and call.project in image.members
        return call.admin or shared or image.values["visibility"] in ("public", "community") or self.own(call, image)

    def own(self, call: Call, image: Image) -> bool:
        return call.project == image.owner

    def run(self, call: Call, answers: list[Answer]) -> Steps:
        """Carry the call out; it yields wherever others may come between, and adds its answer at the end."""
        if call.what == "upload":
            yield from self._upload(call, answers)
            return
        if call.what == "create":
            answers.append(self._create(call))
        elif call.what == "list":
            answers.append((200, self.listed(call)))
        elif (image := self.images.get(call.id)) is None or not self.sees(call, image):
            answers.append((404, None))
        else:
            answers.append(getattr(self, f"_{call.what}")(call, image))
        yield

    def once(self, call: Call) -> Answer:
        answers: list[Answer] = []
        for _ in self.run(call, answers):
            pass
        return answers[0]

    def may(self, call: Call, image: Image) -> bool:
        return call.admin or (call.writes and self.own(call, image))

    def _create(self, call: Call) -> Answer:
        values = {"name": None, "visibility": "shared", "protected": False, "os_hidden": False} | call.value
        owner = values.pop("owner", call.project)
        if not call.writes or ((values["visibility"] == "public" or owner != call.project) and not call.admin):
            return 403, None
        if call.id in self.used:
            return 409, None
        self.used.add(call.id)
        self.images[call.id] = Image(owner, values)
        return 201, self.images[call.id].view()

    def _show(self, _: Call, image: Image) -> Answer:
        return 200, image.view()

    def listed(self, call: Call) -> set[str]:
        query = dict(part.split("=") for part in call.value.split("&") if part)
        return {key for key, image in self.images.items() if self._in_list(call, image, query)}

    def _in_list(self, call: Call, image: Image, query: dict[str, str]) -> bool:
        values, visibility, status = image.values, query.get("visibility"), query.get("member_status", "accepted")
        joined = values["visibility"] == "shared" and image.members.get(call.project)
        told = call.admin or self.own(call, image) or values["visibility"] in ("public", "community")
        if not told and not (joined and status in ("all", joined)):
            return False
        if visibility is None and values["visibility"] == "community" and not self.own(call, image):
            return False
        return (
            visibility in (None, "all", values["visibility"])
            and values["os_hidden"] == (query.get("os_hidden") == "true")
            and query.get("tag", next(iter(image.tags), None)) in (image.tags or {None})
            and query.get("status", image.status) == image.status
            and query.get("p", image.properties.get("p")) == image.properties.get("p")
        )

    def _download(self, call: Call, image: Image) -> Answer:
        if not (call.admin or call.writes) or (image.status == "deactivated" and not call.admin):
            return 403, None
        return (200, image.data) if image.status in ("active", "deactivated") else (204, None)

    def _upload(self, call: Call, answers: list[Answer]) -> Steps:
        for look in ("before", "locked"):
            image = self.images.get(call.id)
            if image is None or not self.sees(call, image):
                answers.append((404, None))
            elif look == "before" and not self.may(call, image):
                answers.append((403, None))
            elif image.status != "queued":
                answers.append((409, None))
            yield
            if answers:
                return
        # Nobody else touches the data of an image that is being saved.
        assert image is not None
        image.status = "saving"
        yield
        if self.images.get(call.id) is not image:
            answers.append((410, None))
        else:
            image.status, image.data = "active", call.value
            answers.append((204, None))
        yield

    def _patch(self, call: Call, image: Image) -> Answer:
        op, name, value = call.value["op"], call.value["path"][1:], call.value.get("value")
        if not self.may(call, image):
            return 403, None
        if name in image.values:
            if name == "visibility" and value == "public" != image.values[name] and not call.admin:
                return 403, None
            image.values[name] = value
        elif op == "add":
            image.properties[name] = value
        elif name not in image.properties:
            return 409, None
        elif op == "remove":
            del image.properties[name]
        else:
            image.properties[name] = value
        return 200, image.view()

    def _tag(self, call: Call, image: Image) -> Answer:
        if not self.may(call, image):
            return 403, None
        image.tags.add(call.value)
        return 204, None

    def _untag(self, call: Call, image: Image) -> Answer:
        if not self.may(call, image):
            return 403, None
        if call.value not in image.tags:
            return 404, None
        image.tags.remove(call.value)
        return 204, None

    def _share(self, call: Call, image: Image) -> Answer:
        if image.values["visibility"] != "shared" or not self.may(call, image):
            return 403, None
        if call.value in image.members:
            return 409, None
        image.members[call.value] = "pending"
        return 200, None

    def _answer(self, call: Call, image: Image) -> Answer:
        member, status = call.value
        if image.values["visibility"] != "shared":
            return 403, None
        if member not in image.members or not (call.admin or self.own(call, image) or call.project == member):
            return 404, None
        if not call.admin and not (call.writes and call.project == member):
            return 403, None
        image.members[member] = status
        return 200, None

    def _unshare(self, call: Call, image: Image) -> Answer:
        if image.values["visibility"] != "shared":
            return 403, None
        if call.value not in image.members or not (call.admin or call.project in (image.owner, call.value)):
            return 404, None
        if not self.may(call, image):
            return 403, None
        del image.members[call.value]
        return 204, None

    def _deactivate(self, call: Call, image: Image) -> Answer:
        return self._switch(call, image, "active", "deactivated")

    def _reactivate(self, call: Call, image: Image) -> Answer:
        return self._switch(call, image, "deactivated", "active")

    def _switch(self, call: Call, image: Image, before: str, after: str) -> Answer:
        if not self.may(call, image) or image.status not in (before, after):
            return 403, None
        image.status = after
        return 204, None

    def _delete(self, call: Call, image: Image) -> Answer:
        if not self.may(call, image) or image.values["protected"]:
            return 403, None
        del self.images[call.id]
        return 204, None


def told(call: Call, status: int, content: bytes, record: Any) -> Answer:
    """A real answer in the model's words; `record` is its JSON or None."""
    if status >= 300 or status == 204:
        return status, None
    if call.what in ("create", "show", "patch"):
        return status, view_of(record)
    if call.what == "list":
        return status, {image["id"] for image in record["images"]}
    return status, content if call.what == "download" else None
