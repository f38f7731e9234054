"""Image data over HTTP: what goes in comes out, whole and in ranges, and from the store that was meant."""

import base64
import hashlib
import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import sqlalchemy as sa
from falcon import testing
from gunicorn.http.wsgi import FileWrapper

from calotype.db import tables
from calotype.db.engine import Database
from tests.inprocess import make_active, parts
from tests.support import PASSWORD, PATCH_21, Client, Service, second_copy, tool, until, write_users

pytestmark = pytest.mark.any_database

DATA = bytes(range(256)) * 4096 + b"tail"  # 1 MiB and 4 bytes


@pytest.fixture(scope="module")
def image(service: Service) -> str:
    return service.client("alice").active(DATA)


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20, (1 << 20) + 1, 5_000_001])
@pytest.mark.parametrize("chunked", [False, True])
def test_what_is_put_is_got(alice: Client, size: int, chunked: bool) -> None:
    data = os.urandom(size)
    image_id = alice.queued()

    def pieces() -> Iterator[bytes]:
        for start in range(0, size, 70_001):
            yield data[start : start + 70_001]

    assert alice.put(image_id, pieces() if chunked else data).status_code == 204
    image = alice.show(image_id)
    assert image["status"] == "active"
    assert image["size"] == size
    assert image["checksum"] == hashlib.md5(data).hexdigest()
    assert image["os_hash_algo"] == "sha512"
    assert image["os_hash_value"] == hashlib.sha512(data).hexdigest()
    assert image["stores"] == "fast"
    assert image["virtual_size"] == (size or None)
    got = alice.file(image_id)
    assert got.status_code == 200
    assert got.content == data
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["Content-MD5"] == image["checksum"]
    assert got.headers["ETag"] == f'"{image["os_hash_value"]}"'
    assert got.headers["Accept-Ranges"] == "bytes"
    alice.delete(image_id)


def test_two_sizes_that_differ_are_refused(alice: Client) -> None:
    """A client that repeats its request sends what is left of a file, and states the size of all of it."""
    image_id = alice.queued()
    refused = alice.put(image_id, DATA[:1000], x_openstack_image_size=str(len(DATA)))
    assert refused.status_code == 400
    assert f"has {len(DATA)} bytes, and brings 1000" in refused.text
    assert alice.put(image_id, DATA, x_openstack_image_size=str(len(DATA))).status_code == 204


def test_a_part_is_not_taken_for_the_whole(alice: Client) -> None:
    image_id = alice.queued()
    for part in ("bytes 5-9/10", "bytes */10", "pages 1-2/3"):
        assert alice.put(image_id, b"56789", Content_Range=part).status_code == 400
    assert alice.put(image_id, DATA, Content_Encoding="gzip").status_code == 415
    assert alice.show(image_id)["status"] == "queued"
    assert alice.put(image_id, b"0123456789", Content_Encoding="identity").status_code == 204


def test_an_upload_goes_to_the_store_that_it_names(service: Service, alice: Client) -> None:
    for store in ("cheap", "brief"):
        image_id = alice.queued()
        assert alice.put(image_id, DATA, x_image_meta_store=store).status_code == 204
        assert alice.show(image_id)["stores"] == store
        assert alice.file(image_id).content == DATA
        assert alice.file(image_id, Range="bytes=5-9").content == DATA[5:10]
        if store == "cheap":
            assert (service.state / "cheap" / image_id).read_bytes() == DATA
        assert alice.delete(image_id).status_code == 204


def test_the_stated_size_must_be_the_real_one(alice: Client) -> None:
    image_id = alice.queued()
    assert alice.put(image_id, iter([DATA]), x_openstack_image_size="7").status_code == 400
    assert alice.put(image_id, iter([DATA]), x_openstack_image_size=str(len(DATA) + 1)).status_code == 400
    assert alice.put(image_id, iter([DATA]), x_openstack_image_size="x").status_code == 400
    assert alice.show(image_id)["status"] == "queued"
    assert alice.put(image_id, iter([DATA]), x_openstack_image_size=str(len(DATA))).status_code == 204


@pytest.mark.parametrize(
    ("values", "headers", "data", "status"),
    [
        ({}, {"Content-Type": "text/plain"}, b"x", 415), ({}, {"x-image-meta-store": "nope"}, b"x", 400),
        ({"disk_format": None}, {}, b"x", 400), ({"container_format": None}, {}, b"x", 400),
        ({"disk_format": "qcow2"}, {}, DATA, 415), ({}, {}, b"x" * (67108864 + 1), 413),
        ({}, {"x-image-meta-store": "os_glance_staging_store"}, b"x", 400),
    ],
)  # fmt: skip
def test_a_refused_upload_leaves_the_image_queued(
    service: Service, alice: Client, values: dict[str, Any], headers: dict[str, str], data: bytes, status: int
) -> None:
    image_id = alice.queued(**values)
    answer = alice.put(image_id, data, **headers)
    assert answer.status_code == status, answer.text
    assert alice.show(image_id)["status"] == "queued"
    assert not [name for name in os.listdir(service.state / "fast") if image_id in name]


def test_an_active_image_takes_no_other_data(alice: Client, image: str) -> None:
    assert alice.put(image, b"other").status_code == 409
    assert alice.file(image).content == DATA


def test_an_image_without_data_has_none(alice: Client) -> None:
    image_id = alice.queued()
    got = alice.file(image_id)
    assert got.status_code == 204
    assert got.content == b""
    assert alice.request("HEAD", f"/v2/images/{image_id}/file").status_code == 204


# --- ranges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1), ("bytes=5-9", 5, 10), ("bytes=5-", 5, None), ("bytes=-4", -4, None), ("bytes=1048570-99999999", 1048570, None),
        ("bytes=-99999999", 0, None), ("bytes=0-", 0, None), ("bytes=1-2,3-4", 1, 5), ("bytes=4-6,1-4", 1, 7), ("BYTES=0-1", 0, 2),
        ("bytes=0-1,99999999-", 0, 2), ("bytes= 1-2 , 2-3", 1, 4),
    ],
)  # fmt: skip
def test_one_range_is_served_as_it_is_wanted(
    alice: Client, image: str, wanted: str, start: int, end: int | None
) -> None:
    expected = DATA[start:end]
    first = start if start >= 0 else len(DATA) + start
    got = alice.file(image, Range=wanted)
    assert got.status_code == 206
    assert got.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{len(DATA)}"
    assert got.headers["Content-Length"] == str(len(expected))
    assert "Content-MD5" not in got.headers
    assert got.content == expected


@pytest.mark.parametrize(
    "headers",
    [{"Range": "bytes=5-9"}, {"Range": "bytes=0-9,100-109"}, {"Range": "bytes=99999999-"}, {"Range": "bytes=x"},
     {"Content-Range": "bytes 0-9/10"}, {"Range": "bytes=5-9", "If-Range": '"other"'}],
)  # fmt: skip
def test_head_has_no_ranges(alice: Client, image: str, headers: dict[str, str]) -> None:
    got = alice.request("HEAD", f"/v2/images/{image}/file", headers=headers)
    assert (got.status_code, got.headers["Content-Length"]) == (200, str(len(DATA)))
    assert got.headers["Accept-Ranges"] == "bytes"
    assert "Content-Range" not in got.headers


def test_several_ranges_come_as_parts(alice: Client, image: str) -> None:
    got = alice.file(image, Range="bytes=0-9,100-109,-3")
    assert got.status_code == 206
    boundary = re.fullmatch(r"multipart/byteranges; boundary=(\w+)", got.headers["Content-Type"])
    assert boundary
    parts = got.content.split(f"\r\n--{boundary[1]}".encode())
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    found = []
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        found.append((re.search(rb"Content-Range: bytes ([^\r]+)", head)[1].decode(), content))  # type: ignore[index]
    size = len(DATA)
    assert found == [
        (f"0-9/{size}", DATA[:10]),
        (f"100-109/{size}", DATA[100:110]),
        (f"{size - 3}-{size - 1}/{size}", DATA[-3:]),
    ]


def test_parameters_and_letter_case_of_the_media_type_are_passed_over(alice: Client) -> None:
    for media in ("application/octet-stream; charset=binary", "Application/Octet-Stream"):
        image_id = alice.queued()
        assert alice.put(image_id, DATA, Content_Type=media).status_code == 204
        assert alice.file(image_id).content == DATA


@pytest.mark.parametrize(
    "wanted",
    ["bytes=99999999-", "bytes=9-5", "bytes=x-y", "bytes=", "bytes=-0", "bytes=--1", "bytes=1-2-3", "bytes=" + "9" * 5000,
     "bytes=" + ",".join(f"{n * 10}-{n * 10 + 1}" for n in range(33))],
)  # fmt: skip
def test_a_range_that_cannot_be_served_is_416_with_the_size(alice: Client, image: str, wanted: str) -> None:
    got = alice.file(image, Range=wanted, Accept="application/json")
    assert got.status_code == 416
    assert got.headers["Content-Type"] == "application/json"
    assert got.json()["title"] == "Request Range Not Satisfiable"
    assert got.headers["Content-Range"] == f"bytes */{len(DATA)}"


def test_other_units_are_ignored(alice: Client, image: str) -> None:
    assert alice.file(image, Range="lines=1-2").status_code == 200


def test_conditions_are_answered_by_the_hash(alice: Client, image: str) -> None:
    etag = alice.file(image).headers["ETag"]
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        got = alice.file(image, If_None_Match=given)
        assert got.status_code == 304
        assert got.headers["ETag"] == etag
        assert got.content == b""
    assert alice.file(image, If_None_Match='"other"').status_code == 200
    assert alice.file(image, Range="bytes=0-1", If_Range=etag).status_code == 206
    for stale in ('"other"', f"W/{etag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert alice.file(image, Range="bytes=0-1", If_Range=stale).status_code == 200


def test_a_condition_that_does_not_hold_is_412(alice: Client, image: str) -> None:
    path = f"/v2/images/{image}/file"
    etag = alice.file(image).headers["ETag"]
    for given in ('"other"', f"W/{etag}", "x", ""):
        for method in ("GET", "HEAD"):
            for more in ({}, {"Range": "bytes=0-1"}, {"If-None-Match": etag}):
                got = alice.request(method, path, headers={"If-Match": given, **more})
                assert got.status_code == 412, (given, method, more)
                assert "ETag" not in got.headers
    for given in (etag, f'"other", {etag}', "*"):
        assert alice.file(image, If_Match=given).content == DATA
        assert alice.file(image, If_Match=given, Range="bytes=0-1").content == DATA[:2]
    assert alice.file(str(uuid.uuid4()), If_Match="x").status_code == 404
    # Nothing has Last-Modified.
    for name in ("If_Unmodified_Since", "If_Modified_Since"):
        assert alice.file(image, **{name: "Wed, 21 Oct 2015 07:28:00 GMT"}).status_code == 200
    queued = alice.queued()
    assert alice.file(queued, If_Match="*").status_code == 412
    assert alice.file(queued, If_None_Match="*").status_code == 204


def test_a_condition_that_does_not_hold_changes_nothing(alice: Client) -> None:
    image_id = alice.queued(name="before", tags=["old"])
    path = f"/v2/images/{image_id}"
    patch = json.dumps([{"op": "replace", "path": "/name", "value": "after"}])
    for headers in ({"If-Match": '"x"'}, {"If-Match": ""}, {"If-None-Match": "*"}, {"If-None-Match": '"x", *'}):
        assert alice.request("PATCH", path, data=patch, headers=PATCH_21 | headers).status_code == 412
        for method, of in (
            ("DELETE", path),
            ("PUT", f"{path}/tags/new"),
            ("DELETE", f"{path}/tags/old"),
            ("POST", "/v2/images"),
        ):
            assert (
                alice.request(method, of, headers=headers, json={} if method == "POST" else None).status_code == 412
            ), method
    for given in ('"x"', "*"):
        assert alice.put(image_id, DATA, If_Match=given).status_code == 412, "there is no data yet"
    image = alice.show(image_id)
    assert (image["name"], image["tags"], image["status"]) == ("before", ["old"], "queued")
    fine = {"If-Match": "*", "If-None-Match": '"x"', "If-Unmodified-Since": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert alice.request("PATCH", path, data=patch, headers=PATCH_21 | fine).json()["name"] == "after"
    assert alice.put(image_id, DATA, If_None_Match="*").status_code == 204
    # Who may not know what there is, or asks for what there is not, hears of no condition.
    assert alice.request("BREW", path, headers={"If-Match": '"x"'}).status_code == 501
    assert alice.request("POST", path, headers={"If-Match": '"x"'}).status_code == 405


def test_the_old_way_to_ask_for_a_range_works(alice: Client, image: str) -> None:
    assert alice.file(image, Content_Range=f"bytes 5-9/{len(DATA)}").content == DATA[5:10]
    for wrong in ("bytes 9-5/1", "bytes 0-9/5", "bytes 0-9/9"):
        assert alice.file(image, Content_Range=wrong).status_code == 416


def test_head_tells_what_get_would(alice: Client, image: str) -> None:
    head, got = alice.request("HEAD", f"/v2/images/{image}/file"), alice.file(image)
    skip = ("Date", "x-openstack-request-id")
    assert {k: v for k, v in head.headers.items() if k not in skip} == {
        k: v for k, v in got.headers.items() if k not in skip
    }
    assert head.content == b""


def test_a_file_in_ranges_of_a_real_client_is_whole(alice: Client, image: str) -> None:
    digest = hashlib.sha256()
    for start in range(0, len(DATA), 100_000):
        digest.update(alice.file(image, Range=f"bytes={start}-{start + 99_999}").content)
    assert digest.digest() == hashlib.sha256(DATA).digest()


# --- several copies --------------------------------------------------------------------------------------


def test_where_sendfile_cannot_go_the_server_reads_a_file_in_steps_of_a_mib(tmp_path: Path) -> None:
    write_users(tmp_path / "users.json")
    with parts(tmp_path, f"sqlite:///{tmp_path}/calotype.db") as app:
        path = f"/v2/images/{make_active(app, content=DATA)}/file"
        alice = "Basic " + base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
        environ = testing.create_environ(path, headers={"Authorization": alice}, file_wrapper=FileWrapper)
        environ["SERVER_SOFTWARE"] = "gunicorn/27"
        answer = app.wsgi(environ, lambda *_: None)
        assert isinstance(answer, FileWrapper)  # which gunicorn sends by sendfile if it can
        assert [len(piece) for piece in answer] == [1 << 20, 4]
        answer.close()


def test_the_heaviest_copy_is_read_first_unless_one_is_preferred(service: Service, alice: Client) -> None:
    image_id = alice.active(b"from-fast")
    second_copy(service, image_id)
    (service.state / "cheap" / image_id).write_bytes(b"fromcheap")
    path = f"/v2/images/{image_id}/file"
    assert alice.show(image_id)["stores"] == "fast,cheap"
    assert alice.get(path).content == b"from-fast"
    for prefer, expected in (
        ("cheap", b"fromcheap"), ("cheap,fast", b"fromcheap"), ("fast,cheap", b"from-fast"), ("brief", b"from-fast"),
        ("brief,cheap", b"fromcheap"),
    ):  # fmt: skip
        assert alice.get(f"{path}?prefer={prefer}").content == expected, prefer
    assert alice.get(f"{path}?prefer=nope").status_code == 400
    (service.state / "fast" / image_id).unlink()
    assert alice.get(path).content == b"fromcheap"  # a copy that cannot be read gives way to the next
    alice.delete(image_id)


def test_a_copy_can_be_taken_out_of_a_store_but_not_the_last(service: Service, alice: Client, admin: Client) -> None:
    image_id = alice.active(b"data")
    assert admin.request("DELETE", f"/v2/stores/fast/{image_id}").status_code == 403
    assert admin.request("DELETE", f"/v2/stores/cheap/{image_id}").status_code == 404
    second_copy(service, image_id)
    assert alice.request("DELETE", f"/v2/stores/cheap/{image_id}").status_code == 403
    assert admin.request("DELETE", f"/v2/stores/nope/{image_id}").status_code == 409
    assert admin.request("DELETE", f"/v2/stores/fast/{uuid.uuid4()}").status_code == 404
    assert admin.request("DELETE", f"/v2/stores/fast/{image_id}").status_code == 204
    assert not (service.state / "fast" / image_id).exists()
    assert alice.show(image_id)["stores"] == "cheap"
    assert alice.file(image_id).content == b"data"
    assert admin.request("DELETE", f"/v2/stores/cheap/{image_id}").status_code == 403


# --- records without a size ------------------------------------------------------------------------------


NO_DIGESTS = dict.fromkeys(("checksum", "os_hash_algo", "os_hash_value"))


def records(service: Service, image_id: str, **values: Any) -> None:
    """What a record that was taken over from Glance may say."""
    database = Database(service.database_url)
    with database.write_once() as tx:
        tx.execute(sa.update(tables.images).where(tables.images.c.id == image_id).values(**values))
    database.close()


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("size", [None, 0])
def test_data_whose_size_is_not_on_record_is_as_large_as_its_store_says(
    service: Service, alice: Client, size: int | None, digests: bool
) -> None:
    image_id = alice.active(DATA)
    etag = f'"{hashlib.sha512(DATA).hexdigest()}"'
    records(service, image_id, size=size, **({} if digests else NO_DIGESTS))
    path = f"/v2/images/{image_id}/file"
    assert alice.show(image_id)["size"] == size
    assert image_id in [image["id"] for image in alice.get("/v2/images?sort=size:asc&limit=1000").json()["images"]]
    got, head = alice.get(path), alice.request("HEAD", path)
    assert (got.status_code, got.content) == (200, DATA)
    assert head.headers["Content-Length"] == got.headers["Content-Length"] == str(len(DATA))
    assert got.headers.get("ETag") == (etag if digests else None)
    for wanted, part in (("bytes=5-9", DATA[5:10]), ("bytes=-4", DATA[-4:]), ("bytes=1048576-", DATA[1 << 20 :])):
        found = alice.get(path, headers={"Range": wanted, **({"If-Range": etag} if digests else {})})
        assert (found.status_code, found.content) == (206, part)
        assert found.headers["Content-Range"].endswith(f"/{len(DATA)}")
    several = alice.get(path, headers={"Range": "bytes=0-1,10-11"})
    assert several.status_code == 206
    assert len(several.content) == int(several.headers["Content-Length"])
    assert DATA[10:12] in several.content
    beyond = alice.get(path, headers={"Range": f"bytes={len(DATA)}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")
    assert alice.get(path, headers={"If-None-Match": etag}).status_code == (304 if digests else 200)
    alice.delete(image_id)


@pytest.mark.parametrize(
    ("recorded", "digests", "stored", "status"),
    [
        (None, DATA, None, 503), (0, DATA, None, 503), (None, None, b"", 503), (None, b"", b"", 503), (0, DATA, b"", 503),
        (0, b"", b"x", 503), (None, b"", b"x", 503), (0, b"", b"", 200), (0, None, b"", 200), (0, None, b"x", 200),
    ],
)  # fmt: skip
def test_nobody_is_sent_nothing_for_data_whose_size_is_not_known(
    service: Service, alice: Client, recorded: int | None, digests: bytes | None, stored: bytes | None, status: int
) -> None:
    """Unless there is nothing, by all that is known. Digests tell whether a size of 0 is meant."""
    image_id = alice.active(digests or b"")
    records(service, image_id, size=recorded, **(NO_DIGESTS if digests is None else {}))
    file = service.state / "fast" / image_id
    if stored is None:
        file.unlink()
    else:
        file.write_bytes(stored)
    for method in ("GET", "HEAD"):
        for headers in ({}, {"Range": "bytes=0-0"}):
            if stored == b"" and headers and status == 200:
                continue
            found = alice.request(method, f"/v2/images/{image_id}/file", headers=headers)
            assert found.status_code == (206 if headers and status == 200 and method == "GET" else status)
            assert method == "HEAD" or status != 200 or found.content == stored
    alice.delete(image_id)


def test_of_copies_that_disagree_the_first_that_can_be_read_is_sent_whole(service: Service, alice: Client) -> None:
    image_id = alice.active(b"the first one")
    second_copy(service, image_id)
    records(service, image_id, size=None)
    path, fast = f"/v2/images/{image_id}/file", service.state / "fast" / image_id
    (service.state / "cheap" / image_id).write_bytes(b"another")
    assert alice.get(path).content == b"the first one"
    assert alice.get(f"{path}?prefer=cheap").content == b"another"
    fast.write_bytes(b"")  # a copy that can be none gives way as one that is not there does
    assert alice.get(path).content == b"another"
    fast.unlink()
    found = alice.get(path, headers={"Range": "bytes=-3"})
    assert (found.content, found.headers["Content-Range"]) == (b"her", "bytes 4-6/7")
    alice.delete(image_id)


# --- sendfile --------------------------------------------------------------------------------------------


@pytest.mark.needs("strace")
def test_downloads_leave_by_sendfile(service: Service, alice: Client, tmp_path: Path) -> None:
    """Through the whole stack, authentication and all; ranges too. What wraps the answer on its way loses this."""
    image_id = alice.active(os.urandom(3_000_000))

    def download() -> None:
        assert len(alice.file(image_id).content) == 3_000_000
        assert len(alice.file(image_id, Range="bytes=1000000-2000000").content) == 1_000_001

    by_sendfile(service, tmp_path / "trace", download, 3_000_000 + 1_000_001)


def by_sendfile(service: Service, trace: Path, work: Callable[[], None], count: int) -> None:
    """A service with one worker sends so many bytes by sendfile meanwhile."""
    assert service.process
    worker = psutil.Process(service.process.pid).children()[0].pid

    def sent() -> int:
        lines = (line for line in trace.read_text().splitlines() if "sendfile" in line)
        return sum(int(found[1]) for line in lines if (found := re.search(r"\) += (\d+)$", line)))

    tracer = subprocess.Popen(
        [tool("strace"), "-f", "-qq", "-p", str(worker), "-e", "trace=sendfile,openat", "-o", str(trace)],
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            requests.get(f"{service.url}/healthcheck", timeout=60)
            if f"TracerPid:\t{tracer.pid}" in open(f"/proc/{worker}/status").read():  # noqa: SIM115
                break
            time.sleep(0.05)
        work()
        until(lambda: sent() >= count)  # it is written down a moment after the client has its last byte
    finally:
        tracer.terminate()
        tracer.wait(timeout=10)
    assert sent() == count
