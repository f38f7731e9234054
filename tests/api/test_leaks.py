"""A crawl as the users: no answer, header or line of the log has a location, a path of a store or a credential.

Whatever stores, locations and errors there are, readers and members are told of none of it. The log is the operators';
it may name a path where a disk fails, but never a location or a credential.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from calotype.api.routes import ROUTES
from calotype.db import images
from calotype.db.engine import Database, now
from tests.support import OCTETS, USERS, Client, Service, running, until, write_users
from tests.webserver import WebServer, serving

CONF = """\
[DEFAULT]
debug = true
default_log_levels = urllib3=DEBUG, urllib3.connectionpool=DEBUG, calotype=DEBUG
enabled_backends = fast:file, web:http, brief:memory
show_image_direct_url = true
http_retries = 0
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {state}/fast
store_description = quick and dear
[oslo_messaging_notifications]
driver = log
[jobs]
poll = 0.1
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.3
"""
PASSWORD = "topsecret"


@dataclass
class Place:
    service: Service
    web: WebServer
    ids: dict[str, str]  #: images in each state, by a word for it
    told: list[str]  #: what the users were told so far

    def forbidden(self) -> dict[str, str]:
        """What no user may read, by a word for it."""
        return {
            "the state directory": str(self.service.state),
            "a file": "file://",
            "the web server": f"{self.web.host}:{self.web.port}",
            "its address": self.web.host,
            "a path on it": "/private-path",
            "an object in memory": "memory://",
            "an old location": "swift+https",
            "its account": "t%3Aaccount",
            "a password": PASSWORD,
        }

    def hear(self, answer: requests.Response) -> requests.Response:
        head = "".join(f"{name}: {value}\n" for name, value in answer.headers.items())
        self.told.append(f"{answer.status_code} {answer.reason}\n{head}\n{answer.text}")
        return answer


def add(client: Client, image_id: str, url: str, data: bytes | None = None) -> requests.Response:
    hashed = {"os_hash_algo": "sha256", "os_hash_value": hashlib.sha256(data).hexdigest()} if data is not None else None
    body = {"url": url} | ({"validation_data": hashed} if hashed else {})
    return client.request("POST", f"/v2/images/{image_id}/locations", json=body)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    state = tmp_path_factory.mktemp("leaks")
    write_users(state / "users.json", {**USERS, "nova": ("red", ("member", "service"))})
    with serving(host="127.0.0.3") as web, running(state, CONF.format(state=state)) as service:
        yield filled(Place(service, web, {}, []))


def filled(place: Place) -> Place:
    """Images in all states, with copies in all stores, and everything going wrong that a user can make go wrong."""
    web, alice, service = place.web, place.service.client(), place.service
    service.client("admin").request("POST", "/v2/metadefs/namespaces", json=NAMESPACE)
    web.files["/private-path"] = b"on the web"
    ids = place.ids
    for visibility in ("private", "shared", "public", "community"):
        who = service.client("admin") if visibility == "public" else alice
        ids[visibility] = who.active(b"data", visibility=visibility, owner="red")
    alice.request("POST", f"/v2/images/{ids['shared']}/members", json={"member": "blue"})
    ids["queued"], ids["deactivated"], ids["deleted"] = alice.queued(), alice.active(), alice.active()
    alice.request("POST", f"/v2/images/{ids['deactivated']}/actions/deactivate")
    alice.delete(ids["deleted"])
    ids["in memory"] = alice.queued()
    alice.put(ids["in memory"], b"x", x_image_meta_store="brief")
    for word, data in (("on the web", None), ("compared", b"on the web"), ("wrong", b"other")):
        ids[word] = alice.queued()
        place.hear(add(alice, ids[word], web.url + "/private-path", data))
    ids["missing"] = alice.active()
    (service.state / "fast" / ids["missing"]).unlink()
    ids["damaged"] = alice.active(b"long enough")
    (service.state / "fast" / ids["damaged"]).write_bytes(b"short")
    ids["in the way"] = alice.queued()
    (service.state / "fast" / ids["in the way"]).write_bytes(b"somebody else's")
    place.hear(alice.put(ids["in the way"], b"data"))
    ids["gone from the web"] = alice.queued()
    web.files["/private-path/2"] = b"soon gone"
    place.hear(add(alice, ids["gone from the web"], web.url + "/private-path/2"))
    until(lambda: alice.show(ids["gone from the web"])["os_hash_value"])
    web.files["/private-path/2"] = web.leads("http://127.0.0.1:1/private-path")
    ids["old"] = alice.queued()
    database = Database(service.database_url)
    with database.write_once() as tx:
        images.move(tx, ids["old"], "queued", "active", now=now(), size=3)
        for url in (
            f"swift+https://t%3Aaccount:{PASSWORD}@host/v3/c/o",
            f"http://u:{PASSWORD}@127.0.0.3:1/private-path",
        ):
            images.add_location(tx, ids["old"], url, {}, now())
    database.close()
    for url in (
        f"http://u:{PASSWORD}@{web.host}:{web.port}/private-path", f"{web.url}/private-path?token={PASSWORD}",
        f"{web.url}/private-path/none", "http://127.0.0.1:1/private-path", f"file://{service.state}/fast/{ids['private']}",
        f"s3://key:{PASSWORD}@host/b/k", f"https://{web.host}:{web.port}/private-path",
    ):  # fmt: skip
        for user in ("alice", "nova", "reader", "bob"):
            place.hear(add(service.client(user), ids["queued"], url))
    until(lambda: alice.show(ids["wrong"])["status"] == "queued")
    until(lambda: alice.show(ids["compared"])["status"] == "active")
    imported(place)
    return place


def imported(place: Place) -> None:
    """Images that are staged and imported, and imports that are refused or fail."""
    ids, alice, admin = place.ids, place.service.client(), place.service.client("admin")

    def start(client: Client, image_id: str, name: str, *, stores: list[str] | None = None, **method: str) -> None:
        body = {"method": {"name": name, **method}} | ({"stores": stores} if stores else {})
        place.hear(client.request("POST", f"/v2/images/{image_id}/import", json=body))

    def stage(image_id: str) -> None:
        place.hear(alice.request("PUT", f"/v2/images/{image_id}/stage", data=b"data", headers=OCTETS))

    def over(word: str) -> bool:
        tasks = admin.get(f"/v2/images/{ids[word]}/tasks").json()["tasks"]
        return bool(tasks[-1]["status"] in ("success", "failure"))

    for word in ("staged", "imported", "fetched", "fetched from nowhere", "in the way of an import"):
        ids[word] = alice.queued()
    for word in ("staged", "imported", "in the way of an import"):
        stage(ids[word])
    stage(ids["staged"])
    (place.service.state / "fast" / ids["in the way of an import"]).write_bytes(b"somebody else's")
    place.web.files[f"/private-path?token={PASSWORD}"] = b"on the web"
    start(alice, ids["imported"], "glance-direct")
    start(alice, ids["in the way of an import"], "glance-direct")
    for url in (
        f"http://u:{PASSWORD}@{place.web.host}/",
        f"file://{place.service.state}/calotype.db",
        "http://127.0.0.1:1/",
    ):
        start(alice, ids["fetched"], "web-download", uri=url)
    start(alice, ids["fetched"], "web-download", uri=f"{place.web.url}/private-path?token={PASSWORD}")
    start(alice, ids["fetched from nowhere"], "web-download", uri=f"{place.web.url}/private-path/none?sig={PASSWORD}")
    start(admin, ids["private"], "copy-image", stores=["brief"])
    for store in ("web", "none", "os_glance_staging_store"):
        start(admin, ids["missing"], "copy-image", stores=[store])
    start(admin, ids["missing"], "copy-image", stores=["brief"])
    for word in ("imported", "fetched", "fetched from nowhere", "in the way of an import", "private"):
        until(lambda word=word: over(word), 60)  # type: ignore[misc]


NAMESPACE = {
    "namespace": "space",
    "visibility": "public",
    "objects": [{"name": "o"}],
    "properties": {"p": {"title": "P", "type": "string"}},
    "tags": [{"name": "t"}],
    "resource_type_associations": [{"name": "T"}],
}


def paths(place: Place) -> Iterator[str]:
    """Every path that there is, with whatever there is to put into it, and some that are odd."""
    others = {"tag": "x", "member_id": "blue", "store_id": "fast", "name": "image", "task_id": place.ids["private"]}
    others |= {"namespace": "space", "object_name": "o", "property_name": "p", "tag_name": "t", "resource_type": "T"}
    for path in dict.fromkeys(route.path for route in ROUTES):
        if "{image_id}" not in path:
            yield re.sub(r"{(\w+)}", lambda found: others.get(found[1], "x"), path)
            continue
        for image_id in [*place.ids.values(), "99999999-2222-4333-8444-555555555555", "%00", "..%2f..%2fetc%2fpasswd"]:
            yield re.sub(r"{(\w+)}", lambda found: others.get(found[1], "x"), path.replace("{image_id}", image_id))
    yield from ("/v2/images?limit=1000", "/v2/images?visibility=all&limit=1000&member_status=all", "/v2/images?locations=x",
                "/v2/images?sort_key=locations", "/v2/images?direct_url=x", "/v2/images?tag=%00", "/v2/schemas/none", "/nowhere")  # fmt: skip


@pytest.mark.parametrize("user", ["reader", "alice", "bob", "manager"])
@pytest.mark.slow
def test_no_user_is_told_where_data_lies(place: Place, user: str) -> None:
    client, nova = place.service.client(user), place.service.client("nova")
    for word in place.ids:  # what services were shown is in memory, if anywhere
        nova.get(f"/v2/images/{place.ids[word]}")
    nova.get("/v2/images?limit=1000")
    for path in paths(place):
        for method in ("GET", "HEAD"):
            place.hear(client.request(method, path, headers={"Accept": "application/json, */*"}))
        if path.endswith("/file"):
            for headers in (
                {"Range": "bytes=1-2"},
                {"Range": "bytes=999-"},
                {"Range": "bytes=0-1,3-4"},
                {"X-Image-Meta-Store": "x"},
            ):
                place.hear(client.get(path, headers=headers))
            for prefer in ("web", "fast", "brief", "none", "web,fast"):
                place.hear(client.get(f"{path}?prefer={prefer}"))
    for image_id in place.ids.values():
        for step in (
            {"op": "add", "path": "/locations/-", "value": {"url": "http://x/", "metadata": {}}},
            {"op": "replace", "path": "/locations", "value": []},
            {"op": "remove", "path": "/locations/0"},
            {"op": "replace", "path": "/direct_url", "value": "x"},
            {"op": "add", "path": "/stores", "value": "x"},
        ):
            assert place.hear(client.patch(image_id, step)).status_code in (400, 403, 404), step
        place.hear(client.put(image_id, b"data")) if image_id != place.ids["queued"] else None
    assert len(place.told) > 500
    for text in place.told:
        for what, forbidden in place.forbidden().items():
            assert forbidden not in text, f"{what} in {text}"
        assert '"direct_url": "' not in text


def test_what_is_for_services_has_no_credential(place: Place) -> None:
    nova = place.service.client("nova")
    for image_id in place.ids.values():
        for path in (f"/v2/images/{image_id}/locations", f"/v2/images/{image_id}"):
            answer = nova.get(path)
            assert PASSWORD not in answer.text
            assert "account" not in answer.text
    found = nova.get(f"/v2/images/{place.ids['old']}/locations").json()
    assert json.dumps(found).count("/private-path") == 1


def test_the_log_has_no_location_and_no_credential(place: Place) -> None:
    """After all of the above, at the level of debugging."""
    log = place.service.log
    assert "INFO calotype.jobs" in log
    assert "image.activate" in log  # the events are in it
    assert place.ids["wrong"] in log
    for forbidden in (PASSWORD, "file://", "memory://", "swift+https", "t%3Aaccount", "/private-path", place.web.url):
        lines = [line for line in log.splitlines() if forbidden in line]
        assert not lines, (forbidden, lines[0])


def test_the_option_that_is_dangerous_is_reported_and_does_nothing(state: Path) -> None:
    with running(state, "[DEFAULT]\nshow_multiple_locations = true\n") as service:
        alice = service.client()
        image_id = alice.active(b"mine")
        assert "locations" not in alice.show(image_id)
        step = {"op": "add", "path": "/locations/-", "value": {"url": "http://x/", "metadata": {}}}
        assert service.client("admin").patch(image_id, step).status_code == 403
        line = next(line for line in service.log.splitlines() if "show_multiple_locations" in line)
        for word in ("WARNING", "OSSN-0065", "OSSN-0090", "POST", "locations"):
            assert word in line
