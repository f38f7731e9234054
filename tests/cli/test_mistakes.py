"""A mistake of an operator is one line that names what is wrong and says what to do, and it changes nothing."""

import os
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from calotype.db import schema
from tests.cli.conftest import Run

#: Commands that read the state: they need one that is there.
READERS = (
    ("db", "check"), ("db", "purge"), ("store", "list"), ("store", "verify"), ("store", "adopt", "local"),
    ("store", "relocate", "local"), ("repair", "--dry-run"), ("status",), ("worker",), ("db", "load-metadefs", "."),
    ("db", "unload-metadefs"), ("db", "export-metadefs", "out"), ("db", "drop-events"), ("job", "list"),
    ("job", "show", "x"), ("job", "retry", "x"), ("job", "cancel", "x"), ("job", "drop", "x"),
)  # fmt: skip
SERVE, SYNC, CHECK = ("serve",), ("db", "sync"), ("config", "check")
EVERY = (SERVE, SYNC, CHECK, ("config", "show"), ("user", "list"), ("env",), *READERS)


def _certificate(path: Path, name: str, *cipher: str) -> tuple[Path, Path]:
    cert, key = path / f"{name}.pem", path / f"{name}.key"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=x"]
    subprocess.run(
        [*made, "-keyout", key, "-out", cert, *(cipher or ("-nodes",))], check=True, capture_output=True, timeout=60
    )
    return cert, key


class Place:
    """A directory with all that mistakes are made of."""

    def __init__(self, path: Path, taken: int) -> None:
        self.path, self.taken = path, taken
        self.state = path / "state"

    def conf(self, text: str | bytes) -> Path:
        path = self.path / "c.conf"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def tls(self, cert: Path, key: Path) -> tuple[object, ...]:
        return (
            "--config-file",
            self.conf(f"[server]\ntls_cert = {cert}\ntls_key = {key}\n"),
            "--state-dir",
            self.state,
        )

    def database(self, content: bytes = b"", revision: str | None = None) -> tuple[object, ...]:
        """A state directory with a database of this content, or at this revision."""
        self.state.mkdir()
        path = self.state / "calotype.db"
        path.write_bytes(content)
        if revision:
            with sqlite3.connect(path) as database:
                database.execute("PRAGMA journal_mode = WAL")  # as we keep ours
                database.execute("CREATE TABLE calotype_version (version_num TEXT)")
                database.execute("INSERT INTO calotype_version VALUES (?)", (revision,))
            database.close()
        return ("--state-dir", self.state)

    def with_conf(self, text: str | bytes) -> tuple[object, ...]:
        return ("--config-file", self.conf(text), "--state-dir", self.state)


@dataclass(frozen=True)
class Mistake:
    """What is wrong, in which commands, and what of it the line says."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    make: Callable[[Place], tuple[object, ...]]
    says: tuple[str, ...]
    code: int = 2


def _file(place: Place) -> tuple[object, ...]:
    (place.path / "file").write_text("x")
    return ("--state-dir", place.path / "file")


def _below_a_file(place: Place) -> tuple[object, ...]:
    (place.path / "file").write_text("x")
    return ("--state-dir", place.path / "file" / "state")


def _dangling(place: Place) -> tuple[object, ...]:
    place.state.symlink_to(place.path / "gone")
    return ("--state-dir", place.state)


def _users(place: Place) -> tuple[object, ...]:
    place.state.mkdir()
    (place.state / "users.json").write_text("garbage")
    (place.state / "users.json").chmod(0o600)
    return ("--state-dir", place.state)


def _open_users(place: Place) -> tuple[object, ...]:
    place.state.mkdir()
    (place.state / "users.json").write_text('{"users": []}')
    (place.state / "users.json").chmod(0o644)
    return ("--state-dir", place.state)


def _directory_as_database(place: Place) -> tuple[object, ...]:
    (place.state / "calotype.db").mkdir(parents=True)
    return ("--state-dir", place.state)


def _bind(text: str) -> Callable[[Place], tuple[object, ...]]:
    return lambda place: ("--bind", text, "--state-dir", place.state)


MISTAKES = [
    # the command line
    Mistake("workers that are no number", (SERVE,), lambda _: ("--workers", "abc"), ("--workers", "'abc'", "1")),
    Mistake("negative workers", (SERVE,), lambda _: ("--workers", "-1"), ("--workers", "-1")),
    Mistake("no workers", (SERVE,), lambda _: ("--workers", "0"), ("--workers", "'0'")),
    Mistake("an empty state directory", EVERY, lambda _: ("--state-dir", ""), ("--state-dir", "empty")),
    Mistake("an empty configuration file", EVERY, lambda _: ("--config-file", ""), ("--config-file", "empty")),
    Mistake("an empty configuration directory", EVERY, lambda _: ("--config-dir", ""), ("--config-dir", "empty")),
    # where to listen
    Mistake("IPv6 without brackets", (SERVE,), _bind("::1:9292"), ("::1:9292", "[::1]:9292")),
    Mistake("a port alone", (SERVE,), _bind("9292"), ("'9292'", "HOST:PORT")),
    Mistake("a port that is none", (SERVE,), _bind("127.0.0.1:x"), ("127.0.0.1:x", "HOST:PORT")),
    Mistake("a port that is too large", (SERVE,), _bind("127.0.0.1:65536"), ("65536", "HOST:PORT")),
    Mistake("a socket", (SERVE,), _bind("unix:/run/calotype.sock"), ("unix:/run/calotype.sock", "HOST:PORT")),
    Mistake("an address beyond loopback", (SERVE,), _bind("0.0.0.0:9292"), ("0.0.0.0", "--allow-plain-http")),
    Mistake(
        "an address of another host", (SERVE,), lambda place: (*_bind("192.0.2.1:9292")(place), "--allow-plain-http"),
        ("192.0.2.1:9292", "does not have the address"),
    ),
    Mistake(
        "a host that nobody knows", (SERVE,), lambda place: (*_bind("no.such.invalid:9292")(place), "--allow-plain-http"),
        ("no.such.invalid", "name"),
    ),
    Mistake(
        "a port in use", (SERVE,), lambda place: _bind(f"127.0.0.1:{place.taken}")(place), ("in use", "--bind"), code=1,
    ),
    Mistake("a URL", (SERVE,), _bind("http://127.0.0.1:9292"), ("http://127.0.0.1:9292", "no name or address")),
    Mistake("every address as a star", (SERVE,), _bind("*:9292"), ("*:9292", "no name or address")),
    Mistake("IPv4 in brackets", (SERVE,), _bind("[127.0.0.1]:9292"), ("[127.0.0.1]:9292", "no name or address")),
    # URLs
    *(
        Mistake(f"a database at {url}", (SERVE, SYNC, CHECK),
                lambda place, url=url: place.with_conf(f"[database]\nconnection = {url}\n"), ("[database] connection",))  # type: ignore[misc]
        for url in ("sqlite://[", "mysql://u:pw@[::1/x", "postgresql://h:port/x")
    ),
    *(
        Mistake(f"{option} that is {url}", (SERVE, CHECK),
                lambda place, section=section, option=option, url=url: place.with_conf(f"[{section}]\n{option} = {url}\n"), (option,))  # type: ignore[misc]
        for section, option, urls in (
            ("DEFAULT", "public_endpoint", ("http://[::1", "images.example", "http://h:port")),
            ("cors", "allowed_origin", ("https://h/", "https://h:port", "https://u@h")),
        )
        for url in urls
    ),
    # TLS
    Mistake(
        "a certificate without a key", (SERVE, CHECK),
        lambda place: place.with_conf("[server]\ntls_cert = /c.pem\n"), ("tls_cert", "tls_key"),
    ),
    Mistake(
        "a certificate that is not there", (SERVE, CHECK),
        lambda place: place.tls(place.path / "none.pem", place.path / "none.key"), ("none.pem", "does not exist"),
    ),
    Mistake(
        "a certificate that is none", (SERVE, CHECK), lambda place: place.tls(place.conf("x"), place.conf("x")),
        ("c.conf", "PEM"),
    ),
    Mistake(
        "a directory as certificate", (SERVE, CHECK), lambda place: place.tls(place.path, place.path),
        ("tls_cert", "cannot be read"),
    ),
    Mistake(
        "the key of another certificate", (SERVE, CHECK),
        lambda place: place.tls(_certificate(place.path, "a")[0], _certificate(place.path, "b")[1]),
        ("a.pem", "b.key", "not the one"),
    ),
    Mistake(
        "a key with a passphrase", (SERVE, CHECK),
        lambda place: place.tls(*_certificate(place.path, "a", "-passout", "pass:secret")), ("a.key", "encrypted"),
    ),
    # configuration
    Mistake(
        "a configuration file that is not there", EVERY, lambda place: ("--config-file", place.path / "none.conf"),
        ("none.conf",),
    ),
    Mistake(
        "a configuration directory that is not there", EVERY, lambda place: ("--config-dir", place.path / "none"),
        ("none",),
    ),
    Mistake("a directory as configuration file", EVERY, lambda place: ("--config-file", place.path), ("{path}",)),
    Mistake("a configuration of bytes", EVERY, lambda place: place.with_conf(bytes(range(256))), ("c.conf",)),
    Mistake("workers in the file that are none", EVERY, lambda place: place.with_conf("[server]\nworkers = abc\n"), ("workers",)),
    Mistake(
        "stores of an unknown type", (SERVE, CHECK),
        lambda place: place.with_conf(
            "[DEFAULT]\nenabled_backends = a:tape\n[glance_store]\ndefault_backend = a\n"
        ),
        ("tape",),
    ),
    Mistake(
        "a default store that there is not", (SERVE, CHECK),
        lambda place: place.with_conf(
            "[DEFAULT]\nenabled_backends = a:file\n[glance_store]\ndefault_backend = b\n"
        ),
        ("'b'", "enabled_backends"),
    ),
    Mistake(
        "a log in a directory that is not there", (SERVE,),
        lambda place: (*place.with_conf(f"[DEFAULT]\nlog_file = {place.path}/none/x.log\n"), *_bind("127.0.0.1:{free}")(place)),
        ("none/x.log", "cannot be written"),
    ),
    Mistake(
        "a log that nobody can set up", (SERVE,),
        lambda place: (*place.with_conf("[DEFAULT]\nuse_syslog = true\nsyslog_log_facility = LOG_FOO\n"), *_bind("127.0.0.1:{free}")(place)),
        ("log cannot be set up", "facility"),
    ),
    Mistake(
        "a users file in a directory that is not there", (SERVE,),
        lambda place: place.with_conf("[http_basic]\nusers_file = /nowhere/users.json\n"), ("users_file", "/nowhere; make it"),
    ),
    # the state directory
    Mistake("a file as state directory", EVERY, _file, ("{path}/file", "not a directory", "--state-dir")),
    Mistake("a link to nowhere as state directory", EVERY, _dangling, ("{path}/state", "not a directory")),
    Mistake(
        "a state directory below a file", (SERVE, SYNC), lambda place: (*_below_a_file(place),),
        ("{path}/file/state", "--state-dir"),
    ),
    Mistake(
        "a state directory that cannot be made", (SERVE, SYNC), lambda _: ("--state-dir", "/sys/calotype"),
        ("/sys/calotype", "cannot be made", "--state-dir"),
    ),
    Mistake(
        "a state directory with a name that is too long", EVERY, lambda _: ("--state-dir", "/tmp/" + "x" * 300),
        ("File name too long", "--state-dir"),
    ),
    # the database
    Mistake(
        "a database that is not there", tuple(one for one in READERS if one != ("db", "check")),
        lambda place: ("--state-dir", place.state), ("{path}/state/calotype.db", "--state-dir", "calotype db sync"), code=1,
    ),
    Mistake(
        "a database that is none", (SERVE, SYNC, *READERS), lambda place: place.database(b"x" * 5000),
        ("{path}/state/calotype.db", "not a database"),
    ),
    Mistake(
        "a damaged database", (SERVE, SYNC, *READERS), lambda place: place.database(b"SQLite format 3\0" + b"x" * 5000),
        ("damaged",), code=1,
    ),
    Mistake("a directory as database", (SERVE, SYNC, *READERS), _directory_as_database, ("{path}/state/calotype.db", "directory")),
    Mistake(
        "a newer database", (SERVE, SYNC, *(one for one in READERS if one != ("db", "check"))),
        lambda place: place.database(revision="9999"), ("9999", schema.HEAD, "newer Calotype"),
    ),
    Mistake(
        "an older database", tuple(one for one in READERS if one != ("db", "check")),
        lambda place: place.database(revision="0001"), ("calotype db sync",),
    ),
    Mistake(
        "a directory of the database that is not there", (SERVE, SYNC),
        lambda place: place.with_conf(f"[database]\nconnection = sqlite:///{place.path}/none/x.db\n"),
        ("{path}/none/x.db", "make it"),
    ),
    Mistake(
        "a database with a port that is none", (SERVE, SYNC, CHECK, ("status",)),
        lambda place: place.with_conf("[database]\nconnection = mysql://u:p@127.0.0.1:x/d\n"), ("[database] connection", "not the URL"),
    ),
    Mistake(
        "a database with a parameter that nobody knows", (SERVE, SYNC, CHECK, ("status",)),
        lambda place: place.with_conf("[database]\nconnection = mysql://u:p@127.0.0.1/d?bogus=1\n"), ("[database] connection", "bogus"),
    ),
    Mistake(
        "another parameter that nobody knows", (SERVE,),
        lambda place: place.with_conf("[database]\nconnection = postgresql://u:p@127.0.0.1/d?bogus=1\n"), ("connection", "bogus"),
    ),
    Mistake(
        "a database in memory", (SERVE, SYNC, CHECK, ("status",)),
        lambda place: place.with_conf("[database]\nconnection = sqlite://\n"), ("[database] connection", "a file that stays"),
    ),
    # users
    Mistake("a users file that is none", (SERVE, ("user", "list"), ("user", "remove", "x"), ("env", "--user", "x")), _users,
            ("users.json", "no users file")),
    Mistake("a users file that others can read", (SERVE, ("user", "list")), _open_users, ("users.json", "chmod 600")),
    Mistake(
        "users of Keystone", (("user", "add", "x", "--project", "x"), ("user", "list"), ("user", "remove", "x"), ("env",)),
        lambda place: place.with_conf("[paste_deploy]\nflavor = keystone\n"), ("Keystone", "openstack user"),
    ),
    Mistake(
        "users of nowhere", (("user", "list"), ("user", "remove", "x")), lambda place: ("--state-dir", place.state),
        ("{path}/state/users.json", "--state-dir"), code=1,
    ),
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield Place(tmp_path, taken.getsockname()[1])


def _tree(path: Path) -> dict[str, bytes | None]:
    """Everything in a directory; what SQLite leaves beside a file that it looked into is of no account."""
    return {
        str(one.relative_to(path)): one.read_bytes() if one.is_file() else None
        for one in sorted(path.rglob("*"))
        if not one.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize(
    ("mistake", "command"),
    [pytest.param(one, command, id=f"{one.name}-{' '.join(command)}") for one in MISTAKES for command in one.commands],
)
def test_a_mistake_is_one_line_with_what_is_wrong_and_changes_nothing(
    run: Run, place: Place, mistake: Mistake, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [str(one).replace("{free}", str(port)) for one in mistake.make(place)]
    if command == SERVE and "--bind" not in arguments:
        arguments += ["--bind", f"127.0.0.1:{port}"]
    before = _tree(place.path)
    if command == CHECK and "" not in arguments:
        # Its report is its output, and tells of every mistake.
        said = run(*command, *arguments, code=1)
        assert mistake.says[0].format(path=place.path) in said.out
        assert (said.err, _tree(place.path)) == ("", before)
        return
    wanted = (
        3
        if mistake.code == 1 and command[0] in ("repair", "store") and command[1] in ("verify", "--dry-run")
        else mistake.code
    )
    said = run(*command, *arguments, code=wanted)
    (line,) = [one for one in said.err.splitlines() if one.startswith("calotype") and ": " in one]
    assert said.err.splitlines()[-1] == line  # argparse tells the usage before
    assert said.out == ""
    for words in mistake.says:
        assert words.format(path=place.path) in line
    assert _tree(place.path) == before


def test_there_are_enough_mistakes_in_the_table() -> None:
    assert len(MISTAKES) > 30


@pytest.fixture
def stranger() -> Iterator[Path]:
    """A directory that others may enter; from then on we are nobody. Only root can become nobody."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        os.seteuid(0)


@pytest.mark.parametrize("command", [SYNC, SERVE], ids=" ".join)
def test_a_state_directory_that_may_not_be_made_is_named(run: Run, stranger: Path, command: tuple[str, ...]) -> None:
    os.seteuid(65534)
    said = run(*command, "--state-dir", stranger / "state", code=2)
    assert f"{stranger}/state cannot be made: Permission denied" in said
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("command", [SERVE, *READERS], ids=" ".join)
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_database_that_may_not_be_used_is_named(
    run: Run, stranger: Path, command: tuple[str, ...], mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stranger)
    (stranger / "state").mkdir(mode=0o755)
    (stranger / "state").chmod(0o755)
    database = stranger / "state" / "calotype.db"
    database.write_bytes(b"SQLite format 3\0")
    database.chmod(mode)
    os.seteuid(65534)
    said = run(*command, "--state-dir", stranger / "state", code=2)
    (line,) = said.err.splitlines()
    assert f"{database} cannot be " in line
    assert "run this as root, who owns it" in line


def test_a_configuration_that_may_not_be_read_is_named(run: Run, stranger: Path) -> None:
    conf = stranger / "c.conf"
    conf.touch(mode=0o600)
    os.seteuid(65534)
    for command in EVERY:
        said = run(*command, "--config-file", conf, "--state-dir", stranger, code=1 if command == CHECK else 2)
        (line,) = [line for line in (said.out if command == CHECK else said.err).splitlines() if str(conf) in line]
        assert "cannot be read" in line


def test_a_privileged_port_is_explained(run: Run, stranger: Path) -> None:
    (stranger / "state").mkdir()
    os.chown(stranger / "state", 65534, 65534)
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if lowest < 2:
        pytest.skip("every port is free for all here")
    os.seteuid(65534)
    (line,) = run("serve", "--bind", "127.0.0.1:1", "--state-dir", stranger / "state", code=2).err.splitlines()
    assert "127.0.0.1:1" in line
    assert "ports below 1024 are for root" in line


def test_a_full_disk_under_the_state_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device", None)

    (tmp_path / "state").mkdir()
    monkeypatch.setattr(os, "fsync", full)
    said = run("user", "add", "ann", "--project", "red", "--generate", "--state-dir", tmp_path / "state", code=1)
    assert said.err.splitlines()[-1] == "calotype: No space left on device"
    assert not (tmp_path / "state" / "users.json").exists()
