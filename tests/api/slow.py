"""Clients that take their time, a thousand of them at one service, and how those fare who do not.

    python -m tests.api.slow [--sockets N] [--seconds S]

prints figures; `test_slow.py` holds the service to them.
"""

import argparse
import base64
import contextlib
import itertools
import multiprocessing
import os
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from tests.support import PASSWORD, Service, running

LARGE = 64 << 20  #: more than all buffers between a service and a client that does not read
_BASIC = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
_HEAD = "{} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + _BASIC + "\r\n"
_OCTETS = "Content-Type: application/octet-stream\r\n"


@dataclass(frozen=True)
class Figures:
    """Seconds of the 99th of a hundred healthy requests, and what the worker has: MiB, threads, descriptors."""

    p99: float
    memory: float
    threads: int
    descriptors: int


# --- slow clients ----------------------------------------------------------------------------------------


def _connect(service: Service, buffer: int = 0) -> socket.socket:
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.connect(("127.0.0.1", service.port))
    return sock


def _dripping(sock: socket.socket, first: str, drops: Callable[[], bytes]) -> Iterator[None]:
    sock.sendall(first.encode())
    while True:
        yield
        sock.sendall(drops())


def head(service: Service, _image: str) -> tuple[socket.socket, Iterator[None]]:
    sock = _connect(service)
    return sock, _dripping(sock, "GET /v2/images HTTP/1.1\r\nX-Slow: ", lambda: b"x")


def sized_body(service: Service, image: str) -> tuple[socket.socket, Iterator[None]]:
    sock = _connect(service)
    first = _HEAD.format(f"PUT /v2/images/{image}/file") + _OCTETS + "Content-Length: 900000\r\n\r\n"
    return sock, _dripping(sock, first, lambda: b"x")


def chunked_body(service: Service, image: str) -> tuple[socket.socket, Iterator[None]]:
    sock = _connect(service)
    first = _HEAD.format(f"PUT /v2/images/{image}/file") + _OCTETS + "Transfer-Encoding: chunked\r\n\r\n"
    return sock, _dripping(sock, first, lambda: b"1\r\nx\r\n")


def json_body(service: Service, _image: str) -> tuple[socket.socket, Iterator[None]]:
    sock = _connect(service)
    first = _HEAD.format("POST /v2/images") + "Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    return sock, _dripping(sock, first, lambda: b" ")


def reader(service: Service, large: str) -> tuple[socket.socket, Iterator[None]]:
    """Asks for an image and takes a few bytes of it a second."""
    sock = _connect(service, 4096)

    def take() -> bytes:
        sock.recv(64)
        return b""

    return sock, _dripping(sock, _HEAD.format(f"GET /v2/images/{large}/file") + "\r\n", take)


def reset(service: Service, image: str) -> tuple[socket.socket, Iterator[None]]:
    """Breaks off in the middle of a body after some seconds, and comes again; not all of them in the same second."""
    first = _HEAD.format(f"PUT /v2/images/{image}/file") + _OCTETS + "Content-Length: 900000\r\n\r\nxx"
    place = [_connect(service)]

    def again() -> Iterator[None]:
        seconds = 1 + int(image[-1], 16) % 5
        while True:
            place[0].sendall(first.encode())
            for _ in range(seconds):
                yield
            seconds = 5
            place[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            place[0].close()
            place[0] = _connect(service)

    return place[0], again()


UPLOADS = (sized_body, chunked_body, reset)
KINDS = (head, sized_body, chunked_body, json_body, reader, reset)


def wanted(service: Service, count: int) -> list[str]:
    """The images that so many slow clients will want."""
    alice = service.client()
    large = alice.active(bytes(LARGE))
    kinds = itertools.islice(itertools.cycle(KINDS), count)
    return [alice.queued() if kind in UPLOADS else large for kind in kinds]


@contextlib.contextmanager
def crowd(service: Service, images: list[str]) -> Iterator[None]:
    """A slow client for each image; each does something once a second. They are gone at the end."""
    # A process of its own: its work must not slow down those who are measured.
    fork = multiprocessing.get_context("fork")
    ready, ended = fork.Event(), fork.Event()

    def drip() -> None:
        clients = [kind(service, image) for kind, image in zip(itertools.cycle(KINDS), images)]
        ready.set()
        while not ended.is_set():
            begun = time.monotonic()
            for number, (_, steps) in enumerate(clients):
                with contextlib.suppress(OSError, StopIteration):
                    next(steps)
                if number % 100 == 99 and ended.wait(0.005):
                    return
            ended.wait(max(0.0, 1.0 - (time.monotonic() - begun)))

    process = fork.Process(target=drip, daemon=True)
    process.start()
    try:
        assert ready.wait(60), "the crowd could not connect"
        yield
    finally:
        ended.set()
        process.join()  # and its sockets are closed


# --- figures ---------------------------------------------------------------------------------------------


def worker(service: Service) -> psutil.Process:
    assert service.process
    (one,) = psutil.Process(service.process.pid).children()
    return one


def figures(service: Service, rounds: int = 300) -> Figures:
    """Of a client that asks for an image, lists, creates, and goes away."""
    session, took = requests.Session(), []
    session.auth = ("alice", PASSWORD)
    image = service.client().queued()
    for number in range(rounds):
        path = ("/v2/images/" + image, "/v2/images?limit=5", "/v2/schemas/image")[number % 3]
        begun = time.perf_counter()
        answer = session.get(service.url + path, timeout=30)
        took.append(time.perf_counter() - begun)
        assert answer.status_code == 200, answer.text
    process = worker(service)
    p99 = statistics.quantiles(took, n=100)[98]
    memory = process.memory_full_info().pss / (1 << 20)
    return Figures(p99, memory, process.num_threads(), len(os.listdir(f"/proc/{process.pid}/fd")))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.api.slow", description="How healthy clients fare.")
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10, help="how long the crowd drips before it is measured")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calotype-slow-") as state, running(Path(state)) as service:
        images = wanted(service, args.sockets)
        figures(service)  # warm
        print("idle      ", figures(service))
        with crowd(service, images):
            time.sleep(args.seconds)
            for _ in range(3):
                print("with crowd", figures(service))
        time.sleep(12)
        print("afterwards", figures(service))
        print(service.log[-3000:] if "Traceback" in service.log else "no traceback")


if __name__ == "__main__":
    main()
