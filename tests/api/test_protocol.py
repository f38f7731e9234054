"""What holds for every route: versions, errors by `Accept`, request ids, methods, bodies where none belong."""

import base64
import json
import re
import socket
import uuid

import pytest
import requests

from tests.support import PASSWORD, Client, Service, running


@pytest.mark.any_database
def test_the_versions_are_listed_newest_first(service: Service) -> None:
    for path, status in (("/", 300), ("/versions", 200), ("/v9/images", 300), ("/v1", 300)):
        answer = requests.get(service.url + path, timeout=60)
        assert answer.status_code == status
        found = answer.json()["versions"]
        assert [v["id"] for v in found[:2]] == ["v2.17", "v2.15"]
        assert [v["status"] for v in found].count("CURRENT") == 1
        assert found[0]["status"] == "CURRENT"
        assert {"v2.0", "v2.8", "v2.13"} <= {v["id"] for v in found}
        assert found[0]["links"] == [{"rel": "self", "href": f"{service.url}/v2/"}]


@pytest.mark.any_database
def test_the_version_can_stand_in_the_path_or_in_accept(alice: Client) -> None:
    image_id = alice.queued()
    for version in ("v2", "v2.0", "v2.9", "v2.17"):
        assert alice.get(f"/{version}/images/{image_id}").status_code == 200
    for version in ("v2.99", "v3"):
        assert alice.get(f"/{version}/images/{image_id}").status_code == 300
    accept = {"Accept": "application/vnd.openstack.images-v2.5"}
    assert alice.get(f"/images/{image_id}", headers=accept).status_code == 200
    moved = alice.get("/v2", allow_redirects=False)
    assert (moved.status_code, moved.headers["Location"]) == (302, f"{alice.url}/v2/")
    assert alice.get("/v2/").status_code == 404


@pytest.mark.parametrize(
    ("accept", "kind", "start"),
    [
        (None, "text/html", "<html>"), ("", "text/html", "<html>"), ("application/octet-stream", "text/html", "<html>"),
        ("text/plain", "text/plain", "404 Not Found\n\nNo image"), ("text/plain, text/html;q=0.5", "text/html", "<html>"), ("*/*", "text/html", "<html>"), ("text/html", "text/html", "<html>"), ("application/json", "application/json", "{"),
    ],
)  # fmt: skip
@pytest.mark.any_database
def test_errors_come_in_the_form_that_is_accepted(alice: Client, accept: str | None, kind: str, start: str) -> None:
    image_id = str(uuid.uuid4())
    answer = alice.get(f"/v2/images/{image_id}", headers={"Accept": accept})
    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith(kind)
    assert answer.text.startswith(start)
    assert image_id in answer.text
    if kind == "application/json":
        assert set(answer.json()) == {"message", "code", "title"}
        assert answer.json()["code"] == "404 Not Found"


@pytest.mark.any_database
def test_an_error_never_echoes_markup(alice: Client) -> None:
    answer = alice.get("/v2/images?sort_key=%3Cscript%3E", headers={"Accept": "text/html"})
    assert answer.status_code == 400
    assert "<script>" not in answer.text


@pytest.mark.any_database
def test_every_answer_has_a_request_id(alice: Client) -> None:
    for answer in (alice.get("/v2/images"), alice.get("/v2/images/nope"), alice.get("/nope")):
        assert re.fullmatch(r"req-[0-9a-f]{32}", answer.headers["x-openstack-request-id"])
    given = alice.get("/v2/images", headers={"X-Openstack-Request-ID": "req-mine"})
    assert given.headers["x-openstack-request-id"] == "req-mine"
    given = alice.get("/v2/images", headers={"X-Openstack-Request-ID": "mine"})
    assert given.headers["x-openstack-request-id"] == "req-mine"
    assert alice.get("/v2/images", headers={"X-Openstack-Request-ID": "x" * 65}).status_code == 431


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2/images", "GET, POST"), ("/v2/images/{id}", "DELETE, GET, PATCH"), ("/v2/images/{id}/file", "GET, HEAD, PUT"),
        ("/v2/images/{id}/members", "GET, POST"), ("/v2/info/stores", "GET"), ("/v2/schemas/image", "GET"),
        ("/v2/images/{id}/actions/deactivate", "POST"), ("/v2/images/{id}/tags/x", "DELETE, PUT"),
    ],
)  # fmt: skip
@pytest.mark.any_database
def test_a_wrong_method_is_told_the_right_ones(alice: Client, path: str, allowed: str) -> None:
    path = path.replace("{id}", str(uuid.uuid4()))
    for method in ("OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE"):
        if method not in allowed:
            answer = alice.request(method, path)
            assert answer.status_code == 405
            assert sorted(answer.headers["Allow"].replace(" ", "").split(",")) == allowed.split(", ")


@pytest.mark.any_database
def test_paths_that_lead_nowhere_are_404(alice: Client) -> None:
    image_id = alice.active(b"x")
    for path in (
        "/v2/nope", "/v2/images/", f"/v2/images/{image_id}/", f"/v2/images/{image_id}%2Ffile", "/v2%2fimages",
        f"/v2/images/{image_id}/nope", "/v2/images/..%2f..%2fetc", "/v2/schemas/nope", "/v2/images/%00", "/v2/images/%ff",
    ):  # fmt: skip
        assert alice.get(path).status_code == 404, path


@pytest.mark.any_database
def test_a_body_where_none_belongs_is_refused(alice: Client) -> None:
    image_id = alice.queued()
    for method, path in (
        ("GET", "/v2/images"), ("GET", f"/v2/images/{image_id}"), ("DELETE", f"/v2/images/{image_id}"),
        ("PUT", f"/v2/images/{image_id}/tags/x"), ("POST", f"/v2/images/{image_id}/actions/deactivate"),
        ("GET", "/v2/info/stores"), ("GET", "/v2/schemas/image"), ("GET", f"/v2/images/{image_id}/file"),
    ):  # fmt: skip
        assert alice.request(method, path, data=b"body").status_code == 400, path
    assert alice.show(image_id)["status"] == "queued"


@pytest.mark.any_database
def test_a_json_body_is_bounded(alice: Client) -> None:
    assert alice.create(name="x", custom="y" * (2 << 20)).status_code == 413

    def endless() -> object:
        for _ in range(200):
            yield b'{"a": "' + b"x" * 100_000

    assert alice.request("POST", "/v2/images", data=endless()).status_code == 413


@pytest.mark.any_database
def test_what_a_client_can_find_out(alice: Client, admin: Client) -> None:
    assert alice.get("/v2/info/import").json() == {
        "import-methods": {
            "description": "Import methods available.",
            "type": "array",
            "value": ["glance-direct", "web-download", "copy-image"],
        }
    }
    assert alice.get("/v2/info/stores").json()["stores"] == [
        {"id": "fast", "description": "quick and dear", "default": "true"},
        {"id": "cheap"},
        {"id": "brief"},
    ]
    assert alice.get("/v2/info/stores/detail").status_code == 403
    fast = admin.get("/v2/info/stores/detail").json()["stores"][0]
    assert fast["type"] == "file"
    assert fast["weight"] == 200
    assert set(fast["properties"]) == {"data_dir", "chunk_size", "thin_provisioning"}
    assert fast["status"] == "available"
    assert 0 < fast["free_bytes"] <= fast["total_bytes"]


@pytest.mark.parametrize("name", ["image", "images", "member", "members"])
@pytest.mark.any_database
def test_schemas_describe_what_is_served(alice: Client, name: str) -> None:
    schema = alice.get(f"/v2/schemas/{name}").json()
    assert schema["name"] == name
    if name == "image":
        assert schema["additionalProperties"] == {"type": "string"}
        assert schema["properties"]["disk_format"]["enum"][0] is None
        assert set(alice.show(alice.queued())) <= set(schema["properties"])


def test_the_operator_can_take_a_service_out_of_rotation(state: object, tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(state, Path)
    off = Path(str(tmp_path)) / "off"
    with running(state, f"[healthcheck]\ndisable_by_file_path = {off}\n") as service:
        assert requests.get(f"{service.url}/healthcheck", timeout=60).text == "OK"
        off.touch()
        assert requests.get(f"{service.url}/healthcheck", timeout=60).status_code == 503


@pytest.mark.any_database
def test_a_failure_is_logged_once_with_its_facts_and_without_secrets(service: Service, alice: Client) -> None:
    image_id = alice.active(b"data")
    (service.state / "fast" / image_id).unlink()
    before = len(service.log)
    answer = alice.file(image_id)
    assert answer.status_code == 503
    assert str(service.state) not in answer.text
    lines = [line for line in service.log[before:].splitlines() if image_id in line]
    assert len(lines) == 1, lines
    for fact in (answer.headers["x-openstack-request-id"], "store fast", "FileNotFoundError"):
        assert fact in lines[0]
    alice.delete(image_id)


@pytest.mark.any_database
def test_no_log_line_holds_a_password(service: Service, alice: Client) -> None:
    alice.get("/v2/images")
    service.client("alice", "a wrong password").get("/v2/images")
    for secret in ("correct horse", "a wrong password", base64.b64encode(b"alice:correct horse").decode(), "$2b$"):
        assert secret not in service.log


@pytest.mark.any_database
def test_json_is_json(alice: Client) -> None:
    answer = alice.get("/v2/images?limit=1")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.text)


@pytest.mark.any_database
def test_whatever_is_wanted_of_an_unknown_version_the_answer_is_which_there_are(service: Service) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = requests.request(method, f"{service.url}/v3/images", timeout=60)
        assert answer.status_code == 300
        assert answer.json()["versions"]
    assert requests.get(f"{service.url}/versions/x", timeout=60).status_code == 200


@pytest.mark.any_database
def test_a_method_that_nobody_knows_is_501(alice: Client) -> None:
    for path in ("/v2/images", "/nope"):
        assert alice.request("BREW", path).status_code == 501


@pytest.mark.any_database
def test_a_failed_download_has_no_headers_of_the_content(service: Service, alice: Client) -> None:
    image_id = alice.active(b"data")
    (service.state / "fast" / image_id).unlink()
    for method in ("GET", "HEAD"):
        for headers in ({}, {"Range": "bytes=0-1"}, {"Range": "bytes=0-0,2-3"}):
            answer = alice.request(method, f"/v2/images/{image_id}/file", headers=headers)
            assert answer.status_code == 503
            for name in ("ETag", "Content-MD5", "Accept-Ranges", "Content-Range"):
                assert name not in answer.headers
    alice.delete(image_id)


@pytest.mark.any_database
def test_an_image_that_asks_for_its_signature_to_be_verified_is_not_taken_unverified(alice: Client) -> None:
    names = ("", "_hash_method", "_key_type", "_certificate_uuid")
    image_id = alice.queued(**{f"img_signature{name}": "x" for name in names})
    answer = alice.put(image_id, b"data")
    assert answer.status_code == 400
    assert "signature" in answer.text
    assert alice.show(image_id)["status"] == "queued"


@pytest.mark.any_database
def test_nothing_that_a_client_writes_begins_a_line_of_the_log(service: Service) -> None:
    """A body that breaks off is logged with its path, and the path is the client's."""
    before = len(service.log)
    credentials = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as sock:
        path = "/v2/images/a%0a2026-01-01%20ERROR%20forged/members"
        sock.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {credentials}\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        sock.shutdown(socket.SHUT_WR)
        assert b" 400 " in sock.recv(1000).split(b"\r\n")[0]
    written = service.log[before:].splitlines()
    assert [line for line in written if "forged" in line]
    assert not [line for line in written if line.startswith("2026-01-01 ERROR forged")]


@pytest.mark.any_database
def test_load_balancers_may_ask_by_head(service: Service) -> None:
    assert requests.head(f"{service.url}/healthcheck", timeout=60).status_code == 200
    assert requests.options(f"{service.url}/healthcheck", timeout=60).status_code == 405


@pytest.mark.parametrize("values", [{"min_ram": 1.0}, {"min_disk": 2.5}, {"custom": "x" * 65_536}])
def test_values_that_a_column_does_not_hold_are_400(alice: Client, values: dict[str, object]) -> None:
    assert alice.create(**values).status_code == 400


def test_a_time_at_the_edge_of_time_is_400(alice: Client) -> None:
    assert alice.get("/v2/images?created_at=gt:0001-01-01T00:00:00%2B14:00").status_code == 400


@pytest.mark.any_database
def test_what_a_client_says_of_a_proxy_is_not_believed_by_default(alice: Client) -> None:
    claims = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Ssl": "on",
        "X-Forwarded-Host": "evil.example",
        "Script-Name": "/x",
    }
    made = alice.request("POST", "/v2/images", json={}, headers=claims)
    assert made.headers["Location"] == f"{alice.url}/v2/images/{made.json()['id']}"
