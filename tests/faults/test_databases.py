"""SQLite's disk is full, broken or read-only; so is the one of the log. Requests are answered, and nothing is half done."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from calotype.db import schema
from calotype.db.engine import Database
from tests.crash.disk import CHANGES, Fault
from tests.faults.mounts import failing, faulty, free, full, need_mounts, read_only, tmpfs
from tests.support import Client, Service, names, running, until

pytestmark = pytest.mark.needs("root")

CONF = "[jobs]\npoll = 0.1\n"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _may_mount() -> None:
    need_mounts()


@pytest.fixture
def mounts() -> Iterator[ExitStack]:
    """What is mounted is unmounted after the test, and services are stopped before."""
    with ExitStack() as made:
        yield made


def on(mounts: ExitStack, place: Path, state: Path, conf: str = CONF) -> Service:
    """A service whose database alone is at `place`."""
    database = f"sqlite:///{place / 'calotype.db'}"
    state.mkdir(mode=0o700)
    with closing(Database(database)) as made:
        schema.sync(made)
    return run(mounts, state, conf, database)


def run(mounts: ExitStack, state: Path, conf: str, database: str = "") -> Service:
    """A service that is killed in the end, before its disks go: how one stops is another matter, and takes longer."""
    service = mounts.enter_context(running(state, conf, database=database))
    mounts.callback(service.kill)
    return service


def listed(client: Client) -> set[str]:
    found = client.get("/v2/images?limit=1000")
    assert found.status_code == 200, found.text
    return {image["id"] for image in found.json()["images"]}


def is_sound(place: Path) -> bool:
    with sqlite3.connect(place / "calotype.db") as database:
        found = database.execute("PRAGMA integrity_check").fetchall()
    database.close()
    return found == [("ok",)]


def refused(answer: Any) -> bool:
    """Whether a request was; one with data is answered with what no client repeats by itself."""
    assert answer.status_code in (201, 503, 507), answer.text
    if answer.status_code == 201:
        return False
    assert "database" in answer.text
    assert ("Retry-After" in answer.headers) is (answer.status_code == 503)
    return True


def test_a_database_that_grew_until_its_disk_was_full_goes_on_when_there_is_room(
    state: Path, tmp_path: Path, mounts: ExitStack
) -> None:
    place = tmp_path / "db"
    mounts.enter_context(tmpfs(place, 3 * MIB))
    service = on(mounts, place, state)
    client = service.client()
    first = client.active(b"some data")
    made = {first}
    filled = mounts.enter_context(ExitStack())
    filled.enter_context(full(place, leave=200 << 10))  # the log grows into what is left
    for number in range(2000):
        answer = client.create(name="n" * 200, tags=[f"{number}-{tag}" + "t" * 200 for tag in range(20)])
        if refused(answer):
            break
        made.add(answer.json()["id"])
    else:
        pytest.fail("the disk was never full")
    assert listed(client) == made, "reading goes on, and nothing is half done"
    assert client.file(first).content == b"some data"
    assert client.get("/healthcheck").ok
    filled.close()
    made.add(client.active(b"more data"))
    assert listed(client) == made
    assert is_sound(place)


FAULTS = {
    "full": (Fault("write", errno.ENOSPC),),
    "broken": (Fault("write", errno.EIO),),
    "not synced": (Fault("fsync", errno.EIO),),
    "read-only": tuple(Fault(call, errno.EROFS) for call in CHANGES),
}


def test_what_the_database_cannot_record_is_refused_and_undone_when_it_can(
    state: Path, tmp_path: Path, mounts: ExitStack
) -> None:
    place = tmp_path / "db"
    disk = mounts.enter_context(faulty(place))
    service = on(mounts, place, state)
    client = service.client()
    for faults in FAULTS.values():
        kept, begun, waiting = client.active(b"kept"), client.queued(), client.queued()
        with ExitStack() as failed:

            def body(begun: str, faults: tuple[Fault, ...], failed: ExitStack) -> Iterator[bytes]:
                yield b"x" * MIB
                until(lambda: client.show(begun)["status"] == "saving")
                failed.enter_context(failing(disk, *faults))

            assert refused(service.client().put(begun, body(begun, faults, failed)))
            assert refused(client.put(waiting, b"some data"))
            assert refused(client.create())
            assert refused(client.delete(kept))
            assert client.file(kept).content == b"kept", "reading goes on"
            assert client.show(waiting)["status"] == "queued"
        until(lambda begun=begun: client.show(begun)["status"] == "queued")  # type: ignore[misc]
        until(lambda kept=kept: names(service.images) == [kept])  # type: ignore[misc]
        for image_id in (begun, waiting):
            assert client.put(image_id, b"some data").status_code == 204
        assert client.file(begun).content == b"some data"
        assert listed(client) == {kept, begun, waiting}
        for image_id in (kept, begun, waiting):
            assert client.delete(image_id).status_code == 204
    service.kill()
    assert is_sound(place)


def test_one_failure_of_the_disk_costs_one_request(state: Path, tmp_path: Path, mounts: ExitStack) -> None:
    place = tmp_path / "db"
    disk = mounts.enter_context(faulty(place))
    service = on(mounts, place, state, "[jobs]\npoll = 600\n")
    client = service.client()
    made = {client.active(b"some data")}
    failures = 0
    for call in ("write", "fsync"):
        for after in range(4):
            with failing(disk, Fault(call, errno.EIO, after=after, times=1)):
                answers = [client.create() for _ in range(4)]
            failed = sum(map(refused, answers))
            assert failed <= 1
            failures += failed
            made |= {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert failures >= 4, "what strikes a page of shared memory is heard by nobody; most others are"
    assert listed(client) == made
    service.kill()
    # The last one may have been written and not answered; nothing else is there that was not.
    assert service.start().client().create().status_code == 201
    assert listed(client) > made
    assert is_sound(place)


def test_a_service_with_a_read_only_database_says_so_at_its_start(
    state: Path, tmp_path: Path, mounts: ExitStack
) -> None:
    place = tmp_path / "db"
    mounts.enter_context(tmpfs(place, 8 * MIB))
    service = on(mounts, place, state)
    service.stop()
    # A log that is left, as when a thread was at work at the end, can be read where it cannot be made.
    with closing(sqlite3.connect(place / "calotype.db")) as last:
        last.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (
        read_only(place),
        pytest.raises(RuntimeError, match=r"calotype: The database .* cannot be written: .* read-only"),
    ):
        service.start()


def test_a_service_with_a_read_only_store_starts_and_gives_what_it_has(
    state: Path, tmp_path: Path, mounts: ExitStack
) -> None:
    place = tmp_path / "images"
    mounts.enter_context(tmpfs(place, 8 * MIB))
    conf = f"{CONF}[glance_store]\nfilesystem_store_reserve = 0\nfilesystem_store_datadir = {place}\n"
    service = run(mounts, state, conf)
    client = service.client()
    kept = client.active(b"some data")
    service.kill()
    with read_only(place):
        service.start()
        client = service.client()
        assert client.file(kept).content == b"some data"
        image_id = client.queued()
        answer = client.put(image_id, b"some data")
        assert (answer.status_code, client.show(image_id)["status"]) == (507, "queued")
        assert "Read-only" in answer.text
    assert client.put(image_id, b"some data").status_code == 204


@pytest.mark.parametrize("log", ["log_file", "stderr"])
def test_a_log_that_cannot_be_written_fails_no_request(
    state: Path, tmp_path: Path, mounts: ExitStack, log: str
) -> None:
    place = tmp_path / "logs"
    mounts.enter_context(tmpfs(place, MIB))
    file = place / "calotype.log"
    conf = f"[DEFAULT]\nlog_file = {file}\n" if log == "log_file" else "[DEFAULT]\n"
    if log == "stderr":
        state.mkdir(mode=0o700)
        (state / "serve.log").symlink_to(file)
    with full(place):
        assert free(place) == 0
        client = run(mounts, state, conf).client()
        image_id = client.active(b"some data")
        assert client.put(image_id, b"other data").status_code == 409
        truncated = client.queued(disk_format="qcow2")
        assert client.put(truncated, b"no qcow2").status_code == 415  # a line of the log
        assert client.file(image_id).content == b"some data"
    before = file.stat().st_size
    assert client.put(truncated, b"no qcow2").status_code == 415
    until(lambda: truncated in file.read_text()[before:])
