"""A real Swift of the test run's own, and a proxy before it that plants faults.

`make .swift/ready` installs Swift into an environment of its own. `swift_all_in_one.py` runs all of it in one process.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.support import free_port

HOME = Path(__file__).parents[2] / ".swift"
PYTHON = HOME / "venv/bin/python"
USER, KEY = "glance:glance", "secret"


class Swift:
    """One Swift, which ends with this process. `keystone` has the options of its `authtoken`; without, it is tempauth."""

    def __init__(
        self, *, max_file_size: int = 5368709122, segments: int = 1000, keystone: tuple[tuple[str, str], ...] = ()
    ) -> None:
        if not PYTHON.exists():
            raise RuntimeError(f"There is no Swift in {HOME}; run: make .swift/ready")
        self.port = free_port()
        self.root = Path(tempfile.mkdtemp(prefix="calotype-swift-", dir=_quick()))
        settings = {"max_file_size": max_file_size, "segments": segments, "keystone": dict(keystone)}
        with (self.root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-W", "ignore", Path(__file__).with_name("swift_all_in_one.py"), self.root, str(self.port),
                 json.dumps(settings)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        atexit.register(self.stop)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"Swift did not come up:\n{(self.root / 'log').read_text()[-3000:]}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def forget_tokens(self) -> None:
        """Ask Keystone again about each token."""
        self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(timeout=30)
        shutil.rmtree(self.root, ignore_errors=True)


def _quick() -> str | None:
    """A directory in memory, if its file system has the attributes that Swift keeps metadata in."""
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        os.setxattr(file.name, "user.swift.metadata", b"x" * 200)
        return "/dev/shm"
    return None


@functools.cache
def swift(**settings: Any) -> Swift:
    """A Swift with these settings, for the whole run."""
    return Swift(**settings)


class Direct:
    """Requests to Swift past the driver, as `glance` or as a user."""

    def __init__(self, server: Swift, user: str = USER, token: str | None = None, account: str | None = None) -> None:
        self._session = requests.Session()
        self._session.trust_env = False
        if token is None:
            login = {"X-Auth-User": user, "X-Auth-Key": KEY}
            answer = self._session.get(f"{server.url}/auth/v1.0", headers=login, timeout=30)
            token, account = answer.headers["X-Auth-Token"], answer.headers["X-Storage-Url"].rpartition("/")[2]
        self._session.headers["X-Auth-Token"] = token
        self.account = account
        self._base = f"{server.url}/v1"

    def ask(self, method: str, path: str = "", *, account: str | None = None, **more: Any) -> requests.Response:
        return self._session.request(method, f"{self._base}/{account or self.account}{path}", timeout=60, **more)

    def put(self, path: str, data: bytes = b"", headers: Mapping[str, str] | None = None, **more: Any) -> str:
        """The ETag of an object, or nothing of a container."""
        answer = self.ask("PUT", path, data=data, headers=headers, **more)
        assert answer.ok, answer.text
        return answer.headers.get("ETag", "")

    def names(self, container: str, account: str | None = None) -> list[str]:
        return [entry["name"] for entry in self.listing(container, account)]

    def listing(self, container: str, account: str | None = None) -> list[dict[str, Any]]:
        answer = self.ask("GET", f"/{container}?format=json", account=account)
        return list(answer.json()) if answer.status_code == 200 else []

    def is_static(self, path: str) -> bool:
        return "X-Static-Large-Object" in self.ask("HEAD", path).headers


@dataclass
class Fault:
    """What becomes of the next `times` requests whose method and path match. `status` answers in place of Swift.

    `lost`: Swift gets the request, and its answer does not arrive. `cut`: the connection ends after so many bytes of
    the answer's body. `short`: the answer announces one byte too few. `before` and `after` are called with the request.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False
    cut: int | None = None
    hang: bool = False
    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None


class Proxy:
    """Stands between a store and Swift. One request for each connection, as the driver sends them."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = self._listener.getsockname()[1]
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        self.status: int | None = None  #: answers everything
        self.refuses = False
        self.silent = threading.Event()
        self.delay = 0.0
        self.now = self.most = 0  #: PUT requests under way
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def plant(self, method: str, path: str, **what: Any) -> Fault:
        """A fault for requests of this method whose path matches a regular expression."""
        fault = Fault(method, path, **what)
        self.faults.append(fault)
        return fault

    def count(self, method: str, path: str = "") -> int:
        return sum(one == method and re.search(path, where) is not None for one, where in self.seen)

    def close(self) -> None:
        self.silent.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @contextlib.contextmanager
    def set(self, **attributes: Any) -> Iterator[None]:
        before = {name: getattr(self, name) for name in attributes}
        vars(self).update(attributes)
        try:
            yield
        finally:
            vars(self).update(before)

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Answer nothing. What was asked meanwhile is never passed on."""
        self.silent.set()
        try:
            yield
        finally:
            self.silent.clear()

    # --- its threads -------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self.refuses:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
                return
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return
                head += data
            method, path = head.split(b" ", 2)[:2]
            with self._lock:
                self.seen.append((method.decode(), path.decode()))
                self.now += method == b"PUT"
                self.most = max(self.most, self.now)
                fault = self._fault(method.decode(), path.decode())
            try:
                self._pass(client, head, fault)
            finally:
                with self._lock:
                    self.now -= method == b"PUT"
                client.shutdown(socket.SHUT_RDWR)  # a close would wait for the thread that reads from it

    def _fault(self, method: str, path: str) -> Fault | None:
        for one in self.faults:
            if one.times and one.method == method and re.search(one.path, path):
                one.times -= 1
                return one
        return None

    def _pass(self, client: socket.socket, head: bytes, fault: Fault | None) -> None:
        if self.delay:
            time.sleep(self.delay)
        if self._held(client) or (fault is not None and fault.hang and self._hang(client)):
            return
        if fault is not None and fault.before is not None:
            fault.before()
        status = self.status or (fault.status if fault else None)
        if status is not None:
            self._drain(client, head)
            more = "".join(f"{name}: {value}\r\n" for name, value in (fault.headers if fault else {}).items())
            client.sendall(f"HTTP/1.1 {status} So\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return
        with socket.create_connection(("127.0.0.1", self._upstream)) as server:
            server.sendall(head)
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            self._backward(client, server, fault)

    def _drain(self, client: socket.socket, head: bytes) -> None:
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        left = (int(found[1]) if found else 0) - len(head.partition(b"\r\n\r\n")[2])
        while left > 0 and (data := client.recv(65536)):
            left -= len(data)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 18):
                if self.silent.is_set():
                    return
                server.sendall(data)

    def _backward(self, client: socket.socket, server: socket.socket, fault: Fault | None) -> None:
        answer = b""
        if fault is not None and (fault.lost or fault.after):
            while data := server.recv(1 << 16):
                answer += data
            if fault.after is not None:
                fault.after()
            if not fault.lost:
                client.sendall(answer)
            return
        left = fault.cut if fault is not None else None
        if left is not None:
            while b"\r\n\r\n" not in answer:
                answer += server.recv(1 << 16)
            head, _, body = answer.partition(b"\r\n\r\n")
            client.sendall(head + b"\r\n\r\n" + body[:left])
            left -= len(body[:left])
        while (left is None or left > 0) and (data := server.recv(1 << 16 if left is None else min(left, 1 << 16))):
            if self._held(client):
                return
            client.sendall(data)
            left = None if left is None else left - len(data)

    def _held(self, client: socket.socket) -> bool:
        """Whether this connection was silenced; returns when it is not any more, or when the client has gone."""
        return self.silent.is_set() and self._hang(client)

    def _hang(self, client: socket.socket) -> bool:
        end = time.monotonic() + 30
        while (self.silent.is_set() or time.monotonic() < end) and self._is_there(client):
            time.sleep(0.02)
        return True

    def _is_there(self, client: socket.socket) -> bool:
        client.setblocking(False)
        try:
            return bool(client.recv(1 << 16))
        except BlockingIOError:
            return True
        finally:
            client.setblocking(True)
