"""Names that stand in paths: what no path can hold is refused, and removed where Glance left it."""

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from calotype.db import tables
from calotype.db.engine import Database
from tests.support import PATCH_21, Client, Service

BAD = [
    "",
    "/",
    "a/b",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "%2F",
    "a%2fb",
    "a\nb",
    "a\n",
    "\t",
    "a\x1f",
    "\x7f",
    "\x85",
    "a\ufffdb",
]
GOOD = [
    "-",
    "...",
    ".a",
    "a..b",
    "100%",
    "%25",
    "a b",
    "a?b",
    "a#b",
    "a;b",
    "a\\b",
    "OS::Path",
    "h\u00f6st",
    "%",
    "a+b",
    "'\"",
]
DEFINITION = {"title": "T", "type": "string"}
SPACES = "/v2/metadefs/namespaces"


@pytest.mark.parametrize("number", range(len(BAD)), ids=lambda number: ascii(BAD[number]))
def test_a_name_that_no_path_can_hold_is_refused(alice: Client, admin: Client, number: int) -> None:
    name = BAD[number]
    image_id = alice.queued(visibility="shared", tags=["kept"])
    image, space = f"/v2/images/{image_id}", f"{SPACES}/bad{number}"
    assert admin.request("POST", SPACES, json={"namespace": f"bad{number}"}).status_code == 201
    for client, path, body in (
        (alice, "/v2/images", {"tags": ["a", name]}), (alice, f"{image}/members", {"member": name}),
        (admin, SPACES, {"namespace": name}), (admin, SPACES, {"namespace": "x", "tags": [{"name": name}]}),
        (admin, SPACES, {"namespace": "x", "properties": {name: DEFINITION}}),
        (admin, SPACES, {"namespace": "x", "objects": [{"name": name}]}),
        (admin, SPACES, {"namespace": "x", "resource_type_associations": [{"name": name}]}),
        (admin, f"{space}/objects", {"name": name}), (admin, f"{space}/properties", {"name": name, **DEFINITION}),
        (admin, f"{space}/tags", {"tags": [{"name": name}]}), (admin, f"{space}/resource_types", {"name": name}),
    ):  # fmt: skip
        refused = client.request("POST", path, json=body)
        assert refused.status_code == 400, (path, body)
        assert "that a path can hold" in refused.text or name == "", refused.text
    patch = alice.patch(image_id, {"op": "replace", "path": "/tags", "value": ["kept", name]})
    assert patch.status_code == 400
    escaped = quote(name, safe="")
    assert alice.request("PUT", f"{image}/tags/-?tag={escaped}").status_code == 400
    assert admin.request("POST", f"{space}/tags/-?tag_name={escaped}").status_code == 400
    assert alice.show(image_id)["tags"] == ["kept"]
    found = admin.get(space).json()
    assert not any(found.get(kind) for kind in ("objects", "properties", "tags", "resource_type_associations"))
    assert admin.request("DELETE", space).status_code == 204


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_whatever_else_is_made_is_removed_by_its_path(alice: Client, admin: Client, name: str) -> None:
    image_id = alice.queued(visibility="shared", tags=[name])
    image, escaped = f"/v2/images/{image_id}", quote(name, safe="")
    assert alice.request("POST", f"{image}/members", json={"member": name}).status_code == 200
    assert alice.request("DELETE", f"{image}/members/{escaped}").status_code == 204
    assert alice.request("DELETE", f"{image}/tags/{escaped}").status_code == 204
    body = {
        "namespace": name, "properties": {name: DEFINITION}, "objects": [{"name": name}], "tags": [{"name": name}],
        "resource_type_associations": [{"name": name}],
    }  # fmt: skip
    assert admin.request("POST", SPACES, json=body).status_code == 201
    for kind in ("properties", "objects", "tags", "resource_types"):
        assert admin.request("DELETE", f"{SPACES}/{escaped}/{kind}/{escaped}").status_code == 204, kind
    assert admin.request("DELETE", f"{SPACES}/{escaped}").status_code == 204


def insert(service: Service, table: sa.Table, **values: Any) -> None:
    """A row as Glance left it."""
    now = datetime.now(UTC).replace(tzinfo=None)
    values = {"created_at": now, "updated_at": now} | values
    database = Database(service.database_url)
    with database.write_once() as tx:
        tx.execute(sa.insert(table).values(**values))
    database.close()


@pytest.mark.parametrize("name", ["a/b", "..", ".", "%2F", "a\nb", "/"], ids=ascii)
def test_what_glance_left_is_removed_by_its_name_in_the_query(
    service: Service, alice: Client, admin: Client, name: str
) -> None:
    image_id = alice.queued(visibility="shared", tags=["new"])
    image, escaped = f"/v2/images/{image_id}", quote(name, safe="")
    insert(service, tables.image_tags, image_id=image_id, value=name, deleted=False)
    insert(
        service, tables.image_members, image_id=image_id, member=name, status="pending", can_share=False, deleted=False
    )
    # A patch may leave the tag as it is.
    patch = [{"op": "replace", "path": "/tags", "value": ["new", "newer", name]}]
    assert alice.request("PATCH", image, data=json.dumps(patch), headers=PATCH_21).status_code == 200
    assert alice.request("DELETE", f"{image}/tags/-?tag={escaped}").status_code == 204
    assert sorted(alice.show(image_id)["tags"]) == ["new", "newer"]
    assert alice.get(f"{image}/members/-?member_id={escaped}").json()["member_id"] == name
    assert alice.request("DELETE", f"{image}/members/-?member_id={escaped}").status_code == 204
    assert alice.get(f"{image}/members").json()["members"] == []

    insert(service, tables.metadef_namespaces, namespace=name, visibility="public", protected=False, owner="admin")
    of = f"namespace={escaped}"
    assert admin.request("POST", f"{SPACES}/-/tags/fine?{of}").status_code == 201
    assert admin.request("DELETE", f"{SPACES}/-/tags/-?{of}&tag_name=fine").status_code == 204
    assert admin.request("PUT", f"{SPACES}/-?{of}", json={"namespace": "renamed"}).status_code == 200
    assert admin.request("DELETE", f"{SPACES}/renamed").status_code == 204


def test_a_hyphen_is_a_name_where_the_query_says_no_other(alice: Client) -> None:
    image_id = alice.queued(tags=["-", "a"])
    assert alice.request("DELETE", f"/v2/images/{image_id}/tags/a?tag=-").status_code == 204, (
        "only - stands for another"
    )
    assert alice.request("DELETE", f"/v2/images/{image_id}/tags/-?name=x").status_code == 204
    assert alice.show(image_id)["tags"] == []
    assert alice.request("DELETE", f"/v2/images/{image_id}/tags/-?tag=a%2Fb").status_code == 404
    assert alice.get(f"/v2/images/-?image_id={image_id}").status_code == 200


@pytest.mark.parametrize("write", [str.upper, str.lower, str.title])
def test_an_id_in_a_filter_is_compared_as_in_a_path(alice: Client, write: Any) -> None:
    image_id = alice.queued()
    given = write(image_id)
    assert alice.get(f"/v2/images/{given}").json()["id"] == image_id
    for query in (f"id={given}", f"id=in:{given}", f"id=in:x,{given}"):
        assert [image["id"] for image in alice.get(f"/v2/images?{query}").json()["images"]] == [image_id]
