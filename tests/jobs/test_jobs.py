"""The queue: leases, fencing, and the runner that cleans up after the dead."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from calotype import errors
from calotype.app import App
from calotype.db import images as db_images
from calotype.db import jobs
from calotype.db.engine import now
from calotype.db.leases import Leases
from calotype.images import data, lifecycle
from calotype.images.lifecycle import NewImage
from calotype.jobs.worker import Runner
from tests.inprocess import ADMIN, ALICE, Pieces, backlog, make_active, parts
from tests.support import names

START = datetime(2026, 1, 1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with parts(tmp_path, database_url) as made:
        yield made


def submit(app: App, due: datetime = START, owner: str | None = None) -> object:
    with app.db.begin() as tx:
        return jobs.submit(tx, "delete", "image", {"a": 1}, now=START, due=due, owner=owner)


def claim(app: App, owner: str, when: datetime, dead: tuple[str, ...] = ()) -> jobs.Job | None:
    with app.db.begin() as tx:
        return jobs.claim(tx, owner, now=when, lease_until=when + MINUTE, dead=dead)


def test_a_job_is_claimed_once_and_only_when_it_is_due(app: App) -> None:
    submit(app, START + MINUTE)
    assert claim(app, "a", START) is None
    job = claim(app, "a", START + MINUTE)
    assert job
    assert (job.attempt, job.owner, job.payload) == (1, "a", {"a": 1})
    assert claim(app, "b", START + MINUTE) is None


def test_a_lease_that_ran_out_passes_the_job_on_and_fences_the_sleeper_off(app: App) -> None:
    submit(app)
    first = claim(app, "a", START)
    second = claim(app, "b", START + 2 * MINUTE)
    assert first
    assert second
    assert second.attempt == 2
    assert first.token != second.token
    with app.db.begin() as tx:
        assert not jobs.note(tx, first, [{"x": 1}])
        assert not jobs.fail(tx, first, "late", due=START)
        assert not jobs.finish(tx, first)
        assert jobs.finish(tx, second)
    assert backlog(app) == 0


def test_a_beat_extends_what_is_held_and_tells_what_is_lost(app: App) -> None:
    submit(app)
    job = claim(app, "a", START)
    assert job
    with app.db.begin() as tx:
        assert jobs.beat(tx, "a", [job.id], START + 5 * MINUTE) == {job.token}
        assert jobs.beat(tx, "b", [job.id], START + 9 * MINUTE) == frozenset()
    assert claim(app, "b", START + 4 * MINUTE) is None
    with app.db.begin() as tx:
        jobs.revoke(tx, "image", START)
        assert jobs.beat(tx, "a", [job.id], START + 5 * MINUTE) == frozenset()


def test_the_jobs_of_a_dead_owner_wait_for_no_lease(app: App) -> None:
    submit(app, START + MINUTE, owner="dead")
    assert claim(app, "b", START) is None
    assert claim(app, "b", START, dead=("dead",))


def test_a_failed_job_is_tried_again_later(app: App) -> None:
    submit(app)
    job = claim(app, "a", START)
    assert job
    with app.db.begin() as tx:
        assert jobs.fail(tx, job, "why", due=START + MINUTE)
    assert claim(app, "a", START) is None
    again = claim(app, "a", START + MINUTE)
    assert again
    assert again.attempt == 2


def test_a_process_is_alive_until_it_dies(app: App, tmp_path: Path) -> None:
    ours = Leases(app.db, tmp_path / "owners", now)
    script = (
        "import sys, time; from pathlib import Path; from calotype.db.leases import Leases\n"
        "leases = Leases(None, Path(sys.argv[1]), None); print(leases.owner, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "owners")], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    name = other.stdout.readline().strip()
    try:
        assert ours.owner != name
        assert ours.dead() == []
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert ours.dead() == [name]
    ours.forget([name])
    assert ours.dead() == []
    ours.close()
    assert os.listdir(tmp_path / "owners") == []


def test_the_runner_goes_on_after_a_job_that_fails(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.jobs import chores

    done = []

    def chore(_svc: object, job: jobs.Job) -> None:
        if not done:
            done.append("failed")
            raise OSError("disk on fire")
        done.append(job.image_id)

    monkeypatch.setitem(chores.CHORES, "delete", chore)
    for _ in range(2):
        submit(app)
    runner = Runner(app.service, 0.05)
    runner.start()
    end = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    runner.stop()
    assert done == ["failed", "image"]
    assert backlog(app) == 2  # the first waits for its next try; this chore did not finish the second


# --- uploads ---------------------------------------------------------------------------------------------


def queued(app: App) -> str:
    return lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare")).id


def upload(app: App, image_id: str, pieces: object) -> None:
    data.upload(app.service, ALICE, image_id, Pieces(pieces), store_name=None, size=None)  # type: ignore[arg-type]


def test_what_a_dead_uploader_left_is_removed_and_the_image_queued_again(app: App, tmp_path: Path) -> None:
    """As after kill -9 between the link and the commit: the object is final, the record is not."""
    image_id = queued(app)

    class Killed(BaseException):
        pass

    def dying() -> Iterator[bytes]:
        yield b"x" * (3 << 20)
        # From here on this process does nothing any more, not even clean up.
        app.service.leases.forget([app.service.leases.owner])
        raise Killed

    give_up, data.give_up = data.give_up, lambda *_: None
    try:
        with pytest.raises(Killed):
            upload(app, image_id, dying())
    finally:
        data.give_up = give_up
    assert lifecycle.show(app.service, ALICE, image_id).status == "saving"
    (tmp_path / "one" / f"{image_id}.x").write_bytes(b"")
    later = now() + 2 * MINUTE
    object.__setattr__(app.service, "now", lambda: later)
    assert Runner(app.service, 1).work_off() == 1
    (tmp_path / "one" / f"{image_id}.x").unlink()
    assert lifecycle.show(app.service, ALICE, image_id).status == "queued"
    assert names(tmp_path / "one") == []
    upload(app, image_id, [b"again"])
    assert (tmp_path / "one" / image_id).read_bytes() == b"again"


def test_an_uploader_that_slept_through_its_lease_cannot_finish(app: App, tmp_path: Path) -> None:
    image_id = queued(app)

    def slow() -> Iterator[bytes]:
        yield b"old" * (1 << 20)
        late = now() + 2 * MINUTE
        real = app.service.now
        object.__setattr__(app.service, "now", lambda: late)
        assert Runner(app.service, 1).work_off() == 1
        object.__setattr__(app.service, "now", real)
        assert lifecycle.show(app.service, ALICE, image_id).status == "queued"
        upload(app, image_id, [b"new"])
        yield b"old"

    with pytest.raises(errors.Gone):
        upload(app, image_id, slow())
    image = lifecycle.show(app.service, ALICE, image_id)
    assert (image.status, image.size) == ("active", 3)
    assert names(tmp_path / "one") == [image_id]
    assert (tmp_path / "one" / image_id).read_bytes() == b"new"


def test_a_report_that_comes_late_does_not_activate_somebody_elses_upload(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old upload has linked its object; then its lease ends, it is cleaned up, and a new upload begins."""
    image_id = queued(app)
    store = app.service.stores.get("one")
    assert store
    write, begun = store.write, threading.Event()
    proceed, results = threading.Event(), []

    def endless() -> Iterator[bytes]:
        yield b"new" * (1 << 20)
        begun.set()
        assert proceed.wait(10)

    def second() -> None:
        upload(app, image_id, endless())
        results.append("active")

    def slow_write(*arguments: object, **named: object) -> object:
        stored = write(*arguments, **named)  # type: ignore[arg-type]
        monkeypatch.undo()
        with app.db.begin() as tx:
            jobs.revoke(tx, image_id, now())
        assert Runner(app.service, 1).work_off() == 1
        thread.start()
        assert begun.wait(10)
        return stored

    thread = threading.Thread(target=second)
    monkeypatch.setattr(store, "write", slow_write)
    with pytest.raises(errors.Gone):
        upload(app, image_id, [b"old"])
    assert lifecycle.show(app.service, ALICE, image_id).status == "saving"
    proceed.set()
    thread.join()
    assert results == ["active"]
    assert (tmp_path / "one" / image_id).read_bytes() == b"new" * (1 << 20)


def test_deleting_an_image_stops_its_upload(app: App, tmp_path: Path) -> None:
    image_id = queued(app)

    def slow() -> Iterator[bytes]:
        yield b"x" * (2 << 20)
        lifecycle.delete(app.service, ALICE, image_id)
        yield b"y"

    with pytest.raises(errors.Gone):
        upload(app, image_id, slow())
    Runner(app.service, 1).work_off()
    assert names(tmp_path / "one") == []
    assert backlog(app) == 0
    with app.db.read() as tx:
        assert db_images.get(tx, ADMIN, image_id) is None


def test_an_upload_whose_image_is_deleted_ends_before_its_data_does(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.db import leases

    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.05)
    image_id, end = queued(app), time.monotonic() + 15

    def endless() -> Iterator[bytes]:
        yield b"x" * (2 << 20)
        lifecycle.delete(app.service, ALICE, image_id)
        while time.monotonic() < end:
            yield b"x" * (1 << 20)
            time.sleep(0.1)

    with pytest.raises(errors.Gone):
        upload(app, image_id, endless())
    assert time.monotonic() < end
    Runner(app.service, 1).work_off()
    assert names(tmp_path / "one") == []


def test_a_lost_lease_is_noticed_within_seconds(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.db import leases

    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.05)
    owner = app.service.leases.owner
    submit(app, START, owner=owner)
    with app.db.begin() as tx:
        job = jobs.claim(tx, owner, now=START, lease_until=START)
    assert job
    with app.service.leases.holding(job) as alive:
        alive()
        with app.db.begin() as tx:
            jobs.revoke(tx, "image", START)
        end = time.monotonic() + 5
        with pytest.raises(errors.Gone):
            while time.monotonic() < end:
                alive()
                time.sleep(0.01)


def test_the_beat_ends_with_the_last_job(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.db import leases

    def beating() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "leases"}

    before = beating()  # other tests' beat every five seconds and end then
    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.02)
    make_active(app)
    make_active(app)
    time.sleep(0.2)
    assert beating() <= before


def test_temporary_files_without_a_job_are_swept_once_they_are_old(app: App, tmp_path: Path) -> None:
    from calotype.jobs.chores import sweep

    image_id = queued(app)
    old = time.time() - 3600
    orphan = tmp_path / "one" / f"{image_id}.0123456789abcdef-1.part"
    foreign = tmp_path / "one" / "notes.part"

    def pieces() -> Iterator[bytes]:
        yield b"x" * (1 << 20)
        ours = next((tmp_path / "one").glob(f"{image_id}.*.part"))
        for path in (orphan, foreign):
            path.touch()
        for path in (ours, orphan, foreign):
            os.utime(path, (old, old))
        sweep(app.service)
        assert ours.exists()
        assert foreign.exists()
        assert not orphan.exists()
        orphan.touch()
        sweep(app.service)
        assert orphan.exists()  # it may belong to an upload that is just beginning
        yield b"y"

    upload(app, image_id, pieces())
    assert lifecycle.show(app.service, ALICE, image_id).status == "active"


def test_the_dead_are_remembered_while_a_long_job_of_theirs_may_be_left(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(app.service, 1)
    busy = iter([True, False])  # the long job at hand ends just after the queue was looked at
    forgotten: list[list[str]] = []
    monkeypatch.setattr(runner, "_busy", lambda: next(busy))
    monkeypatch.setattr(app.service.leases, "forget", forgotten.append)
    runner.work_off()
    assert forgotten == []
    runner.work_off()
    assert len(forgotten) == 1
