"""HTTP basic authentication: who gets in, how soon a change counts, what it costs."""

import base64
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from calotype import errors
from calotype.auth import basic
from calotype.auth.basic import BasicAuth
from tests.support import PASSWORD, USERS, Service, running, write_users

#: 75 ms of CPU a password.
COST = 10


def header(name: str, password: str = PASSWORD) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture
def users(tmp_path: Path) -> Path:
    write_users(tmp_path / "users.json")
    return tmp_path / "users.json"


@pytest.fixture
def dear(users: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with an Alice whose password costs as much as those of users, and so does one of nobody."""
    monkeypatch.setattr(basic, "_COST", COST)
    with basic.changing_users(users) as found:
        found["alice"] = basic.make_user("alice", "red", ("member",), PASSWORD)
    return users


def test_a_password_is_dear_to_guess() -> None:
    """Those of tests are not: so another process is asked."""
    code = "from calotype.auth import basic; print(basic.hash_password('x'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"$2b${COST}$")


def test_a_role_includes_those_below_it(users: Path) -> None:
    auth = BasicAuth(users)
    assert auth.identify(header("admin")).roles == {"admin", "manager", "member", "reader"}
    assert auth.identify(header("manager")).roles == {"manager", "member", "reader"}
    assert auth.identify(header("alice")).roles == {"member", "reader"}
    assert auth.identify(header("reader")).roles == {"reader"}
    assert auth.identify(header("service")).roles == {"service"}
    assert auth.identify(header("alice")).project == "red"


@pytest.mark.parametrize(
    "wrong",
    [
        None, "", "Basic", "Basic !!!", "Bearer x", "Basic " + base64.b64encode(b"no colon").decode(), header("alice", "wrong"),
        header("nobody"), header(""), header("alice", ""), "Basic " + base64.b64encode(b"\xff:\xff").decode(), header("alice", "x" * 100),
        header("alice", PASSWORD + "\0"), "Basic " + "A" * 2000, header("Alice"),
    ],
)  # fmt: skip
def test_nobody_else_gets_in(users: Path, wrong: str | None) -> None:
    with pytest.raises(errors.Unauthenticated):
        BasicAuth(users).identify(wrong)


def test_a_verified_password_costs_little_from_then_on(users: Path) -> None:
    auth = BasicAuth(users)
    auth.identify(header("alice"))
    start = time.process_time()
    for _ in range(1000):
        auth.identify(header("alice"))
    assert (time.process_time() - start) / 1000 <= 0.2e-3  # seconds a request


def test_a_change_counts_from_the_next_request(users: Path) -> None:
    auth = BasicAuth(users)
    auth.identify(header("alice"))
    with basic.changing_users(users) as found:
        found["alice"] = basic.make_user("alice", "red", ("member",), "another")
    with pytest.raises(errors.Unauthenticated):
        auth.identify(header("alice"))
    auth.identify(header("alice", "another"))
    with basic.changing_users(users) as found:
        found["alice"] = basic.User("alice", "blue", ("reader",), found["alice"].password)
    assert auth.identify(header("alice", "another")).project == "blue"
    with basic.changing_users(users) as found:
        del found["alice"]
    with pytest.raises(errors.Unauthenticated):
        auth.identify(header("alice", "another"))
    users.unlink()
    with pytest.raises(errors.Unauthenticated):
        auth.identify(header("bob"))


def test_a_broken_file_keeps_the_users_of_the_last_good_one(users: Path) -> None:
    auth = BasicAuth(users)
    auth.identify(header("alice"))
    users.write_text("{")
    auth.identify(header("alice"))


def test_few_passwords_are_verified_at_once(dear: Path) -> None:
    auth, running_now, most, lock = BasicAuth(dear, parallel=2), 0, 0, threading.Lock()
    verify = basic.bcrypt.checkpw

    def watched(*arguments: bytes) -> bool:
        nonlocal running_now, most
        with lock:
            running_now += 1
            most = max(most, running_now)
        try:
            return verify(*arguments)
        finally:
            with lock:
                running_now -= 1

    basic.bcrypt.checkpw = watched
    try:
        threads = [
            threading.Thread(target=lambda: pytest.raises(errors.Unauthenticated, auth.identify, header("alice", "no")))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        basic.bcrypt.checkpw = verify
    assert most == 2


def test_a_password_that_many_clients_send_at_once_is_verified_once(
    dear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth, verified, verify = BasicAuth(dear, parallel=1), [], basic.bcrypt.checkpw
    monkeypatch.setattr(basic.bcrypt, "checkpw", lambda *given: verified.append(1) or verify(*given))
    with ThreadPoolExecutor(12) as threads:
        assert {ctx.user for ctx in threads.map(auth.identify, [header("alice")] * 12)} == {"alice"}
        assert len(verified) == 1
        for refused in [threads.submit(auth.identify, header("alice", "wrong")) for _ in range(3)]:
            with pytest.raises(errors.Unauthenticated):
                refused.result()
    assert len(verified) == 4


def test_a_file_that_others_can_read_is_refused(users: Path) -> None:
    users.chmod(0o640)
    with pytest.raises(errors.ConfigError, match="chmod 600"):
        basic.read_users(users)


def test_users_files_are_private_and_keep_no_password(users: Path) -> None:
    assert os.stat(users).st_mode & 0o777 == 0o600
    assert PASSWORD not in users.read_text()


def test_commands_at_once_lose_nothing_of_each_other(users: Path) -> None:
    entry = basic.make_user("x", "p", ("member",), "pw")

    def add(name: str) -> None:
        with basic.changing_users(users) as found:
            found[name] = basic.User(name, "p", ("member",), entry.password)

    threads = [threading.Thread(target=add, args=(f"u{n}",)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(basic.read_users(users)) == {*USERS, *(f"u{n}" for n in range(20))}


@pytest.mark.parametrize("roles", [(), ("king",)])
def test_users_without_a_known_role_are_refused(roles: tuple[str, ...]) -> None:
    with pytest.raises(errors.Invalid):
        basic.make_user("x", "p", roles, "pw")


@pytest.mark.parametrize(
    ("name", "project", "password"),
    [("a:b", "p", "x"), ("", "p", "x"), ("a", "", "x"), ("a", "p", ""), ("a", "p", "x" * 73)],
)
def test_names_that_would_not_work_are_refused(name: str, project: str, password: str) -> None:
    with pytest.raises(errors.Invalid):
        basic.make_user(name, project, ("member",), password)


# --- over HTTP -------------------------------------------------------------------------------------------


@pytest.mark.any_database
@pytest.mark.slow
def test_wrong_credentials_are_401_on_every_route_that_is_not_open(service: Service) -> None:
    from calotype.api.routes import ROUTES

    for route in ROUTES:
        path = re.sub(r"{\w+}", "x", route.path)
        for client in (service.client(None), service.client("alice", "wrong"), service.client("nobody")):
            answer = client.request(route.method, path, allow_redirects=False)
            assert (answer.status_code != 401) == route.open, path
            if not route.open:
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_a_removed_user_is_out_at_once(state: Path) -> None:
    with running(state, "", "--workers", "2") as service:
        carol = service.client("carol")
        for _ in range(10):
            assert carol.get("/v2/images").status_code == 200
        write_users(state / "users.json", {name: USERS[name] for name in USERS if name != "carol"})
        for _ in range(10):
            assert carol.get("/v2/images").status_code == 401


@pytest.mark.alone
def test_guessing_does_not_hold_the_threads_of_those_who_are_known(dear: Path) -> None:
    auth = BasicAuth(dear, parallel=1)
    auth.identify(header("alice"))
    refused: list[type] = []

    def guess() -> None:
        try:
            auth.identify(header("alice", "guess"))
        except errors.CalotypeError as exc:
            refused.append(type(exc))

    threads = [threading.Thread(target=guess) for _ in range(24)]
    for thread in threads:
        thread.start()
    start = time.monotonic()
    auth.identify(header("alice"))
    assert time.monotonic() - start < 1
    for thread in threads:
        thread.join()
    assert errors.Busy in refused
    assert len(refused) == 24


def test_a_failure_to_read_is_not_taken_for_an_unchanged_file(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = BasicAuth(users)
    auth.identify(header("alice"))
    write_users(users, {"bob": USERS["bob"]})

    def fail(_: Path) -> dict[str, basic.User]:
        raise errors.ConfigError("no descriptor") from OSError(24, "Too many open files")

    monkeypatch.setattr(basic, "read_users", fail)
    auth.identify(header("alice"))
    monkeypatch.undo()
    with pytest.raises(errors.Unauthenticated):
        auth.identify(header("alice"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_leaves_the_file_to_its_owner(users: Path) -> None:
    os.chown(users, 1234, 1234)
    with basic.changing_users(users):
        pass
    assert os.stat(users).st_uid == 1234
