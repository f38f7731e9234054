"""What lines of the log tell: the request, who sent it, the image; as JSON and as text; no secret; nothing of the last one."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from falcon import testing
from oslo_context import context

from calotype.db import jobs
from calotype.jobs.worker import Runner
from tests import VIOLATIONS
from tests.api.test_browsers import auth, client
from tests.inprocess import parts
from tests.support import PASSWORD, Service, running, until

TOKEN = "gAAAAABmsecretsecretsecretsecret"
ACCESS = "calotype.access"


def used(service: Service) -> dict[str, Any]:
    """Requests of all sorts; for each (method, status) its request id, user, project and image."""
    alice, nobody = service.client(), service.client("alice", "wrong password")
    alice.session.headers["X-Auth-Token"] = TOKEN
    image_id, refused = alice.active(b"some data"), alice.queued(disk_format="qcow2")
    answers = {
        "shown": (alice.get(f"/v2/images/{image_id}?x={TOKEN}"), "alice", "red", image_id),
        "downloaded": (alice.file(image_id), "alice", "red", image_id),
        "refused": (alice.put(refused, b"no qcow2"), "alice", "red", refused),
        "wrong": (nobody.get(f"/v2/images/{image_id}"), None, None, image_id),
        "open": (service.client(None).get("/versions"), None, None, None),
    }
    assert [answers[name][0].status_code for name in answers] == [200, 200, 415, 401, 200]
    return {name: (found.headers["X-Openstack-Request-ID"], *facts) for name, (found, *facts) in answers.items()}


def wait_for(service: Service, expected: dict[str, Any]) -> str:
    """The log, once each of the requests has its line; then the service has stopped writing of them."""
    until(lambda: all(facts[0] in service.log for facts in expected.values()))
    service.stop()
    assert PASSWORD not in service.log
    assert TOKEN not in service.log
    assert auth()["Authorization"].partition(" ")[2] not in service.log
    return service.log


def test_every_line_is_json_and_tells_request_user_project_and_image(tmp_path: Path) -> None:
    with running(
        tmp_path / "state", "[DEFAULT]\nuse_json = true\ndebug = true\n[server]\naccess_log = true\n"
    ) as service:
        expected = used(service)
        lines = [json.loads(line) for line in wait_for(service, expected).splitlines()]
    for facts in expected.values():
        of_it = [line for line in lines if line["context"].get("request_id") == facts[0]]
        assert [line["name"] for line in of_it].count(ACCESS) == 1
        for line in of_it:
            found = line["context"]
            assert (found["request_id"], found["user"], found["project"], found["resource_uuid"]) == facts
    (warning,) = [line for line in lines if line["levelname"] == "WARNING"]
    assert warning["context"]["request_id"] == expected["refused"][0]
    assert not [line for line in lines if line["name"].startswith("gunicorn") and line["context"]]


def test_lines_of_text_tell_the_same_in_the_form_that_an_operator_wants(tmp_path: Path) -> None:
    form = "%(levelname)s|%(name)s|%(request_id)s|%(user)s|%(project)s|%(resource_uuid)s|%(message)s"
    file = tmp_path / "calotype.log"
    conf = f"[DEFAULT]\nlog_file = {file}\nlogging_context_format_string = {form}\n[server]\naccess_log = true\n"
    with running(tmp_path / "state", conf) as service:
        expected = used(service)
        wait_ids = {facts[0] for facts in expected.values()}
        until(lambda: all(one in file.read_text() for one in wait_ids))
    text = file.read_text()
    assert TOKEN not in text
    assert PASSWORD not in text
    lines = [line.split("|") for line in text.splitlines() if f"|{ACCESS}|" in line]
    told = {line[2]: tuple(line[2:6]) for line in lines}
    for facts in expected.values():
        assert told[facts[0]] == tuple(str(fact) for fact in facts)
    shown = next(line[6] for line in lines if line[2] == expected["shown"][0])
    path = f"/v2/images/{expected['shown'][3]}"
    assert re.fullmatch(rf"127\.0\.0\.1 GET {path} 200 \d+ \d+\.\d{{3}}", shown)
    downloaded = next(line[6] for line in lines if line[2] == expected["downloaded"][0])
    assert re.fullmatch(rf"127\.0\.0\.1 GET {path}/file 200 {len('some data')} \d+\.\d{{3}}", downloaded)


def test_without_the_option_requests_that_go_well_leave_no_line(service: Service) -> None:
    request_id = service.client().get("/v2/images").headers["X-Openstack-Request-ID"]
    assert request_id not in service.log


class Heard(logging.Handler):
    """The contexts in which lines were written."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[context.RequestContext | None] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.contexts.append(context.get_current())


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logging.getLogger("calotype").addHandler(handler)
    yield handler
    logging.getLogger("calotype").removeHandler(handler)


def test_a_thread_knows_nothing_of_the_request_before(tmp_path: Path, heard: Heard) -> None:
    context.RequestContext(request_id="req-before", user_id="mallory")
    with client(tmp_path, "") as of:
        made = of.simulate_post("/v2/images", json={"disk_format": "qcow2", "container_format": "bare"}, headers=auth())
        assert made.status_code == 201
        assert context.get_current() is None
        path = f"/v2/images/{made.json['id']}/file"
        octets = {"Content-Type": "application/octet-stream"}
        assert of.simulate_put(path, body=b"no", headers=auth() | octets).status_code == 415
        assert context.get_current() is None
        assert heard.contexts
        for found in heard.contexts:
            assert found
            assert (found.user_id, found.project_id, found.resource_uuid) == ("alice", "red", made.json["id"])
        patch = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
        raw = json.dumps([{"op": "replace", "path": "/disk_format", "value": "raw"}])
        changed = of.simulate_patch(f"/v2/images/{made.json['id']}", headers=auth() | patch, body=raw)
        assert changed.status_code == 200
        assert of.simulate_put(path, body=b"raw", headers=auth() | octets).status_code == 204
        other = of.simulate_post(
            "/v2/images", json={"disk_format": "qcow2", "container_format": "bare"}, headers=auth()
        )
        assert of.simulate_get(path, headers=auth()).status_code == 200
        # That left its context to the server, which sends the data; here there is none.
        assert context.get_current() is not None
        wrong = of.simulate_put(f"/v2/images/{other.json['id']}/file", body=b"no", headers=auth() | octets)
        last = heard.contexts[-1]
        assert last
        assert (last.resource_uuid, last.request_id) == (other.json["id"], wrong.headers["x-openstack-request-id"])
        of.simulate_get("/versions")
        assert context.get_current() is None


def test_the_lines_of_a_job_tell_its_image_and_end_with_it(tmp_path: Path, heard: Heard) -> None:
    with parts(tmp_path, f"sqlite:///{tmp_path}/db") as app:
        image_id = "11111111-2222-4333-8444-555555555555"
        logging.getLogger("calotype").setLevel(logging.INFO)
        with app.db.write_once() as tx:
            job = jobs.submit(tx, "upload", image_id, {"store": "one"})
        Runner(app.service, 1.0).run_due_jobs()
        assert heard.contexts
        for found in heard.contexts:
            assert found
            assert (found.request_id, found.resource_uuid) == (f"job-{job.id}", image_id)
        assert context.get_current() is None


def test_a_request_that_goes_wrong_unforeseen_ends_its_context_too(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    with client(tmp_path, "") as of:
        monkeypatch.setattr("calotype.images.lifecycle.list_", breaks)
        monkeypatch.delenv(VIOLATIONS)  # this answer may be none that is described
        answer: testing.Result = of.simulate_get("/v2/images", headers=auth())
        assert answer.status_code == 500
        (found,) = heard.contexts
        assert found
        assert (found.user_id, found.request_id) == ("alice", answer.headers["x-openstack-request-id"])
        assert context.get_current() is None
