"""`calotype job`: what operators see of jobs, and what they can do with one."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype.app import App
from calotype.db import copies, jobs, outbox, tables
from calotype.images import lifecycle, locations, tasks
from calotype.images.lifecycle import NewImage
from calotype.images.locations import Given
from calotype.jobs.worker import Runner
from calotype.model import Event, Job
from tests.cli.conftest import Run
from tests.inprocess import ALICE, parts
from tests.support import until
from tests.webserver import WebServer, serving

pytestmark = pytest.mark.any_database

CONF = """\
[DEFAULT]
enabled_backends = one:file, web:http
[glance_store]
default_backend = one
[one]
filesystem_store_datadir = {path}/one
[jobs]
poll = 0.1
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.3
"""
IMAGE = "3a4c4a5e-0000-4000-8000-000000000001"


class Place:
    """A service without a server, and the commands of an operator beside it."""

    def __init__(self, app: App, path: Path, run: Run) -> None:
        self.app, self.path, self._run = app, path, run

    def __call__(self, *arguments: str, code: int = 0, **more: Any) -> tuple[str, str]:
        place = ("--config-file", str(self.path / "c.conf"), "--state-dir", str(self.path))
        said = self._run(*arguments, *place, code=code, **more)
        return said.out, said.err

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self("job", "list", "--json", *arguments)[0].splitlines()]

    def submit(self, kind: str = "delete", image: str = IMAGE, **more: Any) -> Job:
        with self.app.db.write_once() as tx:
            return jobs.submit(tx, kind, image, more.pop("payload", {"locations": []}), **more)


@pytest.fixture
def place(tmp_path: Path, own_database: str, run: Run) -> Iterator[Place]:
    with parts(tmp_path, own_database or f"sqlite:///{tmp_path / 'c.db'}", CONF) as app:
        yield Place(app, tmp_path, run)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as web:
        yield web


def hashing(app: App, web: WebServer) -> tuple[str, str, threading.Event]:
    """An image whose data a server sends only in part, the id of the job that reads it, and what lets it go on."""
    over = threading.Event()
    web.files["/x"] = bytes(8 << 20)
    image_id = lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare")).id
    locations.add(app.service, ALICE, image_id, f"{web.url}/x", Given("sha256", "ab" * 32))

    def hangs(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n" + bytes(1 << 20))
        over.wait(60)

    web.files["/x"] = hangs
    with app.db.read_once() as tx:
        (state,) = jobs.states(tx, 9)
    return image_id, state.id, over


# --- looking ---------------------------------------------------------------------------------------------


def test_jobs_are_listed_with_what_is_known_of_them(place: Place) -> None:
    failed = place.submit(owner="host-a:1:x", project="red", reserved=5)
    running = place.submit("upload", IMAGE[:-1] + "2", owner="host-b:2:y", payload={"task": "a task"})
    with place.app.db.write_once() as tx:
        jobs.fail(tx, failed, "the store\nis away", delay=timedelta(hours=1))
        copies.add(tx, running, [("one", None)], writing=True)
        copies.fail(tx, running, "one", "full")
        progress = {"step": "Receiving", "bytes": 3 << 20, "of": 8 << 20, "rate": 2048}
        jobs.report(tx, running, progress)
    first, second = place.listed()
    assert (first["id"], first["kind"], first["image_id"], first["project"]) == (failed.id, "delete", IMAGE, "red")
    assert (first["state"], first["attempt"], first["error"], first["reserved"]) == (
        "pending", 1, "the store\nis away", 5,
    )  # fmt: skip
    assert 3500 < first["due"] <= 3600
    assert (second["owner"], second["progress"], second["task"]) == ("host-b:2:y", progress, "a task")
    assert second["copies"] == [{"store": "one", "state": "failed", "error": "full"}]
    out, _ = place("job", "list")
    head, one, two = out.splitlines()
    assert head.split() == "ID KIND IMAGE PROJECT STATE ATTEMPT PROGRESS DUE AGE HOST ERROR".split()
    for words in (failed.id, "pending", "in 60 min", "the store is away"):
        assert words in one
    for words in (running.id, "running", "Receiving 3.0 MiB of 8.0 MiB, 2.0 KiB/s", "host-b"):
        assert words in two
    shown, _ = place("job", "show", running.id)
    for words in ("host-b:2:y", "Receiving 3.0 MiB of 8.0 MiB, 2.0 KiB/s", "a task", "one    failed  full"):
        assert words in shown
    assert json.loads(place("job", "show", running.id, "--json")[0])["id"] == running.id
    status, _ = place("status")
    assert f"{failed.id} delete of image {IMAGE}: pending, attempt 1, due in 60 min" in status


def test_a_list_is_of_the_images_and_kinds_that_are_asked_for(place: Place) -> None:
    one, other = place.submit(), place.submit("upload", IMAGE[:-1] + "2")
    assert [job["id"] for job in place.listed("--image", IMAGE)] == [one.id]
    assert [job["id"] for job in place.listed("--kind", "upload")] == [other.id]
    assert place.listed("--kind", "upload", "--image", IMAGE) == []
    assert place("job", "list", "--kind", "hash")[0] == "There are no such jobs.\n"
    assert "no kind of job 'x'; there are upload, delete" in place("job", "list", "--kind", "x", code=2)[1]


def test_a_job_that_is_undone_or_cancelled_is_said_to_be(place: Place) -> None:
    job = place.submit("hash", owner="a:1:x")
    with place.app.db.write_once() as tx:
        jobs.ask_to_cancel(tx, job.id, "no more")
    assert " cancelling " in place("job", "list")[0]
    with place.app.db.write_once() as tx:
        jobs.fail_for_good(tx, job, "no more")
    assert " undoing " in place("job", "list")[0]


@pytest.mark.parametrize("verb", ["show", "retry", "cancel", "drop"])
def test_an_unknown_job_is_one_line(place: Place, verb: str) -> None:
    _, err = place("job", verb, "x", code=1)
    assert err == "calotype: There is no job x, or no more: see calotype job list.\n"


# --- acting ----------------------------------------------------------------------------------------------


def test_a_retry_makes_a_waiting_job_due_and_leaves_a_running_one_alone(place: Place) -> None:
    waits, runs = place.submit(delay=timedelta(hours=1)), place.submit(owner="a:1:x")
    out, err = place("job", "retry", waits.id, runs.id, "x", code=1)
    assert f"Job {waits.id} is due now" in out
    assert f"Job {runs.id} is running." in out
    assert "no job x" in err
    assert [job["due"] <= 0 for job in place.listed()] == [True, True]
    assert [job["state"] for job in place.listed()] == ["pending", "running"]


def test_a_retry_does_not_remove_what_a_user_has_staged(place: Place) -> None:
    staged = place.submit("stage", delay=timedelta(hours=24))
    assert "data that somebody has staged is removed" in place("job", "retry", staged.id, code=1)[1]
    assert place.listed()[0]["due"] > 0
    with place.app.db.write_once() as tx:
        jobs.fail(tx, staged, "away", delay=timedelta(hours=1))
    place("job", "retry", staged.id)
    assert place.listed()[0]["due"] <= 0


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("delete", "A delete cannot be cancelled"),
        ("upload", "ends with its client's request"),
        ("stage", "or when this job is due"),
    ],
)
def test_what_cannot_be_undone_is_not_cancelled(place: Place, kind: str, why: str) -> None:
    job = place.submit(kind)
    assert why in place("job", "cancel", job.id, code=1)[1]
    (found,) = place.listed()
    assert found["cancel"] is None


@pytest.mark.parametrize("running", [True, False])
def test_a_cancelled_hash_job_ends_with_the_reason(place: Place, web: WebServer, running: bool) -> None:
    image_id, job_id, over = hashing(place.app, web)
    asked = len(web.seen)
    runner = Runner(place.app.service, 0.1)
    try:
        if running:
            runner.start()
            until(lambda: len(web.seen) > asked, 30)
            out, _ = place("job", "cancel", job_id, "--reason", "It is the wrong one.")
        else:
            out = place("job", "cancel", job_id, "--reason", "It is the wrong one.", code=3)[0]
            assert "has not stopped yet: no runner has taken it" in out
            runner.start()
            until(lambda: not place.listed(), 30)
            out = f"Job {job_id} is cancelled.\n"
    finally:
        over.set()
        runner.stop()
    assert out == f"Job {job_id} is cancelled.\n"
    (task,) = tasks.of_image(place.app.service, ALICE, image_id)
    assert (task.status, task.message) == ("failure", "It is the wrong one.")
    image = lifecycle.show(place.app.service, ALICE, image_id)
    assert (image.status, image.locations) == ("queued", ())
    assert len(web.seen) == asked + running


def test_a_job_that_was_done_meanwhile_is_said_to_be(
    place: Place, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job_id, over = hashing(place.app, web)
    over.set()
    ask = jobs.ask_to_cancel

    def asked(tx: Any, one: str, why: str) -> bool:
        job = jobs.get(tx, one)
        assert job is not None
        tasks.move(place.app.service, tx, job.payload["task"], "success")
        return jobs.finish(tx, job) and ask(tx, one, why)

    monkeypatch.setattr(jobs, "ask_to_cancel", asked)
    assert place("job", "cancel", job_id)[0] == f"Job {job_id} was done before it could be cancelled.\n"


def test_a_dropped_job_leaves_what_was_said(place: Place, web: WebServer) -> None:
    image_id, job_id, over = hashing(place.app, web)
    over.set()
    out, err = place("job", "drop", job_id, code=2)
    assert "give --yes to agree. Nothing was changed." in err
    assert len(place.listed()) == 1
    out, _ = place("job", "drop", job_id, "--yes")
    assert f"Image {image_id} stays importing, and takes no data: delete it." in out
    assert out.endswith(f"Job {job_id} is dropped.\n")
    assert place.listed() == []
    (task,) = tasks.of_image(place.app.service, ALICE, image_id)
    assert (task.status, task.message) == ("failure", "An operator has dropped the job.")
    lifecycle.delete(place.app.service, ALICE, image_id)
    assert place.listed() == []


def test_a_drop_says_in_which_stores_something_stays(place: Place) -> None:
    upload = place.submit("upload", owner="host-a:1:x")
    with place.app.db.write_once() as tx:
        copies.add(tx, upload, [("one", None)], writing=True)
        copies.add(tx, upload, [("two", None)])
    delete = place.submit(payload={"locations": [{"metadata": {"store": "one"}}]})
    out, _ = place("job", "drop", upload.id, "--yes")
    assert "host-a:1:x runs it; it stops within seconds and cleans nothing up." in out
    assert "Store one: what the job has written there stays." in out
    assert "Store two" not in out
    assert "calotype repair" in out
    assert "Store one: the data of the deleted image stays." in place("job", "drop", delete.id, "--yes")[0]
    with place.app.db.read_once() as tx:
        assert tx.execute(sa.select(tables.copies)).all() == []


# --- events ----------------------------------------------------------------------------------------------


def test_events_that_wait_are_seen_and_can_be_dropped(place: Place) -> None:
    assert "Events" not in place("status")[0]
    with place.app.db.write_once() as tx:
        for number in range(3):
            outbox.add(tx, Event(f"id-{number}", "image.create", "INFO", {}, place.app.service.now(), None))
    assert "Events: 3 wait to be sent, the oldest for " in place("status")[0]
    found = json.loads(place("status", "--json")[0])["events"]
    assert found["waiting"] == 3
    assert 0 <= found["oldest"] < 600
    place("db", "drop-events", code=2)
    assert place("db", "drop-events", "--yes")[0] == "3 events are removed.\n"
    assert json.loads(place("status", "--json")[0])["events"] == {"waiting": 0, "oldest": None}
