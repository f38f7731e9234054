"""Uploads whose clients fall silent in the middle, many of them at one service; what it then holds for them.

    python -m tests.api.silent [--uploads N]

prints figures; `test_silent.py` holds the service to them.
"""

import argparse
import base64
import contextlib
import hashlib
import random
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.api.slow import worker
from tests.support import PASSWORD, Service, running

MIB = 1 << 20
#: What is sent before the silence, and after it.
FIRST, REST = 6 * MIB, 100_000
DATA = random.Random(14).randbytes(FIRST + REST)
HASH = hashlib.sha512(DATA).hexdigest()
CHUNK = 64 << 10
#: So that nobody is given up while others still send.
CONF = "[server]\nclient_timeout = 600\nmin_rate = 0\n"
_BASIC = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()


@dataclass(frozen=True)
class Held:
    """What the worker has: MiB, threads."""

    memory: float
    threads: int


def held(service: Service) -> Held:
    process = worker(service)
    return Held(process.memory_full_info().pss / MIB, process.num_threads())


def environment() -> dict[str, str]:
    """What the sample of a unit sets."""
    unit = (Path(__file__).parents[2] / "etc/systemd/calotype.service").read_text()
    return dict(line.split("=", 1) for line in re.findall("^Environment=(.*)", unit, re.MULTILINE))


class Upload:
    """An upload in two parts."""

    def __init__(self, service: Service, image_id: str, *, chunked: bool) -> None:
        self.image_id = image_id
        self._chunked = chunked
        self._sock = socket.create_connection(("127.0.0.1", service.port), timeout=300)
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(DATA)}"
        self._sock.sendall(
            f"PUT /v2/images/{image_id}/file HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {_BASIC}\r\n"
            f"Content-Type: application/octet-stream\r\n{framing}\r\n\r\n".encode()
        )

    def begin(self) -> None:
        """Send most of it."""
        self._send(memoryview(DATA)[:FIRST])

    def end(self) -> bytes:
        """Send the rest; the first line of the answer."""
        self._send(memoryview(DATA)[FIRST:])
        if self._chunked:
            self._sock.sendall(b"0\r\n\r\n")
        answer = self._sock.recv(4096)
        self._sock.close()
        return answer.partition(b"\r\n")[0]

    def close(self) -> None:
        self._sock.close()

    def _send(self, data: memoryview) -> None:
        if not self._chunked:
            self._sock.sendall(data)
            return
        for at in range(0, len(data), CHUNK):
            piece = data[at : at + CHUNK]
            self._sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))


@contextlib.contextmanager
def silent(service: Service, count: int) -> Iterator[Sequence[Upload]]:
    """So many uploads that have sent most of their data and are silent; every second one is chunked."""
    alice = service.client()
    uploads = [Upload(service, alice.queued(), chunked=bool(number % 2)) for number in range(count)]
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(Upload.begin, uploads))
        end = time.monotonic() + 120
        while any(one.stat().st_size < FIRST for one in service.images.glob("*.part")):
            assert time.monotonic() < end, "what was sent is not handed on"
            time.sleep(0.05)
        yield uploads
    finally:
        for one in uploads:
            one.close()


@contextlib.contextmanager
def peak(service: Service) -> Iterator[list[Held]]:
    """The most that the worker has during the block: memory and threads, as the one element of the list."""
    most, done = [held(service)], threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            now = held(service)
            most[0] = Held(max(most[0].memory, now.memory), max(most[0].threads, now.threads))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.api.silent", description="What silent uploads cost.")
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--plain", action="store_true", help="without what the sample of a unit says about malloc")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="calotype-silent-") as state,
        running(Path(state), CONF, environment={} if args.plain else environment(), plain=True) as service,
    ):
        service.client().active(DATA)
        print("idle  ", held(service))
        with peak(service) as most:
            begun = time.monotonic()
            with silent(service, args.uploads) as uploads:
                print(f"sent   in {time.monotonic() - begun:.1f} s, at the peak {most[0]}")
                time.sleep(2)
                print("silent", held(service))
                begun = time.monotonic()
                with ThreadPoolExecutor(8) as pool:
                    answers = list(pool.map(Upload.end, uploads))
                print(f"ended  in {time.monotonic() - begun:.1f} s, {sum(b' 204 ' in one for one in answers)} with 204")
        print("peak  ", most[0])
        hashes = [service.client().show(one.image_id)["os_hash_value"] for one in uploads]
        print("right ", hashes.count(HASH))
        time.sleep(12)
        print("after ", held(service))
        print(service.log[-3000:] if "Traceback" in service.log else "no traceback")


if __name__ == "__main__":
    main()
