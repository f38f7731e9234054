"""How the application reads the body of a request, on any WSGI server.

`source` gives what `images/stream.py` reads from. Our own server's body does all that is needed by itself and is
used as it is; on others the promise is kept here: an end before the announced end is an error, never an end. A
server that cannot hand over chunked bodies is refused rather than believed, as it would make an empty image. uWSGI
closes a connection without reading what the client still sends, which then never sees the answer: hence `drain`.
Small JSON bodies are read in `api/request.py`.
"""

import contextlib
import select
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

from calotype import errors

#: 1 MiB: what generic servers are asked for at a time. Smaller reads cost more turns, larger ones only memory.
_STEP = 1 << 20
#: What is read of a body that was refused, so that its client sees why.
_DRAIN = 8 << 20
_PAUSE = 200  #: Milliseconds without a byte after which a refused client is taken to wait for the answer.
_SOURCE = "calotype.source"

_Environ = MutableMapping[str, Any]  # WSGI's own idea of it


class Source(Protocol):
    """Where bytes come from, as `images/stream.py` says."""

    def ready(self, size: int) -> int: ...

    def readinto(self, view: memoryview) -> int: ...


def source(environ: _Environ) -> Source:
    """The body of this request. Raises `Invalid` for a bad Content-Length, `NotSupported` where it cannot be read."""
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
    """Under uWSGI, read what the client still sends of a body, as far as that is not too much. Raises nothing."""
    if "uwsgi.version" not in environ:
        return
    with contextlib.suppress(errors.CalotypeError):  # what is wrong with the body was answered already
        if not has_body(environ):
            return
        rest, remaining, scratch = source(environ), _DRAIN, memoryview(bytearray(64 << 10))
        poll = select.poll()
        poll.register(_uwsgi().connection_fd(), select.POLLIN)
        while remaining > 0 and poll.poll(_PAUSE) and (got := rest.readinto(scratch)):
            remaining -= got


def content_length(environ: _Environ) -> int | None:
    """The announced size of the body, None where there is none. Raises `Invalid` for anything but a plain number."""
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
    """Whether the body has no byte. Of a body in chunks the first byte is waited for, and taken off the body.

    Raises what `source` raises, and `BodyBroken`.
    """
    if not has_body(environ):
        return True
    return _chunked(environ) and not source(environ).readinto(memoryview(bytearray(1)))


def _chunked(environ: _Environ) -> bool:
    codings: str = environ.get("HTTP_TRANSFER_ENCODING", "")
    return codings.rpartition(",")[2].strip().lower() == "chunked"


def _waits(environ: _Environ) -> bool:
    """Whether the client sends no body before it is told to, by a server that leaves that to us."""
    return "uwsgi.version" in environ and environ.get("HTTP_EXPECT", "").lower() == "100-continue"


def _uwsgi_continue() -> None:
    uwsgi = _uwsgi()
    uwsgi.send(uwsgi.connection_fd(), b"HTTP/1.1 100 Continue\r\n\r\n")


def _uwsgi_chunks(environ: _Environ) -> Callable[[int], bytes]:
    """uWSGI leaves `wsgi.input` empty for chunked bodies and has a function of its own."""
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
    """A source made of a `read(size)`; `remaining` is what the body still owes, None where the server marks the end.

    `go_on` tells a client that waits for it to send the body; it is called before the first read.
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
        # An empty view would keep all that was read alive while the next byte is waited for.
        self._held = self._held[got:] if got < len(self._held) else memoryview(b"")
        return got

    def _next(self, size: int) -> bytes:
        """What the server has of the body, or hands over when it has come; empty at the end."""
        if self._remaining is not None:
            size = min(size, self._remaining)
        try:
            data = self._read(size)
        except Exception as exc:
            # each server has exceptions of its own for a client that left or broke the rules
            raise errors.BodyBroken("the request body broke off") from exc
        if not data:
            self._ended = True
            if self._remaining:
                raise errors.BodyBroken(f"the body ended {self._remaining} bytes before its Content-Length")
        elif self._remaining is not None:
            self._remaining -= len(data)
        return data
