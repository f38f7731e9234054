"""What tests stand on: programs that are forked, databases that are copied, marks that say what is needed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import databases, needed, support, warm


def test_a_forked_program_is_as_one_that_was_started(tmp_path: Path) -> None:
    forked = warm.run("calotype", ["user", "add", "--state-dir", str(tmp_path), "--project", "p", "ann"], input="x\n")
    assert forked.returncode == 0
    assert forked.stderr.startswith("Added user ann ")
    assert (
        warm.run("calotype", ["user", "list", "--state-dir", str(tmp_path)]).stdout.splitlines()[1].startswith("ann ")
    )
    unknown = warm.run("calotype", ["user", "remove", "--state-dir", str(tmp_path), "ben"])
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no user" in unknown.stderr
    assert warm.run("calotype", ["no such command"]).returncode == 2


def test_a_forked_program_has_its_own_environment(tmp_path: Path) -> None:
    place = ["--state-dir", str(tmp_path), "--project", "p", "ann"]
    env = {**os.environ, "CALOTYPE_PASSWORD": "x" * 73}
    assert "72 bytes" in warm.run("calotype", ["user", "add", *place], env=env).stderr


def test_a_forked_program_that_is_killed_says_by_what(state: Path) -> None:
    with support.running(state) as service:
        assert service.process
        assert service.process.poll() is None
        assert os.getsid(service.process.pid) == service.process.pid
        service.kill()
        assert service.process.returncode == -signal.SIGKILL


def test_nothing_outlives_the_process_that_asked(tmp_path: Path) -> None:
    script = (
        "import os, sys, subprocess\nfrom tests import warm\n"
        "place = ['serve', '--state-dir', sys.argv[1], '--bind', sys.argv[2]]\n"
        "print(warm.start('calotype', place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "s"), f"127.0.0.1:{support.free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    pid = int(done.stdout)
    support.until(lambda: not os.path.exists(f"/proc/{pid}"), 30)


def test_a_copied_database_is_what_the_migrations_make(database_kind: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = databases.migrated(databases.fresh(database_kind, tmp_path / "one"))
    two = databases.synced(databases.reserved(database_kind, tmp_path / "two"))
    assert _described(one) == _described(two)


def _described(url: str) -> dict[str, Any]:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as tx:
        seen, found = sa.inspect(tx), {}
        for table in seen.get_table_names():
            found[table] = [
                repr(seen.get_columns(table)),
                *sorted(map(repr, seen.get_foreign_keys(table))),
                *sorted(map(repr, seen.get_unique_constraints(table))),
                *sorted(map(repr, seen.get_check_constraints(table))),
                [tuple(row) for row in tx.exec_driver_sql(f"SELECT * FROM {table}")],
            ]
            if tx.dialect.name == "mysql":
                found[table].append(tx.exec_driver_sql(f"SHOW CREATE TABLE {table}").one()[1])
        indexes = {
            "sqlite": "SELECT name, sql FROM sqlite_master ORDER BY name",
            "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname",
        }.get(tx.dialect.name)
        found["indexes"] = [tuple(row) for row in tx.exec_driver_sql(indexes)] if indexes else []
    return found


def test_a_test_that_is_not_marked_gets_no_program() -> None:
    with pytest.raises(AssertionError, match="mark the test"):
        support.tool("sh")


@pytest.mark.needs("sh")
def test_what_is_needed_is_what_marks_and_fixtures_say(request: pytest.FixtureRequest) -> None:
    assert support.tool("sh")
    assert needed.needs(request.node, "mariadb") == {"sh"}
