"""`calotype serve` without the half second that importing takes: forked off a process that has imported everything."""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PDEATHSIG = 1


class Starter:
    """A process that has what a service needs in memory and becomes one when asked to."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "from tests.crash import warm; warm.main()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, arguments: Sequence[str], log: Path) -> "Started":
        """Run `calotype` with these arguments in a process group of its own."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([*arguments, str(log)]).encode() + b"\n")
        self._process.stdin.flush()
        return Started(int(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Started:
    """What `Service` wants of a `Popen`, for a process that is not our child."""

    returncode = 0

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._file = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return 0 if self._over(0) else None

    def wait(self, timeout: float) -> int:
        if not self._over(timeout):
            raise subprocess.TimeoutExpired("calotype", timeout)
        return 0

    def _over(self, timeout: float) -> bool:
        return bool(select.select([self._file], [], [], timeout)[0])

    def __del__(self) -> None:
        os.close(self._file)


def main() -> None:
    """Each line of standard input is a list of arguments and, at its end, the name of a log."""
    import alembic.command  # noqa: F401  # what a service imports late

    from calotype import app, server  # noqa: F401
    from calotype.cli import main as calotype

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody asks how they ended.
    for line in sys.stdin:
        *arguments, log = json.loads(line)
        if pid := os.fork():
            os.setpgid(pid, pid)
            print(pid, flush=True)
            continue
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)  # Whoever ends the test ends this.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output, nothing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate((nothing, output, output)):
            os.dup2(file, number)
        sys.exit(calotype.main(arguments))
