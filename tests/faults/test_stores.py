"""Disks of stores that are full, broken or read-only: who asks is told, and nothing is left of it.

One service for all; its stores are file systems of their own.
"""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from calotype import errors
from calotype.db import images as db_images
from calotype.db import tables
from calotype.db.engine import Database, now
from tests.crash.disk import CHANGES, Fault, Mounted
from tests.faults.mounts import ext4, failing, faulty, free, full, need_mounts, read_only, tmpfs
from tests.stores.suite import write
from tests.stores.test_contract import file_store
from tests.support import Client, Service, names, running, until

pytestmark = pytest.mark.needs("root", "mke2fs")

MIB = 1 << 20
CONF = """\
[DEFAULT]
enabled_backends = sound:file, memory:file, disk:file, faulty:file
[glance_store]
default_backend = sound
[backend_defaults]
filesystem_store_reserve = 0
[sound]
filesystem_store_datadir = {path}/sound
[memory]
filesystem_store_datadir = {path}/memory/images
[disk]
filesystem_store_datadir = {path}/disk/images
[faulty]
filesystem_store_datadir = {path}/faulty/images
weight = 100
[jobs]
poll = 0.1
"""


@dataclass
class Place:
    """The service, and the disks under its stores."""

    service: Service
    client: Client
    path: Path
    disk: Mounted

    def names(self, store: str) -> list[str]:
        return names(self.path / store / "images")

    def holds(self, store: str, image_id: str) -> bool:
        """Whether the data of an image is there, under whatever name."""
        return any(image_id in path.name for path in (self.path / store / "images").iterdir())

    def put(self, store: str, data: Any, image_id: str = "") -> tuple[str, requests.Response]:
        image_id = image_id or self.client.queued()
        return image_id, self.client.put(image_id, data, X_Image_Meta_Store=store)

    def stored(self, store: str, data: bytes) -> str:
        image_id, done = self.put(store, data)
        assert done.status_code == 204, done.text
        return image_id

    def as_before(self, image_id: str, store: str, kept: list[str], data: bytes = b"as if nothing had been") -> None:
        """The image waits for data, the store has what it had, and the next upload goes well."""
        until(lambda: self.client.show(image_id)["status"] == "queued")
        assert self.names(store) == kept
        _, done = self.put(store, data, image_id)
        assert done.status_code == 204, done.text
        assert self.client.file(image_id).content == data
        assert self.client.delete(image_id).status_code == 204
        assert self.names(store) == kept

    @contextmanager
    def database(self) -> Iterator[Any]:
        database = Database(self.service.database_url)
        try:
            with database.write_once() as tx:
                yield tx
        finally:
            database.close()

    def hurry(self) -> None:
        """Jobs wait for leases and pauses no longer."""
        with self.database() as tx:
            tx.execute(sa.update(tables.jobs).values(due_at=now()))

    def jobs(self) -> list[Any]:
        with self.database() as tx:
            return list(tx.execute(sa.select(tables.jobs)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    need_mounts()
    path = tmp_path_factory.mktemp("stores")
    with ExitStack() as mounts:
        mounts.enter_context(tmpfs(path / "memory", 3 * MIB))
        mounts.enter_context(ext4(path / "disk", 4 * MIB, inodes=32))
        disk = mounts.enter_context(faulty(path / "faulty"))
        service = mounts.enter_context(running(path / "state", CONF.format(path=path)))
        client = service.client()
        yield Place(service, client, path, disk)
        client.session.close()


@pytest.fixture(autouse=True)
def _nothing_is_left(place: Place) -> Iterator[None]:
    yield
    assert place.jobs() == []


def chunked(size: int) -> Iterator[bytes]:
    """A body whose size is known only when it is over."""
    while size > 0:
        yield b"x" * min(size, 64 << 10)
        size -= 64 << 10


@pytest.mark.parametrize("store", ["memory", "disk"])
@pytest.mark.parametrize("body", [lambda size: b"x" * size, chunked], ids=["announced", "chunked"])
def test_a_full_disk_is_told_and_a_later_upload_finds_the_room_again(place: Place, store: str, body: Any) -> None:
    image_id, refused = place.put(store, body(free(place.path / store) + MIB))
    assert refused.status_code == 413, refused.text
    assert "no room" in refused.text
    place.as_before(image_id, store, [], b"x" * MIB)


def test_room_may_be_used_to_the_last_byte_and_no_further(place: Place) -> None:
    room = free(place.path / "memory")
    image_id, refused = place.put("memory", chunked(room + 1))
    assert refused.status_code == 413
    place.as_before(image_id, "memory", [], b"x" * room)


def test_of_two_uploads_for_which_there_is_no_room_what_fails_leaves_nothing(place: Place) -> None:
    size = free(place.path / "memory") * 6 // 10
    ids = [place.client.queued() for _ in range(2)]
    answers: dict[str, int] = {}

    def send(image_id: str) -> None:
        client = place.service.client()
        headers = {"X_Image_Meta_Store": "memory"}
        answers[image_id] = client.put(image_id, chunked(size), **headers).status_code

    threads = [threading.Thread(target=send, args=(image_id,)) for image_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stored = [image_id for image_id in ids if answers[image_id] == 204]
    assert sorted(answers.values()) in ([204, 413], [413, 413])
    assert place.names("memory") == stored
    for image_id in stored:
        assert place.client.delete(image_id).status_code == 204
    for image_id in ids:
        if image_id not in stored:
            place.as_before(image_id, "memory", [], b"x" * size)


def test_a_disk_that_somebody_else_fills_in_mid_upload_is_told(place: Place) -> None:
    with ExitStack() as filled:

        def body() -> Iterator[bytes]:
            yield b"x" * MIB
            filled.enter_context(full(place.path / "disk"))
            yield from chunked(MIB)

        image_id, refused = place.put("disk", body())
    assert refused.status_code == 413
    place.as_before(image_id, "disk", [])


def test_a_disk_without_inodes_is_full(place: Place) -> None:
    spare = place.path / "disk" / "spare"
    spare.mkdir()
    with pytest.raises(OSError, match="No space left"):
        for number in range(100):
            (spare / str(number)).touch()
    image_id, refused = place.put("disk", b"some data")
    for file in spare.iterdir():
        file.unlink()
    spare.rmdir()
    assert refused.status_code == 413
    place.as_before(image_id, "disk", [])


def test_a_read_only_disk_gives_what_it_has_and_takes_nothing(place: Place) -> None:
    kept, doomed = place.stored("disk", b"to be kept"), place.stored("disk", b"to be deleted")
    with read_only(place.path / "disk"):
        image_id, refused = place.put("disk", b"some data")
        assert refused.status_code == 507
        assert "Read-only file system" in refused.text
        assert place.client.show(image_id)["status"] == "queued", "there was nothing to clean up"
        assert place.client.file(kept).content == b"to be kept"
        assert place.client.delete(doomed).status_code == 204
        assert place.client.file(doomed).status_code == 404
        assert place.names("disk") == sorted([kept, doomed])
    place.hurry()
    until(lambda: place.names("disk") == [kept])
    place.as_before(image_id, "disk", [kept])
    assert place.client.delete(kept).status_code == 204
    until(lambda: place.jobs() == [])


#: What the disk says, and what the client hears.
FULL = ((errno.ENOSPC, 413), (errno.EDQUOT, 413))
BROKEN = ((errno.EIO, 507), (errno.EROFS, 507))
FAULTS = [
    (call, number, status)
    for call, answers in {
        "create": (*FULL, *BROKEN),
        "write": (*FULL, *BROKEN),
        "fsync": (*FULL, *BROKEN),
        "link": (*FULL, *BROKEN),
        "unlink": BROKEN,
        "fsyncdir": (*FULL, *BROKEN),
    }.items()
    for number, status in answers
]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize(("call", "number", "status"), FAULTS, ids=[f"{c}-{errno.errorcode[n]}" for c, n, _ in FAULTS])
def test_whatever_call_fails_the_client_is_told_and_nothing_is_left(
    place: Place, call: str, number: int, status: int, lasting: bool
) -> None:
    fault = Fault(call, number, after=int(call == "write"), times=1 << 30 if lasting else 1)
    with failing(place.disk, fault):
        image_id, refused = place.put("faulty", b"x" * (2 * MIB + 1))
        assert refused.status_code == status, refused.text
        if not lasting:
            assert place.client.show(image_id)["status"] == "queued"
            assert place.names("faulty") == []
    place.hurry()
    place.as_before(image_id, "faulty", [])


@pytest.mark.parametrize("call", ["write", "fsync", "link", "unlink", "fsyncdir"])
def test_a_store_whose_disk_fails_once_leaves_nothing_for_a_cleaner(place: Place, call: str) -> None:
    store = file_store(place.path / "faulty", "alone", filesystem_store_reserve=0)
    with failing(place.disk, Fault(call, errno.EIO, times=1)), pytest.raises(errors.StoreUnavailable):
        write(store, [b"some data"])
    assert names(store.directory) == []


def test_a_disk_that_becomes_read_only_in_mid_upload_is_cleaned_up_when_it_can_be(place: Place) -> None:
    kept = place.stored("faulty", b"to be kept")
    with ExitStack() as turned:

        def body() -> Iterator[bytes]:
            yield b"x" * (2 * MIB)
            until(lambda: len(place.names("faulty")) == 2)
            turned.enter_context(failing(place.disk, *(Fault(call, errno.EROFS) for call in CHANGES)))
            yield b"x" * (2 * MIB)

        image_id, refused = place.put("faulty", body())
        assert refused.status_code == 507
        assert place.client.show(image_id)["status"] == "saving"
        assert len(place.names("faulty")) == 2
        assert place.client.file(kept).content == b"to be kept"
    place.hurry()
    place.as_before(image_id, "faulty", [kept])
    assert place.client.delete(kept).status_code == 204


# --- reading ---------------------------------------------------------------------------------------------


def forget(file: Path) -> None:
    """Have the kernel ask the disk again for what it knows of a file."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("reads", [0, 5])
def test_a_download_of_unreadable_data_breaks_off_and_never_ends_well(place: Place, reads: int) -> None:
    data = os.urandom(8 * MIB)
    image_id = place.stored("faulty", data)
    forget(place.path / "faulty" / "images" / image_id)
    broken = pytest.raises(requests.RequestException, match=r"IncompleteRead|ConnectionReset|broken")
    logged = len(place.service.log)
    with failing(place.disk, Fault("read", errno.EIO, after=reads)), broken:
        place.client.file(image_id)
    said = place.service.log[logged:]
    assert said.count(f"GET /v2/images/{image_id}/file: the answer broke off: {os.strerror(errno.EIO)}") == 1
    assert "Traceback" not in said
    assert place.client.file(image_id).content == data
    assert place.client.delete(image_id).status_code == 204


def test_a_copy_that_cannot_be_opened_is_passed_over(place: Place) -> None:
    image_id = place.stored("faulty", b"some data")
    other = place.path / "sound" / image_id
    other.write_bytes(b"some data")
    with place.database() as tx:
        db_images.add_location(tx, image_id, f"file://{other}", {"store": "sound"}, now())
    with failing(place.disk, Fault("open", errno.EIO)):
        found = place.client.file(image_id)
        assert (found.status_code, found.content) == (200, b"some data")
        other.rename(other.with_suffix(".away"))
        assert place.client.file(image_id).status_code == 503
        other.with_suffix(".away").rename(other)
    assert place.client.delete(image_id).status_code == 204


def test_data_that_cannot_be_deleted_is_deleted_later(place: Place) -> None:
    image_id = place.stored("faulty", b"some data")
    with failing(place.disk, Fault("unlink", errno.EIO)):
        assert place.client.delete(image_id).status_code == 204
        (job,) = place.jobs()
        assert (job.kind, job.state) == ("delete", "pending")
        assert "Input/output error" in job.error
        assert place.holds("faulty", image_id)  # taken aside, and not removed
        place.hurry()
        until(lambda: [job.attempt for job in place.jobs()] == [2] and place.jobs()[0].state == "pending")
    place.hurry()
    until(lambda: place.jobs() == [])
    assert not place.holds("faulty", image_id)
