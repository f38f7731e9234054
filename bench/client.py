"""Clients that cost as little as clients can: raw sockets, in processes of their own.

Whoever measures a server's CPU must not measure its clients' with it, and whoever measures requests a second must
not wait for them. The same clients serve every server: they keep a connection while the server does, and connect
again where it answers `Connection: close`. What a server used is read by `meter.py`.
"""

import json
import multiprocessing
import socket
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support import PASSWORD

MIB = 1 << 20
BLOCK = bytes(range(256)) * (MIB // 256)  #: what is uploaded, again and again
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: a port on loopback, and the header fields that say whose they are."""

    port: int
    caller: tuple[str, ...] = ()

    def head(self, method: str, path: str, *fields: str) -> bytes:
        """A request up to and with the empty line."""
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: */*", *self.caller, *fields]
        return "\r\n".join([*lines, "", ""]).encode()

    def connect(self, timeout: float | None = None) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def basic(user: str) -> tuple[str, ...]:
    """The header field of one of the tests' users."""
    return ("Authorization: Basic " + b64encode(f"{user}:{PASSWORD}".encode()).decode(),)


class Refused(Exception):
    """An answer that was not wanted, with its beginning; or what else made a client give up."""


class Connection:
    """One client's connection. Raises `Refused`, and `OSError` when the server is gone or says nothing for too long."""

    def __init__(self, target: Target, *, timeout: float = 120) -> None:
        self.target = target
        self._timeout = timeout  # seconds without a byte
        self._sock: socket.socket | None = None

    def get(self, path: str, expected: int = 200) -> bytes:
        return self.call(self.target.head("GET", path), expected)

    def create(self, body: bytes) -> str:
        """POST an image; its id."""
        fields = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        answer = self.call(self.target.head("POST", "/v2/images", *fields) + body, 201)
        return str(json.loads(answer)["id"])

    def delete(self, image_id: str) -> None:
        self.call(self.target.head("DELETE", f"/v2/images/{image_id}"), 204)

    def call(self, request: bytes, expected: int) -> bytes:
        """Send a whole request; the body of the answer."""
        sock, data = self._ask(request)
        while (end := data.find(b"\r\n\r\n")) < 0:
            more = sock.recv(64 << 10)
            if not more:
                raise Refused(f"the connection ended within the head of an answer: {data[:200]!r}")
            data += more
        head, pieces = data[:end].lower(), [data[end + 4 :]]
        status = int(head[9:12])
        seen, length = len(pieces[0]), _length(head, status)
        while seen < length and (piece := sock.recv(MIB)):
            pieces.append(piece)
            seen += len(piece)
        if b"\r\nconnection: close" in head or length == _UNTIL_CLOSED:
            self.close()
        body = b"".join(pieces)
        if status != expected:
            raise Refused(f"{request[:300]!r} was answered by {status}: {body[:300]!r}")
        return body

    def _ask(self, request: bytes) -> tuple[socket.socket, bytes]:
        """Send a request, on a new connection where the server gave up the old one; the beginning of the answer."""
        if self._sock is not None:
            try:
                self._sock.sendall(request)
                if data := self._sock.recv(64 << 10):
                    return self._sock, data
            except ConnectionError:
                pass
            self.close()
        self._sock = self.target.connect(self._timeout)
        self._sock.sendall(request)
        return self._sock, self._sock.recv(64 << 10)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


_UNTIL_CLOSED = 1 << 62


def _length(head: bytes, status: int) -> int:
    """Bytes in the body that follows a lower-case head."""
    place = head.find(b"\r\ncontent-length:")
    if place >= 0:
        return int(head[place + 17 :].partition(b"\r\n")[0])
    return 0 if status == 204 else _UNTIL_CLOSED


#: What one client does again and again; it is told its number, and how often it has done it before.
Step = Callable[[Connection, int, int], Any]


@dataclass(frozen=True, slots=True)
class Load:
    """What clients did: steps, and the seconds from their common start to the end of the last one."""

    steps: int
    seconds: float


def run(
    target: Target,
    step: Step,
    *,
    clients: int,
    seconds: float,
    least: int = 3,
    on_start: Callable[[], None] = lambda: None,
) -> Load:
    """Let clients, each a process with a connection, repeat `step` for some seconds and at least `least` times each.

    `on_start` is called when they are ready, before the first request. Raises `Refused` when one of them failed.
    """
    gate, results = _FORK.Barrier(clients + 1), _FORK.SimpleQueue()

    def work(number: int) -> None:
        done = 0
        try:
            connection = Connection(target)
            gate.wait(60)
            gate.wait(60)
            end = time.monotonic() + seconds
            while done < least or time.monotonic() < end:
                step(connection, number, done)
                done += 1
            connection.close()
            results.put((done, time.monotonic(), ""))
        except Exception as exc:  # noqa: BLE001  # whatever it is, it is told where the results are read
            results.put((done, 0.0, f"{type(exc).__name__}: {exc}"))

    processes = [_FORK.Process(target=work, args=(number,)) for number in range(clients)]
    for process in processes:
        process.start()
    gate.wait(60)
    on_start()
    gate.wait(60)
    begin = time.monotonic()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    if wrong := [message for *_, message in found if message]:
        raise Refused(wrong[0])
    return Load(sum(done for done, *_ in found), max(end for _, end, _ in found) - begin)


# --- image data ------------------------------------------------------------------------------------------


def elsewhere(work: Callable[..., object], *arguments: object) -> float:
    """Run a function in another process; the seconds it took."""
    process = _FORK.Process(target=work, args=arguments)
    start = time.monotonic()
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"a client failed: {process.exitcode}")
    return time.monotonic() - start


def send(target: Target, image_id: str, size: int, chunk: int | None = None) -> None:
    """PUT `size` bytes; in chunks of `chunk` bytes, or with a Content-Length when None. Runs in its own process."""
    framing = f"Content-Length: {size}" if chunk is None else "Transfer-Encoding: chunked"
    fields = ("Content-Type: application/octet-stream", "Connection: close", framing)
    with target.connect() as sock:
        sock.sendall(target.head("PUT", f"/v2/images/{image_id}/file", *fields))
        if chunk is None:
            for _ in range(size // MIB):
                sock.sendall(BLOCK)
        else:
            piece = f"{chunk:x}\r\n".encode() + BLOCK[:chunk] + b"\r\n"
            for _ in range(size // chunk):
                sock.sendall(piece)
            sock.sendall(b"0\r\n\r\n")
        answer = sock.recv(1000)
    if b" 204 " not in answer.split(b"\r\n")[0]:
        raise SystemExit(f"upload refused: {answer!r}")


def receive(target: Target, image_id: str, size: int) -> None:
    """GET an image and throw it away. Runs in its own process."""
    buffer = bytearray(MIB)
    with target.connect() as sock:
        sock.sendall(target.head("GET", f"/v2/images/{image_id}/file", "Connection: close"))
        seen = 0
        while got := sock.recv_into(buffer):
            seen += got
    if seen < size:
        raise SystemExit(f"received {seen} of {size} bytes")
