"""Tasks as clients see them: who may, what is shown to whom, how lists go on, what the deprecated create says."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from calotype import errors
from calotype.db import tasks
from calotype.db.engine import Database, now
from calotype.images import tasks as use_cases
from calotype.images.redaction import redacted
from calotype.model import Task
from tests.inprocess import ALICE, CONF, parts
from tests.support import Client, Service

#: What a task may have been told, and none of it is for a reader of the image.
PLACES = ("mirror.example.com", "/var/lib", "rbd://", "/srv/images")
SECRETS = ("s3cr3t", "gAAAAABm", "X-Amz", "alibaba")
INPUT = {
    "image_id": "11111111-2222-4333-8444-555555555555",
    "backend": ["fast"],
    "import_req": {
        "method": {"name": "web-download", "uri": "https://alibaba:s3cr3t@mirror.example.com/disk.raw?X-Amz-Sig=1#f"},
        "all_stores": False,
    },
    "loc_url": "file:///srv/images/disk with blanks",
    "auth_token": "gAAAAABmabcdefghijklmnopqrstuvwxyz",
    "limit": 7,
}
RESULT = {"locations": [{"url": "rbd://fsid/pool/image/snap"}], "image_id": INPUT["image_id"]}
MESSAGE = (
    "Reading https://alibaba:s3cr3t@mirror.example.com/disk.raw?X-Amz-Sig=1 failed: no room in /var/lib/x; "
    "password=s3cr3t, token gAAAAABmabcdefghijklmnopqrstuvwxyz"
)


def given(service: Service, *found: Task) -> None:
    """Tasks as work that goes on after the answer writes them."""
    database = Database(service.database_url)
    with database.write_once() as tx:
        for task in found:
            tasks.add(tx, task)
    database.close()


def task(image_id: str | None = None, **values: object) -> Task:
    made = Task(str(uuid4()), "location_import", "pending", "red", now(), now(), image_id=image_id)
    return replace(made, **values)  # type: ignore[arg-type]


@pytest.fixture
def image_id(alice: Client) -> Iterator[str]:
    made = alice.queued(visibility="community")
    yield made
    alice.delete(made)


def test_an_administrator_reads_a_task_whole(service: Service, admin: Client, image_id: str) -> None:
    ended = task(
        image_id,
        status="success",
        expires_at=now() + timedelta(hours=1),
        request_id="req-1",
        user_id="alice",
        input={"backend": ["fast"]},
        result={"image_id": image_id},
        message="Copied 15 MiB",
    )
    begun = task()
    given(service, ended, begun)
    shown = admin.get(f"/v2/tasks/{ended.id}").json()
    times = {name: shown.pop(name) for name in ("created_at", "updated_at", "expires_at")}
    assert all(time[10] == "T" and time.endswith("Z") and len(time) == 20 for time in times.values())
    assert shown == {
        "id": ended.id,
        "type": "location_import",
        "status": "success",
        "owner": "red",
        "image_id": image_id,
        "request_id": "req-1",
        "user_id": "alice",
        "input": {"backend": ["fast"]},
        "result": {"image_id": image_id},
        "message": "Copied 15 MiB",
        "self": f"/v2/tasks/{ended.id}",
        "schema": "/v2/schemas/task",
    }
    other = admin.get(f"/v2/tasks/{begun.id}").json()
    assert not {"expires_at", "image_id", "request_id", "user_id"} & set(other)
    assert (other["input"], other["result"], other["message"]) == (None, None, "")


def test_nobody_else_learns_whether_a_task_exists(service: Service, alice: Client, image_id: str) -> None:
    there = task(image_id)
    given(service, there)
    asked: list[tuple[str, str, object]] = [
        ("GET", f"/v2/tasks/{there.id}", None),
        ("GET", f"/v2/tasks/{uuid4()}", None),
        ("GET", "/v2/tasks/none", None),
        ("GET", "/v2/tasks", None),
        ("GET", "/v2/tasks?limit=x&marker=y", None),
        ("POST", "/v2/tasks", {"type": "import", "input": {}}),
        ("POST", "/v2/tasks", ["no", "object"]),
    ]
    answers = [alice.request(method, path, json=body) for method, path, body in asked]
    assert {answer.status_code for answer in answers} == {403}
    assert len({answer.text for answer in answers}) == 1


def test_what_is_not_there_is_404_and_a_delete_405(service: Service, admin: Client) -> None:
    there = task()
    gone = task(status="success", expires_at=now() - timedelta(seconds=1))
    given(service, there, gone)
    for name in (str(uuid4()), gone.id, "none", "11111111"):
        assert admin.get(f"/v2/tasks/{name}").status_code == 404, name
    refused = admin.request("DELETE", f"/v2/tasks/{there.id}")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET")
    assert admin.get(f"/v2/tasks/{there.id}").status_code == 200
    assert admin.get(f"/v2/tasks/{there.id}", data=b"x").status_code == 400


def test_a_task_of_another_type_than_import_cannot_be_created_and_the_refusal_names_the_call(admin: Client) -> None:
    """Those of type import are in `test_imports.py`."""
    for kind, call in (("api_image_import", "/import"), ("location_import", "/locations")):
        refused = admin.request("POST", "/v2/tasks", json={"type": kind, "input": {"import_from": "http://x/"}})
        assert refused.status_code == 400
        assert call in refused.text
    for body in ({}, {"type": "import"}, {"type": "other", "input": {}}, {"type": "import", "input": []}, []):
        refused = admin.request("POST", "/v2/tasks", json=body)
        assert refused.status_code == 400
        assert "/import" not in refused.text


def test_a_list_goes_on_page_by_page_with_its_filters(service: Service, admin: Client) -> None:
    user = str(uuid4())
    every = [task(user_id=user, created_at=now() - timedelta(minutes=number)) for number in range(5)]
    given(service, *every, task(), task(user_id=user, type="import"))
    path = f"/v2/tasks?user_id={user}&type=location_import&limit=2&sort_dir=asc"
    found, bodies = [], []
    while path:
        bodies.append(admin.get(path).json())
        found += bodies[-1]["tasks"]
        path = bodies[-1].get("next", "")
    assert [one["id"] for one in found] == [one.id for one in reversed(every)]
    assert len(bodies) == 3
    assert bodies[0]["first"] == f"/v2/tasks?user_id={user}&type=location_import&limit=2&sort_dir=asc"
    assert bodies[0]["schema"] == "/v2/schemas/tasks"
    assert set(found[0]) == {"id", "type", "status", "owner", "created_at", "updated_at", "self", "schema"}


def test_the_filter_for_an_image_takes_its_id_as_paths_do(service: Service, admin: Client, image_id: str) -> None:
    mine = task(image_id)
    given(service, mine)
    for written in (image_id, image_id.upper()):
        listed = admin.get(f"/v2/tasks?image_id={written}").json()["tasks"]
        of_image = admin.get(f"/v2/images/{written}/tasks").json()["tasks"]
        assert [[one["id"] for one in found] for found in (listed, of_image)] == [[mine.id], [mine.id]]


@pytest.mark.parametrize(
    "query",
    [
        "limit=x",
        "limit=-1",
        "marker=here",
        f"marker={uuid4()}",
        "sort_key=color",
        "sort_key=input",
        "sort_dir=up",
        "status=new",
        "type=export",
    ],
)
def test_a_list_that_makes_no_sense_is_refused(admin: Client, query: str) -> None:
    assert admin.get(f"/v2/tasks?{query}").status_code == 400


def test_a_list_takes_every_column_to_sort_by(admin: Client) -> None:
    for key in (*tasks.COLUMNS, "deleted", "deleted_at"):
        assert admin.get(f"/v2/tasks?sort_key={key}&limit=1&unknown=passed-over").status_code == 200


def test_an_image_shows_the_tasks_of_the_callers_project(
    service: Service, alice: Client, bob: Client, admin: Client, image_id: str
) -> None:
    own, nobodys, others = task(image_id), task(image_id, owner=""), task(image_id, owner="blue")
    elsewhere, expired = task(str(uuid4())), task(image_id, status="failure", expires_at=now())
    given(service, own, nobodys, others, elsewhere, expired)
    path = f"/v2/images/{image_id}/tasks"
    for client, seen in ((alice, {own}), (bob, {others}), (admin, {own, nobodys, others})):
        body = client.get(path).json()
        assert set(body) == {"tasks"}
        assert {one["id"] for one in body["tasks"]} == {one.id for one in seen}
    names = "id type status owner expires_at created_at updated_at deleted_at deleted image_id request_id user_id"
    for one in alice.get(path).json()["tasks"]:
        assert set(one) == {*names.split(), "input", "result", "message"}
        assert one["created_at"].endswith("Z")


def test_the_tasks_of_an_image_are_as_hidden_as_the_image(service: Service, alice: Client, bob: Client) -> None:
    private = alice.queued(visibility="private")
    given(service, task(private, owner="blue"))
    hidden, unknown = (bob.get(f"/v2/images/{one}/tasks") for one in (private, str(uuid4())))
    assert (hidden.status_code, unknown.status_code) == (404, 404)
    assert hidden.text.replace(private, "") == unknown.text.replace(unknown.request.url.split("/")[-2], "")  # type: ignore[union-attr]
    assert bob.get("/v2/images/none/tasks").status_code == 404
    assert service.client(None).get(f"/v2/images/{private}/tasks").status_code == 401
    assert alice.request("POST", f"/v2/images/{private}/tasks").status_code == 405


def test_who_may_not_see_locations_sees_none_in_a_task_and_nobody_sees_a_secret(
    service: Service, alice: Client, admin: Client, image_id: str
) -> None:
    one = task(image_id, input=INPUT, result=RESULT, message=MESSAGE)
    given(service, one)
    user = alice.get(f"/v2/images/{image_id}/tasks")
    for word in (*PLACES, *SECRETS):
        assert word not in user.text, word
    shown = user.json()["tasks"][0]
    assert shown["input"]["backend"] == ["fast"]
    assert shown["input"]["import_req"]["method"]["name"] == "web-download"
    assert shown["input"]["limit"] == 7
    assert shown["result"]["image_id"] == INPUT["image_id"]
    assert shown["message"].startswith("Reading *** failed: no room in ***")
    for answer in (admin.get(f"/v2/images/{image_id}/tasks"), admin.get(f"/v2/tasks/{one.id}")):
        for word in PLACES:
            assert word in answer.text, word
        for word in SECRETS:
            assert word not in answer.text, word


def test_what_a_policy_lets_in_is_still_redacted(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text('"tasks_api_access": "role:member"\n')
    conf = f"{CONF}[oslo_policy]\npolicy_file = {tmp_path}/policy.yaml\n"
    with parts(tmp_path, f"sqlite:///{tmp_path}/db", conf) as app:
        own, others = task(input=INPUT, result=RESULT, message=MESSAGE), task(owner="blue")
        with app.db.write_once() as tx:
            tasks.add(tx, own)
            tasks.add(tx, others)
        wanted: dict[str, Any] = {"limit": 9, "marker": None, "sort_key": "id", "descending": True, "filters": {}}
        assert [one.id for one in use_cases.list_(app.service, ALICE, **wanted)[0]] == [own.id]
        with pytest.raises(errors.NotFound):
            use_cases.show(app.service, ALICE, others.id)
        shown = str(use_cases.show(app.service, ALICE, own.id))
        assert not [word for word in (*PLACES, *SECRETS) if word in shown]


@pytest.mark.parametrize(
    "text",
    [
        "http://u:s3cr3t@h/",
        "see http://u:s3/cr3t@h/x for more",
        "http://h/x?token=s3cr3t&y=1",
        "//u:s3cr3t@h/x",
        "swift+http://t:u:s3cr3t@h/v1/c/o",
        "admin_password: s3cr3t",
        "{'auth_token': 's3cr3t'}",
        "Authorization: Bearer s3cr3t",
        "eyJhbGciOiJFUzI1NiIs3cr3t.payload.sig",
    ],
)
def test_no_secret_is_told_to_anybody_in_whatever_form(text: str) -> None:
    for value in (text, [text], {"message": text}, {text: 1}, {"uri": text}, {"deep": [{"location": {"url": text}}]}):
        for locations in (True, False):
            told_text = json.dumps(redacted(value, locations=locations))
            assert "s3cr3t" not in told_text
            assert "s3/cr3t" not in told_text


def test_what_is_no_place_and_no_secret_is_told_as_it_is() -> None:
    value = {
        "image_id": "a-b",
        "n": 1.5,
        "ok": True,
        "none": None,
        "import_from_format": "qcow2",
        "list": ["Copied 5 MiB."],
    }
    assert redacted(value, locations=False) == value
    assert redacted("rbd://fsid/pool/id/snap", locations=True) == "rbd://fsid/pool/id/snap"


def test_the_schemas_describe_what_is_shown(service: Service, admin: Client, image_id: str) -> None:
    one = task(
        image_id, input={"a": 1}, result={}, message="m", request_id="r", user_id="u", expires_at=now() + timedelta(1)
    )
    given(service, one)
    schema = admin.get("/v2/schemas/task").json()
    assert (schema["name"], set(schema["properties"])) == ("task", set(admin.get(f"/v2/tasks/{one.id}").json()))
    entries = admin.get("/v2/schemas/tasks").json()["properties"]["tasks"]["items"]["properties"]
    assert set(schema["properties"]) - set(entries) == {"input", "result", "message"}
