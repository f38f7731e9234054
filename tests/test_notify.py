"""What a service manager hears of `calotype serve`; and the files in `etc/` for one."""

import configparser
import functools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calotype import config, server
from calotype.notify import Manager
from tests.docs.samples import ROOT
from tests.support import Service, running, tool

UNIT = ROOT / "etc" / "systemd" / "calotype.service"


def listening(address: str) -> socket.socket:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(address)
    heard.settimeout(20)
    return heard


def next_but_beats(heard: socket.socket) -> dict[str, str]:
    while True:
        said = dict(line.split("=", 1) for line in heard.recv(4096).decode().splitlines())
        if said != {"WATCHDOG": "1"}:
            return said


def test_start_reload_life_and_stop_are_told(state: Path, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with listening(address) as heard:
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}
        with running(state, environment=environment) as service:
            assert service.process
            assert next_but_beats(heard) == {"READY": "1"}, "from us, and once"
            assert heard.recv(4096) == b"WATCHDOG=1"
            before = time.monotonic_ns() // 1000
            service.process.send_signal(signal.SIGHUP)
            reloading = next_but_beats(heard)
            assert reloading["RELOADING"] == "1"
            assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            assert next_but_beats(heard) == {"READY": "1"}
            assert service.stop() == 0
            assert next_but_beats(heard) == {"STOPPING": "1"}
            heard.setblocking(False)
            with pytest.raises(BlockingIOError):
                heard.recv(4096)


def test_a_manager_may_listen_at_a_name_that_is_no_file(tmp_path: Path) -> None:
    with listening(f"\0calotype-{tmp_path}") as heard:
        Manager({"NOTIFY_SOCKET": f"@calotype-{tmp_path}"}).ready()
        assert heard.recv(4096) == b"READY=1"


def test_a_service_that_cannot_start_is_never_ready(state: Path, tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as heard:
        service = Service(
            state, "[DEFAULT]\nhashing_algorithm = none\n", environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}
        )
        with pytest.raises(RuntimeError, match="ended at once"):
            service.start()
        heard.setblocking(False)
        with pytest.raises(BlockingIOError):
            heard.recv(4096)


def test_a_manager_that_is_gone_or_was_never_there_disturbs_nobody(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1"}):
        manager = Manager(environment)
        manager.ready()
        manager.beat()
        manager.stopping()
        assert environment == {}


def test_beats_are_sent_twice_as_often_as_they_are_wanted_and_only_by_whom_they_are_wanted_of(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with listening(address) as heard:
        heard.setblocking(False)
        for pid, wanted in ((os.getpid(), 1), (os.getpid() + 1, 0)):
            manager = Manager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3600000000", "WATCHDOG_PID": str(pid)})
            for _ in range(3):
                manager.beat()
            for _ in range(wanted):
                assert heard.recv(4096) == b"WATCHDOG=1"
            with pytest.raises(BlockingIOError):
                heard.recv(4096)


# --- etc/ ------------------------------------------------------------------------------------------------


def systemd(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `systemd-analyze`, which works without a running systemd."""
    return subprocess.run([tool("systemd-analyze"), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.needs("systemd-analyze")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert "/opt/calotype/bin/calotype" in text
    unit.write_text(text.replace("/opt/calotype/bin/calotype", str(Path(sys.executable))))
    done = systemd("verify", "--man=no", str(unit))
    # It may complain of other units of this machine.
    assert UNIT.name not in done.stderr + done.stdout, done.stderr


def test_the_unit_reloads_by_nothing_but_a_shell() -> None:
    """A small Debian has no /bin/kill."""
    (line,) = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecReload=")]
    program, *arguments = shlex.split(line.partition("=")[2])
    assert program == "/bin/sh"
    hears = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # also where tests run under nohup
    with subprocess.Popen(["sleep", "60"], preexec_fn=hears) as main:
        subprocess.run([program, *arguments], env={"MAINPID": str(main.pid), "PATH": ""}, check=True)
        assert main.wait(30) == -signal.SIGHUP


@pytest.mark.needs("systemd-analyze")
def test_the_unit_leaves_a_service_little_to_do_harm_with() -> None:
    done = systemd("security", "--offline=yes", "--threshold=30", str(UNIT))  # tenths
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_the_unit_waits_as_long_as_a_shutdown_takes() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    grace = config.load(search=False).server.graceful_timeout
    assert service["Type"] == "notify"
    assert int(service["TimeoutStopSec"]) > grace + server.CLEANUP_SECONDS


def test_users_and_directories_are_those_of_the_unit() -> None:
    unit = UNIT.read_text()
    assert "User=calotype\n" in unit
    assert "\nu calotype - " in (ROOT / "etc/sysusers.d/calotype.conf").read_text()
    for line in (ROOT / "etc/tmpfiles.d/calotype.conf").read_text().splitlines():
        if line.startswith("d "):
            kind, path, mode, _, group, age = line.split()
            assert (kind, group, age) == ("d", "calotype", "-")
            assert int(mode, 8) & 0o007 == 0, f"{path} is everybody's"
    assert "StateDirectory=calotype\n" in unit


def test_the_container_runs_without_rights_and_is_pinned() -> None:
    lines = (ROOT / "etc/container/Containerfile").read_text().replace("\\\n", "").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FROM ")] == ["${PYTHON_IMAGE}"] * 2
    (base,) = [line.partition("=")[2] for line in lines if line.startswith("ARG PYTHON_IMAGE")]
    assert ":" in base
    assert not base.endswith(":latest")
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists(), line
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["65420:65420"]
    assert any(line.startswith("HEALTHCHECK ") for line in lines)
    assert lines.index("USER 65420:65420") < next(n for n, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
