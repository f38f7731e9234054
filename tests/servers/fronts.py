"""nginx, HAProxy and uWSGI as docs/operate/servers.md has them, but for addresses and paths."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from calotype import config
from calotype.app import database
from calotype.db import schema
from tests.support import Client, free_port, running, tool, write_users

_DOCUMENT = Path(__file__).parents[2] / "docs" / "operate" / "servers.md"
KINDS = ("direct", "nginx", "haproxy", "uwsgi", "nginx before uwsgi", "haproxy before uwsgi")
CAP = 32 << 20
_BELIEVING = re.search(r"```ini\n(.*?)```", _DOCUMENT.read_text(), re.DOTALL)
assert _BELIEVING
CONF = f"[DEFAULT]\nimage_size_cap = {CAP}\n[server]\nclient_timeout = 5\n[jobs]\npoll = 0.5\n{_BELIEVING[1]}"


@dataclass
class Front:
    """Where clients reach the service, and where it keeps its state."""

    kind: str
    port: int
    state: Path

    @property
    def images(self) -> Path:
        return self.state / "images"

    def client(self, user: str | None = "alice") -> Client:
        return Client(f"http://127.0.0.1:{self.port}", user)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@contextlib.contextmanager
def front(kind: str, state: Path) -> Iterator[Front]:
    """The service and what stands before it, of a kind; all of it is gone at the end."""
    proxy, _, _ = kind.partition(" before ")
    with contextlib.ExitStack() as stack:
        if kind.endswith("uwsgi"):
            port = stack.enter_context(_uwsgi(state))
        else:
            port = stack.enter_context(running(state, CONF)).port
        if proxy == "nginx":
            port = stack.enter_context(_nginx(state, port))
        elif proxy == "haproxy":
            port = stack.enter_context(_haproxy(state, port))
        yield Front(kind, port, state)


def _block(language: str, replaced: dict[str, str]) -> str:
    """A configuration of the document; what is replaced must be there."""
    found = re.search(rf"```{language}\n(.*?)```", _DOCUMENT.read_text(), re.DOTALL)
    assert found, language
    text = found[1]
    for old, new in replaced.items():
        assert old in text, (language, old)
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def _process(state: Path, name: str, command: list[str | Path], port: int, **environment: str) -> Iterator[int]:
    with (state / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | environment, cwd="/"
        )
    try:
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/healthcheck", timeout=60).ok:
                    break
            assert time.monotonic() < end and process.poll() is None, (state / f"{name}.log").read_text()  # noqa: PT018
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@contextlib.contextmanager
def _nginx(state: Path, behind: int) -> Iterator[int]:
    port = free_port()
    block = _block("nginx", {"127.0.0.1:9292": f"127.0.0.1:{behind}", "127.0.0.1:8080": f"127.0.0.1:{port}"})
    places = "".join(
        f"{kind}_temp_path {state}/nginx-{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = state / "nginx.conf"
    file.write_text(
        f"daemon off;\nmaster_process off;\npid {state}/nginx.pid;\nerror_log stderr warn;\n"
        f"events {{ worker_connections 1024; }}\nhttp {{\naccess_log off;\n{places}{block}}}\n"
    )
    with _process(state, "nginx", [tool("nginx"), "-p", state, "-e", "stderr", "-c", file], port):
        yield port


@contextlib.contextmanager
def _haproxy(state: Path, behind: int) -> Iterator[int]:
    port = free_port()
    file = state / "haproxy.cfg"
    file.write_text(_block("haproxy", {"127.0.0.1:9292": f"127.0.0.1:{behind}", "127.0.0.1:8080": f"127.0.0.1:{port}"}))
    with _process(state, "haproxy", [tool("haproxy"), "-db", "-f", file], port):
        yield port


def uwsgi_runs_this_python() -> bool:
    """Debian's uWSGI has Debian's Python, which must be able to import what ours installed."""
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    )
    return version.stdout.split() == [str(number) for number in sys.version_info[:2]]


@contextlib.contextmanager
def _uwsgi(state: Path) -> Iterator[int]:
    port = free_port()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_users(state / "users.json")
    (state / "glance-api.conf").write_text(CONF + f"[DEFAULT]\nstate_dir = {state}\n")
    conf = config.load([str(state / "glance-api.conf")])
    with contextlib.closing(database(conf)) as db:
        schema.sync(db)
    file = state / "uwsgi.ini"
    file.write_text(_block("uwsgi", {"127.0.0.1:9292": f"127.0.0.1:{port}"}))
    found = {name: sysconfig.get_path(name) for name in ("purelib", "platlib")}
    path = os.pathsep.join(dict.fromkeys([str(Path(config.__file__).parents[1]), *found.values()]))
    worker = [sys.executable, "-m", "calotype.cli.main", "worker", "--config-file", state / "glance-api.conf"]
    with (
        _process(
            state, "uwsgi", [tool("uwsgi"), "--ini", file], port, OS_GLANCE_CONFIG_DIR=str(state), PYTHONPATH=path
        ),
        _process(state, "worker", worker, port),
    ):
        yield port
