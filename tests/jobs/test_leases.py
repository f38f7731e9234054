"""Who is alive and who is silent: watching without clocks, beats, lock files, and what nobody may claim."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from calotype import errors
from calotype.app import App
from calotype.db import engine, jobs, leases, locks, processes, tables
from calotype.db.drivers import Settings
from calotype.db.engine import Database
from calotype.db.leases import LEASE, Leases
from calotype.db.watch import LONGEST_STEP, Watch
from calotype.images import data, lifecycle
from calotype.images.lifecycle import NewImage
from calotype.jobs import chores, worker
from calotype.jobs.kinds import Lane
from calotype.jobs.worker import Runner
from calotype.model import Job
from calotype.service import Service
from tests.inprocess import ALICE, Clock, Pieces, another_host, backlog, wait_out
from tests.support import names, until

# --- watching --------------------------------------------------------------------------------------------


def watch(looks: list[tuple[float, dict[str, Any]]], key: str = "a") -> float:
    """What a watch says that looks after so many seconds each, and sees that."""
    clock = Clock()
    made = Watch(clock)
    for later, seen in looks:
        clock.seconds += later
        made.observe(seen)
    return made.age(key)


def test_a_value_grows_old_as_long_as_it_is_seen_unchanged() -> None:
    assert watch([]) == 0
    assert watch([(5, {"a": 1})]) == 0
    assert watch([(5, {"a": 1}), (5, {"a": 1}), (4, {"a": 1})]) == 9
    assert watch([(5, {"a": 1}), (5, {"a": 2}), (4, {"a": 2})]) == 4
    assert watch([(5, {"a": None}), (5, {"a": None})]) == 5
    assert watch([(5, {"a": 1, "b": 1}), (5, {"a": 1, "b": 2})], "b") == 0


def test_a_key_that_vanishes_is_forgotten() -> None:
    assert watch([(5, {"a": 1}), (5, {"a": 1}), (5, {}), (5, {"a": 1})]) == 0


def test_a_pause_of_the_watcher_adds_next_to_nothing() -> None:
    assert watch([(5, {"a": 1}), (86400, {"a": 1})]) == LONGEST_STEP
    assert watch([(5, {"a": 1}), (-5, {"a": 1})]) == 0
    assert LEASE.total_seconds() > 2 * LONGEST_STEP  # one beat before an outage, and the first look after it


# --- beats -----------------------------------------------------------------------------------------------


def submit(svc: Service, image_id: str = "image") -> Job:
    owner = svc.leases.owner
    return svc.db.write(lambda tx: jobs.submit(tx, "upload", image_id, {"store": "one"}, owner=owner))


def claimed(svc: Service) -> list[str]:
    """Ids of the jobs that a runner of this process would take, all at once."""
    found = []
    while (job := Runner(svc, 1)._claim(Lane.CHORE, svc.leases.dead_owners())) is not None:
        found.append(job.id)
    return found


def test_who_is_silent_for_a_lease_loses_its_jobs_and_who_beats_keeps_them(app: App, tmp_path: Path) -> None:
    with another_host(app, tmp_path) as (other, clock):
        silent, beating = submit(app.service), submit(replace_owner(app, "b"))
        for _ in range(7):
            assert claimed(other) == []
            app.db.write(lambda tx: processes.beat(tx, "b", "b"))
            other.leases.beat()
            clock.seconds += 5
        assert claimed(other) == [silent.id]
        with app.db.read_once() as tx:
            assert jobs.is_current(tx, beating)


def replace_owner(app: App, owner: str) -> Service:
    class Named(Leases):
        @property
        def owner(self) -> str:
            return owner

    return replace(app.service, leases=Named(app.db, Path("/nowhere")))


def test_the_moments_of_hosts_and_of_the_database_are_nobodys_business(app: App, tmp_path: Path) -> None:
    """Whatever clocks say, also in rows."""
    with another_host(app, tmp_path) as (other, clock):
        job = submit(app.service)
        app.service.leases.beat()
        for days in (-400, 400):
            then = engine.now() + timedelta(days=days)
            with app.db.write_once() as tx:
                tx.execute(sa.update(tables.jobs).values(due_at=then))
                tx.execute(sa.update(tables.processes).values(seen_at=then))
            wait_out(other, clock, 25)
            assert claimed(other) == []
            app.service.leases.beat()
        wait_out(other, clock)
        assert claimed(other) == [job.id]


def test_after_an_outage_others_beat_before_anything_is_claimed(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_host(app, tmp_path) as (other, clock):
        submit(app.service)
        app.service.leases.beat()
        wait_out(other, clock, 10)
        with monkeypatch.context() as away:
            away.setattr(processes, "beat", fails)  # reading may go on: of a server that is read-only
            for _ in range(12):
                clock.seconds += 5
                with pytest.raises(errors.Busy):
                    other.leases.beat()
        other.leases.beat()
        assert claimed(other) == []
        app.service.leases.beat()
        wait_out(other, clock, 25)
        assert claimed(other) == []


def test_a_beat_that_waits_for_an_answer_in_vain_comes_again_within_the_lease() -> None:
    for given in (None, 5.0, 30.0):
        database = Database("postgresql://nobody@127.0.0.1:1/none", Settings(response_timeout=given))
        waits = database.background()._settings.response_timeout
        assert waits is None if given is None else waits == min(given, engine.BACKGROUND_RESPONSE_SECONDS)
    assert LEASE.total_seconds() > 2 * engine.BACKGROUND_RESPONSE_SECONDS + leases._BEAT_SECONDS


def fails(*_: object) -> None:
    raise errors.Busy("The database is away.")


def test_a_process_never_claims_what_it_holds(app: App) -> None:
    clock = Clock()
    svc = replace(app.service, leases=Leases(app.db, app.service.leases._directory, clock))
    job = submit(svc)
    with svc.leases.holding(job) as alive:
        wait_out(svc, clock, 300)
        assert claimed(svc) == []
        alive()
    wait_out(svc, clock, 25)
    assert claimed(svc) == []
    wait_out(svc, clock)  # nobody works on it, and nobody said so
    assert claimed(svc) == [job.id]
    svc.leases.close()


def test_a_process_never_claims_what_a_living_one_of_its_host_holds(app: App, tmp_path: Path) -> None:
    clock = Clock()
    svc = replace(app.service, leases=Leases(app.db, app.service.leases._directory, clock))
    job = submit(app.service)
    wait_out(svc, clock, 300)
    assert claimed(svc) == []
    app.service.leases._held["x"] = threading.Event()  # so that it leaves its file behind
    app.service.leases.close()
    assert claimed(svc) == [job.id]
    svc.leases.close()


def test_what_was_left_is_taken_at_once_and_by_others_at_the_next_beat(app: App) -> None:
    neighbour = replace(app.service, leases=Leases(app.db, app.service.leases._directory))
    first, second = submit(app.service), submit(app.service)
    app.service.leases.abandon(first)
    assert claimed(app.service) == [first.id]
    app.service.leases.abandon(second)
    assert claimed(neighbour) == []
    app.service.leases.beat()
    assert claimed(neighbour) == [second.id]
    neighbour.leases.close()


def test_a_beat_tells_what_was_lost(app: App) -> None:
    kept, lost = submit(app.service, "kept"), submit(app.service, "lost")
    with app.service.leases.holding(kept) as keeps, app.service.leases.holding(lost) as loses:
        app.service.leases.beat()
        loses()
        app.db.write(lambda tx: jobs.revoke(tx, "lost"))
        app.service.leases.beat()
        keeps()
        with pytest.raises(errors.Gone):
            loses()


def test_one_row_beats_for_all_jobs_and_goes_with_its_process(app: App, tmp_path: Path) -> None:
    def rows() -> list[Any]:
        with app.db.read_once() as tx:
            return list(tx.execute(sa.select(tables.processes.c.owner, tables.processes.c.host)))

    with another_host(app, tmp_path) as (other, _):
        for _ in range(2):
            app.service.leases.beat()
            other.leases.beat()
        here = socket.gethostname()
        assert sorted(rows()) == sorted([(app.service.leases.owner, here), (other.leases.owner, here)])
    assert rows() == [(app.service.leases.owner, here)]
    idle = engine.now() - timedelta(days=1)
    with app.db.write_once() as tx:
        busy = [{"owner": owner, "host": "h", "beat": 1, "seen_at": idle} for owner in ("busy", "gone")]
        tx.execute(sa.insert(tables.processes), busy)
        jobs.submit(tx, "upload", "image", {}, owner="busy")
        processes.sweep(tx)
    assert {row.owner for row in rows()} == {app.service.leases.owner, "busy"}


def test_an_idle_runner_notices_that_others_work_and_watches_them(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(leases, "LEASE", timedelta(seconds=0.2))
    with another_host(app, tmp_path) as (other, _):
        job = submit(other)
        app.service.leases.runner_heartbeat()
        until(lambda: app.service.leases.orphans())
        assert claimed(app.service) == [job.id]


def test_a_host_that_takes_over_an_upload_and_its_uploader_agree_on_who_won(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a process is stopped in mid-upload: it goes on after somebody else has cleaned up, or before."""
    for taken in (False, True):
        new = NewImage(disk_format="raw", container_format="bare")
        image_id = lifecycle.create(app.service, ALICE, new).id

        def slow(taken: bool = taken) -> Iterator[bytes]:
            yield b"x" * (1 << 20)
            with another_host(app, tmp_path) as (other, clock):
                wait_out(other, clock, 30 if taken else 25)
                assert Runner(other, 1).run_due_jobs() == taken
            yield b"x"

        source = Pieces(slow())
        if taken:
            with pytest.raises(errors.Conflict, match="given up"):
                data.upload(app.service, ALICE, image_id, source, store_name=None, size=None)
        else:
            data.upload(app.service, ALICE, image_id, source, store_name=None, size=None)
        stored = tmp_path / "one" / image_id
        image = lifecycle.show(app.service, ALICE, image_id)
        if taken:
            assert (image.status, image.size, names(stored.parent)) == ("queued", None, [])
        else:
            assert (image.status, stored.read_bytes()) == ("active", b"x" * ((1 << 20) + 1))
            lifecycle.delete(app.service, ALICE, image_id)
    assert backlog(app) == 0


# --- lock files ------------------------------------------------------------------------------------------

_SCRIPT = (
    "import sys, time; from pathlib import Path; from calotype.db.leases import Leases\n"
    "leases = Leases(None, Path(sys.argv[1])); print(leases.owner, flush=True); time.sleep(60)"
)


def test_a_process_is_alive_until_it_dies(app: App, tmp_path: Path) -> None:
    ours = Leases(app.db, tmp_path / "owners")
    other = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path / "owners")], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    name = other.stdout.readline().strip()
    try:
        assert ours.owner != name
        assert ours.dead_owners() == []
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert ours.dead_owners() == [name]
    app.db.write(lambda tx: processes.beat(tx, name, "host"))
    ours.forget_owners([name])
    assert ours.dead_owners() == []
    ours.close()
    assert os.listdir(tmp_path / "owners") == []
    with app.db.read_once() as tx:
        assert tx.execute(sa.select(tables.processes)).all() == []


def without_database(path: Path) -> Leases:
    return Leases(None, path / "owners")  # type: ignore[arg-type]


def test_a_lock_file_tells_of_its_own_kernel_and_host_alone(tmp_path: Path) -> None:
    ours = without_database(tmp_path)
    directory = ours._directory
    assert ours.owner
    here, boot = socket.gethostname(), leases._boot_id()
    for name, content in {
        "container:7:dead": boot,  # of this kernel
        f"{here}:7:rebooted": "another boot",
        f"{here}:7:old": "",  # of a release that wrote nothing
        "elsewhere:7:unknown": "another boot",
        "elsewhere:7:old": "",
    }.items():
        (directory / name).write_text(content)
    assert sorted(ours.dead_owners()) == sorted(["container:7:dead", f"{here}:7:rebooted", f"{here}:7:old"])


def test_old_files_of_hosts_that_are_gone_go_unless_they_are_known(app: App) -> None:
    ours = app.service.leases
    assert ours.owner
    old = time.time() - 13 * 3600
    names = ["gone:7:a", "busy:7:b", "beats:7:c", "young:7:d", ".gone:7:e"]
    for name in names:
        (ours._directory / name).write_text("another boot")
        if "young" not in name:
            os.utime(ours._directory / name, (old, old))
    app.db.write(lambda tx: jobs.submit(tx, "delete", "image", {}, owner="busy:7:b"))
    app.db.write(lambda tx: processes.beat(tx, "beats:7:c", "beats"))
    neighbour = Leases(app.db, ours._directory)
    for alive in (ours.owner, neighbour.owner):
        os.utime(ours._directory / alive, (old, old))
    ours.remove_stale_files()
    left = ["busy:7:b", "beats:7:c", "young:7:d", ours.owner, neighbour.owner]
    assert sorted(os.listdir(ours._directory)) == sorted(left)
    neighbour.close()


def test_the_dead_are_remembered_while_a_transfer_of_theirs_may_be_left(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(app.service, 1)
    places = iter([None, False])  # first there is no place for a transfer, so none is looked for
    forgotten: list[list[str]] = []
    monkeypatch.setattr(runner, "_start_transfer", lambda _: next(places))
    monkeypatch.setattr(app.service.leases, "forget_owners", forgotten.append)
    runner.run_due_jobs()
    assert forgotten == []
    runner.run_due_jobs()
    assert len(forgotten) == 1


def test_the_pulse_of_a_runner_is_as_old_as_the_monotonic_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leases, "_run", lambda _: None)
    ours = without_database(tmp_path)
    assert ours.runner_heartbeat_age() is None
    ours.runner_heartbeat()
    age = ours.runner_heartbeat_age()
    assert age is not None
    assert 0 <= age < 5
    file = ours._directory / "runner"
    os.utime(file, (0, 0))
    age = ours.runner_heartbeat_age()
    assert age is not None
    assert age < 5
    file.write_text(f"{time.monotonic() - 99} {leases._boot_id()}")
    age = ours.runner_heartbeat_age()
    assert age is not None
    assert 99 <= age < 120
    for text in ("", f"{time.monotonic()} another boot", "nonsense"):
        file.write_text(text)
        assert ours.runner_heartbeat_age() is None


# --- what one of all hosts does --------------------------------------------------------------------------


def lock(svc: Service, name: str = "sweep") -> locks.Lock:
    return locks.Lock(name, timedelta(seconds=10), svc.leases)


def test_a_lock_passes_on_when_its_holder_is_silent_and_the_holder_learns_it(app: App, tmp_path: Path) -> None:
    with another_host(app, tmp_path) as (other, clock):
        ours, theirs = lock(app.service), lock(other)
        assert app.db.write(ours.acquire)
        assert app.db.write(ours.acquire)  # nobody waits for itself
        for _ in range(6):
            assert not app.db.write(theirs.acquire)
            clock.seconds += 4
            assert app.db.write(ours.renew)
        for pause in (3600, 5, 0):  # who waits was away itself, which counts as little as one look
            assert not app.db.write(theirs.acquire)
            clock.seconds += pause
        assert app.db.write(theirs.acquire)
        assert not app.db.write(ours.renew)
        app.db.write(ours.release)  # is none of its business any more
        assert app.db.write(theirs.renew)
        app.db.write(theirs.release)
        assert app.db.write(ours.acquire)


def test_the_lock_of_the_dead_is_free_at_once_and_when_they_are_forgotten(app: App, tmp_path: Path) -> None:
    ours = app.service.leases
    assert ours.owner
    dead = f"{socket.gethostname()}:1:dead"
    (ours._directory / dead).touch()
    take = replace_owner(app, dead)
    assert app.db.write(lock(take).acquire)
    assert app.db.write(lock(app.service).acquire)
    assert app.db.write(lock(take, "events").acquire)
    ours.forget_owners([dead])
    with another_host(app, tmp_path) as (other, _):
        assert app.db.write(lock(other, "events").acquire)


def test_one_process_of_all_sweeps_and_another_one_when_it_ends(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[str] = []
    monkeypatch.setattr(chores, "sweep", lambda svc: swept.append(svc.leases.owner))
    monkeypatch.setattr(worker, "_SWEEP_SECONDS", 0.0)
    monkeypatch.setattr(worker, "_LOCK_POLL_SECONDS", 0.0)
    with another_host(app, tmp_path) as (other, _):
        ours, theirs = Runner(app.service, 1), Runner(other, 1)
        for _ in range(3):
            ours._sweep()
            theirs._sweep()
        assert swept == [app.service.leases.owner] * 3
        ours.start()
        ours.stop()
        theirs._sweep()
        assert swept[-1] == other.leases.owner
