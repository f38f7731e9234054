"""One connection to one address: sends a request, and reads the answer strictly. `net.py` chooses the address.

`http.client` writes the request and reads the head of the answer. The body is read here, because `http.client` accepts
what hides a lie: two lengths, a negative or absent one with a body that breaks off, transfer encodings that it does
not know, chunk sizes like `-5`. Here the end of a body is an end only if the server marked it, or the answer says so.

Every wait is cut into slices of half a second. Between them `heed` is called, which may raise to end the fetch.
"""

import contextlib
import errno
import fcntl
import ipaddress
import math
import os
import re
import select
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.errors import FirstHeaderLineIsContinuationDefect, MissingHeaderBodySeparatorDefect
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse
from typing import Any, Final

from calotype import errors

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Called about twice a second by whatever waits; raises if the fetch must end.
Heed = Callable[[], object]

#: What `http.client` and the libraries below it raise for failures of a server or of the network.
FAILURES: Final = (OSError, ValueError, HTTPException)
_SLICE: Final = 0.5  #: seconds
_PIECE: Final = 1 << 20
#: How much is received at once where it is not known how much belongs to the body, bytes.
_BLOCK: Final = 64 << 10
#: The most that `ready` waits for: no more than the kernel holds for one connection anywhere, bytes.
_MAX_LOWAT: Final = 512 << 10
#: How long an answer that should be over is watched for more bytes, seconds.
_AFTER: Final = 0.5
#: Limits for the lines between chunks: bytes of one, and how many at the end.
_MOST_LINE: Final = 8 << 10
_MOST_TRAILERS: Final = 100
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_LENGTH: Final = re.compile("[0-9]{1,18}")
_HEAD_DEFECTS: Final = (FirstHeaderLineIsContinuationDefect, MissingHeaderBodySeparatorDefect)


def _nothing() -> None:
    """The `heed` of a fetch that nobody ends."""


class _Sliced:
    """A socket with a deadline for all its operations, in place of a timeout for each."""

    until = 0.0  #: the deadline, by `time.monotonic`
    heed: Heed = staticmethod(_nothing)

    def remaining(self) -> float:
        """The length of the next wait in seconds. Raises `TimeoutError` if the deadline has passed."""
        remaining = self.until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the time is over")
        return min(remaining, _SLICE)

    def sliced(self: Any, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Call an operation of the socket until it is done. It must be one that may be repeated after a timeout."""
        while True:
            self.settimeout(self.remaining())
            try:
                return operation(*arguments)
            except TimeoutError:
                self.heed()

    def recv_into(self: Any, *arguments: Any) -> Any:
        return self.sliced(super().recv_into, *arguments)  # type: ignore[misc]

    def sendall(self: Any, data: Any, flags: int = 0) -> None:
        while data:  # `sendall` does not tell how much it sent before a timeout
            data = data[self.sliced(super().send, data, flags) :]  # type: ignore[misc]


class _Socket(_Sliced, socket.socket):
    pass


class _TlsSocket(_Sliced, ssl.SSLSocket):
    pass


def tls_context(ca_file: str | None, *, insecure: bool) -> ssl.SSLContext:
    """For `Wire.secure`. Raises `OSError` if the certificates cannot be read."""
    context = ssl.create_default_context(cafile=ca_file)
    context.sslsocket_class = _TlsSocket
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Wire:
    """A connection to an address. Methods raise `FAILURES`, and `TimeoutError` after `until` (`time.monotonic`)."""

    def __init__(self, address: Address, port: int, until: float, heed: Heed | None = None) -> None:
        self._place = (str(address), port)
        self._sock: Any = _Socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
        self._sock.heed = heed or _nothing
        self.set_deadline(until)
        self._incoming = _Incoming(self._sock)

    def set_deadline(self, until: float) -> None:
        self._sock.until = until

    def connect(self) -> None:
        sock = self._sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        failure = sock.connect_ex(self._place)
        if failure == errno.EINPROGRESS:
            while not _polled(sock, select.POLLOUT, sock.remaining()):
                sock.heed()
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))

    def tunnel(self, place: str, headers: Mapping[str, str]) -> None:
        """Let the proxy that this is a connection to connect to `place`, an address and port."""
        response = self._exchange("CONNECT", place, {"Host": place, **headers})
        if response.status // 100 != 2 or self._incoming.held:
            raise OSError(f"the proxy answered {response.status}")

    def secure(self, context: ssl.SSLContext, name: str) -> None:
        """Start TLS, and verify that the server's certificate is for `name`."""
        plain = self._sock
        wrapped = context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
        assert isinstance(wrapped, _TlsSocket)
        self._sock = wrapped
        wrapped.until, wrapped.heed = plain.until, plain.heed
        self._incoming = _Incoming(wrapped)
        wrapped.sliced(wrapped.do_handshake)

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], *, body: Iterable[Any] | None = None, **more: Any
    ) -> "Answer":
        """Send a request and read the head of its answer. `more` is for `Answer`. Raises `FetchFailed` as well.

        With a `body`, which is in pieces of bytes, `headers` has its length. It may call `set_deadline` for each piece.
        """
        response = self._exchange(method, path, headers, body)
        return Answer(self, self._sock, self._incoming, response, method=method, **more)

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: Iterable[Any] | None = None
    ) -> HTTPResponse:
        sending = HTTPConnection(*self._place)
        sending.sock = self._sock
        try:
            sending.request(method, path, body=body, headers=dict(headers))
        except (BrokenPipeError, ConnectionResetError):
            if body is None:
                raise
            # A server may refuse a request before it has read the body. Then its answer says why.
        response = HTTPResponse(self._incoming, method=method)  # type: ignore[arg-type]  # all that it needs
        response.begin()
        return response

    def close(self) -> None:
        self._sock.close()


class _Incoming:
    """What comes over a socket, as lines and as bytes. A call that times out can be repeated: nothing is lost."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._plain = isinstance(sock, _Socket)
        self.held = bytearray()  #: what was received and not taken yet
        self.ended = False  #: whether the server has ended the connection

    def makefile(self, _mode: str) -> "_Incoming":
        """What `http.client` reads the head from. Nobody but us closes the socket."""
        return self

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def readline(self, limit: int) -> bytes:
        """The next line with its end. Without an end if it is longer than `limit`, or if the connection ended."""
        while (end := self.held.find(b"\n", 0, limit) + 1) == 0 and len(self.held) < limit and self._receive():
            pass
        line = bytes(self.held[: end or limit])
        del self.held[: len(line)]
        return line

    def readinto(self, view: memoryview) -> int:
        """At least one byte; 0 at the end of the connection."""
        if not self.held:
            got = 0 if self.ended else self._sock.recv_into(view)
            self.ended = not got
            return int(got)
        got = min(len(view), len(self.held))
        view[:got] = self.held[:got]
        del self.held[:got]
        return got

    def ready(self, size: int) -> int:
        """Wait until `size` bytes can be read without waiting, or the connection ended, or the time is over.

        Returns how many can be read.
        """
        if self.held or self.ended:
            return len(self.held)
        if self._plain:
            self._wait(min(size, _MAX_LOWAT))
            if available := self._in_kernel():
                return available
            if not _polled(self._sock, select.POLLIN, 0):
                return 0
            self._receive()  # the end, or a failure, which this raises
        else:
            with contextlib.suppress(TimeoutError):
                while len(self.held) < min(size, _BLOCK) and self._receive():
                    pass
        return len(self.held)

    def _wait(self, size: int) -> None:
        if self._in_kernel() >= size:
            return
        # Otherwise each packet would wake us, and become a piece of its own.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        try:
            with contextlib.suppress(TimeoutError):
                while not _polled(self._sock, select.POLLIN, self._sock.remaining()):
                    self._sock.heed()
        finally:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _receive(self) -> int:
        block = memoryview(bytearray(_BLOCK))
        got = 0 if self.ended else self._sock.recv_into(block)
        self.ended = not got
        self.held += block[:got]
        return int(got)

    def _in_kernel(self) -> int:
        return int(struct.unpack("i", fcntl.ioctl(self._sock.fileno(), termios.FIONREAD, b"\0" * 4))[0])


def _polled(sock: socket.socket, event: int, seconds: float) -> bool:
    poll = select.poll()  # unlike select.select, it takes descriptors above 1023
    poll.register(sock, event)
    return bool(poll.poll(math.ceil(seconds * 1000)))


class _Body:
    """The data of one answer: of a size, in chunks, or (`size` None) to the end of the connection."""

    def __init__(self, incoming: _Incoming, size: int | None, *, chunked: bool) -> None:
        self._incoming = incoming
        self._left = 0 if chunked else size  # of the body, or of the chunk; None: until the connection ends
        # What comes next: "data", what is between two chunks ("gap", "size"), "trailer", or "end".
        self._next = "size" if chunked else "data" if size != 0 else "end"
        self._chunked = chunked
        self._trailers = 0

    def ready(self, size: int) -> int:
        """As `Source.ready` in `images/stream.py`, until the deadline of the socket. Raises as `readinto`."""
        try:
            self._advance()
        except TimeoutError:
            return 0
        if self._next == "end":
            return 1
        available = self._incoming.ready(size if self._left is None else min(size, self._left))
        if self._incoming.ended and not available:
            self._end()
            return 1
        return available if self._left is None else min(available, self._left)

    def readinto(self, view: memoryview) -> int:
        """At least one byte; 0 at the end.

        Raises `TimeoutError` if nothing came in time (the call can be repeated), `ConnectionCut`, `FetchFailed`,
        `OSError`.
        """
        self._advance()
        if self._next == "end":
            return 0
        got = self._incoming.readinto(view if self._left is None else view[: self._left])
        if not got:
            self._end()
        elif self._left is not None:
            self._left -= got
            if not self._left:
                self._next = "gap" if self._chunked else "end"
        return got

    def goes_on(self) -> bool:
        """After the end: whether the server sends more than it announced. Waits for the end of the connection."""
        return self._left is not None and self._incoming.ready(1) > 0

    def _end(self) -> None:
        """The connection ended where data should come."""
        if self._left is not None:
            raise errors.ConnectionCut("The URL's server broke off.")
        self._next = "end"

    def _advance(self) -> None:
        """Read the lines between chunks, up to the next data or the end."""
        while self._next not in ("data", "end"):
            line = self._incoming.readline(_MOST_LINE)
            if not line.endswith(b"\n") and self._incoming.ended:
                raise errors.ConnectionCut("The URL's server broke off.")
            if self._next == "gap" and line == b"\r\n":
                self._next = "size"
            elif self._next == "size" and (found := _CHUNK.fullmatch(line)):
                self._left = int(found[1], 16)
                self._next = "data" if self._left else "trailer"
            elif self._next == "trailer" and line == b"\r\n":
                self._next = "end"
            elif self._next == "trailer" and line.endswith(b"\r\n") and self._trailers < _MOST_TRAILERS:
                self._trailers += 1
            else:
                raise errors.FetchFailed("The URL's server sends chunks that are not those of HTTP.")


class Answer:
    """An answer whose body was not read yet. Read it once, in one way, and close it in any case."""

    status: int
    headers: HTTPMessage
    url: str  #: where it came from, after redirects
    size: int | None  #: the announced size of the body in bytes, None without one
    marks_end: bool  #: whether the server marks the end of the body, so that a body which broke off can be told

    def __init__(
        self,
        wire: Wire,
        sock: Any,
        incoming: _Incoming,
        response: HTTPResponse,
        *,
        method: str,
        url: str,
        budget: int | None,
        min_rate: int,
        patience: float,
        until: float | None,
    ) -> None:
        """`patience` is the time for each piece in seconds. Raises `FetchFailed` if the head has a fault."""
        self.status = response.status
        self.headers = response.headers
        self.url = url
        size, chunked, fault = _framing(response)
        if fault and self.status // 100 == 2:
            raise errors.FetchFailed(fault)
        self.size = size
        self.marks_end = chunked or size is not None
        self._fault = fault
        self._wire = wire
        self._sock = sock
        empty = method == "HEAD" or self.status in (204, 304)
        self._body = _Body(incoming, 0 if empty else size, chunked=chunked and not empty)
        self._watched = empty
        self._budget = budget
        self._min_rate = min_rate
        self._patience = patience
        self._until = math.inf if until is None else until
        self._closing = threading.Lock()
        self._cancelled = False

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces. Raises `FetchFailed` if it ends early, and `OverLimit` beyond the budget."""
        seen, waited = 0, 0.0
        block = memoryview(bytearray(_PIECE))
        while True:
            started = time.monotonic()
            # A deadline for the whole piece: a hostile server could send chunk sizes and trailers byte by byte.
            got = self.readinto(block, min(self._patience, self._until - started))
            if got is None:
                raise errors.FetchFailed("The URL's server is too slow.")
            waited += time.monotonic() - started
            if not got:
                return
            seen += got
            if self._budget is not None and seen > self._budget:
                raise errors.OverLimit(f"The URL has more than the {self._budget} bytes that are allowed.")
            if waited > self._patience and seen < waited * self._min_rate:
                raise errors.FetchFailed("The URL's server is too slow.")
            yield bytes(block[:got])

    def ready(self, size: int, seconds: float) -> int:
        """Wait up to so many seconds until about `size` bytes can be read without waiting.

        Returns how many can be read: 0 if none came, and at least 1 at the end. Raises as `readinto`.
        """
        return self._timed(seconds, lambda: self._body.ready(size)) or 0

    def readinto(self, view: memoryview, seconds: float) -> int | None:
        """Read at least one byte of the body and return how many; 0 at the end, None if none came in so many seconds.

        Raises `ConnectionCut` if the connection ended before the body, `FetchFailed` if the server breaks the rules of
        HTTP or sends more than it announced, and what `heed` raises.
        """
        got = self._timed(seconds, lambda: self._body.readinto(view))
        if got == 0 and not self._watched:
            self._watched = True
            if self._timed(_AFTER, self._body.goes_on, cut=False):
                raise errors.FetchFailed("The URL's server sends more than it announced.")
        return got

    def _timed(self, seconds: float, read: Callable[[], int], *, cut: bool = True) -> int | None:
        if self._fault:
            raise errors.FetchFailed(self._fault)
        self._sock.until = time.monotonic() + seconds
        try:
            got = read()
        except TimeoutError:
            got = None
        except OSError as exc:
            if not cut:
                return None
            raise errors.ConnectionCut("The URL's server broke off.") from exc
        if self._cancelled:  # whose end of the connection is no end of the data
            raise errors.ConnectionCut("The fetch was cancelled.")
        return got

    def cancel(self) -> None:
        """Shut the connection down, from any thread. A thread that waits for data gets `ConnectionCut` at once."""
        self._cancelled = True
        with self._closing, contextlib.suppress(OSError):
            # The method of the plain socket, because another thread may be using the TLS object. Unlike a close, a
            # shutdown wakes a thread that waits.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        with self._closing:  # else `cancel` could shut down another socket that got the same descriptor
            self._wire.close()


def _framing(response: HTTPResponse) -> tuple[int | None, bool, str]:
    """How the body of an answer ends: its size or None, whether it comes in chunks; and what is wrong with its head."""
    headers = response.headers
    lengths = {one.strip() for text in headers.get_all("Content-Length", []) for one in text.split(",")}
    codings = [one.strip().lower() for text in headers.get_all("Transfer-Encoding", []) for one in text.split(",")]
    encodings = {one.strip().lower() for text in headers.get_all("Content-Encoding", []) for one in text.split(",")}
    fault = ""
    if any(isinstance(one, _HEAD_DEFECTS) for one in headers.defects):  # lines after it were not read as headers
        fault = "The URL's server sends a line that is no header."
    elif encodings - {"identity", ""}:
        fault = "The URL's server sends what nobody asked for: compressed data."
    elif codings and (codings != ["chunked"] or lengths or response.version < 11):
        fault = "The URL's server sends its data in a transfer encoding that nobody asked for, or with two ends."
    elif len(lengths) > 1 or not all(_LENGTH.fullmatch(one) for one in lengths):
        fault = "The URL's server does not tell one size of its data."
    if fault or codings:
        return None, bool(codings), fault
    return (int(lengths.pop()) if lengths else None), False, ""
