"""The peer: a real Glance 33, installed from PyPI into a virtual environment and run as upstream's samples say.

uWSGI with four processes, stores in directories, no cache, no notifications. Nothing else is configured, but for who
asks. A Keystone tells it, when there is one (`authtoken`); else:

- `admin`: an empty paste flavor, and a policy by which everybody is an administrator. Such a caller has no project,
  and Glance lists without asking what it may see.
- `member`: upstream's flavor for Keystone without the filter that asks Keystone. The filter after it then believes the
  header fields that Keystone's would have set, and the caller is a member of a project.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import free_port

VERSION = "33.0.0"
PROCESSES = 4
#: who asks → what its requests must say
CALLERS: dict[str, tuple[str, ...]] = {
    "admin": (),
    "member": ("X-Identity-Status: Confirmed", "X-User-Id: alice", "X-Project-Id: red", "X-Roles: member,reader"),
}
#: What upstream's sample for uWSGI says, but for how the port is named.
_UWSGI = """\
[uwsgi]
http-socket = 127.0.0.1:{port}
module = glance.wsgi.api:application
venv = {venv}
processes = {processes}
master = true
lazy-apps = true
need-app = true
enable-threads = true
thunder-lock = true
buffer-size = 65535
socket-timeout = 10
http-auto-chunked = true
http-chunked-input = true
http-raw-body = true
add-header = Connection: close
die-on-term = true
exit-on-reload = true
disable-logging = true
"""
_CONF = """\
[DEFAULT]
enabled_backends = {backends}
transport_url = fake://
log_file = {root}/glance.log
{settings}
[paste_deploy]
flavor = {flavor}
config_file = {root}/glance-api-paste.ini
[database]
connection = {database}
[oslo_concurrency]
lock_path = {root}/lock
[glance_store]
default_backend = {first}
{sections}
[os_glance_staging_store]
filesystem_store_datadir = {root}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {root}/tasks
{authtoken}
"""


def install(directory: Path) -> Path:
    """Glance's virtual environment in a directory that keeps it; made on the first call, in a few minutes."""
    venv = directory / "venv"
    ready = directory / f"glance-{VERSION}"
    if not ready.exists():
        if not (venv / "bin" / "glance-manage").exists():
            print(f"installing Glance {VERSION} into {venv}", flush=True)
            _call([sys.executable, "-m", "venv", str(venv)])
            packages = (f"glance=={VERSION}", "pymysql", "uwsgi", "setuptools", "python-memcached")
            _call([str(venv / "bin" / "pip"), "install", "--quiet", *packages])
        found = subprocess.run(
            [venv / "bin" / "pip", "show", "glance"], capture_output=True, text=True, check=True
        ).stdout
        if f"Version: {VERSION}\n" not in found:
            raise SystemExit(f"{venv} has another Glance than {VERSION}; remove it or name another --peer directory")
        ready.touch()
    return venv


def _call(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


@dataclass
class Glance:
    """A running Glance. `root` is its own directory, `database` the URL of an empty database on MariaDB."""

    venv: Path
    root: Path
    database: str
    stores: tuple[str, ...] = ("main",)  #: each a directory of its own; the first one is the default
    caller: str = "admin"  #: one of `CALLERS`, without a Keystone
    authtoken: str = ""  #: the section of that name: Keystone tells who asks
    settings: str = ""  #: more lines of the section DEFAULT
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Everything that Glance wrote so far."""
        return (self.root / "glance.log").read_text(errors="replace")

    def prepare(self) -> None:
        """Write the configuration and make the tables."""
        for name in (*self.stores, "staging", "tasks", "lock"):
            (self.root / name).mkdir(parents=True)
        anyone = self.caller == "admin" and not self.authtoken
        values = {"root": self.root, "database": self.database, "settings": self.settings, "first": self.stores[0]}
        values["backends"] = ",".join(f"{store}:file" for store in self.stores)
        values["sections"] = "\n".join(
            f"[{store}]\nfilesystem_store_datadir = {self.root / store}" for store in self.stores
        )
        values["flavor"] = "" if anyone else "keystone"
        values["authtoken"] = self.authtoken
        (self.root / "glance-api.conf").write_text(_CONF.format(**values))
        paste = self.venv / "etc" / "glance" / "glance-api-paste.ini"
        pipelines = paste.read_text()
        (self.root / paste.name).write_text(pipelines if self.authtoken else pipelines.replace(" authtoken ", " "))
        if anyone:
            (self.root / "policy.yaml").write_text('"context_is_admin": "@"\n')
        uwsgi = _UWSGI.format(port=self.port, venv=self.venv, processes=PROCESSES)
        (self.root / "uwsgi.ini").write_text(uwsgi)
        manage = [str(self.venv / "bin" / "glance-manage"), "--config-file", str(self.root / "glance-api.conf")]
        _call([*manage, "db_sync"])

    def start(self, *, wait: float = 120) -> "Glance":
        """Start it, and wait until each of its processes is ready."""
        log = self.root / "uwsgi.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [self.venv / "bin" / "uwsgi", "--ini", str(self.root / "uwsgi.ini")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, "OS_GLANCE_CONFIG_DIR": str(self.root), "PYTHONPATH": ""},
            )
        end = time.monotonic() + wait
        while time.monotonic() < end and self.process.poll() is None:
            # lazy-apps: each process loads the application by itself, and says so.
            if log.read_text(errors="replace").count("WSGI app 0 (mountpoint='') ready") >= PROCESSES:
                return self
            time.sleep(0.1)
        self.stop()
        raise SystemExit(f"Glance did not come up:\n{log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        """SIGTERM to its master, by its own pid; SIGKILL to its process group if that does not help."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
