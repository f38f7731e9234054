"""The same promises behind proxies and under uWSGI, with the configurations that docs/operate/servers.md tells."""

import base64
import contextlib
import hashlib
import random
import socket
import struct
import time
from collections.abc import Iterator

import pytest
import requests

from tests.servers import fronts
from tests.servers.fronts import Front
from tests.support import PASSWORD, Client

pytestmark = pytest.mark.needs("nginx", "haproxy", "uwsgi")

MIB = 1 << 20
DATA = random.Random(9).randbytes(3 * MIB + 17)
_BASIC = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="module", params=fronts.KINDS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    if request.param.endswith("uwsgi") and not fronts.uwsgi_runs_this_python():
        pytest.skip("the uWSGI of this system has another version of Python")
    with fronts.front(request.param, tmp_path_factory.mktemp("front") / "state") as one:
        yield one


@pytest.fixture
def alice(front: Front) -> Client:
    return front.client()


def until_queued(client: Client, image_id: str) -> None:
    end = time.monotonic() + 20
    while (image := client.show(image_id))["status"] != "queued":
        assert time.monotonic() < end, image
        time.sleep(0.1)
    assert (image["size"], image["checksum"]) == (None, None)


class Wire:
    """One connection that sends what it is told."""

    def __init__(self, front: Front) -> None:
        self.sock = front.connect()
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def send(self, method: str, path: str, *lines: str, body: bytes = b"") -> "Wire":
        head = [f"{method} {path} HTTP/1.1", "Host: images.example", f"Authorization: Basic {_BASIC}", *lines, "", ""]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer may be there already
            self.sock.sendall("\r\n".join(head).encode() + body)
        return self

    def put(self, image_id: str, *lines: str, body: bytes = b"") -> "Wire":
        octets = "Content-Type: application/octet-stream"
        return self.send("PUT", f"/v2/images/{image_id}/file", octets, *lines, body=body)

    def answer(self) -> tuple[int | None, dict[str, str], bytes]:
        """The next answer; no status where the connection just ended."""
        with contextlib.suppress(ConnectionResetError):
            if line := self.file.readline():
                status, headers = int(line.split()[1]), {}
                while (line := self.file.readline()) not in (b"\r\n", b""):
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                length = 0 if status in (100, 204) else int(headers.get("content-length", 0))
                return status, headers, self.file.read(length)
        return None, {}, b""

    def end(self) -> None:
        """No more will come."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()
        self.sock.close()


def chunks(data: bytes, size: int = 70_000) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


# --- whole transfers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "a byte", "3 MiB"])
def test_uploads_arrive_unharmed(alice: Client, chunked: bool, data: bytes) -> None:
    image_id = alice.queued()
    answer = alice.put(image_id, iter([data[:1000], data[1000:]]) if chunked and data else data)
    assert answer.status_code == 204, answer.text
    image = alice.show(image_id)
    assert (image["status"], image["size"]) == ("active", len(data))
    assert image["os_hash_value"] == hashlib.sha512(data).hexdigest()
    got = alice.file(image_id)
    assert got.content == data
    assert got.headers.get("Content-MD5", image["checksum"]) == image["checksum"]


def test_links_lead_where_the_client_asked_and_not_where_it_claims(front: Front, alice: Client) -> None:
    claims = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "666",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "host=evil.example;proto=https",
    }
    proxied = "before" in front.kind or front.kind in ("nginx", "haproxy")
    for headers in ({}, claims) if proxied else ({},):  # without a proxy everybody is believed, as configured
        made = alice.request("POST", "/v2/images", json={}, headers=headers)
        assert made.headers["Location"] == f"{alice.url}/v2/images/{made.json()['id']}"
        versions = alice.get("/versions", headers=headers).json()["versions"]
        assert versions[0]["links"][0]["href"] == f"{alice.url}/v2/"


def test_ranges(alice: Client) -> None:
    image_id = alice.active(DATA)
    for text, part in {
        "bytes=0-0": DATA[:1],
        "bytes=1048570-1048590": DATA[1048570:1048591],
        "bytes=2000000-": DATA[2000000:],
        "bytes=-5": DATA[-5:],
    }.items():
        answer = alice.file(image_id, Range=text)
        assert (answer.status_code, answer.content) == (206, part)
    assert alice.file(image_id, Range="bytes=99999999-").status_code == 416
    several = alice.file(image_id, Range="bytes=0-9,1000000-1000009")
    assert several.status_code == 206
    assert DATA[:10] in several.content
    assert DATA[1000000:1000010] in several.content
    old = alice.file(image_id, Content_Range=f"bytes 10-19/{len(DATA)}")
    assert (old.status_code, old.content) == (206, DATA[10:20])


def test_head_and_conditions(alice: Client) -> None:
    image_id = alice.active(DATA)
    answer = alice.request("HEAD", f"/v2/images/{image_id}/file")
    assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, str(len(DATA)), b"")
    etag = alice.file(image_id).headers["ETag"]
    assert alice.file(image_id, If_None_Match=etag).status_code == 304
    assert alice.file(image_id, If_Range=etag, Range="bytes=0-3").content == DATA[:4]


# --- uploads that break ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "reset", "silence"])
@pytest.mark.parametrize("chunked", [False, True])
def test_what_is_cut_is_never_an_image(front: Front, alice: Client, chunked: bool, how: str) -> None:
    if how == "silence" and front.kind.startswith(("nginx", "haproxy", "uwsgi")):
        return  # their time-outs are a minute and more; the promise is the same as for an end
    image_id = alice.queued()
    half = DATA[: len(DATA) // 2]
    with Wire(front) as wire:
        if chunked:
            wire.put(image_id, "Transfer-Encoding: chunked", body=chunks(half))
        else:
            wire.put(image_id, f"Content-Length: {len(DATA)}", body=half)
        end = time.monotonic() + 10
        while alice.show(image_id)["status"] != "saving":
            assert time.monotonic() < end
            time.sleep(0.02)
        if how == "end":
            wire.end()
        if how == "reset":
            wire.reset()
        else:
            assert wire.answer()[0] in (None, 400, 408, 499, 500, 502)  # those from 499 on are the proxy's own
    until_queued(alice, image_id)
    assert not (front.images / image_id).exists()
    assert alice.put(image_id, DATA).status_code == 204
    assert alice.file(image_id).content == DATA


def test_too_much_is_refused_while_it_comes(front: Front, alice: Client) -> None:
    image_id = alice.queued()

    def much() -> Iterator[bytes]:
        for _ in range(fronts.CAP // MIB + 2):
            yield bytes(MIB)

    with contextlib.suppress(requests.ConnectionError):  # a proxy may close before all was sent
        assert alice.put(image_id, much()).status_code == 413
    until_queued(alice, image_id)
    announced = Wire(front).put(image_id, f"Content-Length: {fronts.CAP + 1}")
    assert announced.answer()[0] == 413


# --- expectations, and going on --------------------------------------------------------------------------


def test_100_continue(front: Front, alice: Client) -> None:
    image_id = alice.queued()
    with Wire(front) as wire:
        wire.put(image_id, f"Content-Length: {len(DATA)}", "Expect: 100-continue")
        assert wire.answer()[0] == 100
        wire.sock.sendall(DATA)
        assert wire.answer()[0] == 204
    assert alice.file(image_id).content == DATA
    with Wire(front) as wire:  # it is active by now
        wire.put(image_id, f"Content-Length: {len(DATA)}", "Expect: 100-continue")
        status, _, _ = wire.answer()
        if status == 100 and front.kind != "direct":  # nginx and uWSGI say so by themselves
            with contextlib.suppress(OSError):
                wire.sock.sendall(DATA)
            status, _, _ = wire.answer()
        assert status == 409


def test_a_connection_goes_on_after_errors_where_it_is_kept(front: Front, alice: Client) -> None:
    image_id = alice.active(b"there")
    with Wire(front) as wire:
        for method, path, lines, body, status in (
            ("GET", "/v2/images/no-such", [], b"", 404),
            ("POST", "/v2/images", ["Content-Type: application/json", "Content-Length: 3"], b"{x}", 400),
            ("PUT", f"/v2/images/{image_id}/file", ["Content-Type: text/plain", "Content-Length: 2"], b"ab", 415),
            (
                "PUT",
                f"/v2/images/{image_id}/file",
                ["Content-Type: application/octet-stream", "Content-Length: 2"],
                b"ab",
                409,
            ),
            ("GET", f"/v2/images/{image_id}", [], b"", 200),
        ):
            got, headers, content = wire.send(method, path, *lines, body=body).answer()
            assert got == status, content
            if headers.get("connection", "").lower() == "close":
                assert wire.file.read() == b""
                wire.__exit__()
                wire.__init__(front)  # type: ignore[misc]
    assert alice.file(image_id).content == b"there"


# --- smuggling -------------------------------------------------------------------------------------------

_SECOND = b"DELETE /v2/images/{} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + _BASIC.encode() + b"\r\n\r\n"

#: Heads that two servers could take for bodies of different lengths; the hidden request is what follows a body that is
#: shorter for one of them.
AMBIGUOUS = {
    "length and chunked": ["Content-Length: {all}", "Transfer-Encoding: chunked"],
    "chunked and length": ["Transfer-Encoding: chunked", "Content-Length: {all}"],
    "short length and chunked": ["Content-Length: 5", "Transfer-Encoding: chunked"],
    "two lengths": ["Content-Length: 5", "Content-Length: {all}"],
    "two lengths the other way": ["Content-Length: {all}", "Content-Length: 5"],
    "a list of lengths": ["Content-Length: 5, {all}"],
    "a length with a sign": ["Content-Length: +5"],
    "a length in hex": ["Content-Length: 0x5"],
    "chunked with a space": ["Transfer-Encoding : chunked", "Content-Length: 5"],
    "chunked folded": ["Transfer-Encoding:\r\n chunked", "Content-Length: 5"],
    "chunked with a tab": ["Transfer-Encoding:\tchunked", "Content-Length: 5"],
    "not quite chunked": ["Transfer-Encoding: xchunked", "Content-Length: 5"],
    "chunked twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "chunked, then not": ["Transfer-Encoding: chunked, identity", "Content-Length: 5"],
    "chunked in quotes": ['Transfer-Encoding: "chunked"', "Content-Length: 5"],
    "chunked after a vertical tab": ["Transfer-Encoding: \x0bchunked", "Content-Length: 5"],
    "chunked by a bare line feed": ["X: y\nTransfer-Encoding: chunked", "Content-Length: 5"],
    "chunked by a bare carriage return": ["X: y\rTransfer-Encoding: chunked", "Content-Length: 5"],
}


#: What leaves no doubt: RFC 9112 allows the tab.
CLEAR = {"chunked with a tab"}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_no_request_hides_in_the_body_of_another(front: Front, alice: Client, name: str) -> None:
    """A proxy that takes all for one body, and a service that takes its end for a request, would run what nobody saw."""
    victim = alice.active(b"victim", name="victim")
    hidden = _SECOND.replace(b"{}", victim.encode())
    for body in (b"0\r\n\r\n" + hidden, b"5\r\nhello\r\n0\r\n\r\n" + hidden, b"hello" + hidden):
        image_id = alice.queued()
        with Wire(front) as wire:
            wire.put(image_id, *(line.replace("{all}", str(len(body))) for line in AMBIGUOUS[name]), body=body)
            wire.end()
            first, second = wire.answer()[0], wire.answer()[0]
        if front.kind == "direct" and name not in CLEAR:
            assert first in (400, 501)
            assert second is None
        if alice.get(f"/v2/images/{victim}").status_code == 404:
            # It was run, so it must have been seen as a request all the way: it has an answer of its own.
            assert second == 204
            return
        assert second is None or first is None or second >= 400
