"""POST and GET /v2/images/{image_id}/locations, and direct_url: who may, what becomes active, who sees what."""

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from tests import databases
from tests.images import samples
from tests.support import USERS, Client, Service, running, until, write_users
from tests.webserver import WebServer, serving, trap

CONF = """\
[DEFAULT]
enabled_backends = fast:file, web:http, brief:memory
show_image_direct_url = true
image_size_cap = 67108864
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {state}/fast
[web]
weight = 10
[jobs]
poll = 0.1
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.3
"""
HOST = "127.0.0.3"


@dataclass
class Place:
    service: Service
    web: WebServer

    def client(self, user: str = "alice") -> Client:
        return self.service.client(user)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, database_kind: str) -> Iterator[Place]:
    """A service with stores of each kind, and a web server that it may read from."""
    state = tmp_path_factory.mktemp("locations")
    database = databases.for_service(database_kind)
    # As a service that passes a user's request on: it sees what the user sees.
    write_users(state / "users.json", {**USERS, "nova": ("red", ("member", "service"))})
    with serving(host=HOST) as web, running(state, CONF.format(state=state), database=database) as service:
        web.files["/data"] = b"some data" * 1000
        yield Place(service, web)


def add(client: Client, image_id: str, url: str, given: Any = None) -> requests.Response:
    body = {"url": url} | ({} if given is None else {"validation_data": given})
    return client.request("POST", f"/v2/images/{image_id}/locations", json=body)


def given(data: bytes, algo: str = "sha512") -> dict[str, str]:
    return {"os_hash_algo": algo, "os_hash_value": hashlib.new(algo, data).hexdigest()}


def tasks(client: Client, image_id: str) -> list[dict[str, Any]]:
    return list(client.get(f"/v2/images/{image_id}/tasks").json()["tasks"])


def status(client: Client, image_id: str) -> str:
    return str(client.show(image_id)["status"])


def test_data_without_a_hash_is_active_at_once_and_hashed_afterwards(place: Place) -> None:
    alice, data = place.client(), place.web.files["/data"]
    image_id = alice.queued()
    answer = add(alice, image_id, place.web.url + "/data")
    assert (answer.status_code, answer.content) == (202, b"")
    image = alice.show(image_id)
    assert (image["status"], image["size"], image["virtual_size"], image["stores"]) == ("active", 9000, 9000, "web")
    until(lambda: alice.show(image_id)["os_hash_value"])
    image = alice.show(image_id)
    assert image["os_hash_algo"] == "sha512"
    assert image["os_hash_value"] == hashlib.sha512(data).hexdigest()
    assert image["checksum"] == hashlib.md5(data).hexdigest()
    task = tasks(alice, image_id)[0]
    assert (task["type"], task["status"], task["result"]) == ("location_import", "success", {"image_id": image_id})
    assert task["input"] == {"image_id": image_id, "loc_url": "***", "validation_data": {}}
    assert tasks(place.client("nova"), image_id)[0]["input"]["loc_url"] == place.web.url + "/data"
    assert alice.file(image_id).content == data
    assert alice.file(image_id, Range="bytes=10-19").content == data[10:20]
    assert alice.delete(image_id).status_code == 204
    assert place.web.files["/data"] == data


@pytest.mark.any_database
@pytest.mark.parametrize("ranged", [{}, {"Range": "bytes=0-9,100-8999"}], ids=["whole", "parts"])
def test_a_store_that_fails_in_the_middle_ends_the_answer_with_one_line_in_the_log(
    place: Place, ranged: dict[str, str]
) -> None:
    alice, data = place.client(), place.web.files["/data"]
    place.web.files["/broken"] = data
    image_id = alice.queued()
    assert add(alice, image_id, place.web.url + "/broken").status_code == 202
    until(lambda: alice.show(image_id)["os_hash_value"])

    def break_off(handler: Any) -> None:
        """The first ten bytes of what is wanted."""
        wanted = handler.headers["Range"]
        start, end = map(int, wanted.removeprefix("bytes=").split("-")) if wanted else (0, 8999)
        status = f"206 Partial Content\r\nContent-Range: bytes {start}-{end}/9000" if wanted else "200 OK"
        head = f"HTTP/1.1 {status}\r\nContent-Length: {end - start + 1}\r\n\r\n"
        place.web.raw(head.encode() + data[start : start + 10])(handler)

    place.web.files["/broken"] = break_off
    before = len(place.service.log)
    with pytest.raises(requests.RequestException):
        alice.file(image_id, **ranged)
    until(lambda: f"/v2/images/{image_id}/file: the answer broke off: " in place.service.log[before:])
    assert "Traceback" not in place.service.log[before:]


@pytest.mark.parametrize("algo", ["sha512", "sha256", "sha1", "md5"])
def test_data_with_its_hash_is_active_when_it_was_compared(place: Place, algo: str) -> None:
    alice, data = place.client(), place.web.files["/data"]
    image_id = alice.queued()
    assert add(alice, image_id, place.web.url + "/data", given(data, algo)).status_code == 202
    until(lambda: status(alice, image_id) == "active")
    image = alice.show(image_id)
    # A weak hash is compared, and a strong one is recorded.
    recorded = algo if algo.startswith("sha") and algo != "sha1" else "sha512"
    assert image["os_hash_algo"] == recorded
    assert image["os_hash_value"] == hashlib.new(recorded, data).hexdigest()
    assert (image["size"], image["checksum"]) == (len(data), hashlib.md5(data).hexdigest())


@pytest.mark.parametrize("algo", ["sha512", "md5"])
def test_data_with_another_hash_leaves_the_image_queued_and_the_data_where_it_is(place: Place, algo: str) -> None:
    alice = place.client()
    image_id = alice.queued()
    wrong = given(b"other data", algo)
    assert add(alice, image_id, place.web.url + "/data", wrong).status_code == 202
    until(lambda: status(alice, image_id) == "queued")
    image = alice.show(image_id)
    assert [image[name] for name in ("size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value")] == [None] * 5
    assert place.client("nova").get(f"/v2/images/{image_id}/locations").json() == []
    assert [(task["status"], "than was given" in task["message"] or "but the image says" in task["message"])
            for task in tasks(alice, image_id)] == [("failure", True)]  # fmt: skip
    assert alice.file(image_id).status_code == 204
    assert alice.put(image_id, b"its own").status_code == 204


MALFORMED = [
    "http://[::1", "http://[::1/x", "http://[zz]", "http://[zz]/x", "http://]/", "http://[/", "http://[::ffff:1.2.3.4/", "http://[::1]x/",
    "http://[v1.x]/", "http://[::1%25eth0]/x", "http://h:99999/", "http://h:x/", "http://h:0/", "http://h:-1/", "http://h:1:2/", "http:///x",
    "http://h/%", "http://h/%z", "http://h/%zz", "http://h/%00", "http://h/a%0Ab", "http://h/%7f", "http://h%00/x", "http://ho%73t/x",
    "http://h\u00f6st/x", "http://\u2100.example/x", "http://h/\u00e9", "http://h/a b", "http://h/a\nb", "http://h\\@x/", "http://h/\x7f", "http:",
    "https://[", "://h/x", "h/x", "", "nope://[zz]/x", "file://[zz]/x", "file:///%00", "memory://[::1", "memory://brief/%zz", "s3://[::1/b/o",
]  # fmt: skip


@pytest.mark.parametrize("url", MALFORMED)
@pytest.mark.parametrize("user", ["alice", "nova"])
def test_a_malformed_url_is_400(place: Place, user: str, url: str) -> None:
    image_id = place.client().queued()
    answer = add(place.client(user), image_id, url)
    assert answer.status_code == 400, answer.text
    assert "service failed" not in answer.text
    assert status(place.client(), image_id) == "queued"


@pytest.mark.parametrize("path", ["/data%", "/data%zz", "/data%00", "/data%0a"])
def test_a_url_with_a_broken_escape_is_refused_although_a_server_would_answer(place: Place, path: str) -> None:
    place.web.files[path] = b"some data"
    image_id = place.client().queued()
    answer = add(place.client(), image_id, place.web.url + path)
    assert (answer.status_code, "The URL is malformed" in answer.text) == (400, True)


def test_of_fifty_who_add_at_once_one_wins(place: Place) -> None:
    alice = place.client()
    image_id = alice.queued()
    for number in range(50):
        place.web.files[f"/r{number}"] = b"%d" % number * (number + 1)
    barrier, answers = threading.Barrier(50), {}

    def one(number: int) -> None:
        client = place.client()
        client.get(f"/v2/images/{image_id}")
        barrier.wait(timeout=60)
        hashed = given(place.web.files[f"/r{number}"]) if number % 2 else None
        answers[number] = add(client, image_id, f"{place.web.url}/r{number}", hashed).status_code

    threads = [threading.Thread(target=one, args=[number]) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number, code in answers.items() if code == 202]
    assert sorted(answers.values()) == [202] + [409] * 49
    until(lambda: alice.show(image_id)["os_hash_value"])
    data = place.web.files[f"/r{winners[0]}"]
    assert alice.file(image_id).content == data
    assert alice.show(image_id)["os_hash_value"] == hashlib.sha512(data).hexdigest()
    assert len(tasks(alice, image_id)) == 1
    found = place.client("nova").get(f"/v2/images/{image_id}/locations").json()
    assert found == [{"url": f"{place.web.url}/r{winners[0]}", "metadata": {"store": "web"}}]


def test_an_add_and_an_upload_at_once_leave_one_content(place: Place) -> None:
    alice = place.client()
    for _ in range(5):
        image_id, codes = alice.queued(), []
        ways = (
            partial(add, place.client(), url=place.web.url + "/data"),
            partial(place.client().put, data=b"uploaded"),
        )

        def go(way: Any, image_id: str = image_id, codes: list[int] = codes) -> None:
            codes.append(way(image_id=image_id).status_code)

        threads = [threading.Thread(target=go, args=[way]) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes) in ([202, 409], [204, 409])
        assert alice.file(image_id).content == (b"uploaded" if 204 in codes else place.web.files["/data"])


def test_only_a_queued_image_takes_a_location(place: Place) -> None:
    alice, service = place.client(), place.client("nova")
    image_id = alice.active(b"mine")
    for client in (alice, service, place.client("admin")):
        assert add(client, image_id, place.web.url + "/data").status_code == 409
    alice.request("POST", f"/v2/images/{image_id}/actions/deactivate")
    assert add(service, image_id, place.web.url + "/data").status_code == 409
    bare = alice.create(name="without formats").json()["id"]
    assert add(alice, bare, place.web.url + "/data").status_code == 400
    assert alice.file(image_id).status_code == 403
    for change in ("add", "replace", "remove"):
        step = {"op": change, "path": "/locations/-", "value": {"url": place.web.url + "/data", "metadata": {}}}
        assert place.client("admin").patch(image_id, step).status_code in (400, 403)
    assert place.client("admin").file(image_id).content == b"mine"


@pytest.mark.parametrize(
    ("user", "code"),
    [("alice", 202), ("manager", 202), ("admin", 202), ("service", 202), ("reader", 403), ("bob", 403), ("carol", 403)],
)
@pytest.mark.any_database
def test_who_may_add(place: Place, user: str, code: int) -> None:
    image_id = place.client().queued()
    place.client("admin").patch(image_id, {"op": "replace", "path": "/visibility", "value": "public"})
    assert add(place.client(user), image_id, place.web.url + "/data").status_code == code
    assert (status(place.client(), image_id) == "active") == (code == 202)


@pytest.mark.any_database
def test_who_may_not_see_the_image_learns_nothing(place: Place) -> None:
    image_id = place.client().queued()
    none = "99999999-2222-4333-8444-555555555555"
    for url in (place.web.url + "/data", "file:///etc/passwd", "rubbish"):
        told = add(place.client("bob"), image_id, url)
        assert told.status_code == 404
        assert told.text.replace(image_id, none) == add(place.client("bob"), none, url).text
    assert place.client("bob").get(f"/v2/images/{image_id}/locations").status_code == 404


@pytest.mark.parametrize(
    ("url", "member", "service"),
    [
        *((url, 403, 400) for url in (
            "file:///etc/passwd", "FILE:///etc/passwd", "filesystem:///x", "swift+config://ref1/c/o", "rbd://fsid/pool/i/snap",
            "s3://key:secret@host/bucket/key", "swift+https://t%3Au:key@host/v1/c/o", "cinder://fast/volume",
            "memory://other/x", "memory://brief/../x", "memory://brief/99999999-2222-4333-8444-555555555555",
            "vsphere://u:p@host/folder/x?dcPath=a",
        )),
        *((url, 400, 400) for url in (
            "http://u:p@{host}/data", "http://u@{host}/data", "http://:p@{host}/data", "http://{host}/data?X-Amz-Signature=ab",
            "http://{host}/data?token=x", "http://{host}/data?a=b&sig=c", "http://{host}/data?AWSAccessKeyId=x", "http://{host}/data#x",
            "http://{host}/data?a=1;password=x", "http://{host}/data?api_key=", "http://{host}/none", "http://{host}/empty",
            "http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://[::1]:{port}/", "http://0x7f000001:{port}/",
            "http://169.254.169.254/latest/meta-data/", "http://{host}/inside", "http://{host}/loop", "http://{host}:1/data",
            "https://{host}/data", "http://name.invalid/x", "http://{host}/d ata", "http", "http://{host}/" + "x" * 5000,
            "rubbish", "", "javascript:x", "://x", "\u00fc://x",
        )),
    ],
)  # fmt: skip
@pytest.mark.any_database
def test_urls_that_nobody_may_add(place: Place, url: str, member: int, service: int) -> None:
    web = place.web
    with trap() as inside:
        web.files |= {
            "/empty": b"",
            "/inside": web.leads(f"http://127.0.0.1:{inside.port}/"),
            "/loop": web.leads("/loop"),
        }
        url = url.format(host=f"{HOST}:{web.port}" if ":1/" not in url else HOST, port=inside.port)
        image_id = place.client().queued()
        for user, code in (("alice", member), ("nova", service)):
            answer = add(place.client(user), image_id, url)
            assert answer.status_code == code, answer.text
            assert "secret" not in answer.text
        assert inside.hits == 0
    assert place.client().show(image_id)["status"] == "queued"


@pytest.mark.parametrize(
    "body",
    [
        "{}", "[]", '"x"', '{"url": 1}', '{"url": null}', '{"url": ["x"]}', '{"uri": "http://x/"}', '{"url": "U", "metadata": {}}',
        '{"url": "U", "validation_data": {"os_hash_algo": "sha512"}}', '{"url": "U", "validation_data": {"os_hash_value": "ab"}}',
        '{"url": "U", "validation_data": {"os_hash_algo": "sha256", "os_hash_value": "ab"}}', '{"url": "U", "validation_data": "x"}',
        '{"url": "U", "validation_data": {"os_hash_algo": "crc32", "os_hash_value": "00000000"}}', '{"url": "U", "validation_data": 5}',
        '{"url": "U", "validation_data": {"os_hash_algo": "md5", "os_hash_value": "' + "g" * 32 + '"}}',
        '{"url": "U", "validation_data": {"os_hash_algo": "md5", "os_hash_value": "' + "a" * 32 + '", "checksum": "x"}}',
        '{"url": "U", "validation_data": {"os_hash_algo": ["md5"], "os_hash_value": "' + "a" * 32 + '"}}',
    ],
)  # fmt: skip
@pytest.mark.any_database
def test_bodies_that_are_refused(place: Place, body: str) -> None:
    alice = place.client()
    image_id = alice.queued()
    text = body.replace("U", place.web.url + "/data")
    answer = alice.request("POST", f"/v2/images/{image_id}/locations", data=text)
    assert answer.status_code == 400, answer.text
    assert status(alice, image_id) == "queued"


@pytest.mark.any_database
def test_what_is_too_large_or_unsafe_is_refused_before_it_is_active(place: Place) -> None:
    alice, web = place.client(), place.web
    web.files |= {"/large": web.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")}
    assert add(alice, alice.queued(), web.url + "/large").status_code == 413
    hostile = next(one for one in samples.HOSTILE if one.declared == "qcow2")
    web.files["/hostile"] = hostile.make()
    for hashed in (None, given(web.files["/hostile"])):
        image_id = alice.queued(disk_format="qcow2")
        assert add(alice, image_id, web.url + "/hostile", hashed).status_code == 415
        assert status(alice, image_id) == "queued"


def test_a_service_takes_over_what_lies_in_a_store_but_not_what_another_image_has(place: Place) -> None:
    alice, service = place.client(), place.client("nova")
    other = alice.queued()
    assert alice.put(other, b"in memory", x_image_meta_store="brief").status_code == 204
    image_id = alice.queued()
    assert add(service, image_id, f"memory://brief/{other}").status_code == 409
    assert alice.delete(other).status_code == 204
    assert add(service, image_id, f"memory://brief/{other}").status_code == 400
    assert status(alice, image_id) == "queued"


@pytest.mark.any_database
def test_files_are_added_by_nobody_even_in_a_store_of_ours(place: Place) -> None:
    image_id = place.client().queued()
    (place.service.state / "fast" / image_id).write_bytes(b"data")
    url = f"file://{place.service.state}/fast/{image_id}"
    codes = [add(place.client(user), image_id, url).status_code for user in ("alice", "admin", "nova")]
    assert codes == [403, 403, 400]
    assert status(place.client(), image_id) == "queued"


@pytest.mark.any_database
def test_locations_are_for_services(place: Place) -> None:
    alice = place.client()
    image_id, queued = alice.active(b"mine"), alice.queued()
    for user in ("nova", "admin"):
        client = place.client(user)
        found = client.get(f"/v2/images/{image_id}/locations")
        assert (found.status_code, found.headers["Content-Type"]) == (200, "application/json")
        path = f"file://{place.service.state}/fast/{image_id}"
        assert found.json() == [{"url": path, "metadata": {"store": "fast"}}]
        assert client.get(f"/v2/images/{queued}/locations").json() == []
    for user in ("alice", "manager", "reader"):
        assert place.client(user).get(f"/v2/images/{image_id}/locations").status_code == 403
    assert place.client("bob").get(f"/v2/images/{image_id}/locations").status_code == 404


@pytest.mark.any_database
def test_a_direct_url_is_for_services_whoever_asked_before(place: Place) -> None:
    """Records are remembered with the JSON that was made of them: what services see must not be."""
    alice, service = place.client(), place.client("nova")
    image_id = alice.active(b"mine", visibility="shared")
    path = f"file://{place.service.state}/fast/{image_id}"
    for _ in range(3):
        for user in ("alice", "nova", "admin", "alice", "reader"):
            client = place.client(user)
            listed = [
                one for one in client.get("/v2/images?limit=1000").json().get("images", []) if one["id"] == image_id
            ]
            for image in [client.show(image_id), *listed]:
                assert image.get("direct_url") == (path if user == "nova" else None), user
    assert "direct_url" not in service.show(alice.queued())
    alice.request("POST", f"/v2/images/{image_id}/actions/deactivate")
    assert "direct_url" not in service.show(image_id)
    assert service.get(f"/v2/images/{image_id}/locations").json() == []


def test_an_image_that_is_deleted_while_it_is_hashed_stops_the_reading(place: Place) -> None:
    alice = place.client()
    data = bytes(32 << 20)
    with serving(host=HOST, rate=4 << 20) as slow:
        slow.files["/slow"] = data
        for hashed in (given(data), None):
            image_id = alice.queued()
            assert add(alice, image_id, slow.url + "/slow", hashed).status_code == 202
            begun = slow.sent
            until(lambda: slow.sent > begun + (1 << 20))  # noqa: B023
            assert status(alice, image_id) == ("importing" if hashed else "active")
            assert alice.delete(image_id).status_code == 204
            time.sleep(1.5)
            stopped = slow.sent
            time.sleep(0.5)
            assert slow.sent == stopped < begun + len(data)
            assert alice.get(f"/v2/images/{image_id}").status_code == 404
            begun = stopped
    fresh = alice.queued()
    assert add(alice, fresh, place.web.url + "/data", given(place.web.files["/data"])).status_code == 202
    until(lambda: status(alice, fresh) == "active")


@pytest.mark.slow
def test_hashing_survives_kill_9(state: Path) -> None:
    conf = CONF.format(state=state).replace("poll = 0.1", "poll = 0.1\nhash_rate = 16")
    data = bytes(range(256)) * (32 << 10)
    with serving(host=HOST) as web, running(state, conf) as service:
        web.files["/data"] = data
        alice = service.client()
        right, wrong, plain = alice.queued(), alice.queued(), alice.queued()
        assert add(alice, right, web.url + "/data", given(data)).status_code == 202
        assert add(alice, wrong, web.url + "/data", given(b"")).status_code == 202
        assert add(alice, plain, web.url + "/data").status_code == 202
        assert alice.show(plain)["os_hash_algo"] == "sha512"  # which says that a hash will follow
        for _ in range(2):
            until(lambda: any("Range" in one.headers and one.method == "GET" for one in web.seen[6:]))
            web.seen[6:] = []
            service.kill()
            service.start()
        until(lambda: status(alice, right) == "active", 60)
        until(lambda: status(alice, wrong) == "queued", 60)
        until(lambda: alice.show(plain)["os_hash_value"], 60)
        for image_id in (right, plain):
            assert alice.show(image_id)["os_hash_value"] == hashlib.sha512(data).hexdigest()
        assert alice.show(wrong)["size"] is None
        assert alice.file(right).content == data
