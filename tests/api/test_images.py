"""Image records over HTTP, as the contract has them: create, show, update, tags, delete, deactivate."""

import uuid
from dataclasses import replace

import pytest

from calotype.context import SERVICE
from calotype.db import images
from calotype.db.engine import Database
from tests.support import PATCH_20, Client, Service

FIELDS = {
    "id", "name", "disk_format", "container_format", "visibility", "size", "virtual_size", "status", "checksum",
    "protected", "min_ram", "min_disk", "owner", "os_hidden", "os_hash_algo", "os_hash_value", "created_at",
    "updated_at", "tags", "self", "file", "schema",
}  # fmt: skip


def test_an_empty_object_makes_a_queued_image(alice: Client) -> None:
    made = alice.create()
    assert made.status_code == 201
    image = made.json()
    assert set(image) == FIELDS
    assert made.headers["Location"] == f"{alice.url}/v2/images/{image['id']}"
    assert made.headers["OpenStack-image-store-ids"] == "fast,cheap,brief"
    assert (image["status"], image["visibility"], image["owner"]) == ("queued", "shared", "red")
    assert (image["min_disk"], image["min_ram"], image["protected"], image["os_hidden"]) == (0, 0, False, False)
    assert (image["name"], image["size"], image["checksum"], image["tags"]) == (None, None, None, [])
    assert image["self"] == f"/v2/images/{image['id']}"
    assert image["file"] == f"/v2/images/{image['id']}/file"
    assert image["schema"] == "/v2/schemas/image"
    assert len(image["created_at"]) == 20
    assert image["created_at"].endswith("Z")
    assert alice.show(image["id"]) == image


def test_every_attribute_can_be_given_at_creation(alice: Client) -> None:
    values = {
        "id": str(uuid.uuid4()), "name": "näme", "visibility": "private", "protected": True, "os_hidden": True,
        "owner": "red", "container_format": "bare", "disk_format": "qcow2", "min_disk": 3, "min_ram": 2**31 - 1,
        "tags": ["b", "a", "a"], "os_distro": "debian", "x": "",
    }  # fmt: skip
    image = alice.create(**values).json()
    assert image | {"tags": values["tags"]} == image | values
    assert image["tags"] == ["a", "b"]
    alice.patch(image["id"], {"op": "replace", "path": "/protected", "value": False})


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"name": 3}, 400), ({"name": "x" * 256}, 400), ({"id": "no-uuid"}, 400), ({"min_disk": -1}, 400),
        ({"min_ram": 2**31}, 400), ({"min_ram": "1"}, 400), ({"visibility": "secret"}, 400), ({"custom": None}, 400),
        ({"custom": 1}, 400), ({"disk_format": "floppy"}, 400), ({"tags": "a"}, 400), ({"tags": ["x" * 256]}, 400),
        ({"x" * 256: "a"}, 400), ({"": "a"}, 400), ({"name": "\U0001f600"}, 400), ({"name": "a\0b"}, 400),
        ({"custom": "\ud800"}, 400), ({"protected": "yes"}, 400),
        ({"size": 1}, 403), ({"status": "active"}, 403), ({"checksum": "0"}, 403), ({"self": "x"}, 403),
        ({"os_hash_value": "0"}, 403), ({"locations": []}, 403), ({"deleted": True}, 403), ({"stores": "x"}, 403),
        ({"os_glance_x": "1"}, 403), ({"owner": "blue"}, 403), ({"visibility": "public"}, 403),
        ({f"p{n}": "x" for n in range(21)}, 413), ({"tags": [str(n) for n in range(21)]}, 413),
    ],
)  # fmt: skip
@pytest.mark.any_database
def test_what_is_wrong_with_a_new_image_is_said(alice: Client, values: dict[str, object], status: int) -> None:
    answer = alice.create(**values)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "body", ["[]", "", "{", "null", '"x"', '{"name": NaN}', '{"a": "1", "a": "2"}', "[" * 100_000, b"\xff\xfe{}", "[1]"]
)
@pytest.mark.any_database
def test_what_is_no_json_object_is_refused(alice: Client, body: str) -> None:
    assert alice.request("POST", "/v2/images", data=body).status_code == 400


def test_an_id_is_used_once_whatever_its_case(alice: Client, bob: Client, admin: Client) -> None:
    image_id = str(uuid.uuid4())
    assert alice.create(id=image_id.upper()).json()["id"] == image_id
    assert alice.get(f"/v2/images/{image_id.upper()}").status_code == 200
    for other in (alice, bob, admin):
        assert other.create(id=image_id).status_code == 409
        assert other.create(id=image_id.upper()).status_code == 409


def test_the_id_of_a_deleted_image_is_never_given_again(alice: Client, admin: Client) -> None:
    image_id = alice.queued()
    assert alice.delete(image_id).status_code == 204
    assert alice.get(f"/v2/images/{image_id}").status_code == 404
    assert admin.get(f"/v2/images/{image_id}").status_code == 404
    assert alice.create(id=image_id).status_code == 409
    assert admin.create(id=image_id.upper()).status_code == 409


def test_only_admins_create_for_others_or_for_everybody(admin: Client, alice: Client) -> None:
    image = admin.create(owner="red", visibility="public", name="golden").json()
    assert (image["owner"], image["visibility"]) == ("red", "public")
    assert alice.show(image["id"])["name"] == "golden"
    admin.delete(image["id"])


@pytest.mark.any_database
def test_a_reader_reads_and_changes_nothing(service: Service, alice: Client) -> None:
    reader = service.client("reader")
    image_id = alice.active(b"data", visibility="private")
    assert reader.show(image_id)["status"] == "active"
    assert reader.create().status_code == 403
    assert reader.file(image_id).status_code == 403  # downloading wants role member by default
    assert reader.patch(image_id, {"op": "add", "path": "/a", "value": "b"}).status_code == 403
    assert reader.delete(image_id).status_code == 403
    assert reader.request("PUT", f"/v2/images/{image_id}/tags/x").status_code == 403


def test_a_private_image_does_not_exist_for_others(alice: Client, bob: Client) -> None:
    image_id = alice.active(b"secret", visibility="private")
    nobody = str(uuid.uuid4())
    for method, path in (
        ("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/file"), ("PUT", "/file"), ("HEAD", "/file"),
        ("PUT", "/tags/x"), ("DELETE", "/tags/x"), ("POST", "/actions/deactivate"), ("POST", "/actions/reactivate"),
        ("GET", "/members"), ("POST", "/members"), ("GET", "/members/x"), ("PUT", "/members/x"), ("DELETE", "/members/x"),
    ):  # fmt: skip
        answers = []
        for each in (image_id, nobody):
            body = (
                {"json": {"member": "x", "status": "accepted"}}
                if path.startswith("/members") and method[0] == "P"
                else {}
            )
            if method == "PATCH":
                body = {"json": [{"op": "add", "path": "/a", "value": "b"}],
                        "headers": {"Content-Type": "application/openstack-images-v2.1-json-patch"}}  # fmt: skip
            if path == "/file" and method == "PUT":
                body = {"data": b"x", "headers": {"Content-Type": "application/octet-stream"}}
            answer = bob.request(method, f"/v2/images/{each}{path}", **body)
            answers.append((answer.status_code, answer.text.replace(each, "ID")))
        assert answers[0] == answers[1], (method, path)
        assert answers[0][0] == 404, (method, path)
    assert bob.request("DELETE", f"/v2/stores/fast/{image_id}").status_code == 404


# --- PATCH -----------------------------------------------------------------------------------------------


def test_a_patch_changes_all_or_nothing(alice: Client) -> None:
    image_id = alice.queued(name="old")
    bad = alice.patch(image_id, {"op": "replace", "path": "/name", "value": "new"}, {"op": "remove", "path": "/nope"})
    assert bad.status_code == 409
    assert alice.show(image_id)["name"] == "old"
    good = alice.patch(
        image_id,
        {"op": "replace", "path": "/name", "value": "new"},
        {"op": "add", "path": "/a~1b~0c", "value": "x"},
        {"op": "add", "path": "/tags", "value": ["t"]},
        {"op": "replace", "path": "/min_disk", "value": 7},
    )
    assert good.status_code == 200
    assert good.json() == alice.show(image_id)
    assert {"name": "new", "a/b~c": "x", "tags": ["t"], "min_disk": 7}.items() <= good.json().items()
    assert alice.patch(image_id).status_code == 200


@pytest.mark.any_database
def test_both_media_types_of_a_patch_work(alice: Client) -> None:
    image_id = alice.queued(a="1")
    old = alice.patch(image_id, {"replace": "/a", "value": "2"}, {"add": "/b", "value": "3"}, media=PATCH_20)
    assert (old.json()["a"], old.json()["b"]) == ("2", "3")
    assert alice.patch(image_id, {"remove": "/b"}, media=PATCH_20).status_code == 200
    assert alice.patch(image_id, {"add": "/a", "value": "3"}, media=PATCH_20).status_code == 409
    assert alice.patch(image_id, {"op": "add", "path": "/a", "value": "3"}).json()["a"] == "3"
    wrong = alice.patch(image_id, media={"Content-Type": "application/json"})
    assert wrong.status_code == 415
    assert "v2.1-json-patch" in wrong.headers["Accept-Patch"]


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ({"op": "replace", "path": "/nope", "value": "x"}, 409), ({"op": "remove", "path": "/nope"}, 409),
        ({"op": "remove", "path": "/name"}, 403), ({"op": "replace", "path": "/id", "value": "x"}, 403),
        ({"op": "add", "path": "/size", "value": 1}, 403), ({"op": "add", "path": "/os_glance_x", "value": "1"}, 403),
        ({"op": "add", "path": "/locations/-", "value": {}}, 403), ({"op": "add", "path": "/owner", "value": "blue"}, 403),
        ({"op": "replace", "path": "/owner", "value": "blue"}, 403), ({"op": "add", "path": "/deleted", "value": "x"}, 403),
        ({"op": "replace", "path": "/visibility", "value": "public"}, 403), ({"op": "add", "path": "/a", "value": 1}, 400),
        ({"op": "replace", "path": "/min_ram", "value": "1"}, 400), ({"op": "move", "path": "/a", "from": "/b"}, 400),
        ({"op": "add", "path": "a", "value": "x"}, 400), ({"op": "add", "path": "/a/", "value": "x"}, 400),
        ({"op": "add", "path": "/a/b", "value": "x"}, 400), ({"op": "add", "path": "/a~2", "value": "x"}, 400),
        ({"op": "add", "path": "/", "value": "x"}, 400), ({"op": "add", "path": "/a"}, 400), ({"path": "/a"}, 400),
        ("add", 400), ({"op": "add", "path": 3, "value": "x"}, 400), ({"op": ["add"], "path": "/x", "value": "x"}, 400),
    ],
)  # fmt: skip
@pytest.mark.any_database
def test_what_is_wrong_with_a_patch_is_said(alice: Client, step: object, status: int) -> None:
    image_id = alice.queued(name="old")
    before = alice.show(image_id)
    answer = alice.patch(image_id, step)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    assert alice.show(image_id) == before


def test_an_image_without_an_owner_is_the_administrators_unless_it_is_open_to_all(
    alice: Client, bob: Client, admin: Client
) -> None:
    for owner in (None, ""):
        assert alice.create(owner=owner).status_code == 403
        for visibility in ("private", "shared", "community", "public"):
            made = admin.create(owner=owner, visibility=visibility).json()
            assert made["owner"] is None
            assert admin.show(made["id"]) == made
            seen = bob.get(f"/v2/images/{made['id']}").status_code
            assert seen == (200 if visibility in ("community", "public") else 404)


def test_an_owner_cannot_give_an_image_away_but_an_admin_can(alice: Client, admin: Client) -> None:
    image_id = alice.queued()
    for op in ("add", "replace"):
        assert alice.patch(image_id, {"op": op, "path": "/owner", "value": "blue"}).status_code == 403
    assert alice.show(image_id)["owner"] == "red"
    assert admin.patch(image_id, {"op": "replace", "path": "/owner", "value": "blue"}).json()["owner"] == "blue"
    assert alice.get(f"/v2/images/{image_id}").status_code == 404


def test_formats_are_fixed_once_there_is_data(alice: Client) -> None:
    image_id = alice.active(b"data")
    for name in ("disk_format", "container_format"):
        answer = alice.patch(image_id, {"op": "replace", "path": f"/{name}", "value": "ami"})
        assert answer.status_code == 403
    assert alice.patch(image_id, {"op": "replace", "path": "/disk_format", "value": "raw"}).status_code == 200


def test_properties_have_a_limit(alice: Client) -> None:
    image_id = alice.queued(**{f"p{n}": "x" for n in range(20)})
    assert alice.patch(image_id, {"op": "add", "path": "/one_more", "value": "x"}).status_code == 413
    assert alice.patch(image_id, {"op": "replace", "path": "/p1", "value": "y"}).status_code == 200
    assert (
        alice.patch(
            image_id, {"op": "remove", "path": "/p1"}, {"op": "add", "path": "/one_more", "value": "x"}
        ).status_code
        == 200
    )


def test_a_property_that_was_removed_can_come_back(alice: Client) -> None:
    image_id = alice.queued(a="1")
    assert "a" not in alice.patch(image_id, {"op": "remove", "path": "/a"}).json()
    assert alice.patch(image_id, {"op": "add", "path": "/a", "value": "2"}).json()["a"] == "2"
    assert alice.show(image_id)["a"] == "2"


# --- tags, status, deletion ------------------------------------------------------------------------------


def test_tags_come_and_go(alice: Client) -> None:
    image_id = alice.queued()
    for _ in range(2):
        assert alice.request("PUT", f"/v2/images/{image_id}/tags/b%C3%A4r").status_code == 204
    assert alice.show(image_id)["tags"] == ["bär"]
    assert alice.request("DELETE", f"/v2/images/{image_id}/tags/b%C3%A4r").status_code == 204
    assert alice.request("DELETE", f"/v2/images/{image_id}/tags/b%C3%A4r").status_code == 404
    assert alice.request("PUT", f"/v2/images/{image_id}/tags/{'x' * 256}").status_code == 400
    assert alice.request("PUT", f"/v2/images/{image_id}/tags/x", data="body").status_code == 400
    assert alice.request("PUT", f"/v2/images/{image_id}/tags/%F0%9F%98%80").status_code == 400
    assert alice.request("PUT", f"/v2/images/{image_id}/tags/%ff").status_code == 400
    for number in range(20):
        assert alice.request("PUT", f"/v2/images/{image_id}/tags/{number}").status_code == 204
    assert alice.request("PUT", f"/v2/images/{image_id}/tags/more").status_code == 413


def test_a_deactivated_image_keeps_its_data_to_itself(alice: Client, admin: Client) -> None:
    image_id = alice.active(b"data")
    for _ in range(2):
        assert alice.request("POST", f"/v2/images/{image_id}/actions/deactivate").status_code == 204
    assert alice.show(image_id)["status"] == "deactivated"
    assert alice.file(image_id).status_code == 403
    assert admin.file(image_id).content == b"data"
    for _ in range(2):
        assert alice.request("POST", f"/v2/images/{image_id}/actions/reactivate").status_code == 204
    assert alice.file(image_id).content == b"data"
    assert alice.request("POST", f"/v2/images/{alice.queued()}/actions/deactivate").status_code == 403


def test_a_protected_image_cannot_be_deleted(alice: Client, admin: Client) -> None:
    image_id = alice.queued(protected=True)
    assert alice.delete(image_id).status_code == 403
    assert admin.delete(image_id).status_code == 403
    alice.patch(image_id, {"op": "replace", "path": "/protected", "value": False})
    assert alice.delete(image_id).status_code == 204
    assert alice.delete(image_id).status_code == 404


def test_deleting_removes_the_data_also_of_a_deactivated_image(service: Service, alice: Client) -> None:
    for deactivated in (False, True):
        image_id = alice.active(b"data")
        if deactivated:
            alice.request("POST", f"/v2/images/{image_id}/actions/deactivate")
        assert (service.state / "fast" / image_id).exists()
        assert alice.delete(image_id).status_code == 204
        assert not (service.state / "fast" / image_id).exists()


def test_data_that_is_gone_already_does_not_hinder_a_delete(service: Service, alice: Client) -> None:
    image_id = alice.active(b"data")
    (service.state / "fast" / image_id).unlink()
    assert alice.file(image_id).status_code == 503  # an active image without its bytes is a fault, not an empty image
    assert alice.delete(image_id).status_code == 204


def test_all_properties_of_an_image_together_have_a_limit(alice: Client) -> None:
    image_id = alice.queued(**{f"p{number}": "x" * 60_000 for number in range(4)})
    step = {"op": "add", "path": "/more", "value": "x" * 20_000}
    assert alice.patch(image_id, step).status_code == 200
    for value in ("x" * 5_000, "\x01" * 1_000):  # which takes six times its length in every answer
        refused = alice.patch(image_id, {"op": "add", "path": "/yet_more", "value": value})
        assert (refused.status_code, "262144" in refused.text) == (413, True)
    assert "yet_more" not in alice.show(image_id)
    assert alice.patch(image_id, {"op": "remove", "path": "/p1"}).status_code == 200
    new = str(uuid.uuid4())
    assert alice.create(id=new, **{f"p{number}": "x" * 60_000 for number in range(5)}).status_code == 413
    assert alice.get(f"/v2/images/{new}").status_code == 404


def test_an_adopted_image_beyond_that_limit_may_be_changed_but_not_grow(service: Service, alice: Client) -> None:
    image_id = alice.queued()
    database = Database(service.database_url)
    with database.write_once() as tx:  # as Glance left it, which has no such limit
        before = images.get(tx, SERVICE, image_id, lock=True)
        assert before
        images.save(tx, before, replace(before, properties={f"p{number}": "x" * 60_000 for number in range(7)}))
    database.close()
    assert alice.patch(image_id, {"op": "replace", "path": "/name", "value": "renamed"}).status_code == 200
    assert alice.patch(image_id, {"op": "replace", "path": "/p1", "value": "y" * 60_000}).status_code == 200
    assert alice.patch(image_id, {"op": "add", "path": "/more", "value": "x"}).status_code == 413
    assert alice.patch(image_id, {"op": "remove", "path": "/p2"}).status_code == 200
    record = alice.show(image_id)
    assert (record["name"], record["p1"]) == ("renamed", "y" * 60_000)
    assert not {"p2", "more"} & record.keys()
