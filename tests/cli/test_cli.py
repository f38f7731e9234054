"""The command line: what it explains, what it refuses, what it leaves behind."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
import sqlalchemy as sa

from calotype.db import schema
from calotype.db.engine import Database
from tests import warm
from tests.support import PASSWORD, Service, free_port, names, running, write_users

Place = tuple[str | Path, ...]


def calotype(*arguments: str | Path, code: int = 0, stdin: str = "", **environment: str) -> str:
    """Run the command; its output, both streams."""
    done = warm.run("calotype", list(map(str, arguments)), input=stdin, env={**os.environ, **environment})
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def place(tmp_path: Path, database_kind: str, empty_database_url: str) -> Place:
    """What tells a command where an empty database is; one of SQLite is where it looks by itself."""
    where: Place = ("--state-dir", tmp_path)
    if database_kind != "sqlite":
        (tmp_path / "place.conf").write_text(f"[database]\nconnection = {empty_database_url}\n")
        where += ("--config-file", tmp_path / "place.conf")
    return where


def free() -> tuple[str, str]:
    """An address for a start that fails later: other tests may begin one on the usual address at the same time."""
    return "--bind", f"127.0.0.1:{free_port()}"


def test_help_teaches_itself() -> None:
    text = calotype("--help")
    for command in ("serve", "user", "db", "config", "env"):
        assert re.search(rf"^    {command} ", text, re.MULTILINE)
        assert "--help" in calotype(command, "--help")
    assert "openstack image create" in text
    assert "usage:" in calotype(code=2)
    assert "sync" in calotype("db", code=2)
    assert "--workers" in calotype("serve", "--help")
    assert calotype("--version").startswith("calotype ")


@pytest.mark.slow
def test_it_is_installed_as_a_command_and_can_be_run_as_a_module() -> None:
    script, module = [Path(sys.executable).with_name("calotype")], [sys.executable, "-m", "calotype.cli.main"]
    done = subprocess.run([*script, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == calotype("--help")
    assert subprocess.run([*module, "db"], capture_output=True, timeout=60).returncode == 2


def test_users_are_added_listed_and_removed(tmp_path: Path) -> None:
    place = ("--state-dir", tmp_path)
    calotype(
        "user", "add", *place, "--project", "red", "--role", "reader", "--role", "member", "ann", CALOTYPE_PASSWORD="x"
    )
    calotype("user", "add", *place, "--project", "blue", "ben", stdin="secret\n")
    said = calotype("user", "add", *place, "--project", "blue", "--generate", "cid")
    (made,) = re.findall(r"OS_PASSWORD=(\S{20,})", said)
    listed = calotype("user", "list", *place)
    assert re.search(r"^ann +reader,member +red$", listed, re.MULTILINE)
    assert re.search(r"^ben +member +blue$", listed, re.MULTILINE)
    assert "$2b$" not in listed
    calotype("user", "remove", *place, "ben")
    assert "ben" not in calotype("user", "list", *place)
    assert "no user" in calotype("user", "remove", *place, "ben", code=1)
    assert "72 bytes" in calotype("user", "add", *place, "--project", "p", "x", code=2, CALOTYPE_PASSWORD="x" * 73)
    with running(tmp_path) as service:
        assert service.client("cid", made).get("/v2/images").status_code == 200
        assert service.client("ann", "x").get("/v2/images").status_code == 200


def test_the_database_is_made_checked_and_purged(place: Place) -> None:
    assert calotype("db", "check", *place, code=3).count("calotype db sync") == 1
    assert "was empty" in calotype("db", "sync", *place)
    assert "already" in calotype("db", "sync", *place)
    assert "as it should be" in calotype("db", "check", *place)
    assert "0 deleted images purged" in calotype("db", "purge", *place, "--age_in_days", "1", "--max_rows", "-1")
    for wrong in (("--max_rows", "0"), ("--max_rows", "-2"), ("--age_in_days", "-1")):
        calotype("db", "purge", *place, *wrong, code=2)


def test_a_program_can_ask_about_the_schema_and_lost_indexes_are_made_anew(
    place: Place, database_kind: str, empty_database_url: str
) -> None:
    assert json.loads(calotype("db", "check", *place, "--json", code=3)) == {
        "revision": None,
        "wanted": schema.HEAD,
        "glance_revisions": [],
        "missing": [],
        "ready": False,
    }
    calotype("db", "sync", *place)
    assert json.loads(calotype("db", "check", *place, "--json"))["glance_revisions"] == ["2024_1_contract01"]
    database = Database(empty_database_url)
    with database.write_once() as tx:
        for name, table in (("calotype_owner_name", "images"), ("calotype_property", "image_properties")):
            of = f" ON {table}" if database_kind == "mariadb" else ""
            tx.execute(sa.text(f"DROP INDEX {name}{of}"))
    database.close()
    found = json.loads(calotype("db", "check", *place, "--json", code=3))
    assert found["missing"] == ["calotype_owner_name", "calotype_property"]
    assert "calotype_owner_name" in calotype("db", "check", *place, code=3)
    calotype("db", "sync", *place)
    assert json.loads(calotype("db", "check", *place, "--json"))["ready"] is True


def test_how_long_deleted_images_are_kept_can_be_configured(state: Path, own_database: str, tmp_path: Path) -> None:
    with running(state, database=own_database) as service:
        service.client().delete(service.client().active(b"data"))
    conf = tmp_path / "c.conf"
    for days, gone in ((1, 0), (0, 1)):
        conf.write_text(f"[database]\npurge_age_in_days = {days}\n")
        said = calotype("db", "purge", *service.place, "--config-file", conf, "--max_rows", "-1")
        assert f"{gone} deleted images purged" in said


def test_purging_never_frees_an_id(state: Path, own_database: str) -> None:
    with running(state, database=own_database) as service:
        alice = service.client()
        image_id = alice.active(b"data")
        alice.delete(image_id)
        assert "1 deleted images purged" in calotype("db", "purge", *service.place, "--age_in_days", "0")
        for client in (alice, service.client("admin")):
            assert client.create(id=image_id).status_code == 409


def test_the_configuration_is_shown_without_secrets_and_checked(tmp_path: Path) -> None:
    conf = tmp_path / "c.conf"
    conf.write_text("[DEFAULT]\nenabled_backends=a:file\n[database]\nconnection=sqlite:////secret/path\n")
    shown = calotype("config", "show", "--config-file", conf, "--state-dir", tmp_path)
    assert "connection = <hidden>" in shown
    assert "enabled_backends = a:file" in shown
    assert "default_backend" in calotype("config", "check", "--config-file", conf, "--state-dir", tmp_path, code=1)
    conf.write_text("[DEFAULT]\n")
    assert "can be served" in calotype("config", "check", "--config-file", conf, "--state-dir", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[DEFAULT]\nimage_size_cap = x\n", "image_size_cap"), ("[DEFAULT]\nhashing_algorithm = md5\n", "md5"),
        ("[DEFAULT]\nhashing_algorithm = sha1\n", "sha1"), ("[paste_deploy]\nflavor = keystone\n", "[keystone_authtoken]"),
        ("[database]\nconnection = nonsense\n", "connection"), ("[server]\ntls_cert = /nope\n", "go together"),
        ("[server]\nbind = 9292\n", "HOST:PORT"), ("[DEFAULT]\nenabled_backends = a:file\n", "default_backend"),
        ("[DEFAULT]\nuser_storage_quota = 10 parsec\n", "user_storage_quota"),
        ("[DEFAULT]\nuse_keystone_limits = true\n", "[oslo_limit] auth_type"),
        ("no section", "configuration cannot be read"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_served_is_refused_with_a_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "c.conf").write_text(text)
    place = ("--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "s")
    said = calotype("serve", *place, *(() if "bind" in text else free()), code=2)
    assert words in said
    assert said.startswith("calotype: ") or "\ncalotype: " in said


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "nope.conf" in calotype("serve", "--config-file", tmp_path / "nope.conf", code=2)


def test_listening_beyond_loopback_in_the_clear_must_be_asked_for(state: Path) -> None:
    port = free_port()
    said = calotype("serve", "--bind", f"0.0.0.0:{port}", "--state-dir", state, code=2)
    assert "--allow-plain-http" in said
    assert not state.exists()
    service = Service(state, "", ("--allow-plain-http",))
    service.start()
    service.stop()


def test_a_policy_file_that_is_broken_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("{")
    (tmp_path / "c.conf").write_text("")
    place = ("--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "s")
    assert "policy" in calotype("serve", *place, *free(), code=2)


@pytest.mark.any_database
def test_an_address_in_use_is_said_in_a_sentence(service: Service, tmp_path: Path) -> None:
    said = calotype("serve", "--bind", f"127.0.0.1:{service.port}", "--state-dir", tmp_path / "s", code=1)
    assert "in use" in said
    assert str(service.port) in said


def test_a_database_that_is_not_ours_to_change_must_be_synced_by_hand(tmp_path: Path, empty_database_url: str) -> None:
    (tmp_path / "c.conf").write_text(f"[database]\nconnection = {empty_database_url}\n")
    said = calotype("serve", "--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "s", *free(), code=2)
    assert "calotype db sync" in said


@pytest.mark.any_database
def test_it_serves_soon_and_ends_when_told(state: Path, own_database: str) -> None:
    service = Service(state, database=own_database)
    service.start()
    service.stop()
    start = time.monotonic()
    service.start()
    assert time.monotonic() - start < 30  # the figure itself is measured in bench/
    assert requests.get(f"{service.url}/healthcheck", timeout=60).text == "OK"
    pid = service.process.pid if service.process else 0
    assert service.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


@pytest.mark.any_database
def test_several_workers_serve_one_state(state: Path, own_database: str) -> None:
    with running(state, "", "--workers", "3", database=own_database) as service:
        alice = service.client()
        image_id = alice.active(b"data")
        for _ in range(20):
            assert service.client().file(image_id).content == b"data"
        assert PASSWORD not in service.log


def test_no_open_database_is_handed_from_the_master_to_its_workers(state: Path, own_database: str) -> None:
    """A child that closes an inherited SQLite file loses the locks of its own connections: rows would be lost.

    Two that talk on one connection to a server read each other's answers.
    """
    with running(state, "", "--workers", "2", database=own_database) as service:
        service.client().active(b"data")
        assert service.process
        master = psutil.Process(service.process.pid)
        family = [master, *master.children()]
        port = sa.make_url(service.database_url).port
        holders = {one.pid for one in family if _holds(one, port)}
        assert holders
        assert master.pid not in holders


def _holds(process: psutil.Process, port: int | None) -> bool:
    """Whether a process has the SQLite file open, or with a port, a connection to it."""
    if port is None:
        return any(file.path.endswith("calotype.db") for file in process.open_files())
    return any(one.raddr and one.raddr.port == port for one in process.net_connections())


def test_everything_that_is_made_is_the_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    write_users(tmp_path / "open/users.json")
    with running(tmp_path / "open", users=False) as service:
        service.client().active(b"data")
        for path in (tmp_path / "open").rglob("*"):
            if path.name not in ("serve.log", "calotype.conf"):  # the test's own
                assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("line", ["metadata_encryption_key = 0123456789abcdef"])
def test_protection_that_is_not_served_is_refused_rather_than_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / "c.conf").write_text(f"[DEFAULT]\n{line}\n")
    said = calotype("config", "check", "--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "s", code=1)
    assert line.split()[0] in said


def test_checking_finds_what_would_stop_the_start(tmp_path: Path, empty_database_url: str) -> None:
    place = ("--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "s")
    (tmp_path / "c.conf").write_text("[server]\nbind = 0.0.0.0:9292\n")
    assert "without TLS" in calotype("config", "check", *place, code=1)
    (tmp_path / "c.conf").write_text(f"[database]\nconnection = {empty_database_url}\n")
    assert "db sync" in calotype("config", "check", *place, code=1)
    calotype("db", "sync", *place)
    calotype("config", "check", *place)


@pytest.mark.any_database
def test_a_worker_beside_another_server_cleans_up(state: Path, own_database: str) -> None:
    import signal

    service = Service(state, database=own_database).start()
    alice = service.client()
    image_id = alice.queued()
    sock = requests.Session()

    def half() -> object:
        yield b"x" * 100_000
        while not list(service.images.glob("*.part")):
            time.sleep(0.01)
        service.kill()
        yield b"y"

    with pytest.raises(requests.RequestException):
        sock.put(f"{service.url}/v2/images/{image_id}/file", data=half(), auth=("alice", PASSWORD), timeout=20,
                 headers={"Content-Type": "application/octet-stream"})  # fmt: skip
    assert list(service.images.glob("*.part"))
    worker = subprocess.Popen([sys.executable, "-m", "calotype.cli.main", "worker", *map(str, service.place)])
    try:
        end = time.monotonic() + 15
        while names(service.images) and time.monotonic() < end:
            time.sleep(0.1)
        assert not names(service.images)
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=20) == 0
