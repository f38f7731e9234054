"""Requests that no honest client sends, as bytes on a socket to a real service.

Each is refused with a clear message, changes nothing, costs little, and leaves the connection closed or ready for the
next request: what a client hid in a request is never answered as one. Chunks against the rules are in
`tests/test_server.py`, plainly wrong values in `test_images.py` and `test_lists.py`; `test_any_request.py` makes
requests up.
"""

import json
import socket
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from tests.support import PASSWORD, Client, Service, names, running

#: What one request may cost the process that serves it: seconds of CPU, bytes of memory.
CPU, MEMORY = 0.1, 16 << 20
#: Seconds of CPU in which a quiet machine adds up a million numbers.
QUIET = 0.015
MIB = 1 << 20
AUTH = b"Authorization: Basic " + b64encode(f"alice:{PASSWORD}".encode())
PATCH = b"Content-Type: application/openstack-images-v2.1-json-patch"
PATCH_20 = b"Content-Type: application/openstack-images-v2.0-json-patch"
DATA = b"Content-Type: application/octet-stream"
CHUNKED = b"Transfer-Encoding: chunked"
#: A request that is hidden in others; it would be answered 204 and leave a tag.
HIDDEN = b"PUT /v2/images/ID/tags/smuggled HTTP/1.1\r\nHost: x\r\n" + AUTH + b"\r\n\r\n"


# --- sending ---------------------------------------------------------------------------------------------


def head(line: bytes, *fields: bytes) -> bytes:
    """A head with a host and credentials; `ID` in it will be the id of an active image, `QUEUED` of a queued one."""
    return b"\r\n".join([line + b" HTTP/1.1", b"Host: localhost", AUTH, *fields, b"", b""])


def sized(line: bytes, body: bytes, *fields: bytes) -> bytes:
    return head(line, b"Content-Length: %d" % len(body), *fields) + body


def post(body: bytes) -> bytes:
    return sized(b"POST /v2/images", body)


def patch(*steps: Any, media: bytes = PATCH) -> bytes:
    return sized(b"PATCH /v2/images/ID", json.dumps(steps).encode(), media)


def add(path: Any, value: Any = "x") -> bytes:
    return patch({"op": "add", "path": path, "value": value})


def get(path: bytes, *fields: bytes) -> bytes:
    return head(b"GET " + path, *fields)


@dataclass
class Answer:
    status: int
    fields: dict[bytes, bytes]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.fields.get(b"connection", b"").lower() == b"close"


class Wire:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """False when it was refused before all was sent; the answer is what counts then."""
        for at in range(0, len(data), MIB):
            try:
                self._socket.sendall(data[at : at + MIB])
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def answer(self) -> Answer | None:
        """The next answer; None when the connection ends."""
        try:
            line = self._file.readline()
        except ConnectionResetError:
            return None
        if not line:
            return None
        fields: dict[bytes, bytes] = {}
        while (field := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = field.partition(b":")
            fields[name.lower()] = value.strip()
        return Answer(int(line.split()[1]), fields, self._file.read(int(fields.get(b"content-length", b"0"))))


def exchange(port: int, raw: bytes, more: Iterable[bytes] = ()) -> Answer:
    """The answer to a request, after a look at what else comes on that connection and on a new one.

    `more` is sent as long as nobody refuses it.
    """
    with Wire(port) as wire:
        wire.send(raw)
        all(map(wire.send, more))
        found = wire.answer()
        assert found is not None, "no answer"
        if found.closes:
            assert wire.answer() is None, "what was hidden in the request was answered"
        else:
            wire.send(get(b"/v2/schemas/member"))
            after = wire.answer()
            assert after is not None
            assert after.status == 200, "the connection goes on with something else than the next request"
            assert json.loads(after.body)["name"] == "member"
    with Wire(port) as wire:
        wire.send(get(b"/healthcheck"))
        healthy = wire.answer()
        assert healthy is not None
        assert healthy.status == 200
    return found


# --- a service with one image ----------------------------------------------------------------------------


@dataclass
class Target:
    service: Service
    image_id: str
    queued_id: str
    worker: psutil.Process
    rest: int  #: bytes of memory that the worker has before anything broken comes

    def raw(self, request: bytes) -> bytes:
        return request.replace(b"QUEUED", self.queued_id.encode()).replace(b"ID", self.image_id.encode())

    def state(self) -> Any:
        """All that the requests could change."""
        admin = self.service.client("admin")
        found = [admin.get("/v2/images?visibility=all&limit=100").json()]
        found.append(admin.get(f"/v2/images/{self.image_id}/members").json())
        return found, names(self.service.images)

    def cpu(self) -> float:
        times = self.worker.cpu_times()
        return float(times.user + times.system)

    def peak(self) -> int:
        """The most memory that the worker ever had, in bytes."""
        text = Path(f"/proc/{self.worker.pid}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) << 10


def warm(client: Client, image_id: str) -> None:
    """Let the service do once what it does for the first time: statements, schemas, threads."""
    steps = [{"op": "add", "path": "/warm", "value": "x"}, {"op": "remove", "path": "/warm"}]
    for _ in range(5):
        assert client.patch(image_id, *steps).status_code == 200
        assert client.get("/v2/images?name=x&tag=y&sort=name").status_code == 200
        assert client.create(name=3).status_code == 400
        assert client.request("POST", "/v2/metadefs/namespaces", json={"namespace": 3}).status_code == 400
        assert client.file(image_id, Range="bytes=0-0").status_code == 206


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with running(tmp_path_factory.mktemp("broken") / "state", plain=True) as service:
        alice = service.client("alice")
        image_id = alice.active(b"some data" * 1000, name="victim")
        alice.request("POST", f"/v2/images/{image_id}/members", json={"member": "blue"})
        warm(alice, image_id)
        assert service.process is not None
        (worker,) = psutil.Process(service.process.pid).children()
        found = Target(service, image_id, alice.queued(), worker, 0)
        found.rest = found.peak()
        yield found


# --- what is refused -------------------------------------------------------------------------------------

TE = b"Transfer-Encoding"
#: A name, what is sent, the statuses that may answer it.
FRAMING: list[tuple[str, bytes, int]] = [
    ("two lengths that differ", head(b"POST /v2/images", b"Content-Length: 2", b"Content-Length: 40") + b"{}" + HIDDEN, 400),
    ("two lengths that agree", head(b"POST /v2/images", b"Content-Length: 2", b"Content-Length: 2") + b"{}" + HIDDEN, 400),
    ("a list of lengths", head(b"POST /v2/images", b"Content-Length: 2, 2") + b"{}" + HIDDEN, 400),
    ("a length with a sign", head(b"POST /v2/images", b"Content-Length: +2") + b"{}" + HIDDEN, 400),
    ("a negative length", head(b"POST /v2/images", b"Content-Length: -2") + b"{}" + HIDDEN, 400),
    ("a length in hex", head(b"POST /v2/images", b"Content-Length: 0x2") + b"{}" + HIDDEN, 400),
    ("a length of 400 digits", head(b"POST /v2/images", b"Content-Length: " + b"9" * 400) + HIDDEN, 400),
    ("a length of 5000 digits", head(b"POST /v2/images", b"Content-Length: " + b"9" * 5000) + HIDDEN, 400),
    ("an empty length", head(b"POST /v2/images", b"Content-Length: ") + HIDDEN, 400),
    ("a length in other digits", head(b"POST /v2/images", b"Content-Length: \xd9\xa2") + b"{}" + HIDDEN, 400),
    ("a length and chunks", head(b"POST /v2/images", b"Content-Length: 5", CHUNKED) + b"0\r\n\r\n" + HIDDEN, 400),
    ("chunks and a length", head(b"POST /v2/images", CHUNKED, b"Content-Length: 5") + b"0\r\n\r\n" + HIDDEN, 400),
    ("chunked twice", head(b"POST /v2/images", TE + b": chunked, chunked") + b"0\r\n\r\n" + HIDDEN, 400),
    ("chunked twice in two fields", head(b"POST /v2/images", CHUNKED, CHUNKED) + b"0\r\n\r\n" + HIDDEN, 400),
    ("a coding that nobody knows", head(b"POST /v2/images", TE + b": xchunked") + b"0\r\n\r\n" + HIDDEN, 501),
    ("chunked, but not last", head(b"POST /v2/images", TE + b": chunked, gzip") + b"0\r\n\r\n" + HIDDEN, 400),
    ("a coding in quotes", head(b"POST /v2/images", TE + b': "chunked"') + b"0\r\n\r\n" + HIDDEN, 501),
    ("a vertical tab before chunked", head(b"POST /v2/images", TE + b": \x0bchunked") + b"0\r\n\r\n" + HIDDEN, 400),
    ("a blank before the colon", head(b"POST /v2/images", TE + b" : chunked") + b"0\r\n\r\n" + HIDDEN, 400),
    ("a length with a blank before the colon", head(b"POST /v2/images", b"Content-Length : 2") + b"{}" + HIDDEN, 400),
    ("a folded field", head(b"POST /v2/images", b"X: a", b" Content-Length: 2") + HIDDEN, 400),
    ("chunks in HTTP/1.0", head(b"POST /v2/images", CHUNKED).replace(b"/1.1", b"/1.0", 1) + b"0\r\n\r\n" + HIDDEN, 400),
    ("a NUL in a field", get(b"/v2/images", b"X: a\0b") + HIDDEN, 400),
    ("a bare CR in a field", get(b"/v2/images", b"X: a\rContent-Length: 9") + HIDDEN, 400),
    ("a bare LF in a field", get(b"/v2/images", b"X: a\nTransfer-Encoding: chunked") + HIDDEN, 400),
    ("a field without a name", get(b"/v2/images", b": x") + HIDDEN, 400),
    ("a field without a colon", get(b"/v2/images", b"nonsense") + HIDDEN, 400),
    ("a name with a blank", get(b"/v2/images", b"X Y: x") + HIDDEN, 400),
    ("a name beyond ASCII", get(b"/v2/images", b"X\xff: x") + HIDDEN, 400),
    ("129 fields", get(b"/v2/images", *[b"X-%d: x" % n for n in range(127)]) + HIDDEN, 431),
    ("a field of 17 KiB", get(b"/v2/images", b"X: " + b"x" * (17 << 10)) + HIDDEN, 431),
    ("a path of 9000 bytes", get(b"/v2/images?" + b"a" * 9000) + HIDDEN, 414),
    ("no version", b"GET /v2/images\r\n\r\n", 400),
    ("a version that is not HTTP", b"GET /v2/images HTPP/1.1\r\nHost: x\r\n\r\n", 400),
    ("HTTP/2 without asking", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("HTTP/9.9", b"GET /v2/images HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", 400),
    ("three words too many", b"GET /v2/images x y HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a NUL in the path", get(b"/v2/im\0ages"), 400),
    ("a method in small letters", head(b"get /v2/images"), 400),
    ("a method with odd letters", head(b"G(E)T /v2/images"), 400),
    ("a host that is none", b"GET http://[::1/v2/images HTTP/1.1\r\nHost: x\r\n\r\n", 400),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "status"), [pytest.param(*case, id=name) for name, *case in FRAMING])
def test_ambiguous_framing_is_refused_and_hides_nothing(target: Target, raw: bytes, status: int) -> None:
    before = target.state()
    found = exchange(target.service.port, target.raw(raw))
    assert found.status == status, found
    assert found.closes
    assert target.state() == before


DEFINED = {"title": "T", "type": "string"}


def define(DEEP: str = "", **values: Any) -> bytes:  # noqa: N803
    """A namespace, of somebody who may not add one."""
    body = json.dumps({"namespace": "n", **values}).replace('"DEEP"', DEEP)
    return sized(b"POST /v2/metadefs/namespaces", body.encode())


DEEP = 100_000
REFUSED: list[tuple[str, bytes, int]] = [
    ("arrays 10^5 deep", post(b"[" * DEEP + b"]" * DEEP), 400),
    ("objects 10^5 deep", post(b'{"a":' * DEEP + b"1" + b"}" * DEEP), 400),
    ("a patch 10^5 deep", sized(b"PATCH /v2/images/ID", b"[" * DEEP + b"]" * DEEP, PATCH), 400),
    ("100 MB announced", head(b"POST /v2/images", b"Content-Length: 100000000") + b"[" * MIB, 413),
    ("a patch of 2 MiB", sized(b"PATCH /v2/images/ID", b" " * (2 * MIB), PATCH), 413),
    ("a member of 2 MiB", sized(b"POST /v2/images/ID/members", b" " * (2 * MIB)), 413),
    ("2 MiB without an end", head(b"POST /v2/images", CHUNKED) + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 32, 413),
    ("a body in chunks of a byte", head(b"POST /v2/images", CHUNKED) + b"1\r\n \r\n" * (MIB // 4), 400),
    ("a body in chunks of a byte, then a large one", head(b"POST /v2/images", CHUNKED) + (b"1\r\n \r\n" * 7_000 + b"10000\r\n" + b" " * 65536 + b"\r\n") * 15 + b"0\r\n\r\n", 400),
    ("a body in chunks of 64 bytes", head(b"POST /v2/images", CHUNKED) + (b"40\r\n" + b" " * 64 + b"\r\n") * (MIB // 64) + b"0\r\n\r\n", 400),
    ("chunk extensions of 4 KB", head(b"POST /v2/images", CHUNKED) + (b"1;" + b"x" * 4000 + b"\r\n \r\n") * 1000, 400),
    ("a path for a body", head(b"GET /v2/images", b"Content-Length: 100000000") + b"x" * MIB, 400),
    ("a key twice, deep inside", post(b'{"tags": [{"a": {"b": 1, "b": 2}}]}'), 400),
    ("a key twice in what is passed over", sized(b"PATCH /v2/images/ID", b'[{"op": "add", "path": "/p", "value": "x", "y": [{"b": 1, "b": 2}]}]', PATCH), 400),
    ("a slash that is escaped", head(b"PUT /v2/images/ID%2Ftags/x"), 404),
    ("Infinity", post(b'{"min_ram": Infinity}'), 400),
    ("-Infinity", post(b'{"min_ram": -Infinity}'), 400),
    ("a number beyond all", post(b'{"min_ram": 1e999}'), 400),
    ("a number of 5000 digits", post(b'{"min_ram": ' + b"9" * 5000 + b"}"), 400),
    ("a number of 4000 digits", post(b'{"min_ram": ' + b"9" * 4000 + b"}"), 400),
    ("a number of 900 KB", post(b'{"min_ram": ' + b"9" * 900_000 + b"}"), 400),
    ("2^63", post(b'{"min_disk": 9223372036854775808}'), 400),
    ("a fraction", post(b'{"min_ram": 1.0}'), 400),
    ("a negative zero", post(b'{"min_ram": -0.0}'), 400),
    ("true for a number", post(b'{"min_ram": true}'), 400),
    ("1 for true", post(b'{"protected": 1}'), 400),
    ("overlong UTF-8", post(b'{"name": "\xc0\xaf"}'), 400),
    ("a surrogate in UTF-8", post(b'{"name": "\xed\xa0\x80"}'), 400),
    ("cut UTF-8", post(b'{"name": "\xe2\x82"}'), 400),
    ("UTF-16", post('{"name": "x"}'.encode("utf-16")), 400),
    ("a byte order mark", post(b"\xef\xbb\xbf{}"), 400),
    ("a raw control character", post(b'{"name": "a\x01b"}'), 400),
    ("a surrogate in a name", post(b'{"\\ud800": "x"}'), 400),
    ("NUL in a tag", post(b'{"tags": ["a\\u0000"]}'), 400),
    ("something after the body", post(b"{} {}"), 400),
    ("a body of blanks", post(b" " * 1000), 400),
    ("an id with a line break", post(b'{"id": "00000000-0000-4000-8000-000000000000\\n"}'), 400),
    ("an id in other digits", post(b'{"id": "\\u06600000000-0000-4000-8000-000000000000"}'), 400),
    ("10^4 properties", post(json.dumps({f"p{n}": "x" for n in range(10_000)}).encode()), 413),
    ("10^4 tags", post(json.dumps({"tags": [f"t{n}" for n in range(10_000)]}).encode()), 413),
    ("10^5 tags", post(json.dumps({"tags": [f"t{n}" for n in range(90_000)]}).encode()), 400),
    ("as many properties as fit", post(json.dumps({f"{n:x}": "" for n in range(30_000)}).encode()), 413),
    ("empty lists", post(b'{"tags": [' + b"[]," * 349_000 + b"[]]}"), 400),
    ("empty objects", post(b'{"tags": [' + b"{}," * 349_000 + b"{}]}"), 400),
    ("small objects", post(b'{"tags": [' + b'{"":0},' * 149_000 + b"{}]}"), 400),
    ("commas in a string", post(b'{"p": "' + b"," * 60_000 + b'", "q": 1}'), 400),
    ("strings and strings", post(b'{"tags": ["' + b'","' * 340_000 + b'"]}'), 400),
    ("quotes", post(b'"' * MIB), 400),
    ("a string without end", post(b'{"a": "' + b"[," * 500_000), 400),
    ("escapes without end", post(b'{"a": "' + b"\\\\" * 500_000), 400),
    ("escaped surrogates", post(b'{"a": "' + b"\\ud83d\\ude00" * 80_000 + b'"}'), 400),
    ("a namespace of 16,000 tags", define(tags=[{"name": f"{n}"} for n in range(16_000)]), 403),
    ("a namespace of 30,000 tags", define(tags=[{"name": f"{n}"} for n in range(30_000)]), 400),
    ("5000 properties with names that are too long", define(properties={f"{n:081}": DEFINED for n in range(5_000)}), 400),
    ("an object that requires 30,000", define(objects=[{"name": "o", "required": [f"{n}" for n in range(30_000)]}]), 400),
    ("a definition 10^4 deep", define(properties={"p": {**DEFINED, "default": "DEEP"}}, DEEP="[" * 10_000 + "]" * 10_000), 400),
    ("a definition 900 deep", define(properties={"p": {**DEFINED, "default": "DEEP"}}, DEEP="[" * 900 + "]" * 900), 400),
    ("a definition with 30,000 values", define(properties={"p": {**DEFINED, "default": [0] * 30_000}}), 400),
    ("4096 steps", patch(*[{"op": "add", "path": f"/p{n}", "value": "x"} for n in range(4096)]), 413),
    ("4096 steps on one name", patch(*[{"op": "add", "path": "/p", "value": f"{n}"} for n in range(4095)], {"op": "remove", "path": "/q"}), 409),
    ("4096 lists of tags", patch(*[{"op": "add", "path": "/tags", "value": [f"{n}"] * 4} for n in range(4095)], {"op": "remove", "path": "/q"}), 409),
    ("4097 steps", patch(*[{"op": "add", "path": "/p", "value": "x"}] * 4097), 400),
    ("no pointer", patch({"op": "add", "value": "x"}), 400),
    ("a pointer to everything", add(""), 400),
    ("a pointer of blanks", add("/ "), 400),
    ("a pointer of slashes", add("/" * 100_000), 400),
    ("a pointer of tildes", add("/" + "~" * 100_000), 400),
    ("a pointer of escapes", add("/" + "~0" * 100_000), 400),
    ("a pointer to a slash and more", add("/a~1b/c"), 400),
    ("a pointer that is a list", add(["/a"]), 400),
    ("a pointer to itself", add("/self"), 403),
    ("a pointer to locations", add("/locations/0/url"), 403),
    ("a reserved name with blanks", add("/ os_glance_x "), 403),
    ("a step with two operations", patch({"add": "/a", "remove": "/b", "value": "x"}, media=PATCH_20), 400),
    ("a step with no operation", patch({"value": "x"}, media=PATCH_20), 400),
    ("steps that are lists", patch([], media=PATCH_20), 400),
    ("a media type twice", patch({}, media=PATCH + b", " + PATCH[14:]), 415),
    ("a parent directory for an id", get(b"/v2/images/.."), 404),
    ("parent directories for an id", get(b"/v2/images/..%2f..%2fetc%2fpasswd"), 404),
    ("parent directories in the open", get(b"/v2/images/../../etc/passwd"), 404),
    ("NUL for an id", get(b"/v2/images/%00"), 404),
    ("an id and NUL", get(b"/v2/images/ID%00"), 404),
    ("an id and a line break", get(b"/v2/images/ID%0d%0aSet-Cookie:%20a"), 404),
    ("an id that is not UTF-8", get(b"/v2/images/%ff%fe"), 404),
    ("half an escape", get(b"/v2/images/%f"), 404),
    ("an escape that is none", get(b"/v2/images/%zz"), 404),
    ("an id of 8000 bytes", get(b"/v2/images/" + b"a" * 8000), 404),
    ("a path of slashes", get(b"/v2" + b"/" * 8000), 404),
    ("a path with a colon", get(b"/v2/images/ID/file:stream"), 404),
    ("a store above", head(b"DELETE /v2/stores/../ID"), 403),
    ("a store above, escaped", head(b"DELETE /v2/stores/..%2f..%2f/ID"), 404),
    ("a store of NUL", head(b"DELETE /v2/stores/%00/ID"), 403),
    ("a store that is not UTF-8", head(b"DELETE /v2/stores/%ff/ID"), 403),
    ("a schema above", get(b"/v2/schemas/..%2f..%2fimage"), 404),
    ("a tag of NUL", head(b"PUT /v2/images/ID/tags/%00"), 400),
    ("a tag that is not UTF-8", head(b"PUT /v2/images/ID/tags/%ff"), 400),
    ("a tag of 300 characters", head(b"PUT /v2/images/ID/tags/" + b"t" * 300), 400),
    ("a tag with a slash", head(b"PUT /v2/images/ID/tags/a%2fb"), 404),
    ("a member of NUL", get(b"/v2/images/ID/members/%00"), 400),
    ("a member that is a list", sized(b"POST /v2/images/ID/members", b'{"member": ["blue"]}'), 400),
    ("a member of 100 KB", sized(b"POST /v2/images/ID/members", b'{"member": "' + b"x" * 100_000 + b'"}'), 400),
    ("a status that is a list", sized(b"PUT /v2/images/ID/members/blue", b'{"status": ["accepted"]}'), 400),
    ("a store of bytes", sized(b"PUT /v2/images/QUEUED/file", b"x", DATA, b"x-image-meta-store: \xff../"), 400),
    ("a store above, in a header", sized(b"PUT /v2/images/QUEUED/file", b"x", DATA, b"x-image-meta-store: ../local"), 400),
    ("a size that is none", sized(b"PUT /v2/images/QUEUED/file", b"x", DATA, b"x-openstack-image-size: 1e9"), 400),
    ("a size of 5000 digits", sized(b"PUT /v2/images/QUEUED/file", b"x", DATA, b"x-openstack-image-size: " + b"9" * 5000), 400),
    ("a negative size", sized(b"PUT /v2/images/QUEUED/file", b"x", DATA, b"x-openstack-image-size: -1"), 400),
    ("a limit of 5000 digits", get(b"/v2/images?limit=" + b"9" * 5000), 400),
    ("a limit of 2^63", get(b"/v2/images?limit=9223372036854775808"), 400),
    ("a limit in other digits", get(b"/v2/images?limit=%D9%A3"), 400),
    ("a limit with a line break", get(b"/v2/images?limit=1%0a"), 400),
    ("a marker above", get(b"/v2/images?marker=../../etc/passwd"), 400),
    ("a marker of 8000 bytes", get(b"/v2/images?marker=" + b"a" * 8000), 400),
    ("a marker and a quote", get(b"/v2/images?marker=ID'%20OR%201=1"), 400),
    ("4000 sort keys", get(b"/v2/images?sort=" + b"x," * 4000), 400),
    ("sort keys with quotes", get(b"/v2/images?sort=name'--"), 400),
    ("8000 quotes", get(b'/v2/images?name=in:"' + b'\\"' * 2000), 400),
    ("quotes and commas", get(b"/v2/images?name=in:" + b'"a",' * 1500 + b'"'), 400),
    ("a year of 5 digits", get(b"/v2/images?created_at=gt:12026-01-01T00:00:00Z"), 400),
    ("the first moment, east of Greenwich", get(b"/v2/images?created_at=0001-01-01T00:00:00%2B14:00"), 400),
    ("257 fields", get(b"/v2/images?" + b"&".join(b"a%d=x" % n for n in range(257))), 400),
    ("8000 fields", get(b"/v2/images?" + b"&" * 8000), 400),
    ("a surrogate in a query", get(b"/v2/images?name=%ed%a0%80"), 400),
    ("a range of 5000 digits", get(b"/v2/images/ID/file", b"Range: bytes=" + b"9" * 5000 + b"-"), 416),
    ("a range to 5000 digits", get(b"/v2/images/ID/file", b"Range: bytes=0-" + b"9" * 5000), 416),
    ("an old range to 5000 digits", get(b"/v2/images/ID/file", b"Content-Range: bytes 0-" + b"9" * 5000 + b"/*"), 416),
    ("an old range of 5000 digits", get(b"/v2/images/ID/file", b"Content-Range: bytes 0-1/" + b"9" * 5000), 416),
    ("a range that ends before it begins", get(b"/v2/images/ID/file", b"Range: bytes=5-3"), 416),
    ("a range in other digits", get(b"/v2/images/ID/file", b"Range: bytes=\xd9\xa3-"), 416),
    ("4100 bytes of ranges", get(b"/v2/images/ID/file", b"Range: bytes=" + b"0-,2-," * 700), 416),
    ("33 ranges", get(b"/v2/images/ID/file", b"Range: bytes=" + b",".join(b"%d-%d" % (n, n) for n in range(0, 99, 3))), 416),
    ("a range of commas", get(b"/v2/images/ID/file", b"Range: bytes=" + b"," * 4000), 416),
    ("store names without end", get(b"/v2/images/ID/file?prefer=" + b"a," * 4000), 400),
    ("credentials beyond ASCII", b"GET /v2/images HTTP/1.1\r\nHost: x\r\nAuthorization: Basic \xff\xfe\r\n\r\n", 401),
    ("credentials that are not base64", b"GET /v2/images HTTP/1.1\r\nHost: x\r\nAuthorization: Basic !!!\r\n\r\n", 401),
    ("credentials that are not UTF-8", b"GET /v2/images HTTP/1.1\r\nHost: x\r\nAuthorization: Basic /w==\r\n\r\n", 401),
    ("credentials of 16000 bytes", b"GET /v2/images HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + b"A" * 16000 + b"\r\n\r\n", 401),
    ("a request id of 5000 bytes", get(b"/v2/images", b"X-Openstack-Request-Id: " + b"x" * 5000), 431),
    ("a method that nobody knows", head(b"BREW /v2/images"), 501),
    ("a tunnel", head(b"CONNECT localhost:22"), 300),
    ("a star", head(b"OPTIONS *"), 404),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "status"), [pytest.param(*case, id=name) for name, *case in REFUSED])
def test_what_is_broken_is_refused_clearly_and_cheaply(target: Target, raw: bytes, status: int) -> None:
    refused(target, raw, status)


LARGE = 100_000_000
#: A name, a head, what follows it 1,600 times, which is more than 100 MB.
ENDLESS: list[tuple[str, bytes, bytes]] = [
    ("with its length", head(b"POST /v2/images", b"Content-Length: %d" % LARGE), b" " * 65536),
    ("as a patch", head(b"PATCH /v2/images/ID", b"Content-Length: %d" % LARGE, PATCH), b"[" * 65536),
    ("in chunks", head(b"POST /v2/images", CHUNKED), b"10000\r\n" + b" " * 65536 + b"\r\n"),
    ("in one chunk", head(b"POST /v2/images", CHUNKED) + b"%x\r\n" % LARGE, b"[" * 65536),
    ("in chunks, for a member", head(b"POST /v2/images/ID/members", CHUNKED), b"10000\r\n" + b'"' * 65536 + b"\r\n"),
]


@pytest.mark.parametrize(("raw", "piece"), [pytest.param(*case, id=name) for name, *case in ENDLESS])
def test_100_megabytes_of_json_are_refused_before_they_are_all_there(target: Target, raw: bytes, piece: bytes) -> None:
    refused(target, raw, 413, [piece] * 1600)


def slowness() -> float:
    """How many times the CPU of a quiet machine the same work takes here and now: others share caches and cores."""
    begun = time.thread_time()
    sum(range(1_000_000))
    return max(1.0, (time.thread_time() - begun) / QUIET)


def refused(target: Target, raw: bytes, status: int, more: Iterable[bytes] = ()) -> None:
    before = target.state()
    spent = []
    for _ in range(3):  # other work of the machine costs CPU as well, but not each time
        begun = target.cpu()
        found = exchange(target.service.port, target.raw(raw), more)
        spent.append(target.cpu() - begun)
        assert found.status == status, found
        if spent[-1] <= CPU * slowness():
            break
    else:
        pytest.fail(f"{spent} seconds of CPU")
    assert target.peak() - target.rest <= MEMORY, f"{(target.peak() - target.rest) >> 20} MiB of memory"
    if status >= 400:
        message = found.body.decode()
        assert 10 < len(message) < 1000, message
        assert "Traceback" not in message
        assert str(target.service.state) not in message
        assert target.state() == before


def links(port: int, *fields: bytes, version: bytes = b"1.1") -> tuple[Answer, bytes]:
    """The answer to a request whose answer holds a link, and the link."""
    with Wire(port) as wire:
        wire.send(
            b"GET /v2 HTTP/" + version + b"\r\n" + b"".join(field + b"\r\n" for field in (*fields, AUTH)) + b"\r\n"
        )
        found = wire.answer()
    assert found is not None
    return found, found.fields.get(b"location", b"")


HOSTS = [
    b"", b" ", b"evil@host/path?x", b"user:pw@host", b"host/path", b"host?x", b"host#x", b"host\\x", b"a b", b"a,b", b"<x>", b'"',
    b"\x80", b"\xff\xfe", b"h\xc3\xb6st", b"host:port", b"host:-1", b"host:65536", b"host:999999", b"host:1:2", b":80", b"[::1", b"::1",
    b"[zz]", b"[::1]x", b"[1:2]", b"[]", b"http://host", b"ho%73t",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_is_none_is_refused_and_in_no_link(target: Target, host: bytes) -> None:
    found, _ = links(target.service.port, b"Host: " + host)
    assert found.status == 400
    for value in (*found.fields.values(), found.body):
        assert value.isascii()
        assert host not in value or len(host.strip()) < 2


def test_a_client_of_http_1_1_names_one_host(target: Target) -> None:
    port = target.service.port
    assert links(port)[0].status == 400
    assert links(port, b"Host: a", b"Host: b")[0].status == 400
    assert links(port, b"Host: a", b"Host: a")[0].status == 400
    found, link = links(port, version=b"1.0")
    assert (found.status, link.startswith(b"http://127.0.0.1:")) == (302, True)
    assert links(port, b"Host: evil@x", version=b"1.0")[0].status == 400
    for host in (
        b"images.example.com",
        b"a_b:9292",
        b"XN--HST-TNA.example:65535",
        b"192.0.2.7:80",
        b"[2001:db8::7]:9292",
        b"[::1]",
    ):
        found, link = links(port, b"Host: " + host)
        assert (found.status, link) == (302, b"http://" + host + b"/v2/")


def test_the_host_of_a_whole_url_in_the_request_counts(target: Target) -> None:
    """RFC 9112 §3.2.2: an origin server ignores `Host` beside it."""
    for url, status, link in (
        (b"http://images.example:81", 302, b"http://images.example:81/v2/"),
        (b"HTTP://[2001:db8::7]", 302, b"http://[2001:db8::7]/v2/"),
        (b"http://evil@host", 400, b""),
        (b"http://host:port", 400, b""),
        (b"http://", 400, b""),
    ):
        with Wire(target.service.port) as wire:
            wire.send(b"GET " + url + b"/v2 HTTP/1.1\r\nHost: other\r\n" + AUTH + b"\r\n\r\n")
            found = wire.answer()
        assert found is not None
        assert (found.status, found.fields.get(b"location", b"")) == (status, link), url


EMPTY = b"0\r\n\r\n"


def test_chunks_without_a_byte_are_no_body(target: Target) -> None:
    """Proxies and some clients send them with each request."""
    name = b"/v2/images/QUEUED"
    for line, status in (
        (b"GET /v2/images", 200), (b"GET " + name, 200), (b"GET /v2/images/ID/file", 200), (b"HEAD /v2/images/ID/file", 200),
        (b"PUT " + name + b"/tags/chunked", 204), (b"DELETE " + name + b"/tags/chunked", 204), (b"GET /v2/schemas/image", 200),
        (b"POST /v2/images/ID/actions/reactivate", 204), (b"GET /v2/metadefs/namespaces", 200), (b"GET /v2/info/stores", 200),
    ):  # fmt: skip
        with Wire(target.service.port) as wire:
            for _ in range(2):  # what follows on the connection is the next request
                wire.send(target.raw(head(line, CHUNKED) + EMPTY))
                found = wire.answer()
                assert found is not None
                assert found.status in (status, 404 if line.startswith(b"DELETE") else status), line
                if line.startswith(b"HEAD"):
                    break
    for line in (b"POST /v2/images", b"POST /v2/images/ID/members"):
        found = exchange(target.service.port, target.raw(head(line, CHUNKED) + EMPTY))
        assert (found.status, b"needs a JSON body" in found.body) == (400, True)
    refused(target, head(b"GET /v2/images", CHUNKED) + b"1\r\nx\r\n" + EMPTY, 400)
    refused(target, head(b"GET /v2/images", CHUNKED) + b"x\r\n" + EMPTY, 400)


# --- what is odd, but not wrong --------------------------------------------------------------------------

ODD = [
    "min_ram=3000000000", "min_disk=9223372036854775807", "min_ram_max=9223372036854775807", "min_disk_min=-9223372036854775808",
    "size=9223372036854775807", "virtual_size_min=-9223372036854775808", "created_at=gt:0001-01-01T00:00:00Z",
    "created_at=lt:9999-12-31T23:59:59.999999Z", "updated_at=0001-01-01", "limit=0&marker=", "limit=9223372036854775807",
    "name=in:" + "a," * 3500, "id=in:" + ",".join(["b"] * 3500), "&".join(f"a{n}={n}" for n in range(250)),
    "&".join(f"tag={n}" for n in range(250)), "tag=x&" * 255, "&".join(["created_at=gt:2000-01-01"] * 250),
    "sort=" + ",".join(["name:asc", "size:desc"] * 300), "%3Cscript%3E=1", "__proto__=1", "name='%20OR%201=1--", "name=%25",
    "tag=", "owner=", "=x", "a%0db=c%0ad", "size_min=-1&size_max=-2", "checksum=" + "f" * 7000, "name=" + "%E2%82%AC" * 800,
]  # fmt: skip


@pytest.mark.parametrize("query", ODD, ids=lambda query: query[:30])
def test_an_odd_query_is_answered_on_every_database(alice: Client, query: str) -> None:
    found = alice.get(f"/v2/images?{query}")
    assert found.status_code in (200, 400), found.text
    if found.status_code == 200:
        assert isinstance(found.json()["images"], list)


UNSTORABLE = ["a\0", "\ud800", "\udfff\ud800", "\U0001f600", "\U0010ffff"]


@pytest.mark.parametrize("text", UNSTORABLE, ids=ascii)
def test_what_no_database_keeps_is_refused_everywhere(alice: Client, text: str) -> None:
    image_id = alice.queued(name="plain")
    before = alice.show(image_id)
    escaped = json.dumps(text)
    bodies = [escaped]
    if "\ud800" not in text and "\0" not in text:
        bodies.append(json.dumps(text, ensure_ascii=False))
    image, members = f"/v2/images/{image_id}", f"/v2/images/{image_id}/members"
    media = {"Content-Type": PATCH.partition(b": ")[2].decode()}
    for value in bodies:
        for method, path, body in (
            ("POST", "/v2/images", f'{{"name": {value}}}'), ("POST", "/v2/images", f'{{{value}: "x"}}'),
            ("POST", "/v2/images", f'{{"tags": [{value}]}}'), ("POST", "/v2/images", f'{{"p": {value}}}'),
            ("POST", "/v2/images", f'{{"owner": {value}}}'), ("POST", members, f'{{"member": {value}}}'),
            ("PATCH", image, f'[{{"op": "add", "path": "/p", "value": {value}}}]'),
            ("PATCH", image, f'[{{"op": "remove", "path": "/p", {value}: 1}}]'),
        ):  # fmt: skip
            found = alice.request(method, path, data=body.encode(), headers=media)
            assert found.status_code == 400, (method, path, body)
            assert "not supported" in found.text
    url = quote(text.encode("utf-8", "surrogatepass"))
    for method, path in (
        ("PUT", f"{image}/tags/{url}"), ("DELETE", f"{image}/tags/{url}"), ("GET", f"{members}/{url}"),
        ("DELETE", f"{members}/{url}"), ("GET", f"/v2/images?name={url}"), ("GET", f"/v2/images?{url}=x"),
        ("GET", f"/v2/images?tag={url}"), ("GET", f"/v2/images?marker={url}"),
    ):  # fmt: skip
        assert alice.request(method, path).status_code == 400, (method, path)
    assert alice.show(image_id) == before
    assert alice.get(members).json()["members"] == []
    alice.delete(image_id)
