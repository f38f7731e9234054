"""The queue: leases, fencing, and the runner that cleans up after the dead."""

import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.app import App
from calotype.db import copies, jobs, leases, processes, tables
from calotype.db import images as db_images
from calotype.db.engine import Tx
from calotype.db.jobs import Attempt
from calotype.images import data, lifecycle, tasks
from calotype.images.lifecycle import NewImage
from calotype.images.work import Work
from calotype.jobs import kinds
from calotype.jobs.kinds import Kind, Lane, Step
from calotype.jobs.worker import Runner
from calotype.model import Copy
from calotype.stores import file
from calotype.stores.base import Stored
from tests.inprocess import ADMIN, ALICE, Clock, Pieces, another_host, backlog, hurry, make_active, wait_out
from tests.support import names

MINUTE = timedelta(minutes=1)


def submit(app: App, delay: timedelta = timedelta(0), owner: str | None = None) -> jobs.Job:
    with app.db.write_once() as tx:
        return jobs.submit(tx, "delete", "image", {"a": 1}, delay=delay, owner=owner)


def claim(app: App, owner: str, **more: Any) -> jobs.Job | None:
    with app.db.write_once() as tx:
        return jobs.claim(tx, jobs.Claims(owner, ("delete", "upload", "hash"), **more))


def running(app: App) -> list[Attempt]:
    with app.db.write_once() as tx:
        return jobs.running_attempts(tx)


def test_a_job_is_claimed_once_and_only_when_it_is_due(app: App) -> None:
    submit(app, timedelta(seconds=0.5))
    assert claim(app, "a") is None
    time.sleep(0.6)
    job = claim(app, "a")
    assert job
    assert (job.attempt, job.owner, job.payload) == (1, "a", {"a": 1})
    assert claim(app, "b") is None


def test_a_job_that_a_clock_put_far_ahead_is_due(app: App) -> None:
    submit(app, timedelta(minutes=61))
    assert claim(app, "a") is None  # as after a failure
    submit(app, timedelta(days=1))
    assert claim(app, "a")
    assert claim(app, "a") is None


def test_an_orphan_passes_on_and_the_sleeper_is_fenced_off(app: App) -> None:
    submit(app)
    first = claim(app, "a")
    assert claim(app, "b") is None
    second = claim(app, "b", orphans=running(app))
    assert first
    assert second
    assert second.attempt == 2
    assert first.token != second.token
    with app.db.write_once() as tx:
        assert not copies.note(tx, first, "one", "x")
        assert not jobs.fail(tx, first, "late", delay=MINUTE)
        assert not jobs.finish(tx, first)
        assert jobs.resolve(tx, first) is False
        assert jobs.finish(tx, second)
    assert backlog(app) == 0


def test_who_was_heard_since_it_seemed_silent_keeps_its_job(app: App) -> None:
    submit(app)
    assert claim(app, "a")
    for _ in range(2):  # the first beat of all, and another one
        orphans = running(app)
        with app.db.write_once() as tx:
            processes.beat(tx, "a", "host")
        assert claim(app, "b", orphans=orphans) is None
    assert claim(app, "b", orphans=running(app))


def test_the_jobs_of_a_dead_owner_wait_for_no_lease(app: App) -> None:
    submit(app, owner="dead")
    assert claim(app, "b") is None
    assert claim(app, "b", dead=("dead",))


def test_a_failed_job_is_tried_again_later(app: App) -> None:
    submit(app)
    job = claim(app, "a")
    assert job
    with app.db.write_once() as tx:
        assert jobs.fail(tx, job, "why", delay=MINUTE)
    assert claim(app, "a") is None
    hurry(app)
    again = claim(app, "a")
    assert again
    assert again.attempt == 2


def test_notes_and_payloads_may_be_long_and_the_last_note_counts(app: App) -> None:
    payload = {"locations": [{"url": f"rbd://{'x' * 500}/{number}"} for number in range(300)]}
    with app.db.write_once() as tx:
        job = jobs.submit(tx, "upload", "image", payload, owner="a")
        other = jobs.submit(tx, "upload", "another", {}, owner="c")
        for one in (job, other):
            copies.add(tx, one, [("one", "identity"), ("two", None)], writing=True)
        assert copies.note(tx, other, "one", "volume")
        assert not copies.note(tx, job, "three", "volume")
    notes = ["first", "x" * 100_000]
    with app.db.write_once() as tx:
        for note in notes:
            assert copies.note(tx, job, "two", note)
    with app.db.write_once() as tx:
        assert jobs.resolve(tx, job) is True
        assert copies.of(tx, job) == [
            Copy("one", "identity", "writing", 1),
            Copy("two", None, "writing", 1, notes[-1]),
        ]
        again = jobs.claim(tx, jobs.Claims("b", ("upload",), dead=("a",)))
        assert again
        assert again.payload == payload
        assert not copies.note(tx, job, "two", "late")
        assert jobs.finish(tx, again)
    with app.db.read_once() as tx:
        assert tx.execute(sa.select(tables.copies.c.note)).scalars().all() in (["volume", None], [None, "volume"])


def test_projects_take_turns_and_the_last_place_is_for_one_that_has_none(app: App) -> None:
    def submit_for(project: str | None) -> str:
        with app.db.write_once() as tx:
            return jobs.submit(tx, "hash", "image", {}, project=project).id

    def next_of(owner: str, **more: Any) -> str | None:
        with app.db.write_once() as tx:
            job = jobs.claim(tx, jobs.Claims(owner, ("hash",), fair=True, **more))
        return job.id if job else None

    reds = [submit_for("red") for _ in range(4)]
    blue, nobody = submit_for("blue"), submit_for(None)
    assert next_of("a") == reds[0]
    assert next_of("a") == blue
    assert next_of("b") == nobody
    assert next_of("a") == reds[1]
    assert next_of("a", spare=True) is None
    assert next_of("b", spare=True) is None
    green = submit_for("green")
    assert next_of("b", spare=True) == green
    assert next_of("b") == reds[2]


def test_the_runner_goes_on_after_a_job_that_fails(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def chore(work: Work) -> None:
        if not done:
            done.append("failed")
            raise OSError("disk on fire")
        done.append(work.job.image_id)

    monkeypatch.setitem(kinds.KINDS, "delete", Kind(Lane.CHORE, [Step("chore", chore)]))  # type: ignore[arg-type]
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
        raise Killed  # from here on this process does nothing any more, not even clean up

    give_up, data.give_up = data.give_up, lambda *_: None
    try:
        with pytest.raises(Killed):
            upload(app, image_id, dying())
    finally:
        data.give_up = give_up
    assert lifecycle.show(app.service, ALICE, image_id).status == "saving"
    (tmp_path / "one" / f"{image_id}.x").write_bytes(b"")
    with another_host(app, tmp_path) as (other, clock):
        assert Runner(other, 1).run_due_jobs() == 0
        wait_out(other, clock)
        assert Runner(other, 1).run_due_jobs() == 1
    (tmp_path / "one" / f"{image_id}.x").unlink()
    assert lifecycle.show(app.service, ALICE, image_id).status == "queued"
    assert names(tmp_path / "one") == []
    upload(app, image_id, [b"again"])
    assert (tmp_path / "one" / image_id).read_bytes() == b"again"


def test_an_uploader_that_slept_through_its_lease_cannot_finish(app: App, tmp_path: Path) -> None:
    image_id = queued(app)

    def slow() -> Iterator[bytes]:
        yield b"old" * (1 << 20)
        with another_host(app, tmp_path) as (other, clock):
            wait_out(other, clock)
            assert Runner(other, 1).run_due_jobs() == 1
        assert lifecycle.show(app.service, ALICE, image_id).status == "queued"
        upload(app, image_id, [b"new"])
        yield b"old"

    with pytest.raises(errors.Conflict, match="given up"):
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
    commit, begun = file._FileWrite.commit, threading.Event()
    proceed, results = threading.Event(), []

    def endless() -> Iterator[bytes]:
        yield b"new" * (1 << 20)
        begun.set()
        assert proceed.wait(10)

    def second() -> None:
        upload(app, image_id, endless())
        results.append("active")

    def slow_commit(write: file._FileWrite) -> Stored:
        stored = commit(write)
        monkeypatch.undo()
        with app.db.write_once() as tx:
            jobs.release(tx, jobs.running_attempts(tx))
        assert Runner(app.service, 1).run_due_jobs() == 1
        thread.start()
        assert begun.wait(10)
        return stored

    thread = threading.Thread(target=second)
    monkeypatch.setattr(file._FileWrite, "commit", slow_commit)
    with pytest.raises(errors.Conflict, match="given up"):
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
    Runner(app.service, 1).run_due_jobs()
    assert names(tmp_path / "one") == []
    assert backlog(app) == 0
    with app.db.read_once() as tx:
        assert db_images.get(tx, ADMIN, image_id) is None


def test_an_upload_whose_image_is_deleted_keeps_its_job_and_cleans_up_itself(app: App, tmp_path: Path) -> None:
    """Else a runner would clean up while it may still write, and nobody after it."""
    image_id = queued(app)
    clock = Clock()
    app.service.leases.clock = clock

    def slow() -> Iterator[bytes]:
        yield b"x" * (2 << 20)
        lifecycle.delete(app.service, ALICE, image_id)
        wait_out(app.service, clock, 90)  # however long it takes to notice, as its process lives
        assert Runner(app.service, 1).run_due_jobs() == 0
        (attempt,) = running(app)
        assert attempt.owner == app.service.leases.owner
        assert len(names(tmp_path / "one")) == 1
        yield b"y" * (2 << 20)

    with pytest.raises(errors.Gone):
        upload(app, image_id, slow())
    assert names(tmp_path / "one") == []
    assert backlog(app) == 0


def test_the_job_of_a_deleted_image_passes_on_when_its_uploader_dies(app: App, tmp_path: Path) -> None:
    submit(app, owner="dead")
    with app.db.write_once() as tx:
        jobs.revoke(tx, "image")
    assert claim(app, "b") is None
    job = claim(app, "b", dead=("dead",))
    assert job is not None
    assert job.attempt == 3


def test_an_upload_whose_image_is_deleted_ends_before_its_data_does(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    Runner(app.service, 1).run_due_jobs()
    assert names(tmp_path / "one") == []


def test_a_lost_lease_is_noticed_within_seconds(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.05)
    job = submit(app, owner=app.service.leases.owner)
    with app.service.leases.holding(job) as alive:
        alive()
        with app.db.write_once() as tx:
            jobs.revoke(tx, "image")
        end = time.monotonic() + 5
        with pytest.raises(errors.Gone):
            while time.monotonic() < end:
                alive()
                time.sleep(0.01)


def test_the_beat_ends_with_the_last_job(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def beating() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "leases"}

    before = beating()  # other tests' beat every five seconds and end then
    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.02)
    make_active(app)
    make_active(app)
    time.sleep(0.2)
    assert beating() <= before


def test_the_sweep_marks_tasks_whose_time_is_over(app: App) -> None:
    from calotype.jobs.chores import sweep

    app.conf.set_override("task_time_to_live", 2, group="task")
    svc, image_id = app.service, queued(app)

    def end(tx: Tx) -> str:
        made = tasks.begin(svc, tx, ALICE, "import", image_id, {}, status="processing")
        tasks.move(svc, tx, made.id, "failure", message="no")
        return made.id

    task = app.db.write(end)

    def row() -> Any:
        with app.db.read_once() as tx:
            return tx.execute(sa.select(tables.tasks).where(tables.tasks.c.id == task)).one()

    left = row().expires_at - svc.now()
    assert timedelta(hours=1.9) < left <= timedelta(hours=2)
    sweep(svc)
    assert not row().deleted
    with app.db.write_once() as tx:
        tx.execute(sa.update(tables.tasks).values(expires_at=svc.now() - timedelta(seconds=5)))
    sweep(svc)
    assert row().deleted


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
