"""What measurements start: a database server as operators run it, and Calotype on a database of its own."""

from pathlib import Path

import sqlalchemy as sa
from tests import databases
from tests.support import Service

from calotype.db import schema
from calotype.db.engine import Database

#: The store that both services and the rows of `dataset.py` name.
STORE = "main"


def fresh(kind: str, directory: Path, pool: int) -> str:
    """The URL of an empty database on a server that keeps what it promised; `pool` MiB of its pages stay in memory."""
    settings = {
        "sqlite": (),
        "mariadb": (
            "--innodb-flush-log-at-trx-commit=1",
            "--innodb-flush-method=O_DIRECT",
            f"--innodb-buffer-pool-size={pool}M",
        ),
        "postgresql": ("-c", "fsync=on", "-c", "synchronous_commit=on", "-c", f"shared_buffers={pool}MB"),
    }
    directory.mkdir(parents=True, exist_ok=True)
    return databases.fresh(kind, directory, *settings[kind])


def sync(url: str) -> None:
    """Calotype's tables."""
    database = Database(url)
    schema.sync(database)
    database.close()


def calotype(directory: Path, url: str, workers: int, more: str = "") -> Service:
    """Calotype on a database that has its tables, not started yet; `more` are sections that say who asks."""
    state = directory / "state"
    conf = (
        f"[DEFAULT]\nenabled_backends = {STORE}:file\n[glance_store]\ndefault_backend = {STORE}\n"
        f"[{STORE}]\nfilesystem_store_datadir = {directory}/images\n{more}"
    )
    return Service(state, conf, ("--workers", str(workers)), database=url)


def statement_limit(engine: sa.Engine, seconds: float) -> None:
    """Let the database give up statements of new connections that take longer; SQLite cannot."""
    text = {
        "mysql": f"SET GLOBAL max_statement_time = {seconds}",
        "postgresql": f"ALTER DATABASE {engine.url.database} SET statement_timeout = {int(seconds * 1000)}",
    }
    if statement := text.get(engine.dialect.name):
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(statement)
