"""Real image files, made with the tools that people make them with."""

import functools
import subprocess
import tempfile
from pathlib import Path

from tests.support import tool


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=120)


@functools.cache
def directory() -> Path:
    """Holds the files for the length of a test run."""
    return Path(tempfile.mkdtemp(prefix="calotype-images-"))


@functools.cache
def tree() -> Path:
    """Some files to put into a file system."""
    root = directory() / "tree"
    (root / "boot").mkdir(parents=True)
    for number in range(50):
        (root / f"file{number}").write_bytes(bytes(range(256)) * number * 40)
    (root / "boot" / "config").write_text("quiet\n")
    return root


@functools.cache
def iso() -> Path:
    path = directory() / "disc.iso"
    run(tool("xorriso"), "-as", "mkisofs", "-quiet", "-R", "-V", "CALOTYPE", "-o", path, tree())
    return path


@functools.cache
def raw() -> Path:
    """A disk of 96 MiB with a partition table and an ext4 file system with files in it."""
    path, system = directory() / "disk.raw", directory() / "fs"
    size = 94 << 20
    with system.open("wb") as file:
        file.truncate(size)
    run(tool("mke2fs"), "-q", "-F", "-t", "ext4", "-d", tree(), system)
    with path.open("wb") as file:
        file.truncate(96 << 20)
    layout = f"label: gpt\nstart=2048, size={size // 512}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n"
    subprocess.run([tool("sfdisk"), "-q", path], input=layout.encode(), check=True, capture_output=True, timeout=60)
    with path.open("r+b") as disk, system.open("rb") as source:
        disk.seek(1 << 20)
        while block := source.read(1 << 20):
            disk.write(block)
    system.unlink()
    return path


@functools.cache
def qcow2() -> Path:
    path = directory() / "disk.qcow2"
    run(tool("qemu-img"), "convert", "-q", "-f", "raw", "-O", "qcow2", raw(), path)
    return path
