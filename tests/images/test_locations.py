"""Adding locations from within: every kind of file, data that changes while it is read, jobs that fail and go on."""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import errors, net
from calotype.app import App
from calotype.auth import keystone
from calotype.context import SERVICE, Context
from calotype.db import images as db_images
from calotype.db import jobs, tables
from calotype.db import tasks as db_tasks
from calotype.db.engine import Tx, now
from calotype.images import lifecycle, locations, tasks
from calotype.images.lifecycle import NewImage
from calotype.images.locations import Given, without_secrets
from calotype.images.sources import Pace
from calotype.jobs.worker import Runner
from calotype.model import Change, Image
from calotype.policy import Policy, image_target
from tests.images.samples import GOOD, HOSTILE
from tests.inprocess import ALICE, BOB, backlog, parts
from tests.stores.suite import write
from tests.support import until
from tests.webserver import WebServer, serving

NOVA = Context("req-4", "nova", "red", frozenset({"member", "service"}))
CONF = """\
[DEFAULT]
enabled_backends = one:file, web:http, brief:memory
show_image_direct_url = true
{more}
[glance_store]
default_backend = one
[one]
filesystem_store_datadir = {path}/one
[jobs]
hash_rate = {rate}
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.3, 127.0.0.4
"""


@contextlib.contextmanager
def service(path: Path, *, more: str = "", rate: int = 0, stores: str = "") -> Iterator[App]:
    conf = CONF.replace("{more}", more).replace("{rate}", str(rate)) + stores
    with parts(path, f"sqlite:///{path / 'c.db'}", conf) as app:
        yield app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with service(tmp_path) as app:
        yield app


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as web:
        yield web


def queued(app: App, disk_format: str = "raw", container_format: str = "bare") -> str:
    new = NewImage(disk_format=disk_format, container_format=container_format)
    return lifecycle.create(app.service, ALICE, new).id


def show(app: App, image_id: str) -> Image:
    return lifecycle.show(app.service, ALICE, image_id)


def kept(app: App, content: bytes, name: str = "99999999-2222-4333-8444-555555555555") -> str:
    """The URL of an object that somebody else put into the store in memory."""
    store = app.service.stores.get("brief")
    assert store
    with contextlib.suppress(errors.Missing):
        store.delete(f"memory://brief/{name}", ctx=SERVICE)
    return write(store, [content], name)


def work_off(app: App) -> None:
    """Do all jobs that are due, the long ones to their end."""
    runner = Runner(app.service, 1)
    busy = True
    while busy or runner.transfers:
        busy = bool(runner.transfers)  # then it may have left something
        busy |= runner.run_due_jobs() > 0
        time.sleep(0.005)


def given(content: bytes) -> Given:
    return Given("sha256", hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("hashed", [False, True])
def test_data_without_the_signature_of_any_format_passes_and_that_of_another_one_does_not(
    app: App, hashed: bool
) -> None:
    plain, other = b"\x01\x02" * 5000, next(one for one in GOOD if one.declared == "qcow2").make()
    passes, refused = queued(app, "qcow2"), queued(app, "vmdk")
    locations.add(app.service, NOVA, passes, kept(app, plain), given(plain) if hashed else None)
    with pytest.raises(errors.ContentRejected):
        url = kept(app, other, "99999999-2222-4333-8444-777777777777")
        locations.add(app.service, NOVA, refused, url, given(other) if hashed else None)
    work_off(app)
    assert (show(app, passes).status, show(app, refused).status) == ("active", "queued")


#: What tells formats. Data with none of these is plain: nobody reads in it what is not there.
SIGNATURES = (
    *(b"QFI\xfb", b"QED\x00", b"conectix", b"vhdxfile", b"KDMV", b"# Disk Desc", b"\x7f\x10\xda\xbe", b"CD001"),
    *(b"LUKS", b"EFI PART", b"createType", b"COWD"),
)


def test_good_files_become_active_and_hostile_ones_never(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some can only be judged at their end; no image is active before that. CALOTYPE_EVERY=1 takes all files."""
    every = int(os.environ.get("CALOTYPE_EVERY", "6"))
    monkeypatch.setattr(locations, "_HEAD", 64 << 10)  # most of these files are short
    late = 0
    for number, sample in enumerate([one for one in [*GOOD, *HOSTILE] if one.declared != "luks"][::every]):
        content, hashed = sample.make(), number % 2 == 1
        if len(content) > 16 << 20:
            continue
        name = f"99999999-2222-4333-8444-{number:012}"
        url = kept(app, content, name) if content else ""
        image_id = queued(app, sample.declared, sample.container_format)
        refused = False
        try:
            locations.add(app.service, NOVA, image_id, url, given(content) if hashed else None)
        except (errors.ContentRejected, errors.Invalid):
            refused = True
        before = show(app, image_id)
        late += not refused and not hashed and before.status == "importing"
        work_off(app)
        after = show(app, image_id)
        good = any(sample is one for one in GOOD) and bool(content)
        plain = (
            sample.name.split("-")[0] in ("whole", "cut", "zeros")
            and sample.declared != "raw"
            and content[510:512] != b"\x55\xaa"
            and not any(
                signature in content[: None if len(content) >= 34 << 10 else 32 << 10] for signature in SIGNATURES
            )
        )
        expected = "active" if good or (plain and content) else "queued"
        assert after.status == expected, f"{sample}: {before.status}, {after.status}"
        assert before.status in {"queued", "importing", after.status}, sample
        if good:
            assert after.os_hash_value == hashlib.new(after.os_hash_algo or "", content).hexdigest()
            assert after.size == len(content)
        lifecycle.delete(app.service, ALICE, image_id)
    assert late > 0
    assert backlog(app) == 0


def test_hashes_are_taken_as_given_where_nothing_is_to_be_read(tmp_path: Path) -> None:
    with service(tmp_path, more="do_secure_hash = false") as app:
        image_id, other = queued(app), queued(app)
        locations.add(app.service, NOVA, image_id, kept(app, b"data"), Given("md5", "ab" * 16))
        image = show(app, image_id)
        assert (image.status, image.os_hash_algo, image.os_hash_value, image.checksum) == (
            "active",
            "md5",
            "ab" * 16,
            None,
        )
        url = kept(app, b"more", "99999999-2222-4333-8444-555555555556")
        locations.add(app.service, NOVA, other, url, None)
        image = show(app, other)
        assert (image.status, image.os_hash_algo, image.os_hash_value, image.size) == ("active", None, None, 4)
        assert backlog(app) == 0
        for one in (image_id, other):
            assert [task.status for task in tasks.of_image(app.service, ALICE, one)] == ["success"]


def test_what_shows_another_face_later_is_taken_out_of_service(app: App, web: WebServer) -> None:
    """A web server may serve the check something else than the users."""
    hostile = next(one for one in HOSTILE if one.declared == "qcow2").make()
    web.files["/x"] = bytes(len(hostile))
    image_id = queued(app)
    locations.add(app.service, ALICE, image_id, web.url + "/x", None)
    assert show(app, image_id).status == "active"
    web.files["/x"] = (
        next(one for one in HOSTILE if one.declared == "raw").make().ljust(len(hostile), b"\0")[: len(hostile)]
    )
    work_off(app)
    image = show(app, image_id)
    assert (image.status, image.os_hash_algo, image.os_hash_value) == ("deactivated", None, None)


def test_a_request_waits_for_first_bytes_no_longer_than_it_should(tmp_path: Path, web: WebServer) -> None:
    web.files["/x"] = bytes(30 << 20)
    web.rate = 1 << 20
    with service(tmp_path, stores="[web]\nhttp_fetch_timeout = 1\n") as app:
        image_id = queued(app)
        begun = time.monotonic()
        with pytest.raises(errors.Invalid, match="too slow"):
            locations.add(app.service, ALICE, image_id, web.url + "/x", None)
        assert time.monotonic() - begun < 15  # to read all would take 30 s
        assert show(app, image_id).status == "queued"


def test_who_finds_too_many_waiting_for_a_server_is_told_to_come_again(tmp_path: Path, web: WebServer) -> None:
    """And nobody else: neither who wants something of another server, nor who downloads what lies elsewhere too."""
    over = threading.Event()
    web.files |= {"/slow": lambda _: over.wait(20), "/x": b"data"}
    with (
        serving(host="127.0.0.4") as other,
        service(tmp_path, stores="[web]\nhttp_fetches_per_host = 2\n") as app,
        ThreadPoolExecutor(2) as threads,
    ):
        other.files["/x"] = b"more"
        ids = [queued(app) for _ in range(4)]
        waiting = [threads.submit(locations.add, app.service, ALICE, one, web.url + "/slow", None) for one in ids[:2]]
        until(lambda: len(web.seen) == 2)
        with pytest.raises(errors.StoreBusy):
            locations.add(app.service, ALICE, ids[2], web.url + "/x", None)
        locations.add(app.service, ALICE, ids[3], other.url + "/x", None)
        assert [show(app, one).status for one in ids] == ["queued"] * 3 + ["active"]
        over.set()
        assert all(isinstance(one.exception(), errors.Invalid) for one in waiting)
        locations.add(app.service, ALICE, ids[2], web.url + "/x", None)


def test_of_two_images_that_get_the_same_data_at_once_one_gets_it(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = CONF.replace("{more}", "").replace("{rate}", "0")
    with parts(tmp_path, database_url, conf) as app:
        url = kept(app, b"data")
        ids = [queued(app), queued(app)]
        taken, both = db_images.is_used_elsewhere, threading.Barrier(2)

        def slowly(tx: Tx, url: str, image_id: str) -> bool:
            found = taken(tx, url, image_id)
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.3)
            return found

        monkeypatch.setattr(db_images, "is_used_elsewhere", slowly)
        with ThreadPoolExecutor(2) as threads:
            added = [threads.submit(locations.add, app.service, NOVA, one, url, None) for one in ids]
        assert {type(one.exception()) for one in added} == {type(None), errors.Conflict}
        assert sorted(show(app, one).status for one in ids) == ["active", "queued"]


def test_formats_that_change_while_the_data_is_read_leave_the_image_queued(app: App) -> None:
    image_id = queued(app)
    locations.add(app.service, NOVA, image_id, kept(app, b"data"), given(b"data"))
    assert show(app, image_id).status == "importing"
    lifecycle.update(app.service, ALICE, image_id, [Change("replace", "disk_format", "qcow2")])
    work_off(app)
    image = show(app, image_id)
    assert (image.status, image.locations, backlog(app)) == ("queued", (), 0)


def test_a_url_that_another_image_got_meanwhile_leaves_the_image_queued(app: App) -> None:
    first, second = queued(app), queued(app)
    url = kept(app, b"data")
    for image_id in (first, second):
        locations.add(app.service, NOVA, image_id, url, given(b"data"))
    work_off(app)
    assert sorted([show(app, first).status, show(app, second).status]) == ["active", "queued"]


def test_hashing_is_tried_again_and_then_given_up(app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "backoff", lambda job: jobs.timedelta(0))
    data = b"d" * (1 << 20)
    web.files["/x"] = data
    plain, hashed = queued(app), queued(app)
    locations.add(app.service, ALICE, plain, web.url + "/x", None)
    locations.add(app.service, ALICE, hashed, web.url + "/x", given(data))
    web.files["/x"] = web.raw(
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-1048575/1048576\r\nContent-Length: 1048576\r\n\r\nx"
    )
    web.seen.clear()
    work_off(app)
    assert len(web.seen) == 2 * 4  # http_retries, and the first one
    assert (show(app, plain).status, show(app, plain).os_hash_algo, show(app, plain).os_hash_value) == (
        "active",
        None,
        None,
    )
    assert (show(app, hashed).status, show(app, hashed).locations) == ("queued", ())
    assert backlog(app) == 0
    third = queued(app)
    web.files["/y"] = data
    locations.add(app.service, ALICE, third, web.url + "/y", None)
    web.files["/y"] = web.raw(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
    runner = Runner(app.service, 1)
    runner.run_due_jobs()
    until(lambda: not runner.transfers)
    web.files["/y"] = data
    work_off(app)
    assert show(app, third).os_hash_value == hashlib.sha512(data).hexdigest()


@pytest.mark.parametrize("hashed", [False, True])
def test_hashing_data_of_a_host_that_is_refused_fails_at_once_with_the_reason(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, hashed: bool
) -> None:
    """The name was resolved to an address that is allowed when the location was added, and then to another one."""
    data = b"d" * (1 << 20)
    web.files["/x"] = data
    image_id = queued(app)
    locations.add(app.service, ALICE, image_id, web.url + "/x", given(data) if hashed else None)
    asked: list[str] = []

    def refuse(_filters: net.Filters, target: net.Target, _address: net.Address) -> None:
        asked.append(target.host)
        raise errors.UrlRefused("The host of the URL has an address that this service does not connect to.")

    monkeypatch.setattr(net.Filters, "check_address", refuse)
    work_off(app)
    assert asked == ["127.0.0.3"], "once, and not again"
    assert backlog(app) == 0
    image = show(app, image_id)
    assert (image.status, image.os_hash_algo) == ("queued" if hashed else "active", None)
    (task,) = tasks.of_image(app.service, ALICE, image_id)
    assert (task.status, task.message) == (
        "failure", "The host of the URL has an address that this service does not connect to.",
    )  # fmt: skip


@pytest.mark.parametrize("hashed", [False, True])
def test_data_that_drips_fails_soon_with_the_reason(
    app: App, web: WebServer, monkeypatch: pytest.MonkeyPatch, hashed: bool
) -> None:
    """A server of 1.3 KB/s, against which other limits do nothing; the window is short here."""
    data, over = b"d" * (1 << 20), threading.Event()
    web.files["/x"] = data
    image_id = queued(app)
    locations.add(app.service, ALICE, image_id, web.url + "/x", given(data) if hashed else None)

    def drips(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n")
        with contextlib.suppress(OSError):
            while not over.wait(0.1):
                handler.wfile.write(b"d" * 130)

    web.files["/x"] = drips
    web.seen.clear()
    monkeypatch.setattr(locations, "Pace", partial(Pace, window=1.0))
    try:
        work_off(app)
    finally:
        over.set()
    assert len(web.seen) == 1, "it gets no other try"
    assert backlog(app) == 0
    image = show(app, image_id)
    assert (image.status, image.os_hash_algo) == ("queued" if hashed else "active", None)
    (task,) = tasks.of_image(app.service, ALICE, image_id)
    assert task.status == "failure"
    assert task.message.startswith("The data came too slowly: fewer than 65536 bytes a second")


def test_a_long_job_keeps_to_its_rate_and_nobody_else_from_working(tmp_path: Path) -> None:
    with service(tmp_path, rate=2) as app:
        data = bytes(3 << 20)
        image_id = queued(app)
        locations.add(app.service, NOVA, image_id, kept(app, data), given(data))
        orphan = queued(app)
        begun = time.monotonic()
        runner = Runner(app.service, 1)
        assert runner.run_due_jobs() == 1
        with app.db.write_once() as tx:
            db_images.move(tx, orphan, "queued", "saving", now=now())
            jobs.submit(tx, "upload", orphan, {})
        assert runner.run_due_jobs() == 1
        assert show(app, orphan).status == "queued"
        assert runner.transfers
        assert show(app, image_id).status == "importing"
        until(lambda: not runner.transfers)
        assert time.monotonic() - begun > 1.2
        assert show(app, image_id).status == "active"


def test_an_image_that_is_deleted_while_it_waits_to_be_read_keeps_nothing(tmp_path: Path, database_url: str) -> None:
    """However long those take that are to be read before it."""
    conf = CONF.replace("{more}", "").replace("{rate}", "0")
    with parts(tmp_path, database_url, conf) as app:
        image_id, other = queued(app), queued(app)
        for one, content in ((image_id, b"data"), (other, b"more data")):
            url = kept(app, content, one)
            locations.add(app.service, NOVA, one, url, given(content))
        lifecycle.delete(app.service, ALICE, image_id)
        with app.db.read_once() as tx:
            assert tx.execute(sa.select(tables.jobs.c.image_id, tables.jobs.c.reserved)).all() == [(other, 9)]
            task = next(one for one in db_tasks.page(tx, SERVICE, limit=9, now=now()) if one.image_id == image_id)
        assert task.status == "failure"
        work_off(app)
        assert show(app, other).status == "active"


def test_a_runner_that_ends_leaves_its_long_job_to_the_next(tmp_path: Path) -> None:
    with service(tmp_path, rate=1) as app:
        data = bytes(30 << 20)
        image_id = queued(app)
        locations.add(app.service, NOVA, image_id, kept(app, data), given(data))
        runner = Runner(app.service, 0.05)
        runner.start()
        until(lambda: runner.transfers)
        begun = time.monotonic()
        runner.stop()
        assert time.monotonic() - begun < 10
        assert not runner.transfers
        assert backlog(app) == 1
        with app.db.write_once() as tx:
            assert jobs.claim(tx, jobs.Claims("next", ("hash",)))


def test_a_runner_that_ends_waits_for_no_server_that_hangs(app: App, web: WebServer) -> None:
    over, data = threading.Event(), bytes(1 << 20)
    web.files["/x"] = data
    locations.add(app.service, NOVA, queued(app), f"{web.url}/x", given(data))

    def hangs(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\nshort")
        over.wait(60)

    web.files["/x"], asked = hangs, len(web.seen)
    runner = Runner(app.service, 0.05)
    runner.start()
    try:
        until(lambda: len(web.seen) > asked)
        begun = time.monotonic()
        runner.stop()
        assert time.monotonic() - begun < 10  # a stop waits for 10 s, and then for nobody
        assert not runner.transfers
        with app.db.write_once() as tx:
            assert jobs.claim(tx, jobs.Claims("next", ("hash",))).attempt == 2
            assert "the service ended" in str(tx.execute(sa.select(tables.jobs.c.error)).scalar_one())
    finally:
        over.set()


def test_the_floor_lets_services_add_and_nobody_else(tmp_path: Path, app: App) -> None:
    (tmp_path / "policy.yaml").write_text('"add_image_location": ""\n"set_image_location": ""\n')
    policy = Policy(app.conf)
    target = image_target(show(app, queued(app)))
    token = replace(BOB, service_roles=frozenset({"service"}))
    stranger = replace(NOVA, project="other")
    for ctx, may in ((ALICE, True), (BOB, False), (stranger, True), (token, True)):
        assert policy.allows(ctx, "add_image_location", target) == may
        assert policy.allows(ctx, "set_image_location", target) == (ctx is ALICE)


def test_roles_of_service_tokens_are_those_of_the_configuration(tmp_path: Path, app: App) -> None:
    def told(role: str) -> bool:
        return Policy(app.conf).serves(replace(BOB, service_roles=frozenset({role})))

    assert [told("service"), told("operator")] == [True, False]
    keystone.register(app.conf)
    assert [told("service"), told("operator")] == [True, False]
    app.conf.set_override("service_token_roles", ["Operator"], group="keystone_authtoken")
    assert [told("service"), told("operator")] == [False, True]


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("rbd://fsid/pool/image/snap", "rbd://fsid/pool/image/snap"),
        ("swift+https://t%3Au:key@auth/v3/c/o", "swift+https://auth/v3/c/o"),
        ("s3://key:se%2Fcret@host/bucket/k", "s3://host/bucket/k"),
        ("s3+https://key:se/cr+et@host/bucket/k", "s3+https://host/bucket/k"),
        ("swift://t:u:pass/@word@auth/v3/c/o", "swift://auth/v3/c/o"),
        ("http://u:p@host:81/x?y=1", "http://host:81/x?y=1"),
        ("http://u:p@host/x@2?y=1&sig=abc", "http://host/x@2"),
        ("vsphere://h/folder/x?dcPath=a&dsName=b", "vsphere://h/folder/x?dcPath=a&dsName=b"),
        ("https://h/x?X-Amz-Credential=a", "https://h/x"),
    ],
)
def test_no_credential_of_an_old_location_is_shown(app: App, url: str, clean: str) -> None:
    assert without_secrets(url) == clean
    image_id = queued(app)
    with app.db.write_once() as tx:
        db_images.move(tx, image_id, "queued", "active", now=app.service.now(), size=1)
        db_images.add_location(tx, image_id, url, {}, app.service.now())
    assert [one.url for one in locations.list_(app.service, NOVA, image_id)] == [clean]
    image = show(app, image_id)
    for ctx in (NOVA, replace(ALICE, service_roles=frozenset({"service"}))):
        assert locations.direct_urls(app.service, ctx, [image]) == {image_id: clean}
    for ctx in (ALICE, replace(ALICE, service_roles=frozenset({"other"})), SERVICE):
        assert locations.direct_urls(app.service, ctx, [image]) == {}


# --- quotas ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hashed", [False, True], ids=["at once", "by a job"])
def test_data_that_is_added_takes_room_from_then_on(tmp_path: Path, hashed: bool) -> None:
    with service(tmp_path, more="user_storage_quota = 1000") as app:
        content = b"x" * 600
        url = kept(app, content)
        other = kept(app, b"y" * 401, "99999999-2222-4333-8444-666666666666")
        image_id, too_much = queued(app), queued(app)
        locations.add(app.service, NOVA, image_id, url, given(content) if hashed else None)
        assert show(app, image_id).status == ("importing" if hashed else "active")
        with pytest.raises(errors.OverLimit, match="401 more"):
            locations.add(app.service, NOVA, too_much, other, None)
        work_off(app)
        assert show(app, image_id).status == "active"
        with pytest.raises(errors.OverLimit, match=r"stored 600, .* keep 0, and 401 more"):
            locations.add(app.service, NOVA, too_much, other, None)
        assert show(app, too_much).status == "queued"
        lifecycle.delete(app.service, ALICE, image_id)
        locations.add(app.service, NOVA, too_much, other, None)


def test_an_image_has_no_more_copies_than_its_quota(tmp_path: Path) -> None:
    with service(tmp_path, more="image_location_quota = 0") as app, pytest.raises(errors.OverLimit, match="locations"):
        locations.add(app.service, NOVA, queued(app), kept(app, b"x"), None)
