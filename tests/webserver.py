"""Web servers for tests: one that serves what it is told to, and traps that only count who comes."""

import contextlib
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support import tool


@dataclass
class Trap:
    """A listening socket that nobody may connect to."""

    host: str
    port: int
    hits: int = 0


@contextlib.contextmanager
def trap(host: str = "127.0.0.1", port: int = 0) -> Iterator[Trap]:
    """A `Trap` on this address; `hits` counts connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(64)
        listening.settimeout(0.05)
        found = Trap(host, listening.getsockname()[1])
        done = threading.Event()

        def count() -> None:
            while True:
                try:
                    listening.accept()[0].close()
                    found.hits += 1
                except TimeoutError:
                    if done.is_set():
                        return

        thread = threading.Thread(target=count)
        thread.start()
        try:
            yield found
        finally:
            done.set()
            thread.join()


@dataclass
class Request:
    """What a client asked for."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class WebServer:
    """Serves `files` by path: bytes, or a function that writes the answer itself (`Redirect`, `raw`)."""

    host: str = "127.0.0.1"
    port: int = 0
    ranges: bool = True  #: whether it knows Range
    heads: bool = True  #: whether it knows HEAD
    rate: int = 0  #: bytes a second; 0: as fast as can be
    files: dict[str, Any] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    sent: int = 0  #: bytes of bodies so far
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def raw(self, answer: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
        """An answer as it is, after which the connection is closed."""

        def write(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(answer)
            handler.close_connection = True

        return write

    def leads(self, where: str, status: int = 302) -> Callable[[BaseHTTPRequestHandler], None]:
        return self.raw(f"HTTP/1.1 {status} Found\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode())


@contextlib.contextmanager
def serving(**more: Any) -> Iterator[WebServer]:
    """A `WebServer` for the length of a block."""
    server = WebServer(**more)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            server.seen.append(Request(self.command, self.path, dict(self.headers)))
            found = server.files.get(self.path)
            if callable(found):
                found(self)
                return
            status, offset, end = 200, 0, len(found or b"")
            if found is None:
                status, found = 404, b"nothing here"
                end = len(found)
            elif self.command == "HEAD" and not server.heads:
                status, found, end = 405, b"", 0
            elif server.ranges and (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
                offset, end = int(wanted[1]), min(int(wanted[2] or end - 1) + 1, end)
                status = 206 if offset < len(found) else 416
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {offset}-{end - 1}/{len(found)}")
            body = found[offset:end]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            with contextlib.suppress(OSError):
                step = max(server.rate // 20, 1) if server.rate else 1 << 20
                for start in range(0, len(body), step):
                    self.wfile.write(body[start : start + step])
                    server.sent += len(body[start : start + step])
                    if server.rate:
                        time.sleep(0.05)

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in server.host else socket.AF_INET

        def handle_error(self, *_: Any) -> None:
            pass

    http = Server((server.host, server.port), Handler)
    if server.tls:
        http.socket = server.tls.wrap_socket(http.socket, server_side=True)
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def certificate(directory: Path, *names: str, address: str = "127.0.0.3") -> tuple[Path, Path]:
    """A certificate for these names and an address, signed by itself, and its key. The test needs openssl."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    alternatives = ",".join([*(f"DNS:{name}" for name in names), f"IP:{address}"])
    subprocess.run(
        [tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={alternatives}", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return cert, key
