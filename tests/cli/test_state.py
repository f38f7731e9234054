"""The state that is meant: looking makes nothing, and what is made is the owner's alone, whoever made it."""

import gc
import os
import socket
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from calotype import errors, server
from calotype.db.engine import Database
from calotype.db.leases import Leases
from calotype.images import places
from tests.cli.conftest import Run
from tests.support import Service, free_port, running

OWNER = 12345


def test_a_directory_without_state_is_left_as_it_was(run: Run, tmp_path: Path) -> None:
    commands = (("user", "list"), ("env",), ("store", "list"), ("status",), ("user", "add", "x", "--project", "p"))
    for command in (
        *commands,
        ("job", "list"),
        ("job", "show", "x"),
        ("job", "drop", "x", "--yes"),
        ("db", "drop-events"),
    ):
        assert f"{tmp_path}/none" in run(*command, "--state-dir", tmp_path / "none", code=1, stdin="x\n").err
    assert "There is no database" in run("db", "check", "--state-dir", tmp_path / "none", code=3).out
    assert list(tmp_path.iterdir()) == []


def test_checking_a_configuration_makes_nothing(run: Run, tmp_path: Path) -> None:
    run("config", "check", "--state-dir", tmp_path / "none")
    run("config", "show", "--state-dir", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def _open_to_others(path: Path) -> list[Path]:
    return [one for one in (path, *path.rglob("*")) if one.lstat().st_mode & 0o077]


def test_what_commands_make_is_the_owners_alone_whatever_the_umask(run: Run, tmp_path: Path) -> None:
    state = tmp_path / "some" / "state"
    run("db", "sync", "--state-dir", state)  # `run` has a umask of 0
    run("user", "add", "ann", "--project", "red", "--generate", "--state-dir", state)
    assert (state / "calotype.db").exists()
    assert _open_to_others(tmp_path / "some") == []


def test_what_a_service_makes_is_the_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    state = tmp_path / "state"
    log = tmp_path / "log.txt"
    old = os.umask(0)
    try:
        with running(state, f"[DEFAULT]\nlog_file = {log}\n", users=False) as service:
            auth = yaml.safe_load((state / "clouds.yaml").read_text())["clouds"]["calotype"]["auth"]
            client = service.client(auth["username"], auth["password"])
            client.active(b"data")
            wanted = {"calotype.db", "calotype.db-wal", "calotype.db-shm", "users.json", "clouds.yaml", ".serve.lock"}
            assert wanted <= set(os.listdir(state))
            tests_own = {state / "serve.log", state / "calotype.conf"}
            assert set(_open_to_others(state)) <= tests_own
            assert log.stat().st_mode & 0o077 == 0
    finally:
        os.umask(old)


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """A state directory of the service's user; we are root."""
    if os.geteuid() != 0:
        pytest.skip("only root can make files of others")
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.chown(state, OWNER, OWNER)
    return state


@pytest.mark.parametrize(
    "command",
    [
        "db sync", "db check", "db purge", "db load-metadefs DEFINITIONS", "db unload-metadefs DEFINITIONS",
        "db export-metadefs DEFINITIONS", "store list", "store verify", "store relocate local --from /none", "repair --dry-run",
        "status", "config check",
    ],
)  # fmt: skip
def test_no_command_keeps_the_database_open(run: Run, tmp_path: Path, command: str) -> None:
    state, definitions = tmp_path / "state", tmp_path / "definitions"
    run("db", "sync", "--state-dir", state)
    definitions.mkdir()
    gc.disable()  # which closes what nobody else has closed, at some time
    try:
        run(*command.replace("DEFINITIONS", str(definitions)).split(), "--state-dir", state)
        assert [path for path in _open_files() if path.startswith(str(state))] == []
        assert [name for name in os.listdir(state) if name.startswith("calotype.db")] == ["calotype.db"]
    finally:
        gc.enable()


def _open_files() -> list[str]:
    return [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]


def _owners(state: Path) -> set[int]:
    return {one.lstat().st_uid for one in state.rglob("*")}


def test_what_root_makes_belongs_to_the_owner_of_the_directory(run: Run, owned: Path) -> None:
    place = ("--state-dir", owned)
    run("db", "sync", *place)
    run("user", "add", "ann", "--project", "red", "--generate", *place)
    run("user", "remove", "ann", *place)
    run("repair", "--yes", *place)
    run("store", "verify", *place)
    run("status", *place)
    assert {"calotype.db", "users.json", ".users.json.lock", "images"} <= set(os.listdir(owned))
    assert _owners(owned) == {OWNER}


def test_what_root_tells_of_its_process_can_be_read_by_the_service(owned: Path) -> None:
    database = Database(f"sqlite:///{owned}/calotype.db")
    leases = Leases(database, owned / "owners")
    try:
        leases.runner_heartbeat()
        assert len(os.listdir(owned / "owners")) == 2
        assert _owners(owned / "owners") == {OWNER}
    finally:
        leases.close()
        database.close()


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_root_does_not_serve_the_directory_of_another(run: Run, owned: Path, command: str) -> None:
    run("db", "sync", "--state-dir", owned)
    before = sorted(owned.rglob("*"))
    said = run(command, "--state-dir", owned, code=2)
    assert f"{owned} belongs to user {OWNER}" in said.err
    assert "run this as" in said.err
    assert sorted(owned.rglob("*")) == before


def test_a_command_of_root_leaves_the_log_file_of_the_service_alone(run: Run, owned: Path, tmp_path: Path) -> None:
    (tmp_path / "c.conf").write_text(f"[DEFAULT]\nlog_file = {tmp_path}/service.log\n")
    run("db", "sync", "--state-dir", owned)
    run("store", "verify", "--state-dir", owned, "--config-file", tmp_path / "c.conf")
    assert not (tmp_path / "service.log").exists()


# --- a start ---------------------------------------------------------------------------------------------


def _content(state: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in state.iterdir()
        if path.is_file() and path.name in ("clouds.yaml", "users.json")
    }


def test_a_second_service_on_a_state_is_refused_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(state, users=False) as service:
        before = _content(state)
        said = run("serve", "--bind", f"127.0.0.1:{free_port()}", "--state-dir", state, code=1)
        assert f"runs on {state}" in said.err
        assert len(said.err.splitlines()) == 1
        assert _content(state) == before
        assert requests.get(f"{service.url}/healthcheck", timeout=60).ok
    again = Service(state, users=False).start()  # the lock went with the one who had it
    assert f":{again.port}" in _content(state)["clouds.yaml"].decode()
    assert again.process
    psutil.Process(again.process.pid).kill()  # its master alone
    again.process.wait(30)
    try:
        third = Service(state, users=False).start()
        third.stop()
    finally:
        again.kill()


@pytest.mark.parametrize(
    "conf",
    [
        "[DEFAULT]\nenabled_backends = a:tape\n[glance_store]\ndefault_backend = a\n",
        "[DEFAULT]\nhashing_algorithm = md5\n",
        "[paste_deploy]\nflavor = nonsense\n",
    ],
)
def test_a_start_that_fails_leaves_nothing_behind(run: Run, tmp_path: Path, conf: str) -> None:
    (tmp_path / "c.conf").write_text(conf)
    place = ("--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "state")
    run("serve", "--bind", f"127.0.0.1:{free_port()}", *place, code=2)
    assert not (tmp_path / "state").exists()


def test_a_start_that_fails_on_an_address_in_use_does_not_move_clients(run: Run, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(state, users=False):
        pass
    before = _content(state)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use" in run("serve", "--bind", f"127.0.0.1:{port}", "--state-dir", state, code=1).err
    assert _content(state) == before
    assert "calotype.db-wal" not in os.listdir(state)


@pytest.mark.parametrize("url", ["mysql://u:p@127.0.0.1:{port}/d", "postgresql://u:p@127.0.0.1:{port}/d"])
def test_a_start_without_its_database_server_leaves_nothing_behind(run: Run, tmp_path: Path, url: str) -> None:
    connection = url.format(port=free_port())
    (tmp_path / "c.conf").write_text(f"[database]\nconnection = {connection}\nmax_retries = 0\n")
    place = ("--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "some" / "state")
    said = run("serve", "--bind", f"127.0.0.1:{free_port()}", *place, code=1)
    assert "refused" in said.err
    assert " <- " not in said.err
    run("db", "sync", *place, code=1)
    assert [one.name for one in tmp_path.iterdir()] == ["c.conf"]


@pytest.mark.parametrize("before", [(), ("clouds.yaml",), ("calotype.db", "images")])
def test_a_start_that_fails_late_takes_back_what_it_made(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: tuple[str, ...]
) -> None:
    state = tmp_path / "some" / "state"
    if "calotype.db" in before:
        run("db", "sync", "--state-dir", state)
    elif before:
        state.mkdir(parents=True)
        (state / before[0]).touch()

    def full(*_: object, **__: object) -> None:
        raise errors.Busy("The disk is full.")

    monkeypatch.setattr(places, "recognise", full)
    assert "full" in run("serve", "--bind", f"127.0.0.1:{free_port()}", "--state-dir", state, code=1).err
    assert sorted(one.name for one in state.iterdir()) == sorted(before) if before else not any(tmp_path.iterdir())


def test_an_address_that_comes_free_in_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    monkeypatch.setattr(server.time, "sleep", lambda _: taken.close())
    with server.listen("127.0.0.1", port) as listener:
        assert listener.getsockname()[1] == port
