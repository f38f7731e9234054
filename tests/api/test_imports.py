"""Stage and import as clients see them: what is answered in which order, where the data goes, and what a task tells.

Who may is in `tests/policy/`, what happens to an import when processes and stores die is in `tests/images/`.
"""

import contextlib
import hashlib
import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import OCTETS, Client, Service, names, running, until
from tests.webserver import WebServer, serving

CONF = """\
[DEFAULT]
enabled_backends = fast:file, cheap:file, closed:file, brief:memory, web:http
image_size_cap = 67108864
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {state}/fast
[cheap]
filesystem_store_datadir = {state}/cheap
[closed]
filesystem_store_datadir = {state}/closed
read_only = true
[brief]
memory_store_size = 64
[jobs]
poll = 0.1
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.3
"""
DATA = b"imported" * 1000
#: The stores that all_stores means.
ALL = {"fast", "cheap", "brief"}
METHODS = ["glance-direct", "web-download", "copy-image"]
PROGRESS = ("os_glance_import_task", "os_glance_importing_to_stores", "os_glance_failed_import")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with stores that take data, and two that do not."""
    state = tmp_path_factory.mktemp("imports")
    with running(state, CONF.format(state=state)) as service:
        yield service


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as server:
        server.files["/disk"] = DATA
        yield server


@pytest.fixture
def alice(place: Service) -> Client:
    return place.client("alice")


@pytest.fixture
def admin(place: Service) -> Client:
    return place.client("admin")


def stage(client: Client, image_id: str, data: Any = DATA, **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request("PUT", f"/v2/images/{image_id}/stage", data=data, headers=OCTETS | named)


def start(
    client: Client, image_id: str, name: str = "glance-direct", /, *, header: str | None = None, **body: Any
) -> requests.Response:
    """Ask for an import; `uri` and what belongs to it goes into the method."""
    method = {key: body.pop(key) for key in list(body) if key in ("uri", "os_hash_algo", "os_hash_value")}
    headers = {"x-image-meta-store": header} if header is not None else {}
    asked = {"method": {"name": name, **method}, **body}
    return client.request("POST", f"/v2/images/{image_id}/import", json=asked, headers=headers)


def cancel(client: Client, image_id: str) -> requests.Response:
    return client.request("POST", f"/v2/images/{image_id}/actions/cancel_import")


def tasks(client: Client, image_id: str) -> list[dict[str, Any]]:
    return list(client.get(f"/v2/images/{image_id}/tasks").json()["tasks"])


def ended(client: Client, image_id: str) -> dict[str, Any]:
    """The last task of an image, when it has ended."""
    until(lambda: tasks(client, image_id)[-1]["status"] in ("success", "failure"), 60)
    return tasks(client, image_id)[-1]


def succeeds(client: Client, image_id: str) -> dict[str, Any]:
    """The image, when its import has succeeded."""
    task = ended(client, image_id)
    assert task["status"] == "success", task
    return client.show(image_id)


def fails(client: Client, image_id: str) -> str:
    """What the task says, when the import has failed."""
    task = ended(client, image_id)
    assert task["status"] == "failure", task
    return str(task["message"])


def accepted(answer: requests.Response, status: int = 202) -> None:
    """Without a body; glanceclient fails on one that is said to be JSON and is not."""
    assert (answer.status_code, answer.content) == (status, b""), answer.text
    assert "json" not in answer.headers.get("Content-Type", "")


def staged_files(place: Service) -> list[str]:
    return names(place.state / "staging")


def slow(web: WebServer, path: str) -> str:
    """A URL whose data never ends."""

    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 5000)
        handler.wfile.flush()
        handler.connection.settimeout(60)
        handler.connection.recv(1)
        handler.close_connection = True

    web.files[path] = drip
    return web.url + path


# --- each method -----------------------------------------------------------------------------------------


def test_staged_data_becomes_that_of_the_image(place: Service, alice: Client) -> None:
    image_id = alice.queued()
    accepted(stage(alice, image_id), 204)
    shown = alice.show(image_id)
    assert (shown["status"], shown["size"], shown["checksum"]) == ("uploading", len(DATA), None)
    assert "stores" not in shown
    assert not [name for name in shown if name.startswith("os_glance")]
    assert alice.file(image_id).status_code == 204
    accepted(start(alice, image_id))
    shown = succeeds(alice, image_id)
    assert (shown["status"], shown["size"], shown["stores"]) == ("active", len(DATA), "fast")
    assert shown["os_hash_value"] == hashlib.sha512(DATA).hexdigest()
    assert shown["checksum"] == hashlib.md5(DATA).hexdigest()
    assert alice.file(image_id).content == DATA
    assert {name: shown.get(name) for name in PROGRESS} == dict.fromkeys(PROGRESS, "") | {PROGRESS[0]: None}
    until(lambda: image_id not in staged_files(place))


def test_the_task_of_an_import_tells_what_was_asked_and_what_came_of_it(alice: Client) -> None:
    image_id = alice.queued()
    stage(alice, image_id)
    start(alice, image_id, stores=["cheap"], all_stores_must_succeed=False)
    task = ended(alice, image_id)
    asked = {"method": {"name": "glance-direct"}, "stores": ["cheap"], "all_stores_must_succeed": False}
    assert task["input"] == {"image_id": image_id, "import_req": asked, "backend": ["cheap"]}
    assert (task["type"], task["status"], task["owner"]) == ("api_image_import", "success", "red")
    assert task["result"] == {"image_id": image_id}
    assert task["expires_at"]


def test_data_at_a_url_becomes_that_of_the_image(place: Service, alice: Client, web: WebServer) -> None:
    image_id = alice.queued()
    accepted(start(alice, image_id, "web-download", uri=web.url + "/disk", header="cheap"))
    shown = succeeds(alice, image_id)
    assert (shown["status"], shown["stores"]) == ("active", "cheap")
    assert alice.file(image_id).content == DATA
    assert image_id not in staged_files(place)


def test_an_image_is_copied_to_further_stores(alice: Client, admin: Client) -> None:
    image_id = alice.active(DATA)
    accepted(start(admin, image_id, "copy-image", stores=["cheap"]))
    shown = succeeds(admin, image_id)
    assert (shown["status"], shown["stores"]) == ("active", "fast,cheap")
    accepted(start(admin, image_id, "copy-image", all_stores=True))
    shown = succeeds(admin, image_id)
    assert set(shown["stores"].split(",")) == ALL
    for store in ALL:
        assert alice.get(f"/v2/images/{image_id}/file?prefer={store}").content == DATA
    before = len(tasks(admin, image_id))
    accepted(start(admin, image_id, "copy-image", all_stores=True))  # every store has it: there is nothing to do
    assert len(tasks(admin, image_id)) == before
    assert start(admin, image_id, "copy-image", stores=["cheap"]).status_code == 400
    assert start(admin, image_id, "copy-image").status_code == 400  # the default store
    assert start(alice, image_id, "copy-image", all_stores=True).status_code == 403
    assert alice.show(image_id)["status"] == "active"


@pytest.mark.parametrize("method", METHODS)
def test_all_stores_are_those_that_take_data(alice: Client, admin: Client, web: WebServer, method: str) -> None:
    image_id = alice.active(DATA) if method == "copy-image" else alice.queued()
    if method == "glance-direct":
        stage(alice, image_id)
    who, uri = (admin if method == "copy-image" else alice), web.url + "/disk"
    more = {"uri": uri} if method == "web-download" else {}
    accepted(start(who, image_id, method, all_stores=True, all_stores_must_succeed=True, **more))
    assert set(succeeds(who, image_id)["stores"].split(",")) == ALL
    assert alice.file(image_id).content == DATA


def test_a_store_that_fails_is_named_and_costs_the_others_nothing_if_so_wished(
    place: Service, alice: Client, admin: Client
) -> None:
    for must in (False, None, True):
        image_id = alice.queued()
        (place.state / "cheap" / image_id).write_bytes(b"somebody else's")
        stage(alice, image_id)
        more = {} if must is None else {"all_stores_must_succeed": must}
        accepted(start(alice, image_id, stores=["cheap", "fast"], **more))
        task, shown = ended(alice, image_id), alice.show(image_id)
        if must is False:
            assert (task["status"], shown["status"], shown["stores"]) == ("success", "active", "fast")
            assert shown["os_glance_failed_import"] == "cheap"
            assert "cheap" in task["message"]
            (place.state / "cheap" / image_id).unlink()
            accepted(start(admin, image_id, "copy-image", stores=["cheap"]))
            shown = succeeds(admin, image_id)
            assert (shown["os_glance_failed_import"], shown["stores"]) == ("", "fast,cheap")
        else:  # that all must succeed is the default
            assert (task["status"], shown["status"], shown["size"]) == ("failure", "queued", None)
            assert set(shown["os_glance_failed_import"].split(",")) == {"cheap", "fast"}
            assert not (place.state / "fast" / image_id).exists()
            assert (place.state / "cheap" / image_id).read_bytes() == b"somebody else's"
        assert shown["os_glance_importing_to_stores"] == ""


def test_a_given_hash_is_compared(place: Service, alice: Client, web: WebServer) -> None:
    right = {"os_hash_algo": "sha256", "os_hash_value": hashlib.sha256(DATA).hexdigest().upper()}
    image_id = alice.queued()
    accepted(start(alice, image_id, "web-download", uri=web.url + "/disk", **right))
    assert succeeds(alice, image_id)["os_hash_algo"] == "sha512"
    image_id = alice.queued()
    accepted(
        start(alice, image_id, "web-download", uri=web.url + "/disk", os_hash_algo="sha256", os_hash_value="0" * 64)
    )
    assert "sha256" in fails(alice, image_id)
    shown = alice.show(image_id)
    assert (shown["status"], shown["size"], shown["os_hash_value"]) == ("queued", None, None)
    assert image_id not in names(place.state / "fast")


def test_data_of_another_format_is_refused_and_the_image_can_be_used_again(
    place: Service, alice: Client, web: WebServer
) -> None:
    web.files["/qcow2"] = b"QFI\xfb\x00\x00\x00\x03" + b"\0" * 2000
    image_id = alice.queued()
    accepted(start(alice, image_id, "web-download", uri=web.url + "/qcow2"))
    assert "qcow2" in fails(alice, image_id)
    assert alice.show(image_id)["status"] == "queued"
    assert image_id not in names(place.state / "fast")
    assert alice.put(image_id, DATA).status_code == 204


# --- what is refused at once -----------------------------------------------------------------------------

BODIES: list[tuple[Any, dict[str, str], int]] = [
    ({}, {}, 400),
    ([], {}, 400),
    ({"method": "web-download"}, {}, 400),
    ({"method": {}}, {}, 400),
    ({"method": {"name": 7}}, {}, 400),
    ({"method": {"name": "none"}}, {}, 400),
    ({"method": {"name": "glance-download", "glance_region": "r", "glance_image_id": "x"}}, {}, 400),
    ({"method": {"name": "web-download"}}, {}, 400),
    ({"method": {"name": "web-download", "uri": None}}, {}, 400),
    ({"method": {"name": "web-download", "uri": ""}}, {}, 400),
    ({"method": {"name": "web-download", "uri": "ftp://127.0.0.3/x"}}, {}, 400),
    ({"method": {"name": "web-download", "uri": "file:///etc/passwd"}}, {}, 400),
    ({"method": {"name": "web-download", "uri": "http://127.0.0.1/x"}}, {}, 400),
    ({"method": {"name": "web-download", "uri": "http://u:p@127.0.0.3/x"}}, {}, 400),
    ({"method": {"name": "web-download", "uri": "http://name.invalid/x"}}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL", "os_hash_algo": "sha256"}}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL", "os_hash_algo": "sha256", "os_hash_value": "00"}}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL", "os_hash_algo": "crc", "os_hash_value": "00"}}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL"}, "all_stores": "yes"}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL"}, "all_stores_must_succeed": 1}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": "fast"}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": [7]}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": []}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": ["fast"], "all_stores": True}, {}, 400),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": ["fast"]}, {"x-image-meta-store": "fast"}, 400),
    ({"method": {"name": "web-download", "uri": "URL"}, "all_stores": True}, {"x-image-meta-store": "fast"}, 400),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": ["fast", "none"]}, {}, 409),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": ["os_glance_staging_store"]}, {}, 409),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": ["os_glance_tasks_store"]}, {}, 409),
    ({"method": {"name": "web-download", "uri": "URL"}}, {"x-image-meta-store": "none"}, 409),
    ({"method": {"name": "web-download", "uri": "URL"}}, {"x-image-meta-store": "os_glance_staging_store"}, 409),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": ["fast", "closed"]}, {}, 410),
    ({"method": {"name": "web-download", "uri": "URL"}, "stores": ["web"]}, {}, 410),
    ({"method": {"name": "glance-direct"}}, {}, 409),
]


@pytest.mark.parametrize(("body", "headers", "status"), BODIES, ids=lambda value: json.dumps(value)[:100])
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    alice: Client, admin: Client, web: WebServer, body: Any, headers: dict[str, str], status: int
) -> None:
    image_id = alice.queued()
    before = alice.show(image_id)
    text = json.dumps(body).replace("URL", web.url + "/disk")
    refused = alice.request("POST", f"/v2/images/{image_id}/import", data=text, headers=headers)
    assert refused.status_code == status, refused.text
    assert alice.show(image_id) == before
    assert tasks(admin, image_id) == []
    assert web.url not in refused.text


def test_copies_go_to_no_store_that_takes_no_data(alice: Client, admin: Client) -> None:
    image_id = alice.active(DATA)
    for store in ("closed", "web"):
        assert start(admin, image_id, "copy-image", stores=[store]).status_code == 410
    assert start(admin, image_id, "copy-image", stores=["os_glance_staging_store"]).status_code == 409
    assert tasks(admin, image_id) == []


def test_keys_that_the_service_does_not_know_are_passed_over(alice: Client, web: WebServer) -> None:
    image_id = alice.queued()
    body = {"method": {"name": "web-download", "uri": web.url + "/disk", "later": 1}, "later": {"x": [1]}}
    accepted(alice.request("POST", f"/v2/images/{image_id}/import", json=body))
    assert succeeds(alice, image_id)["status"] == "active"


def test_each_method_needs_its_status(alice: Client, admin: Client, web: WebServer) -> None:
    queued, active, deactivated, uploading = (alice.queued(), alice.active(), alice.active(), alice.queued())
    alice.request("POST", f"/v2/images/{deactivated}/actions/deactivate")
    stage(alice, uploading)
    fits = {"glance-direct": uploading, "web-download": queued, "copy-image": active}
    for method, fit in fits.items():
        for image_id in {queued, active, deactivated, uploading} - {fit}:
            more = {"uri": web.url + "/disk"} if method == "web-download" else {}
            refused = start(admin, image_id, method, **more)
            assert (refused.status_code, method) == (409, method), refused.text
    assert stage(alice, uploading).status_code == 409
    assert alice.put(uploading, DATA).status_code == 409
    assert stage(alice, active).status_code == 409


def test_formats_are_needed_for_an_import_and_not_to_stage(alice: Client, web: WebServer) -> None:
    image_id = str(alice.create(name="bare").json()["id"])
    assert start(alice, image_id, "web-download", uri=web.url + "/disk").status_code == 409
    accepted(stage(alice, image_id), 204)
    assert start(alice, image_id).status_code == 409
    assert alice.patch(image_id, {"op": "replace", "path": "/disk_format", "value": "raw"}).status_code == 403
    alice.delete(image_id)


def test_who_may_not_hears_nothing_of_the_status(place: Service, alice: Client) -> None:
    """404 for whom the image does not exist, 403 for whoever may not change it, whatever its status."""
    for image_id in (alice.queued(visibility="private"), alice.active(visibility="private")):
        for user, status in (("bob", 404), ("reader", 403)):
            who = place.client(user)
            answers = [stage(who, image_id), start(who, image_id), cancel(who, image_id)]
            answers.append(start(who, image_id, "web-download", uri="http://127.0.0.1/"))
            assert {answer.status_code for answer in answers} == {status}
    for image_id in ("none", "99999999-2222-4333-8444-555555555555"):
        assert {stage(alice, image_id).status_code, start(alice, image_id).status_code} == {404}
    assert alice.request("GET", "/v2/images/x/import").status_code == 405
    assert alice.request("POST", f"/v2/images/{image_id}/actions/cancel_import", json={}).status_code == 400


# --- one at a time, and no longer than somebody wants it ---------------------------------------------------


def test_a_second_import_is_refused_and_the_first_can_be_cancelled(
    place: Service, alice: Client, web: WebServer
) -> None:
    image_id = alice.queued()
    uri = slow(web, "/endless")
    assert cancel(alice, image_id).status_code == 409
    accepted(start(alice, image_id, "web-download", uri=uri, stores=["fast", "cheap"]))
    shown = alice.show(image_id)
    assert shown["status"] == "importing"
    assert shown["os_glance_importing_to_stores"] == "fast,cheap"
    assert shown["os_glance_import_task"] == tasks(alice, image_id)[0]["id"]
    assert start(alice, image_id, "web-download", uri=uri).status_code == 409
    assert stage(alice, image_id).status_code == 409
    until(lambda: tasks(alice, image_id)[0]["status"] == "processing")
    accepted(cancel(alice, image_id))
    assert "cancelled" in fails(alice, image_id)
    shown = alice.show(image_id)
    assert (shown["status"], shown["os_glance_importing_to_stores"]) == ("queued", "")
    assert "os_glance_import_task" not in shown
    assert cancel(alice, image_id).status_code == 409
    for store in ("fast", "cheap"):
        assert image_id not in names(place.state / store)


def test_a_delete_ends_an_import_and_frees_what_is_staged(place: Service, alice: Client, web: WebServer) -> None:
    running_import, staged = alice.queued(), alice.queued()
    start(alice, running_import, "web-download", uri=slow(web, "/endless/2"))
    until(lambda: tasks(alice, running_import)[0]["status"] == "processing")
    stage(alice, staged)
    assert staged in staged_files(place)
    for image_id in (running_import, staged):
        assert alice.delete(image_id).status_code == 204
        assert alice.get(f"/v2/images/{image_id}").status_code == 404
    until(lambda: staged not in staged_files(place))
    until(lambda: not {running_import, staged} & set(names(place.state / "fast")))


# --- the body of stage -----------------------------------------------------------------------------------


def test_what_is_staged_is_sent_as_an_upload_is(place: Service, alice: Client) -> None:
    image_id = alice.queued()
    path = f"/v2/images/{image_id}/stage"
    for headers, status in (
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": ""}, 415),
        ({**OCTETS, "Content-Encoding": "gzip"}, 415),
        ({**OCTETS, "Content-Range": "bytes 0-9/20"}, 400),
        ({**OCTETS, "x-openstack-image-size": "many"}, 400),
        ({**OCTETS, "x-openstack-image-size": "7"}, 400),
        ({**OCTETS, "x-openstack-image-size": "100000000000"}, 413),
        ({**OCTETS, "If-Match": '"x"'}, 412),
    ):
        refused = alice.request("PUT", path, data=DATA, headers=headers)
        assert refused.status_code == status, (headers, refused.text)
    shown = alice.show(image_id)
    assert (shown["status"], shown["size"]) == ("queued", None)
    assert image_id not in staged_files(place)
    accepted(alice.request("PUT", path, data=iter([DATA, DATA]), headers=OCTETS), 204)  # in chunks
    assert alice.show(image_id)["size"] == 2 * len(DATA)


def test_a_body_that_is_cut_is_not_staged(place: Service, alice: Client) -> None:
    image_id = alice.queued()
    head = (
        f"PUT /v2/images/{image_id}/stage HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        "Authorization: Basic {}\r\nContent-Length: 100000\r\n\r\n"
    )
    given = requests.Request("GET", place.url, auth=alice.session.auth).prepare().headers["Authorization"]
    with socket.create_connection(("127.0.0.1", place.port)) as connection:
        connection.sendall(head.format(given.split()[1]).encode() + b"x" * 1000)
        until(lambda: alice.show(image_id)["status"] == "uploading")
    until(lambda: alice.show(image_id)["status"] == "queued")
    assert image_id not in staged_files(place)
    accepted(stage(alice, image_id), 204)


def test_a_staging_directory_that_is_away_is_507_and_the_image_stays_queued(place: Service, alice: Client) -> None:
    image_id = alice.queued()
    directory, aside = place.state / "staging", place.state / "aside"
    directory.rename(aside)
    try:
        refused = stage(alice, image_id)
    finally:
        if directory.exists():
            directory.rmdir()
        aside.rename(directory)
    assert refused.status_code == 507, refused.text
    assert "Retry-After" not in refused.headers
    assert str(place.state) not in refused.text
    assert alice.show(image_id)["status"] == "queued"
    accepted(stage(alice, image_id), 204)


# --- what is offered -------------------------------------------------------------------------------------


def test_the_methods_that_are_offered_are_told(place: Service, alice: Client) -> None:
    told = alice.get("/v2/info/import").json()["import-methods"]
    assert told == {"description": "Import methods available.", "type": "array", "value": METHODS}
    assert alice.create(name="x").headers["OpenStack-image-import-methods"] == ",".join(METHODS)


def test_a_method_that_is_not_enabled_is_not_offered(state: Path) -> None:
    with running(state, "[DEFAULT]\nenabled_import_methods = [web-download]\n") as service:
        alice = service.client()
        made = alice.create(disk_format="raw", container_format="bare")
        assert made.headers["OpenStack-image-import-methods"] == "web-download"
        assert alice.get("/v2/info/import").json()["import-methods"]["value"] == ["web-download"]
        image_id = made.json()["id"]
        assert stage(alice, image_id).status_code == 404
        assert start(alice, image_id).status_code == 400
        assert start(service.client("admin"), alice.active(), "copy-image", all_stores=True).status_code == 400
        assert alice.show(image_id)["status"] == "queued"


def test_reserved_stores_are_named_in_no_request(alice: Client) -> None:
    image_id = alice.queued()
    reserved = "os_glance_staging_store"
    assert alice.put(image_id, DATA, x_image_meta_store=reserved).status_code == 400
    alice.put(image_id, DATA)
    assert alice.get(f"/v2/images/{image_id}/file?prefer={reserved}").status_code == 400
    told = alice.get("/v2/info/stores").text + alice.create(name="x").headers["OpenStack-image-store-ids"]
    assert reserved not in told


# --- tasks of type import --------------------------------------------------------------------------------


def ask_task(client: Client, uri: str, **given: Any) -> requests.Response:
    body = {"type": "import", "input": {"import_from": uri, **given}}
    return client.request("POST", "/v2/tasks", json=body)


def test_a_task_of_type_import_creates_an_image_with_its_data(place: Service, admin: Client, web: WebServer) -> None:
    properties = {"name": "old way", "disk_format": "raw", "container_format": "bare", "os_distro": "debian"}
    made = ask_task(admin, web.url + "/disk", import_from_format="qcow2", image_properties=properties)
    assert made.status_code == 201, made.text
    task = made.json()
    assert made.headers["Location"] == f"{place.url}/v2/tasks/{task['id']}"
    assert (task["type"], task["status"], task["result"]) == ("import", "pending", None)
    image_id = task["image_id"]
    shown = succeeds(admin, image_id)
    found = admin.get(f"/v2/tasks/{task['id']}").json()
    assert (found["status"], found["result"]) == ("success", {"image_id": image_id})
    assert found["input"]["image_properties"] == properties
    assert {name: shown[name] for name in properties} == properties
    assert (shown["status"], shown["owner"], shown["stores"]) == ("active", "admin", "fast")
    assert admin.file(image_id).content == DATA
    listed = admin.get("/v2/tasks?type=import").json()["tasks"]
    assert task["id"] in [one["id"] for one in listed]


def test_an_image_of_such_a_task_is_qcow2_unless_it_is_said_otherwise(admin: Client, web: WebServer) -> None:
    """The data is no qcow2: the image waits for other data."""
    for given, disk_format in (
        ({}, "qcow2"),
        ({"image_properties": {}}, "qcow2"),
        ({"image_properties": {"name": "x"}, "import_from_format": "vmdk"}, "vmdk"),
        ({"image_properties": {"disk_format": "vhd"}, "import_from_format": "vmdk"}, "vhd"),
    ):
        web.files["/other"] = b"\x89PNG" + b"x" * 1000 if disk_format != "x" else DATA
        made = ask_task(admin, web.url + "/other", **given)
        assert made.status_code == 201, made.text
        image_id = made.json()["image_id"]
        ended(admin, image_id)
        shown = admin.show(image_id)
        assert (shown["disk_format"], shown["container_format"]) == (disk_format, "bare")


def test_a_task_that_makes_no_sense_makes_no_image(admin: Client, alice: Client, web: WebServer) -> None:
    uri = web.url + "/disk"
    before = {one["id"] for one in admin.get("/v2/images?limit=1000&visibility=all").json()["images"]}
    for given, status in (
        ({}, 400),
        ({"import_from": 7}, 400),
        ({"import_from": "file:///etc/passwd"}, 400),
        ({"import_from": "http://127.0.0.1/x"}, 400),
        ({"import_from": "http://name.invalid/x"}, 400),
        ({"import_from": uri, "image_properties": []}, 400),
        ({"import_from": uri, "image_properties": {"disk_format": "none"}}, 400),
        ({"import_from": uri, "image_properties": {"min_disk": -1}}, 400),
        ({"import_from": uri, "image_properties": {"status": "active"}}, 403),
        ({"import_from": uri, "image_properties": {"os_glance_x": "1"}}, 403),
    ):
        refused = admin.request("POST", "/v2/tasks", json={"type": "import", "input": given})
        assert refused.status_code == status, (given, refused.text)
        assert web.url not in refused.text
    assert ask_task(alice, uri).status_code == 403
    assert {one["id"] for one in admin.get("/v2/images?limit=1000&visibility=all").json()["images"]} == before


# --- what is not told ------------------------------------------------------------------------------------


def test_a_url_is_shown_to_nobody_but_administrators_and_its_query_to_nobody(
    place: Service, alice: Client, admin: Client, web: WebServer
) -> None:
    image_id = alice.queued()
    accepted(start(alice, image_id, "web-download", uri=web.url + "/nothing?X-Amz-Signature=s3cr3t"))
    fails(alice, image_id)
    mine, theirs = alice.get(f"/v2/images/{image_id}/tasks").text, admin.get(f"/v2/images/{image_id}/tasks").text
    assert web.host not in mine
    assert web.url + "/nothing" in theirs
    for told in (mine, theirs, place.log, json.dumps(alice.show(image_id))):
        assert "s3cr3t" not in told
    assert str(place.state) not in mine
    with contextlib.closing(sqlite3.connect(place.state / "calotype.db")) as tables:
        kept = tables.execute("SELECT input FROM task_info JOIN tasks ON id = task_id WHERE image_id = ?", [image_id])
        assert [web.host in text and "s3cr3t" not in text for (text,) in kept] == [True]
