"""What is fuzzed: functions that take any bytes and fail when the code beneath breaks a promise.

Each code may refuse by one of our errors, and only by those that the front door answers with 4xx. Whatever else is
raised, and whatever contradicts what the accepted input said, is a finding. `__main__.py` feeds them, `corpus.py` has
the inputs that are fed again with every `make test`.
"""

import contextlib
import json
import re
import socket
import types
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import quote_from_bytes

import falcon.testing
from gunicorn.http.body import ChunkedReader  # type: ignore[import-untyped]

from calotype import errors
from calotype.api import errors as api_errors
from calotype.api import listing, metadef_schemas, metadef_views, patch, ranges, request, schemas
from calotype.api.schemas import Schemas
from calotype.auth import basic
from calotype.db import filters, metadefs
from calotype.images.inspection import FormatRules
from calotype.images.stream import Passing
from calotype.socket_body import SocketBody
from calotype.transfers import Transfers

SCHEMAS = Schemas(
    "raw qcow2 vhd vhdx vmdk vdi iso ami ari aki luks gpt".split(), "bare ovf ova docker ami ari aki".split()
)
_NOON = datetime(2026, 1, 1, 12)
FORMATS = (b"raw", b"qcow2", b"vhd", b"vhdx", b"vmdk", b"vdi", b"iso", b"luks", b"gpt", b"qed")


def _refused(exc: errors.CalotypeError) -> None:
    """An error that may answer broken input: its status is 4xx, its message short and printable as UTF-8."""
    assert 400 <= api_errors.status_of(exc) < 500, exc
    assert 0 < len(str(exc).encode()) < 4000, exc


def body(data: bytes) -> Any:
    """JSON bodies; what was read, None where it was refused."""
    req = falcon.Request(falcon.testing.create_environ(method="POST", body=data or b" "))
    try:
        found = request.json_body(req)
    except errors.CalotypeError as exc:
        _refused(exc)
        return None
    text = json.dumps(found, ensure_ascii=False)
    text.encode()  # no surrogates
    assert json.loads(data) == found
    return found


def steps(data: bytes) -> None:
    """Patches: a byte chooses the media type, the rest is the body."""
    found = body(data[1:])
    if found is None:
        return
    media = patch.V20 if data[:1] == b"0" else patch.V21
    try:
        changes = patch.changes(found, media, SCHEMAS)
    except errors.CalotypeError as exc:
        _refused(exc)
        return
    assert len(changes) == len(found)
    for change in changes:
        assert change.op in ("add", "replace", "remove")
        assert change.name
        assert not change.name.startswith("os_glance")


def pointer(data: bytes) -> None:
    """JSON pointers: those that are accepted name one thing, and come out of it again."""
    path = data.decode("utf-8", "replace")
    for step, media in (({"op": "remove", "path": path}, patch.V21), ({"remove": path}, patch.V20)):
        try:
            (change,) = patch.changes([step], media, SCHEMAS)
        except errors.CalotypeError as exc:
            _refused(exc)
            continue
        assert path[1:].strip() == change.name.replace("~", "~0").replace("/", "~1")


def image(data: bytes) -> None:
    """Records: what the schema accepts, columns can hold."""
    found = body(data)
    if not isinstance(found, dict):
        return
    try:
        SCHEMAS.check_image(found)
    except errors.CalotypeError as exc:
        _refused(exc)
        return
    for name, value in found.items():
        assert 0 < len(name) <= 255
        assert isinstance(value, str | int | bool | list | None)
        if isinstance(value, str):
            assert len(value.encode()) <= 65_535
        elif isinstance(value, int):
            assert 0 <= value < 2**31 or name in ("size", "virtual_size")


def namespace(data: bytes) -> None:
    """Namespaces of metadata definitions: what is accepted fits its columns, and comes out of them again."""
    found = body(data)
    if not isinstance(found, dict):
        return
    try:
        schemas.check(metadef_schemas.NAMESPACE, found)
        new = metadef_views.to_definitions(found, "red", _NOON)
    except errors.CalotypeError as exc:
        _refused(exc)
        return
    assert 0 < len(new.namespace.name) <= 80
    kinds: Any = ((metadefs.PROPERTY, new.properties), (metadefs.OBJECT, new.objects), (metadefs.TAG, new.tags))
    for kind, part in ((kind, part) for kind, several in kinds for part in several):
        columns = kind.columns(part)
        assert 0 < len(part.name) <= 80
        assert all(value is None or len(value.encode()) <= 65_535 for value in columns.values())
        row = types.SimpleNamespace(**columns, name=part.name, created_at=_NOON, updated_at=_NOON)
        assert kind.columns(kind.read(row)).keys() == columns.keys()
    for link in new.associations:
        assert 0 < len(link.resource_type) <= 80
    for prefix in (None, "x"):
        json.dumps(metadef_views.definitions(new, prefix), allow_nan=False)


def span(data: bytes) -> None:
    """`Range` and `Content-Range`: a line with a size, then the header."""
    first, _, rest = data.partition(b"\n")
    size = int.from_bytes(first[:6], "big")
    header = rest.decode("latin-1")
    for parse in (ranges.parse, ranges.parse_content_range):
        try:
            found = parse(header, size)
        except errors.CalotypeError as exc:
            _refused(exc)
            continue
        assert found is None or 0 < len(found) <= ranges.MAX_PARTS
        seen = set[int]()
        for offset, length in found or ():
            assert 0 <= offset < offset + length <= size, (found, size)
            assert offset not in seen
            seen.add(offset)


def query(data: bytes) -> None:
    """Queries of lists, down to the conditions and the order."""
    environ = falcon.testing.create_environ()
    environ["QUERY_STRING"] = re.sub(
        r"[^!-~]", lambda found: quote_from_bytes(found[0].encode("latin-1")), data.decode("latin-1")
    )
    try:
        wanted = listing.query(request.params(falcon.Request(environ)), default_limit=25, most=1000)
    except errors.CalotypeError as exc:
        _refused(exc)
        return
    assert 0 <= wanted.limit <= 1000
    tests, order = filters.FilterShape.of(wanted), filters.Order.of(wanted)
    if tests.count < 8:
        assert len(tests.conditions()) == tests.count - ("owner" in tests.single)
    order.by()
    assert {"created_at", "id"} & {name for name, _ in order.keys}
    filters.values(wanted)


def credentials(data: bytes) -> None:
    """The Authorization header."""
    with contextlib.suppress(errors.Unauthenticated):
        name, password = basic._parse(data.decode("latin-1"))
        name.encode()
        password.encode()


class _Unreader:
    """gunicorn's, over a socket; some bytes were read ahead with the head."""

    def __init__(self, sock: socket.socket, ahead: bytes) -> None:
        self.sock = sock
        self.ahead = ahead

    def take_buffered(self) -> bytes:
        found, self.ahead = self.ahead, b""
        return found

    def unread(self, data: bytes) -> None:
        self.ahead = data + self.ahead


def chunks(data: bytes) -> None:
    """Chunked bodies: bytes tell how many come with the head and how much is read at a time; compared with a plain reader."""
    ahead, step, raw = data[0] if data else 0, 1 + (data[1] if len(data) > 1 else 0), data[2:60_002]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(raw[ahead:])
        theirs.shutdown(socket.SHUT_WR)
        unreader = _Unreader(ours, raw[:ahead])
        reader = object.__new__(ChunkedReader)
        req = types.SimpleNamespace(
            unreader=unreader, _expected_100_continue=False, body=types.SimpleNamespace(reader=reader)
        )
        found = SocketBody(req, 1.0)
        seen, view = bytearray(), memoryview(bytearray(step))
        try:
            while found.ready(step) and (got := found.readinto(view)):
                seen += view[:got]
            whole = True
        except errors.BodyBroken:
            whole = False
        expected = _plain(raw)
        assert (expected is not None) == whole, (raw, expected, seen)
        if expected is not None:
            content, rest = expected
            assert content == seen
            left = unreader.ahead
            while more := ours.recv(65536):
                left += more
            assert left == rest, "the next request begins elsewhere"


def _plain(raw: bytes) -> tuple[bytes, bytes] | None:
    """Content and rest of a chunked body by RFC 9112 §7.1 and the limits of ours; None where it breaks them."""
    content, overhead = b"", 0
    while True:
        line, end, raw = raw.partition(b"\n")
        size = re.fullmatch(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r", line)
        if not end or not size or len(line) >= 4096:
            return None
        count = int(size[1], 16)
        overhead = max(0, overhead + 64 + len(line) + 1 - count)
        if overhead > 512 << 10:
            return None
        if not count:
            break
        content += raw[:count]
        if raw[count : count + 2] != b"\r\n":
            return None
        raw = raw[count + 2 :]
    seen = 0
    while True:
        line, end, raw = raw.partition(b"\n")
        if not end or len(line) >= 4096:
            return None
        if line == b"\r":
            return content, raw
        seen += len(line) + 1
        if seen > 32 << 10 or not re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r", line):
            return None


def format_(data: bytes) -> None:
    """Image data: the first byte chooses what the image is declared to be."""
    declared = FORMATS[data[0] % len(FORMATS)].decode() if data else "raw"
    content = data[1:]
    rest = memoryview(content)

    def readinto(view: memoryview) -> int:
        nonlocal rest
        got = min(len(view), len(rest))
        view[:got] = rest[:got]
        rest = rest[got:]
        return got

    source = types.SimpleNamespace(ready=lambda size: size, readinto=readinto)
    seen = bytearray()
    sink: Any = types.SimpleNamespace(window=0, put=lambda piece: seen.extend(piece.view))
    try:
        with Passing(
            source,
            Transfers(64 << 20, 1),
            expect=None,
            cap=1 << 40,
            hash_algo="sha256",
            md5=False,
            disk_format=declared,
            container_format="bare",
            rules=FormatRules(),
        ) as passing:
            passing.run(sink)
    except errors.CalotypeError as exc:
        _refused(exc)
        return
    assert seen == content
    assert passing.virtual_size is None or 0 <= passing.virtual_size < 2**63


TARGETS: dict[str, Callable[[bytes], Any]] = {
    "body": body,
    "chunks": chunks,
    "credentials": credentials,
    "format": format_,
    "image": image,
    "namespace": namespace,
    "patch": steps,
    "pointer": pointer,
    "query": query,
    "range": span,
}
