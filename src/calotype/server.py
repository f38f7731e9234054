"""The HTTP server: everything that knows gunicorn, and nothing else does.

`run` starts it. `Worker` is gunicorn's threaded worker with other habits: a connection gets a thread when the head of
its request is there, and threads end when there is no work for them; a body is read by `SocketBody`; an unread body
closes the connection in a way that lets the client see the answer, and no thread's goodbye to a client blocks the
others; who takes an answer too slowly is given up. `Patience` says how long a client may take for what.

What it buys beside gunicorn's own threaded worker, with 16 threads each: while 40 clients have sent half a head, the
next one has its answer after 1 ms, and there none in 20 s; and lists are 14 to 22 % more a second. `python -m
bench.worth server`
"""

import contextlib
import errno
import fcntl
import logging
import os
import resource
import select
import signal
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn import glogging, util  # type: ignore[import-untyped]
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.http.message import Request  # type: ignore[import-untyped]
from gunicorn.workers import gthread  # type: ignore[import-untyped]

from calotype import insides
from calotype.notify import Manager
from calotype.socket_body import SocketBody
from calotype.threads import Threads

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LOG = logging.getLogger(__name__)

#: The part of a head that is waited for without a thread, in bytes; hardly any is longer.
HEAD_BYTES = 32 << 10
#: Seconds that transfers get to clean up after themselves when their grace is over.
CLEANING = 10
#: How often, in seconds, those who take their answers slowly are looked at.
CHECK_INTERVAL = 5.0
#: How long a thread waits for its client's next request before it gives the connection back, milliseconds. To go to the
#: main loop and come back costs as much as a small answer does.
NEXT_REQUEST = 2
#: What is read of a refused body while the client learns of the answer, in bytes and seconds.
LINGER_BYTES = 8 << 20
LINGER_TIME = 2.0

#: States of TCP (RFC 9293) in which the client's system has not yet acknowledged the end of what we sent.
_UNHEARD = (1, 4, 9, 11)  # ESTABLISHED, FIN-WAIT-1, LAST-ACK, CLOSING as Linux numbers them

#: What a write to a client that went away fails with.
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds: for the head of a request, between requests, without a byte of a body
    that is waited for, without taking a byte of an answer.

    `rate`: bytes a second that it must at least send while it is waited for, over a minute, and take, over the time
    in which it must take one at all; 0 asks for nothing.
    """

    head: float = 30.0
    idle: int = 15
    body: float = 60.0
    send: float = 300.0
    rate: int = 500


# --- connections -----------------------------------------------------------------------------------------


class Connection(gthread.TConn):  # type: ignore[misc]  # gunicorn has no types
    """A client's connection. Lingering is over when it is closed."""

    peeked = 0  #: bytes that were there of a head that was not whole

    def close(self, graceful: bool = False) -> None:
        util.close(self.sock)


class Worker(gthread.ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker, with the habits that the module's docstring tells."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience: Patience = self.app.patience
        # Connections and when their time is over: such with a part of a head, in the order of their age; and such
        # whose head a thread reads.
        self._begun: dict[Any, float] = {}
        self._heads: dict[Any, float] = {}
        self._answered: dict[Any, SendProgress] = {}  # connections with a request in work
        self._checked_at = 0.0
        self._end: float | None = None  # of all transfers, once we were told to stop

    def init_signals(self) -> None:
        super().init_signals()
        signal.signal(signal.SIGHUP, lambda *_: self.method_queue.defer(self.tpool.submit, self.app.on_reload))
        signal.siginterrupt(signal.SIGHUP, False)

    def is_parent_alive(self) -> bool:
        """Whether the master lives; without it, a worker ends as if it had been told to."""
        there = bool(super().is_parent_alive())
        if not there:
            self.alive = False
        return there

    def get_thread_pool(self) -> Threads:
        return Threads(self.cfg.threads)

    def accept(self, listener: Any) -> None:
        """Take a connection; it gets a thread when it has a request, not before."""
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as exc:
            if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            # The connection waits in the backlog; raising would end the worker and every transfer in it.
            self.log.warning("no connection can be accepted just now: %s", exc.strerror)
            time.sleep(0.05)
            return
        self.nr_conns += 1
        if client.family != socket.AF_UNIX:
            # also ends connections whose client stopped reading
            with contextlib.suppress(OSError):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._patience.send * 1000))
        conn = Connection(self.cfg, client, address, listener.getsockname())
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(client, gthread.selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    # --- heads -------------------------------------------------------------------------------------------

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        self._readable(conn, client, self.pending_conns)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        self._readable(conn, client, self.keepalived_conns)

    def _readable(self, conn: Any, client: Any, among: Any) -> None:
        """Something arrived on a connection that has no request yet."""
        there = self._peeked(conn)
        if there is None and among is not None:
            among.remove(conn)
            self._begun[conn] = time.monotonic() + self._patience.head
            self.poller.modify(client, gthread.selectors.EVENT_READ, partial(self._readable, conn, among=None))
        if there is None:
            return
        self.poller.unregister(client)
        if among is not None:
            among.remove(conn)
        else:
            del self._begun[conn]
        if there:
            conn.data_ready = True
            self.enqueue_req(conn)
        else:
            self.nr_conns -= 1
            conn.close()

    def _peeked(self, conn: Any) -> bool | None:
        """Whether a thread has something to read: a whole head. None for not yet, False for an end."""
        sock = conn.sock
        if self.cfg.is_ssl or sock.family == socket.AF_UNIX:
            return True  # only a thread can tell
        try:
            data = sock.recv(HEAD_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return False
        if b"\r\n\r\n" in data or len(data) == HEAD_BYTES:
            if conn.peeked:
                conn.peeked = 0
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return True
        if len(data) <= conn.peeked:
            return False  # nothing came but the end
        # The poller is silent until there is more than this.
        conn.peeked = len(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data) + 1)
        return None

    def enqueue_req(self, conn: Any) -> None:
        self.tpool.submit(partial(self._serve, conn))

    def _serve(self, conn: Any) -> None:
        result = False
        try:
            result = self.handle(conn)
        finally:
            self.method_queue.defer(self.finish_request, conn, _Done(result))

    def handle(self, conn: Any) -> Any:
        """Serve a request, in a thread, and those that its client sends at once after the answer."""
        result = self._handle_one(conn)
        while result and self._goes_on(conn):
            result = self._handle_one(conn)
        return result

    def _goes_on(self, conn: Any) -> bool:
        """Whether the next request is there, or comes in a moment, and nobody waits for this thread."""
        if not self.alive or conn.is_http2 or self.tpool.busy:
            return False
        if conn.parser.unreader.buf.getvalue() or getattr(conn.sock, "pending", int)():
            return True  # what came with the last one, or is decrypted already
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(NEXT_REQUEST))

    def _handle_one(self, conn: Any) -> Any:
        self._heads[conn] = time.monotonic() + self._patience.head
        try:
            result = super().handle(conn)
        finally:
            self._heads.pop(conn, None)
        if not result:
            self._part(conn)
        return result

    def handle_request(self, req: Any, conn: Any) -> Any:
        self._heads.pop(conn, None)
        if isinstance(req, Request) and hasattr(req.unreader, "sock"):
            body = SocketBody(req, self._patience.body, self._patience.rate)
            req.body = body
            asked = req.should_close
            req.should_close = lambda: not self.alive or body.must_close() or asked()
        self._answered[conn] = SendProgress()
        try:
            announced = super().handle_request(req, conn)
        except OSError as exc:
            if exc.errno in _GONE or isinstance(exc, ssl.SSLError):
                raise
            # Data that cannot be read any further, mostly; gunicorn would not say whose.
            self.log.error("%s %s: the answer broke off: %s", req.method, req.path, exc.strerror or exc)
            raise StopIteration from exc
        finally:
            del self._answered[conn]
        # Asked before the next request is read: one that was on its way when we were told to stop is still answered.
        req.should_close = lambda: not announced
        return announced

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        body = getattr(conn.parser.mesg, "body", None)
        if isinstance(body, SocketBody):
            return body.finish(gthread.DEFAULT_WORKER_DATA_TIMEOUT) and bool(keepalive)
        return bool(super()._keepalive_after(conn, keepalive))

    def _part(self, conn: Any) -> None:
        """Close so that the client sees the answer, even while it is still sending.

        Closing with unread bytes resets the connection, and a reset that comes before the end of our answer was
        taken destroys it. So our half is closed first; then some of what comes is read, until the client's system
        has acknowledged our end. Later writes of the client fail as "broken pipe", which clients know to read the
        answer after.
        """
        body = getattr(getattr(conn.parser, "mesg", None), "body", None)
        if isinstance(body, SocketBody) and not body.unread and not body.failed:
            return
        sock = conn.sock
        with contextlib.suppress(OSError, ValueError):
            sock.shutdown(socket.SHUT_WR)
            until = time.monotonic() + LINGER_TIME
            scratch = bytearray(64 << 10)
            drained = 0
            while (remaining := until - time.monotonic()) > 0:
                if drained >= LINGER_BYTES and _heard(sock):
                    break
                sock.settimeout(remaining)
                if drained >= LINGER_BYTES:
                    time.sleep(0.02)
                    continue
                got = sock.recv_into(scratch)
                if not got:
                    break
                drained += got

    def murder_pending(self) -> None:
        """Called about once a second by the main loop: give up connections that take too long."""
        super().murder_pending()
        now = time.monotonic()
        while self._begun and next(iter(self._begun.values())) <= now:
            conn = next(iter(self._begun))
            del self._begun[conn]
            self.poller.unregister(conn.sock)
            self.nr_conns -= 1
            with contextlib.suppress(OSError):
                conn.sock.send(_TOO_SLOW)
            conn.close()
        for conn, end in list(self._heads.items()):
            if end <= now:
                _break(conn)
        if not self.alive:
            self._end = self._end or now + self.app.grace
            if self._end <= now:
                # They fail as if their clients had gone, and clean up after themselves.
                for conn in list(self._answered):
                    _break(conn)
        elif now - self._checked_at >= CHECK_INTERVAL:
            self._checked_at = now
            for conn, progress in list(self._answered.items()):
                if progress.too_slow(conn.sock, now, self._patience):
                    self.log.warning("%s takes its answer too slowly and is given up", conn.client)
                    _break(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:  # connections without a request are no reason to stay, either
            conn.timeout = min(conn.timeout, deadline)
        self._begun = {conn: min(end, deadline) for conn, end in self._begun.items()}


class _Done:
    """What `finish_request` wants of a future, which would be several times as large."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def cancelled(self) -> bool:
        return False

    def result(self) -> Any:
        return self._result


class SendProgress:
    """How fast a client takes an answer, as the kernel tells."""

    def __init__(self) -> None:
        self._since = 0.0  # when it began to let us wait; 0 while it does not
        self._taken = 0

    def too_slow(self, sock: Any, now: float, patience: Patience) -> bool:
        """Whether it took less of what waits for it than it must. To be asked every few seconds."""
        try:
            (waits,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
            taken = insides.tcp_acknowledged(sock) if waits else 0
        except (OSError, ValueError):
            return False  # not TCP, or gone
        if not waits or not self._since:
            self._since = now if waits else 0.0
        elif now - self._since < patience.send:
            return False
        elif taken - self._taken < patience.rate * (now - self._since):
            return True
        else:
            self._since = now
        self._taken = taken
        return False


def _break(conn: Any) -> None:
    """End a connection that a thread works on; it sees the end. The plain method: TLS must not be touched from here."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(conn.sock, socket.SHUT_RDWR)


def _heard(sock: socket.socket) -> bool:
    """Whether the client's system acknowledged the end of our answer."""
    try:
        return insides.tcp_state(sock) not in _UNHEARD
    except OSError:
        return True  # not TCP, or gone


class Log(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's lines go where all lines go; what it would write to its access log is handed on."""

    access_log_enabled = True
    answered: Callable[[Mapping[str, Any], str, int, float], None]

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.propagate = True

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        # What goes by sendfile is not counted.
        size = resp.sent or (resp.response_length or 0 if environ["REQUEST_METHOD"] != "HEAD" else 0)
        self.answered(environ, str(resp.status), size, request_time.total_seconds())


# --- the process -----------------------------------------------------------------------------------------


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn with settings from Python instead of its own files, arguments and environment."""

    def __init__(
        self,
        load: Callable[[], "WSGIApplication"],
        settings: dict[str, Any],
        patience: Patience,
        grace: int,
        on_reload: Callable[[], None],
        manager: Manager,
    ) -> None:
        self._load = load
        self.manager = manager
        self.grace = grace
        self.on_reload = on_reload
        self._settings = settings
        self.patience = patience
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> "WSGIApplication":
        return self._load()

    def run(self) -> None:
        Master(self).run()


class Master(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's master, whose SIGHUP disturbs no transfer: processes read again what may change, and go on."""

    def handle_hup(self) -> None:
        self.app.manager.reloading()
        self.app.on_reload()  # for workers to come
        self.kill_workers(signal.SIGHUP)
        self.app.manager.ready()

    def murder_workers(self) -> None:
        """Called about once a second by the main loop."""
        self.app.manager.beat()
        super().murder_workers()

    def stop(self, graceful: bool = True) -> None:
        self.app.manager.stopping()
        super().stop(graceful)


def run(
    load: Callable[[], "WSGIApplication"],
    *,
    bind: list[str],
    workers: int,
    threads: int = 2048,
    state_dir: Path | None,
    on_worker_start: Callable[[], None] | None,
    on_worker_exit: Callable[[], None] | None,
    on_ready: Callable[[], None] | None,
    on_reload: Callable[[], None] = lambda: None,
    on_answered: Callable[[Mapping[str, Any], str, int, float], None] = lambda *_: None,
    patience: Patience = Patience(),
    graceful_timeout: int = 30,
    certfile: str | None = None,
    keyfile: str | None = None,
) -> None:
    """Serve until SIGTERM; raises `SystemExit` at the end.

    `load` is called once, in the master. `on_worker_start` runs in each worker before its first request: threads and
    connections begin there. `on_ready` runs in the master when the addresses are bound; then a service manager is
    told. `on_reload` runs in every process at SIGHUP. `on_answered` runs after each request, in its thread, with its
    environment, the status line, the bytes of the body that were sent and the seconds that it took.
    """

    def started(_worker: Any) -> None:
        if on_worker_start:
            on_worker_start()

    def exited(_arbiter: Any, worker: Any) -> None:
        if os.getpid() != worker.pid:
            return  # gunicorn also tells the master of workers that vanished
        if on_worker_exit:
            on_worker_exit()
        if getattr(worker, "nr_conns", 0) > 0:
            # Transfers outlived their grace, perhaps as the store hangs; the sweeper knows what to do.
            os._exit(0)

    # A connection is a descriptor, a transfer some more; the usual soft limit of 1024 is for programs that use select.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    manager = Manager()

    def ready(_arbiter: Any) -> None:
        if on_ready:
            on_ready()
        manager.ready()

    settings = {
        "bind": bind,
        "worker_class": Worker,
        "workers": workers,
        "threads": threads,
        "worker_connections": max(4096, 2 * threads),
        "backlog": 2048,
        "keepalive": patience.idle,
        # The main loop beats, not the requests: a long transfer is no silence. Two minutes let a paused host resume.
        "timeout": 120,
        "graceful_timeout": graceful_timeout + CLEANING,
        "limit_request_line": 8190,
        "limit_request_fields": 128,
        "limit_request_field_size": 16384,
        "preload_app": True,
        "logger_class": type("Log", (Log,), {"answered": staticmethod(on_answered)}),
        # Headers of proxies are believed where an option says so (api/proxies.py), and not for an address.
        "forwarded_allow_ips": "",
        "secure_scheme_headers": {},
        "proc_name": "calotype",
        "control_socket_disable": True,  # it would be opened in the home directory
        "worker_tmp_dir": _heartbeat_dir(state_dir),
        "certfile": certfile,
        "keyfile": keyfile,
        "post_worker_init": started,
        "worker_exit": exited,
        "when_ready": ready,
    }
    Server(load, settings, patience, graceful_timeout, on_reload, manager).run()


def _heartbeat_dir(state_dir: Path | None) -> str | None:
    """Where workers touch a file each second: memory, because a busy disk would look like a dead worker."""
    memory = Path("/dev/shm")  # noqa: S108 - gunicorn makes a file there in the safe way
    if os.access(memory, os.W_OK | os.X_OK):
        return str(memory)
    return str(state_dir) if state_dir else None
