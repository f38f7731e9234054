"""Uses of other libraries that go beyond their public interface: private parts, and methods that we override.

`LIBRARIES` lists these parts: which module uses them, why there is no public way, and for which versions this was
tested (`pyproject.toml` requires the same versions). `check` runs at the start for each library in use. So a missing
part is reported in a clear sentence, instead of an `AttributeError` in the middle of a request.

What a function can do is a function here. Subclasses stay in the modules that need them, such as `server.py` and
`images/formats/`; `tests/test_insides.py` compares the private names that they use with the list. A library is
imported only when it is used.
"""

import functools
import importlib
import logging
import math
import os
import platform
import re
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from calotype import errors

LOG = logging.getLogger(__name__)


# --- what is used through here ---------------------------------------------------------------------------


def forget_log_context() -> None:
    """Clear the log context of this thread. oslo.context can set a thread's context, but not clear it."""
    from oslo_context import context

    context._request_store.__dict__.clear()


def parse_expression(expression: str) -> list[tuple[Any, Any]]:
    """The parts of a regular expression, each with its kind. Raises what `re.compile` raises."""
    return list(re._parser.parse(expression))  # type: ignore[attr-defined]


def send_notification(transport: Any, target: Any, message: dict[str, Any], version: float) -> None:
    """Send a message through oslo.messaging's transport, with one retry. Raises if it was not accepted."""
    transport._send_notification(target, {}, message, version=version, retry=1)


def take_expect_continue(req: Any) -> bool:
    """Whether the client waits for `100 Continue`. From now on we send it, and gunicorn does not."""
    waits = bool(req._expected_100_continue)
    req._expected_100_continue = False
    return waits


def tcp_state(sock: socket.socket) -> int:
    """The state of a TCP connection, the first byte of `tcp_info`. Raises `OSError` for other sockets."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def tcp_acknowledged(sock: socket.socket) -> int:
    """How many bytes the other side has acknowledged: `tcpi_bytes_acked`. Raises `OSError` for other sockets."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
    return int(struct.unpack_from("Q", info, _BYTES_ACKED)[0])


#: The offset of `tcpi_bytes_acked` in `struct tcp_info` (linux/tcp.h).
_BYTES_ACKED: Final = 120


@functools.cache
def limited_pymysql() -> Any:
    """PyMySQL's connection class, with limits: an answer that takes longer than `answer_timeout` seconds, or comes
    after `deadline`, breaks the connection.

    PyMySQL's own timeout cannot be changed after connecting.
    """
    from pymysql import connections  # type: ignore[import-untyped]

    check("PyMySQL")

    class LimitedConnection(connections.Connection):  # type: ignore[misc]
        answer_timeout = 0.0
        deadline = math.inf

        def _execute_command(self, command: int, sql: str | bytes) -> None:
            self._read_timeout = max(0.01, min(self.answer_timeout, self.deadline - time.monotonic()))
            super()._execute_command(command, sql)

    return LimitedConnection


@functools.cache
def limited_psycopg() -> Any:
    """psycopg's connection class, limited in the same way. libpq itself would wait for ever."""
    import psycopg

    check("psycopg")

    class LimitedConnection(psycopg.Connection[Any]):
        answer_timeout = 0.0
        deadline = math.inf

        def wait(self, gen: Any, *args: Any, **named: Any) -> Any:
            return super().wait(self._limited(gen), *args, **named)

        def _limited(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            """The same generator, with the limits. psycopg resumes it ten times a second, also if nothing happened."""
            deadline = min(time.monotonic() + self.answer_timeout, self.deadline)
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    if not ready and time.monotonic() > deadline:
                        self.close()
                        raise psycopg.OperationalError("the database did not answer in time")
                    wanted = gen.send(ready)
            except StopIteration as end:
                return end.value

    return LimitedConnection


# --- the list --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """Something at `place` (`module:path`) that one of our modules, the `user`, uses.

    For a function, `names` are parameters, and names that its code sets and calls; else they are attributes.
    """

    user: str
    place: str
    names: str = ""

    def missing(self) -> str | None:
        """The first name that is missing; None if all are there."""
        name, _, path = self.place.partition(":")
        try:
            found: Any = importlib.import_module(name)
            for step in filter(None, path.split(".")):
                name += f".{step}"
                found = getattr(found, step)
        except (ImportError, AttributeError):
            return name
        code = getattr(found, "__code__", None)
        available = {*code.co_varnames, *code.co_names} if code else set(dir(found))
        return next((f"{one} in {name}" for one in self.names.split() if one not in available), None)


@dataclass(frozen=True, slots=True)
class Library:
    """What we use of a library, and why there is no public way.

    `versions` are those for which this was tested. `probe` tests behaviour that no name shows; it raises if that has
    changed.
    """

    name: str
    versions: str
    why: str
    parts: tuple[Part, ...] = ()
    probe: Callable[[], object] | None = None
    installed: Callable[[], str] | None = None  #: returns the version of what is no package

    @property
    def version(self) -> str:
        try:
            return self.installed() if self.installed else metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return "(of unknown version)"

    def missing(self) -> Iterable[str]:
        """The parts that are missing."""
        yield from filter(None, (part.missing() for part in self.parts))
        try:
            if self.probe:
                self.probe()
        except Exception as exc:  # noqa: BLE001  # whatever it raises, it does not work
            yield f"part that does what is asked of it ({exc!r})"


def _probe_parser() -> None:
    (kind, (least, _, inside)), *_ = parse_expression("(?:ab|c){2,}d")
    assert (str(kind), int(least), str(inside[0][0])) == ("MAX_REPEAT", 2, "BRANCH")


def _probe_tcp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert (tcp_state(sock), tcp_acknowledged(sock)) == (7, 0)  # closed


_WORKER: Final = "gunicorn.workers.gthread:ThreadWorker"
_FORMATS: Final = "oslo_utils.imageutils.format_inspector"

LIBRARIES: Final = {
    library.name: library
    for library in (
        Library(
            "botocore",
            ">=1.37,<2",
            "A read that waits for data can be cancelled at the connection only.",
            (Part("stores.s3_body", "botocore.response:StreamingBody.__init__", "_raw_stream"),),
        ),
        Library(
            "gunicorn",
            ">=27.0.1,<28",
            "Its worker gives a thread to each connection before there is a request, and to each that waits for the "
            "next one; it waits for clients as long as they like, and copies bodies. There is no hook for any of that.",
            (
                Part(
                    "server", f"{_WORKER}.__init__", "tpool poller method_queue keepalived_conns pending_conns nr_conns"
                ),
                Part("server", f"{_WORKER}.init_process", "get_thread_pool"),
                Part("server", f"{_WORKER}.set_accept_enabled", "accept"),
                Part("server", f"{_WORKER}.run", "is_parent_alive murder_pending _cap_keepalive"),
                Part("server", f"{_WORKER}._cap_keepalive", "deadline keepalived_conns"),
                Part("server", f"{_WORKER}.finish_request", "cancelled result enqueue_req on_client_socket_readable"),
                Part("server", f"{_WORKER}.handle", "initialized data_ready _keepalive_after handle_request parser"),
                Part("server", f"{_WORKER}.handle_request", "req conn wsgi access should_close"),
                Part("server", f"{_WORKER}._keepalive_after", "conn keepalive"),
                Part("server", _WORKER, "init_signals on_pending_socket_readable"),
                Part("server", "gunicorn.workers.gthread", "DEFAULT_WORKER_DATA_TIMEOUT selectors"),
                Part(
                    "server",
                    "gunicorn.workers.gthread:TConn.__init__",
                    "cfg sock client server timeout parser is_http2",
                ),
                Part("server", "gunicorn.workers.gthread:TConn.close", "graceful"),
                Part("server", "gunicorn.workers.gthread:TConn.set_timeout"),
                Part("server", "gunicorn.http.parser:Parser.__init__", "mesg unreader"),
                Part("server", "gunicorn.http.message:Request.should_close"),
                Part("server", "gunicorn.http.wsgi:Response.__init__", "status sent response_length"),
                Part("server", "gunicorn.glogging:Logger.__init__", "error_log setup"),
                Part("server", "gunicorn.glogging:Logger.access", "resp req environ request_time"),
                Part("server", "gunicorn.arbiter:Arbiter.run", "murder_workers"),
                Part("server", "gunicorn.arbiter:Arbiter", "handle_hup kill_workers stop"),
                Part("socket_body", "gunicorn.http.message:Message.__init__", "body unreader"),
                Part("insides", "gunicorn.http.message:Message.__init__", "_expected_100_continue"),
                Part("socket_body", "gunicorn.http.unreader:Unreader", "take_buffered unread"),
                Part("socket_body", "gunicorn.http.unreader:Unreader.__init__", "buf"),
                Part("socket_body", "gunicorn.http.unreader:SocketUnreader.__init__", "sock"),
                Part("socket_body", "gunicorn.http.body:Body.__init__", "reader"),
                Part("socket_body", "gunicorn.http.body:LengthReader.__init__", "length"),
                Part("socket_body", "gunicorn.http.body:ChunkedReader"),
            ),
        ),
        Library(
            "keystonemiddleware",
            ">=12,<14",
            "A token that Keystone does not know, and a 404 of something that stands before Keystone, are one error; "
            "only the context of that error tells.",
            (
                Part("auth.keystone", "keystonemiddleware.auth_token", "InvalidToken ServiceError list_opts"),
                Part("auth.keystone", "keystonemiddleware.auth_token:AuthProtocol.fetch_token", "token verify_token"),
                Part(
                    "auth.keystone", "keystonemiddleware.auth_token._identity:IdentityServer.verify_token", "NotFound"
                ),
            ),
        ),
        Library(
            "oslo.context",
            ">=6,<7",
            "A thread's context can be set, and not be taken away.",
            (Part("insides", "oslo_context.context", "_request_store"),),
        ),
        Library(
            "oslo.messaging",
            ">=14,<19",
            "Its notifier logs that a message could not be sent, and loses it.",
            (
                Part(
                    "insides",
                    "oslo_messaging.transport:NotificationTransport._send_notification",
                    "target ctxt message version retry",
                ),
            ),
        ),
        Library(
            "oslo.policy",
            ">=5,<7",
            "Nothing tells which fields of a target a rule reads, or whether it asks another server.",
            (
                Part("policy", "oslo_policy._checks:AndCheck.__init__", "rules"),
                Part("policy", "oslo_policy._checks:OrCheck.__init__", "rules"),
                Part("policy", "oslo_policy._checks:NotCheck.__init__", "rule"),
                Part("policy", "oslo_policy.policy:Enforcer.__init__", "rules use_conf suppress_deprecation_warnings"),
            ),
        ),
        Library(
            "oslo.utils",
            ">=9,<11",
            "Its inspectors of formats let dangers through that ours do not; they are made to be derived from, but "
            "only by oslo.utils itself.",
            (
                Part("images.formats.base", f"{_FORMATS}:FileInspector.__init__", "_initialize"),
                Part("images.formats.base", f"{_FORMATS}:FileInspector", "add_safety_check"),
                Part("images.formats.discs", f"{_FORMATS}:FileInspector.__init__", "_initialize"),
                Part("images.formats.discs", f"{_FORMATS}:FileInspector", "new_region"),
                Part("images.formats.luks", f"{_FORMATS}:LUKSInspector", "header_items check_version"),
                Part("images.formats.partitions", f"{_FORMATS}:FileInspector.__init__", "_initialize _finished"),
                Part("images.formats.partitions", f"{_FORMATS}:GPTInspector", "_check_for_fat check_mbr_partitions"),
                Part("images.formats.qcow2", f"{_FORMATS}:FileInspector.__init__", "_initialize _finished"),
                Part("images.formats.qcow2", f"{_FORMATS}:FileInspector", "delete_region has_region post_process"),
                Part(
                    "images.formats.qcow2",
                    f"{_FORMATS}:QcowInspector",
                    "check_backing_file check_data_file check_unknown_features",
                ),
                Part("images.formats.vhd", f"{_FORMATS}:FileInspector.__init__", "_initialize _finished"),
                Part("images.formats.vhdx", f"{_FORMATS}:FileInspector.__init__", "_initialize"),
                Part("images.formats.vmdk", f"{_FORMATS}:FileInspector.__init__", "_initialize _total_count"),
            ),
        ),
        Library(
            "psycopg",
            ">=3.2,<3.4",
            "libpq waits for ever for the answer of a server that hangs.",
            (
                Part("insides", "psycopg:Connection.wait", "gen"),
                Part("insides", "psycopg:Connection.commit", "wait"),
                Part("insides", "psycopg:Cursor.execute", "wait"),
            ),
        ),
        Library(
            "PyMySQL",
            ">=1.1,<1.3",
            "How long it waits for an answer is decided when it connects.",
            (
                Part("insides", "pymysql.connections:Connection.__init__", "_read_timeout"),
                Part("insides", "pymysql.connections:Connection._execute_command", "command sql"),
                Part("insides", "pymysql.connections:Connection.commit", "_execute_command"),
                Part("insides", "pymysql.connections:Connection.query", "_execute_command"),
            ),
        ),
        Library(
            "SQLAlchemy",
            ">=2.0.43,<2.2",
            "A join that keeps its order is written by a compiler of ours, which has to tell its sides what they are.",
            (Part("db.compare", "sqlalchemy.sql.compiler:SQLCompiler.visit_join", "asfrom"),),
        ),
        Library(
            "python",
            ">=3.11,<3.15",
            "Nothing tells how long an expression may search. http.client writes requests to our sockets, and reads "
            "heads of answers from what they receive, without saying how.",
            (
                Part("insides", "re", "_parser"),
                Part("wire", "http.client:HTTPConnection.send", "sock sendall"),
                Part("wire", "http.client:HTTPResponse.__init__", "makefile"),
                Part("wire", "http.client:HTTPResponse._read_status", "readline"),
                Part("wire", "http.client:_read_headers", "readline"),
            ),
            probe=_probe_parser,
            installed=platform.python_version,
        ),
        Library(
            "Linux",
            ">=4.1",
            "Only the kernel knows what a client has taken of an answer. It keeps the layout of `tcp_info`.",
            probe=_probe_tcp,
            installed=lambda: os.uname().release,
        ),
    )
}


def check(*names: str) -> None:
    """Raise `ConfigError` if a part of these libraries is missing; log a warning for versions that were not tested."""
    for library in map(LIBRARIES.__getitem__, names):
        requirement = f"{library.name}{library.versions}"
        for missing in library.missing():
            raise errors.ConfigError(
                f"{library.name} {library.version} has no {missing}: Calotype needs {requirement}."
            )
        if not is_within(library.version, library.versions):
            LOG.warning("%s %s is used, and Calotype was made for %s", library.name, library.version, requirement)


def is_within(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as `>=27,<28`."""
    least, _, below = bounds.partition(",")
    return _numbers(version) >= _numbers(least) and (not below or _numbers(version) < _numbers(below))


def _numbers(version: str) -> list[int]:
    found = re.match(r"[<>=]*(\d+(?:\.\d+)*)", version)
    return [int(number) for number in found[1].split(".")] if found else []
