"""CPU-seconds of servers and databases, in nanosecond steps, and what MariaDB counts.

A server is a process with all of its children. Linux keeps a clock of each process's CPU time; it can be read for
any process, and does not count in ticks of 10 ms as /proc does. Processes that ended are counted where their parent
collected them (in ticks), so that a PostgreSQL server's short-lived helpers are not missed.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class Server:
    """A process and all that it started. `pid` None is a database without a process: SQLite."""

    pid: int | None

    def cpu(self) -> float:
        """User and system CPU-seconds so far."""
        if self.pid is None:
            return 0.0
        master = psutil.Process(self.pid)
        ended = master.cpu_times()
        living = [master, *master.children(recursive=True)]
        return sum(map(_clock, (process.pid for process in living))) + ended.children_user + ended.children_system


def _clock(pid: int) -> float:
    """Seconds on the CPU clock of a process, with all of its threads (clock_getcpuclockid(3)); 0 when it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def database_server(engine: sa.Engine) -> Server:
    """The process behind a connection to a database on this machine."""
    if engine.dialect.name == "sqlite":
        return Server(None)
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            directory = connection.exec_driver_sql("SHOW data_directory").scalar_one()
            return Server(int((Path(directory) / "postmaster.pid").read_text().split()[0]))
        file, directory = connection.exec_driver_sql("SELECT @@pid_file, @@datadir").one()
        return Server(int((Path(directory) / file).read_text()))


#: What MariaDB counts of statements and new connections, of all connections together.
COUNTERS = ("Com_select", "Com_commit", "Com_rollback", "Questions", "Connections")


def counters(engine: sa.Engine) -> dict[str, int]:
    """MariaDB's counters as they stand. Looking is counted as well."""
    with engine.connect() as connection:
        names = ", ".join(f"'{name}'" for name in COUNTERS)
        rows = connection.exec_driver_sql(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({names})").all()
    return {name: int(value) for name, value in rows}
