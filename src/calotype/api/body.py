"""Reads the body of a request, on any WSGI server.

`source` makes the source for `images/stream.py`. Our own server's body is one already. For other servers this module
makes sure that a body that ends early is an error. A server that cannot pass on chunked bodies is refused, because it
would show an empty body and so make an empty image.

uWSGI closes a connection without reading the rest of the body, so the client may never see the answer: `drain` reads
it. Small JSON bodies are read in `api/request.py`.
"""

import contextlib
import select
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

from calotype import errors

#: The size of reads from generic servers, bytes. Smaller reads cost more calls, larger ones only memory.
_STEP = 1 << 20
#: How much is read of a refused body, bytes, so that its client sees the answer.
_DRAIN = 8 << 20
_PAUSE = 200  #: A refused client that sends nothing for so many milliseconds is taken to wait for the answer.
_SOURCE = "calotype.source"

_Environ = MutableMapping[str, Any]  # as WSGI defines it


class Source(Protocol):
    """A source of bytes, as `images/stream.py` defines it."""

    def ready(self, size: int) -> int: ...

    def readinto(self, view: memoryview) -> int: ...


def source(environ: _Environ) -> Source:
    """The body of this request. Raises `Invalid` for a bad Content-Length, `NotSupported` if it cannot be read."""
    length = content_length(environ)
    raw = environ["wsgi.input"]
    if getattr(raw, "keeps_its_length", False):
        own: Source = raw  # our server's
        return own
    if _SOURCE not in environ:
        if not _chunked(environ):
            read, remaining = raw.read, length or 0
        else:
            read, remaining = raw.read if environ.get("wsgi.input_terminated") else _uwsgi_chunks(environ), None
        environ[_SOURCE] = _Reads(read, remaining, _uwsgi_continue if _waits(environ) else None)
    found: Source = environ[_SOURCE]
    return found


def drain(environ: _Environ) -> None:
    """Under uWSGI, read and drop the rest of a body, up to `_DRAIN` bytes. Raises nothing."""
    if "uwsgi.version" not in environ:
        return
    with contextlib.suppress(errors.CalotypeError):  # the client has its answer already
        if not has_body(environ):
            return
        rest, remaining, scratch = source(environ), _DRAIN, memoryview(bytearray(64 << 10))
        poll = select.poll()
        poll.register(_uwsgi().connection_fd(), select.POLLIN)
        while remaining > 0 and poll.poll(_PAUSE) and (got := rest.readinto(scratch)):
            remaining -= got


def content_length(environ: _Environ) -> int | None:
    """The announced size of the body in bytes, None without one. Raises `Invalid` if it is no plain number."""
    text = environ.get("CONTENT_LENGTH")
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise errors.Invalid("Content-Length is not a number of bytes")
    return int(text)


def has_body(environ: _Environ) -> bool:
    """Whether the request carries a body of at least one byte, or one whose size is not announced."""
    return _chunked(environ) or bool(content_length(environ))


def is_empty(environ: _Environ) -> bool:
    """Whether the body is empty. For a chunked body this waits for the first byte, and removes it from the body.

    Raises what `source` raises, and `BodyBroken`.
    """
    if not has_body(environ):
        return True
    return _chunked(environ) and not source(environ).readinto(memoryview(bytearray(1)))


def _chunked(environ: _Environ) -> bool:
    codings: str = environ.get("HTTP_TRANSFER_ENCODING", "")
    return codings.rpartition(",")[2].strip().lower() == "chunked"


def _waits(environ: _Environ) -> bool:
    """Whether the client waits for `100 Continue`, which this server leaves to us."""
    return "uwsgi.version" in environ and environ.get("HTTP_EXPECT", "").lower() == "100-continue"


def _uwsgi_continue() -> None:
    uwsgi = _uwsgi()
    uwsgi.send(uwsgi.connection_fd(), b"HTTP/1.1 100 Continue\r\n\r\n")


def _uwsgi_chunks(environ: _Environ) -> Callable[[int], bytes]:
    """uWSGI's function that reads chunked bodies: it leaves `wsgi.input` empty for them."""
    if "uwsgi.version" in environ and hasattr(_uwsgi(), "chunked_read"):
        return lambda _size: bytes(_uwsgi().chunked_read())
    raise errors.NotSupported(
        "this server cannot read a body in chunks: send it with a Content-Length, or run `calotype serve`"
    )


def _uwsgi() -> Any:
    """A module that exists only inside of uWSGI."""
    try:
        import uwsgi  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return None
    return uwsgi


class _Reads:
    """A source made of a `read(size)`. `remaining` is the size of the rest, None if the server marks the end.

    `go_on` is called before the first read; it tells a client that waits for `100 Continue` to send the body.
    """

    def __init__(
        self, read: Callable[[int], bytes], remaining: int | None, go_on: Callable[[], None] | None = None
    ) -> None:
        self._read = read
        self._go_on = go_on
        self._remaining = remaining
        self._held = memoryview(b"")
        self._ended = False

    def ready(self, size: int) -> int:
        if self._go_on is not None:
            self._go_on()
            self._go_on = None
        if not self._held and not self._ended and self._remaining != 0:
            self._held = memoryview(self._next(min(size, _STEP)))
        return len(self._held) or 1

    def readinto(self, view: memoryview) -> int:
        self.ready(len(view))
        got = min(len(view), len(self._held))
        view[:got] = self._held[:got]
        # An empty view of the old piece would keep its memory while the next byte is waited for.
        self._held = self._held[got:] if got < len(self._held) else memoryview(b"")
        return got

    def _next(self, size: int) -> bytes:
        """The next bytes of the body, waiting for them if need be; empty at the end."""
        if self._remaining is not None:
            size = min(size, self._remaining)
        try:
            data = self._read(size)
        except Exception as exc:
            # each server raises its own exceptions if a client disconnects or breaks the protocol
            raise errors.BodyBroken("the request body broke off") from exc
        if not data:
            self._ended = True
            if self._remaining:
                raise errors.BodyBroken(f"the body ended {self._remaining} bytes before its Content-Length")
        elif self._remaining is not None:
            self._remaining -= len(data)
        return data
