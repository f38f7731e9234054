"""How the application reads the body of a request, on any WSGI server.

`source` gives what `images/stream.py` reads from. Our own server's body does all that is needed by itself and is
used as it is; on others the promise is kept here: an end before the announced end is an error, never an end. A
server that cannot hand over chunked bodies is refused rather than believed, as it would make an empty image.
Small JSON bodies are read in `api/request.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from calotype import errors

#: 1 MiB: what generic servers are asked for at a time. Smaller reads cost more turns, larger ones only memory.
_STEP = 1 << 20

_Environ = Mapping[str, Any]  # WSGI's own idea of it


class Source(Protocol):
    """Where bytes come from."""

    def readinto(self, view: memoryview) -> int:
        """Put at least one byte into `view` and return how many; 0 at the clean end. Raises `errors.BodyBroken`."""


def source(environ: _Environ) -> Source:
    """The body of this request. Raises `Invalid` for a bad Content-Length, `NotSupported` where it cannot be read."""
    length = content_length(environ)
    raw = environ["wsgi.input"]
    if getattr(raw, "keeps_its_length", False):
        own: Source = raw  # our server's
        return own
    if _chunked(environ):
        if environ.get("wsgi.input_terminated"):
            return _Reads(raw.read, None)
        return _Reads(_uwsgi_chunks(environ), None)
    return _Reads(raw.read, length or 0)


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


def _chunked(environ: _Environ) -> bool:
    codings: str = environ.get("HTTP_TRANSFER_ENCODING", "")
    return codings.rpartition(",")[2].strip().lower() == "chunked"


def _uwsgi_chunks(environ: _Environ) -> Callable[[int], bytes]:
    """uWSGI leaves `wsgi.input` empty for chunked bodies and has a function of its own."""
    if "uwsgi.version" in environ:
        try:
            import uwsgi  # type: ignore[import-untyped,import-not-found,unused-ignore]  # exists only inside of uWSGI
        except ImportError:
            pass
        else:
            if hasattr(uwsgi, "chunked_read"):
                return lambda _size: bytes(uwsgi.chunked_read())
    raise errors.NotSupported(
        "this server cannot read a body in chunks: send it with a Content-Length, or run `calotype serve`"
    )


class _Reads:
    """A source made of a `read(size)`; `left` is what the body still owes, None where the server marks the end."""

    def __init__(self, read: Callable[[int], bytes], left: int | None) -> None:
        self._read = read
        self._left = left
        self._held = memoryview(b"")
        self._ended = False

    def readinto(self, view: memoryview) -> int:
        if not self._held:
            if self._ended or self._left == 0:
                return 0
            size = min(len(view), _STEP)
            if self._left is not None:
                size = min(size, self._left)
            try:
                data = self._read(size)
            except Exception as exc:
                # each server has exceptions of its own for a client that left or broke the rules
                raise errors.BodyBroken("the request body broke off") from exc
            if not data:
                self._ended = True
                if self._left:
                    raise errors.BodyBroken(f"the body ended {self._left} bytes before its Content-Length")
                return 0
            if self._left is not None:
                self._left -= len(data)
            self._held = memoryview(data)
        got = min(len(view), len(self._held))
        view[:got] = self._held[:got]
        self._held = self._held[got:]
        return got
