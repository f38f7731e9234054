"""Sharing: who may add whom, who sees whom, who answers."""

import uuid

import pytest

from tests.support import Client, Service


@pytest.fixture
def image(alice: Client) -> str:
    return alice.active(b"shared data")


def members(client: Client, image_id: str, method: str = "GET", member: str = "", **body: str) -> tuple[int, object]:
    path = f"/v2/images/{image_id}/members" + (f"/{member}" if member else "")
    answer = client.request(method, path, **({"json": body} if body else {}))
    return answer.status_code, answer.json() if answer.headers.get("Content-Type") == "application/json" else None


def test_sharing_from_offer_to_acceptance(alice: Client, bob: Client, image: str) -> None:
    assert bob.get(f"/v2/images/{image}").status_code == 404
    status, entry = members_add(alice, image, "blue")
    assert status == 200
    assert isinstance(entry, dict)
    assert set(entry) == {"member_id", "image_id", "status", "created_at", "updated_at", "schema"}
    assert (entry["member_id"], entry["image_id"], entry["status"]) == ("blue", image, "pending")
    assert entry["schema"] == "/v2/schemas/member"
    # A member of any status reads by id.
    assert bob.show(image)["owner"] == "red"
    assert bob.file(image).content == b"shared data"
    assert members(bob, image, "PUT", "blue", status="accepted")[0] == 200
    assert members(alice, image)[1] == {
        "members": [members(alice, image, "GET", "blue")[1]],
        "schema": "/v2/schemas/members",
    }
    # But changes nothing.
    assert bob.delete(image).status_code == 403
    assert bob.patch(image, {"op": "add", "path": "/a", "value": "b"}).status_code == 403
    assert bob.put(image, b"x").status_code == 403


def members_add(client: Client, image_id: str, project: str) -> tuple[int, object]:
    answer = client.request("POST", f"/v2/images/{image_id}/members", json={"member": project})
    return answer.status_code, answer.json() if answer.ok else None


def test_each_side_does_its_part_only(service: Service, alice: Client, bob: Client, admin: Client, image: str) -> None:
    members_add(alice, image, "blue")
    members_add(alice, image, "green")
    carol = service.client("carol")
    assert members(alice, image, "PUT", "blue", status="accepted")[0] == 403  # the owner does not answer for others
    assert members(carol, image, "PUT", "blue", status="accepted")[0] == 404
    assert members(bob, image, "PUT", "blue", status="rejected")[0] == 200
    assert members(admin, image, "PUT", "green", status="accepted")[0] == 200
    assert members_add(bob, image, "yellow")[0] == 403
    assert members(bob, image, "DELETE", "blue")[0] == 403  # a member cannot leave
    assert [m["member_id"] for m in members(bob, image)[1]["members"]] == ["blue"]  # type: ignore[index]
    assert [m["member_id"] for m in members(alice, image)[1]["members"]] == ["blue", "green"]  # type: ignore[index]
    assert members(bob, image, "GET", "green")[0] == 404
    assert members(alice, image, "DELETE", "blue")[0] == 204
    assert members(alice, image, "DELETE", "blue")[0] == 404
    assert bob.get(f"/v2/images/{image}").status_code == 404


def test_a_member_that_comes_back_is_pending_again(alice: Client, bob: Client, image: str) -> None:
    members_add(alice, image, "blue")
    members(bob, image, "PUT", "blue", status="accepted")
    members(alice, image, "DELETE", "blue")
    assert members_add(alice, image, "blue")[1]["status"] == "pending"  # type: ignore[index]
    assert members_add(alice, image, "blue")[0] == 409


def test_only_shared_images_have_members(alice: Client, bob: Client) -> None:
    image = alice.queued(visibility="private")
    assert members(alice, image)[0] == 403
    assert members_add(alice, image, "blue")[0] == 403
    assert members(alice, image, "GET", "blue")[0] == 404
    alice.patch(image, {"op": "replace", "path": "/visibility", "value": "shared"})
    members_add(alice, image, "blue")
    alice.patch(image, {"op": "replace", "path": "/visibility", "value": "private"})
    assert bob.get(f"/v2/images/{image}").status_code == 404
    alice.patch(image, {"op": "replace", "path": "/visibility", "value": "shared"})
    assert bob.get(f"/v2/images/{image}").status_code == 200  # the entry was kept


@pytest.mark.parametrize(
    "body", [{}, {"member": ""}, {"member": 1}, {"member": "x" * 256}, {"member": "\U0001f600"}, []]
)
@pytest.mark.any_database
def test_what_is_wrong_with_a_new_member_is_said(alice: Client, image: str, body: object) -> None:
    assert alice.request("POST", f"/v2/images/{image}/members", json=body).status_code == 400


@pytest.mark.parametrize("body", [{}, {"status": "maybe"}, {"status": None}, []])
@pytest.mark.any_database
def test_what_is_wrong_with_an_answer_is_said(alice: Client, bob: Client, image: str, body: object) -> None:
    members_add(alice, image, "blue")
    assert bob.request("PUT", f"/v2/images/{image}/members/blue", json=body).status_code == 400


def test_members_have_a_limit(alice: Client, image: str) -> None:
    for number in range(5):
        assert members_add(alice, image, f"p{number}")[0] == 200
    assert members_add(alice, image, "one-more")[0] == 413


def test_members_of_nothing(alice: Client) -> None:
    assert members(alice, str(uuid.uuid4()))[0] == 404
    assert members(alice, "no-uuid")[0] == 404
