"""Who asks, by a real Keystone."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calotype import config, errors
from calotype.app import App
from calotype.auth import keystone as ours
from tests.keystone import Keystone, TokenClient
from tests.support import PASSWORD, USERS, Service, free_port, running, until

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
    conf = f"[DEFAULT]\ndebug = true\n{short.conf()}http_connect_timeout = 2\n[keystone]\nremember = 1\n"
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


@pytest.mark.parametrize("token", [None, "", "nonsense", "x" * 8_000, "gAAAAA" + "B" * 180, "caf\u00e9", "a b"])
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
    bob = client(cloud, keystone, "bob")
    image_id = client(cloud, keystone, "alice").queued()
    assert bob.get(f"/v2/images/{image_id}", headers=forged).status_code == 404
    made = bob.request("POST", "/v2/images", json={}, headers=forged).json()
    assert made["owner"] == keystone.project("blue")


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


# --- scopes ----------------------------------------------------------------------------------------------


def test_a_token_without_a_project_has_none(cloud: Service, keystone: Keystone) -> None:
    unscoped = TokenClient(cloud.url, keystone.authenticate("alice", None))
    system = TokenClient(cloud.url, keystone.authenticate("admin", {"system": {"all": True}}))
    assert unscoped.get("/v2/images").status_code == 403
    assert unscoped.create().status_code == 403
    assert system.get("/v2/images").status_code in (200, 403)
    assert system.create().status_code in (201, 403)


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


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b""],
)
def test_nonsense_from_keystone_is_not_the_callers_fault(answer: bytes, tmp_path: Path) -> None:
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


def test_a_service_starts_before_keystone_does(tmp_path: Path) -> None:
    conf = CREDENTIALS.format(url=f"http://127.0.0.1:{free_port()}/v3")
    with running(tmp_path / "state", conf) as started:
        assert TokenClient(started.url, "gAAAAAB").get("/v2/images").status_code == 503
        assert TokenClient(started.url, None).get("/v2/images").status_code == 401


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
    directory = keystone.root / f"service-{time.monotonic_ns()}"
    directory.mkdir()
    return ours.KeystoneAuth(load(directory, keystone.conf() + more))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[paste_deploy]\nflavor = keystone\n", "auth_url"),
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
    monkeypatch.setattr(ours, "_MOST", 3)
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
    for secret in (*tokens, PASSWORD, "wrong-service-token", "wrong-user-token"):
        assert secret not in brief.log
