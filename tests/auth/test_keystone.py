"""Who asks, by a real Keystone."""

import contextlib
import http.server
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calotype import config, errors
from calotype.app import App
from calotype.auth import keystone as ours
from tests import warm
from tests.keystone import Keystone, Memcached, TokenClient
from tests.support import PASSWORD, USERS, Service, running, until

#: Seconds that tokens of the short-lived Keystone live.
LIFE = 6


@pytest.fixture(scope="module")
def short() -> Iterator[Keystone]:
    """A Keystone that tests may stop, whose tokens expire while one looks."""
    started = Keystone(expiration=LIFE).start()
    yield started
    started.remove()


@pytest.fixture(scope="module")
def brief(short: Keystone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of that Keystone, which remembers for a second and waits for two."""
    loud = "default_log_levels = keystoneauth=DEBUG,keystonemiddleware=DEBUG,keystoneclient=DEBUG,urllib3=DEBUG\n"
    conf = f"[DEFAULT]\ndebug = true\n{loud}{short.conf()}http_connect_timeout = 2\n[keystone]\nremember = 1\n"
    with running(tmp_path_factory.mktemp("brief") / "state", conf) as started:
        yield started


def client(cloud: Service, keystone: Keystone, user: str, service: str | None = None) -> TokenClient:
    return TokenClient(cloud.url, keystone.token(user), keystone.token(service) if service else None)


def test_a_user_does_what_a_user_does(cloud: Service, keystone: Keystone) -> None:
    alice = client(cloud, keystone, "alice")
    image_id = alice.active(b"by token", name="mine")
    assert alice.show(image_id)["owner"] == keystone.project("red")
    assert alice.file(image_id).content == b"by token"
    assert client(cloud, keystone, "bob").get(f"/v2/images/{image_id}").status_code == 404
    assert client(cloud, keystone, "reader").get(f"/v2/images/{image_id}").status_code == 200
    assert client(cloud, keystone, "reader").delete(image_id).status_code == 403
    assert client(cloud, keystone, "admin").delete(image_id).status_code == 204


@pytest.mark.parametrize("token", [None, "", "nonsense", "x" * 12_000, "gAAAAA" + "B" * 180, "caf\u00e9", "a b"])
def test_whoever_has_no_token_of_keystones_is_refused(cloud: Service, keystone: Keystone, token: str | None) -> None:
    stranger = TokenClient(cloud.url, None)
    headers = {} if token is None else {"X-Auth-Token": token.encode()}
    answer = stranger.get("/v2/images", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == f'Keystone uri="{keystone.url}"'


def test_header_fields_of_a_client_are_not_believed(cloud: Service, keystone: Keystone) -> None:
    forged = {
        "X-Identity-Status": "Confirmed",
        "X-Roles": "admin",
        "X-User-Id": keystone.token("admin"),
        "X-Project-Id": keystone.project("admin"),
        "X-Service-Identity-Status": "Confirmed",
        "X-Service-Roles": "service",
    }
    assert TokenClient(cloud.url, None).get("/v2/images", headers=forged).status_code == 401
    image_id = client(cloud, keystone, "alice").queued()
    bob = TokenClient(cloud.url, keystone.token("bob", new=True))  # that nobody remembers
    assert bob.get(f"/v2/images/{image_id}", headers=forged).status_code == 404
    made = bob.request("POST", "/v2/images", json={}, headers=forged).json()
    assert made["owner"] == keystone.project("blue")


def test_the_openstack_command_finds_the_service_and_works(cloud: Service, keystone: Keystone, tmp_path: Path) -> None:
    """With what an operator's users have: the URL of Keystone, a name, a password."""
    (tmp_path / "in").write_bytes(b"by the command" * 1000)

    def openstack(user: str, *arguments: str) -> Any:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        done = warm.run("openstack", ["image", *arguments], env=environment | keystone.environment(user), timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "json" in arguments else done.stdout

    name = f"mine {time.monotonic_ns()}"
    made = openstack("alice", "create", "--shared", "--file", str(tmp_path / "in"), name, "-f", "json")
    assert (made["status"], made["owner"]) == ("active", keystone.project("red"))
    assert [image["ID"] for image in openstack("alice", "list", "--name", name, "-f", "json")] == [made["id"]]
    openstack("alice", "add", "project", made["id"], keystone.project("blue"))
    openstack("bob", "set", "--accept", made["id"])
    openstack("bob", "save", "--file", str(tmp_path / "out"), made["id"])
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    openstack("alice", "delete", made["id"])
    assert client(cloud, keystone, "bob").get(f"/v2/images/{made['id']}").status_code == 404


# --- service tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["nonsense", "alice"])
def test_a_service_token_that_is_none_refuses_the_request(cloud: Service, keystone: Keystone, service: str) -> None:
    """One of a user without the role of services is none, and no token at all would have done better."""
    token = keystone.token(service) if service in USERS else service
    asked = TokenClient(cloud.url, keystone.token("bob"), token)
    assert asked.get("/v2/images").status_code == 401


def test_the_roles_of_a_service_token_are_apart_from_the_users(cloud: Service, keystone: Keystone) -> None:
    both = TokenClient(cloud.url, keystone.token("bob"), keystone.token("service"))
    image_id = client(cloud, keystone, "alice").queued()
    assert both.get("/v2/images").status_code == 200
    assert both.get(f"/v2/images/{image_id}").status_code == 404
    ctx = authenticator(keystone).caller(
        {"HTTP_X_AUTH_TOKEN": keystone.token("bob"), "HTTP_X_SERVICE_TOKEN": keystone.token("service")}
    )
    assert (ctx.project, "member" in ctx.roles) == (keystone.project("blue"), True)
    assert "service" not in ctx.roles
    assert "service" in ctx.service_roles
    assert not ctx.is_admin


def test_with_a_service_token_a_users_token_is_shown_where_data_lies(cloud: Service, keystone: Keystone) -> None:
    """As Nova asks: with the token of its user, and one of its own."""
    image_id = client(cloud, keystone, "alice").active(b"data")
    path = f"file://{cloud.state}/fast/{image_id}"
    for _ in range(2):
        for service in (None, "service", None):
            asked = client(cloud, keystone, "alice", service)
            assert asked.show(image_id).get("direct_url") == (path if service else None)
    assert "direct_url" not in client(cloud, keystone, "admin").show(image_id)
    other = client(cloud, keystone, "alice").queued()
    for service, code in ((None, 403), ("service", 400)):
        answer = client(cloud, keystone, "alice", service).request(
            "POST", f"/v2/images/{other}/locations", json={"url": f"memory://brief/{other}"}
        )
        assert answer.status_code == code


def test_with_a_service_token_a_users_token_may_have_expired(brief: Service, short: Keystone) -> None:
    token = short.token("alice", new=True)
    assert TokenClient(brief.url, token).get("/v2/images").status_code == 200
    until(lambda: TokenClient(brief.url, token).get("/v2/images").status_code == 401, seconds=LIFE + 5)
    service = short.token("service", new=True)
    assert TokenClient(brief.url, token, service).get("/v2/images").status_code == 200
    assert TokenClient(brief.url, token).get("/v2/images").status_code == 401


# --- tokens that end -------------------------------------------------------------------------------------


def test_a_token_is_refused_when_it_is_revoked(brief: Service, short: Keystone) -> None:
    token = short.token("alice", new=True)
    asked = TokenClient(brief.url, token)
    assert asked.get("/v2/images").status_code == 200
    short.revoke(token)
    until(lambda: asked.get("/v2/images").status_code == 401, seconds=LIFE / 2)


def test_the_memory_ends_with_the_token(short: Keystone) -> None:
    """Even where it would remember for longer."""
    auth = authenticator(short, "[keystone]\nremember = 3600\n")
    environ = {"HTTP_X_AUTH_TOKEN": short.token("alice", new=True)}
    assert auth.caller(environ).project == short.project("red")
    time.sleep(LIFE + 1)
    with pytest.raises(errors.Unauthenticated):
        auth.caller(environ)


def test_a_service_token_without_its_role_lends_the_users_no_life(short: Keystone) -> None:
    more = "[keystone_authtoken]\nservice_token_roles_required = false\n[keystone]\nremember = 3600\n"
    auth = authenticator(short, more)
    token = short.token("alice", new=True)
    time.sleep(LIFE / 2)
    environ = {"HTTP_X_AUTH_TOKEN": token, "HTTP_X_SERVICE_TOKEN": short.token("bob", new=True)}
    assert auth.caller(environ).project == short.project("red")
    time.sleep(LIFE / 2 + 1)
    with pytest.raises(errors.Unauthenticated):
        auth.caller({**environ, "HTTP_X_SERVICE_TOKEN": short.token("bob", new=True)})
    with pytest.raises(errors.Unauthenticated):
        auth.caller(environ)


def test_a_token_that_ends_in_mid_upload_loses_no_upload(brief: Service, short: Keystone) -> None:
    token = short.token("alice", new=True)
    alice = TokenClient(brief.url, token)
    image_id = alice.queued()

    def drip() -> Iterator[bytes]:
        for _ in range(LIFE + 2):
            yield b"x" * 1000
            time.sleep(1)

    assert alice.put(image_id, drip()).status_code == 204
    assert alice.get("/v2/images").status_code == 401
    again = TokenClient(brief.url, short.token("alice", new=True))
    assert again.show(image_id)["size"] == (LIFE + 2) * 1000


def test_a_user_without_an_account_is_refused(brief: Service, short: Keystone) -> None:
    alice = TokenClient(brief.url, short.token("carol", new=True))
    assert alice.get("/v2/images").status_code == 200
    short.call("PATCH", f"users/{short.user('carol')}", user={"enabled": False})
    until(lambda: alice.get("/v2/images").status_code == 401, seconds=LIFE / 2)
    short.call("PATCH", f"users/{short.user('carol')}", user={"enabled": True})


def test_a_member_of_a_project_that_is_closed_is_refused(brief: Service, short: Keystone) -> None:
    bob = TokenClient(brief.url, short.token("bob", new=True))
    assert bob.get("/v2/images").status_code == 200
    short.call("PATCH", f"projects/{short.project('blue')}", project={"enabled": False})
    until(lambda: bob.get("/v2/images").status_code == 401, seconds=LIFE / 2)
    short.call("PATCH", f"projects/{short.project('blue')}", project={"enabled": True})


# --- scopes ----------------------------------------------------------------------------------------------


def test_a_token_without_a_project_has_none(cloud: Service, keystone: Keystone) -> None:
    """One for nothing, for the system, for a domain: each says so, and none is let near an image."""
    admin = keystone.call("GET", "users?name=admin")["users"][0]["id"]
    role = keystone.call("GET", "roles?name=admin")["roles"][0]["id"]
    keystone.call("PUT", f"domains/default/users/{admin}/roles/{role}")
    auth = authenticator(keystone)
    nothing = keystone.authenticate("alice", None)
    ctx = auth.caller({"HTTP_X_AUTH_TOKEN": nothing})
    assert (ctx.user, ctx.project, ctx.roles) == (keystone.user("alice"), None, frozenset())
    everything = keystone.authenticate("admin", {"system": {"all": True}})
    ctx = auth.caller({"HTTP_X_AUTH_TOKEN": everything})
    assert (ctx.project, ctx.domain, ctx.system_scope) == (None, None, "all")
    domain = keystone.authenticate("admin", {"domain": {"id": "default"}})
    ctx = auth.caller({"HTTP_X_AUTH_TOKEN": domain})
    assert (ctx.project, ctx.domain, ctx.system_scope) == (None, "default", None)
    for token in (nothing, everything, domain):
        asked = TokenClient(cloud.url, token)
        assert asked.get("/v2/images").status_code == 403
        assert asked.create().status_code == 403


def test_what_a_service_token_is_for_is_not_taken_for_the_users(keystone: Keystone) -> None:
    system = keystone.authenticate("admin", {"system": {"all": True}})
    auth = authenticator(keystone, "[keystone_authtoken]\nservice_token_roles = admin\n")
    ctx = auth.caller({"HTTP_X_AUTH_TOKEN": keystone.token("bob"), "HTTP_X_SERVICE_TOKEN": system})
    assert (ctx.project, ctx.system_scope) == (keystone.project("blue"), None)
    assert ("admin" in ctx.roles, "admin" in ctx.service_roles) == (False, True)


def test_a_role_with_a_comma_is_one_role(keystone: Keystone) -> None:
    made = keystone.call("POST", "roles", role={"name": "Guest,admin"})["role"]["id"]
    keystone.grant("carol", "yellow", made)
    ctx = authenticator(keystone).caller({"HTTP_X_AUTH_TOKEN": keystone.token("carol", "yellow")})
    assert ctx.roles == {"guest,admin"}


def test_an_application_credential_does_what_its_rules_say(cloud: Service, keystone: Keystone) -> None:
    """Also the second time: what was found for one path is not remembered for another."""
    rules = [{"service": "image", "method": "GET", "path": "/v2/images"}]
    token = credential(keystone, "alice", rules)
    asked = TokenClient(cloud.url, token)
    for _ in range(2):
        assert asked.get("/v2/images").status_code == 200
        assert asked.get("/v2/schemas/image").status_code == 401
        assert asked.create().status_code == 401


def credential(keystone: Keystone, user: str, rules: list[dict[str, str]]) -> str:
    """A token of a new application credential."""
    session = TokenClient(keystone.url, keystone.token(user))
    entry = {"name": f"for tests {time.monotonic_ns()}", "access_rules": rules}
    path = f"/users/{keystone.user(user)}/application_credentials"
    made = session.request("POST", path, json={"application_credential": entry}).json()["application_credential"]
    identity = {
        "methods": ["application_credential"],
        "application_credential": {"id": made["id"], "secret": made["secret"]},
    }
    answer = session.request("POST", "/auth/tokens", json={"auth": {"identity": identity}})
    assert answer.status_code == 201, answer.text
    return str(answer.headers["X-Subject-Token"])


# --- Keystone away ---------------------------------------------------------------------------------------


def test_without_keystone_nobody_is_known_and_everybody_comes_back(brief: Service, short: Keystone) -> None:
    token = short.token("alice", new=True)
    alice = TokenClient(brief.url, token)
    short.stop()
    try:
        answer = alice.get("/v2/images")
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "WWW-Authenticate" not in answer.headers
    finally:
        short.start()
    assert TokenClient(brief.url, short.token("alice", new=True)).get("/v2/images").status_code == 200


def test_a_keystone_that_hangs_is_waited_for_no_longer_than_said(brief: Service, short: Keystone) -> None:
    alice, bob = (TokenClient(brief.url, short.token(user, new=True)) for user in ("alice", "bob"))
    assert bob.get("/v2/images").status_code == 200
    short.pause()
    try:
        began = time.monotonic()
        assert alice.get("/v2/images").status_code == 503
        assert time.monotonic() - began < 15
    finally:
        short.resume()
    until(lambda: TokenClient(brief.url, short.token("alice", new=True)).get("/v2/images").status_code == 200)


def test_a_keystone_that_hangs_holds_half_of_the_threads(short: Keystone) -> None:
    auth = authenticator(short, "[keystone_authtoken]\nhttp_connect_timeout = 1\n[server]\nthreads = 4\n")
    known = {"HTTP_X_AUTH_TOKEN": short.token("alice", new=True)}
    assert auth.caller(known).user
    ended: list[str] = []

    def ask(token: str) -> None:
        with pytest.raises(errors.Busy) as refused:
            auth.caller({"HTTP_X_AUTH_TOKEN": token})
        ended.append(str(refused.value))

    short.pause()
    try:
        threads = [threading.Thread(target=ask, args=(f"gAAAAAB{number}",)) for number in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: len(ended) == 3)
        assert all("Too many" in said for said in ended)
        assert auth.caller(known).user
    finally:
        short.resume()
    for thread in threads:
        thread.join()
    assert sum("Too many" in said for said in ended) == 3


def token_of(**changed: Any) -> bytes:
    said = {
        "expires_at": "2100-01-01T00:00:00.0Z",
        "user": {"id": "u", "name": "u", "domain": {"id": "d", "name": "d"}},
    }
    return json.dumps({"token": {"methods": ["password"], **said, **changed}}).encode()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"{}"),
        (200, b'{"token": null}'),
        (200, token_of(user=None)),
        (200, token_of(expires_at="tomorrow")),
        (200, token_of(application_credential={"id": "a", "access_rules": []})),
        (404, b"<html>no such backend"),
        (401, b"{}"),
        (403, b"{}"),
        (429, b""),
        (500, b""),
    ],
    ids=lambda value: str(value)[:20],
)
def test_nonsense_from_keystone_is_not_the_callers_fault(status: int, body: bytes, tmp_path: Path) -> None:
    """Whatever stands where Keystone should: a proxy, another service, half of a Keystone."""
    with nearly_keystone(status, body) as url:
        auth = ours.KeystoneAuth(load(tmp_path, CREDENTIALS.format(url=url)))
        with pytest.raises(errors.Busy):
            auth.caller({"HTTP_X_AUTH_TOKEN": "gAAAAAB"})


def test_access_rules_are_for_paths_of_the_api_whatever_stands_before(tmp_path: Path) -> None:
    """With `enable_proxy_headers_parsing` a client may say where it is: X-Forwarded-Prefix."""
    rules = [{"service": "image", "method": "GET", "path": "/v2/images/**", "id": "r"}]
    catalog = [{"type": "image", "name": "i", "id": "i", "endpoints": []}]
    body = token_of(catalog=catalog, application_credential={"id": "a", "access_rules": rules}, roles=[])
    with nearly_keystone(200, body) as url:
        auth = ours.KeystoneAuth(load(tmp_path, CREDENTIALS.format(url=url)))
        asked = {"HTTP_X_AUTH_TOKEN": "gAAAAAB", "REQUEST_METHOD": "GET"}
        for prefix in ("", "/image"):
            assert auth.caller({**asked, "SCRIPT_NAME": prefix, "PATH_INFO": "/v2/images/1"}).user == "u"
        for prefix in ("", "/v2/images"):
            with pytest.raises(errors.Unauthenticated):
                auth.caller({**asked, "SCRIPT_NAME": prefix, "PATH_INFO": "/v2/tasks"})


@contextlib.contextmanager
def nearly_keystone(status: int, body: bytes) -> Iterator[str]:
    """Gives tokens as Keystone does, and that answer to who asks for what one means."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            ends = [{"interface": name, "url": url, "region_id": "R", "id": "e"} for name in ("internal", "admin")]
            self.answer(201, token_of(catalog=[{"type": "identity", "name": "k", "id": "k", "endpoints": ends}]))

        def do_GET(self) -> None:
            version = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": url}]}
            whole = json.dumps({"version": version}).encode()
            self.answer(*((200, whole) if self.path.rstrip("/") == "/v3" else (status, body)))

        def answer(self, code: int, text: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Subject-Token", "of the service")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/v3"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield url
        server.shutdown()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", b""])
def test_a_server_that_is_no_keystone_is_not_the_callers_fault(answer: bytes, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=speak, args=(listening, answer), daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v3"
        conf = CREDENTIALS.format(url=url) + "http_connect_timeout = 1\nhttp_request_max_retries = 0\n"
        auth = ours.KeystoneAuth(load(tmp_path, conf))
        with pytest.raises(errors.Busy):
            auth.caller({"HTTP_X_AUTH_TOKEN": "gAAAAAB"})


def speak(listening: socket.socket, answer: bytes) -> None:
    with pytest.raises(OSError):
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)


def test_a_service_starts_before_keystone_does(short: Keystone, tmp_path: Path) -> None:
    short.stop()
    try:
        with running(tmp_path / "state", short.conf(), users=False) as started:
            assert not {"users.json", "clouds.yaml"} & {path.name for path in started.state.iterdir()}
            assert TokenClient(started.url, "gAAAAAB").get("/v2/images").status_code == 503
            assert TokenClient(started.url, None).get("/v2/images").status_code == 401
            short.start()
            assert TokenClient(started.url, short.token("bob", new=True)).get("/v2/images").status_code == 200
            assert TokenClient(started.url, "gAAAAAB").get("/v2/images").status_code == 401
    finally:
        short.start()


# --- memcached -------------------------------------------------------------------------------------------


def test_what_memcached_knows_keystone_is_not_asked(short: Keystone, memcached: Memcached) -> None:
    """Another worker's question is answered while Keystone is away; not so without memcached."""
    token = {"HTTP_X_AUTH_TOKEN": short.token("alice", new=True)}
    quick = "http_request_max_retries = 0\n"
    one, other, forgetful = (
        ours.KeystoneAuth(load(directory(short), short.conf(where) + f"[keystone_authtoken]\n{quick}"))
        for where in (memcached, memcached, None)
    )
    assert one.caller(token) == forgetful.caller(token)
    short.stop(signal.SIGKILL)  # at once: the token lives for seconds
    try:
        assert other.caller(token).project == short.project("red")
        assert forgetful.caller(token).project == short.project("red")
        forgetful._known.clear()
        with pytest.raises(errors.Busy):
            forgetful.caller(token)
    finally:
        short.start()


@pytest.mark.needs("memcached")
def test_without_memcached_keystone_is_asked(short: Keystone) -> None:
    own = Memcached()
    auth = ours.KeystoneAuth(load(directory(short), short.conf(own) + "[keystone]\nremember = 0\n"))
    token = {"HTTP_X_AUTH_TOKEN": short.token("alice", new=True)}
    assert auth.caller(token).user
    own.stop()
    assert auth.caller(token).user


# --- configuration ---------------------------------------------------------------------------------------

CREDENTIALS = """\
[paste_deploy]
flavor = keystone
[keystone_authtoken]
auth_url = {url}
auth_type = password
username = glance
password = secret
project_name = service
user_domain_name = Default
project_domain_name = Default
"""


def load(directory: Path, text: str) -> Any:
    (directory / "calotype.conf").write_text(text)
    return config.load([str(directory / "calotype.conf")], state_dir=str(directory))


def authenticator(keystone: Keystone, more: str = "") -> ours.KeystoneAuth:
    return ours.KeystoneAuth(load(directory(keystone), keystone.conf() + more))


def directory(keystone: Keystone) -> Path:
    return Path(tempfile.mkdtemp(prefix="service-", dir=keystone.root))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[paste_deploy]\nflavor = keystone\n", "auth_url"),
        *(
            (f"[paste_deploy]\nflavor = keystone\n[keystone_authtoken]\nauth_type = password\n{lines}", name)
            for lines, name in (
                ("auth_url = http://[::1\n", "auth_url is no URL"),
                ("auth_url = keystone.example:5000\n", "auth_url is no URL"),
                ("auth_url = http://h:port/v3\n", "auth_url is no URL"),
                ("auth_url = http://h/v3\nwww_authenticate_uri = [zz]\n", "www_authenticate_uri is no URL"),
            )
        ),
        ("[paste_deploy]\nflavor = keystone\n[keystone_authtoken]\nauth_url = http://127.0.0.1/v3\n", "auth_type"),
        (CREDENTIALS.replace("password\nuser", "magic\nuser"), "magic"),
        ("[paste_deploy]\nflavor = keystone+gzip\n", "gzip"),
    ],
)
def test_what_cannot_be_asked_stops_the_start(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(errors.ConfigError, match=said):
        App(load(tmp_path, text.format(url="http://127.0.0.1:5000/v3")))


@pytest.mark.parametrize("flavor", ["keystone", "keystone+caching", "keystone+cachemanagement"])
def test_glances_flavors_mean_keystone(tmp_path: Path, flavor: str) -> None:
    conf = load(tmp_path, CREDENTIALS.format(url="http://127.0.0.1/v3").replace("= keystone", f"= {flavor}"))
    assert App(conf).wsgi is not None


def test_the_memory_has_an_end(keystone: Keystone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_MAX_REMEMBERED", 3)
    auth = authenticator(keystone)
    for user in ("alice", "bob", "carol", "reader", "manager", "admin"):
        assert auth.caller({"HTTP_X_AUTH_TOKEN": keystone.token(user)}).user
        assert 0 < len(auth._known) <= 3


# --- nobody in particular --------------------------------------------------------------------------------


def test_whoever_shows_nothing_reads_where_that_is_allowed(keystone: Keystone, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "policy.yaml").write_text('"get_images": "@"\n"get_image": "@"\n"download_image": "@"\n')
    conf = "[DEFAULT]\nallow_anonymous_access = true\n[oslo_policy]\npolicy_file = policy.yaml\n" + keystone.conf()
    with running(state, conf) as started:
        admin, anyone = client(started, keystone, "admin"), TokenClient(started.url, None)
        seen, hidden = admin.active(b"for all", visibility="public"), admin.active(b"secret", visibility="private")
        assert [image["id"] for image in anyone.get("/v2/images").json()["images"]] == [seen]
        assert anyone.file(seen).content == b"for all"
        assert anyone.get(f"/v2/images/{hidden}").status_code == 404
        for refused in (
            anyone.create(),
            anyone.delete(seen),
            anyone.put(seen, b"x"),
            anyone.patch(seen, {"op": "replace", "path": "/name", "value": "x"}),
            anyone.request("PUT", f"/v2/images/{seen}/tags/x"),
            anyone.request("POST", f"/v2/images/{seen}/members", json={"member": "x"}),
            anyone.request("POST", f"/v2/images/{seen}/actions/deactivate"),
        ):
            assert (refused.status_code, "Read-only access" in refused.text) == (403, True)
        assert TokenClient(started.url, "wrong").get("/v2/images").status_code == 401


# --- secrets ---------------------------------------------------------------------------------------------


def test_no_token_and_no_password_is_in_the_log(brief: Service, short: Keystone) -> None:
    tokens = [short.token(user, new=True) for user in ("alice", "admin", "service")]
    TokenClient(brief.url, tokens[0], tokens[2]).get("/v2/images")
    TokenClient(brief.url, tokens[1], "wrong-service-token").get("/v2/images")
    TokenClient(brief.url, "wrong-user-token").get("/v2/images")
    assert "X-Subject-Token" in brief.log  # what was sent to Keystone is there
    for secret in (*tokens, PASSWORD, "wrong-service-token", "wrong-user-token"):
        assert secret not in brief.log
