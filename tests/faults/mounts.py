"""Small file systems for the length of a block: what fills up, has no inodes left, or becomes read-only.

A file system that answers single calls with an error is `Mounted` in `tests/crash/disk.py`.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.disk import Disk, Fault, Mounted
from tests.support import tool


def need_mounts() -> None:
    """Skip where nobody may mount; on CI that is a failure."""
    if (os.geteuid() != 0 or not os.path.exists("/dev/fuse")) and "CI" not in os.environ:
        pytest.skip("it takes root and /dev/fuse to mount a file system")


@contextlib.contextmanager
def tmpfs(place: Path, size: int) -> Iterator[Path]:
    """Memory of `size` bytes."""
    with _mounted(place, "-t", "tmpfs", "-o", f"size={size}", "calotype-test"):
        yield place


@contextlib.contextmanager
def ext4(place: Path, size: int, inodes: int) -> Iterator[Path]:
    """A real disk's file system in a file of `size` bytes beside `place`."""
    file = place.with_name(f"{place.name}.img")
    with file.open("wb") as made:
        made.truncate(size)
    options = ["-q", "-F", "-t", "ext4", "-m", "0", "-N", str(inodes), "-O", "^has_journal"]
    subprocess.run([tool("mke2fs"), *options, file], check=True)
    with _mounted(place, "-o", "loop", file):
        yield place


@contextlib.contextmanager
def faulty(place: Path) -> Iterator[Mounted]:
    """A disk that goes wrong when it is told to."""
    disk = Mounted(Disk.empty(), place)
    try:
        yield disk
    finally:
        disk.close()


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    _run("mount", "-o", "remount,ro", place)
    try:
        yield
    finally:
        _run("mount", "-o", "remount,rw", place)


@contextlib.contextmanager
def failing(disk: Mounted, *faults: Fault) -> Iterator[None]:
    disk.fail(*faults)
    try:
        yield
    finally:
        disk.fail()


@contextlib.contextmanager
def full(place: Path, *, leave: int = 0) -> Iterator[None]:
    """Somebody else's file takes all the room but so many bytes."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        if (room := free(place) - leave) > 0:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, room)
        if not leave:
            with contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
    try:
        yield
    finally:
        filler.unlink()


def free(place: Path) -> int:
    """Bytes."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def _mounted(place: Path, *arguments: str | Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    _run("mount", *arguments, place)
    try:
        yield
    finally:
        # A process that still has a file there must not keep it mounted.
        _run("umount", "--lazy", place)


def _run(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
