"""What is asked of both services, in this order: happy and bad, by each kind of caller, on every route.

A line is who asks, the method, the path and what goes with it. Ids are chosen here, rising in the order of creation, so
that both services sort alike whatever second each image is made in. `keep` gives a name to the id that a service made;
it stands in later paths in braces.

    ask("alice", "POST", "/v2/images", json={"id": image(1)})
"""

import gzip
import json as json_
from collections.abc import Callable
from itertools import product
from typing import Any
from urllib.parse import quote

from tests.differential import metadefs
from tests.differential.answers import CHOSEN
from tests.differential.asking import ANYBODY, BAD, PERSONAS, Ask
from tests.images import samples

OCTETS = {"Content-Type": "application/octet-stream"}
JSON = {"Accept": "application/json"}
PATCH_21 = "application/openstack-images-v2.1-json-patch"
PATCH_20 = "application/openstack-images-v2.0-json-patch"
PLAIN = {"disk_format": "raw", "container_format": "bare"}
DATA = bytes(range(256)) * 40  # 10,240 bytes
QCOW2 = samples.qcow2()


def image(number: int) -> str:
    return f"{number:08x}{CHOSEN}"


def path(number: int, rest: str = "") -> str:
    return f"/v2/images/{image(number)}{rest}"


def create(ask: Ask, who: str, number: int, data: bytes | None = None, **values: Any) -> None:
    """An image, with data if there is any."""
    ask(who, "POST", "/v2/images", json={"id": image(number), **PLAIN, **values})
    if data is not None:
        ask(who, "PUT", path(number, "/file"), data=data, headers=OCTETS)


def patch(ask: Ask, who: str, number: int, *steps: Any, media: str = PATCH_21) -> None:
    ask(who, "PATCH", path(number), data=json_.dumps(steps).encode(), headers={"Content-Type": media})


def add(where: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": where, "value": value}


def replace(where: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": where, "value": value}


def remove(where: str) -> dict[str, Any]:
    return {"op": "remove", "path": where}


# --- what needs no image ---------------------------------------------------------------------------------


def versions(ask: Ask) -> None:
    for one in ("/", "/versions", "/versions/2", "/v2", "/v2/", "/v1", "/v1/images", "/v3/images", "/v2.8/images"):
        ask("alice", "GET", one)
    for minor in (*range(8), 9, 15, 17, 99):
        ask("alice", "GET", f"/v2.{minor}/info/stores")
    for media in ("application/vnd.openstack.images-v2", "application/vnd.openstack.images-v2.7"):
        ask("alice", "GET", "/info/stores", headers={"Accept": media})
    ask("alice", "GET", "/info/stores")
    ask(ANYBODY, "GET", "/")
    ask(ANYBODY, "GET", "/versions")
    ask(ANYBODY, "GET", "/v2/images")
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
        ask(ANYBODY, method, "/healthcheck")
    for accept in ("text/plain", "*/*", "text/html", "application/json"):
        ask(ANYBODY, "GET", "/healthcheck", headers={"Accept": accept})


def unknown(ask: Ask) -> None:
    for one in ("/v2/nothing", "/v2/images/", f"{path(1)}/", f"{path(1)}/nothing", "/v2/info", "/v2/info/nothing"):
        ask("alice", "GET", one)
    for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        ask("alice", method, "/v2/nothing")
    for one in (
        "/v2/images",
        path(1),
        path(1, "/file"),
        path(1, "/tags/x"),
        path(1, "/members"),
        path(1, "/members/x"),
        path(1, "/actions/deactivate"),
        "/v2/info/stores",
        "/v2/info/import",
        "/v2/schemas/image",
    ):
        for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            if (method, one) not in _MEANT:
                ask("alice", method, one)
    ask("alice", "GET", path(1, "/actions/deactivate"))
    ask("alice", "GET", path(1, "/actions/nothing"))
    ask("alice", "POST", path(1, "/actions/nothing"))
    ask("alice", "GET", path(1, "/tags/x"))


#: What a route of `unknown` does serve.
_MEANT = {
    ("POST", "/v2/images"),
    ("DELETE", path(1)),
    ("PATCH", path(1)),
    ("PUT", path(1, "/file")),
    ("HEAD", path(1, "/file")),
    ("PUT", path(1, "/tags/x")),
    ("DELETE", path(1, "/tags/x")),
    ("POST", path(1, "/members")),
    ("PUT", path(1, "/members/x")),
    ("DELETE", path(1, "/members/x")),
    ("POST", path(1, "/actions/deactivate")),
}


def errors_by_accept(ask: Ask) -> None:
    for accept in ("", "text/plain", "*/*", "text/html", "application/json", "image/png"):
        ask("alice", "GET", path(0xDEAD), headers={"Accept": accept})
        ask(ANYBODY, "GET", "/v2/images", headers={"Accept": accept})
    ask("alice", "POST", "/v2/images", json={"name": 1}, headers={"Accept": "*/*"})


def discovery(ask: Ask) -> None:
    for who in ("alice", "reader", "admin", "service", ANYBODY, BAD):
        for one in ("import", "stores", "usage"):
            ask(who, "GET", f"/v2/info/{one}")
    for who in PERSONAS:
        ask(who, "GET", "/v2/info/stores/detail")
    for name in ("image", "images", "member", "members", "task", "tasks", "nothing", ""):
        ask("alice", "GET", f"/v2/schemas/{name}")
    for who in ("reader", "admin", ANYBODY, BAD):
        ask(who, "GET", "/v2/schemas/image")
    ask("alice", "GET", "/v2/schemas/image", data=b"{}")
    ask("alice", "GET", "/v2/info/stores", data=b"{}")


# --- records ---------------------------------------------------------------------------------------------

BODIES: tuple[dict[str, Any], ...] = (
    {"name": None},
    {"name": ""},
    {"name": "ünïcode ☃"},
    {"name": "a" * 255},
    {"name": "a" * 256},
    {"name": "beyond \U0001f600"},
    {"name": 7},
    {"visibility": "private"},
    {"visibility": "shared"},
    {"visibility": "community"},
    {"visibility": "public"},
    {"visibility": "secret"},
    {"visibility": None},
    {"protected": "true"},
    {"protected": None},
    {"os_hidden": True},
    {"os_hidden": "yes"},
    {"min_ram": -1},
    {"min_ram": 1 << 31},
    {"min_ram": (1 << 31) - 1},
    {"min_ram": "512"},
    {"min_ram": 1.5},
    {"min_disk": -1},
    {"min_disk": 10},
    {"min_disk": None},
    {"disk_format": "qcow2"},
    {"disk_format": "floppy"},
    {"disk_format": None, "container_format": None},
    {"disk_format": "ami", "container_format": "ami"},
    {"disk_format": "ami", "container_format": "bare"},
    {"disk_format": "iso", "container_format": "docker"},
    {"container_format": "bottle"},
    {"disk_format": "raw"},
    {"tags": []},
    {"tags": ["b", "a", "b"]},
    {"tags": ["a" * 255]},
    {"tags": ["a" * 256]},
    {"tags": "a"},
    {"tags": [1]},
    {"tags": [""]},
    {"tags": None},
    {"tags": [f"tag {number}" for number in range(129)]},
    {"architecture": "x86_64", "os_distro": "debian", "own": "value"},
    {"kernel_id": "no uuid"},
    {"kernel_id": image(0xBEEF)},
    {"kernel_id": None},
    {"instance_uuid": "x"},
    {"own": None},
    {"own": 1},
    {"own": True},
    {"own": {}},
    {"own": ""},
    {"": "empty name"},
    {"n" * 255: "x"},
    {"n" * 256: "x"},
    {"own": "v" * 65535},
    {"own": "v" * 65536},
    {f"p{number}": "x" for number in range(129)},
    {"id": "no-uuid"},
    {"id": ""},
    {"id": 1},
    {"id": None},
    {"status": "active"},
    {"checksum": "x"},
    {"size": 1},
    {"virtual_size": 1},
    {"created_at": "2000-01-01T00:00:00Z"},
    {"updated_at": "2000-01-01T00:00:00Z"},
    {"self": "x"},
    {"file": "x"},
    {"schema": "x"},
    {"direct_url": "x"},
    {"stores": "fast"},
    {"os_hash_algo": "sha512"},
    {"os_hash_value": "x"},
    {"locations": []},
    {"locations": [{"url": "http://example.org/x", "metadata": {}}]},
    {"location": "x"},
    {"deleted": "x"},
    {"deleted": True},
    {"deleted_at": "x"},
    {"os_glance_own": "x"},
    {"os_glance": "x"},
    {"owner": None},
    {"owner": "somebody"},
    {"owner": ""},
    {"is_public": "True"},
    {"properties": {}},
    {"self.x": "dots"},
    {"a/b": "slash"},
    {
        "min_ram": 0,
        "min_disk": 0,
        "protected": False,
        "os_hidden": False,
        "tags": [],
        "name": "all",
        "visibility": "private",
    },
)


def creation(ask: Ask) -> None:
    ask("alice", "POST", "/v2/images", json={}, keep="made")
    ask("alice", "GET", "/v2/images/{made}")
    ask("alice", "DELETE", "/v2/images/{made}")
    for number, values in enumerate(BODIES, 0x1000):
        ask("alice", "POST", "/v2/images", json={"id": image(number)} | values)
        ask("admin", "DELETE", path(number))
    for data in (b"", b"{", b"[]", b"[1]", b"null", b"1", b'"x"', b"\xff", b'{"name": NaN}'):
        ask("alice", "POST", "/v2/images", data=data)
    ask("alice", "POST", "/v2/images", data=f'{{"id": "{image(0x20E1)}", "name": "a", "name": "b"}}'.encode())
    ask("admin", "DELETE", path(0x20E1))
    ask(
        "alice",
        "POST",
        "/v2/images",
        data=b'{"name": "untyped"}',
        headers={"Content-Type": "text/plain"},
        keep="untyped",
    )
    ask("alice", "DELETE", "/v2/images/{untyped}")
    ask("alice", "POST", "/v2/images", data=[f'{{"id": "{image(0x20E0)}", '.encode(), b'"name": "pieces"}'])
    ask("admin", "DELETE", path(0x20E0))
    for number, (who, visibility) in enumerate(
        product(("admin", "manager", "reader", "service", "bob", ANYBODY, BAD), ("private", "public", "community")),
        0x2000,
    ):
        ask(who, "POST", "/v2/images", json={"id": image(number), "visibility": visibility})
        ask("admin", "DELETE", path(number))
    for number, owner in enumerate((None, "", "somebody"), 0x20F0):
        ask("admin", "POST", "/v2/images", json={"id": image(number), "owner": owner})
        for who in ("admin", "bob"):
            ask(who, "GET", path(number))
        ask("admin", "DELETE", path(number))
    for number, values in enumerate(({"os_hash_algo": "sha512"}, {"os_hash_value": "x"}), 0x20F8):
        ask("alice", "POST", "/v2/images", json={"id": image(number)} | values)
        ask("alice", "GET", path(number))
        ask("admin", "DELETE", path(number))
    ask("admin", "POST", "/v2/images", json={"id": image(0x2100), "owner": ask.project("alice")})
    ask("alice", "POST", "/v2/images", json={"id": image(0x2100)})
    ask("bob", "POST", "/v2/images", json={"id": image(0x2100)})
    ask("alice", "GET", path(0x2100))
    ask("alice", "DELETE", path(0x2100))
    ask("alice", "POST", "/v2/images", json={"id": image(0x2100)})
    ask("alice", "POST", "/v2/images", json={"id": image(0xABCD00).upper()})
    ask("alice", "GET", path(0xABCD00))
    ask("alice", "DELETE", f"/v2/images/{image(0xABCD00).upper()}")


def visibilities(ask: Ask) -> None:
    """Who may see, change and delete what; the images stay for the lists."""
    kinds = ("private", "shared", "community", "public")
    for number, visibility in enumerate(kinds, 0x100):
        create(ask, "admin", number, DATA, visibility=visibility, owner=ask.project("alice"), name=f"{visibility} one")
    for number in (0x101, 0x100):
        for member in ("bob", "carol"):
            ask("alice", "POST", path(number, "/members"), json={"member": ask.project(member)})
    ask("bob", "PUT", path(0x101, f"/members/{ask.project('bob')}"), json={"status": "accepted"})
    for who in PERSONAS:
        for number in range(0x100, 0x104):
            ask(who, "GET", path(number))
            ask(who, "GET", path(number, "/file"))
            patch(ask, who, number, replace("/name", f"by {who}"))
    for who in ("reader", "bob", "carol", "service", ANYBODY, BAD):
        for number in range(0x100, 0x104):
            ask(who, "DELETE", path(number))
            ask(who, "PUT", path(number, "/tags/new"))
            ask(who, "POST", path(number, "/actions/deactivate"))
    for who in PERSONAS:
        for query in ("", "?visibility=all", "?visibility=shared", "?visibility=community", "?member_status=all"):
            ask(who, "GET", f"/v2/images{query}")
    ask("alice", "GET", "/v2/images/no-uuid")
    ask("alice", "GET", "/v2/images/%00")
    ask("alice", "GET", "/v2/images/a%2Fb")
    ask("alice", "GET", "/v2/images/%ff")
    ask("alice", "GET", path(0x100), data=b"{}")
    ask("alice", "DELETE", path(0x100), data=b"{}")


QUERIES = (
    "limit=0", "limit=1", "limit=2", "limit=5000", "limit=-1", "limit=x", "limit=", "limit=1&limit=2",
    f"marker={image(0x302)}", f"marker={image(0x301)}&limit=1", f"marker={image(0xDEAD)}", "marker=x", "marker=",
    f"marker={image(0x3F0)}", f"limit=2&sort=name:asc&marker={image(0x302)}",
    "sort=name", "sort=name:asc", "sort=name:asc,size:desc", "sort=name:up", "sort=owner", "sort=nothing", "sort=",
    "sort_key=name", "sort_key=name&sort_dir=asc", "sort_key=size&sort_dir=asc&sort_key=name&sort_dir=desc",
    "sort_key=name&sort_key=size&sort_dir=asc", "sort_key=name&sort_dir=asc&sort_dir=desc", "sort_dir=asc",
    "sort_dir=up", "sort_key=nothing", "sort=name&sort_key=name", "sort=id:asc", "sort=created_at:asc",
    "sort=status:asc", "sort=disk_format:asc", "sort=container_format:desc", "sort=updated_at:asc",
    "member_status=all", "member_status=pending", "member_status=rejected", "member_status=none",
    "visibility=private", "visibility=shared", "visibility=public", "visibility=community", "visibility=all",
    "visibility=secret", "visibility=", "os_hidden=true", "os_hidden=TRUE", "os_hidden=false", "os_hidden=yes",
    "protected=true", "protected=false", "protected=True", "protected=1",
    "tag=blue", "tag=blue&tag=round", "tag=green", "tag=blu", "tag=", "tag=Blue",
    "name=first", "name=First", "name=nobody", "name=", "name=in:first,second", 'name=in:"a,b",first',
    'name=in:"a:b"', "name=a:b", "name=in:", 'name=in:"first', "name=neq:first", "name=a%2Cb",
    f"id={image(0x301)}", f"id=in:{image(0x301)},{image(0x303)}", "id=x", "id=in:x",
    "status=active", "status=queued", "status=in:active,queued", "status=nothing", "status=deleted",
    "container_format=bare", "container_format=in:bare,ami", "disk_format=raw", "disk_format=in:raw,qcow2",
    "created_at=gt:2000-01-01T00:00:00Z", "created_at=gte:2000-01-01T00:00:00Z", "created_at=lt:2000-01-01T00:00:00Z",
    "created_at=lte:2100-01-01T00:00:00Z", "created_at=eq:2000-01-01T00:00:00Z", "created_at=neq:2000-01-01T00:00:00Z",
    "created_at=2000-01-01T00:00:00Z", "created_at=in:2000-01-01T00:00:00Z", "created_at=yesterday", "created_at=gt:",
    "updated_at=gt:2000-01-01T00:00:00Z", "updated_at=gt:2000-01-01", "updated_at=gt:2000-01-01T00:00:00%2B01:00",
    "size_min=1", "size_max=1", "size_min=x", "size_min=10240&size_max=10240", "min_ram_min=1", "min_ram_max=512",
    "min_disk_min=5", "virtual_size_min=1", "nothing_min=1", "size=10240", "size=x", "min_ram=512", "min_disk=10",
    "virtual_size=10240", "checksum=x", "os_hash_value=x", "owner=x", "os_hash_algo=sha512",
    "colour=red", "colour=Red", "colour=in:red", "colour=", "nothing=x", "colour=red&name=first",
    "changes-since=2000-01-01T00:00:00Z", "deleted=true", "is_public=True", "properties=x", "locations=x", "tags=x",
    "members=x", "name=%F0%9F%98%80", "name=%00", "name=%ff", "unknown=%E2%98%83",
)  # fmt: skip


def lists(ask: Ask) -> None:
    """Every filter, key and marker, on a handful of images of a project of their own."""
    rows: tuple[dict[str, Any], ...] = (
        {"name": "first", "tags": ["blue", "round"], "colour": "red"},
        {"name": "second", "tags": ["blue"], "min_ram": 512, "min_disk": 10, "disk_format": "qcow2"},
        {"name": "a,b", "colour": "red", "visibility": "private", "protected": True},
        {"name": "a:b", "tags": ["round"], "visibility": "community", "disk_format": "ami", "container_format": "ami"},
        {"name": None, "os_hidden": True},
        {"colour": "blue", "visibility": "shared", "tags": ["blue"]},
    )
    for number, values in enumerate(rows, 0x301):
        create(ask, "carol", number, DATA if number in (0x301, 0x303) else None, **values)
    create(ask, "bob", 0x3F0, name="hidden from carol", visibility="private")
    create(ask, "bob", 0x3F1, name="shared with carol")
    ask("bob", "POST", path(0x3F1, "/members"), json={"member": ask.project("carol")})
    for query in QUERIES:
        ask("carol", "GET", f"/v2/images?{query}")
    ask("carol", "GET", f"/v2/images?owner={ask.project('carol')}")
    ask("carol", "GET", f"/v2/images?owner={ask.project('bob')}&member_status=all")
    ask("admin", "GET", f"/v2/images?owner={ask.project('carol')}&sort=name:asc")
    ask("admin", "GET", f"/v2/images?owner={ask.project('carol')}&visibility=all&os_hidden=true")
    ask("carol", "GET", "/v2/images", data=b"{}")
    ask("carol", "GET", f"/v2/images?name={quote('ünïcode')}")


def patches(ask: Ask) -> None:
    """Each operation, path and media type; each refusal."""
    create(ask, "alice", 0x400, name="to change", own="1", tags=["a"])
    good: tuple[Any, ...] = (
        add("/name", "added"),
        replace("/name", "replaced"),
        replace("/name", None),
        add("/new", "x"),
        add("/new", "y"),
        replace("/new", "z"),
        remove("/new"),
        replace("/tags", ["b", "c"]),
        add("/tags", ["d"]),
        replace("/min_ram", 512),
        replace("/min_disk", 1),
        replace("/protected", True),
        replace("/protected", False),
        replace("/os_hidden", True),
        replace("/os_hidden", False),
        replace("/visibility", "private"),
        replace("/visibility", "community"),
        replace("/visibility", "shared"),
        replace("/disk_format", "qcow2"),
        replace("/container_format", "ovf"),
        add("/a~1b", "slash"),
        remove("/a~1b"),
        add("/a~0b", "tilde"),
        add("/kernel_id", image(1)),
        add("/architecture", "x86_64"),
        remove("/architecture"),
    )
    for step in good:
        patch(ask, "alice", 0x400, step)
    patch(ask, "alice", 0x400)
    patch(ask, "alice", 0x400, add("/one", "1"), add("/two", "2"), remove("/one"))
    patch(ask, "alice", 0x400, add("/three", "3"), remove("/missing"))
    bad: tuple[Any, ...] = (
        replace("/missing", "x"),
        remove("/missing"),
        remove("/name"),
        remove("/id"),
        remove("/tags"),
        remove("/min_ram"),
        *(
            replace(f"/{name}", "x")
            for name in "id created_at updated_at status checksum size virtual_size direct_url self file schema "
            "os_hash_algo os_hash_value location deleted deleted_at os_glance_x".split()
        ),
        add("/os_glance_x", "x"),
        add("/location", "x"),
        add("/id", "x"),
        add("/locations/-", {"url": "http://example.org/x", "metadata": {}}),
        replace("/locations", []),
        remove("/locations/0"),
        replace("/owner", "somebody"),
        replace("/visibility", "public"),
        replace("/visibility", "secret"),
        replace("/min_ram", -1),
        replace("/min_ram", "x"),
        replace("/min_ram", 1 << 31),
        replace("/protected", "yes"),
        replace("/disk_format", "floppy"),
        replace("/name", "a" * 256),
        replace("/name", "beyond \U0001f600"),
        replace("/tags", ["a" * 256]),
        replace("/tags", "x"),
        replace("/tags", [f"tag {number}" for number in range(129)]),
        add("/number", 1),
        add("/nothing", None),
        add("/object", {}),
        add("/" + "n" * 256, "x"),
        add("name", "no slash"),
        add("", "x"),
        add("/a/b", "x"),
        add("/a/", "x"),
        add("/a~2b", "x"),
        add("/tags/-", "x"),
        {"op": "test", "path": "/name", "value": "x"},
        {"op": "move", "from": "/name", "path": "/own"},
        {"op": "copy", "from": "/name", "path": "/own"},
        {"op": "add", "path": "/name"},
        {"op": "add", "value": "x"},
        {"path": "/name", "value": "x"},
        {"op": "remove"},
        {"op": "remove", "path": "/own", "value": "x"},
        {"op": 1, "path": "/name", "value": "x"},
        {"op": "add", "path": 1, "value": "x"},
        "x",
        1,
        None,
        [],
    )
    for step in bad:
        patch(ask, "alice", 0x400, step)
    for step in (
        {"add": "/old", "value": "x"},
        {"add": "/old", "value": "y"},
        {"replace": "/old", "value": "z"},
        {"remove": "/old"},
        {"replace": "/missing", "value": "x"},
        {"remove": "/missing"},
        {"replace": "/name", "value": "by the old draft"},
        {"add": "/old"},
        {"add": "/a", "replace": "/b", "value": "x"},
        {"op": "add", "path": "/old", "value": "x"},
        {},
    ):
        patch(ask, "alice", 0x400, step, media=PATCH_20)
    for media in (
        "application/json",
        "application/json-patch+json",
        "",
        PATCH_21 + "; charset=utf-8",
        PATCH_21.upper(),
    ):
        patch(ask, "alice", 0x400, replace("/name", "media"), media=media)
    for data in (b"", b"{", b"{}", b"null", b"1", b'"x"', b"[[]]", b'[{"op": "add", "op": "remove", "path": "/own"}]'):
        ask("alice", "PATCH", path(0x400), data=data, headers={"Content-Type": PATCH_21})
    patch(ask, "alice", 0x400, *(add(f"/p{number}", "x") for number in range(129)))
    odd = (
        add("/stores", "x"),
        add("/image_id", "x"),
        add("/member", "x"),
        add("/extra_properties", "x"),
        add("/", "x"),
        add("//a", "x"),
    )
    for number, step in enumerate((*odd, replace("/stores", "x"), add("/owner", ask.project("bob"))), 0x410):
        create(ask, "alice", number)
        patch(ask, "alice", number, step)
        ask("admin", "DELETE", path(number))
    patch(ask, "admin", 0x400, replace("/visibility", "public"))
    patch(ask, "admin", 0x400, replace("/owner", ask.project("alice")))
    patch(ask, "admin", 0x400, replace("/owner", None))
    patch(ask, "admin", 0x400, replace("/owner", ask.project("alice")))
    patch(ask, "admin", 0x400, replace("/visibility", "shared"))
    patch(ask, "alice", 0xDEAD, replace("/name", "x"))
    patch(ask, "alice", 0x103, replace("/disk_format", "qcow2"))
    patch(ask, "alice", 0x103, replace("/container_format", "ovf"))
    patch(ask, "alice", 0x103, replace("/disk_format", "raw"))
    ask("alice", "GET", path(0x400))
    ask("alice", "DELETE", path(0x400))
    patch(ask, "alice", 0x400, replace("/name", "x"))


# --- data ------------------------------------------------------------------------------------------------


def uploads(ask: Ask) -> None:
    create(ask, "alice", 0x500)
    file = path(0x500, "/file")
    ask("alice", "GET", file)
    for number, media in enumerate(
        ("", "text/plain", "application/octet-stream; x=y", "APPLICATION/OCTET-STREAM"), 0x520
    ):
        create(ask, "alice", number)
        ask("alice", "PUT", path(number, "/file"), data=DATA, headers={"Content-Type": media})
    for who in ("reader", "bob", "service", ANYBODY, BAD):
        ask(who, "PUT", file, data=DATA, headers=OCTETS)
    create(ask, "alice", 0x501)
    for headers in (
        {"x-openstack-image-size": "x"},
        {"x-openstack-image-size": "-1"},
        {"x-openstack-image-size": "1"},
        {"x-openstack-image-size": "20000"},
        {"x-image-meta-store": "nothing"},
        {"x-image-meta-store": ""},
    ):
        ask("alice", "PUT", path(0x501, "/file"), data=DATA, headers=OCTETS | headers)
        ask("alice", "GET", path(0x501))
    create(ask, "alice", 0x502)
    ask("alice", "PUT", path(0x502, "/file"), data=DATA, headers=OCTETS | {"x-image-meta-store": "cheap"})
    ask("alice", "GET", path(0x502))
    create(ask, "alice", 0x503)
    ask("alice", "PUT", path(0x503, "/file"), data=[DATA, DATA], headers=OCTETS)
    ask("alice", "GET", path(0x503))
    create(ask, "alice", 0x504)
    ask("alice", "PUT", path(0x504, "/file"), data=DATA, headers=OCTETS | {"x-openstack-image-size": str(len(DATA))})
    ask("alice", "PUT", path(0x504, "/file"), data=DATA, headers=OCTETS)
    create(ask, "alice", 0x505)
    ask("alice", "PUT", path(0x505, "/file"), data=b"", headers=OCTETS)
    ask("alice", "GET", path(0x505))
    ask("alice", "GET", path(0x505, "/file"))
    ask("alice", "POST", "/v2/images", json={"id": image(0x506)})
    ask("alice", "PUT", path(0x506, "/file"), data=DATA, headers=OCTETS)
    ask("alice", "GET", path(0x506))
    create(ask, "alice", 0x507, QCOW2, disk_format="qcow2")
    ask("alice", "GET", path(0x507))
    create(ask, "alice", 0x508, DATA, disk_format="qcow2")
    ask("alice", "GET", path(0x508))
    create(ask, "alice", 0x509, QCOW2)
    ask("alice", "GET", path(0x509))
    create(ask, "alice", 0x50A, samples.qcow2((8, ">Q", 512), (16, ">I", 11)), disk_format="qcow2")
    ask("alice", "GET", path(0x50A))
    create(ask, "alice", 0x50B, samples.iso(), disk_format="iso")
    ask("alice", "GET", path(0x50B))
    create(ask, "alice", 0x50C, gzip.compress(DATA, mtime=0), container_format="compressed")
    create(ask, "alice", 0x50D, DATA, disk_format="ami", container_format="ami")
    create(ask, "alice", 0x50E, samples.stream_vmdk(), disk_format="vmdk")
    create(ask, "alice", 0x50F, samples.vdi(), disk_format="vdi")
    for number in range(0x50B, 0x510):
        ask("alice", "GET", path(number))
    ask("alice", "PUT", path(0xDEAD, "/file"), data=DATA, headers=OCTETS)
    ask("alice", "PUT", path(0x50F, "/file"), data=DATA, headers=OCTETS)
    signed = {f"img_signature{rest}": "x" for rest in ("", "_hash_method", "_key_type", "_certificate_uuid")}
    create(ask, "alice", 0x510, DATA, **signed)


RANGES = (
    "bytes=0-0", "bytes=0-", "bytes=10-19", "bytes=-10", "bytes=10230-20000", "bytes=-20000", "bytes=10239-", "bytes=10240-",
    "bytes=-0", "bytes=5-4", "bytes=", "bytes=x-y", "bytes=0-1,5-6", "bytes=1", "items=0-1", "0-1", "bytes = 0-1",
)  # fmt: skip


def downloads(ask: Ask) -> None:
    create(ask, "alice", 0x600, DATA)
    file = path(0x600, "/file")
    ask("alice", "GET", file)
    ask("alice", "HEAD", file)
    for text in RANGES:
        ask("alice", "GET", file, headers={"Range": text})
    for text in ("bytes 0-9/10240", "bytes 0-9/*", "bytes 10240-10250/10240", "bytes x", "bytes 0-9/5"):
        ask("alice", "GET", file, headers={"Content-Range": text})
    for stores in ("fast", "cheap", "cheap,fast", "nothing", "fast,nothing", "", "os_glance_staging_store"):
        ask("alice", "GET", f"{file}?prefer={stores}")
    ask("alice", "GET", f"{file}?other=1")
    ask("alice", "GET", file, headers={"Accept": "application/json"})
    ask("alice", "GET", file, headers={"If-None-Match": "*"})
    ask("alice", "GET", file, data=b"{}")
    ask("alice", "GET", path(0xDEAD, "/file"))
    for who in PERSONAS:
        ask(who, "GET", file)
        ask(who, "HEAD", file)
    patch(ask, "alice", 0x600, replace("/visibility", "community"))
    for who in ("reader", "bob", "service"):
        ask(who, "GET", file)


# --- what belongs to an image ----------------------------------------------------------------------------


def tags(ask: Ask) -> None:
    create(ask, "alice", 0x700, tags=["first"])
    for tag in (
        "first",
        "second",
        "a%20b",
        quote("☃"),
        "a" * 255,
        "a" * 256,
        "a%2Fb",
        quote("\U0001f600"),
        "%00",
        "%ff",
        "x:y",
    ):
        ask("alice", "PUT", path(0x700, f"/tags/{tag}"))
    ask("alice", "GET", path(0x700))
    for tag in ("first", "first", "nothing", quote("☃"), "a%2Fb"):
        ask("alice", "DELETE", path(0x700, f"/tags/{tag}"))
    ask("alice", "PUT", path(0x700, "/tags/body"), data=b"{}")
    ask("alice", "DELETE", path(0x700, "/tags/second"), data=b"{}")
    ask("alice", "PUT", path(0xDEAD, "/tags/x"))
    ask("alice", "DELETE", path(0xDEAD, "/tags/x"))
    for who in ("admin", "manager", "reader", "bob", "service", ANYBODY, BAD):
        ask(who, "PUT", path(0x700, f"/tags/by-{who}"))
        ask(who, "DELETE", path(0x700, f"/tags/by-{who}"))
    patch(ask, "alice", 0x700, replace("/tags", [f"{number:03}" for number in range(128)]))
    ask("alice", "PUT", path(0x700, "/tags/one-too-many"))
    ask("alice", "PUT", path(0x700, "/tags/000"))


def actions(ask: Ask) -> None:
    create(ask, "alice", 0x800)
    create(ask, "alice", 0x801, DATA)
    for action in ("deactivate", "reactivate"):
        ask("alice", "POST", path(0x800, f"/actions/{action}"))
        ask("alice", "POST", path(0xDEAD, f"/actions/{action}"))
        ask("alice", "POST", path(0x801, f"/actions/{action}"), data=b"{}")
        for who in ("reader", "bob", "service", ANYBODY, BAD):
            ask(who, "POST", path(0x801, f"/actions/{action}"))
    ask("alice", "POST", path(0x801, "/actions/reactivate"))
    ask("alice", "POST", path(0x801, "/actions/deactivate"))
    ask("alice", "POST", path(0x801, "/actions/deactivate"))
    for who in ("admin", "alice", "manager", "reader"):
        ask(who, "GET", path(0x801))
        ask(who, "GET", path(0x801, "/file"))
    patch(ask, "alice", 0x801, replace("/name", "deactivated"))
    ask("alice", "PUT", path(0x801, "/file"), data=DATA, headers=OCTETS)
    ask("alice", "POST", path(0x801, "/actions/reactivate"))
    ask("alice", "GET", path(0x801, "/file"))
    ask("manager", "POST", path(0x801, "/actions/deactivate"))
    ask("alice", "DELETE", path(0x801))
    ask("alice", "POST", path(0x801, "/actions/reactivate"))


def members(ask: Ask) -> None:
    create(ask, "alice", 0x900, DATA)
    create(ask, "alice", 0x901, visibility="private")
    base, bob, carol = path(0x900, "/members"), ask.project("bob"), ask.project("carol")
    ask("alice", "GET", base)
    for body in ({"member": bob}, {"member": bob}, {"member": ""}, {"member": 1}, {"member": None}, {}, {"other": "x"}):
        ask("alice", "POST", base, json=body)
    for data in (b"", b"[]", b"x", b"null", b'"x"'):
        ask("alice", "POST", base, data=data)
    for member in ("m" * 255, "m" * 256, "beyond \U0001f600", "any one"):
        ask("alice", "POST", base, json={"member": member})
    ask("alice", "POST", base, json={"member": ask.project("alice")})
    ask("alice", "POST", path(0x901, "/members"), json={"member": bob})
    ask("alice", "POST", path(0xDEAD, "/members"), json={"member": bob})
    ask("alice", "GET", path(0x901, "/members"))
    ask("alice", "GET", path(0x901, f"/members/{bob}"))
    ask("alice", "PUT", path(0x901, f"/members/{bob}"), json={"status": "accepted"})
    ask("alice", "DELETE", path(0x901, f"/members/{bob}"))
    for who in PERSONAS:
        ask(who, "GET", base)
        ask(who, "GET", f"{base}/{bob}")
        ask(who, "GET", f"{base}/{carol}")
        ask(who, "POST", base, json={"member": f"by {who}"})
    for status in ("pending", "rejected", "accepted", "maybe", "", None, 1):
        ask("bob", "PUT", f"{base}/{bob}", json={"status": status})
    for data in (b"", b"{}", b"[]", b"x"):
        ask("bob", "PUT", f"{base}/{bob}", data=data)
    for who in PERSONAS:
        ask(who, "PUT", f"{base}/{bob}", json={"status": "accepted"})
        ask(who, "GET", path(0x900))
    ask("carol", "PUT", f"{base}/{carol}", json={"status": "accepted"})
    ask("bob", "GET", "/v2/images?visibility=shared&member_status=accepted")
    ask("bob", "GET", "/v2/images?member_status=pending")
    for who in ("reader", "bob", "carol", "service", ANYBODY, BAD, "alice", "alice"):
        ask(who, "DELETE", f"{base}/{bob}")
    ask("bob", "GET", path(0x900))
    ask("alice", "POST", base, json={"member": bob})
    ask("alice", "GET", f"{base}/{bob}")
    ask("alice", "GET", f"{base}/{bob}", data=b"{}")
    ask("alice", "GET", f"{base}/nobody")
    ask("alice", "DELETE", f"{base}/nobody")
    ask("alice", "PUT", f"{base}/nobody", json={"status": "accepted"})
    patch(ask, "alice", 0x900, replace("/visibility", "private"))
    ask("bob", "GET", path(0x900))
    ask("alice", "GET", base)
    patch(ask, "alice", 0x900, replace("/visibility", "shared"))
    ask("alice", "GET", base)
    patch(ask, "alice", 0x901, replace("/visibility", "shared"))
    for number in range(129):
        if number >= 127:
            ask("alice", "POST", path(0x901, "/members"), json={"member": f"m{number}"})


def copies(ask: Ask) -> None:
    create(ask, "alice", 0xA00, DATA)
    create(ask, "alice", 0xA01)
    for who in PERSONAS:
        ask(who, "DELETE", f"/v2/stores/fast/{image(0xA00)}")
    for store, number in product(("cheap", "nothing"), (0xA00, 0xA01, 0xDEAD)):
        ask("admin", "DELETE", f"/v2/stores/{store}/{image(number)}")
    ask("admin", "DELETE", f"/v2/stores/fast/{image(0xA00)}", data=b"{}")
    for method in ("GET", "PUT", "POST"):
        ask("admin", method, f"/v2/stores/fast/{image(0xA00)}")


def tasks(ask: Ask) -> None:
    """Refusals and empty lists: nothing has made a task yet. `imports.py` goes on."""
    create(ask, "alice", 0xB00)
    for who in PERSONAS:
        ask(who, "GET", "/v2/tasks")
        ask(who, "GET", f"/v2/tasks/{image(0xB01)}")
        ask(who, "GET", path(0xB00, "/tasks"))
    for who in ("alice", "reader", ANYBODY):
        ask(who, "POST", "/v2/tasks", json={"type": "import", "input": {}})
    for body in ({}, {"type": "nothing", "input": {}}, {"type": "import"}):
        ask("admin", "POST", "/v2/tasks", json=body)
    for data in (b"", b"x", b"[]"):
        ask("admin", "POST", "/v2/tasks", data=data)
    for query in (
        "limit=1", "limit=0", "limit=-1", "limit=x", f"marker={image(0xB01)}", "marker=x", "sort_key=type", "sort_key=nothing",
        "sort_dir=asc", "sort_dir=up", "status=pending", "status=nothing", "type=import", "type=nothing", "type=location_import",
        "other=x",
    ):  # fmt: skip
        ask("admin", "GET", f"/v2/tasks?{query}")
    ask("admin", "DELETE", f"/v2/tasks/{image(0xB01)}")
    for method in ("HEAD", "PUT", "DELETE", "PATCH"):
        ask("admin", method, "/v2/tasks")
    for method in ("HEAD", "POST", "PUT", "DELETE"):
        ask("alice", method, path(0xB00, "/tasks"))
    ask("alice", "GET", path(0xDEAD, "/tasks"))
    ask("bob", "GET", path(0xB00, "/tasks"))
    ask("alice", "GET", path(0xB00, "/tasks"), data=b"{}")


def locations(ask: Ask) -> None:
    """Who may, and what is refused; no http store is configured, and nobody may add files."""
    create(ask, "alice", 0xC00)
    create(ask, "alice", 0xC01, DATA)
    url = {"url": "http://192.0.2.1/image"}
    for who in PERSONAS:
        ask(who, "GET", path(0xC00, "/locations"))
        ask(who, "POST", path(0xC00, "/locations"), json=url)
    for who in ("alice", "reader", "bob", "service", ANYBODY):
        ask(who, "POST", path(0xC01, "/locations"), json=url)
        ask(who, "POST", path(0xDEAD, "/locations"), json=url)
        ask(who, "GET", path(0xDEAD, "/locations"))
    digest = {"os_hash_algo": "sha512", "os_hash_value": "0" * 128}
    for body in (
        {},
        {"url": 1},
        {"url": ""},
        {"url": "nothing"},
        {"url": "ftp://192.0.2.1/image"},
        {"url": "file:///etc/passwd"},
        {"url": "swift+config://x/y/z"},
        url | {"metadata": {}},
        url | {"validation_data": {}},
        url | {"validation_data": {"os_hash_algo": "sha512"}},
        url | {"validation_data": {"os_hash_value": "0" * 128}},
        url | {"validation_data": digest | {"other": "x"}},
        url | {"validation_data": digest | {"os_hash_algo": "rot13"}},
        url | {"validation_data": digest | {"os_hash_value": "0" * 64}},
        url | {"validation_data": digest | {"os_hash_value": "x" * 128}},
        url | {"validation_data": "x"},
    ):
        ask("alice", "POST", path(0xC00, "/locations"), json=body)
    for data in (b"", b"x", b"[]", b"null"):
        ask("alice", "POST", path(0xC00, "/locations"), data=data)
    ask("alice", "GET", path(0xC00))
    ask("service", "GET", path(0xC00, "/locations"), data=b"{}")
    for method in ("HEAD", "PUT", "DELETE", "PATCH"):
        ask("alice", method, path(0xC00, "/locations"))


# --- ends ------------------------------------------------------------------------------------------------


def deletion(ask: Ask) -> None:
    create(ask, "alice", 0xF00, DATA, protected=True)
    ask("alice", "DELETE", path(0xF00))
    ask("admin", "DELETE", path(0xF00))
    patch(ask, "alice", 0xF00, replace("/protected", False))
    ask("alice", "DELETE", path(0xF00))
    for who in ("alice", "admin"):
        ask(who, "DELETE", path(0xF00))
        ask(who, "GET", path(0xF00))
        ask(who, "GET", path(0xF00, "/file"))
        ask(who, "PUT", path(0xF00, "/file"), data=DATA, headers=OCTETS)
        ask(who, "PUT", path(0xF00, "/tags/x"))
        ask(who, "GET", path(0xF00, "/members"))
    for who in ("alice", "bob", "admin"):
        ask(who, "POST", "/v2/images", json={"id": image(0xF00)})
    create(ask, "alice", 0xF01, DATA)
    ask("manager", "DELETE", path(0xF01))
    create(ask, "alice", 0xF02, DATA)
    ask("admin", "DELETE", path(0xF02))
    ask("alice", "DELETE", "/v2/images/no-uuid")
    ask("admin", "GET", f"/v2/images?marker={image(0xF00)}")
    ask("admin", "GET", "/v2/images?status=deleted")


def headers(ask: Ask) -> None:
    for value in ("req-mine", "mine", "x" * 64, "x" * 65):
        ask("alice", "GET", "/v2/info/stores", headers={"X-Openstack-Request-ID": value})
    ask("alice", "GET", "/v2/images?limit=1", headers={"X-Openstack-Request-ID": "x" * 65})
    ask("alice", "GET", "/v2/images?limit=1", headers={"Accept-Language": "de"})
    ask("alice", "GET", "/v2/images?limit=1", headers={"Accept-Encoding": "gzip"})
    ask(
        "alice",
        "OPTIONS",
        "/v2/images",
        headers={"Origin": "http://dashboard.example", "Access-Control-Request-Method": "GET"},
    )


SECTIONS: tuple[Callable[[Ask], None], ...] = (
    versions,
    unknown,
    errors_by_accept,
    discovery,
    creation,
    visibilities,
    lists,
    patches,
    uploads,
    downloads,
    tags,
    actions,
    members,
    copies,
    tasks,
    locations,
    deletion,
    headers,
    *metadefs.SECTIONS,
)
