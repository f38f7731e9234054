"""Metadata definitions: each route, what it refuses, names that are odd, pages that are walked, all or nothing.

Who may do what is in `tests/policy/test_matrix.py`, what others wrote into the tables in `tests/db/test_metadefs.py`.
"""

import base64
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import jsonschema_rs
import pytest
import requests
from falcon import testing

from tests.inprocess import CONF, parts
from tests.support import PASSWORD, USERS, Client, write_users

TREE = "/v2/metadefs/namespaces"
DEFINITION = {"title": "CPUs", "type": "integer"}
#: Every field that a definition of a property can have.
FULL_DEFINITION = {
    "type": "array",
    "title": "CPUs",
    "description": "Which of them",
    "operators": ["<in>", "<or>"],
    "default": "a",
    "readonly": True,
    "minimum": 1,
    "maximum": 9,
    "enum": ["a", "b"],
    "pattern": "^[a-z]+$",
    "minLength": 0,
    "maxLength": 255,
    "items": {"type": "string", "enum": ["a"]},
    "uniqueItems": False,
    "minItems": 1,
    "maxItems": 2,
    "additionalItems": False,
}
TIMES = {"created_at", "updated_at"}
_numbers = itertools.count(1)


def path(*names: str) -> str:
    return "/".join((TREE, *(quote(name, safe="") for name in names)))


def fresh(word: str = "test") -> str:
    """A name that no other test has."""
    return f"{word} {next(_numbers)}"


class Catalogue:
    """Requests of one client, under one namespace or beside it. What was made is removed at the end."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._made: list[str] = []

    def post(self, body: Any, *names: str, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request("POST", path(*names), json=body, headers=named)

    def put(self, body: Any, *names: str) -> requests.Response:
        return self.client.request("PUT", path(*names), json=body)

    def get(self, *names: str, query: str = "") -> requests.Response:
        return self.client.get(path(*names) + query)

    def delete(self, *names: str) -> requests.Response:
        return self.client.request("DELETE", path(*names))

    def shown(self, *names: str, query: str = "") -> Any:
        found = self.get(*names, query=query)
        assert found.status_code == 200, found.text
        return found.json()

    def add(self, name: str | None = None, **values: Any) -> str:
        """The name of a new namespace."""
        name = name or fresh()
        made = self.post({"namespace": name, **values})
        assert made.status_code == 201, made.text
        self._made.append(name)
        return name

    def clean(self) -> None:
        for name in self._made:
            if self.get(name).status_code == 200:
                self.put({"namespace": name}, name)
                assert self.delete(name).status_code == 204


@pytest.fixture
def tree(admin: Client) -> Iterator[Catalogue]:
    """The catalogue, as an administrator has it."""
    made = Catalogue(admin)
    yield made
    made.clean()


def without(found: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in names}


# --- namespaces ------------------------------------------------------------------------------------------


def test_a_namespace_is_made_shown_replaced_and_deleted(tree: Catalogue) -> None:
    name = fresh()
    made = tree.post({"namespace": name})
    assert made.status_code == 201
    shown = made.json()
    where = path(name)
    assert made.headers["Location"] == tree.client.url + where
    assert without(shown, *TIMES) == {
        "namespace": name,
        "visibility": "private",
        "protected": False,
        "owner": "admin",
        "self": where,
        "schema": "/v2/schemas/metadefs/namespace",
    }
    assert shown["created_at"] == shown["updated_at"]
    assert tree.shown(name) == shown

    full = {"namespace": name, "display_name": "D", "description": "d", "visibility": "public", "owner": "red"}
    changed = tree.put(full, name)
    assert changed.status_code == 200
    assert without(changed.json(), *TIMES) == {**without(shown, *TIMES), **full}
    assert changed.json()["created_at"] == shown["created_at"]
    assert tree.shown(name) == changed.json()
    # All of it is replaced: what the body does not say is what it is without being said.
    assert without(tree.put({"namespace": name}, name).json(), *TIMES) == without(shown, *TIMES)

    assert tree.delete(name).status_code == 204
    assert tree.delete(name).status_code == 404
    assert tree.get(name).status_code == 404
    assert tree.put({"namespace": name}, name).status_code == 404


def test_a_namespace_comes_with_all_that_is_in_it(tree: Catalogue) -> None:
    name = tree.add(
        resource_type_associations=[{"name": "OS::B", "prefix": "b_", "properties_target": "meta"}, {"name": "OS::A"}],
        properties={"z": FULL_DEFINITION, "a": DEFINITION},
        objects=[{"name": "o", "description": "d", "required": ["x"], "properties": {"x": FULL_DEFINITION}}],
        tags=[{"name": "z"}, {"name": "a"}],
    )
    found = tree.shown(name)
    assert [without(one, *TIMES) for one in found["resource_type_associations"]] == [
        {"name": "OS::A"},
        {"name": "OS::B", "prefix": "b_", "properties_target": "meta"},
    ]
    assert found["properties"] == {"z": FULL_DEFINITION, "a": DEFINITION}
    assert [without(one, *TIMES) for one in found["objects"]] == [
        {
            "name": "o",
            "description": "d",
            "required": ["x"],
            "properties": {"x": FULL_DEFINITION},
            "self": path(name, "objects", "o"),
            "schema": "/v2/schemas/metadefs/object",
        }
    ]
    assert found["tags"] == [{"name": "a"}, {"name": "z"}]  # the newest first
    # The same from each of its own routes.
    assert tree.shown(name, "properties")["properties"].keys() == {"z", "a"}
    assert tree.shown(name, "properties", "z") == {"name": "z", **FULL_DEFINITION}
    assert tree.shown(name, "objects")["objects"] == found["objects"]
    assert tree.shown(name, "objects", "o") == found["objects"][0]
    assert tree.shown(name, "tags")["tags"] == found["tags"]
    types = tree.shown(name, "resource_types")["resource_type_associations"]
    assert types == found["resource_type_associations"]
    # A list has the associations and nothing else of what is in it.
    listed = next(one for one in tree.shown(query="?limit=1000")["namespaces"] if one["namespace"] == name)
    assert listed == without(found, "properties", "objects", "tags")


def test_what_is_in_a_namespace_stays_when_it_is_replaced_or_renamed_and_goes_with_it(tree: Catalogue) -> None:
    name, new = tree.add(tags=[{"name": "t"}], objects=[{"name": "o"}], properties={"p": DEFINITION}), fresh("renamed")
    tree.post({"name": "OS::T", "prefix": "x_"}, name, "resource_types")
    before = tree.shown(name)
    changed = tree.put({"namespace": new, "tags": [{"name": "not this"}], "objects": []}, name)
    assert changed.status_code == 200
    assert changed.json()["self"] == path(new)
    tree._made.append(new)
    assert tree.get(name).status_code == 404
    after = tree.shown(new)
    assert [one["name"] for one in after["tags"]] == ["t"]
    assert after["properties"] == before["properties"]
    assert after["objects"][0]["self"] == path(new, "objects", "o")
    assert after["resource_type_associations"] == before["resource_type_associations"]
    # Its old name is free.
    tree.add(name)
    assert tree.shown(name).keys() & {"tags", "objects", "properties", "resource_type_associations"} == set()
    assert tree.delete(new).status_code == 204
    for kind, one in (("tags", "t"), ("objects", "o"), ("properties", "p")):
        assert tree.get(new, kind).status_code == 404
        assert tree.get(new, kind, one).status_code == 404
    # One of the same name has nothing of it; but the resource type is still known.
    tree.add(new)
    assert tree.shown(new).keys() & {"tags", "objects", "properties", "resource_type_associations"} == set()
    assert "OS::T" in [one["name"] for one in tree.client.get("/v2/metadefs/resource_types").json()["resource_types"]]


def test_names_are_taken_once_and_a_rename_onto_another_one_changes_nothing(tree: Catalogue) -> None:
    one, other = tree.add(description="one"), tree.add(description="other")
    assert tree.post({"namespace": one, "tags": [{"name": "t"}]}).status_code == 409
    assert tree.put({"namespace": other, "description": "new"}, one).status_code == 409
    assert (tree.shown(one)["description"], tree.shown(other)["description"]) == ("one", "other")
    assert "tags" not in tree.shown(one)
    assert tree.put({"namespace": one, "description": "new"}, one).status_code == 200
    for kind, body in (("objects", {}), ("properties", DEFINITION), ("tags", {})):
        for name in ("a", "b"):
            made = tree.post(None, one, kind, name) if kind == "tags" else tree.post({"name": name, **body}, one, kind)
            assert made.status_code == 201, made.text
        again = tree.post(None, one, kind, "a") if kind == "tags" else tree.post({"name": "a", **body}, one, kind)
        assert again.status_code == 409
        assert tree.put({"name": "b", **body}, one, kind, "a").status_code == 409
        assert tree.put({"name": "a", **body}, one, kind, "a").status_code == 200
        assert tree.put({"name": "c", **body}, one, kind, "a").status_code == 200
        assert tree.get(one, kind, "a").status_code == 404
        assert tree.get(one, kind, "c").json()["name"] == "c"
    # Other namespaces have names of their own.
    assert tree.post({"name": "b"}, other, "objects").status_code == 201


NESTED: Mapping[str, Any] = {
    "resource_type_associations": [{"name": "OS::Nested"}],
    "properties": {"p": DEFINITION},
    "objects": [{"name": "o"}],
    "tags": [{"name": "t"}],
}


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"tags": [{"name": "t"}, {"name": "t"}]}, 409),
        ({"objects": [{"name": "o"}, {"name": "o"}]}, 409),
        ({"resource_type_associations": [{"name": "OS::Nested"}, {"name": "OS::Nested"}]}, 409),
        ({"tags": [{"name": "x" * 81}]}, 400),
        ({"tags": [{}]}, 400),
        ({"tags": [{"name": "\U0001f600"}]}, 400),
        ({"tags": ["t"]}, 400),
        ({"tags": None}, 400),
        ({"objects": [{"name": "x" * 81}]}, 400),
        ({"objects": [{"description": "nameless"}]}, 400),
        ({"objects": [{"name": "o", "schemas": "/"}]}, 400),
        ({"objects": [{"name": "o", "required": ["x", "x"]}]}, 400),
        ({"objects": [{"name": "o", "properties": {"p": {"title": "x"}}}]}, 400),
        ({"objects": [{"name": "o", "properties": {"p": {**DEFINITION, "unknown": 1}}}]}, 400),
        ({"objects": [{"name": "o", "properties": {"p": {**DEFINITION, "description": "x" * 65_536}}}]}, 400),
        ({"properties": {"x" * 81: DEFINITION}}, 400),
        ({"properties": {"": DEFINITION}}, 400),
        ({"properties": {"p": {"type": "integer"}}}, 400),
        ({"properties": {"p": {**DEFINITION, "type": "colour"}}}, 400),
        ({"properties": {"p": {**DEFINITION, "minLength": -1}}}, 400),
        ({"properties": {"p": {**DEFINITION, "title": "\U0001f600"}}}, 400),
        ({"properties": []}, 400),
        ({"resource_type_associations": [{"name": "x" * 81}]}, 400),
        ({"resource_type_associations": [{"name": "OS::Nested", "prefix": "x" * 81}]}, 400),
        ({"resource_type_associations": [{"prefix": "x"}]}, 400),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_namespace_is_made_with_all_that_is_to_be_in_it_or_not_at_all(
    tree: Catalogue, wrong: Mapping[str, Any], status: int
) -> None:
    name, new_type = fresh(), f"OS::Only::{next(_numbers)}"
    links = [{"name": new_type}, *(wrong.get("resource_type_associations") or NESTED["resource_type_associations"])]
    refused = tree.post({**NESTED, **wrong, "namespace": name, "resource_type_associations": links})
    assert refused.status_code == status, refused.text
    assert tree.get(name).status_code == 404
    known = tree.client.get("/v2/metadefs/resource_types").json()["resource_types"]
    assert new_type not in [one["name"] for one in known]
    # And what was refused is in nobody's way.
    tree.add(name, **NESTED)
    assert len(tree.shown(name)["tags"]) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ([], 400),
        ("x", 400),
        ({"namespace": ""}, 400),
        ({"namespace": None}, 400),
        ({"namespace": 7}, 400),
        ({"namespace": "x" * 81}, 400),
        ({"namespace": "\U0001f600"}, 400),
        ({"namespace": "a\0b"}, 400),
        ({"namespace": "a/b"}, 400),
        ({"namespace": "x", "display_name": "x" * 81}, 400),
        ({"namespace": "x", "display_name": None}, 400),
        ({"namespace": "x", "description": "x" * 501}, 400),
        ({"namespace": "x", "owner": "x" * 256}, 400),
        ({"namespace": "x", "visibility": "shared"}, 400),
        ({"namespace": "x", "visibility": "PUBLIC"}, 400),
        ({"namespace": "x", "protected": "true"}, 400),
        ({"namespace": "x", "protected": 1}, 400),
        ({"namespace": "x", "unknown": 1}, 400),
        ({"namespace": "x", "description": "\U0001f600"}, 400),
        *(({"namespace": "x", name: "2026-01-01T00:00:00Z"}, 403) for name in ("self", "schema", *sorted(TIMES))),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
@pytest.mark.any_database
def test_what_is_no_namespace_is_refused(tree: Catalogue, body: Any, status: int) -> None:
    there = tree.add(description="before")
    before = tree.shown(there)
    assert tree.post(body).status_code == status
    assert tree.put(body, there).status_code == status
    assert tree.shown(there) == before
    assert tree.get("x").status_code == 404


def test_nothing_is_deleted_of_what_is_protected(tree: Catalogue) -> None:
    name = tree.add(**NESTED, protected=True)
    whole = tree.shown(name)
    for names in (
        *((), ("objects",), ("properties",), ("tags",), ("objects", "o"), ("properties", "p"), ("tags", "t")),
        ("resource_types", "OS::Nested"),
    ):
        assert tree.delete(name, *names).status_code == 403, names
    assert tree.shown(name) == whole
    # What is not there is not there, protected or not; and what is there may change.
    for names in (("objects", "x"), ("properties", "x"), ("tags", "x"), ("resource_types", "x")):
        assert tree.delete(name, *names).status_code == 404, names
    assert tree.put({"name": "new"}, name, "objects", "o").status_code == 200
    assert tree.post(None, name, "tags", "more").status_code == 201
    assert tree.put({"namespace": name, "protected": False}, name).status_code == 200
    assert tree.delete(name, "tags").status_code == 204
    assert tree.delete(name).status_code == 204


# --- what is in them -------------------------------------------------------------------------------------


def test_an_object_is_added_replaced_and_removed(tree: Catalogue) -> None:
    name = tree.add()
    properties = {"p": FULL_DEFINITION, "q": DEFINITION}
    made = tree.post({"name": "o", "description": "d", "required": ["p"], "properties": properties}, name, "objects")
    assert made.status_code == 201
    shown = tree.shown(name, "objects", "o")
    assert shown == made.json()
    assert shown["properties"] == properties
    assert (shown["required"], shown["self"]) == (["p"], path(name, "objects", "o"))
    changed = tree.put({"name": "new"}, name, "objects", "o")
    assert changed.status_code == 200
    now = tree.shown(name, "objects", "new")
    assert without(now, *TIMES, "self", "schema") == {"name": "new", "required": [], "properties": {}}
    assert now["created_at"] == shown["created_at"]
    assert tree.get(name, "objects", "o").status_code == 404
    assert tree.delete(name, "objects", "new").status_code == 204
    assert tree.delete(name, "objects", "new").status_code == 404
    found = tree.shown(name, "objects")
    assert found["objects"] == []


def test_a_property_is_added_replaced_and_removed(tree: Catalogue) -> None:
    name = tree.add()
    made = tree.post({"name": "p", **FULL_DEFINITION}, name, "properties")
    assert made.status_code == 201
    assert made.json() == {"name": "p", **FULL_DEFINITION} == tree.shown(name, "properties", "p")
    assert tree.put({"name": "new", **DEFINITION}, name, "properties", "p").status_code == 200
    assert tree.shown(name, "properties", "new") == {"name": "new", **DEFINITION}
    assert list(tree.shown(name, "properties")["properties"]) == ["new"]
    assert tree.get(name, "properties", "p").status_code == 404
    assert tree.delete(name, "properties", "new").status_code == 204
    assert tree.delete(name, "properties", "new").status_code == 404
    assert tree.shown(name, "properties") == {"properties": {}}


def test_tags_are_added_replaced_appended_and_removed(tree: Catalogue) -> None:
    name = tree.add()

    def tags() -> list[str]:
        return sorted(one["name"] for one in tree.shown(name, "tags")["tags"])

    def send(*names: str, append: str = "") -> int:
        body = {"tags": [{"name": one} for one in names]}
        headers = {"X-Openstack-Append": append} if append else {}
        answer = tree.post(body, name, "tags", **headers)
        assert answer.status_code != 201 or answer.json()["tags"] == body["tags"]
        return answer.status_code

    made = tree.post(None, name, "tags", "t")
    assert made.status_code == 201
    assert without(made.json(), *TIMES) == {"name": "t"}
    assert tree.shown(name, "tags", "t") == made.json()
    assert send("b", "a") == 201
    assert tags() == ["a", "b"]
    assert send("c", append="True") == 201
    assert tags() == ["a", "b", "c"]
    # All of them or none, whether they replace or are appended.
    assert send("new", "a", append="true") == 409
    assert send("new", "new") == 409
    said = tree.post(None, name, "tags", "a").text
    assert "tag a." in said
    said = tree.post({"tags": [{"name": "new"}, {"name": "a"}]}, name, "tags", X_Openstack_Append="1").text
    assert "tag new" not in said  # it is not there
    assert send("x" * 81) == 400
    assert tags() == ["a", "b", "c"]
    assert send("a", "z") == 201
    assert tags() == ["a", "z"]
    # The order is theirs, too, however soon they come again; the newest is shown first.
    assert send("z", "a") == 201
    assert [one["name"] for one in tree.shown(name, "tags")["tags"]] == ["a", "z"]
    assert send("n", append="false") == 201
    assert tags() == ["n"]
    renamed = tree.put({"name": "m"}, name, "tags", "n")
    assert (renamed.status_code, renamed.json()["name"], tags()) == (200, "m", ["m"])
    assert tree.delete(name, "tags", "m").status_code == 204
    assert tree.delete(name, "tags", "m").status_code == 404
    assert send("q", "r") == 201
    assert tree.delete(name, "tags").status_code == 204
    assert tags() == []


def test_bulk_deletes_remove_one_kind_and_nothing_else(tree: Catalogue) -> None:
    name, other = tree.add(**NESTED), tree.add(**NESTED)
    left = {"objects", "properties", "tags"}
    for kind in sorted(left):
        assert tree.delete(name, kind).status_code == 204
        assert tree.delete(name, kind).status_code == 204  # nothing is there
        left.discard(kind)
        assert tree.shown(name).keys() & {"objects", "properties", "tags"} == left
    assert tree.shown(name)["resource_type_associations"][0]["name"] == "OS::Nested"
    assert tree.shown(other).keys() >= {"objects", "properties", "tags"}


def test_resource_types_are_associated_once_and_stay(tree: Catalogue) -> None:
    name, kind = tree.add(), f"OS::Once::{next(_numbers)}"

    def known() -> list[str]:
        return [one["name"] for one in tree.client.get("/v2/metadefs/resource_types").json()["resource_types"]]

    assert kind not in known()
    made = tree.post({"name": kind, "prefix": "p_", "properties_target": "image"}, name, "resource_types")
    assert made.status_code == 201
    assert without(made.json(), *TIMES) == {"name": kind, "prefix": "p_", "properties_target": "image"}
    assert tree.shown(name, "resource_types") == {"resource_type_associations": [made.json()]}
    assert tree.post({"name": kind}, name, "resource_types").status_code == 409
    other = tree.add()
    assert tree.post({"name": kind}, other, "resource_types").status_code == 201
    assert known().count(kind) == 1
    assert tree.delete(name, "resource_types", kind).status_code == 204
    assert tree.delete(name, "resource_types", kind).status_code == 404
    assert tree.shown(name, "resource_types") == {"resource_type_associations": []}
    assert len(tree.shown(other, "resource_types")["resource_type_associations"]) == 1
    assert tree.delete(other).status_code == 204
    assert kind in known()


def test_an_association_is_answered_as_it_is_shown_and_found_whatever_the_case_of_its_type(tree: Catalogue) -> None:
    kind = f"OS::Case::{next(_numbers)}"
    tree.add(resource_type_associations=[{"name": kind}])
    name = tree.add()
    made = tree.post({"name": kind.lower()}, name, "resource_types")
    assert made.status_code == 201
    assert tree.shown(name, "resource_types") == {"resource_type_associations": [made.json()]}
    assert tree.client.session.delete(made.headers["Location"], timeout=60).status_code == 204
    other = fresh()
    whole = tree.post({"namespace": other, "resource_type_associations": [{"name": kind.upper()}]})
    tree._made.append(other)
    assert whole.json() == tree.shown(other)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        *((kind, body, 400) for kind in ("objects", "properties", "resource_types") for body in ({}, [], "x", None)),
        *((kind, {**DEFINITION, "name": name}, 400) for kind in ("properties",) for name in ("", "x" * 81, 7, "\U0001f600")),
        *((kind, {"name": name}, 400) for kind in ("objects", "resource_types") for name in ("", "x" * 81, 7, "\U0001f600")),
        *((kind, {"name": "x", name: "x"}, 403) for kind in ("objects", "resource_types") for name in TIMES),
        ("objects", {"name": "x", "self": "x"}, 403),
        ("objects", {"name": "x", "unknown": "x"}, 400),
        ("objects", {"name": "x", "description": None}, 400),
        ("objects", {"name": "x", "description": "x" * 65_536}, 400),
        ("objects", {"name": "x", "required": [f"{n:05}" for n in range(13_000)]}, 400),
        ("objects", {"name": "x", "properties": {"p": {**DEFINITION, "description": "x" * 65_536}}}, 400),
        ("objects", {"name": "x", "properties": {f"p{n}": DEFINITION for n in range(2_000)}}, 400),
        ("properties", {"name": "x", **DEFINITION, "created_at": "x"}, 403),
        ("properties", {"name": "x", "type": "string"}, 400),
        ("properties", {"name": "x", "title": "x"}, 400),
        ("properties", {"name": "x", **DEFINITION, "description": "x" * 65_500}, 400),
        ("properties", {"name": "x", **DEFINITION, "enum": "x"}, 400),
        ("properties", {"name": "x", **DEFINITION, "unknown": "x"}, 400),
        ("properties", {"name": "x", **DEFINITION, "items": {}}, 400),
        *((kind, {**body, "self": "x"}, 400) for kind, body in (("properties", {"name": "x", **DEFINITION}),
          ("resource_types", {"name": "x"}), ("tags", {"tags": [{"name": "x"}]}))),
        ("resource_types", {"name": "x", "prefix": None}, 400),
        ("resource_types", {"name": "x", "prefix": "x" * 81}, 400),
        ("resource_types", {"name": "x", "properties_target": "x" * 81}, 400),
        ("tags", {}, 400),
        ("tags", {"tags": None}, 400),
        ("tags", {"tags": ["x"]}, 400),
        ("tags", {"tags": [{"name": ""}]}, 400),
        ("tags", {"tags": [{"name": "x", "unknown": 1}]}, 400),
        ("tags", {"tags": [{"name": "\U0001f600"}]}, 400),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
@pytest.mark.any_database
def test_what_is_no_part_of_a_namespace_is_refused(tree: Catalogue, kind: str, body: Any, status: int) -> None:
    name = tree.add(objects=[{"name": "o"}], properties={"p": DEFINITION}, tags=[{"name": "t"}])
    before = tree.shown(name)
    assert tree.post(body, name, kind).status_code == status
    if kind in ("objects", "properties"):
        assert tree.put(body, name, kind, kind[0]).status_code == status
    assert tree.shown(name) == before


@pytest.mark.any_database
def test_what_a_request_would_need_to_have_or_must_not_have_is_said(tree: Catalogue) -> None:
    name = tree.add(**NESTED)
    before = tree.shown(name)
    one = {"objects": "o", "properties": "p", "tags": "t", "resource_types": "OS::Nested"}
    for names in ((), *((kind,) for kind in list(one)[:3]), *one.items()):  # a body where none belongs
        answer = tree.client.request("DELETE", path(name, *names), data=b"{}")
        assert answer.status_code == 400, names
    assert tree.client.request("POST", path(name, "tags", "new"), data=b"{}").status_code == 400
    asked = [("POST", TREE), ("PUT", path(name)), ("PUT", path(name, "objects", "o")), ("PUT", path(name, "tags", "t"))]
    for method, where in [*asked, *(("POST", path(name, kind)) for kind in one)]:
        for data in (b"", b"{", b"\xff", b'{"name": "a", "name": "b"}', b'{"name": NaN}', b'{"name": 1e999}'):
            assert tree.client.request(method, where, data=data).status_code == 400, (method, where, data)
    beyond = b'{"name": "x", "title": "T", "type": "number", "minimum": 1e999}'
    assert tree.client.request("POST", path(name, "properties"), data=beyond).status_code == 400
    assert tree.shown(name) == before


@pytest.mark.parametrize("kind", ["objects", "properties", "tags"])
@pytest.mark.any_database
def test_what_is_not_there_is_404_and_what_cannot_be_done_is_405(tree: Catalogue, kind: str) -> None:
    name, absent = tree.add(), fresh("absent")
    body = {"name": "x", **(DEFINITION if kind == "properties" else {})}
    many = {"tags": [{"name": "x"}]} if kind == "tags" else body
    for names in ((name, kind, "x"), (absent, kind, "x")):
        assert tree.get(*names).status_code == 404
        assert tree.put(body, *names).status_code == 404
        assert tree.delete(*names).status_code == 404
        assert tree.client.request("PATCH", path(*names)).status_code == 405
    assert tree.get(absent, kind).status_code == 404
    assert tree.delete(absent, kind).status_code == 404
    assert tree.post(many, absent, kind).status_code == 404
    assert tree.put(many, name, kind).status_code == 405
    for rest in ((), ("x",)):
        assert tree.post({"name": "x"}, absent, "resource_types", *rest).status_code == (405 if rest else 404)
        assert tree.delete(absent, "resource_types", *rest).status_code == (404 if rest else 405)
    assert tree.get(absent, "resource_types").status_code == 404
    for method, where in itertools.product(
        ("GET", "HEAD", "POST", "PUT", "DELETE"), (f"{TREE}/", path(name, kind, ""))
    ):
        assert tree.client.request(method, where, json=body).status_code == 404, (method, where)


@pytest.mark.any_database
def test_a_body_of_a_mebibyte_is_read_and_one_that_is_larger_is_not(tree: Catalogue) -> None:
    name = fresh()
    tags = [{"name": f"{number:080}"} for number in range(10_000)]
    body = json.dumps({"namespace": name, "tags": tags})
    assert 900_000 < len(body) < 1 << 20
    padded = body + " " * ((1 << 20) - len(body))
    refused = tree.client.request("POST", TREE, data=padded + " ")
    assert refused.status_code == 413
    assert tree.get(name).status_code == 404
    tree._made.append(name)
    assert tree.client.request("POST", TREE, data=padded).status_code == 201
    assert len(tree.shown(name)["tags"]) == 10_000
    assert tree.client.request("PUT", path(name), data=padded + " ").status_code == 413
    assert tree.client.request("POST", path(name, "objects"), data=padded + " ").status_code == 413


def test_a_definition_that_fits_its_column_is_kept_to_the_last_byte(tree: Catalogue) -> None:
    """The same number of bytes is too many with each database; here as many as there may be."""
    name = tree.add()
    most = 65_535 - len(json.dumps({**DEFINITION, "description": ""}))
    fits = {"name": "p", **DEFINITION, "description": "x" * most}
    assert tree.post({**fits, "description": "x" * (most + 1)}, name, "properties").status_code == 400
    assert tree.post(fits, name, "properties").status_code == 201
    assert tree.shown(name, "properties", "p") == fits


def test_what_was_accepted_can_be_read_again_however_deep_it_is(tree: Catalogue) -> None:
    name = tree.add()
    for deep in (20, 40, 900, 930, 950, 960, 970, 980, 990):
        definition = f'{{"title": "T", "type": "string", "default": {"[" * deep}{"]" * deep}}}'
        for kind, body in (
            ("properties", f'{{"name": "p{deep}", {definition[1:]}'),
            ("objects", f'{{"name": "o{deep}", "properties": {{"p": {definition}}}}}'),
        ):
            made = tree.client.request("POST", path(name, kind), data=body)
            assert made.status_code == (201 if deep == 20 else 400), (deep, made.text)
    assert tree.shown(name)["properties"]["p20"]["default"] == json.loads("[" * 20 + "]" * 20)


# --- names -----------------------------------------------------------------------------------------------

ODD_NAMES = [
    "with blanks", " leading", "100%", "%41", "a::b", "OS::Compute::Hypervisor", "ünïcödé", "名前空間", "a?b#c&d=e", "a+b",
    "\u017f", "it's", '"quoted"', "a\\b", "a;b", "x" * 80, "ü" * 80, "~", "<b>",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: repr(name)[:20])
def test_whatever_its_name_a_thing_is_found_where_its_links_lead(tree: Catalogue, name: str) -> None:
    space = f"{name[:70]}|{next(_numbers)}"
    made = tree.post({"namespace": space, "objects": [{"name": name}], "properties": {name: DEFINITION}})
    assert made.status_code == 201, made.text
    tree._made.append(space)
    assert made.json()["namespace"] == space
    assert made.headers["Location"].isascii()
    assert " " not in made.headers["Location"]
    if name not in (".", ".."):  # clients take these for steps of the path
        found = tree.client.session.get(made.headers["Location"], timeout=60)
        assert (found.status_code, found.json()["namespace"]) == (200, space)
        shown = tree.client.get(found.json()["objects"][0]["self"])
        assert (shown.status_code, shown.json()["name"]) == (200, name)
        assert tree.post(None, space, "tags", name).status_code == 201
        assert tree.shown(space, "tags", name)["name"] == name
        assert tree.shown(space, "properties", name)["name"] == name
        assert tree.post({"name": name}, space, "resource_types").status_code == 201
        assert tree.delete(space, "resource_types", name).status_code == 204
        assert tree.delete(space, "tags", name).status_code == 204
        assert tree.delete(space, "properties", name).status_code == 204
    assert tree.client.get(made.json()["self"]).json()["namespace"] == space


@pytest.mark.parametrize("name", ["\U0001f600", "a\0", "%ff", "x" * 81, "a/b"], ids=repr)
@pytest.mark.any_database
def test_a_path_that_names_nothing_that_there_could_be_is_answered_with_4xx(tree: Catalogue, name: str) -> None:
    escaped = name if name == "%ff" else quote(name, safe="")
    there = tree.add()
    for method in ("GET", "PUT", "DELETE", "POST"):
        for where in (f"{TREE}/{escaped}", f"{path(there)}/tags/{escaped}", f"{path(there)}/objects/{escaped}"):
            body = {"json": {"name": "x", "namespace": "x"}} if method == "PUT" else {}
            status = tree.client.request(method, where, **body).status_code
            assert status in (400, 404, 405), (method, where)


# --- prefixes --------------------------------------------------------------------------------------------


def test_with_a_resource_type_properties_have_the_prefix_of_their_association(tree: Catalogue) -> None:
    name = tree.add(
        resource_type_associations=[{"name": "OS::P", "prefix": "p_"}, {"name": "OS::Q"}],
        properties={"a": DEFINITION},
        objects=[{"name": "o", "required": ["b", "elsewhere"], "properties": {"b": DEFINITION}}],
    )
    found = tree.shown(name, query="?resource_type=OS::P")
    assert found["properties"] == {"p_a": DEFINITION}
    assert found["objects"][0]["properties"] == {"p_b": DEFINITION}
    assert found["objects"][0]["required"] == ["p_b", "p_elsewhere"]
    assert found["objects"][0]["name"] == "o"
    for query in ("", "?resource_type=OS::Q", "?resource_type=none", "?resource_type=", "?other=OS::P"):
        assert tree.shown(name, query=query) == tree.shown(name), query
    assert "p_a" not in tree.shown(name)["properties"]
    # Asked for by that name it is shown by its own.
    where = name, "properties"
    assert tree.shown(*where, "p_a", query="?resource_type=OS::P") == {"name": "a", **DEFINITION}
    assert tree.shown(*where, "a", query="?resource_type=") == {"name": "a", **DEFINITION}
    for one, query in (("a", "OS::P"), ("p_", "OS::P"), ("p_x", "OS::P"), ("a", "none"), ("p_a", "")):
        assert tree.get(*where, one, query=f"?resource_type={query}").status_code == 404, (one, query)


# --- lists -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(service: Any) -> Iterator[tuple[Catalogue, list[str]]]:
    """Namespaces that share whatever they can be sorted by, most of them made within a second."""
    tree = Catalogue(service.client("admin"))
    names = [
        tree.add(
            f"many {number:02}%",
            **({"display_name": "ABC"[number % 3]} if number % 4 else {}),
            **({"description": "same"} if number % 2 else {}),
            visibility=("public", "private")[number % 2],
            protected=number % 3 == 0,
            owner=("red", "blue", "Red")[number % 3],
            resource_type_associations=[{"name": "OS::Many"}] if number % 2 else [{"name": "OS::Many"}, {"name": "OS::More"}],
        )
        for number in range(23)
    ]  # fmt: skip
    yield tree, names
    tree.clean()


SORT_KEYS = "namespace display_name description visibility protected owner created_at updated_at id".split()


@pytest.mark.parametrize(("key", "direction"), list(itertools.product(SORT_KEYS, ("asc", "desc"))))
def test_who_follows_next_sees_each_namespace_once_in_order(
    many: tuple[Catalogue, list[str]], key: str, direction: str
) -> None:
    tree, names = many
    query = f"?resource_types=OS::Many&sort_key={key}&sort_dir={direction}"
    whole = tree.shown(query=query + "&limit=100")
    assert "next" not in whole
    assert sorted(one["namespace"] for one in whole["namespaces"]) == names
    page, seen = tree.shown(query=query + "&limit=4"), []
    first = page["first"]
    while True:
        seen += page["namespaces"]
        assert len(page["namespaces"]) <= 4
        assert page["first"] == first
        if "next" not in page:
            break
        assert parse_qs(urlsplit(page["next"]).query)["marker"] == [seen[-1]["namespace"]]
        assert quote(unquote(page["next"]), safe="/:?=&") == quote(page["next"], safe="/:?=&%")
        found = tree.client.get(page["next"])
        assert found.status_code == 200, found.text
        page = found.json()
    assert seen == whole["namespaces"]
    assert tree.client.get(first).json()["namespaces"] == seen[:4]
    if key != "id" and key != "owner":  # databases differ in the order of `red` and `Red`
        values = [one.get(key) for one in seen]
        given = [value for value in values if value is not None]
        assert given == sorted(given, reverse=direction == "desc")
        missing = len(values) - len(given)
        assert all(value is None for value in (values[:missing] if direction == "asc" else values[len(given) :]))


def test_a_list_begins_with_the_newest_and_holds_as_many_as_are_asked_for(
    many: tuple[Catalogue, list[str]], service: Any
) -> None:
    tree, names = many
    of_these = "?resource_types=OS::Many"
    assert [one["namespace"] for one in tree.shown(query=of_these)["namespaces"]] == names[::-1]
    assert tree.shown(query=of_these + "&limit=0")["namespaces"] == []
    assert len(tree.shown(query=of_these + "&limit=100000")["namespaces"]) == len(names)
    last = f"&marker={quote(names[0])}"
    assert tree.shown(query=of_these + last)["namespaces"] == []
    assert "next" not in tree.shown(query=of_these + f"&limit={len(names)}&marker={quote(names[-1])}")
    for wrong, status in (
        ("limit=-1", 400), ("limit=x", 400), ("limit=", 400), ("limit=1.5", 400), ("limit=99999999999999999999", 400),
        ("sort_key=colour", 400), ("sort_dir=up", 400), ("sort_key=", 400), ("sort_dir=", 400), ("visibility=shared", 400), ("marker=none", 404), ("marker=", 404),
        ("marker=%00", 400), ("marker=%ff", 400), ("resource_types=%F0%9F%98%80", 400),
    ):  # fmt: skip
        assert tree.get(query=f"?{wrong}").status_code == status, wrong
    # A marker is a namespace that the caller sees.
    hidden = next(one for one in tree.shown(query=of_these)["namespaces"] if one["owner"] == "blue" and one["visibility"] == "private")  # fmt: skip
    alice = Catalogue(service.client("alice"))
    assert alice.get(query=f"?marker={quote(hidden['namespace'])}").status_code == 404


def test_lists_are_filtered_by_visibility_and_resource_types(many: tuple[Catalogue, list[str]], service: Any) -> None:
    tree, names = many

    def listed(user: str, query: str) -> list[str]:
        found = Catalogue(service.client(user)).shown(query=f"?limit=1000&{query}")["namespaces"]
        return sorted(one["namespace"] for one in found if one["namespace"].startswith("many "))

    public, private = names[::2], names[1::2]
    assert listed("admin", "visibility=public") == public
    assert listed("admin", "visibility=private") == private
    # `Red` is not the project `red`, whatever the database makes of case.
    mine = [name for number, name in enumerate(names) if number % 2 and number % 3 == 0]
    assert listed("alice", "") == sorted([*public, *mine])
    assert listed("alice", "visibility=private") == mine
    assert listed("carol", "") == public
    assert listed("admin", "resource_types=OS::More") == public
    assert listed("admin", "resource_types=OS::None,OS::More") == public
    assert listed("admin", "resource_types=OS::None") == []
    assert listed("admin", "resource_types=OS::Many,OS::More") == names  # each once
    found = tree.shown(query="?resource_types=OS::More&limit=1000")["namespaces"]
    assert {len(one["resource_type_associations"]) for one in found} == {2}


@pytest.mark.parametrize(("key", "direction"), list(itertools.product(("name", "created_at", "id"), ("asc", "desc"))))
def test_pages_of_tags_hold_each_tag_once(tree: Catalogue, key: str, direction: str) -> None:
    names = [f"{number:02}&" for number in range(11)]
    space = tree.add(tags=[{"name": name} for name in names])
    seen: list[str] = []
    marker = ""
    while True:
        query = f"?limit=3&sort_key={key}&sort_dir={direction}" + (f"&marker={quote(marker)}" if marker else "")
        page = [one["name"] for one in tree.shown(space, "tags", query=query)["tags"]]
        if not page:
            break
        assert len(page) <= 3
        seen += page
        marker = page[-1]
    assert seen == (names if direction == "asc" else names[::-1])
    assert len(tree.shown(space, "tags")["tags"]) == 11
    for wrong, status in (
        ("limit=x", 400),
        ("limit=-1", 400),
        ("sort_key=x", 400),
        ("sort_dir=x", 400),
        ("marker=none", 404),
    ):
        assert tree.get(space, "tags", query=f"?{wrong}").status_code == status, wrong  # fmt: skip


@pytest.mark.any_database
def test_no_list_holds_more_than_the_configuration_allows(tmp_path: Path) -> None:
    write_users(tmp_path / "users.json", {"admin": USERS["admin"]})
    conf = CONF.replace("[DEFAULT]\n", "[DEFAULT]\napi_limit_max = 2\nlimit_param_default = 3\n")
    headers = {"Authorization": "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()}
    with parts(tmp_path, f"sqlite:///{tmp_path}/db", conf) as app:
        of = testing.TestClient(app.wsgi, headers=headers)
        words = [{"name": word} for word in "abc"]
        for word in "xyz":
            of.simulate_post(TREE, json={"namespace": word, "objects": words, "tags": words})
        for where, kind, whole in ((TREE, "namespaces", 2), (path("x", "objects"), "objects", 3), (path("x", "tags"), "tags", 3)):  # fmt: skip
            for query, most in (("", whole), ("limit=1", 1), ("limit=3", 2)):
                found = of.simulate_get(where, query_string=query).json
                assert len(found[kind]) == most, (where, query)
                assert ("next" in found) == (most < 3), (where, query)


def test_a_count_is_kept_as_an_integer(tree: Catalogue) -> None:
    name = tree.add(properties={"nested": DEFINITION | {"minItems": 2.0}})
    for kind, body in (
        ("properties", {"name": "p", **DEFINITION, "minLength": 3.0}),
        ("objects", {"name": "o", "properties": {"p": {**DEFINITION, "maxLength": 4.0}}}),
    ):
        assert tree.post(body, name, kind).status_code == 201
    said = tree.get(name).text
    for field in ('"minItems": 2', '"minLength": 3', '"maxLength": 4'):
        assert f"{field}}}" in said, field
    assert tree.post({"name": "q", **DEFINITION, "minLength": 3.5}, name, "properties").status_code == 400


@pytest.mark.any_database
def test_an_answer_can_be_sent_again_as_another_namespace(admin: Client) -> None:
    """Clients hold answers to the schema of a namespace, parts and all; what is told of a part alone is passed over."""
    whole = {
        "namespace": "Again::One",
        "resource_type_associations": [{"name": "Again::Type"}],
        "tags": [{"name": "t"}],
    }
    whole["objects"] = [{"name": "o", "properties": {"p": {"title": "P", "type": "string"}}}]
    made = admin.request("POST", TREE, json=whole)
    assert made.status_code == 201, made.text
    answer = admin.get(f"{TREE}/Again::One").json()
    own = {name: value for name, value in answer.items() if name not in ("self", "schema", "created_at", "updated_at")}
    again = admin.request("POST", TREE, json=own | {"namespace": "Again::Two"})
    assert again.status_code == 201, again.text
    assert again.json()["objects"][0]["self"] == f"{TREE}/Again::Two/objects/o"
    schema = admin.get("/v2/schemas/metadefs/namespace").json()
    validator = jsonschema_rs.Draft202012Validator(schema)
    assert list(validator.iter_errors(answer)) == []
