"""`calotype status`, and what the log says of uploads: who watches sees them while they run."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from calotype import transfers
from calotype.db import jobs
from calotype.db.engine import Database
from calotype.transfers import Transfers, Upload
from tests.cli.conftest import Run
from tests.support import Client, Service, running, until


class Slow:
    """A body of which some bytes come, and the rest when it is told."""

    def __init__(self, first: int, rest: int) -> None:
        self.first, self.rest, self.go = first, rest, threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield b"x" * self.first
        assert self.go.wait(60)
        yield b"y" * self.rest


@pytest.fixture
def started(state: Path, own_database: str) -> Iterator[Service]:
    with running(state, "", "--workers", "2", database=own_database) as service:
        yield service


def _status(run: Run, service: Service) -> dict[str, Any]:
    return dict(json.loads(run("status", "--json", *service.place).out))


def test_uploads_are_seen_while_they_run_and_no_longer(run: Run, started: Service) -> None:
    bodies = [Slow(300_000, 1), Slow(200_000, 0)]
    ids = [started.client().queued() for _ in bodies]

    def upload(client: Client, image_id: str, body: Slow) -> None:
        client.put(image_id, body)

    threads = [threading.Thread(target=upload, args=(started.client(), *one)) for one in zip(ids, bodies, strict=True)]
    for thread in threads:
        thread.start()
    try:
        sizes = dict(zip(ids, (300_000, 200_000), strict=True))
        until(lambda: {one["image_id"]: one["size"] for one in _status(run, started)["uploads"]} == sizes, 30)
        found = _status(run, started)
        for one in found["uploads"]:
            assert (one["project"], one["store"], one["expected"]) == ("red", "local", None)
            assert one["age"] > 0
        assert found["counts"] == [{"kind": "upload", "state": "running", "count": 2}]
        assert found["jobs"] == []
        assert found["service"]["serving"] is True
        (store,) = found["stores"]
        assert store["name"] == "local"
        assert 0 < store["free"] <= store["total"]
        text = run("status", *started.place).out
        assert ids[0] in text
        assert "293.0 KiB" in text
        assert "Service: runs" in text
        for path in (started.state / "transfers").iterdir():
            assert path.stat().st_mode & 0o777 == 0o600
        assert (started.state / "transfers").stat().st_mode & 0o777 == 0o700
    finally:
        for body in bodies:
            body.go.set()
        for thread in threads:
            thread.join(60)
    assert _status(run, started)["uploads"] == []
    until(lambda: not list((started.state / "transfers").iterdir()))
    until(lambda: started.log.count("upload done") == 2)
    (line,) = [one for one in started.log.splitlines() if "upload done: 300001 bytes into store local" in one]
    assert ids[0] in line
    assert "MiB/s" in line
    (line,) = [one for one in started.log.splitlines() if "upload begins" in one and ids[1] in one]
    assert "an unknown number of bytes into store local" in line


def test_data_that_is_staged_is_seen_as_an_upload_while_it_comes(run: Run, started: Service) -> None:
    client, body = started.client(), Slow(300_000, 1)
    image_id = client.queued()
    path, headers = f"/v2/images/{image_id}/stage", {"Content-Type": "application/octet-stream"}
    thread = threading.Thread(target=lambda: client.request("PUT", path, data=iter(body), headers=headers))
    thread.start()
    try:
        until(lambda: [one["size"] for one in _status(run, started)["uploads"]] == [300_000], 30)
        found = _status(run, started)
        (one,) = found["uploads"]
        assert (one["kind"], one["image_id"]) == ("stage", image_id)
        assert found["jobs"] == []
        assert "Jobs: none" in run("status", *started.place).out
    finally:
        body.go.set()
        thread.join(60)
    found = _status(run, started)
    assert found["uploads"] == []
    assert [(one["kind"], one["state"]) for one in found["jobs"]] == [("stage", "pending")]  # it waits to be imported


def test_an_upload_that_fails_is_logged_with_why(started: Service) -> None:
    image_id = started.client().queued(disk_format="qcow2")
    assert started.client().put(image_id, b"no qcow2" * 1000).status_code >= 400
    (line,) = [one for one in started.log.splitlines() if "upload failed: " in one]
    assert image_id in line
    assert "store local" in line
    assert "qcow2" in line.partition("MiB/s: ")[2]


def test_jobs_are_told_with_their_errors(run: Run, started: Service) -> None:
    database = Database(started.database_url)
    with database.write_once() as tx:
        job = jobs.submit(tx, "delete", "3a4c4a5e-0000-0000-0000-000000000001", {}, owner="somebody")
        jobs.fail(tx, job, "the store is away", delay=timedelta(hours=1))
    database.close()
    (one,) = _status(run, started)["jobs"]
    assert (one["kind"], one["state"], one["attempt"], one["error"]) == ("delete", "pending", 1, "the store is away")
    assert 3500 < one["due"] <= 3600
    assert 0 <= one["age"] < 60
    text = run("status", *started.place).out
    assert "Jobs: 1 delete pending" in text
    assert "attempt 1, due in 60 min" in text
    assert "the store is away" in text


def test_a_status_without_a_service_says_so_and_makes_nothing(run: Run, tmp_path: Path) -> None:
    place = ("--state-dir", tmp_path / "state")
    run("db", "sync", *place)
    before = _made(tmp_path)
    found = json.loads(run("status", "--json", *place).out)
    assert found["service"]["serving"] is False
    assert (found["uploads"], found["jobs"]) == ([], [])
    assert _made(tmp_path) == before


def _made(path: Path) -> list[Path]:
    """All that there is, but for what SQLite has beside a file while somebody looks into it."""
    return sorted(one for one in path.rglob("*") if not one.name.endswith(("-wal", "-shm")))


# --- on its own ------------------------------------------------------------------------------------------


def test_a_process_that_was_killed_tells_of_no_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {
        "written": time.monotonic() - transfers.STALE - 1,
        "uploads": [{"image_id": "x", "project": None, "store": "s", "expected": None}],
    }
    (tmp_path / "1-killed").write_text(json.dumps(old))
    (tmp_path / "2-torn").write_text('{"written": ')
    assert transfers.running(tmp_path) == []
    (tmp_path / "1-killed").write_text(json.dumps(old | {"written": time.monotonic()}))
    assert [one.image_id for one in transfers.running(tmp_path)] == ["x"]


def test_many_uploads_are_one_file_and_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "REPORT_INTERVAL", 0.05)
    followed = Transfers(1 << 20, 100, directory=tmp_path)
    sizes = [0, 0]
    with (
        followed.following(Upload("a", "red", "fast", 1000), lambda: sizes[0]),
        followed.following(Upload("b", "red", "fast", None), lambda: sizes[1]),
    ):
        until(lambda: len(transfers.running(tmp_path)) == 2)
        sizes[:] = 10, 20
        until(lambda: {one.image_id: one.size for one in transfers.running(tmp_path)} == {"a": 10, "b": 20})
        assert len([path for path in tmp_path.iterdir() if not path.name.startswith(".")]) == 1
        assert [thread.name for thread in threading.enumerate()].count("transfers") == 1
    until(lambda: not list(tmp_path.iterdir()))
    until(lambda: "transfers" not in [thread.name for thread in threading.enumerate()])


def test_a_disk_that_is_full_disturbs_no_upload(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Transfers(1 << 20, 1, directory=tmp_path / "file" / "x").following(Upload("a", None, "s", None), lambda: 0):
        pass
