"""The HTTP server. No other module knows gunicorn.

`run` starts it. `Worker` is gunicorn's threaded worker, changed in these ways:

- a connection gets a thread when the head of its request has arrived, and threads end when there is no work for them;
- bodies are read by `SocketBody`;
- after an answer to an unread body the connection is closed so that the client can still read the answer;
- closing a connection blocks no other thread;
- a client that takes its answer too slowly is disconnected.

`Timeouts` says how long a client may take for what.

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

from calotype import errors, insides
from calotype.notify import Manager
from calotype.socket_body import SocketBody
from calotype.threads import ThreadPool

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LOG = logging.getLogger(__name__)

#: Up to this many bytes of a head are waited for without a thread; hardly any head is longer.
HEAD_BYTES = 32 << 10
#: How long transfers may take to clean up after their grace is over, seconds.
CLEANUP_SECONDS = 10
#: How often to check whether clients take their answers fast enough, seconds.
CHECK_INTERVAL = 5.0
#: How long a thread waits for the next request before it gives the connection back to the main loop, milliseconds. The
#: way there and back costs as much as a small answer does.
NEXT_REQUEST = 2
#: How much of a refused body is read while the client takes the answer, in bytes and in seconds.
LINGER_BYTES = 8 << 20
LINGER_TIME = 2.0
#: Seconds that an address in use is waited for.
PATIENCE_FOR_ADDRESS = 3.0
#: Connections that wait to be accepted, in the kernel.
BACKLOG = 2048

#: What the system's refusal to listen means.
_WHY = {
    errno.EADDRINUSE: "the address is in use; stop who has it, or choose another port by --bind",
    errno.EADDRNOTAVAIL: "this host does not have the address",
    errno.EACCES: "ports below 1024 are for root; choose another one, or put a proxy in front",
}

#: States of TCP (RFC 9293) in which the other side has not acknowledged our FIN.
_UNACKNOWLEDGED = (1, 4, 9, 11)  # ESTABLISHED, FIN-WAIT-1, LAST-ACK, CLOSING as Linux numbers them

#: Errors of a write to a client that is gone.
_CLIENT_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client may take, in seconds, and how fast it must be."""

    head: float = 30.0  #: for the head of a request
    idle: int = 15  #: between two requests
    body: float = 60.0  #: without sending a byte of a body, while we wait for it
    send: float = 300.0  #: without taking a byte of an answer
    #: Bytes a second, 0 for no limit: what it must send, over a minute in which we wait; and take, over `send` seconds.
    rate: int = 500


# --- connections -----------------------------------------------------------------------------------------


class Connection(gthread.TConn):  # type: ignore[misc]  # gunicorn has no types
    """A client's connection. `close` does not linger: `Worker` has done that before."""

    head_bytes = 0  #: how many bytes of an incomplete head have arrived

    def close(self, graceful: bool = False) -> None:
        util.close(self.sock)


class Worker(gthread.ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker, changed as the module's docstring says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeouts: Timeouts = self.app.timeouts
        # Connections with their deadlines: with an incomplete head, oldest first; and whose head a thread reads.
        self._partial_heads: dict[Any, float] = {}
        self._reading_heads: dict[Any, float] = {}
        self._answering: dict[Any, SendProgress] = {}  # connections whose request is being handled
        self._checked_at = 0.0
        self._transfers_deadline: float | None = None  # set when the worker is told to stop

    def init_signals(self) -> None:
        super().init_signals()
        signal.signal(signal.SIGHUP, lambda *_: self.method_queue.defer(self.tpool.submit, self.app.on_reload))
        signal.siginterrupt(signal.SIGHUP, False)

    def is_parent_alive(self) -> bool:
        """Whether the master is alive. Without it a worker stops as if it had been told to."""
        is_alive = bool(super().is_parent_alive())
        if not is_alive:
            self.alive = False
        return is_alive

    def get_thread_pool(self) -> ThreadPool:
        return ThreadPool(self.cfg.threads)

    def accept(self, listener: Any) -> None:
        """Accept a connection. It gets no thread before it has a request."""
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
            # this also ends connections whose client has stopped reading
            with contextlib.suppress(OSError):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._timeouts.send * 1000))
        conn = Connection(self.cfg, client, address, listener.getsockname())
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(client, gthread.selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    # --- heads -------------------------------------------------------------------------------------------

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        self._on_readable(conn, client, self.pending_conns)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        self._on_readable(conn, client, self.keepalived_conns)

    def _on_readable(self, conn: Any, client: Any, waiting_conns: Any) -> None:
        """Data, or the end, arrived on a connection in `waiting_conns`; None: on one with an incomplete head."""
        has_head = self._peek_head(conn)
        if has_head is None and waiting_conns is not None:
            waiting_conns.remove(conn)
            self._partial_heads[conn] = time.monotonic() + self._timeouts.head
            self.poller.modify(
                client, gthread.selectors.EVENT_READ, partial(self._on_readable, conn, waiting_conns=None)
            )
        if has_head is None:
            return
        self.poller.unregister(client)
        if waiting_conns is not None:
            waiting_conns.remove(conn)
        else:
            del self._partial_heads[conn]
        if has_head:
            conn.data_ready = True
            self.enqueue_req(conn)
        else:
            self.nr_conns -= 1
            conn.close()

    def _peek_head(self, conn: Any) -> bool | None:
        """Whether a whole head has arrived, for a thread to read. None: not yet; False: the connection ended."""
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
            if conn.head_bytes:
                conn.head_bytes = 0
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return True
        if len(data) <= conn.head_bytes:
            return False  # no new byte: it is the end
        # With this the poller reports the socket when it has more bytes than these.
        conn.head_bytes = len(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data) + 1)
        return None

    def enqueue_req(self, conn: Any) -> None:
        self.tpool.submit(partial(self._serve, conn))

    def _serve(self, conn: Any) -> None:
        result = False
        try:
            result = self.handle(conn)
        finally:
            self.method_queue.defer(self.finish_request, conn, _FinishedFuture(result))

    def handle(self, conn: Any) -> Any:
        """Serve a request, in a thread, and then further ones that the client sends right after the answers."""
        result = self._handle_one(conn)
        while result and self._has_next_request(conn):
            result = self._handle_one(conn)
        return result

    def _has_next_request(self, conn: Any) -> bool:
        """Whether the next request arrives within `NEXT_REQUEST`, and no other work needs the thread."""
        if not self.alive or conn.is_http2 or self.tpool.busy:
            return False
        if conn.parser.unreader.buf.getvalue() or getattr(conn.sock, "pending", int)():
            return True  # it came with the last request, or is decrypted already
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(NEXT_REQUEST))

    def _handle_one(self, conn: Any) -> Any:
        self._reading_heads[conn] = time.monotonic() + self._timeouts.head
        try:
            result = super().handle(conn)
        finally:
            self._reading_heads.pop(conn, None)
        if not result:
            self._close_lingering(conn)
        return result

    def handle_request(self, req: Any, conn: Any) -> Any:
        self._reading_heads.pop(conn, None)
        if isinstance(req, Request) and hasattr(req.unreader, "sock"):
            body = SocketBody(req, self._timeouts.body, self._timeouts.rate)
            req.body = body
            asked = req.should_close
            req.should_close = lambda: not self.alive or body.must_close() or asked()
        self._answering[conn] = SendProgress()
        try:
            announced = super().handle_request(req, conn)
        except OSError as exc:
            if exc.errno in _CLIENT_GONE or isinstance(exc, ssl.SSLError):
                raise
            # Mostly data that could not be read to its end. gunicorn would not log of which request.
            self.log.error("%s %s: the answer broke off: %s", req.method, req.path, exc.strerror or exc)
            raise StopIteration from exc
        finally:
            del self._answering[conn]
        # `announced` is decided before the next request: one that was on its way when we were told to stop is answered.
        req.should_close = lambda: not announced
        return announced

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        body = getattr(conn.parser.mesg, "body", None)
        if isinstance(body, SocketBody):
            return body.finish(gthread.DEFAULT_WORKER_DATA_TIMEOUT) and bool(keepalive)
        return bool(super()._keepalive_after(conn, keepalive))

    def _close_lingering(self, conn: Any) -> None:
        """Close our half first, so that the client can read the answer even while it is still sending.

        Closing a socket that has unread bytes resets the connection. If the reset arrives before the client has taken
        the answer, the answer is lost. So after closing our half, we read some of what still arrives, until the
        client's system has acknowledged our end. Later writes of the client fail with "broken pipe"; clients then read
        the answer.
        """
        body = getattr(getattr(conn.parser, "mesg", None), "body", None)
        if isinstance(body, SocketBody) and not body.unread and not body.failed:
            return
        sock = conn.sock
        with contextlib.suppress(OSError, ValueError):
            sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + LINGER_TIME
            scratch = bytearray(64 << 10)
            drained = 0
            while (remaining := deadline - time.monotonic()) > 0:
                if drained >= LINGER_BYTES and _end_acknowledged(sock):
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
        """Called about once a second by the main loop: end connections that take too long."""
        super().murder_pending()
        now = time.monotonic()
        while self._partial_heads and next(iter(self._partial_heads.values())) <= now:
            conn = next(iter(self._partial_heads))
            del self._partial_heads[conn]
            self.poller.unregister(conn.sock)
            self.nr_conns -= 1
            with contextlib.suppress(OSError):
                conn.sock.send(_TOO_SLOW)
            conn.close()
        for conn, end in list(self._reading_heads.items()):
            if end <= now:
                _shut_down(conn)
        if not self.alive:
            self._transfers_deadline = self._transfers_deadline or now + self.app.grace
            if self._transfers_deadline <= now:
                # The transfers fail as if their clients had gone, and clean up.
                for conn in list(self._answering):
                    _shut_down(conn)
                self.app.on_grace_over()
        elif now - self._checked_at >= CHECK_INTERVAL:
            self._checked_at = now
            for conn, progress in list(self._answering.items()):
                if progress.too_slow(conn.sock, now, self._timeouts):
                    self.log.warning("%s takes its answer too slowly and is given up", conn.client)
                    _shut_down(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:  # nor do connections without a request keep the worker from stopping
            conn.timeout = min(conn.timeout, deadline)
        self._partial_heads = {conn: min(end, deadline) for conn, end in self._partial_heads.items()}


class _FinishedFuture:
    """What `finish_request` needs of a `Future`, which would take several times the memory."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def cancelled(self) -> bool:
        return False

    def result(self) -> Any:
        return self._result


class SendProgress:
    """How fast a client takes an answer, as the kernel counts it."""

    def __init__(self) -> None:
        self._since = 0.0  # since when bytes wait to be taken; 0 while none do
        self._taken = 0

    def too_slow(self, sock: Any, now: float, timeouts: Timeouts) -> bool:
        """Whether the client took less of the waiting bytes than it must. Call this every few seconds."""
        try:
            (waits,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
            taken = insides.tcp_acknowledged(sock) if waits else 0
        except (OSError, ValueError):
            return False  # not TCP, or gone
        if not waits or not self._since:
            self._since = now if waits else 0.0
        elif now - self._since < timeouts.send:
            return False
        elif taken - self._taken < timeouts.rate * (now - self._since):
            return True
        else:
            self._since = now
        self._taken = taken
        return False


def _shut_down(conn: Any) -> None:
    """End a connection that a thread works on: the thread sees the end. This uses the plain method of the socket, as
    another thread must not touch TLS."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(conn.sock, socket.SHUT_RDWR)


def _end_acknowledged(sock: socket.socket) -> bool:
    """Whether the client's system has acknowledged the end of our answer."""
    try:
        return insides.tcp_state(sock) not in _UNACKNOWLEDGED
    except OSError:
        return True  # not TCP, or gone


class Log(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's log lines go where all lines go. `answered` gets what gunicorn would write to its access log."""

    access_log_enabled = True
    answered: Callable[[Mapping[str, Any], str, int, float], None]

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.propagate = True

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        # gunicorn does not count what goes by sendfile.
        size = resp.sent or (resp.response_length or 0 if environ["REQUEST_METHOD"] != "HEAD" else 0)
        self.answered(environ, str(resp.status), size, request_time.total_seconds())


# --- the process -----------------------------------------------------------------------------------------


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn with settings from Python instead of its own files, arguments and environment."""

    def __init__(
        self,
        load: Callable[[], "WSGIApplication"],
        settings: dict[str, Any],
        timeouts: Timeouts,
        grace: int,
        on_reload: Callable[[], None],
        on_grace_over: Callable[[], None],
        manager: Manager,
    ) -> None:
        self._load = load
        self.manager = manager
        self.grace = grace
        self.on_reload = on_reload
        self.on_grace_over = on_grace_over
        self._settings = settings
        self.timeouts = timeouts
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> "WSGIApplication":
        return self._load()

    def run(self) -> None:
        Master(self).run()


class Master(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's master. SIGHUP restarts no worker: all processes read their files again and go on."""

    def handle_hup(self) -> None:
        self.app.manager.reloading()
        self.app.on_reload()  # for workers that are started later
        self.kill_workers(signal.SIGHUP)
        self.app.manager.ready()

    def murder_workers(self) -> None:
        """Called about once a second by the main loop."""
        self.app.manager.beat()
        super().murder_workers()

    def stop(self, graceful: bool = True) -> None:
        self.app.manager.stopping()
        super().stop(graceful)


def listen(host: str, port: int) -> socket.socket:
    """Listen, for `run`. Raises `ConfigError` for an address that cannot be had, `Conflict` for one that is in use.

    One that is in use is waited for a moment: whoever had it may be ending just now.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as exc:
        raise errors.ConfigError(f"Cannot listen on {where}: {host} is neither an address nor a known name.") from exc
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    until = time.monotonic() + PATIENCE_FOR_ADDRESS
    while True:
        try:
            sock.bind(address)
            sock.listen(BACKLOG)
            return sock
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE and time.monotonic() < until:
                time.sleep(0.1)
                continue
            sock.close()
            kind = errors.Conflict if exc.errno == errno.EADDRINUSE else errors.ConfigError
            raise kind(f"Cannot listen on {where}: {_WHY.get(exc.errno or 0, exc.strerror)}.") from exc


def run(
    load: Callable[[], "WSGIApplication"],
    *,
    listener: socket.socket,
    workers: int,
    threads: int = 2048,
    state_dir: Path | None,
    on_worker_start: Callable[[], None] | None,
    on_worker_exit: Callable[[], None] | None,
    on_ready: Callable[[], None] | None,
    on_reload: Callable[[], None] = lambda: None,
    on_grace_over: Callable[[], None] = lambda: None,
    on_answered: Callable[[Mapping[str, Any], str, int, float], None] = lambda *_: None,
    timeouts: Timeouts = Timeouts(),
    graceful_timeout: int = 30,
    certfile: str | None = None,
    keyfile: str | None = None,
) -> None:
    """Serve until SIGTERM; raises `SystemExit` at the end.

    `listener` is of `listen`, and the server's from now on. `load` is called once, in the master. `on_worker_start`
    runs in each worker before its first request: threads and connections begin there. `on_ready` runs in the master
    when everything is there but the workers; then a service manager is told. `on_reload` runs in every process at
    SIGHUP. `on_grace_over` runs in a worker that was told to stop when its transfers have had their time, and ends what
    they wait for besides their clients. `on_answered` runs after each request, in its thread, with its environment, the
    status line, the bytes of the body that were sent and the seconds that it took.
    """

    def started(_worker: Any) -> None:
        if on_worker_start:
            on_worker_start()

    def exited(_arbiter: Any, worker: Any) -> None:
        if os.getpid() != worker.pid:
            return  # gunicorn also calls this in the master, for workers that vanished
        if on_worker_exit:
            on_worker_exit()
        if getattr(worker, "nr_conns", 0) > 0:
            # Transfers outlived their grace, perhaps because a store hangs. The runner cleans up after them.
            os._exit(0)

    # A connection takes one descriptor, a transfer a few. The usual soft limit of 1024 is for programs with `select`.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    manager = Manager()

    def ready(_arbiter: Any) -> None:
        if on_ready:
            on_ready()
        manager.ready()

    settings = {
        "bind": [f"fd://{listener.detach()}"],
        "worker_class": Worker,
        "workers": workers,
        "threads": threads,
        "worker_connections": max(4096, 2 * threads),
        "backlog": BACKLOG,
        "keepalive": timeouts.idle,
        # The main loop sends the heartbeat, also during long transfers. Two minutes let a paused host resume.
        "timeout": 120,
        "graceful_timeout": graceful_timeout + CLEANUP_SECONDS,
        "limit_request_line": 8190,
        "limit_request_fields": 128,
        "limit_request_field_size": 16384,
        "preload_app": True,
        "logger_class": type("Log", (Log,), {"answered": staticmethod(on_answered)}),
        # Headers of proxies are trusted if an option says so (api/proxies.py), and not because of an address.
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
    Server(load, settings, timeouts, graceful_timeout, on_reload, on_grace_over, manager).run()


def _heartbeat_dir(state_dir: Path | None) -> str | None:
    """Where workers touch a file each second. In memory: on a busy disk a worker would seem dead."""
    memory = Path("/dev/shm")  # noqa: S108 - gunicorn makes a file there in the safe way
    if os.access(memory, os.W_OK | os.X_OK):
        return str(memory)
    return str(state_dir) if state_dir else None
