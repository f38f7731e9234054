"""`SocketBody`: reads the body of a request from the socket, directly into the buffer of the reader.

`server.py` puts it in place of gunicorn's own body. The application finds it as `wsgi.input` and reads it through
`api/body.py`, which works on other servers as well.

What it buys beside gunicorn's own body, in CPU-seconds of a PUT of 512 MiB: 2.75 and not 2.92, in chunks of 64 KiB
2.56 and not 2.65; of 256 MiB in chunks of 4 KiB 1.62 and not 1.83. `python -m bench.worth socket_body`. That is
little. It stays because it refuses clients that are silent or slow and bodies that are broken, and because it does not
invite a client to send what is refused anyway (`tests/api/test_slow.py`, `tests/api/test_broken_uploads.py`).
"""

import contextlib
import fcntl
import re
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from gunicorn.http.body import ChunkedReader, LengthReader  # type: ignore[import-untyped]

from calotype import errors, insides

#: If no more than this is unread of a body, it is read and dropped, so that the connection can be used again.
DRAIN_BYTES = 64 << 10

#: Chunks are copied out of a block of up to this size: it stays in the CPU's cache between the kernel's copy and ours.
#: The first block is smaller, for clients that send little.
_MAX_BLOCK, _FIRST_BLOCK = 64 << 10, 8 << 10
#: If this much or more of a chunk is left, it is received in place, without the block.
_DIRECT_BYTES = 128 << 10
#: The longest chunk-size line with its extensions, and the longest trailer section.
_MAX_LINE = 4096
_MAX_TRAILERS = 32 << 10
#: How long to wait for the client before a large block is freed, and before the reader gets control, seconds.
_SHRINK_AFTER, _POLL_SECONDS = 0.1, 1.0
#: The most bytes to wait for without a buffer; the kernel holds them meanwhile.
_MAX_LOWAT = 64 << 10
#: The size of the largest record of TLS.
_TLS_RECORD = 16 << 10
#: The rate of a client is checked each time that we have waited for it for this many seconds.
_RATE_SECONDS = 60.0
#: What a chunk of any size costs us, 2 us, as bytes of overhead in addition to its size line.
_CHUNK_COST = 64
#: How many more bytes of overhead than of data a chunked body may have; this refuses bodies of needlessly small chunks.
_MAX_OVERHEAD = 512 << 10

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class SocketBody:
    """The body of one HTTP/1 request, received where the reader wants it.

    `ready` and `readinto` are the fast way; the other methods are those of WSGI.

    `errors.BodyBroken` is raised, and never a clean end returned, if the body ends early, if its framing is wrong, if
    no byte comes for `timeout` seconds, or if fewer than `rate` bytes a second come, over a minute in which we wait.
    The first read sends `100 Continue` if the client waits for that.
    """

    #: For `api/body.py`: this class raises an error for a body that ends early, so nobody else has to count bytes.
    keeps_its_length = True

    def __init__(self, req: Any, timeout: float, rate: int = 0) -> None:
        self.failed = False  #: it is unknown where the next request starts (gunicorn reads this, too)
        self._unreader = req.unreader
        self._sock: socket.socket = req.unreader.sock
        self._timeout = timeout
        self._rate = rate
        self._waited_seconds, self._waited_bytes = (
            0.0,
            0,
        )  # since the last check of the rate: seconds of waiting, and the bytes that came in them
        self._silent_seconds = 0.0  # seconds of waiting since the last byte
        self._expects_continue = insides.take_expect_continue(
            req
        )  # gunicorn would send it before the application can refuse the request
        reader = req.body.reader
        self._chunked = isinstance(reader, ChunkedReader)
        self._length = reader.length if isinstance(reader, LengthReader) else 0
        self._remaining: int = self._length  # of the body, or of the chunk
        self._ended = not self._chunked and self._remaining == 0
        self._has_timeout = False
        self._plain = not isinstance(self._sock, ssl.SSLSocket)
        self._lines = bytearray()  # read ahead by readline
        # for chunked bodies only: the bytes that were received and not yet read are _block[_start:_filled]
        self._block = bytearray()
        self._start = self._filled = 0
        self._next_block_size = _FIRST_BLOCK  # of the next block
        self._expects_crlf = False  # a chunk's data was read to its end: CRLF follows
        self._overhead = 0
        self._last_chunk_size = 0  # size of the last chunk

    # --- for the server ----------------------------------------------------------------------------------

    @property
    def unread(self) -> bool:
        """A body exists and was not read to its end."""
        return not self._ended

    def must_close(self) -> bool:
        """Whether the connection cannot carry another request after this one."""
        if self.failed:
            return True
        if self._ended:
            return False
        if self._expects_continue:
            # A client without a 100 Continue may send the body or leave it out: what its next bytes are is unknown.
            return True
        if self._chunked:
            self._skip_what_arrived()
            return not self._ended
        return self._remaining > DRAIN_BYTES

    def finish(self, seconds: float) -> bool:
        """After the answer, read a small rest of the body; returns whether the next request can follow."""
        if not self.must_close() and not self._ended:
            self._timeout = seconds
            deadline = time.monotonic() + seconds
            scratch = memoryview(bytearray(8192))
            with contextlib.suppress(errors.BodyBroken):
                while self.readinto(scratch) and time.monotonic() < deadline:
                    pass
        self._clear_timeout()
        return self._ended and not self.failed

    # --- for uploads -------------------------------------------------------------------------------------

    def ready(self, size: int) -> int:
        """Wait about a second for `size` bytes, without memory for them; returns how many can be read.

        That may be fewer; it is 0 if nothing came, and at least 1 at the end of the body. For chunked bodies it is an
        estimate.
        """
        if self._lines:
            return len(self._lines)
        if self._ended:
            return 1
        if self.failed:
            raise errors.BodyBroken("the request body broke off earlier")
        try:
            available = self._ready_chunked(size) if self._chunked else self._ready_length(size)
        except BaseException:
            self._fail()
            raise
        if available and not self._plain and not self._ended:
            # A record of TLS may never be completed: read it into little memory, so that waiting for it costs little.
            with memoryview(bytearray(_TLS_RECORD)) as record:
                self._lines += record[: self.readinto(record)]
            available = len(self._lines) or 1
        return available

    def _ready_length(self, size: int) -> int:
        return self._read_with_head() or self._wait(min(size, self._remaining))

    def _ready_chunked(self, size: int) -> int:
        while True:
            held = self._filled - self._start
            if self._remaining:
                return held or self._read_with_head() or self._wait(min(size, self._remaining))
            if self._next_chunk(wait=False):
                if self._ended:
                    return 1
            elif self._read_with_head() or self._wait(1):
                self._receive_block(_MAX_LINE if self._last_chunk_size >= _DIRECT_BYTES else self._next_block_size)
            else:
                return 0

    def _read_with_head(self) -> int:
        """How many bytes came together with the head and are still unread."""
        ahead: bytes = self._unreader.take_buffered()
        if ahead:
            self._unreader.unread(ahead)
        return len(ahead)

    def _fail(self) -> None:
        self.failed = True
        self._block = bytearray()
        self._start = self._filled = 0
        self._clear_timeout()

    # --- WSGI --------------------------------------------------------------------------------------------

    def readinto(self, view: memoryview) -> int:
        """Read into `view`: at least one byte, and more without a second wait. Returns how many; 0 at the clean end."""
        if self._lines:
            size = min(len(view), len(self._lines))
            view[:size] = self._lines[:size]
            del self._lines[:size]
            return size
        if self._ended or not len(view):
            return 0
        if self.failed:
            raise errors.BodyBroken("the request body broke off earlier")
        try:
            return self._read_chunked(view) if self._chunked else self._read_length(view)
        except BaseException:
            self._fail()
            raise

    def read(self, size: int | None = None) -> bytes:
        """`size` bytes, fewer only at the end; all there are without `size`."""
        if size is None or size < 0:
            return b"".join(iter(partial(self.read, 1 << 20), b""))
        if not self._chunked:
            size = min(size, self._remaining + len(self._lines))
        data = bytearray()
        while len(data) < size:
            # grows as bytes arrive: a large `size` alone takes no memory
            have = len(data)
            data.extend(bytes(min(size - have, 1 << 20)))
            with memoryview(data) as view:
                got = self.readinto(view[have:])
            del data[have + got :]
            if not got:
                break
        return bytes(data)

    def readline(self, size: int | None = None) -> bytes:
        """The bytes up to the next newline, with it, but at most `size` bytes."""
        limit = size if size is not None and size >= 0 else None
        seen = 0
        while not (end := self._lines.find(b"\n", seen) + 1):
            seen = len(self._lines)
            if limit is not None and seen >= limit:
                break
            scratch = bytearray(8192)
            held, self._lines = self._lines, bytearray()
            try:
                got = self.readinto(memoryview(scratch))
            finally:
                self._lines = held
            if not got:
                break
            self._lines += scratch[:got]
        cut = end or len(self._lines)
        if limit is not None:
            cut = min(cut, limit)
        line = bytes(self._lines[:cut])
        del self._lines[:cut]
        return line

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """All lines, or as many as make up `hint` bytes."""
        lines: list[bytes] = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    # --- Content-Length ----------------------------------------------------------------------------------

    def _read_length(self, view: memoryview) -> int:
        with view[: self._remaining] as part:  # released at once, also where an error keeps this frame
            got = self._copy_read_with_head(part) or self._receive(part)
        if not got:
            done = self._length - self._remaining
            raise errors.BodyBroken(f"the connection ended after {done} of the {self._length} bytes of the body")
        self._remaining -= got
        if not self._remaining:
            self._end_body()
        return got

    def _copy_read_with_head(self, view: memoryview) -> int:
        """Copy bytes of the body that came together with the head; returns how many."""
        ahead: bytes = self._unreader.take_buffered()
        if not ahead:
            return 0
        size = min(len(ahead), len(view))
        view[:size] = ahead[:size]
        if size < len(ahead):
            self._unreader.unread(ahead[size:])
        return size

    # --- chunked -----------------------------------------------------------------------------------------

    def _read_chunked(self, view: memoryview) -> int:
        filled = 0
        room = len(view)
        while filled < room:
            if not self._remaining:
                if not self._next_chunk(wait=not filled):
                    break
                if self._ended:
                    break
            want = min(self._remaining, room - filled)
            held = self._filled - self._start
            if held:
                got = min(want, held)
                view[filled : filled + got] = memoryview(self._block)[self._start : self._start + got]
                self._start += got
            elif filled and want < _DIRECT_BYTES:
                break  # return what there is, without waiting for more
            elif want >= _DIRECT_BYTES:
                with view[filled : filled + want] as part:
                    got = self._receive(part)
                if not got:
                    raise errors.BodyBroken("the connection ended within a chunk of the body")
            else:
                self._receive_block(self._next_block_size)
                continue
            filled += got
            self._remaining -= got
            self._expects_crlf = not self._remaining
        return filled

    def _next_chunk(self, *, wait: bool) -> bool:
        """Read the lines before the next chunk's data. False, without `wait`, if they have not arrived yet."""
        while True:
            line = self._line()
            if line is not None:
                break
            if not wait:
                return False
            # After large chunks the next data is received in place, so little of it should go into the block.
            self._receive_block(_MAX_LINE if self._last_chunk_size >= _DIRECT_BYTES else self._next_block_size)
        match = _SIZE.fullmatch(line)
        if match is None:
            raise errors.BodyBroken("a chunk of the body has no valid size")
        size = int(match[1], 16)
        self._overhead = max(0, self._overhead + _CHUNK_COST + len(line) - size)
        if self._overhead > _MAX_OVERHEAD:
            raise errors.BodyBroken("the body has too little data for its chunks")
        self._last_chunk_size = self._remaining = size
        if not size:
            self._trailers()
        return True

    def _line(self) -> bytes | None:
        """The size line of the next chunk, and the CRLF before it is skipped; None if it has not arrived yet."""
        at = self._start
        if self._expects_crlf:
            if self._filled - at < 2:
                return None
            if self._block[at] != 13 or self._block[at + 1] != 10:
                raise errors.BodyBroken("a chunk of the body is longer than its size")
            self._expects_crlf = False
            at = self._start = at + 2
        end = self._block.find(b"\n", at, min(self._filled, at + _MAX_LINE)) + 1
        if not end:
            if self._filled - at >= _MAX_LINE:
                raise errors.BodyBroken("a chunk of the body has too long a size line")
            return None
        self._start = end
        return bytes(memoryview(self._block)[at:end])

    def _trailers(self) -> None:
        """Read and drop the trailers after the last chunk."""
        seen = 0
        while True:
            end = self._block.find(b"\n", self._start, min(self._filled, self._start + _MAX_LINE)) + 1
            if not end:
                if self._filled - self._start >= _MAX_LINE:
                    raise errors.BodyBroken("the body has too long a trailer")
                self._receive_block(_MAX_LINE)
                continue
            line = bytes(memoryview(self._block)[self._start : end])
            self._start = end
            if line == b"\r\n":
                break
            seen += len(line)
            if seen > _MAX_TRAILERS or not _TRAILER.fullmatch(line):
                raise errors.BodyBroken("the body has too many trailers, or one that is not valid")
        if self._start < self._filled:  # the next request
            self._unreader.unread(bytes(memoryview(self._block)[self._start : self._filled]))
        self._end_body()

    def _receive_block(self, size: int) -> None:
        """Receive more bytes into the block, after those that it holds. It stays small while nothing comes."""
        ahead: bytes = self._unreader.take_buffered()
        while not ahead and not self._wait(1):
            pass
        held = self._filled - self._start
        room = (len(ahead) or size) + held
        if len(self._block) < room:
            grown = bytearray(room)
            grown[:held] = memoryview(self._block)[self._start : self._filled]
            self._block = grown
        elif held:
            self._block[:held] = self._block[self._start : self._filled]
        self._start, self._filled = 0, held
        view = memoryview(self._block)[held:]
        if ahead:
            got = len(ahead)
            view[:got] = ahead
        else:
            got = self._receive(view[:size], whole=False)
            if not got:
                raise errors.BodyBroken("the connection ended before the end of the body")
            if got == self._next_block_size < _MAX_BLOCK:
                self._next_block_size = min(4 * got, _MAX_BLOCK)
        self._filled += got

    def _skip_what_arrived(self) -> None:
        """Drop what has arrived already: often that is just the end of the body, which the application did not read."""
        ahead: bytes = self._unreader.take_buffered()
        if ahead:
            self._unreader.unread(ahead)
        elif self._filled == self._start and not _readable(self._sock):
            return
        if self._remaining > DRAIN_BYTES:
            return
        with contextlib.suppress(errors.BodyBroken):
            self.readinto(memoryview(bytearray(DRAIN_BYTES)))
            if not self._ended and not self._remaining and self._filled > self._start:
                self.readinto(memoryview(bytearray(DRAIN_BYTES)))

    # --- the socket --------------------------------------------------------------------------------------

    def _wait(self, least: int) -> int:
        """Wait up to a second until `least` bytes of the body have arrived; returns how many the kernel holds.

        It is 1 if only the end arrived, and 0 if nothing did. Raises `BodyBroken` after `timeout` seconds without a
        byte. The block is shrunk meanwhile.
        """
        self._begin_receiving()
        if not self._plain and (available := self._sock.pending()):  # type: ignore[attr-defined]  # decrypted already
            return int(available)
        least = min(least, _MAX_LOWAT)
        available = _bytes_in_kernel(self._sock)
        if available >= least:
            return available
        started = time.monotonic()
        long = max(0.0, min(_POLL_SECONDS, self._timeout - self._silent_seconds))
        sets_lowat = self._plain and least > 1
        try:
            if sets_lowat:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            is_readable = _readable(self._sock, min(_SHRINK_AFTER, long))
            if not is_readable:
                self._shrink_block()
                is_readable = _readable(self._sock, max(0.0, long - _SHRINK_AFTER))
            if sets_lowat:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except OSError as exc:
            raise errors.BodyBroken("the connection broke within the body") from exc
        available = _bytes_in_kernel(self._sock) or int(is_readable)
        waited = time.monotonic() - started
        self._waited_seconds += waited
        self._silent_seconds = 0.0 if available else self._silent_seconds + waited
        if self._silent_seconds >= self._timeout:
            raise errors.BodyBroken(f"no byte of the body arrived for {self._timeout:g} seconds")
        return available

    def _shrink_block(self) -> None:
        """Free the unused part of the block. It grows again when bytes arrive."""
        held = self._filled - self._start
        if len(self._block) - held > _MAX_LINE:
            self._block = self._block[self._start : self._filled]
            self._start, self._filled = 0, held

    def _begin_receiving(self) -> None:
        if self._expects_continue:
            self._expects_continue = False
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._has_timeout:
            self._set_timeout()

    def _receive(self, view: memoryview, *, whole: bool = True) -> int:
        """Receive at least one byte, and as many as fit if they come soon; 0 if the client ended the connection."""
        self._begin_receiving()
        # MSG_WAITALL fills a buffer with one call and one wake-up. Such a read ends after SO_RCVTIMEO at the latest,
        # with the bytes that came. TLS has no such flag, and returns one record at a time.
        flags = socket.MSG_WAITALL if whole and self._plain else 0
        started = time.monotonic()
        while True:
            try:
                got = self._sock.recv_into(view, 0, flags)
                self._waited_seconds += time.monotonic() - started
                self._waited_bytes += got
                self._silent_seconds = 0.0
                if self._waited_seconds >= _RATE_SECONDS:
                    self._check_rate()
                return got
            except BlockingIOError:
                if time.monotonic() < started + self._timeout:
                    continue
                raise errors.BodyBroken(f"no byte of the body arrived for {self._timeout:g} seconds") from None
            except TimeoutError:
                raise errors.BodyBroken(f"no byte of the body arrived for {self._timeout:g} seconds") from None
            except OSError as exc:
                raise errors.BodyBroken("the connection broke within the body") from exc

    def _check_rate(self) -> None:
        if self._waited_bytes < self._rate * self._waited_seconds:
            raise errors.BodyBroken(f"fewer than {self._rate} bytes of the body arrived in a second, for too long")
        self._waited_seconds, self._waited_bytes = 0.0, 0

    def _set_timeout(self) -> None:
        """Set a timeout: on plain sockets in the kernel, of a second, so that the socket stays a blocking one."""
        self._has_timeout = True
        if self._plain:
            _receive_timeout(self._sock, min(1.0, self._timeout))
        else:
            self._sock.settimeout(self._timeout)

    def _clear_timeout(self) -> None:
        if self._has_timeout:
            self._has_timeout = False
            with contextlib.suppress(OSError):
                if self._plain:
                    _receive_timeout(self._sock, 0)
                else:
                    self._sock.settimeout(None)

    def _end_body(self) -> None:
        self._ended = True
        self._block = bytearray()
        self._start = self._filled = 0
        self._clear_timeout()


def _readable(sock: socket.socket, seconds: float = 0.0) -> bool:
    poll = select.poll()  # unlike select.select, it takes descriptors above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _bytes_in_kernel(sock: socket.socket) -> int:
    """How many bytes the kernel holds for us."""
    try:
        (available,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))
    except (OSError, ValueError) as exc:
        raise errors.BodyBroken("the connection broke within the body") from exc
    return int(available)


def _receive_timeout(sock: socket.socket, seconds: float) -> None:
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    )
