"""A real Keystone of the test run's own, with the users that `tests.support` has for HTTP basic authentication.

It is installed into a virtual environment of its own (`make .keystone/ready`, which `make test` does), keeps its records
in SQLite, listens on loopback, and is stopped by its own pid. The fixture `keystone` starts one for the whole run; a
test that stops, pauses or revokes what others need makes one for itself.
"""

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import requests

from tests.support import PASSWORD, USERS, Client, free_port, tool

#: Where `make test` installs it.
HOME = Path(os.environ.get("CALOTYPE_KEYSTONE") or Path(__file__).parents[1] / ".keystone")
REGION = "RegionOne"
#: The account that the image service itself has, in project `service`.
ACCOUNT = "glance"
ACCOUNT_PROJECT = "service"

_CONF = """\
[DEFAULT]
log_file = {root}/keystone.log
[database]
connection = sqlite:///{root}/keystone.db
[cache]
enabled = true
backend = dogpile.cache.memory
[token]
provider = fernet
expiration = {expiration}
[fernet_tokens]
key_repository = {root}/fernet
[credential]
key_repository = {root}/credential
[identity]
password_hash_rounds = 4
[oslo_policy]
enforce_scope = true
"""


class Keystone:
    """A running Keystone; `expiration` is how many seconds its tokens live."""

    def __init__(self, expiration: int = 3600) -> None:
        self.port = free_port()
        self.root = Path(tempfile.mkdtemp(prefix="calotype-keystone-"))
        self._expiration = expiration
        self._process: subprocess.Popen[bytes] | None = None
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Connection"] = "close"  # it may be paused, or stopped, before the next request
        self._tokens: dict[Any, str] = {}
        self._projects: dict[str, str] = {}
        self._users: dict[str, str] = {}
        atexit.register(self.remove)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v3"

    # --- life --------------------------------------------------------------------------------------------

    def start(self) -> "Keystone":
        """Start, unless it runs, and return when it answers; the first time with its users."""
        if self._process is not None:
            return self
        fresh = not (self.root / "keystone.conf").exists()
        if fresh:
            self._prepare()
        self._launch()
        if fresh:
            self._populate()
        return self

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it; `start` begins again with the same users and tokens."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGCONT)
                os.killpg(self._process.pid, how)
            self._process.wait(timeout=30)
            self._process = None

    def pause(self) -> None:
        """Accept connections and answer nothing, until `resume`."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def remove(self) -> None:
        """End it for good; what it kept goes too."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    def _prepare(self) -> None:
        # Tables and keys are the same for every Keystone of this installation, and take seconds to make.
        shutil.copytree(_seed(), self.root, dirs_exist_ok=True)
        self._configure()

    def _configure(self) -> None:
        (self.root / "keystone.conf").write_text(_CONF.format(root=self.root, expiration=self._expiration))
        settings = {
            "bind": f"127.0.0.1:{self.port}",
            "wsgi_app": "keystone.wsgi.api:application",
            "worker_class": "gthread",
            "threads": 4,
            "graceful_timeout": 1,
            "control_socket_disable": True,
        }
        (self.root / "gunicorn.conf.py").write_text(
            "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        )

    def _launch(self) -> None:
        environment = {**os.environ, "OS_KEYSTONE_CONFIG_FILES": str(self.root / "keystone.conf")}
        with (self.root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [HOME / "venv/bin/gunicorn"],  # no arguments: Keystone would read them as its own
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
                cwd=self.root,
            )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(requests.RequestException):
                if self._session.get(self.url, timeout=30).ok:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"Keystone did not come up:\n{(self.root / 'server.log').read_text()[-5000:]}")

    def _populate(self) -> None:
        users = {name: entry for name, entry in USERS.items() if name != "admin"}
        for name, (project, granted) in {**users, ACCOUNT: ("service", ("service",))}.items():
            self.add(name, project, granted)
        self.offer(self.url, "identity")

    # --- what it knows -----------------------------------------------------------------------------------

    def call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """One request of its API as the administrator; raises for anything but success."""
        for new in (False, True):  # the token may have expired meanwhile
            answer = self._session.request(
                method,
                f"{self.url}/{path}",
                json=body or None,
                headers={"X-Auth-Token": self.token("admin", new=new)},
                timeout=60,
            )
            if answer.status_code != 401:
                break
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json()) if answer.content else {}

    def project(self, name: str) -> str:
        """The id of a project, which is made when it is not there."""
        if name not in self._projects:
            found = self.call("GET", f"projects?name={name}")["projects"]
            made = found[0] if found else self.call("POST", "projects", project={"name": name})["project"]
            self._projects[name] = made["id"]
        return self._projects[name]

    def user(self, name: str) -> str:
        """The id of a user."""
        return self._users[name]

    def add(self, user: str, project: str, roles: Iterable[str]) -> None:
        """A new user with these roles in a project."""
        self._users[user] = self.call("POST", "users", user={"name": user, "password": PASSWORD})["user"]["id"]
        ids = {role["name"]: role["id"] for role in self.call("GET", "roles")["roles"]}
        for role in roles:
            self.grant(user, project, ids[role])

    def grant(self, user: str, project: str, role_id: str) -> None:
        """Give a user a role in a project."""
        self.call("PUT", f"projects/{self.project(project)}/users/{self.user(user)}/roles/{role_id}")

    def offer(self, url: str, kind: str = "image") -> None:
        """Put a service of a kind into the catalog, instead of the one that is there."""
        found = self.call("GET", f"services?type={kind}")["services"]
        service = found[0] if found else self.call("POST", "services", service={"name": kind, "type": kind})["service"]
        for endpoint in self.call("GET", f"endpoints?service_id={service['id']}")["endpoints"]:
            self.call("DELETE", f"endpoints/{endpoint['id']}")
        for interface in ("public", "internal", "admin"):
            entry = {"service_id": service["id"], "interface": interface, "url": url, "region_id": REGION}
            self.call("POST", "endpoints", endpoint=entry)

    # --- tokens ------------------------------------------------------------------------------------------

    def token(self, user: str, project: str | None = None, *, new: bool = False) -> str:
        """A token of a user for a project, its own unless another is named; the same one each time unless `new`."""
        project = project or (ACCOUNT_PROJECT if user == ACCOUNT else USERS[user][0])
        key = (user, project)
        if new or key not in self._tokens:
            scope = {"project": {"name": project, "domain": {"id": "default"}}}
            token = self.authenticate(user, scope)
            if new:
                return token
            self._tokens[key] = token
        return self._tokens[key]

    def authenticate(self, user: str, scope: Mapping[str, Any] | str | None) -> str:
        """A new token with any scope; None is an unscoped one."""
        password = {"user": {"name": user, "domain": {"id": "default"}, "password": PASSWORD}}
        asked: dict[str, Any] = {"identity": {"methods": ["password"], "password": password}}
        if scope is not None:
            asked["scope"] = scope
        answer = self._session.post(f"{self.url}/auth/tokens", json={"auth": asked}, timeout=60)
        assert answer.status_code == 201, answer.text
        return answer.headers["X-Subject-Token"]

    def revoke(self, token: str) -> None:
        by = {"X-Auth-Token": self.token("admin", new=True), "X-Subject-Token": token}
        answer = self._session.delete(f"{self.url}/auth/tokens", headers=by, timeout=60)
        assert answer.status_code == 204, answer.text

    # --- for services and clients ------------------------------------------------------------------------

    def conf(self, memcached: "Memcached | None" = None) -> str:
        """The sections of a configuration file that let a service ask this Keystone."""
        remember = f"memcached_servers = {memcached.address}\n" if memcached else ""
        return (
            "[paste_deploy]\nflavor = keystone\n[keystone_authtoken]\n"
            f"www_authenticate_uri = {self.url}\nauth_url = {self.url}\n{remember}"
            "auth_type = password\nproject_domain_name = Default\nuser_domain_name = Default\n"
            f"project_name = {ACCOUNT_PROJECT}\nusername = {ACCOUNT}\npassword = {PASSWORD}\n"
            "service_token_roles = service\nservice_token_roles_required = true\n"
        )

    def environment(self, user: str) -> dict[str, str]:
        """What the `openstack` and `glance` commands read."""
        return {
            "OS_AUTH_URL": self.url,
            "OS_USERNAME": user,
            "OS_PASSWORD": PASSWORD,
            "OS_PROJECT_NAME": USERS[user][0],
            "OS_USER_DOMAIN_NAME": "Default",
            "OS_PROJECT_DOMAIN_NAME": "Default",
            "OS_IDENTITY_API_VERSION": "3",
            "OS_REGION_NAME": REGION,
        }


@functools.cache
def _seed() -> Path:
    """A directory with tables, keys and the administrator, made once for an installation."""
    seed = HOME / "seed"
    if not (HOME / "venv/bin/keystone-manage").exists():
        raise RuntimeError(f"There is no Keystone in {HOME}; run: make .keystone/ready")
    if not seed.exists():
        root = Path(tempfile.mkdtemp(prefix="seed-", dir=HOME))
        conf = root / "keystone.conf"
        conf.write_text(_CONF.format(root=root, expiration=3600))
        for name in ("fernet", "credential"):
            (root / name).mkdir(mode=0o700)
        manage = [str(HOME / "venv/bin/keystone-manage"), "--config-file", str(conf)]
        bootstrap = [
            "--bootstrap-username",
            "admin",
            "--bootstrap-password",
            PASSWORD,
            "--bootstrap-project-name",
            "admin",
        ]
        owner = ["--keystone-user", str(os.getuid()), "--keystone-group", str(os.getgid())]
        for command in (
            ["db_sync"],
            ["fernet_setup", *owner],
            ["credential_setup", *owner],
            ["bootstrap", *bootstrap, "--bootstrap-region-id", REGION],
        ):
            done = subprocess.run([*manage, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
        conf.unlink()
        with contextlib.suppress(OSError):  # another run was quicker
            root.rename(seed)
    return seed


class Memcached:
    """A memcached of the test run's own."""

    def __init__(self) -> None:
        self.port = free_port()
        command = [tool("memcached"), "-u", "root" if os.getuid() == 0 else str(os.getuid())]
        self._process = subprocess.Popen(
            [*command, "-l", "127.0.0.1", "-p", str(self.port), "-m", "64"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self.stop)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(timeout=30)


class TokenClient(Client):
    """HTTP with a token instead of a password; `service_token` is that of a service which speaks for the user."""

    def __init__(self, url: str, token: str | None, service_token: str | None = None) -> None:
        super().__init__(url, None)
        if token is not None:
            self.session.headers["X-Auth-Token"] = token
        if service_token is not None:
            self.session.headers["X-Service-Token"] = service_token


if __name__ == "__main__":
    _seed()
