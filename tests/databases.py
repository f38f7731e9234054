"""Databases for tests: SQLite files, and real MariaDB and PostgreSQL servers of the test run's own.

`pytest --database=mariadb` (or postgresql) runs whatever works with a database against such a server. It listens on
loopback, is started when the first test wants it and stopped by its own pid when the run ends. A test that kills,
stops or pauses a server makes one for itself: `Server(kind, durable=True)`.
"""

import atexit
import contextlib
import functools
import getpass
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import sqlalchemy as sa

from calotype.db import schema
from calotype.db.drivers import Settings
from calotype.db.engine import Database
from tests.support import free_port, tool

KINDS = ("sqlite", "mariadb", "postgresql")
_PASSWORD = secrets.token_hex(8)
_servers: dict[int, "Server"] = {}  #: by port


def fresh(kind: str, directory: Path, *settings: str) -> str:
    """The URL of an empty database; `directory` is where one that is a file goes.

    `settings` are more options for the server's command line, later ones winning: another server than without.
    """
    if kind == "sqlite":
        return f"sqlite:///{directory / 'calotype.db'}"
    return _shared(kind, *settings).fresh()


def reserved(kind: str, directory: Path) -> str:
    """The URL of a database that is not there yet: `synced` makes it, which is cheaper than to fill an empty one."""
    return fresh(kind, directory) if kind == "sqlite" else _shared(kind).reserved()


def for_service(kind: str) -> str:
    """What `running(state, database=...)` takes: a database with tables. Nothing for SQLite, which it makes itself."""
    return "" if kind == "sqlite" else synced(_shared(kind).reserved())


def synced(url: str) -> str:
    """The same URL, once the database and this release's tables are there. They come as a copy, which is cheap."""
    place = sa.make_url(url)
    if place.get_backend_name() == "sqlite":
        if not os.path.exists(str(place.database)):
            shutil.copy(_template(None), str(place.database))
        return url
    server = _servers.get(place.port or 0)
    if server is None:
        return migrated(url)
    is_there = server.has(str(place.database))
    if is_there:
        engine = sa.create_engine(place, poolclass=sa.pool.NullPool)
        with engine.connect() as tx:
            if sa.inspect(tx).has_table("calotype_version"):
                return url
    template = _template(server)
    if server.kind == "postgresql":
        if is_there:
            server.sql(f"DROP DATABASE {place.database}")
        server.sql(f"CREATE DATABASE {place.database} TEMPLATE {sa.make_url(template).database}")
    else:
        if not is_there:
            server.create(str(place.database))
        server.sql(f"USE {place.database}", "SET foreign_key_checks = 0", *_statements(template))
    return url


def migrated(url: str) -> str:
    """The same, by its migrations."""
    database = Database(url, Settings(response_timeout=None))
    schema.sync(database)
    database.close()
    return url


@functools.cache
def _template(server: "Server | None") -> str:
    """A database of this server with this release's tables, which nobody uses; the path of a file for SQLite."""
    if server:
        return migrated(server.fresh())
    directory = Path(tempfile.mkdtemp(prefix="calotype-database-"))
    atexit.register(shutil.rmtree, directory)
    path = str(sa.make_url(migrated(fresh("sqlite", directory))).database)
    os.chmod(path, 0o600)
    return path


@functools.cache
def _statements(template: str) -> list[str]:
    """What makes the tables of a database of MariaDB, and what is in them, in another one of the same server."""
    made, name = [], sa.make_url(template).database
    engine = sa.create_engine(template, poolclass=sa.pool.NullPool)
    with engine.connect() as tx:
        for table in sa.inspect(tx).get_table_names():
            made.append(tx.exec_driver_sql(f"SHOW CREATE TABLE {table}").one()[1].replace("%", "%%"))
            if tx.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar():
                made.append(f"INSERT INTO {table} SELECT * FROM {name}.{table}")
    return made


def _name() -> str:
    return f"t{secrets.token_hex(6)}"


@functools.cache
def _shared(kind: str, *settings: str) -> "Server":
    return Server(kind, *settings).start()


class Server:
    """A database server, empty and not yet started. Without `durable` it does not sync what it commits."""

    def __init__(self, kind: str, *settings: str, durable: bool = False) -> None:
        self.kind = kind
        self.port = free_port()
        _servers[self.port] = self
        # Outside of pytest's own directories, which other users may not enter.
        self._directory = Path(tempfile.mkdtemp(prefix="calotype-database-"))
        self._directory.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove)
        self._command = [*(self._mariadb if kind == "mariadb" else self._postgresql)(durable), *settings]

    # --- life --------------------------------------------------------------------------------------------

    def start(self) -> "Server":
        """Start, and return when it accepts connections."""
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        engine, end = sa.create_engine(self.url(), poolclass=sa.pool.NullPool), time.monotonic() + 30
        while True:
            try:
                with engine.connect():
                    return self
            except sa.exc.DBAPIError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise RuntimeError((self._directory / "log").read_text(errors="replace")) from None
                time.sleep(0.02)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """An orderly end, which does not wait for clients."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM if self.kind == "mariadb" else signal.SIGINT)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """kill -9 of all of its processes."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # so that it has no more children than we know of
        family = self._family()
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait()
        end = time.monotonic() + 10
        while any(_alive(one) for one in family):
            assert time.monotonic() < end, "a server outlived kill -9"
            time.sleep(0.01)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It hangs for the length of the block: connections are taken and nothing is answered."""
        family = self._family()
        for one in family:
            one.suspend()
        try:
            yield
        finally:
            for one in family:
                one.resume()

    def remove(self) -> None:
        """The end of it all; what atexit does when nobody did before."""
        if self.running:
            self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        atexit.unregister(self.remove)

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    # --- use ---------------------------------------------------------------------------------------------

    def url(self, name: str = "", port: int | None = None) -> str:
        """Of a database, or of the one that is there from the beginning."""
        scheme, first = {"mariadb": ("mysql+pymysql", "mysql"), "postgresql": ("postgresql+psycopg", "postgres")}[
            self.kind
        ]
        return f"{scheme}://calotype:{_PASSWORD}@127.0.0.1:{port or self.port}/{name or first}"

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = _name()
        self.create(name)
        return self.url(name)

    def reserved(self) -> str:
        """The URL of a database that is not there yet."""
        return self.url(_name())

    def create(self, name: str) -> None:
        """Make an empty database."""
        # Glance's own databases on MariaDB are utf8mb3.
        self.sql(f"CREATE DATABASE {name}" + (" CHARACTER SET utf8mb3" if self.kind == "mariadb" else ""))

    def has(self, name: str) -> bool:
        """Whether there is a database of this name."""
        names = (
            "information_schema.schemata WHERE schema_name" if self.kind == "mariadb" else "pg_database WHERE datname"
        )
        return bool(self.sql(f"SELECT 1 FROM {names} = '{name}'"))

    def sql(self, *statements: str) -> list[sa.Row]:
        """Rows of the last one of these statements, on a connection of their own."""
        with self._engine.connect() as connection:
            for statement in statements:
                found = connection.exec_driver_sql(statement)
            return list(found) if found.returns_rows else []

    @functools.cached_property
    def _engine(self) -> sa.Engine:
        return sa.create_engine(self.url(), isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)

    def connections(self, name: str) -> int:
        """How many there are to a database."""
        if self.kind == "mariadb":
            statement = f"SELECT count(*) FROM information_schema.processlist WHERE db = '{name}'"
        else:
            statement = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
        return int(self.sql(statement)[0][0])

    def hang_up(self, name: str) -> None:
        """Close the connections to a database from the server's side."""
        if self.kind == "mariadb":
            for row in self.sql(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"):
                self.sql(f"KILL {row.id}")
        else:
            self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    # --- making ------------------------------------------------------------------------------------------

    def _mariadb(self, durable: bool) -> list[str]:
        directory, user = self._directory, getpass.getuser()
        # A server that starts removes what it takes for its leftovers from the common directory, others' tables too.
        temporary = f"--tmpdir={directory}/tmp"
        (directory / "tmp").mkdir()
        install = [tool("mariadb-install-db"), "--no-defaults", f"--user={user}", f"--datadir={directory}/data"]
        install += ["--auth-root-authentication-method=normal", "--skip-test-db", temporary]
        subprocess.run(install, check=True, capture_output=True, timeout=120)
        (directory / "init.sql").write_text(
            f"CREATE USER IF NOT EXISTS 'calotype'@'127.0.0.1' IDENTIFIED BY '{_PASSWORD}';\n"
            "GRANT ALL ON *.* TO 'calotype'@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        settings = [f"--datadir={directory}/data", f"--socket={directory}/sock", f"--port={self.port}"]
        settings += ["--bind-address=127.0.0.1", f"--init-file={directory}/init.sql", f"--user={user}"]
        settings += ["--max-connections=400", "--skip-name-resolve", temporary]
        if not durable:
            settings += ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--debug-no-sync"]
        return [tool("mariadbd"), "--no-defaults", *settings]

    def _postgresql(self, durable: bool) -> list[str]:
        """It refuses to run as root, and then runs as the user `postgres`."""
        directory = self._directory
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
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        settings |= {"max_connections": 300} | ({} if durable else {"fsync": "off", "synchronous_commit": "off"})
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [*other, str(programs / "postgres"), "-D", f"{directory}/data", *options]


def _alive(process: psutil.Process) -> bool:
    try:
        # Whoever became a zombie is dead; its parent is init, which may take its time.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
