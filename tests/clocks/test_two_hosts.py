"""Two hosts whose clocks lie: nobody's upload is taken away. The long form is `python -m tests.clocks`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import databases
from tests.clocks.hosts import Load, left, library, need_namespaces, step_clocks, two_hosts

pytestmark = pytest.mark.needs("root", "gcc", "unshare")


def test_the_library_shifts_the_wall_clock_and_nothing_else(tmp_path: Path) -> None:
    made, clock = library(tmp_path), tmp_path / "clock"
    clock.write_bytes((3600).to_bytes(8, "little"))
    script = (
        "import time; begun = time.monotonic(); time.sleep(0.1); print(time.time(), begun, time.monotonic() - begun)"
    )
    environment = {"LD_PRELOAD": str(made), "CALOTYPE_TEST_CLOCK": str(clock)}
    import time

    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    wall, monotonic, slept = map(float, run.stdout.split())
    assert abs(wall - time.time() - 3600) < 60
    assert abs(monotonic - time.monotonic()) < 60
    assert 0.1 <= slept < 10


def test_hosts_whose_clocks_differ_and_are_set_lose_no_request(database_kind: str, tmp_path: Path) -> None:
    if database_kind == "sqlite":
        return  # which has one host
    need_namespaces()
    url = databases.for_service(database_kind)
    with two_hosts(tmp_path, url) as hosts:
        assert hosts[1].clock
        hosts[1].clock.shift(600)
        load = Load(hosts, upload_seconds=3, threads=2)
        load.begin()
        step_clocks(hosts, seconds=6, pause=0.4)
        load.end()
        assert not load.problems
        assert load.answers["upload"] >= 8
        assert left(url, tmp_path / "store") == []
        for host in hosts:
            assert "Traceback" not in host.log
