"""What is asked of both services about metadata definitions: every route, happy and bad, by each kind of caller.

Each section makes the namespaces that it asks for and removes them, so that lists hold what their section made.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from tests.differential.asking import ANYBODY, BAD, PERSONAS, Ask

NAMESPACES = "/v2/metadefs/namespaces"
TYPES = "/v2/metadefs/resource_types"
TEXT = {"title": "t", "type": "string"}
BEYOND = "beyond \U0001f600"
LONG = "n" * 81
BROKEN = (b"", b"{", b"[]", b"[1]", b"null", b"1", b'"x"', b"\xff", b'{"name": NaN}')


def path(namespace: str, *rest: str) -> str:
    return "/".join((NAMESPACES, quote(namespace, safe=""), *rest))


def create(ask: Ask, namespace: str, **values: Any) -> None:
    ask("admin", "POST", NAMESPACES, json={"namespace": namespace} | values)


def remove(ask: Ask, *namespaces: str) -> None:
    for one in namespaces:
        ask("admin", "PUT", path(one), json={"namespace": one})
        ask("admin", "DELETE", path(one))


def whole(ask: Ask, **values: Any) -> dict[str, Any]:
    """A namespace of alice's project with something of each kind."""
    return {
        "owner": ask.project("alice"),
        "display_name": "Whole",
        "description": "a namespace",
        "resource_type_associations": [
            {"name": "OS::A", "prefix": "a:", "properties_target": "image"},
            {"name": "OS::B", "prefix": ""},
            {"name": "OS::C"},
        ],
        "properties": {
            "cpu": {"title": "CPU", "type": "integer", "minimum": 1, "maximum": 10, "description": "how many"},
            "arch": TEXT | {"enum": ["x", "y"], "default": "x", "operators": ["<in>"], "readonly": True},
            "list": {"title": "L", "type": "array", "items": {"type": "string", "enum": ["a"]}, "uniqueItems": True}
            | {"minItems": 0, "maxItems": 3, "additionalItems": False},
        },
        "objects": [
            {"name": "one", "description": "an object", "required": ["cpu", "more"], "properties": {"cpu": TEXT}},
            {"name": "two"},
        ],
        "tags": [{"name": "first"}, {"name": "second"}],
    } | values


# --- schemas, methods, names -------------------------------------------------------------------------------


def metadef_schemas(ask: Ask) -> None:
    for name in (
        "namespace", "namespaces", "object", "objects", "property", "properties", "tag", "tags", "resource_type",
        "resource_types", "nothing", "",
    ):  # fmt: skip
        ask("alice", "GET", f"/v2/schemas/metadefs/{name}")
    ask("alice", "GET", "/v2/schemas/metadefs")
    ask("alice", "GET", "/v2/schemas/metadefs/tag", data=b"{}")
    for who in PERSONAS:
        ask(who, "GET", "/v2/schemas/metadefs/tag")


def metadef_methods(ask: Ask) -> None:
    create(ask, "N", **whole(ask))
    below = ("objects", "objects/one", "properties", "properties/cpu", "tags", "tags/first", "resource_types")
    served = [
        (NAMESPACES, "GET, POST"),
        (path("N"), "GET, PUT, DELETE"),
        *((path("N", one), "GET, PUT, POST, DELETE") for one in below),
        (path("N", "resource_types", "OS::A"), "DELETE"),
        (TYPES, "GET"),
        ("/v2/schemas/metadefs/tag", "GET"),
    ]
    unknown = ("/v2/metadefs", "/v2/metadefs/nothing", f"{TYPES}/OS::A", f"{NAMESPACES}/", path("N", ""))
    below = ("nothing", "objects/", "objects/one/more", "tags/", "resource_types/")
    for where, meant in (*served, *((one, "") for one in (*unknown, *(path("N", one) for one in below)))):
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            if method not in meant:
                ask("admin", method, where)
    for where in (NAMESPACES, path("N"), path("nothing"), path("N", "tags")):
        for accept in ("text/plain", "*/*", "application/json"):
            ask("admin", "GET", where, headers={"Accept": accept})
    remove(ask, "N")


def metadef_bodies(ask: Ask) -> None:
    """Bodies where none belong, and none where one does."""
    create(ask, "N", **whole(ask))
    for where in (
        NAMESPACES, TYPES, path("N"), path("N", "objects"), path("N", "objects", "one"), path("N", "properties"),
        path("N", "properties", "cpu"), path("N", "tags"), path("N", "tags", "first"), path("N", "resource_types"),
    ):  # fmt: skip
        ask("admin", "GET", where, data=b"{}")
    ask("admin", "POST", path("N", "tags", "new"), data=b"{}")
    for below in (
        "objects/one",
        "objects",
        "properties/cpu",
        "properties",
        "tags/first",
        "tags",
        "resource_types/OS::A",
        "",
    ):
        ask("admin", "DELETE", path("N", below).removesuffix("/"), data=b"{}")
    for method, where in (
        ("POST", NAMESPACES),
        ("PUT", path("N")),
        ("POST", path("N", "objects")),
        ("PUT", path("N", "objects", "one")),
        ("POST", path("N", "properties")),
        ("PUT", path("N", "properties", "cpu")),
        ("POST", path("N", "tags")),
        ("PUT", path("N", "tags", "first")),
        ("POST", path("N", "resource_types")),
    ):
        for data in BROKEN:
            ask("admin", method, where, data=data)
        for name in ("self", "schema", "created_at", "updated_at", "other"):
            ask("admin", method, where, json={"namespace": "x", "name": "x", "tags": [{"name": "x"}]} | {name: "x"})
            ask("alice", method, where, json={name: "x"})
    ask("admin", "POST", path("N", "tags"), data=b'{"tags": [{"name": "a", "name": "b"}]}')
    ask("admin", "POST", NAMESPACES, data=b'{"namespace": "typed"}', headers={"Content-Type": "text/plain"})
    ask("admin", "POST", NAMESPACES, data=[b'{"namespace": ', b'"pieces"}'])
    ask("admin", "GET", path("N"))
    remove(ask, "N", "typed")
    ask("admin", "DELETE", path("pieces"))


# --- namespaces --------------------------------------------------------------------------------------------

#: What is said of a namespace.
FIELDS: tuple[dict[str, Any], ...] = (
    {},
    {"display_name": "d" * 80},
    {"display_name": "d" * 81},
    {"display_name": ""},
    {"display_name": None},
    {"display_name": 1},
    {"display_name": BEYOND},
    {"description": "d" * 500},
    {"description": "d" * 501},
    {"description": ""},
    {"description": None},
    {"description": BEYOND},
    {"visibility": "public"},
    {"visibility": "shared"},
    {"visibility": None},
    {"protected": True},
    {"protected": "true"},
    {"protected": 1},
    {"protected": None},
    {"owner": "somebody"},
    {"owner": "o" * 255},
    {"owner": "o" * 256},
    {"owner": ""},
    {"owner": None},
    {"id": 1},
    {"other": "x"},
)

#: What can be in it.
PARTS: tuple[dict[str, Any], ...] = (
    {"tags": []},
    {"tags": None},
    {"tags": "x"},
    {"tags": ["x"]},
    {"tags": [{}]},
    {"tags": [{"name": "b"}, {"name": "a"}]},
    {"tags": [{"name": "a"}, {"name": "a"}]},
    {"tags": [{"name": "a"}, {"name": "A"}]},
    {"tags": [{"name": 1}]},
    {"tags": [{"name": "a", "other": 1}]},
    {"objects": []},
    {"objects": "x"},
    {"objects": [{}]},
    {"objects": [{"name": "b"}, {"name": "a"}]},
    {"objects": [{"name": "a"}, {"name": "A"}]},
    {"objects": [{"name": "a", "other": 1}]},
    {"objects": [{"name": "a", "description": None}]},
    {"objects": [{"name": "a", "required": ["x", "x"]}]},
    {"objects": [{"name": "a", "required": "x"}]},
    {"objects": [{"name": "a", "properties": {}}]},
    {"objects": [{"name": "a", "properties": {"p": {"title": "x"}}}]},
    {"objects": [{"name": "a", "properties": {"p": {"type": "string"}}}]},
    {"objects": [{"name": "a", "properties": {"p": TEXT | {"other": 1}}}]},
    {"resource_type_associations": []},
    {"resource_type_associations": [{}]},
    {"resource_type_associations": [{"name": "T"}, {"name": "T"}]},
    {"resource_type_associations": [{"name": "T", "prefix": None}]},
    {"resource_type_associations": [{"name": "T", "prefix": ""}]},
    {"resource_type_associations": [{"name": "T", "other": 1}]},
    {"properties": {}},
    {"properties": None},
    {"properties": []},
    {"properties": {"p": 1}},
    {"properties": {"p": {}}},
    {"properties": {"p": TEXT | {"name": "other"}}},
    {"properties": {"p": TEXT | {"other": 1}}},
    {"properties": {"p": TEXT | {"type": None}}},
    {"properties": {"p": TEXT | {"type": "text"}}},
    {"properties": {"p": TEXT, "P": TEXT}},
)


def metadef_namespaces(ask: Ask) -> None:
    for values in (*FIELDS, *PARTS):
        create(ask, "N", **values)
        ask("admin", "GET", path("N"))
        ask("admin", "PUT", path("N"), json={"namespace": "N"})
        ask("admin", "DELETE", path("N"))
    for who in PERSONAS:
        for values in ({}, {"owner": ask.project("bob"), "visibility": "public"}, {"namespace": 1}, {"tags": [{}]}):
            ask(who, "POST", NAMESPACES, json={"namespace": "N"} | values)
            ask("admin", "DELETE", path("N"))
    ask("admin", "POST", NAMESPACES, json={})
    create(ask, "N", **whole(ask))
    for who in ("admin", "alice", "bob", "service"):
        create_as = {"namespace": "N"}
        ask(who, "POST", NAMESPACES, json=create_as)
    ask("admin", "GET", path("N"))
    remove(ask, "N")


def metadef_updates(ask: Ask) -> None:
    create(ask, "M")
    create(ask, "N", **whole(ask, visibility="public"))
    for values in FIELDS:
        ask("admin", "PUT", path("N"), json={"namespace": "N"} | values)
        ask("admin", "GET", path("N"))
    ask("admin", "PUT", path("N"), json={"namespace": "N", "tags": [], "objects": [{"name": "new"}], "properties": {}})
    ask("admin", "GET", path("N"))
    for values in PARTS[:12]:
        ask("admin", "PUT", path("N"), json={"namespace": "N"} | values)
    for name in ("M", "m", LONG, BEYOND, 1, None):
        ask("admin", "PUT", path("N"), json={"namespace": name})
    ask("admin", "PUT", path("N"), json={})
    ask("admin", "PUT", path("nothing"), json={"namespace": "N"})
    ask("admin", "PUT", path("N"), json={"namespace": "renamed"})
    for name in ("N", "renamed", "renamed?resource_type=OS::A"):
        ask("admin", "GET", f"{NAMESPACES}/{name}")
    ask("admin", "GET", path("renamed", "objects"))
    remove(ask, "renamed", "M")


QUERIES = (
    "", "limit=2", "limit=0", "limit=-1", "limit=x", "limit=", "limit=2000", "limit=1", "limit=5", "limit=1&limit=2",
    "marker=c", "marker=C", "marker=nothing", "marker=", "limit=2&marker=b", "marker=%F0%9F%98%80",
    "sort_key=namespace", "sort_key=namespace&sort_dir=asc", "sort_key=display_name&sort_dir=asc",
    "sort_key=description", "sort_key=visibility", "sort_key=protected&sort_dir=asc", "sort_key=created_at",
    "sort_key=updated_at&sort_dir=asc", "sort_key=id", "sort_key=nothing", "sort_key=", "sort_dir=asc", "sort_dir=up",
    "sort_dir=", "limit=2&sort_key=namespace&sort_dir=asc&marker=b", "sort_key=display_name&sort_dir=asc&marker=b",
    "sort_key=display_name&marker=d", "visibility=public", "visibility=private", "visibility=shared", "visibility=",
    "visibility=PUBLIC", "resource_types=T1", "resource_types=T1,T2", "resource_types=t1", "resource_types=nothing",
    "resource_types=", "resource_types=T1,nothing", "resource_types=T2&visibility=public&limit=1",
    "resource_types=T1&resource_types=T2", "other=x", "owner=x", "namespace=a", "protected=true",
    "limit=1&other=a%20b",
)  # fmt: skip


def metadef_lists(ask: Ask) -> None:
    red, blue, admin = (ask.project(who) for who in ("alice", "bob", "admin"))
    for name, visibility, owner, types in (
        ("a", "public", red, ["T1"]),
        ("c", "private", red, ["T1", "T2"]),
        ("b", "public", blue, ["T2"]),
        ("d", "private", blue, []),
        ("e", "public", admin, ["T3"]),
    ):
        links = [{"name": one, "prefix": f"{one}:"} for one in types]
        shown = {"display_name": f"D{'ecabd'.index(name)}"} if name != "d" else {}
        create(ask, name, visibility=visibility, owner=owner, resource_type_associations=links, **shown)
    for query in QUERIES:
        ask("admin", "GET", f"{NAMESPACES}?{query}")
    for who in PERSONAS:
        for query in (
            "",
            "visibility=private",
            "visibility=public",
            "limit=2",
            "marker=c",
            "marker=d",
            "resource_types=T1",
        ):
            ask(who, "GET", f"{NAMESPACES}?{query}")
        ask(who, "GET", TYPES)
    remove(ask, *"abcde")
    ask("admin", "GET", f"{TYPES}?limit=1&sort_key=nothing")


# --- what is in them ---------------------------------------------------------------------------------------

#: What a definition of a property can say.
DEFINITIONS: tuple[dict[str, Any], ...] = (
    {"default": "x"},
    {"default": ""},
    {"default": None},
    {"default": ["x"]},
    {"default": {"x": 1}},
    {"type": "integer", "default": 3},
    {"type": "number", "default": 1.5},
    {"type": "boolean", "default": False},
    {"enum": []},
    {"enum": ["a", "a"]},
    {"enum": ["a", None]},
    {"enum": [1, 2.5, True]},
    {"enum": None},
    {"enum": "a"},
    {"minimum": 1},
    {"minimum": 1.5},
    {"maximum": -1},
    {"maximum": 1e30},
    {"minimum": "1"},
    {"minimum": True},
    {"minimum": None},
    {"minLength": 0, "maxLength": 5},
    {"minLength": 5, "maxLength": 1},
    {"maxLength": -1},
    {"maxLength": 1.5},
    {"maxLength": 1.0},
    {"pattern": "^a"},
    {"pattern": "^["},
    {"pattern": ""},
    {"pattern": 1},
    {"readonly": False},
    {"readonly": "yes"},
    {"operators": []},
    {"operators": ["<or>"]},
    {"operators": ["nonsense"]},
    {"operators": [1]},
    {"operators": "x"},
    {"items": {}},
    {"items": []},
    {"items": {"type": "string"}},
    {"items": {"type": "text"}},
    {"items": {"enum": ["a"]}},
    {"items": {"type": "integer", "enum": [1]}},
    {"items": {"type": "string", "other": 1}},
    {"uniqueItems": False},
    {"uniqueItems": 1},
    {"minItems": 0, "maxItems": 2},
    {"minItems": -1},
    {"additionalItems": True},
    {"additionalItems": {}},
    {"required": []},
    {"required": ["x"]},
    {"required": None},
    {"title": ""},
    {"title": "t" * 300},
    {"title": None},
    {"title": 1},
    {"title": BEYOND},
    {"type": None},
    {"type": "null"},
    {"type": "text"},
    {"type": ["string"]},
    {"description": "d" * 600},
    {"description": ""},
    {"description": None},
    {"description": BEYOND},
    {"default": BEYOND},
    {"default": "d" * 70000},
    {"other": 1},
)


def metadef_definitions(ask: Ask) -> None:
    """Of properties, by themselves and in objects."""
    create(ask, "N")
    for values in DEFINITIONS:
        ask("admin", "POST", path("N", "properties"), json={"name": "p"} | TEXT | values)
        ask("admin", "GET", path("N", "properties", "p"))
        ask("admin", "DELETE", path("N", "properties", "p"))
        ask("admin", "POST", path("N", "objects"), json={"name": "o", "properties": {"p": TEXT | values}})
        ask("admin", "GET", path("N", "objects", "o"))
        ask("admin", "DELETE", path("N", "objects", "o"))
    remove(ask, "N")


def metadef_properties(ask: Ask) -> None:
    create(ask, "N", **whole(ask))
    base = path("N", "properties")
    for values in (
        TEXT, {"name": "x"}, {"name": "x", "title": "t"}, {"name": "x", "type": "string"},
        {"name": "n" * 80} | TEXT, {"name": LONG} | TEXT, {"name": 1} | TEXT, {"name": None} | TEXT,
        {"name": "cpu"} | TEXT, {"name": "CPU"} | TEXT, {"name": "a/b"} | TEXT, {"name": "a:q"} | TEXT,
        {"name": BEYOND} | TEXT, {"name": "new"} | TEXT,
    ):  # fmt: skip
        ask("admin", "POST", base, json=values)
    for name in ("cpu", "CPU", "new", "nothing", "a:q", "a%2Fb"):
        ask("admin", "GET", f"{base}/{name}")
        for kind in ("OS::A", "os::a", "OS::B", "OS::C", "nothing", ""):
            ask("admin", "GET", f"{base}/{name}?resource_type={kind}")
    for query in ("a:cpu?resource_type=OS::A", "a:cpu?resource_type=os::a", "a:a:q?resource_type=OS::A",
                  "cpu?other=1", "cpu?resource_type=OS::B&resource_type=OS::A", "a:cpu?resource_type=OS::A&other=1"):  # fmt: skip
        ask("admin", "GET", f"{base}/{query}")
    for query in ("", "limit=1", "limit=x", "marker=nothing", "sort_key=nothing", "resource_type=OS::A"):
        ask("admin", "GET", f"{base}?{query}")
    for query in ("OS::A", "os::a", "OS::B", "OS::C", "nothing", "", "OS::B&resource_type=OS::A", "OS::A&other=1"):
        ask("admin", "GET", f"{path('N')}?resource_type={query}")
    ask("admin", "GET", f"{path('N')}?other=1")
    for name, values in (
        ("new", {"name": "newer", "title": "u", "type": "integer", "minimum": 1}),
        ("newer", {"name": "newer"} | TEXT),
        ("newer", {"name": "NEWER"} | TEXT),
        ("newer", {"name": "cpu"} | TEXT),
        ("newer", {"name": "CPU"} | TEXT),
        ("newer", {"name": LONG} | TEXT),
        ("newer", TEXT),
        ("newer", {}),
        ("newer?resource_type=OS::A", {"name": "newer"} | TEXT),
        ("nothing", {"name": "nothing"} | TEXT),
    ):
        ask("admin", "PUT", f"{base}/{name}", json=values)
    ask("admin", "GET", f"{base}/newer")
    for name in ("newer?other=1", "newer", "nothing"):
        ask("admin", "DELETE", f"{base}/{name}")
    ask("admin", "DELETE", base)
    ask("admin", "GET", base)
    ask("admin", "DELETE", base)
    remove(ask, "N")


def metadef_objects(ask: Ask) -> None:
    create(ask, "N")
    base = path("N", "objects")
    for name in "abc":
        ask("admin", "POST", base, json={"name": name})
    for query in (
        "", "limit=1", "limit=0", "limit=-1", "limit=x", "limit=", "limit=2000", "marker=a", "marker=nothing", "sort_key=name",
        "sort_key=nothing", "sort_dir=asc", "sort_dir=desc", "sort_dir=up", "visibility=x", "other=x", "resource_type=x",
        "sort_key=name&sort_dir=desc", "limit=1&marker=a",
    ):  # fmt: skip
        ask("admin", "GET", f"{base}?{query}")
    values: Any
    for values in (
        {}, {"name": "n" * 80}, {"name": LONG}, {"name": 1}, {"name": None}, {"name": BEYOND}, {"name": "a"},
        {"name": "A"}, {"name": "a/b"}, {"name": "d1", "description": None}, {"name": "d2", "description": ""},
        {"name": "d3", "description": "d" * 600}, {"name": "d4", "description": "d" * 70000}, {"name": "d5", "description": BEYOND},
        {"name": "r1", "required": []}, {"name": "r2", "required": ["x"]}, {"name": "r3", "required": [1]},
        {"name": "r4", "required": ["x", "x"]}, {"name": "r5", "required": None}, {"name": "r6", "required": "x"},
        {"name": "p1", "properties": {}},
        {"name": "p2", "properties": None}, {"name": "p3", "properties": []}, {"name": "p4", "properties": {"q": TEXT}},
        {"name": "p5", "properties": {LONG: TEXT}},
        {"name": "p8", "properties": {"q": TEXT | {"name": "other"}}},
        {"name": "p9", "properties": {"q": TEXT | {"name": LONG}}}, {"name": "p10", "properties": {"q": {"title": "t"}}},
        {"name": "x", "namespace": "N"},
    ):  # fmt: skip
        ask("admin", "POST", base, json=values)
        if values.get("name"):
            ask("admin", "GET", f"{base}/{quote(str(values['name']), safe='')}")
    for name, values in (
        ("b", {"name": "b2", "description": "d", "required": ["z"], "properties": {"q": TEXT}}),
        ("b2", {"name": "b2"}),
        ("b2", {"name": "B2"}),
        ("b2", {"name": "a"}),
        ("b2", {"name": "A"}),
        ("b2", {"name": LONG}),
        ("b2", {"name": BEYOND}),
        ("b2", {}),
        ("b2", {"name": "b2", "properties": {"q": {}}}),
        ("b", {"name": "b"}),
        ("nothing", {"name": "nothing"}),
    ):
        ask("admin", "PUT", f"{base}/{name}", json=values)
        ask("admin", "GET", f"{base}/{name}")
    for name in ("a", "nothing", "a%2Fb"):
        ask("admin", "DELETE", f"{base}/{name}")
    ask("admin", "DELETE", base)
    ask("admin", "GET", base)
    ask("admin", "DELETE", base)
    remove(ask, "N")


def metadef_tags(ask: Ask) -> None:
    create(ask, "N")
    base = path("N", "tags")

    def post(*names: Any, **headers: str) -> None:
        ask("admin", "POST", base, json={"tags": [{"name": name} for name in names]}, headers=headers)
        ask("admin", "GET", base)

    post(*"cabed")
    for query in (
        "limit=2", "limit=0", "limit=-1", "limit=x", "limit=", "limit=2000", "limit=5", "marker=b", "marker=B", "marker=nothing",
        "marker=", "sort_key=name", "sort_key=name&sort_dir=asc", "sort_key=created_at", "sort_key=updated_at&sort_dir=asc",
        "sort_key=id", "sort_key=nothing", "sort_dir=asc", "sort_dir=up", "visibility=x", "visibility=public", "other=x",
        "name=b", "limit=2&sort_key=name&sort_dir=asc", "limit=2&sort_key=name&sort_dir=asc&marker=b", "limit=2&marker=b",
    ):  # fmt: skip
        ask("admin", "GET", f"{base}?{query}")
    for value in ("true", "True", "TRUE", "1", "yes", "on", "t", "y", " true ", "false", "0", "no", "off", "", "x"):
        post(f"new {value}", **{"X-Openstack-Append": value})
    post(*"abc")
    for names in (("a",), ("A",), ("n", "a"), ("q", "q")):
        post(*names, **{"X-Openstack-Append": "true"})
    post("q", "q")
    post("q", "Q")
    post()
    post(**{"X-Openstack-Append": "true"})
    for name in ("t" * 80, LONG, 1, None, BEYOND, "a/b"):
        post(name)
    for body in ({}, {"tags": None}, {"tags": "x"}, {"tags": ["x"]}, {"tags": [{}]}, {"tags": [{"name": "x", "other": 1}]},
                 {"tags": [{"name": "x", "created_at": "x"}]}, {"tags": [{"name": "x"}], "first": "x"}, {"name": "x"}):  # fmt: skip
        ask("admin", "POST", base, json=body)
    post(*(f"many {number}" for number in range(30)))
    ask("admin", "GET", path("N"))
    post("a")
    for name in ("s0", "s1", "s1", "S1", "t" * 80, LONG, "a%20b", "%C3%BC", "%F0%9F%98%80", "a%2Fb", "%00", "%ff"):
        ask("admin", "POST", f"{base}/{name}")
    for name in ("s1", "S1", "s1?other=1", "a%20b", "%C3%BC", "nothing"):
        ask("admin", "GET", f"{base}/{name}")
    for name, values in (
        ("s1", {"name": "s9"}), ("s9", {"name": "s9"}), ("s9", {"name": "S9"}), ("s9", {"name": "s0"}), ("s9", {"name": "S0"}),
        ("s9", {}), ("s9", {"name": 1}), ("s9", {"name": LONG}), ("s9", {"name": BEYOND}), ("nothing", {"name": "x"}),
    ):  # fmt: skip
        ask("admin", "PUT", f"{base}/{name}", json=values)
    ask("admin", "GET", f"{base}/s9")
    for name in ("s0", "s0", "nothing"):
        ask("admin", "DELETE", f"{base}/{name}")
    ask("admin", "DELETE", base)
    ask("admin", "GET", base)
    ask("admin", "DELETE", base)
    remove(ask, "N")


def metadef_associations(ask: Ask) -> None:
    create(ask, "N")
    base = path("N", "resource_types")
    for values in (
        {"name": "Zed", "prefix": "z_", "properties_target": "image"}, {"name": "Alpha"}, {"name": "Mid", "prefix": ""},
        {"name": "Zed"}, {"name": "zed"}, {"name": "n" * 80}, {"name": LONG}, {"name": 1}, {"name": None}, {},
        {"name": "p", "prefix": "p" * 80}, {"name": "p1", "prefix": LONG}, {"name": "p2", "prefix": None},
        {"name": "q", "properties_target": "t" * 80}, {"name": "t1", "properties_target": LONG},
        {"name": "t2", "properties_target": None}, {"name": "t3", "properties_target": ""}, {"name": "x", "other": 1},
        {"name": "a/b"}, {"name": BEYOND}, {"name": "bp", "prefix": BEYOND}, {"prefix": "x"},
    ):  # fmt: skip
        ask("admin", "POST", base, json=values)
    for query in ("", "limit=1&other=x"):
        ask("admin", "GET", f"{base}?{query}")
    ask("admin", "GET", TYPES)
    ask("admin", "GET", path("N"))
    for name in ("zed", "Zed", "Zed", "nothing", "a%2Fb"):
        ask("admin", "DELETE", f"{base}/{name}")
    ask("admin", "GET", base)
    ask("admin", "GET", TYPES)
    ask("admin", "POST", base, json={"name": "Zed"})
    remove(ask, "N")
    ask("admin", "GET", TYPES)


# --- who may what ------------------------------------------------------------------------------------------


def metadef_callers(ask: Ask) -> None:
    for visibility in ("public", "private"):
        create(ask, visibility, **whole(ask, visibility=visibility))
    text = {"name": "cpu"} | TEXT
    for method, below, body in (
        ("GET", "", None),
        ("PUT", "", {"namespace": "x"}),
        ("PUT", "", {}),
        ("GET", "/objects", None),
        ("POST", "/objects", {"name": "new"}),
        ("POST", "/objects", {"name": "one"}),
        ("POST", "/objects", {}),
        ("GET", "/objects/one", None),
        ("GET", "/objects/nothing", None),
        ("PUT", "/objects/one", {"name": "one"}),
        ("PUT", "/objects/nothing", {"name": "one"}),
        ("GET", "/properties", None),
        ("POST", "/properties", {"name": "new"} | TEXT),
        ("GET", "/properties/cpu", None),
        ("GET", "/properties/a:cpu?resource_type=OS::A", None),
        ("PUT", "/properties/cpu", text),
        ("GET", "/tags", None),
        ("POST", "/tags", {"tags": [{"name": "new"}]}),
        ("POST", "/tags/new", None),
        ("GET", "/tags/first", None),
        ("PUT", "/tags/first", {"name": "first"}),
        ("GET", "/resource_types", None),
        ("POST", "/resource_types", {"name": "new"}),
        ("DELETE", "/objects/one", None),
        ("DELETE", "/objects/nothing", None),
        ("DELETE", "/properties/cpu", None),
        ("DELETE", "/tags/first", None),
        ("DELETE", "/resource_types/OS::A", None),
        ("DELETE", "/resource_types/nothing", None),
        ("DELETE", "/objects", None),
        ("DELETE", "/properties", None),
        ("DELETE", "/tags", None),
        ("DELETE", "", None),
    ):
        for who in ("manager", "alice", "reader", "bob", "service", ANYBODY, BAD):
            for namespace in ("public", "private", "nothing"):
                if body is None:
                    ask(who, method, path(namespace) + below)
                else:
                    ask(who, method, path(namespace) + below, json=body)
    for visibility in ("public", "private"):
        ask("alice", "GET", path(visibility))
        remove(ask, visibility)


def metadef_protection(ask: Ask) -> None:
    create(ask, "N", **whole(ask, protected=True))
    ask("admin", "POST", path("N", "tags"), json={"tags": [{"name": "third"}]}, headers={"X-Openstack-Append": "true"})
    ask("admin", "POST", path("N", "tags", "fourth"))
    ask("admin", "POST", path("N", "objects"), json={"name": "new"})
    ask("admin", "POST", path("N", "properties"), json={"name": "new"} | TEXT)
    ask("admin", "POST", path("N", "resource_types"), json={"name": "OS::New"})
    ask("admin", "PUT", path("N", "tags", "fourth"), json={"name": "fifth"})
    ask("admin", "PUT", path("N", "objects", "new"), json={"name": "newer"})
    ask("admin", "PUT", path("N", "properties", "new"), json={"name": "newer"} | TEXT)
    for below in (
        "", "/tags", "/tags/first", "/tags/nothing", "/objects", "/objects/one", "/objects/nothing", "/properties",
        "/properties/cpu", "/properties/nothing", "/resource_types/OS::A", "/resource_types/nothing",
    ):  # fmt: skip
        for who in ("admin", "alice", "bob"):
            ask(who, "DELETE", path("N") + below)
    ask("admin", "GET", path("N"))
    ask("admin", "POST", path("N", "tags"), json={"tags": [{"name": "only"}]})
    ask("admin", "PUT", path("N"), json={"namespace": "N", "protected": True, "display_name": "still"})
    ask("admin", "DELETE", path("N"))
    ask("admin", "PUT", path("N"), json={"namespace": "N"})
    ask("admin", "DELETE", path("N", "objects"))
    ask("admin", "DELETE", path("N"))
    ask("admin", "DELETE", path("N"))


# --- what is taken by one of them only ---------------------------------------------------------------------

#: What Glance takes, or keeps a part of.
REFUSED: tuple[dict[str, Any], ...] = (
    {"tags": [{"name": ""}]},
    {"tags": [{"name": LONG}]},
    {"tags": [{"name": BEYOND}]},
    {"objects": [{"name": ""}]},
    {"objects": [{"name": LONG}]},
    {"objects": [{"name": BEYOND}]},
    {"objects": [{"name": "a", "self": "x"}]},
    {"objects": [{"name": "a", "required": ["a,b"]}]},
    {"resource_type_associations": [{"name": ""}]},
    {"resource_type_associations": [{"name": LONG}]},
    {"resource_type_associations": [{"name": "T", "prefix": LONG}]},
    {"resource_type_associations": [{"name": "T", "properties_target": LONG}]},
    {"properties": {"": TEXT}},
    {"properties": {LONG: TEXT}},
    {"properties": {BEYOND: TEXT}},
    {"properties": {"p": TEXT | {"title": BEYOND}}},
)


def metadef_refusals(ask: Ask) -> None:
    for values in REFUSED:
        create(ask, "N", **values)
        ask("admin", "GET", path("N"))
        ask("admin", "DELETE", path("N"))
    create(ask, "N")
    for kind, body in (
        ("objects", {"name": ""}),
        ("objects", {"name": "a", "required": ["a,b"]}),
        ("objects", {"name": "b", "required": [""]}),
        ("objects", {"name": "c", "properties": {"": TEXT}}),
        ("objects", {"name": "d", "properties": {BEYOND: TEXT}}),
        ("properties", {"name": ""} | TEXT),
        ("properties", {"name": "enum", "enum": [BEYOND]} | TEXT),
        ("properties", {"name": "long", "maxLength": 1 << 40} | TEXT),
        ("tags", {"tags": [{"name": ""}]}),
        ("resource_types", {"name": ""}),
    ):
        ask("admin", "POST", path("N", kind), json=body)
    ask("admin", "DELETE", path("N"))
    for values in ({"tags": [{"name": ""}]}, {"namespace": ""}):
        create(ask, "N")
        ask("admin", "PUT", path("N"), json={"namespace": "N"} | values)
        ask("admin", "DELETE", path("N"))


def metadef_names(ask: Ask) -> None:
    """Names that are hard to write in a path. Some of these namespaces Glance cannot delete any more: it comes last."""
    for name in ("a b", "ünï", "a?b#c", "a%2Fb", "a/b", " blank", "dots..", "semi;colon", "n" * 80, "OS::Compute::X"):
        create(ask, name, objects=[{"name": name}], tags=[{"name": name}], properties={name: TEXT})
        for below in ((), ("objects", quote(name, safe="")), ("tags", quote(name, safe="")), ("tags",)):
            ask("admin", "GET", path(name, *below))
        ask("admin", "DELETE", path(name))
    for name in ("", LONG, BEYOND, "nul\0", 1, None, True, []):
        ask("admin", "POST", NAMESPACES, json={"namespace": name})
    for raw in ("%ff", "%00", "%F0%9F%98%80", "%C3%BC", "a%2Fb", "a/b", "."):
        ask("admin", "GET", f"{NAMESPACES}/{raw}")
    create(ask, "Case")
    for name in ("case", "CASE", "Case"):
        create(ask, name)
        ask("admin", "GET", path(name))
    ask("admin", "PUT", path("case"), json={"namespace": "CASE"})
    ask("admin", "GET", path("CASE"))
    remove(ask, "CASE")


SECTIONS: tuple[Callable[[Ask], None], ...] = (
    metadef_schemas,
    metadef_methods,
    metadef_bodies,
    metadef_namespaces,
    metadef_updates,
    metadef_lists,
    metadef_definitions,
    metadef_properties,
    metadef_objects,
    metadef_tags,
    metadef_associations,
    metadef_callers,
    metadef_protection,
    metadef_refusals,
    metadef_names,
)
