"""Image data over HTTP: PUT, GET and HEAD of `/v2/images/{image_id}/file`, and PUT of `/stage`."""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

import falcon

from calotype import errors
from calotype.api import body, conditions, ranges
from calotype.api.images import known_id
from calotype.api.request import caller, integer, no_body, params, service
from calotype.context import Context
from calotype.images import data, imports
from calotype.images.data import Download
from calotype.images.stream import Source
from calotype.service import Service
from calotype.stores.base import Body

_OCTETS = "application/octet-stream"
#: If sendfile cannot be used, the server reads a file in blocks of this size, bytes; Falcon's default is 8 KiB.
_STEP = 1 << 20


def upload(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """PUT /v2/images/{image_id}/file"""
    source, size, length = _incoming(req)
    store_name = req.get_header("x-image-meta-store")
    data.upload(service(req), caller(req), known_id(image_id), source, store_name=store_name, size=size, length=length)
    resp.status = 204


def stage(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """PUT /v2/images/{image_id}/stage"""
    source, size, length = _incoming(req)
    imports.stage(service(req), caller(req), known_id(image_id), source, size=size, length=length)
    resp.status = 204


def _incoming(req: falcon.Request) -> tuple[Source, int | None, int | None]:
    """The data of a request, the announced size of the image, and the length of the body."""
    if (req.content_type or "").partition(";")[0].strip().lower() != _OCTETS:
        raise errors.UnsupportedMedia(f"Send image data as {_OCTETS}.")
    if (req.get_header("Content-Encoding") or "identity").strip().lower() != "identity":
        raise errors.UnsupportedMedia("Send image data without a Content-Encoding.")
    length = body.content_length(req.env)
    # 0 means unknown.
    size = integer(req.get_header("x-openstack-image-size") or "0", "x-openstack-image-size") or length
    return body.source(req.env), size, length


def download(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """GET and HEAD /v2/images/{image_id}/file"""
    no_body(req)
    svc, ctx = service(req), caller(req)
    prefer = [name.strip() for value in params(req).get("prefer", ()) for name in value.split(",") if name.strip()]
    found = data.prepare(svc, ctx, known_id(image_id), prefer)
    unchanged = conditions.unchanged(req, found.etag, exists=not found.empty)
    if found.empty:
        resp.status = 204
        return
    resp.content_type = _OCTETS
    resp.set_header("Accept-Ranges", "bytes")
    if found.etag:
        resp.set_header("ETag", found.etag)
    if unchanged:
        resp.status = 304
        return
    wanted = _wanted(req, found)
    if wanted is None:
        if found.image.checksum:
            resp.set_header("Content-MD5", found.image.checksum)
        _send(req, resp, svc, ctx, found, 0, found.size)
    elif len(wanted) == 1:
        offset, length = wanted[0]
        resp.status = 206
        resp.set_header("Content-Range", f"bytes {offset}-{offset + length - 1}/{found.size}")
        _send(req, resp, svc, ctx, found, offset, length)
    else:
        resp.status = 206
        _send_parts(resp, svc, ctx, found, wanted)


def _wanted(req: falcon.Request, found: Download) -> list[ranges.Range] | None:
    """The ranges to send, None for the whole content. Only GET supports ranges (RFC 9110 §14.2)."""
    if req.method != "GET":
        return None
    condition = req.get_header("If-Range")
    if condition is not None and condition.strip() != found.etag:
        return None  # Weak validators and dates never match, so the whole content is sent.
    if (old := req.get_header("Content-Range")) and req.get_header("Range") is None:
        return ranges.parse_content_range(old, found.size)
    return ranges.parse(req.get_header("Range"), found.size)


def _send(
    req: falcon.Request, resp: falcon.Response, svc: Service, ctx: Context, found: Download, offset: int, length: int
) -> None:
    resp.set_header("Content-Length", str(length))
    content = data.open_(svc, ctx, found, offset=offset, length=length)
    if req.method == "HEAD":
        content.close()
        return
    # The server can use sendfile only if it gets the file itself; around any wrapper it reads and writes.
    on_sent = _on_sent(svc, ctx, found, length)
    whole = offset == 0 and length == found.size and on_sent is None
    file = content.file() if whole or _is_ours(req) else None
    if file is None:
        resp.stream = _Stream(content, on_sent)
        return
    counted: Any = file if on_sent is None else _CountedFile(file, on_sent)
    wrap = req.env.get("wsgi.file_wrapper") if _is_ours(req) else None
    resp.stream = wrap(counted, _STEP) if wrap is not None else counted


def _send_parts(
    resp: falcon.Response,
    svc: Service,
    ctx: Context,
    found: Download,
    wanted: list[ranges.Range],
) -> None:
    boundary = secrets.token_hex(16)
    resp.content_type = f"multipart/byteranges; boundary={boundary}"
    heads = [
        f"\r\n--{boundary}\r\nContent-Type: {_OCTETS}\r\n"
        f"Content-Range: bytes {offset}-{offset + length - 1}/{found.size}\r\n\r\n".encode()
        for offset, length in wanted
    ]
    end = f"\r\n--{boundary}--\r\n".encode()
    resp.set_header("Content-Length", str(sum(map(len, heads)) + sum(length for _, length in wanted) + len(end)))
    # Open the first range before answering, so that a failure is answered with an error. The others are opened later.
    first = data.open_(svc, ctx, found, offset=wanted[0][0], length=wanted[0][1])
    on_sent = _on_sent(svc, ctx, found, sum(length for _, length in wanted))

    def parts() -> Iterator[bytes]:
        count = 0
        try:
            for place, (head, (offset, length)) in enumerate(zip(heads, wanted, strict=True)):
                content = first if place == 0 else data.open_(svc, ctx, found, offset=offset, length=length)
                try:
                    yield head
                    with _breaking_off():
                        for chunk in content:
                            yield chunk
                            count += len(chunk)
                finally:
                    content.close()
            yield end
        finally:
            if on_sent is not None:
                on_sent(count)

    resp.stream = parts()


def _on_sent(svc: Service, ctx: Context, found: Download, length: int) -> Callable[[int], None] | None:
    """A function to call at the end of the answer with the number of bytes sent; None if nobody wants notifications."""
    if not svc.events.wants("image.send"):
        return None
    return partial(data.sent, svc, ctx, found, expected=length)


@contextlib.contextmanager
def _breaking_off() -> Iterator[None]:
    """Raise `OSError` for a store that fails in the middle: the server ends the answer and logs why."""
    try:
        yield
    except errors.StoreError as exc:
        raise OSError(errno.EIO, errors.reason(exc)) from exc


class _Stream:
    """A body that the server iterates and writes. The server always closes it."""

    def __init__(self, content: Body, on_sent: Callable[[int], None] | None) -> None:
        self._content = content
        self._on_sent = on_sent
        self._count = 0

    def __iter__(self) -> Iterator[bytes]:
        with _breaking_off():
            for chunk in self._content:
                yield chunk
                self._count += len(chunk)

    def close(self) -> None:
        try:
            self._content.close()
        finally:
            if self._on_sent is not None:
                self._on_sent(self._count)


class _CountedFile:
    """A file that is sent by sendfile or read. When it is closed it reports how many bytes were sent."""

    def __init__(self, file: IO[bytes], on_sent: Callable[[int], None]) -> None:
        self._file = file
        self._on_sent = on_sent
        self._start = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        self._count = self._read = 0

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, position: int) -> None:
        """`socket.sendfile` calls this at its end, even if the connection broke."""
        self._count = position - self._start

    def read(self, size: int = -1) -> bytes:
        self._count += self._read  # the server has sent the previous block when it reads the next one
        chunk = self._file.read(size)
        self._read = len(chunk)
        return chunk

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            self._on_sent(self._count)


def _is_ours(req: falcon.Request) -> bool:
    """Whether the server's sendfile starts at the file's position, and calls `seek` with the final position.

    uWSGI's starts at the first byte of the file, and so would send wrong bytes.
    """
    return str(req.env.get("SERVER_SOFTWARE", "")).startswith("gunicorn")
