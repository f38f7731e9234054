"""Programs without the seconds of CPU that importing takes: forked off a process that has imported everything.

`start` is for a program what `subprocess.Popen` is, and `run` what `subprocess.run` is: the same function is called
that an installed script calls, in a process, a session and an environment of its own. What measures a program, or what
its environment tells Python itself or the C library, wants a program that was really started; so do a few tests of commands.
"""

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests import PASSWORD_COST

_CALOTYPE = (
    "alembic.command",
    "calotype.app",
    *(f"calotype.cli.{name}" for name in "main config db env repair serve store user worker".split()),
    "calotype.server",
    "sqlalchemy.dialects.mysql.pymysql",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "tests.observer",
)
_OPENSTACK = (
    "glanceclient.shell",
    "glanceclient.v2.shell",
    "keystoneauth1.loading._plugins.identity.v3",
    *(
        f"openstackclient.{name}"
        for name in "shell image.v2.image image.v2.metadef_namespaces identity.v3.user".split()
    ),
)
#: name → the function that it calls, and what is imported before; of those that import the same, one process is made.
PROGRAMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "calotype": ("calotype.cli.main:main", _CALOTYPE),
    "hasty": ("tests.crash.hasty:main", _CALOTYPE),
    "observed": ("tests.observer:main", _CALOTYPE),
    "openstack": ("openstackclient.shell:main", _OPENSTACK),
    "schemathesis": ("schemathesis.cli:schemathesis", ("schemathesis.cli",)),
    "shells": ("tests.compat.shells:main", _OPENSTACK),
}
_PDEATHSIG = 1
_MOST = 1 << 17  #: bytes of a request


def start(
    program: str,
    arguments: Sequence[str],
    *,
    stdin: IO[Any] | int = subprocess.DEVNULL,
    stdout: IO[Any] | int,
    stderr: IO[Any] | int,
    env: Mapping[str, str] | None = None,
) -> "Process":
    """Run it with these arguments in a session of its own. Files are those of `Popen`, but for PIPE."""
    function, modules = PROGRAMS[program]
    control = _forker(modules)
    ours, theirs = socket.socketpair()
    asked = json.dumps(
        [function, [program, *arguments], dict(os.environ if env is None else env), os.getcwd()]
    ).encode()
    assert len(asked) <= _MOST
    with theirs, open(os.devnull, "r+b") as nothing:
        files = [nothing.fileno() if file == subprocess.DEVNULL else _number(file) for file in (stdin, stdout, stderr)]
        socket.send_fds(control, [asked], [theirs.fileno(), *files])
    return Process(ours)


def run(
    program: str,
    arguments: Sequence[str],
    *,
    input: str = "",  # noqa: A002  # as `subprocess.run` calls it
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; what it wrote is text."""
    with contextlib.ExitStack() as files:
        given, out, err = (files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
        given.write(input)
        given.seek(0)
        process = start(program, arguments, stdin=given, stdout=out, stderr=err, env=env)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout)
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([program, *arguments], code, out.read(), err.read())


class Process:
    """What `Service` and others want of a `Popen`, for a process that is not our child."""

    returncode: int

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._over = False
        self.pid = self._number()

    def poll(self) -> int | None:
        if not self._over and select.select([self._connection], [], [], 0)[0]:
            self._end()
        return self.returncode if self._over else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._over:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("calotype", timeout or 0)
            self._end()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.returncode, self._over = self._number(), True
        self._connection.close()

    def _number(self) -> int:
        said = self._connection.recv(4, socket.MSG_WAITALL)
        if len(said) != 4:
            raise RuntimeError("the process that forks is gone")
        return int.from_bytes(said, "little", signed=True)


def _number(file: IO[Any] | int) -> int:
    return file if isinstance(file, int) else file.fileno()


@functools.cache
def _forker(modules: tuple[str, ...]) -> socket.socket:
    """A process that imports these modules and forks. It ends with this one, or when it closes the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.warm", *modules],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
    return ours


# --- the process that forks ----------------------------------------------------------------------------------


def main() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    if "calotype.app" in sys.argv:
        _prepare()
    gc.collect()
    gc.freeze()
    raise SystemExit(_serve(socket.socket(fileno=os.dup(0)))())


def _prepare() -> None:
    """Do what else costs a start of Calotype as much as all the rest of it."""
    from calotype import config, policy
    from calotype.auth import basic

    basic._COST = PASSWORD_COST
    # These read what is installed, and keep it.
    config.installed()
    policy.rule_defaults()


def _serve(control: socket.socket) -> Callable[[], Any]:
    """Fork whenever asked to. Returns in each child, what it has to call; and in the parent when nobody asks any more."""
    children: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != control.fileno():
                pid, connection = children.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _tell(connection, code)
                connection.close()
                continue
            asked, files, _, _ = socket.recv_fds(control, _MOST, 4)
            if not asked:
                return lambda: 0
            connection = socket.socket(fileno=files[0])
            if not (pid := os.fork()):
                return _become(json.loads(asked), files[1:])
            for file in files[1:]:
                os.close(file)
            _tell(connection, pid)
            handle = os.pidfd_open(pid)
            children[handle] = (pid, connection)
            poll.register(handle, select.POLLIN)


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody waits for it
        connection.sendall(number.to_bytes(4, "little", signed=True))


def _become(asked: Sequence[Any], files: Sequence[int]) -> Callable[[], Any]:
    function, argv, environment, directory = asked
    os.setsid()
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)  # Whoever ends the tests ends this.
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    time.tzset()
    sys.argv = argv
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
