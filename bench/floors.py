"""What moving bytes costs at least on this machine: the figures that a server's own are divided by.

Three naked loops without a server: hashing, receiving into a synced file, sending a cached file. Each function
returns the CPU-seconds (user and system) of its own process alone; the other end of the socket is a separate process
and is not counted. `measure` runs them in turns, so that a machine that slows down slows all, and takes medians.

    python bench/floors.py [directory] [--size MiB] [--times N]
"""

import argparse
import hashlib
import json
import os
import resource
import socket
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Floors:
    """Medians in CPU-seconds for `size` bytes."""

    size: int
    hash: float
    receive: float
    send: float

    @property
    def upload(self) -> float:
        """The least that a hashing upload can cost."""
        return self.hash + self.receive


def cpu_seconds() -> float:
    """What this process, with all of its threads, has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def hash_floor(size: int = GIB, names: tuple[str, ...] = ("md5", "sha512")) -> float:
    """Hash `size` bytes of warm memory, 1 MiB at a time, once for each name."""
    block = bytes(range(256)) * (MIB // 256)
    hashes = [hashlib.new(name, usedforsecurity=False) for name in names]
    begin = cpu_seconds()
    for _ in range(size // MIB):
        for one in hashes:
            one.update(block)
    return cpu_seconds() - begin


def receive_floor(directory: Path, size: int = GIB) -> float:
    """Receive `size` bytes from a loopback socket into a file, 1 MiB at a time, and sync it."""
    with tempfile.NamedTemporaryFile(dir=directory, buffering=0) as file, _peer(_send(size)) as sock:
        buffer = memoryview(bytearray(MIB))
        begin = cpu_seconds()
        seen = 0
        # MSG_WAITALL: else the file is written in odd pieces, which costs up to twice as much and flatters servers.
        while got := sock.recv_into(buffer, 0, socket.MSG_WAITALL):
            piece = buffer[:got]
            while piece:
                piece = piece[file.write(piece) :]
            seen += got
        os.fsync(file.fileno())
        used = cpu_seconds() - begin
    if seen != size:
        raise RuntimeError(f"received {seen} of {size} bytes")
    return used


def send_floor(path: Path) -> float:
    """Send a file, which should be in the page cache, to a loopback socket by sendfile."""
    size = path.stat().st_size
    with path.open("rb") as file, _peer(_drain) as sock:
        begin = cpu_seconds()
        sent = 0
        while sent < size:
            sent += os.sendfile(sock.fileno(), file.fileno(), sent, size - sent)
        return cpu_seconds() - begin


@contextmanager
def cached_file(directory: Path, size: int = GIB) -> Iterator[Path]:
    """A file of `size` bytes that is in the page cache."""
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        block = os.urandom(MIB)
        for _ in range(size // MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())  # writing it back must not fall into a measurement
        yield Path(file.name)


def measure(directory: Path, size: int = GIB, times: int = 5) -> Floors:
    """All floors, `times` times in turns."""
    runs: list[tuple[float, float, float]] = []
    with cached_file(directory, size) as path:
        for _ in range(times):
            runs.append((hash_floor(size), receive_floor(directory, size), send_floor(path)))
    hashes, receives, sends = (statistics.median(column) for column in zip(*runs, strict=True))
    return Floors(size=size, hash=hashes, receive=receives, send=sends)


@contextmanager
def _peer(work: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A socket whose other end is at work in another process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if child == 0:
            try:
                with socket.create_connection(listener.getsockname()) as sock:
                    work(sock)
            finally:
                os._exit(0)
        try:
            sock, _ = listener.accept()
            with sock:
                yield sock
        finally:
            os.waitpid(child, 0)


def _send(size: int) -> Callable[[socket.socket], None]:
    def work(sock: socket.socket) -> None:
        block = os.urandom(MIB)
        for _ in range(size // MIB):
            sock.sendall(block)

    return work


def _drain(sock: socket.socket) -> None:
    buffer = bytearray(MIB)
    while sock.recv_into(buffer):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what hashing, receiving and sending cost at least.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--size", type=int, default=1024, help="MiB to move (default: %(default)s)")
    parser.add_argument("--times", type=int, default=5, help="repetitions (default: %(default)s)")
    wanted = parser.parse_args()
    floors = measure(wanted.directory, wanted.size * MIB, wanted.times)
    print(json.dumps({**asdict(floors), "upload": floors.upload}, indent=2))


if __name__ == "__main__":
    main()
