"""A store of type s3 in a running service: uploads, ranges, copies, imports, deletes, and a server that is away."""

import contextlib
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from calotype.db.engine import Database, now
from calotype.db.tables import jobs
from tests.api.test_imports import accepted, stage, start, succeeds
from tests.stores.s3 import Buckets, hang, refuse, status
from tests.support import Service, running, until
from tests.webserver import serving

pytestmark = pytest.mark.slow

DATA = bytes(range(256)) * 4096 * 6  # 6 MiB: two parts
MORE = """\
[DEFAULT]
enabled_backends = one:s3, files:file
[files]
filesystem_store_datadir = {state}/files
[jobs]
poll = 0.1
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.3
"""


@pytest.fixture(scope="module")
def kit() -> Iterator[Buckets]:
    with contextlib.closing(Buckets()) as made:
        yield made


@pytest.fixture(scope="module")
def place(kit: Buckets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose default store is a bucket."""
    state = tmp_path_factory.mktemp("s3")
    conf = kit.configured().conf.replace("[DEFAULT]\nenabled_backends = one:s3\n", MORE.format(state=state))
    with running(state, f"{conf}s3_store_large_object_chunk_size = 5\nread_timeout = 20\n") as service:
        yield service


def test_an_image_is_uploaded_downloaded_in_ranges_and_deleted(place: Service, kit: Buckets) -> None:
    alice = place.client("alice")
    for size in (None, len(DATA)):
        image_id = alice.queued()
        data = iter([DATA[: 1 << 20], DATA[1 << 20 :]]) if size is None else DATA
        assert alice.put(image_id, data).status_code == 204
        shown = alice.show(image_id)
        assert (shown["status"], shown["size"], shown["stores"]) == ("active", len(DATA), "one")
        assert alice.file(image_id).content == DATA
        part = alice.file(image_id, Range=f"bytes=5000000-{len(DATA) - 2}")
        assert (part.status_code, part.content) == (206, DATA[5_000_000:-1])
        assert kit.left_over() == [image_id]
        assert alice.delete(image_id).status_code == 204
        assert kit.left_over() == []


def test_an_empty_image_and_a_broken_one(place: Service, kit: Buckets) -> None:
    alice = place.client("alice")
    image_id = alice.active(b"")
    assert alice.file(image_id).content == b""
    other = alice.queued()
    with kit.proxy.always(status(403, "QuotaExceeded"), "part"):
        refused = alice.put(other, DATA)
    assert refused.status_code == 413
    assert kit.bucket() not in refused.text
    assert alice.show(other)["status"] == "queued"
    assert alice.put(other, b"again").status_code == 204
    for one in (image_id, other):
        alice.delete(one)
    assert kit.left_over() == []


def test_images_are_imported_and_copied_into_and_out_of_a_bucket(place: Service, kit: Buckets) -> None:
    alice, admin = place.client("alice"), place.client("admin")
    direct, download = alice.queued(), alice.queued()
    assert stage(alice, direct, DATA).status_code == 204
    accepted(start(alice, direct, stores=["one", "files"]))
    assert set(succeeds(alice, direct)["stores"].split(",")) == {"one", "files"}
    with serving(host="127.0.0.3") as web:
        web.files["/disk"] = DATA
        accepted(start(alice, download, "web-download", uri=f"{web.url}/disk", stores=["one"]))
        assert succeeds(alice, download)["stores"] == "one"
    accepted(start(admin, download, "copy-image", stores=["files"]))
    assert succeeds(admin, download)["stores"] == "one,files"
    back = alice.queued()
    assert alice.put(back, DATA, **{"x-image-meta-store": "files"}).status_code == 204
    accepted(start(admin, back, "copy-image", stores=["one"]))
    assert succeeds(admin, back)["stores"] == "files,one"
    for image_id in (direct, download, back):
        for store in ("one", "files"):
            assert alice.get(f"/v2/images/{image_id}/file?prefer={store}").content == DATA
        assert alice.delete(image_id).status_code == 204
    assert kit.left_over() == []


def test_a_delete_while_the_server_is_away_is_done_later(place: Service, kit: Buckets) -> None:
    alice = place.client("alice")
    image_id = alice.active(b"some data")
    with kit.proxy.always(refuse):
        assert alice.delete(image_id).status_code == 204
        assert kit.left_over() == [image_id]
    db = Database(place.database_url)
    with db.write_once() as tx:
        tx.execute(sa.update(jobs).values(due_at=now()))  # it would be tried again in a minute
    db.close()
    until(lambda: kit.left_over() == [])


def test_a_server_that_hangs_holds_up_neither_lists_of_stores_nor_other_stores(place: Service, kit: Buckets) -> None:
    alice, admin = place.client("alice"), place.client("admin")
    with kit.proxy.always(hang):
        found = admin.get("/v2/info/stores/detail").json()["stores"]
        until(lambda: "error" in str(admin.get("/v2/info/stores/detail").json()["stores"][0]), 30)
        other = alice.queued()
        assert alice.put(other, DATA, **{"x-image-meta-store": "files"}).status_code == 204
    assert {one["id"] for one in found} == {"one", "files"}
    kit.proxy.well.set()
    assert alice.file(other).content == DATA


def test_nobody_is_shown_where_the_bucket_is(place: Service, kit: Buckets) -> None:
    shown = place.client("alice").get("/v2/info/stores").text + place.client("admin").get("/v2/info/stores/detail").text
    options = kit.options()
    assert options["s3_store_secret_key"] not in shown + place.log
    assert options["s3_store_access_key"] not in shown + place.log
