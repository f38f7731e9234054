"""Databases for tests: SQLite files, and real MariaDB and PostgreSQL servers of the test run's own.

`pytest --database=mariadb` (or postgresql) runs what works with a database against such a server. It listens on
loopback, is started when the first test wants it and stopped by its own pid when the run ends.
"""

import atexit
import functools
import getpass
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

from tests.support import free_port, tool

KINDS = ("sqlite", "mariadb", "postgresql")
_PASSWORD = secrets.token_hex(8)


def fresh(kind: str, directory: Path, *settings: str) -> str:
    """The URL of an empty database; `directory` is where one that is a file goes.

    `settings` are more options for the server's command line, later ones winning: another server than without.
    """
    if kind == "sqlite":
        return f"sqlite:///{directory / 'calotype.db'}"
    server = {"mariadb": mariadb, "postgresql": postgresql}[kind](*settings)
    name = f"t{secrets.token_hex(6)}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        # Glance's own databases on MariaDB are utf8mb3.
        extra = " CHARACTER SET utf8mb3" if kind == "mariadb" else ""
        connection.exec_driver_sql(f"CREATE DATABASE {name}{extra}")
    engine.dispose()
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


@functools.cache
def mariadb(*more: str) -> str:
    """The URL of a MariaDB server. Its options are these and `more`."""
    directory, port = _directory(), free_port()
    # A server that starts removes what it takes for its own leftovers from the common directory, others' tables too.
    temporary = f"--tmpdir={directory}/tmp"
    (directory / "tmp").mkdir()
    install = [
        tool("mariadb-install-db"),
        "--no-defaults",
        f"--user={getpass.getuser()}",
        f"--datadir={directory}/data",
        temporary,
    ]
    install += ["--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (directory / "init.sql").write_text(
        f"CREATE USER 'calotype'@'127.0.0.1' IDENTIFIED BY '{_PASSWORD}';\n"
        "GRANT ALL ON *.* TO 'calotype'@'127.0.0.1';\n"
    )
    settings = [
        f"--datadir={directory}/data",
        temporary,
        f"--socket={directory}/sock",
        f"--port={port}",
        "--bind-address=127.0.0.1",
    ]
    settings += [
        f"--init-file={directory}/init.sql",
        f"--user={getpass.getuser()}",
        "--max-connections=400",
        "--skip-name-resolve",
    ]
    # Tests kill no database server: its own syncs would only take time.
    settings += ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync"]
    _start(directory, [tool("mariadbd"), "--no-defaults", *settings, *more])
    return _answering(f"mysql+pymysql://calotype:{_PASSWORD}@127.0.0.1:{port}/mysql", directory)


@functools.cache
def postgresql(*more: str) -> str:
    """The URL of a PostgreSQL server. Its options are these and `more`. It refuses to run as root, and then runs as the user `postgres`."""
    directory, port = _directory(), free_port()
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if other:
        shutil.chown(directory, "postgres")
    password = directory / "password"
    password.write_text(_PASSWORD)
    password.chmod(0o644)
    install = [*other, str(programs / "initdb"), "-D", f"{directory}/data", "-U", "calotype", "-A", "scram-sha-256"]
    install += [f"--pwfile={password}", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
    subprocess.run(install, check=True, capture_output=True, timeout=120, cwd="/")
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 300}
    settings |= {"fsync": "off", "synchronous_commit": "off"}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    _start(directory, [*other, str(programs / "postgres"), "-D", f"{directory}/data", *options, *more])
    return _answering(f"postgresql+psycopg://calotype:{_PASSWORD}@127.0.0.1:{port}/postgres", directory)


def _directory() -> Path:
    """Outside of pytest's own directories, which other users may not enter."""
    directory = Path(tempfile.mkdtemp(prefix="calotype-database-"))
    directory.chmod(0o755)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _start(directory: Path, command: list[str]) -> None:
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")

    def stop() -> None:
        process.terminate()  # SIGTERM; MariaDB and PostgreSQL end on it when nobody is connected
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    atexit.register(stop)  # runs before the directory goes


def _answering(url: str, directory: Path) -> str:
    engine, end = sa.create_engine(url), time.monotonic() + 15
    try:
        while True:
            try:
                with engine.connect():
                    return url
            except sa.exc.DBAPIError:
                if time.monotonic() > end:
                    raise RuntimeError((directory / "log").read_text(errors="replace")) from None
                time.sleep(0.1)
    finally:
        engine.dispose()
