"""Imports on several hosts: staged data is imported where it is, and a token is where its process is, or nowhere."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from calotype.app import App
from calotype.db import jobs, tables
from calotype.db.clock import db_now
from calotype.images import imports
from calotype.images.imports import GLANCE_DIRECT, GLANCE_DOWNLOAD, Remote, Request
from calotype.jobs import control
from calotype.jobs.worker import Runner
from calotype.service import Service as Parts
from tests import databases
from tests.images.imports import (
    DATA,
    STORES,
    Hang,
    assert_active,
    assert_failed,
    begin,
    jobs_of,
    plant,
    queued,
    service,
    show,
    task_of,
    waits,
    work_off,
)
from tests.inprocess import ALICE, another_host, wait_out
from tests.support import OCTETS, Client, Service, names, until
from tests.webserver import WebServer, serving, trap

METHODS = "enabled_import_methods = glance-direct, glance-download\n"
CONF = """\
[DEFAULT]
enabled_backends = one:file, two:file
worker_self_reference_url = {url}
[glance_store]
default_backend = one
[one]
filesystem_store_datadir = {path}/one
[two]
filesystem_store_datadir = {path}/two
[os_glance_staging_store]
filesystem_store_datadir = {staging}
[jobs]
poll = 0.1
"""
HOST_LOST = "The host that has the staged data is gone"
TOKEN = "gAAAAA-the-token-of-alice"


# --- real services ---------------------------------------------------------------------------------------


def host(path: Path, name: str, database: str, *, staging: str = "", url: str = "http://127.0.0.1:9") -> Service:
    """A service that shares the stores and the database, and nothing else; so to the other it is on another host."""
    conf = CONF.format(url=url, path=path, staging=staging or path / name / "staged")
    return Service(path / name, conf, database=database)


@pytest.fixture
def hosts_database(database_kind: str, own_database: str, tmp_path: Path) -> str:
    return own_database or databases.synced(f"sqlite:///{tmp_path / 'shared.db'}")


def start_import(client: Client, image_id: str) -> None:
    asked = {"method": {"name": "glance-direct"}, "all_stores": True}
    answer = client.request("POST", f"/v2/images/{image_id}/import", json=asked)
    assert answer.status_code == 202, answer.text


def staged(client: Client) -> str:
    image_id = client.queued()
    put = client.request("PUT", f"/v2/images/{image_id}/stage", data=DATA, headers=OCTETS)
    assert put.status_code == 204, put.text
    return image_id


def succeeds(client: Client, image_id: str) -> None:
    until(lambda: client.show(image_id)["status"] == "active", 60)
    assert client.file(image_id).content == DATA
    assert client.show(image_id)["stores"] == "one,two"


def test_what_was_staged_on_one_host_is_imported_and_deleted_by_way_of_another_one(
    tmp_path: Path, hosts_database: str
) -> None:
    """No host asks another one by HTTP, whatever `worker_self_reference_url` says."""
    with trap() as elsewhere:
        url = f"http://127.0.0.1:{elsewhere.port}"
        here, there = (host(tmp_path, name, hosts_database, url=url) for name in ("here", "there"))
        here.start()
        there.start()
        try:
            image_id, other = staged(here.client()), staged(here.client())
            assert set(names(tmp_path / "here" / "staged")) == {image_id, other}
            start_import(there.client(), image_id)
            succeeds(there.client(), image_id)
            assert there.client().delete(other).status_code == 204
            until(lambda: not names(tmp_path / "here" / "staged"))
            assert f"job import of image {image_id} done" in here.log
            assert f"job import of image {image_id}" not in there.log
        finally:
            here.stop()
            there.stop()
    assert elsewhere.hits == 0


def test_an_import_waits_for_the_host_that_has_its_data(tmp_path: Path, hosts_database: str) -> None:
    here, there = (host(tmp_path, name, hosts_database) for name in ("here", "there"))
    here.start()
    image_id = staged(here.client())
    here.kill()
    there.start()
    try:
        client = there.client()
        start_import(client, image_id)
        other = client.active()  # by which time a runner that might take the job would have looked for one
        until(lambda: client.delete(other).status_code == 204)
        assert client.show(image_id)["status"] == "importing"
        here.start()
        try:
            succeeds(client, image_id)
        finally:
            here.stop()
    finally:
        there.stop()


def test_hosts_with_one_staging_directory_import_for_each_other(tmp_path: Path, hosts_database: str) -> None:
    """As by NFS: when the host that staged is dead, another one imports."""
    shared = str(tmp_path / "nfs")
    here, there = (host(tmp_path, name, hosts_database, staging=shared) for name in ("here", "there"))
    here.start()
    there.start()
    try:
        image_id = staged(here.client())
        here.kill()
        start_import(there.client(), image_id)
        succeeds(there.client(), image_id)
        until(lambda: not names(tmp_path / "nfs"))
    finally:
        if here.process and here.process.poll() is None:
            here.process.send_signal(signal.SIGKILL)
        there.stop()


# --- hosts that are gone ---------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with service(tmp_path, database_url, more=METHODS) as app:
        yield app


def claim(app: App, svc: Parts, *kinds: str) -> None:
    """A process claims a job, and does nothing."""
    claims = jobs.Claims(svc.leases.owner, kinds, svc.leases.places)
    assert app.db.write(lambda tx: jobs.claim(tx, claims)) is not None


@pytest.mark.parametrize("state", ["waits", "runs"])
def test_the_import_of_a_host_that_is_gone_for_long_fails_with_that_reason(
    app: App, tmp_path: Path, state: str
) -> None:
    image_id = begin(app, GLANCE_DIRECT)
    place = app.service.leases.staging
    with another_host(app, tmp_path / "theirs") as (theirs, _), another_host(app, tmp_path / "ours") as (svc, clock):
        theirs.leases.staging, svc.leases.staging = place, "another directory"
        if state == "runs":
            claim(app, theirs, imports.KIND)
        runner = Runner(svc, 1)
        runner._sweep()
        for minutes in range(61 * 2):
            if minutes < 30:
                theirs.leases.beat()  # it lives
            for _ in range(6):
                clock.seconds += 5
                svc.leases.beat()
            runner._look_for_lost_places()
            runner.run_due_jobs()
        assert show(app, image_id).status == "importing", "it may come back for an hour"
        for _ in range(30):
            clock.seconds += 30
            runner._look_for_lost_places()
        assert runner.run_due_jobs()
        waits(lambda: not runner.transfers)
    task = task_of(app, image_id)
    assert (task.status, HOST_LOST in task.message) == ("failure", True), task
    assert (show(app, image_id).status, jobs_of(app)) == ("queued", [])


# --- tokens ----------------------------------------------------------------------------------------------


@pytest.fixture
def region() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as web:
        yield web


def ask_for(app: App, region: WebServer, image_id: str) -> None:
    """Ask for an import of an image of another region."""
    record = {"status": "active", "size": len(DATA), "disk_format": "raw", "container_format": "bare"}
    region.files["/v2/images/theirs"] = json.dumps(record).encode()
    region.files["/v2/images/theirs/file"] = DATA
    remote = Remote(region.url, "theirs", TOKEN)
    asked = {"method": {"name": GLANCE_DOWNLOAD}}
    imports.start(app.service, ALICE, image_id, Request(GLANCE_DOWNLOAD, asked, remote=remote, all_stores=True))


def everything(app: App) -> str:
    """All that the database holds, as text."""
    with app.db.read_once() as tx:
        return "\n".join(str(row) for table in tables.metadata.sorted_tables for row in tx.execute(sa.select(table)))


def test_a_token_is_in_no_table_at_any_time(
    app: App, region: WebServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hang = Hang("put")
    plant(monkeypatch, app, "two", hang)
    image_id = queued(app)
    ask_for(app, region, image_id)
    found = [everything(app)]
    runner = Runner(app.service, 1)
    runner.run_due_jobs()
    waits(hang.reached.is_set)
    found.append(everything(app))
    hang.free.set()
    waits(lambda: not runner.transfers)
    found.append(everything(app))
    assert_active(app, image_id)
    assert {one.headers.get("X-Auth-Token") for one in region.seen} == {TOKEN}
    assert image_id in found[0]
    assert not [text for text in (*found, caplog.text) if TOKEN in text]
    assert app.service.tokens == {}


@pytest.mark.parametrize("state", ["waits", "waits for another try", "runs"])
@pytest.mark.parametrize("where", ["this host", "another host"])
def test_an_import_whose_token_is_lost_fails_with_that_reason_and_can_be_asked_for_again(
    app: App, tmp_path: Path, region: WebServer, monkeypatch: pytest.MonkeyPatch, state: str, where: str
) -> None:
    image_id = queued(app)
    ask_for(app, region, image_id)
    if state == "runs":
        claim(app, app.service, imports.KIND)
    if state == "waits for another try":
        with app.db.write_once() as tx:
            tx.execute(sa.update(tables.jobs).values(due_at=db_now(timedelta(minutes=5))))
    dead = app.service.leases.owner
    with another_host(app, tmp_path) as (svc, clock):
        svc = replace(svc, tokens={})  # as every other process
        runner = Runner(svc, 1)
        if where == "this host":
            monkeypatch.setattr(svc.leases, "dead_owners", lambda: [dead])
            monkeypatch.setattr(svc.leases, "forget_owners", lambda _: None)
        elif state == "runs":
            wait_out(svc, clock)
        else:  # nobody holds it: it is noticed by the place that it waits for
            runner._sweep()
            for _ in range(4):
                clock.seconds += 30
                runner._look_for_lost_places()
        runner.run_due_jobs()
        waits(lambda: not runner.transfers)
        assert_failed(app, image_id, "your token", STORES)
        assert region.seen == []
    ask_for(app, region, image_id)
    work_off(app)
    assert_active(app, image_id)


def test_an_operator_may_have_an_import_with_a_token_tried_again(
    app: App, region: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = queued(app)
    ask_for(app, region, image_id)
    served = region.files.pop("/v2/images/theirs")
    region.files["/v2/images/theirs"] = region.raw(b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n")
    work_off(app)
    assert show(app, image_id).status == "importing"
    region.files["/v2/images/theirs"] = served
    (job,) = jobs_of(app)
    assert control.retry(app.service, job.id)
    work_off(app)
    assert_active(app, image_id)
