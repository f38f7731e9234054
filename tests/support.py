"""What tests share: a real service in a process group of its own, and a client for it.

A service listens on a free loopback port, keeps its state in a directory of the test's, and is stopped by its
own pid. `Service.kill` is kill -9 of the whole group, as the crash tests want it.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from calotype.auth import basic
from calotype.db import images
from calotype.db.engine import Database, now
from tests import VIOLATIONS, warm

PASSWORD = "correct horse"
#: name → (project, roles); one user for each kind of caller.
USERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "admin": ("admin", ("admin",)),
    "manager": ("red", ("manager",)),
    "alice": ("red", ("member",)),
    "reader": ("red", ("reader",)),
    "bob": ("blue", ("member",)),
    "carol": ("green", ("member",)),
    "service": ("service", ("service",)),
}
OCTETS = {"Content-Type": "application/octet-stream"}
PATCH_21 = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
PATCH_20 = {"Content-Type": "application/openstack-images-v2.0-json-patch"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


needed: set[str] | None = None  #: what the test that runs is marked with (`conftest.py`)
_HASHES: dict[str, basic.User] = {}


def write_users(path: Path, names: Mapping[str, tuple[str, tuple[str, ...]]] = USERS) -> None:
    """The users file; hashing is slow on purpose, so each user's entry is made once."""
    for name, (project, roles) in names.items():
        if name not in _HASHES:
            _HASHES[name] = basic.make_user(name, project, roles, PASSWORD)
    basic.write_users(path, {name: _HASHES[name] for name in names})


@dataclass
class Service:
    """`calotype serve` on a state directory. `conf` is text for its configuration file, without the database's URL."""

    state: Path
    conf: str = ""
    arguments: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    environment: Mapping[str, str] = field(default_factory=dict)
    database: str = ""  #: URL; the SQLite file in the state directory when empty
    users: bool = True  #: whether to make the tests' users, and tables, before the first start
    plain: bool = False  #: in tests, for who measures it: not forked, and nobody looks at its answers
    process: warm.Process | subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.state / 'calotype.db'}"

    @property
    def place(self) -> tuple[str | Path, ...]:
        """What tells any command where this service is."""
        return ("--config-file", self.state / "calotype.conf", "--state-dir", self.state)

    @property
    def log(self) -> str:
        """Everything that the service wrote so far, over all its starts."""
        return (self.state / "serve.log").read_text(errors="replace")

    @property
    def images(self) -> Path:
        """The directory of the store that there is without a configuration."""
        return self.state / "images"

    def start(self, *, wait: float = 30) -> "Service":
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.users and not (self.state / "users.json").exists():
            write_users(self.state / "users.json")
            if not self.database:
                from tests import databases  # which needs this module

                databases.synced(self.database_url)
        connection = f"\n[database]\nconnection = {self.database}\n" if self.database else ""
        (self.state / "calotype.conf").write_text((self.conf or "[DEFAULT]\n") + connection)
        bind = f"127.0.0.1:{self.port}"
        self.process = self._launch(["serve", *map(str, self.place), "--bind", bind, *self.arguments])
        end = time.monotonic() + wait
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended at once:\n{self.log}")
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/healthcheck", timeout=5).ok:
                    return self
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the service did not come up:\n{self.log}")

    def _launch(self, arguments: Sequence[str]) -> "warm.Process | subprocess.Popen[bytes]":
        environment = {**os.environ, **self.environment}
        with (self.state / "serve.log").open("ab") as log:
            # A fork has the path that the forking process began with.
            if self.plain or "PYTHONPATH" in self.environment or VIOLATIONS not in os.environ:
                return subprocess.Popen(
                    [Path(sys.executable).with_name("calotype"), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=environment,
                )
            return warm.start("observed", arguments, stdout=log, stderr=log, env=environment)

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode

    def kill(self) -> None:
        """kill -9 of the whole process group."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def client(self, user: str | None = "alice", password: str = PASSWORD) -> "Client":
        return Client(self.url, user, password)


class Client:
    """HTTP as one user. Methods are those of the API; each returns the response, whatever its status."""

    def __init__(self, url: str, user: str | None, password: str = PASSWORD) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        if user is not None:
            self.session.auth = (user, password)

    def request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        arguments.setdefault("timeout", 120)
        return self.session.request(method, self.url + path, **arguments)

    def get(self, path: str, **arguments: Any) -> requests.Response:
        return self.request("GET", path, **arguments)

    def create(self, /, **values: Any) -> requests.Response:
        return self.request("POST", "/v2/images", json=values)

    def queued(self, **values: Any) -> str:
        """The id of a new image that waits for data."""
        values = {"disk_format": "raw", "container_format": "bare"} | values
        made = self.create(**values)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    def put(self, image_id: str, data: Any, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("PUT", f"/v2/images/{image_id}/file", data=data, headers=OCTETS | named)

    def active(self, data: bytes = b"some data", **values: Any) -> str:
        """The id of a new image with data."""
        image_id = self.queued(**values)
        done = self.put(image_id, data)
        assert done.status_code == 204, done.text
        return image_id

    def show(self, image_id: str) -> dict[str, Any]:
        found = self.get(f"/v2/images/{image_id}")
        assert found.status_code == 200, found.text
        return dict(found.json())

    def file(self, image_id: str, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.get(f"/v2/images/{image_id}/file", headers=named)

    def patch(self, image_id: str, *steps: Mapping[str, Any], media: Mapping[str, str] = PATCH_21) -> requests.Response:
        return self.request("PATCH", f"/v2/images/{image_id}", data=json.dumps(steps), headers=dict(media))

    def delete(self, image_id: str) -> requests.Response:
        return self.request("DELETE", f"/v2/images/{image_id}")


@contextlib.contextmanager
def running(state: Path, conf: str = "", *arguments: str, **more: Any) -> Iterator[Service]:
    """A service for the length of a block."""
    service = Service(state, conf, arguments, **more).start()
    try:
        yield service
    finally:
        service.stop()


def second_copy(service: Service, image_id: str, store: str = "cheap") -> None:
    """What an import into several stores will do: another copy and its location."""
    shutil.copyfile(service.state / "fast" / image_id, service.state / store / image_id)
    database = Database(service.database_url)
    with database.write_once() as tx:
        images.add_location(tx, image_id, f"file://{service.state / store / image_id}", {"store": store}, now())
    database.close()


def names(directory: Path) -> list[str]:
    """What is in a store's directory, but for the files that tell what it is."""
    return sorted(name for name in os.listdir(directory) if not name.startswith("."))


def tool(name: str) -> str:
    """A program that `tests/needs` installs for a test that is marked as one that needs it."""
    assert needed is None or name in needed, f"mark the test: @pytest.mark.needs({name!r})"
    found = shutil.which(name)
    assert found, f"{name} is missing: run tests/needs {name}"
    return found


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)
