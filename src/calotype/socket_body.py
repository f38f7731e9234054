"""`SocketBody`: the body of a request, received from gunicorn's connection without a copy on the way.

The server (`server.py`) puts it in place of gunicorn's own; the application finds it as `wsgi.input` and reads it
by `api/body.py`, which runs as well on servers that have nothing like it.

What it buys beside gunicorn's own body, in CPU-seconds of a PUT of 512 MiB: 2.75 and not 2.92, in chunks of 64 KiB
2.56 and not 2.65; of 256 MiB in chunks of 4 KiB 1.62 and not 1.83. `python -m bench.worth socket_body`. That is
little: it stays for what it refuses, the silent, the slow and the broken, and for a client that is not told to send
what is refused (`tests/api/test_slow.py`, `tests/api/test_broken_uploads.py`).
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

#: An unread rest of a body this small is read and thrown away, so that the connection can go on.
DRAIN_BYTES = 64 << 10

#: Chunks are cut out of blocks of up to this size, one that stays in the cache between the kernel's copy and ours; the
#: first ones are smaller, for clients that never send as much.
_BLOCK, _FIRST = 64 << 10, 8 << 10
#: What is left of a chunk is received in place, without the block, from this size on.
_DIRECT = 128 << 10
#: The longest chunk-size line with its extensions, and the longest trailer section.
_LINE = 4096
_TRAILERS = 32 << 10
#: How long a client may let us wait before a large block is given back, seconds, and before the reader is told.
_SOON, _WHILE = 0.1, 1.0
#: The most that is waited for at a time without a buffer; the kernel holds it meanwhile.
_WAKE = 64 << 10
#: The largest record of TLS.
_RECORD = 16 << 10
#: How long a client must be slow to be given up, in seconds in which we waited for it.
_SLOW = 60.0
#: What cutting out a chunk costs, as bytes of overhead beside its size line: 2 us, whatever it holds.
_CUT = 64
#: How much more overhead than data a chunked body may have; data makes up for it, so that only needless chunks count.
_OVERHEAD = 512 << 10

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class SocketBody:
    """The body of one HTTP/1 request, received where the reader wants it.

    `ready` and `readinto` are the fast way; the rest is what WSGI asks for. A body that ends before its announced end,
    breaks the rules of its framing, stays silent for `timeout` seconds, or brings fewer than `rate` bytes in each
    second that it is waited for, over a minute of those, raises `errors.BodyBroken` and is never a clean end. Whoever
    first asks for bytes sends `100 Continue` if the client waits for it.
    """

    #: For `api/body.py`: an end before the announced end is an error here, so nobody else has to count.
    keeps_its_length = True

    def __init__(self, req: Any, timeout: float, rate: int = 0) -> None:
        self.failed = False  #: where the next request starts is unknown (gunicorn asks for this, too)
        self._unreader = req.unreader
        self._sock: socket.socket = req.unreader.sock
        self._timeout = timeout
        self._rate = rate
        self._waited, self._got = 0.0, 0  # seconds, and bytes that came in them
        self._silent = 0.0  # seconds since the last byte in which one was waited for
        self._waits = insides.waits_to_send(req)  # gunicorn would say so before the application can refuse
        reader = req.body.reader
        self._chunked = isinstance(reader, ChunkedReader)
        self._length = reader.length if isinstance(reader, LengthReader) else 0
        self._remaining: int = self._length  # of the body, or of the chunk
        self._ended = not self._chunked and self._remaining == 0
        self._timed = False
        self._plain = not isinstance(self._sock, ssl.SSLSocket)
        self._lines = bytearray()  # read ahead by readline
        # chunked only: received bytes that were not looked at yet are _block[_at:_have]
        self._block = bytearray()
        self._at = self._have = 0
        self._size = _FIRST  # of the next block
        self._between = False  # a chunk's data is followed by CRLF
        self._overhead = 0
        self._recent = 0  # size of the last chunk

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
        if self._waits:
            # Who was not told to continue may send the body or not; nobody knows what the next bytes are.
            return True
        if self._chunked:
            self._skip_received()
            return not self._ended
        return self._remaining > DRAIN_BYTES

    def finish(self, seconds: float) -> bool:
        """After the answer: read a small rest. Whether the next request can follow."""
        if not self.must_close() and not self._ended:
            self._timeout = seconds
            until = time.monotonic() + seconds
            scratch = memoryview(bytearray(8192))
            with contextlib.suppress(errors.BodyBroken):
                while self.readinto(scratch) and time.monotonic() < until:
                    pass
        self._untime()
        return self._ended and not self.failed

    # --- for uploads -------------------------------------------------------------------------------------

    def ready(self, size: int) -> int:
        """Wait for `size` bytes without memory for them, but not much longer than a second; how many are there.

        Fewer when no more came in that time, at least 1 at the end, 0 for nothing yet. Of chunked bodies it is a guess.
        """
        if self._lines:
            return len(self._lines)
        if self._ended:
            return 1
        if self.failed:
            raise errors.BodyBroken("the request body broke off earlier")
        try:
            there = self._ready_chunked(size) if self._chunked else self._ready_length(size)
        except BaseException:
            self._fail()
            raise
        if there and not self._plain and not self._ended:
            # More of a record may be missing than ever comes: it is waited for with little memory.
            with memoryview(bytearray(_RECORD)) as record:
                self._lines += record[: self.readinto(record)]
            there = len(self._lines) or 1
        return there

    def _ready_length(self, size: int) -> int:
        return self._ahead() or self._wait(min(size, self._remaining))

    def _ready_chunked(self, size: int) -> int:
        while True:
            held = self._have - self._at
            if self._remaining:
                return held or self._ahead() or self._wait(min(size, self._remaining))
            if self._next_chunk(wait=False):
                if self._ended:
                    return 1
            elif self._ahead() or self._wait(1):
                self._receive_block(_LINE if self._recent >= _DIRECT else self._size)
            else:
                return 0

    def _ahead(self) -> int:
        """How many bytes came together with the head and were not looked at yet."""
        ahead: bytes = self._unreader.take_buffered()
        if ahead:
            self._unreader.unread(ahead)
        return len(ahead)

    def _fail(self) -> None:
        self.failed = True
        self._block = bytearray()
        self._at = self._have = 0
        self._untime()

    # --- WSGI --------------------------------------------------------------------------------------------

    def readinto(self, view: memoryview) -> int:
        """Fill `view` as far as one wait allows, with at least one byte; 0 at the clean end."""
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
            # grown by what arrives: a large `size` alone takes no memory
            have = len(data)
            data.extend(bytes(min(size - have, 1 << 20)))
            with memoryview(data) as view:
                got = self.readinto(view[have:])
            del data[have + got :]
            if not got:
                break
        return bytes(data)

    def readline(self, size: int | None = None) -> bytes:
        """Up to and with the next newline, or `size` bytes."""
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
            got = self._take_ahead(part) or self._receive(part)
        if not got:
            done = self._length - self._remaining
            raise errors.BodyBroken(f"the connection ended after {done} of the {self._length} bytes of the body")
        self._remaining -= got
        if not self._remaining:
            self._end()
        return got

    def _take_ahead(self, view: memoryview) -> int:
        """Bytes of the body that came together with the head."""
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
            held = self._have - self._at
            if held:
                got = min(want, held)
                view[filled : filled + got] = memoryview(self._block)[self._at : self._at + got]
                self._at += got
            elif filled and want < _DIRECT:
                break  # whoever wants more asks again; waiting here would keep what is there from being used
            elif want >= _DIRECT:
                with view[filled : filled + want] as part:
                    got = self._receive(part)
                if not got:
                    raise errors.BodyBroken("the connection ended within a chunk of the body")
            else:
                self._receive_block(self._size)
                continue
            filled += got
            self._remaining -= got
            self._between = not self._remaining
        return filled

    def _next_chunk(self, *, wait: bool) -> bool:
        """Read the lines before the next chunk's data. False if they did not all arrive and `wait` is false."""
        while True:
            line = self._line()
            if line is not None:
                break
            if not wait:
                return False
            # After large chunks the next data is received in place, so not much of it should land in the block.
            self._receive_block(_LINE if self._recent >= _DIRECT else self._size)
        match = _SIZE.fullmatch(line)
        if match is None:
            raise errors.BodyBroken("a chunk of the body has no valid size")
        size = int(match[1], 16)
        self._overhead = max(0, self._overhead + _CUT + len(line) - size)
        if self._overhead > _OVERHEAD:
            raise errors.BodyBroken("the body has too little data for its chunks")
        self._recent = self._remaining = size
        if not size:
            self._trailers()
        return True

    def _line(self) -> bytes | None:
        """The size line of the next chunk, after the end of the one before; None if it was not received yet."""
        at = self._at
        if self._between:
            if self._have - at < 2:
                return None
            if self._block[at] != 13 or self._block[at + 1] != 10:
                raise errors.BodyBroken("a chunk of the body is longer than its size")
            self._between = False
            at = self._at = at + 2
        end = self._block.find(b"\n", at, min(self._have, at + _LINE)) + 1
        if not end:
            if self._have - at >= _LINE:
                raise errors.BodyBroken("a chunk of the body has too long a size line")
            return None
        self._at = end
        return bytes(memoryview(self._block)[at:end])

    def _trailers(self) -> None:
        """Skip what follows the last chunk."""
        seen = 0
        while True:
            end = self._block.find(b"\n", self._at, min(self._have, self._at + _LINE)) + 1
            if not end:
                if self._have - self._at >= _LINE:
                    raise errors.BodyBroken("the body has too long a trailer")
                self._receive_block(_LINE)
                continue
            line = bytes(memoryview(self._block)[self._at : end])
            self._at = end
            if line == b"\r\n":
                break
            seen += len(line)
            if seen > _TRAILERS or not _TRAILER.fullmatch(line):
                raise errors.BodyBroken("the body has too many trailers, or one that is not valid")
        if self._at < self._have:  # the next request
            self._unreader.unread(bytes(memoryview(self._block)[self._at : self._have]))
        self._end()

    def _receive_block(self, size: int) -> None:
        """Receive more behind what the block holds, which is small for as long as nothing comes."""
        ahead: bytes = self._unreader.take_buffered()
        while not ahead and not self._wait(1):
            pass
        held = self._have - self._at
        room = (len(ahead) or size) + held
        if len(self._block) < room:
            grown = bytearray(room)
            grown[:held] = memoryview(self._block)[self._at : self._have]
            self._block = grown
        elif held:
            self._block[:held] = self._block[self._at : self._have]
        self._at, self._have = 0, held
        view = memoryview(self._block)[held:]
        if ahead:
            got = len(ahead)
            view[:got] = ahead
        else:
            got = self._receive(view[:size], whole=False)
            if not got:
                raise errors.BodyBroken("the connection ended before the end of the body")
            if got == self._size < _BLOCK:
                self._size = min(4 * got, _BLOCK)
        self._have += got

    def _skip_received(self) -> None:
        """Pass over what is here already: often only the end of the body is, which nobody had asked for."""
        ahead: bytes = self._unreader.take_buffered()
        if ahead:
            self._unreader.unread(ahead)
        elif self._have == self._at and not _readable(self._sock):
            return
        if self._remaining > DRAIN_BYTES:
            return
        with contextlib.suppress(errors.BodyBroken):
            self.readinto(memoryview(bytearray(DRAIN_BYTES)))
            if not self._ended and not self._remaining and self._have > self._at:
                self.readinto(memoryview(bytearray(DRAIN_BYTES)))

    # --- the socket --------------------------------------------------------------------------------------

    def _wait(self, least: int) -> int:
        """Wait a second for so many bytes, which must be yet to come; how many are there, 1 if only the end is.

        0 if there is nothing, and it is not too long yet. The kernel holds what comes, and the block shrinks meanwhile.
        """
        self._go_on()
        if not self._plain and (there := self._sock.pending()):  # type: ignore[attr-defined]  # decrypted already
            return int(there)
        least = min(least, _WAKE)
        there = _received(self._sock)
        if there >= least:
            return there
        begun = time.monotonic()
        long = max(0.0, min(_WHILE, self._timeout - self._silent))
        wakes = self._plain and least > 1
        try:
            if wakes:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            came = _readable(self._sock, min(_SOON, long))
            if not came:
                self._trim()
                came = _readable(self._sock, max(0.0, long - _SOON))
            if wakes:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except OSError as exc:
            raise errors.BodyBroken("the connection broke within the body") from exc
        there = _received(self._sock) or int(came)
        waited = time.monotonic() - begun
        self._waited += waited
        self._silent = 0.0 if there else self._silent + waited
        if self._silent >= self._timeout:
            raise errors.BodyBroken(f"no byte of the body arrived for {self._timeout:g} seconds")
        return there

    def _trim(self) -> None:
        """Give back what the block does not hold; it grows again when there is something to put into it."""
        held = self._have - self._at
        if len(self._block) - held > _LINE:
            self._block = self._block[self._at : self._have]
            self._at, self._have = 0, held

    def _go_on(self) -> None:
        if self._waits:
            self._waits = False
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._timed:
            self._time()

    def _receive(self, view: memoryview, *, whole: bool = True) -> int:
        """At least one byte, as many as fit if they come soon; 0 if the client ended the connection."""
        self._go_on()
        # MSG_WAITALL fills a buffer with one call and one wake-up. With it a read ends after SO_RCVTIMEO at the
        # latest, with what there is. TLS knows no such flag and hands out one record at a time.
        flags = socket.MSG_WAITALL if whole and self._plain else 0
        begun = time.monotonic()
        while True:
            try:
                got = self._sock.recv_into(view, 0, flags)
                self._waited += time.monotonic() - begun
                self._got += got
                self._silent = 0.0
                if self._waited >= _SLOW:
                    self._check_rate()
                return got
            except BlockingIOError:
                if time.monotonic() < begun + self._timeout:
                    continue
                raise errors.BodyBroken(f"no byte of the body arrived for {self._timeout:g} seconds") from None
            except TimeoutError:
                raise errors.BodyBroken(f"no byte of the body arrived for {self._timeout:g} seconds") from None
            except OSError as exc:
                raise errors.BodyBroken("the connection broke within the body") from exc

    def _check_rate(self) -> None:
        if self._got < self._rate * self._waited:
            raise errors.BodyBroken(f"fewer than {self._rate} bytes of the body arrived in a second, for too long")
        self._waited, self._got = 0.0, 0

    def _time(self) -> None:
        """Limit waiting: on plain sockets by the kernel, a second at a time, and the socket stays a blocking one."""
        self._timed = True
        if self._plain:
            _receive_timeout(self._sock, min(1.0, self._timeout))
        else:
            self._sock.settimeout(self._timeout)

    def _untime(self) -> None:
        if self._timed:
            self._timed = False
            with contextlib.suppress(OSError):
                if self._plain:
                    _receive_timeout(self._sock, 0)
                else:
                    self._sock.settimeout(None)

    def _end(self) -> None:
        self._ended = True
        self._block = bytearray()
        self._at = self._have = 0
        self._untime()


def _readable(sock: socket.socket, seconds: float = 0.0) -> bool:
    poll = select.poll()  # unlike select.select, it takes descriptors above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _received(sock: socket.socket) -> int:
    """Bytes that the kernel holds for us."""
    try:
        (there,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))
    except (OSError, ValueError) as exc:
        raise errors.BodyBroken("the connection broke within the body") from exc
    return int(there)


def _receive_timeout(sock: socket.socket, seconds: float) -> None:
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    )
