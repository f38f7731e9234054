"""The authorization matrix: every route, asked by every kind of caller, of images and namespaces of every kind.

`ROWS` says for each route what is sent and what must be answered, in rules of its own words (below), written from
Glance's documentation and not from `calotype.policy`. `World` is a database with images and namespaces of every kind,
which is put back after each request that changed it. How a request is sent is the business of whoever makes the matrix: see `Send`.
"""

import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from calotype.api.routes import ROUTES
from calotype.db import images as db_images
from calotype.db import jobs
from calotype.db import members as db_members
from calotype.db import metadefs as db_metadefs
from calotype.db.engine import Database
from calotype.images import imports
from calotype.model import Association, MetadefObject, MetadefProperty, MetadefTag
from calotype.model import Image as Record
from calotype.model import Namespace as NamespaceRecord
from tests.support import OCTETS, PATCH_21

# --- who asks --------------------------------------------------------------------------------------------

_INCLUDES = ("admin", "manager", "member", "reader")


@dataclass(frozen=True)
class Persona:
    """A caller. `known` is false for one without credentials, or with wrong ones; an anonymous one is `read_only`."""

    name: str
    project: str = ""
    roles: tuple[str, ...] = ()
    known: bool = True
    read_only: bool = False

    def has(self, role: str) -> bool:
        """Whether it has the role, or one that includes it."""
        return role in self.roles or any(
            role in _INCLUDES[_INCLUDES.index(one) :] for one in self.roles if one in _INCLUDES
        )


PERSONAS = (
    Persona("none", known=False),
    Persona("wrong", known=False),
    Persona("reader", "red", ("reader",)),
    Persona("member", "red", ("member",)),
    Persona("manager", "red", ("manager",)),
    Persona("admin", "admin", ("admin",)),
    Persona("service", "service", ("service",)),
    Persona("working-service", "service", ("service", "member")),
    Persona("other", "blue", ("member",)),
    Persona("other-reader", "blue", ("reader",)),
    Persona("pending", "pending", ("member",)),
    Persona("accepted", "accepted", ("member",)),
    Persona("accepted-reader", "accepted", ("reader",)),
    Persona("rejected", "rejected", ("member",)),
)
#: Where anonymous access is allowed, whoever has no credentials is this one.
ANONYMOUS = Persona("none", read_only=True)
KNOWN = tuple(persona for persona in PERSONAS if persona.known)

# --- what is asked of ------------------------------------------------------------------------------------

VISIBILITIES = ("private", "shared", "community", "public")
#: Projects that have a row as member of every image, whatever its visibility. It counts for shared ones alone.
MEMBERS = ("pending", "accepted", "rejected")
#: state → status and what else there is to it
STATES: Mapping[str, dict[str, Any]] = {
    "queued": {"status": "queued"},
    "saving": {"status": "saving"},
    "staged": {"status": "uploading"},  # with data that can be imported
    "importing": {"status": "importing"},  # by a job
    "active": {"status": "active"},
    "deactivated": {"status": "deactivated"},
    "protected": {"status": "active", "protected": True},
    "hidden": {"status": "active", "os_hidden": True},
    "twice": {"status": "active"},  # in two stores
    "nobody's": {"status": "active", "owner": None},
}
CONTENT = b"data"
#: A URL that may be fetched, and where nobody answers.
SOURCE = "http://127.0.0.9:9/data"
#: Lines of a configuration that allow it.
FETCHES = "[import_filtering_opts]\nallowed_ports =\nprivate_hosts = 127.0.0.9\n"


@dataclass(frozen=True)
class Image:
    """An image of the world."""

    id: str
    visibility: str
    state: str
    owner: str | None = "red"

    @property
    def status(self) -> str:
        return str(STATES[self.state]["status"])

    @property
    def stores(self) -> tuple[str, ...]:
        if self.status not in ("active", "deactivated"):
            return ()
        return ("one", "two") if self.state == "twice" else ("one",)


@dataclass(frozen=True)
class Namespace:
    """A namespace of the world, with an object `o`, a property `p`, tags `t` and `u`, for the resource type `TYPE`."""

    visibility: str
    owner: str
    protected: bool = False

    @property
    def name(self) -> str:
        return f"{self.visibility}-{self.owner}{'-protected' * self.protected}"


#: Protection matters where something is deleted, to whoever might do that; so there are few with it.
NAMESPACES = (
    *(Namespace(visibility, owner) for visibility in ("public", "private") for owner in ("red", "blue", "admin")),
    *(Namespace(visibility, "red", protected=True) for visibility in ("public", "private")),
)
TYPE, PREFIX = "OS::Thing", "pre_"
#: A namespace that nobody asks of.
TAKEN = Namespace("private", "nobody")


# --- the rules, in words ---------------------------------------------------------------------------------


def owns(p: Persona, i: Image) -> bool:
    return i.owner is not None and p.project == i.owner


def shares(p: Persona, i: Image) -> bool:
    """Whatever it answered to the offer. What is nobody's an administrator offers."""
    return i.visibility == "shared" and p.project in MEMBERS


def sees(p: Persona, i: Image) -> bool:
    if p.has("admin"):
        return True
    return p.has("reader") and (owns(p, i) or shares(p, i) or i.visibility in ("public", "community"))


def changes(p: Persona, i: Image) -> bool:
    return p.has("admin") or (p.has("member") and owns(p, i))


def downloads(p: Persona, i: Image) -> bool:
    return p.has("admin") or (p.has("member") and sees(p, i))


def refused(p: Persona, i: Image) -> int:
    """Who may not even know of the image hears that there is none."""
    return 403 if sees(p, i) else 404


#: What must be answered to a caller that has been recognized, asking of an image, or of a namespace.
Expect = Callable[[Persona, Any], int]


def if_changes(answer: Callable[[Persona, Image], int] | int) -> Expect:
    """For who may change the image; the status of the image, and whatever else, plays a part for them alone."""
    return lambda p, i: (answer(p, i) if callable(answer) else answer) if changes(p, i) else refused(p, i)


def if_downloads(answer: Callable[[Persona, Image], int] | int) -> Expect:
    return lambda p, i: (answer(p, i) if callable(answer) else answer) if downloads(p, i) else refused(p, i)


def data(p: Persona, i: Image) -> int:
    if i.status == "deactivated" and not p.has("admin"):
        return 403
    return 200 if i.stores else 204


def becomes(visibility: str) -> Callable[[Persona, Image], int]:
    """Administrators alone make an image public."""
    return lambda p, i: 200 if p.has("admin") or i.visibility == visibility or visibility != "public" else 403


def among_members(answer: Expect, *, unshared: int = 403) -> Expect:
    """Only shared images have members."""
    return lambda p, i: 404 if not sees(p, i) else unshared if i.visibility != "shared" else answer(p, i)


def lists_members(p: Persona, i: Image) -> int:
    return 200 if p.has("admin") or owns(p, i) or shares(p, i) else 403


def of_member(project: str, answer: Expect) -> Expect:
    """A member is known to the owner, to itself and to administrators."""
    return lambda p, i: answer(p, i) if p.has("admin") or owns(p, i) or p.project == project else 404


def answers_as_accepted(p: Persona, i: Image) -> int:
    return 200 if p.has("admin") or (p.project == "accepted" and p.has("member")) else 403


def removes_copy(p: Persona, i: Image) -> int:
    if not p.has("admin"):
        return refused(p, i)
    return 409 if i.status != "active" else 204 if i.state == "twice" else 403


def knows(p: Persona, i: Image) -> bool:
    """What is needed where a service is concerned, which has no role to read with."""
    return sees(p, i) or i.visibility in ("public", "community") or owns(p, i) or shares(p, i)


def copies(answer: Callable[[Image], int]) -> Expect:
    """Administrators alone copy images to further stores; of those that have data."""
    return lambda p, i: refused(p, i) if not p.has("admin") else answer(i) if i.status == "active" else 409


def reads_locations(p: Persona, i: Image) -> int:
    if not knows(p, i):
        return 404
    return 200 if p.has("admin") or p.has("service") else refused(p, i)


def adds_location(p: Persona, i: Image) -> int:
    """One that no store here takes: services hear so, others that they may not, as there is no store of web servers."""
    if not knows(p, i):
        return 404
    if not (p.has("service") or changes(p, i)):
        return refused(p, i)
    return 400 if p.has("service") else 403


def anybody(status: int) -> Expect:
    return lambda p, i: status


def whoever(*roles: str, then: int, otherwise: int = 403) -> Expect:
    return lambda p, i: then if any(p.has(role) for role in roles) else otherwise


def looks(p: Persona, n: Namespace) -> bool:
    return p.has("admin") or (p.has("reader") and (n.visibility == "public" or p.project == n.owner))


def if_looks(answer: int) -> Expect:
    return lambda p, n: answer if looks(p, n) else 404


def if_administers(answer: int) -> Expect:
    """Administrators write the catalogue; others hear whether there is something by what they may see."""
    return lambda p, n: answer if p.has("admin") else 403 if looks(p, n) else 404


def if_takes_away(answer: int) -> Expect:
    """Of what is protected nothing is deleted."""
    return lambda p, n: 403 if p.has("admin") and n.protected else if_administers(answer)(p, n)


def catalogue(answer: int, *roles: str) -> Expect:
    """What is about no namespace that there is. Who may not even read hears that there is nothing."""
    return lambda p, n: answer if any(p.has(role) for role in roles) else 403 if p.has("reader") else 404


# --- the rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One request, and what must be answered. `values` fill the path; `content` looks at the body of a success."""

    expect: Expect
    values: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Callable[[Persona, Any, Any], bool] = lambda p, i, found: True

    def payload(self) -> bytes:
        return (
            self.body if isinstance(self.body, bytes) else b"" if self.body is None else json.dumps(self.body).encode()
        )


def patch(expect: Expect, op: str, path: str, *value: Any) -> Ask:
    step = {"op": op, "path": path} | ({"value": value[0]} if value else {})
    return Ask(expect, body=[step], headers=PATCH_21)


def importing(expect: Expect, name: str, *, stores: Any = None, all_stores: Any = None, **method: str) -> Ask:
    """A request for an import by the method of this name."""
    more = {"stores": stores, "all_stores": all_stores}
    body = {"method": {"name": name, **method}, **{key: value for key, value in more.items() if value is not None}}
    return Ask(expect, body=body)


def their_own(p: Persona, i: Image, found: Any) -> bool:
    """The owner and administrators are told all members; a member is told of itself."""
    listed = [entry["member_id"] for entry in found["members"]]
    return sorted(listed) == (sorted(MEMBERS) if p.has("admin") or owns(p, i) else [p.project])


def is_it(p: Persona, i: Image, found: Any) -> bool:
    return bool(found["id"] == i.id)


def those_seen(*visibilities: str) -> Callable[[Persona, Any, Any], bool]:
    """A list has the namespaces that can be shown, each once."""
    return lambda p, n, found: (
        sorted(one["namespace"] for one in found["namespaces"])
        == sorted(one.name for one in (*NAMESPACES, TAKEN) if looks(p, one) and one.visibility in visibilities)
    )


def is_the_namespace(p: Persona, n: Namespace, found: Any) -> bool:
    return bool(found["namespace"] == n.name)


def named(key: str, *names: str) -> Callable[[Persona, Any, Any], bool]:
    return lambda p, n, found: sorted(one if isinstance(one, str) else one["name"] for one in found[key]) == list(names)


#: Routes that ask nobody who he is.
OPEN = frozenset(
    (
        ("GET", "/"),
        ("GET", "/versions"),
        ("GET", "/v2"),
        ("GET", "/healthcheck"),
        ("HEAD", "/healthcheck"),
        ("GET", "/openapi.json"),
    )
)
_I = "/v2/images/{image_id}"
_ACCEPTED = {"member_id": "accepted"}
_STRANGER = {"member_id": "stranger"}
_N = "/v2/metadefs/namespaces"
_NS = _N + "/{namespace}"
_PROPERTY = {"title": "New", "type": "string"}
_NESTED = {
    "namespace": "new",
    "visibility": "public",
    "resource_type_associations": [{"name": TYPE}, {"name": "OS::New"}],
    "properties": {"new": _PROPERTY},
    "objects": [{"name": "new", "properties": {"new": _PROPERTY}}],
    "tags": [{"name": "new"}],
}
_ALL_SEEN = those_seen("public", "private")


def _part(kind: str, new: Mapping[str, Any], there: str) -> Mapping[tuple[str, str], Sequence[Ask]]:
    """The rows of objects, properties or tags: one of them has the name `there`."""
    one = {"properties": "property"}.get(kind, kind[:-1]) + "_name"
    is_there, is_not, one = {one: there}, {one: "none"}, f"{_NS}/{kind}/{{{one}}}"
    return {
        ("GET", f"{_NS}/{kind}"): [Ask(if_looks(200), content=named(kind, *{"tags": "tu"}.get(kind, there)))],
        ("DELETE", f"{_NS}/{kind}"): [Ask(if_takes_away(204))],
        ("GET", one): [Ask(if_looks(200), is_there), Ask(if_looks(404), is_not)],
        ("PUT", one): [
            Ask(if_administers(200), is_there, body={**new, "name": "new"}),
            Ask(if_administers(200), is_there, body={**new, "name": there}),
            Ask(if_administers(404), is_not, body={**new, "name": "new"}),
        ],
        ("DELETE", one): [Ask(if_takes_away(204), is_there)],
    }


_DOWNLOAD = (
    Ask(if_downloads(data)),
    Ask(if_downloads(data), query="prefer=one"),
    Ask(if_downloads(400), query="prefer=nowhere"),
)

ROWS: Mapping[tuple[str, str], Sequence[Ask]] = {
    ("GET", "/"): [Ask(anybody(300))],
    ("GET", "/versions"): [Ask(anybody(200))],
    ("GET", "/v2"): [Ask(anybody(302))],
    ("GET", "/healthcheck"): [Ask(anybody(200))],
    ("HEAD", "/healthcheck"): [Ask(anybody(200))],
    ("GET", "/openapi.json"): [Ask(anybody(200))],
    #
    ("GET", "/v2/images"): [
        Ask(whoever("reader", then=200)),
        Ask(whoever("reader", then=200), query="visibility=all&member_status=all&os_hidden=true"),
        Ask(whoever("reader", then=200), query="owner=red"),
        Ask(whoever("reader", then=400), query="marker=00000000-0000-4000-8000-00000000ffff"),
    ],
    ("POST", "/v2/images"): [
        Ask(whoever("member", then=201), body={"name": "new"}),
        Ask(whoever("admin", then=201), body={"owner": "red-or-blue"}),
        Ask(whoever("admin", then=201), body={"visibility": "public"}),
        Ask(whoever("member", then=201), body={"visibility": "community"}),
        # That an id is taken is told to whoever might have used it, and to nobody else.
        Ask(whoever("member", then=409), body={"id": "{some id}"}),
    ],
    ("GET", _I): [Ask(lambda p, i: 200 if sees(p, i) else 404, content=is_it)],
    ("PATCH", _I): [
        patch(if_changes(200), "replace", "/name", "new"),
        patch(if_changes(200), "add", "/colour", "blue"),
        patch(if_changes(409), "replace", "/absent", "x"),
        patch(if_changes(becomes("public")), "replace", "/visibility", "public"),
        patch(if_changes(becomes("community")), "replace", "/visibility", "community"),
        patch(if_changes(becomes("private")), "replace", "/visibility", "private"),
        patch(if_changes(200), "replace", "/protected", True),
        patch(if_changes(lambda p, i: 200 if p.has("admin") else 403), "replace", "/owner", "blue"),
        patch(
            if_changes(lambda p, i: 200 if i.status in ("queued", "importing") else 403),
            "replace", "/disk_format", "iso",
        ),
    ],
    ("DELETE", _I): [Ask(if_changes(lambda p, i: 403 if i.state == "protected" else 204))],
    #
    ("PUT", _I + "/file"): [
        Ask(if_changes(lambda p, i: 204 if i.status == "queued" else 409), body=CONTENT, headers=OCTETS),
        Ask(
            if_changes(lambda p, i: 400 if i.status == "queued" else 409),
            body=CONTENT,
            headers={**OCTETS, "x-image-meta-store": "nowhere"},
        ),
        Ask(
            if_changes(lambda p, i: 413 if i.status == "queued" else 409),
            body=CONTENT,
            headers={**OCTETS, "x-openstack-image-size": "9000000000000"},
        ),
    ],
    ("GET", _I + "/file"): _DOWNLOAD,
    ("HEAD", _I + "/file"): _DOWNLOAD[:1],
    #
    ("PUT", _I + "/stage"): [
        Ask(if_changes(lambda p, i: 204 if i.status == "queued" else 409), body=CONTENT, headers=OCTETS),
        Ask(
            if_changes(lambda p, i: 413 if i.status == "queued" else 409),
            body=CONTENT,
            headers={**OCTETS, "x-openstack-image-size": "9000000000000"},
        ),
    ],
    ("POST", _I + "/import"): [
        importing(if_changes(lambda p, i: 202 if i.state == "staged" else 409), "glance-direct"),
        importing(if_changes(lambda p, i: 202 if i.status == "queued" else 409), "web-download", uri=SOURCE),
        importing(if_changes(lambda p, i: 400 if i.status == "queued" else 409), "web-download", uri="http://127.0.0.1/"),
        importing(if_changes(409), "web-download", uri=SOURCE, stores=["nowhere"]),
        importing(copies(lambda i: 202), "copy-image", all_stores=True),
        importing(copies(lambda i: 400 if "two" in i.stores else 202), "copy-image", stores=["two"]),
        # What depends on nothing that there is, such as the catalog of a Keystone, is told to everybody.
        importing(anybody(400), "glance-download", glance_region="r", glance_image_id="{some id}"),
        importing(if_changes(400), "none"),
    ],
    ("POST", _I + "/actions/cancel_import"): [Ask(if_changes(lambda p, i: 202 if i.status == "importing" else 409))],
    #
    ("PUT", _I + "/tags/{tag}"): [Ask(if_changes(204), {"tag": "new"}), Ask(if_changes(204), {"tag": "old"})],
    ("DELETE", _I + "/tags/{tag}"): [Ask(if_changes(204), {"tag": "old"}), Ask(if_changes(404), {"tag": "new"})],
    ("POST", _I + "/actions/deactivate"): [
        Ask(if_changes(lambda p, i: 204 if i.status in ("active", "deactivated") else 403))
    ],
    ("POST", _I + "/actions/reactivate"): [
        Ask(if_changes(lambda p, i: 204 if i.status in ("active", "deactivated") else 403))
    ],
    #
    ("GET", _I + "/members"): [Ask(among_members(lists_members), content=their_own)],
    ("POST", _I + "/members"): [
        Ask(among_members(if_changes(200)), body={"member": "stranger"}),
        Ask(among_members(if_changes(409)), body={"member": "accepted"}),
    ],
    ("GET", _I + "/members/{member_id}"): [
        Ask(among_members(of_member("accepted", anybody(200)), unshared=404), _ACCEPTED),
        Ask(among_members(anybody(404), unshared=404), _STRANGER),
    ],
    ("PUT", _I + "/members/{member_id}"): [
        Ask(among_members(of_member("accepted", answers_as_accepted)), _ACCEPTED, body={"status": "rejected"}),
        Ask(among_members(anybody(404)), _STRANGER, body={"status": "accepted"}),
    ],
    ("DELETE", _I + "/members/{member_id}"): [
        Ask(among_members(of_member("accepted", if_changes(204))), _ACCEPTED),
        Ask(among_members(anybody(404)), _STRANGER),
    ],
    #
    ("GET", _I + "/locations"): [Ask(reads_locations)],
    ("POST", _I + "/locations"): [
        Ask(adds_location, body={"url": "file:///etc/passwd"}),
        Ask(adds_location, body={"url": "http://192.0.2.1/x"}),
    ],
    # The deprecated API of tasks is the administrators'; the tasks of an image are for whoever sees it.
    ("GET", _I + "/tasks"): [Ask(lambda p, i: 200 if sees(p, i) else 404)],
    ("GET", "/v2/tasks"): [Ask(whoever("admin", then=200)), Ask(whoever("admin", then=400), query="limit=many")],
    ("POST", "/v2/tasks"): [
        Ask(whoever("admin", then=201), body={"type": "import", "input": {"import_from": SOURCE}}),
        Ask(whoever("admin", then=400), body={"type": "import", "input": {"import_from": "http://127.0.0.1/"}}),
        Ask(whoever("admin", then=400), body={"type": "import", "input": {}}),
        Ask(whoever("admin", then=400), body={"type": "nonsense"}),
    ],
    ("GET", "/v2/tasks/{task_id}"): [Ask(whoever("admin", then=404), {"task_id": "00000000-0000-4000-8000-00000000ffff"})],
    #
    ("GET", "/v2/info/import"): [Ask(anybody(200))],
    ("GET", "/v2/info/usage"): [Ask(anybody(200))],
    ("GET", "/v2/info/stores"): [Ask(anybody(200))],
    ("GET", "/v2/info/stores/detail"): [Ask(whoever("admin", "service", then=200))],
    ("DELETE", "/v2/stores/{store_id}/{image_id}"): [
        Ask(removes_copy, {"store_id": "one"}),
        Ask(lambda p, i: 409 if p.has("admin") else refused(p, i), {"store_id": "nowhere"}),
    ],
    ("GET", "/v2/schemas/{name}"): [Ask(anybody(200), {"name": "image"}), Ask(anybody(404), {"name": "nothing"})],
    ("GET", "/v2/schemas/metadefs/{name}"): [
        Ask(anybody(200), {"name": "namespace"}), Ask(anybody(404), {"name": "nothing"})
    ],
    #
    ("GET", _N): [
        Ask(catalogue(200, "reader"), content=_ALL_SEEN),
        Ask(catalogue(200, "reader"), query="sort_key=owner&sort_dir=asc&limit=100", content=_ALL_SEEN),
        Ask(catalogue(200, "reader"), query="visibility=private", content=those_seen("private")),
        Ask(catalogue(200, "reader"), query=f"resource_types=x,{TYPE}", content=_ALL_SEEN),
        Ask(catalogue(200, "reader"), query="resource_types=x", content=those_seen()),
        Ask(lambda p, n: 200 if p.has("admin") or p.project == "blue" else 404, query="marker=private-blue"),
        Ask(anybody(404), query="marker=none"),
    ],
    ("POST", _N): [
        Ask(catalogue(201, "admin"), body={"namespace": "new"}),
        Ask(catalogue(201, "admin"), body={"namespace": "new", "owner": "somebody"}),
        Ask(catalogue(201, "admin"), body=_NESTED),
        Ask(catalogue(409, "admin"), body={"namespace": "private-blue"}),
        # What no request may say is told to everybody: it depends on nothing that there is.
        Ask(anybody(400), body={"namespace": "new", "visibility": "shared"}),
        Ask(anybody(403), body={"namespace": "new", "created_at": "2026-01-01T00:00:00Z"}),
    ],
    ("GET", _NS): [
        Ask(if_looks(200), content=is_the_namespace),
        Ask(if_looks(200), query=f"resource_type={TYPE}", content=named("properties", PREFIX + "p")),
        Ask(anybody(404), {"namespace": "none"}),
    ],
    ("PUT", _NS): [
        Ask(if_administers(200), body={"namespace": "new", "visibility": "public", "owner": "somebody"}),
        Ask(if_administers(200), body={"namespace": "new"}),
        Ask(if_administers(409), body={"namespace": TAKEN.name}),
        Ask(anybody(404), {"namespace": "none"}, body={"namespace": "new"}),
    ],
    ("DELETE", _NS): [Ask(if_takes_away(204)), Ask(anybody(404), {"namespace": "none"})],
    **_part("objects", {"properties": {"x": _PROPERTY}}, "o"),
    ("POST", _NS + "/objects"): [
        Ask(if_administers(201), body={"name": "new"}),
        Ask(if_administers(409), body={"name": "o"}),
        Ask(anybody(404), {"namespace": "none"}, body={"name": "new"}),
    ],
    **_part("properties", _PROPERTY, "p"),
    ("POST", _NS + "/properties"): [
        Ask(if_administers(201), body={"name": "new", **_PROPERTY}),
        Ask(if_administers(409), body={"name": "p", **_PROPERTY}),
        Ask(anybody(404), {"namespace": "none"}, body={"name": "new", **_PROPERTY}),
    ],
    **_part("tags", {}, "t"),
    ("POST", _NS + "/tags"): [
        Ask(if_administers(201), body={"tags": [{"name": "new"}, {"name": "t"}]}),
        Ask(if_administers(201), body={"tags": [{"name": "new"}]}, headers={"X-Openstack-Append": "True"}),
        Ask(if_administers(409), body={"tags": [{"name": "t"}]}, headers={"X-Openstack-Append": "True"}),
    ],
    ("POST", _NS + "/tags/{tag_name}"): [
        Ask(if_administers(201), {"tag_name": "new"}), Ask(if_administers(409), {"tag_name": "t"}),
        Ask(anybody(404), {"namespace": "none", "tag_name": "new"}),
    ],
    ("GET", "/v2/metadefs/resource_types"): [Ask(catalogue(200, "reader"), content=named("resource_types", TYPE))],
    ("GET", _NS + "/resource_types"): [Ask(if_looks(200), content=named("resource_type_associations", TYPE))],
    ("POST", _NS + "/resource_types"): [
        Ask(if_administers(201), body={"name": "OS::New"}),
        Ask(if_administers(409), body={"name": TYPE}),
        Ask(anybody(404), {"namespace": "none"}, body={"name": "OS::New"}),
    ],
    ("DELETE", _NS + "/resource_types/{resource_type}"): [Ask(if_takes_away(204), {"resource_type": TYPE})],
}  # fmt: skip

# --- cells -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One caller, one request, one image or namespace where the route has one."""

    persona: Persona
    method: str
    path: str
    number: int  #: of the request in its row
    ask: Ask
    image: Image | None
    namespace: Namespace | None
    open: bool

    @property
    def wanted(self) -> int:
        if not self.persona.known and not self.open:
            return 401
        if self.persona.read_only and self.writes and not self.open:
            return 403
        return self.ask.expect(self.persona, self.of)

    @property
    def of(self) -> Any:
        return self.image or self.namespace

    @property
    def writes(self) -> bool:
        return self.method not in ("GET", "HEAD")

    def __str__(self) -> str:
        of = f" of a {self.image.visibility} image, {self.image.state}" if self.image else ""
        of += f" of namespace {self.namespace.name}" if self.namespace else ""
        return f"{self.method} {self.path} (request {self.number}) by {self.persona.name}{of}"


def cells(
    images: Sequence[Image], personas: Sequence[Persona] = PERSONAS, routes: Sequence[tuple[str, str]] = ()
) -> Iterator[Cell]:
    """All of them, of the routes that there are; callers that are not known ask of one image for each visibility.

    Where a route has many requests, each caller sends each of them for a third of the images, which differ from caller
    to caller and from request to request.
    Members of images are no other callers than the rest to namespaces, and ask of none.
    """
    some = tuple({one.visibility: one for one in reversed(images)}.values())
    few = tuple({one.visibility: one for one in reversed(NAMESPACES)}.values())
    for route in ROUTES:
        key = (route.method, route.path)
        if routes and key not in routes:
            continue
        for (number, ask), (shift, persona) in itertools.product(enumerate(ROWS[key]), enumerate(personas)):
            there: Sequence[Image | None] = (None,)
            of: Sequence[Namespace | None] = (None,)
            if "{image_id}" in route.path:
                there = images if persona.known else some
                if len(ROWS[key]) > 3:
                    there = [image for at, image in enumerate(there) if (at + at // 9 + number + shift) % 3 == 0]
            if "/metadefs/" in route.path and persona.project in MEMBERS:
                continue
            if "{namespace}" in route.path:
                of = NAMESPACES[:1] if "namespace" in ask.values else NAMESPACES if persona.known else few
            for image, namespace in itertools.product(there, of):
                yield Cell(persona, *key, number, ask, image, namespace, key in OPEN)


# --- the world -------------------------------------------------------------------------------------------

#: persona, method, target, headers, body → status and body of the answer
Send = Callable[[Persona, str, str, Mapping[str, str], bytes], tuple[int, bytes]]
_RECORDS = (
    *("images", "image_properties", "image_tags", "image_members", "image_locations"),
    *("metadef_namespaces", "metadef_objects", "metadef_properties", "metadef_tags"),
    *("metadef_resource_types", "metadef_namespace_resource_types"),
)


class World:
    """Images and namespaces of every kind in a service with two file stores and SQLite, and what keeps them as they are.

    `project` is what a project of the tests is called in this service: Keystone has ids for them.
    """

    def __init__(
        self,
        database: Database,
        file: Path,
        stores: Mapping[str, Path],
        states: Sequence[str] = tuple(STATES),
        project: Callable[[str], str] = lambda name: name,
    ) -> None:
        self.project = project
        self.images = [
            Image(f"00000000-0000-4000-8000-{number:012x}", visibility, state, STATES[state].get("owner", "red"))
            for number, (visibility, state) in enumerate(itertools.product(VISIBILITIES, states))
        ]
        self._stores = stores
        for path in stores.values():
            path.mkdir(parents=True, exist_ok=True)
        for image in self.images:
            self._add(database, image)
        for namespace in (*NAMESPACES, TAKEN):
            self._add_namespace(database, namespace)
        self._tables = sqlite3.connect(file, timeout=30, isolation_level=None)
        self._tables.execute("PRAGMA synchronous = OFF")
        listed = self._tables.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        self._names = [name for (name,) in listed if not name.endswith("version")]
        self._rows = {name: self._read(name) for name in self._names}
        self._version = self._seen()
        self._files = self._listing()

    def close(self) -> None:
        self._tables.close()

    def _add(self, database: Database, image: Image) -> None:
        when = datetime(2026, 1, 2)
        more = {name: value for name, value in STATES[image.state].items() if name not in ("status", "owner")}
        full = {"size": len(CONTENT), "os_hash_algo": "sha512", "os_hash_value": "0" * 128} if image.stores else {}
        record = Record(
            image.id,
            image.state,
            image.status,
            image.visibility,
            image.owner and self.project(image.owner),
            when,
            when,
            disk_format="raw",
            container_format="bare",
            tags=("old",),
            properties={"colour": "red"},
            **more,
            **full,
        )
        with database.write_once() as tx:
            db_images.add(tx, record)
            for member in MEMBERS:
                db_members.add(tx, image.id, self.project(member), when)
                db_members.set_status(tx, image.id, self.project(member), member, when)
            if image.state == "staged":
                job = jobs.submit(tx, imports.STAGED, image.id, {}, owner="nobody")
                jobs.park(tx, job, {"size": len(CONTENT)}, delay=timedelta(days=1))
            if image.state == "importing":
                jobs.submit(tx, imports.KIND, image.id, {"method": "web-download"}, delay=timedelta(days=1))
            for store in image.stores:
                db_images.add_location(tx, image.id, f"file://{self._stores[store] / image.id}", {"store": store}, when)
                (self._stores[store] / image.id).write_bytes(CONTENT)

    def _add_namespace(self, database: Database, namespace: Namespace) -> None:
        when = datetime(2026, 1, 2)
        record = NamespaceRecord(
            0,
            namespace.name,
            self.project(namespace.owner),
            when,
            when,
            visibility=namespace.visibility,
            protected=namespace.protected,
        )
        with database.write_once() as tx:
            made = db_metadefs.add(tx, record).id
            db_metadefs.add_association(tx, made, Association(TYPE, when, when, prefix=PREFIX))
            db_metadefs.add_parts(tx, db_metadefs.PROPERTY, made, [MetadefProperty("p", _PROPERTY, when, when)])
            db_metadefs.add_parts(tx, db_metadefs.OBJECT, made, [MetadefObject("o", {"p": _PROPERTY}, when, when)])
            db_metadefs.add_parts(tx, db_metadefs.TAG, made, [MetadefTag(name, when, when) for name in "tu"])

    # --- one cell

    def request(self, cell: Cell) -> tuple[str, str, Mapping[str, str], bytes]:
        """What `Send` wants to know beside the caller."""
        names = {name: self.project(value) for name, value in cell.ask.values.items() if name == "member_id"}
        of = {"image_id": cell.image.id if cell.image else "", "namespace": cell.namespace and cell.namespace.name}
        path = cell.path.format(**{**of, **cell.ask.values, **names})
        body = cell.ask.payload().replace(b"{some id}", self.images[0].id.encode())
        for member in (*MEMBERS, "stranger"):
            body = body.replace(f'"member": "{member}"'.encode(), f'"member": "{self.project(member)}"'.encode())
        return cell.method, path + (f"?{cell.ask.query}" if cell.ask.query else ""), cell.ask.headers, body

    def ask(self, cell: Cell, send: Send) -> str:
        """What is wrong with the answer to a cell; nothing if it is as it should be."""
        status, found = send(cell.persona, *self.request(cell))
        for member in MEMBERS:
            found = found.replace(self.project(member).encode(), member.encode())
        wanted = cell.wanted
        if status != wanted:
            wrong = f"answered {status}, not {wanted}"
        elif wanted == 200 and found[:1] == b"{" and not cell.ask.content(cell.persona, cell.of, json.loads(found)):
            wrong = f"the content is wrong: {found.decode()[:500]}"
        elif (not cell.writes or wanted >= 300) and self.changed():
            wrong = "something changed"
        else:
            wrong = ""
        self.restore()
        return wrong and f"{cell}: {wrong}"

    # --- what it is

    def changed(self) -> bool:
        """Whether a record or a file is another than at the beginning."""
        if self._listing() != self._files:
            return True
        return self._seen() != self._version and any(self._read(name) != self._rows[name] for name in _RECORDS)

    def restore(self) -> None:
        """Make everything what it was."""
        if (version := self._seen()) != self._version:
            self._version = version
            self._tables.execute("BEGIN IMMEDIATE")
            for name in self._names:
                if self._read(name) != self._rows[name]:
                    self._tables.execute(f"DELETE FROM {name}")
                    for row in self._rows[name]:
                        self._tables.execute(f"INSERT INTO {name} VALUES ({','.join('?' * len(row))})", row)
            self._tables.execute("COMMIT")
        if (there := self._listing()) != self._files:
            for store, path in self._stores.items():
                for gone in self._files[store] - there[store]:
                    (path / gone).write_bytes(CONTENT)
                for new in there[store] - self._files[store]:
                    (path / new).unlink()

    def _seen(self) -> int:
        """Another number when anybody else has changed the database."""
        return int(self._tables.execute("PRAGMA data_version").fetchone()[0])

    def _read(self, table: str) -> list[tuple[Any, ...]]:
        return self._tables.execute(f"SELECT * FROM {table}").fetchall()

    def _listing(self) -> dict[str, frozenset[str]]:
        return {store: frozenset(os.listdir(path)) for store, path in self._stores.items()}
