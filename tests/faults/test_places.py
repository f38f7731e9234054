"""File systems of stores that are not there, go, or are mounted over, beneath a running service."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from calotype.cli import main
from tests.faults.mounts import need_mounts, tmpfs
from tests.support import Service, names, running

pytestmark = pytest.mark.needs("root")

DISK = """\
[DEFAULT]
enabled_backends = disk:file, other:file
[glance_store]
default_backend = disk
[disk]
filesystem_store_datadir = {state}/disk
filesystem_store_reserve = 0
[other]
filesystem_store_datadir = {state}/other
"""
SIZE = 32 << 20


@pytest.fixture(autouse=True)
def mountable() -> None:
    need_mounts()


@contextlib.contextmanager
def serving(state: Path) -> Iterator[Service]:
    with running(state, DISK.format(state=state)) as service:
        yield service


def command(service: Service, *arguments: str) -> int:
    return main.main([*arguments, *map(str, service.place)])


def test_a_file_system_that_is_not_mounted_costs_no_image_and_takes_none(state: Path) -> None:
    with tmpfs(state / "disk", SIZE) as disk:
        with serving(state) as service:
            kept = [service.client().active(b"x" * number) for number in range(1, 6)]
        files = {name: (disk / name).read_bytes() for name in [*names(disk), ".calotype-store"]}
    # Not mounted; and somebody puts an image into the bare directory.
    with serving(state) as service:
        alice = service.client()
        waits = alice.queued()
        assert alice.put(waits, b"new").status_code == 507
        assert alice.show(waits)["status"] == "queued"
        assert names(state / "disk") == []
        (state / "disk" / waits).write_bytes(b"new")
        assert command(service, "repair", "--yes", "--older-than", "0") == 3
        assert {alice.show(image_id)["status"] for image_id in kept} == {"active"}
        assert names(state / "disk") == [waits]
        assert "store disk takes no writes" in service.log
        assert "mounted?" in service.log
        detail = service.client("admin").get("/v2/info/stores/detail").json()["stores"]
        assert {one["id"]: one["status"] for one in detail} == {"disk": "unavailable", "other": "available"}
        assert "mounted" in next(one["last_error"] for one in detail if one["id"] == "disk")
        with tmpfs(state / "disk", SIZE) as disk:
            for name, data in files.items():
                (disk / name).write_bytes(data)
            assert [alice.file(image_id).content for image_id in kept] == [b"x" * number for number in range(1, 6)]
            assert alice.put(waits, b"new").status_code == 204  # and no restart is needed
            assert waits in names(disk)


def test_what_is_mounted_over_a_store_gets_nothing_and_nothing_lies_beneath(state: Path) -> None:
    with serving(state) as service:
        alice = service.client()
        kept = alice.active(b"kept")
        with tmpfs(state / "disk", SIZE) as disk:
            waits = alice.queued()
            assert alice.put(waits, b"new").status_code == 507
            assert names(disk) == []
        assert names(state / "disk") == [kept]
        assert alice.put(waits, b"new").status_code == 204
        assert alice.file(kept).content == b"kept"


@pytest.mark.parametrize("gone", ["unmounted", "mounted over"])
def test_no_upload_is_acknowledged_into_a_file_system_that_is_gone(state: Path, gone: str) -> None:
    with contextlib.ExitStack() as mounts:
        mounts.enter_context(tmpfs(state / "disk", SIZE))
        with serving(state) as service:
            alice = service.client()
            before, during = alice.queued(), alice.queued()
            sent, go_on = threading.Event(), threading.Event()

            def body() -> Iterator[bytes]:
                yield b"half" * 500_000
                sent.set()
                go_on.wait(20)
                yield b"rest"

            answers: list[int] = []
            upload = threading.Thread(target=lambda: answers.append(alice.put(during, body()).status_code))
            upload.start()
            assert sent.wait(20)
            if gone == "unmounted":
                mounts.close()  # lazily, as it is in use
            else:
                mounts.enter_context(tmpfs(state / "disk", SIZE))
            bob = service.client()
            assert bob.put(before, b"new").status_code == 507
            go_on.set()
            upload.join(30)
            assert answers == [507]
            assert {bob.show(image_id)["status"] for image_id in (before, during)} == {"queued"}
            assert names(state / "disk") == []
            assert bob.put(during, b"elsewhere", x_image_meta_store="other").status_code == 204


def test_a_state_directory_that_was_moved_serves_its_images(state: Path, tmp_path: Path) -> None:
    with running(state) as service:
        image_id, gone = service.client().active(b"kept"), service.client().active(b"gone")
    state.rename(tmp_path / "moved")
    with running(tmp_path / "moved", port=service.port) as moved:
        alice = moved.client()
        assert alice.file(image_id).content == b"kept"
        assert alice.delete(gone).status_code == 204
        assert names(moved.images) == [image_id]
        assert command(moved, "store", "relocate", "local") == 0
        assert alice.file(image_id).content == b"kept"
    assert "it was at" in moved.log
