"""`images/sources.py`: what comes from a URL is the whole file, in its order, or a failure with a reason."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from calotype import errors, net
from calotype.images.inspection import FormatRules
from calotype.images.sources import Pace, RemoteImages, WebSource
from calotype.images.stream import Passing
from calotype.net import Filters, Net
from calotype.transfers import Transfers
from tests.support import until
from tests.webserver import WebServer, certificate, serving, trap

SCHEMES = frozenset({"http", "https"})
FRIENDS = Filters(allowed_schemes=SCHEMES, private_hosts=frozenset({"127.0.0.3", "127.0.0.4", "good.example"}))
CAP = 1 << 40
DATA = os.urandom(3_000_000)
#: For servers that break off: the pauses do not matter, and they have all the time that they need.
PATIENT = Pace(pause=0.01, most_pause=0.02)


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as running:
        yield running


@pytest.fixture(scope="module")
def way() -> Net:
    return Net(FRIENDS, resolve=lambda name, port: ["127.0.0.3"])


def source(way: Net, url: str, **more: Any) -> WebSource:
    return WebSource(way, url, **{"cap": CAP, "pace": PATIENT, **more})


def take(taken: WebSource, step: int = 1 << 18) -> bytes:
    """All that comes, read as `Passing` reads it."""
    found = bytearray()
    block = memoryview(bytearray(step))
    with closing(taken):
        while True:
            while not taken.ready(step):
                pass
            got = taken.readinto(block)
            if not got:
                assert taken.ready(1) == 1
                assert taken.readinto(block) == 0
                assert taken.received == len(found)
                return bytes(found)
            found += block[:got]


def reset(sock: socket.socket) -> None:
    """End a connection in the way of a crash, not of a close."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@dataclass
class Breaking:
    """A file whose server breaks off: each answer ends after so many bytes as is next in `cuts`, and then none does."""

    data: bytes = DATA
    tags: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    cuts: list[int] = field(default_factory=list)
    resets: bool = False
    announces: bool = True  #: whether the first answer tells the size
    change: Callable[["Breaking", dict[str, str]], int | None] | None = None  #: of an answer to a Range: what is sent
    asked: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0

    def __call__(self, handler: Any) -> None:
        handler.close_connection = True
        self.asked.append(dict(handler.headers))
        offset, status = 0, 200
        head: dict[str, str] = {**self.tags}
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if wanted and handler.headers.get("If-Range") in (None, *self.tags.values()):
            offset, status = int(wanted[1]), 206
            head["Content-Range"] = f"bytes {offset}-{len(self.data) - 1}/{len(self.data)}"
        body = self.data[offset:]
        head["Content-Length"] = str(len(body))
        chunked = not self.announces and status == 200
        if chunked:
            del head["Content-Length"]
            head["Transfer-Encoding"] = "chunked"
        if wanted and self.change:
            status = self.change(self, head) or status
            body = body if status in (200, 206) else b""
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in head.items() if value), "", ""]
        cut = self.cuts.pop(0) if self.cuts else None
        if chunked:
            body = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in (body[:70_000], body[70_000:])) + b"0\r\n\r\n"
        with contextlib.suppress(OSError):
            handler.wfile.write("\r\n".join(lines).encode())
            handler.wfile.write(body[:cut])
            self.sent += len(body[:cut])
            if cut is not None and self.resets:
                time.sleep(0.05)  # so that the client has the bytes: a reset drops what it has not read
                reset(handler.connection)


# --- what is data ----------------------------------------------------------------------------------------


def _answer(*lines: str, body: bytes = b"0123456789") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


OK = "HTTP/1.1 200 OK"
CHUNKED = "Transfer-Encoding: chunked"

#: Answers that are whole, and the data in them.
WHOLE = {
    "a length": (_answer(OK, "Content-Length: 10"), b"0123456789"),
    "a length of HTTP/1.0": (_answer("HTTP/1.0 200 OK", "Content-Length: 10"), b"0123456789"),
    "twice the same length": (_answer(OK, "Content-Length: 10", "Content-Length: 10"), b"0123456789"),
    "the same length in a list": (_answer(OK, "Content-Length: 10, 10"), b"0123456789"),
    "nothing": (_answer(OK, "Content-Length: 0", body=b""), b""),
    "chunks": (_answer(OK, CHUNKED, body=b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"), b"0123456789"),
    "chunks with extensions": (_answer(OK, CHUNKED, body=b'A;a=b;c="d"\r\n0123456789\r\n0;x\r\n\r\n'), b"0123456789"),
    "chunks with trailers": (_answer(OK, CHUNKED, body=b"a\r\n0123456789\r\n0\r\nX: y\r\nZ: 1\r\n\r\n"), b"0123456789"),
    "chunks with line ends": (_answer(OK, CHUNKED, body=b"4\r\n\r\n\r\n\r\n0\r\n\r\n"), b"\r\n\r\n"),
    "no chunk": (_answer(OK, CHUNKED, body=b"0\r\n\r\n"), b""),
    "an identity": (_answer(OK, "Content-Encoding: identity", "Content-Length: 10"), b"0123456789"),
    "no words": (_answer("HTTP/1.1 200", "Content-Length: 10"), b"0123456789"),
    "after a 100": (_answer("HTTP/1.1 100 Continue", "", OK, "Content-Length: 10"), b"0123456789"),
}

#: Answers that are not the file, or not surely all of it.
BROKEN = {
    "two lengths": _answer(OK, "Content-Length: 10", "Content-Length: 5"),
    "two lengths, the short one first": _answer(OK, "Content-Length: 5", "Content-Length: 10"),
    "two lengths in a list": _answer(OK, "Content-Length: 5, 10"),
    "an empty length": _answer(OK, "Content-Length:"),
    "a negative length": _answer(OK, "Content-Length: -10"),
    "minus zero": _answer(OK, "Content-Length: -0"),
    "a length with a plus": _answer(OK, "Content-Length: +10"),
    "a length with underscores": _answer(OK, "Content-Length: 1_0"),
    "a length in hex": _answer(OK, "Content-Length: 0xa"),
    "a length with a point": _answer(OK, "Content-Length: 10.0"),
    "a length with an exponent": _answer(OK, "Content-Length: 1e1"),
    "a length in other digits": _answer(OK, "Content-Length: \xb9\xb2"),
    "a length with a space": _answer(OK, "Content-Length: 1 0"),
    "a length with words": _answer(OK, "Content-Length: 10 bytes"),
    "a length that no disk has": _answer(OK, "Content-Length: 9999999999999999999999"),
    "a length at 2**63": _answer(OK, "Content-Length: 9223372036854775808"),
    "a length and chunks": _answer(OK, "Content-Length: 10", CHUNKED, body=b"a\r\n0123456789\r\n0\r\n\r\n"),
    "chunks and a length": _answer(OK, CHUNKED, "Content-Length: 25", body=b"a\r\n0123456789\r\n0\r\n\r\n"),
    "chunks of HTTP/1.0": _answer("HTTP/1.0 200 OK", CHUNKED, body=b"a\r\n0123456789\r\n0\r\n\r\n"),
    "chunked twice": _answer(OK, CHUNKED, CHUNKED, body=b"a\r\n0123456789\r\n0\r\n\r\n"),
    "gzip and chunked": _answer(OK, "Transfer-Encoding: gzip, chunked", body=b"a\r\n0123456789\r\n0\r\n\r\n"),
    "chunked and gzip": _answer(OK, "Transfer-Encoding: chunked, gzip", body=b"a\r\n0123456789\r\n0\r\n\r\n"),
    "gzip and a length": _answer(OK, "Transfer-Encoding: gzip", "Content-Length: 10"),
    "identity": _answer(OK, "Transfer-Encoding: identity", "Content-Length: 10"),
    "xchunked": _answer(OK, "Transfer-Encoding: xchunked", body=b"a\r\n0123456789\r\n0\r\n\r\n"),
    "an empty encoding": _answer(OK, "Transfer-Encoding:", "Content-Length: 10"),
    "chunked, with a tab in it": _answer(OK, "Transfer-Encoding: chun\tked", "Content-Length: 10"),
    "chunked after a vertical tab": _answer(OK, "Transfer-Encoding: \x0bchunked", "Content-Length: 10"),
    "chunked on the next line": _answer(OK, "Transfer-Encoding:\r\n chunked,", "Content-Length: 10"),
    "a space before the colon": _answer(OK, "Content-Length : 10"),
    "a length after a line that is none": _answer(OK, "no header", "Content-Length: 10"),
    "a length after a space": _answer(OK, " X: y", "Content-Length: 10"),
    "neither size nor end": _answer(OK),
    "neither size nor end in HTTP/1.0": _answer("HTTP/1.0 200 OK"),
    "too little": _answer(OK, "Content-Length: 11"),
    "half of it": _answer(OK, "Content-Length: 20"),
    "nothing of it": _answer(OK, "Content-Length: 10", body=b""),
    "one byte too many": _answer(OK, "Content-Length: 9"),
    "twice as many": _answer(OK, "Content-Length: 5"),
    "many after none": _answer(OK, "Content-Length: 0"),
    "chunks without an end": _answer(OK, CHUNKED, body=b"a\r\n0123456789\r\n"),
    "an end without its line": _answer(OK, CHUNKED, body=b"a\r\n0123456789\r\n0\r\n"),
    "a chunk that is cut": _answer(OK, CHUNKED, body=b"b\r\n0123456789"),
    "a chunk that is too long": _answer(OK, CHUNKED, body=b"9\r\n0123456789\r\n0\r\n\r\n"),
    "a chunk that is too short": _answer(OK, CHUNKED, body=b"b\r\n0123456789\r\n0\r\n\r\n"),
    "a negative chunk": _answer(OK, CHUNKED, body=b"-a\r\n0123456789\r\n0\r\n\r\n"),
    "a chunk with a plus": _answer(OK, CHUNKED, body=b"+a\r\n0123456789\r\n0\r\n\r\n"),
    "a chunk with 0x": _answer(OK, CHUNKED, body=b"0xa\r\n0123456789\r\n0\r\n\r\n"),
    "a chunk with underscores": _answer(OK, CHUNKED, body=b"0_a\r\n0123456789\r\n0\r\n\r\n"),
    "a chunk after a space": _answer(OK, CHUNKED, body=b" a\r\n0123456789\r\n0\r\n\r\n"),
    "a chunk of no size": _answer(OK, CHUNKED, body=b"\r\n0123456789\r\n0\r\n\r\n"),
    "a chunk with an end of its own": _answer(OK, CHUNKED, body=b"a\n0123456789\n0\n\n"),
    "a chunk with a bare end after it": _answer(OK, CHUNKED, body=b"a\r\n0123456789\n0\r\n\r\n"),
    "a chunk of 16 digits": _answer(OK, CHUNKED, body=b"000000000000000a\r\n0123456789\r\n0\r\n\r\n"),
    "a chunk beyond all memory": _answer(OK, CHUNKED, body=b"ffffffffffffffff\r\n0123456789"),
    "an extension without an end": _answer(OK, CHUNKED, body=b"a;" + b"x" * 100_000 + b"\r\n0123456789\r\n0\r\n\r\n"),
    "a trailer without an end": _answer(OK, CHUNKED, body=b"a\r\n0123456789\r\n0\r\nX: " + b"x" * 100_000),
    "trailers without an end": _answer(OK, CHUNKED, body=b"a\r\n0123456789\r\n0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"),
    "more after the chunks": _answer(OK, CHUNKED, body=b"a\r\n0123456789\r\n0\r\n\r\nmore"),
    "no chunks at all": _answer(OK, CHUNKED),
    "gzip": _answer(OK, "Content-Encoding: gzip", "Content-Length: 10"),
    "gzip after identity": _answer(OK, "Content-Encoding: identity", "Content-Encoding: gzip", "Content-Length: 10"),
    "gzip in a list": _answer(OK, "Content-Encoding: identity, gzip", "Content-Length: 10"),
    "brotli": _answer(OK, "Content-Encoding: br", "Content-Length: 10"),
    "GZIP": _answer(OK, "Content-Encoding: GZIP", "Content-Length: 10"),
    "parts": _answer(OK, 'Content-Type: multipart/byteranges; boundary="x"', "Content-Length: 10"),
    "a part": _answer("HTTP/1.1 206 Partial", "Content-Range: bytes 0-9/10", "Content-Length: 10"),
    "parts in a 206": _answer("HTTP/1.1 206 X", "Content-Type: multipart/byteranges; boundary=x", "Content-Length: 10"),
    "headers without an end": _answer(OK, *["X: y"] * 200, "Content-Length: 10"),
    "a header without an end": _answer(OK, "X: " + "y" * 100_000, "Content-Length: 10"),
    "another protocol": _answer("HTTP/2.0 200 OK", "Content-Length: 10"),
    "an old protocol": b"0123456789",
    "no protocol": _answer("ICY 200 OK", "Content-Length: 10"),
    "no answer": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "a status of four digits": _answer("HTTP/1.1 2000 OK", "Content-Length: 10"),
    "a status with a sign": _answer("HTTP/1.1 -200 OK", "Content-Length: 10"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_answer_is_the_file(web: WebServer, way: Net, name: str) -> None:
    answer, data = WHOLE[name]
    web.files["/x"] = web.raw(answer)
    for step in (1, 3, 1 << 18):
        assert take(source(way, web.url + "/x"), step) == data


@pytest.mark.parametrize("name", BROKEN)
def test_what_may_not_be_the_whole_file_ends_as_a_failure(web: WebServer, way: Net, name: str) -> None:
    web.files["/x"] = web.raw(BROKEN[name])
    for step in (1, 1 << 18):
        with pytest.raises(errors.SourceBroken):
            take(source(way, web.url + "/x"), step)


@pytest.mark.parametrize(
    "status", [201, 202, 203, 204, 205, 300, 304, 400, 401, 403, 404, 410, 416, 418, 429, 500, 503]
)
def test_the_page_of_an_error_is_no_image(web: WebServer, way: Net, status: int) -> None:
    web.files["/x"] = web.raw(_answer(f"HTTP/1.1 {status} X", "Content-Length: 10"))
    with pytest.raises(errors.SourceBroken, match=f"answered {status}") as caught:
        take(source(way, web.url + "/x"))
    assert caught.value.lasting is (status not in (429, 500, 503))


def test_a_cap_ends_what_does_not_end(web: WebServer, way: Net) -> None:
    def endless(handler: Any) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(_answer(OK, CHUNKED, body=b""))
            while True:
                handler.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    web.files |= {"/endless": endless, "/x": DATA}
    with pytest.raises(errors.OverLimit):
        take(source(way, web.url + "/endless", cap=1_000_000))
    announced = source(way, web.url + "/x", cap=len(DATA) - 1)
    with pytest.raises(errors.OverLimit):
        announced.open()
    assert announced.received == 0
    assert take(source(way, web.url + "/x", cap=len(DATA))) == DATA


def test_data_without_an_end_is_accepted_only_if_its_hash_is_compared(web: WebServer, way: Net) -> None:
    web.files["/x"] = web.raw(_answer("HTTP/1.0 200 OK"))
    with pytest.raises(errors.SourceBroken, match="hash") as caught:
        source(way, web.url + "/x").open()
    assert caught.value.lasting
    assert take(source(way, web.url + "/x", verified=True)) == b"0123456789"


def test_the_size_and_the_progress_are_told(web: WebServer, way: Net) -> None:
    web.files["/x"] = DATA
    with closing(source(way, web.url + "/x")) as taken:
        assert (taken.size, taken.received) == (None, 0)
        taken.open()
        assert (taken.size, taken.received) == (len(DATA), 0)
        taken.readinto(memoryview(bytearray(1000)))
        assert taken.received == 1000


def test_it_is_a_source_of_a_passing(web: WebServer, way: Net) -> None:
    web.files["/x"] = Breaking(cuts=[1_200_000, 700_000])
    with closing(source(way, web.url + "/x")) as taken:
        taken.open()
        with Passing(
            taken,
            Transfers(16 << 20, 10),
            expect=taken.size,
            cap=CAP,
            hash_algo="sha512",
            md5=True,
            disk_format=None,
            container_format=None,
            rules=FormatRules(require_match=False),
        ) as passing:
            passing.run()
    assert passing.hash_value == hashlib.sha512(DATA).hexdigest()


# --- after a cut -----------------------------------------------------------------------------------------

DATE = "Tue, 01 Dec 2026 10:00:00 GMT"
EARLIER = "Tue, 01 Dec 2026 09:59:59 GMT"


@pytest.mark.parametrize("announces", [True, False])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(
    ("tags", "validator"),
    [
        ({"ETag": '"one"'}, '"one"'),
        ({"ETag": '""'}, '""'),
        ({"ETag": '"one"', "Last-Modified": EARLIER}, '"one"'),
        ({"ETag": 'W/"one"', "Last-Modified": EARLIER}, EARLIER),
        ({"Last-Modified": EARLIER, "Date": DATE}, EARLIER),
        ({"Last-Modified": EARLIER}, EARLIER),
    ],
)
def test_after_a_cut_it_goes_on_at_the_next_byte(
    web: WebServer, way: Net, tags: dict[str, str], validator: str, resets: bool, announces: bool
) -> None:
    file = Breaking(tags=tags, cuts=[100_000, 1, 0, 1_500_000], resets=resets, announces=announces)
    web.files["/x"] = file
    assert take(source(way, web.url + "/x")) == DATA
    assert [one.get("If-Range") for one in file.asked] == [None, *[validator] * (len(file.asked) - 1)]
    assert len(file.asked) == 5
    assert file.sent < 1.05 * len(DATA)


@pytest.mark.parametrize(
    "tags",
    [{}, {"ETag": 'W/"one"'}, {"ETag": "one"}, {"ETag": '"o"ne"'}, {"ETag": "*"}, {"Last-Modified": "yesterday"},
     {"Last-Modified": DATE, "Date": DATE}, {"Last-Modified": "Tue, 01 Dec 2026 10:00:05 GMT", "Date": DATE},
     {"Last-Modified": EARLIER, "Date": "today"}, {"ETag": '"one"\r\nETag: "two"'}],
    ids=str,
)  # fmt: skip
def test_without_a_validator_it_does_not_go_on(web: WebServer, way: Net, tags: dict[str, str]) -> None:
    file = Breaking(tags=tags, cuts=[100_000])
    web.files["/x"] = file
    with pytest.raises(errors.SourceBroken, match=r"broke off after \d+ of 3000000 bytes") as caught:
        take(source(way, web.url + "/x"))
    assert not caught.value.lasting
    assert len(file.asked) == 1


def test_data_whose_hash_is_compared_goes_on_without_a_validator(web: WebServer, way: Net) -> None:
    file = Breaking(tags={}, cuts=[100_000, 5000])
    web.files["/x"] = file
    assert take(source(way, web.url + "/x", verified=True)) == DATA
    assert not any("If-Range" in one for one in file.asked)


def _sets(**headers: str) -> Callable[[Breaking, dict[str, str]], None]:
    def change(file: Breaking, head: dict[str, str]) -> None:
        head |= {name.replace("_", "-"): value for name, value in headers.items()}

    return change


def _status(status: int) -> Callable[[Breaking, dict[str, str]], int]:
    return lambda file, head: status


#: What a server may answer to a Range that is not the rest of the same file; the first connection ends at byte 100000.
NOT_THE_REST: dict[str, Callable[[Breaking, dict[str, str]], int | None]] = {
    "all of it": _status(200),
    "another tag": _sets(ETag='"two"'),
    "a weak tag": _sets(ETag='W/"one"'),
    "no tag": _sets(ETag=""),
    "two tags": _sets(ETag='"one"\r\nETag: "two"'),
    "another start": _sets(Content_Range="bytes 99999-2999999/3000000", Content_Length=""),
    "from the beginning": _sets(Content_Range="bytes 0-2899999/3000000"),
    "a later start": _sets(Content_Range="bytes 100001-2999999/3000000", Content_Length=""),
    "another size": _sets(Content_Range="bytes 100000-2999999/3000001"),
    "a smaller size": _sets(Content_Range="bytes 100000-2999998/2999999", Content_Length="2899999"),
    "an unknown size": _sets(Content_Range="bytes 100000-2999999/*"),
    "no range": _sets(Content_Range=""),
    "two ranges": _sets(Content_Range="bytes 100000-2999999/3000000\r\nContent-Range: bytes 0-2999999/3000000"),
    "another unit": _sets(Content_Range="lines 100000-2999999/3000000"),
    "an end before its start": _sets(Content_Range="bytes 100000-99999/3000000", Content_Length="0"),
    "an end beyond the size": _sets(Content_Range="bytes 100000-3000000/3000000", Content_Length=""),
    "a length that is not the range's": _sets(Content_Length="2899999"),
    "parts": _sets(Content_Type="multipart/byteranges; boundary=x"),
    "gone": _status(404),
    "forbidden": _status(403),
    "not satisfiable": _status(416),
    "no content": _status(204),
    "not modified": _status(304),
}


@pytest.mark.parametrize("name", NOT_THE_REST)
def test_what_is_not_the_rest_of_the_same_file_is_not_appended(web: WebServer, way: Net, name: str) -> None:
    file = Breaking(cuts=[100_000], change=NOT_THE_REST[name])
    web.files["/x"] = file
    taken = source(way, web.url + "/x")
    with pytest.raises(errors.SourceBroken):
        take(taken)
    assert taken.received == 100_000
    assert len(file.asked) == 2


def test_a_file_that_was_changed_is_told(web: WebServer, way: Net) -> None:
    file = Breaking(cuts=[100_000])

    def changed(handler: Any) -> None:
        if "Range" in handler.headers:
            file.tags = {"ETag": '"two"'}
        file(handler)

    web.files["/x"] = changed
    with pytest.raises(errors.SourceBroken, match="changed") as caught:
        take(source(way, web.url + "/x"))
    assert not caught.value.lasting


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_for_a_while_is_asked_again(web: WebServer, way: Net, status: int) -> None:
    left = [status] * 4
    file = Breaking(cuts=[100_000], change=lambda file, head: left.pop() if left else None)
    web.files["/x"] = file
    assert take(source(way, web.url + "/x")) == DATA
    assert len(file.asked) == 6


def test_a_part_that_is_shorter_than_the_rest_is_followed_by_the_next(web: WebServer, way: Net) -> None:
    def shorter(file: Breaking, head: dict[str, str]) -> int | None:
        start = int(head["Content-Range"].split()[1].split("-")[0])
        last = min(start + 999_999, len(DATA) - 1)
        head |= {"Content-Range": f"bytes {start}-{last}/{len(DATA)}", "Content-Length": str(last + 1 - start)}
        file.cuts[:] = [last + 1 - start]
        return None

    web.files["/x"] = Breaking(cuts=[100_000], change=shorter)
    assert take(source(way, web.url + "/x")) == DATA


def test_the_rest_comes_from_where_the_file_came_from_if_the_url_leads_elsewhere_now(web: WebServer, way: Net) -> None:
    """Mirrors: each request for the URL leads to another one, with a tag of its own."""
    mirrors = {f"/mirror{number}": Breaking(tags={"ETag": f'"{number}"'}, cuts=[700_000]) for number in range(3)}
    names = iter([*mirrors, "/none"])
    web.files |= {**mirrors, "/x": lambda handler: web.leads(next(names))(handler)}
    assert take(source(way, web.url + "/x")) == DATA
    assert [len(mirror.asked) for mirror in mirrors.values()] == [2, 1, 0]


def test_the_rest_comes_by_a_new_link_if_the_old_one_has_expired(web: WebServer, way: Net) -> None:
    """Links with a signature: the URL leads to a new one each time, which works once."""
    file, count = Breaking(cuts=[100_000, 100_000]), iter(range(9))

    def leads(handler: Any) -> None:
        link = f"/link{next(count)}"

        def once(handler: Any) -> None:
            web.files[link] = None
            file(handler)

        web.files[link] = once
        web.leads(link)(handler)

    web.files["/x"] = leads
    assert take(source(way, web.url + "/x")) == DATA


def test_a_redirect_of_the_rest_is_checked_as_well(web: WebServer, way: Net) -> None:
    with trap("127.0.0.1") as inside:
        file = Breaking(cuts=[100_000])

        def leads(handler: Any) -> None:
            (web.leads(f"http://127.0.0.1:{inside.port}/") if file.asked else file)(handler)

        web.files["/x"] = leads
        with pytest.raises(errors.UrlRefused):
            take(source(way, web.url + "/x"))
        assert inside.hits == 0


@pytest.mark.needs("openssl")
def test_it_goes_on_over_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "good.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with serving(host="127.0.0.3", tls=context) as server:
        way = Net(FRIENDS, ca_file=str(cert), resolve=lambda name, port: ["127.0.0.3"])
        for announces in (True, False):
            file = Breaking(cuts=[100_000, 1_000_000], announces=announces)
            server.files["/x"] = file
            assert take(source(way, f"https://good.example:{server.port}/x")) == DATA
            assert len(file.asked) == 3


# --- who is slow -----------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_server_that_drips_is_given_up_after_a_minute_of_waiting_for_it(web: WebServer, way: Net) -> None:
    """1300 bytes a second, by a clock that the server moves while it is waited for."""
    clock = Clock()
    taken = source(way, web.url + "/x", pace=Pace(), clock=clock)

    def drips(handler: Any) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(_answer(OK, "Content-Length: 1000000000", 'ETag: "one"', body=b""))
            for count in range(1000):
                until(lambda sent=count * 1300: taken.received >= sent or clock.now > 5000)
                time.sleep(0.005)  # it waits again
                clock.now += 1
                handler.wfile.write(bytes(1300))

    web.files["/x"] = drips
    with pytest.raises(errors.SourceBroken, match="too slow: it sent fewer than 65536 bytes a second"):
        take(taken, 1300)
    assert 1060 <= clock.now < 1100
    assert 60_000 < taken.received < 130_000


def test_time_in_which_nobody_reads_does_not_count_against_the_server(web: WebServer, way: Net) -> None:
    web.files["/x"] = DATA
    clock = Clock()
    with closing(source(way, web.url + "/x", pace=Pace(), clock=clock)) as taken:
        block = memoryview(bytearray(50_000))
        found = 0
        while got := taken.readinto(block):
            found += got
            clock.now += 50
    assert found == len(DATA)


def test_a_server_that_keeps_the_rate_is_never_given_up(web: WebServer, way: Net) -> None:
    """70 KB in each second, for four minutes."""
    clock = Clock()
    taken = source(way, web.url + "/x", pace=Pace(), clock=clock)
    size = 240 * 70_000

    def steady(handler: Any) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.write(_answer(OK, f"Content-Length: {size}", body=b""))
            for count in range(240):
                until(lambda sent=count * 70_000: taken.received >= sent)
                clock.now += 1
                handler.wfile.write(bytes(70_000))

    web.files["/x"] = steady
    assert len(take(taken, 70_000)) == size


@pytest.mark.parametrize("body", [b"", b"x", b"5"])
@pytest.mark.parametrize("framing", ["Content-Length: 1000000000", CHUNKED])
def test_a_server_that_says_nothing_more_is_given_up(web: WebServer, way: Net, framing: str, body: bytes) -> None:
    over = threading.Event()

    def silent(handler: Any) -> None:
        handler.wfile.write(_answer(OK, framing, body=body))
        over.wait(60)

    web.files["/x"] = silent
    try:
        with pytest.raises(errors.SourceBroken, match="too slow"):
            take(source(way, web.url + "/x", pace=Pace(window=0.8)))
    finally:
        over.set()


@pytest.mark.parametrize("what", [b"1;", b"0\r\nX: ", b""])
def test_sizes_and_trailers_of_chunks_that_drip_are_given_up(web: WebServer, way: Net, what: bytes) -> None:
    def drips(handler: Any) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(_answer(OK, CHUNKED, body=what))
            while True:
                handler.wfile.write(b"x" if what else b"1\r\nx\r\n")
                time.sleep(0.02)

    web.files["/x"] = drips
    with pytest.raises(errors.SourceBroken, match=r"too slow|chunks"):
        take(source(way, web.url + "/x", pace=Pace(window=0.8)))


def test_a_silent_connection_is_replaced_before_the_server_is_given_up(web: WebServer, way: Net) -> None:
    file, over = Breaking(), threading.Event()

    def silent_once(handler: Any) -> None:
        if file.asked:
            file(handler)
            return
        file.asked.append({})
        handler.wfile.write(_answer(OK, f"Content-Length: {len(DATA)}", 'ETag: "one"', body=DATA[:50_000]))
        over.wait(60)

    web.files["/x"] = silent_once
    try:
        assert take(source(way, web.url + "/x", pace=Pace(silence=0.5, pause=0.01))) == DATA
        assert file.asked[1]["Range"] == "bytes=50000-"
    finally:
        over.set()


@pytest.mark.parametrize("then", ["no connection", "nothing but cuts", "503", "a byte each time"])
def test_after_a_cut_it_is_twice_as_patient_and_then_gives_up(way: Net, then: str) -> None:
    tries: list[float] = []

    def refuses(file: Breaking, head: dict[str, str]) -> int | None:
        tries.append(time.monotonic())
        if then == "503":
            return 503
        file.cuts.append(1 if then == "a byte each time" else 0)
        return None

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(host="127.0.0.3"))
        file = Breaking(cuts=[100_000], change=refuses)
        server.files["/x"] = file
        taken = source(way, server.url + "/x", pace=Pace(window=1.0, pause=0.05, most_pause=0.2))
        block = memoryview(bytearray(100_000))
        have = 0
        while have < 100_000:
            have += taken.readinto(block[have:])
        if then == "no connection":
            stack.close()
        started = time.monotonic()
        with pytest.raises(errors.SourceBroken, match=r"did not go on|too slow") as caught:
            take(taken)
        assert time.monotonic() - started >= 1.8
        assert not caught.value.lasting
        assert then == "no connection" or len(tries) > 3
        assert taken.received < 100_100


def test_pauses_after_a_cut_grow_and_begin_again_with_new_bytes(web: WebServer, way: Net) -> None:
    times: list[float] = []
    plan = [0, 0, 0, 0, 50_000, 0]

    def next_cut(file: Breaking, head: dict[str, str]) -> None:
        times.append(time.monotonic())
        if plan:
            file.cuts.append(plan.pop(0))

    web.files["/x"] = Breaking(cuts=[100_000], change=next_cut)
    assert take(source(way, web.url + "/x", pace=Pace(pause=0.1, most_pause=1.6))) == DATA
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert [gap >= least for gap, least in zip(gaps, [0.2, 0.4, 0.8, 1.6, 0.1, 0.2], strict=True)] == [True] * 6
    assert gaps[4] < 1.6


# --- a stop ----------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@contextlib.contextmanager
def _full() -> Iterator[int]:
    """The port of a server that takes no more connections."""
    with socket.socket() as listening, contextlib.ExitStack() as queue:
        listening.bind(("127.0.0.3", 0))
        listening.listen(0)
        for _ in range(4):
            filling = queue.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


PLACES = ["name", "connection", "tls", "head", "body", "chunk", "pause", "rest"]


@pytest.mark.parametrize("by", ["check", "cancel"])
@pytest.mark.parametrize("place", PLACES)
def test_a_stop_ends_it_wherever_it_waits(web: WebServer, place: str, by: str) -> None:
    """Each wait would be longer than the test may take; `check` and `cancel` are the only way out."""
    over, stop, waiting = threading.Event(), threading.Event(), threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    def silent(head: bytes) -> Callable[[Any], None]:
        def answer(handler: Any) -> None:
            handler.wfile.write(head)
            waiting.set()
            over.wait(300)

        return answer

    def resolver(name: str, port: int) -> list[str]:
        if place == "name":
            waiting.set()
            over.wait(300)
        return ["127.0.0.3"]

    def rest(file: Breaking, head: dict[str, str]) -> None:
        waiting.set()
        over.wait(300)

    pause = 300.0 if place == "pause" else 0.01
    web.files |= {
        "/head": silent(b"HTTP/1.1 200 OK\r\n"),
        "/body": silent(_answer(OK, "Content-Length: 100000")),
        "/chunk": silent(_answer(OK, CHUNKED, body=b"5;x")),
        "/pause": Breaking(cuts=[0], change=lambda file, head: pytest.fail("it should pause")),
        "/rest": Breaking(cuts=[1000], change=rest),
    }
    way = Net(FRIENDS, insecure=True, resolve=resolver, connect_timeout=300, head_timeout=300, fetch_timeout=300)
    with contextlib.ExitStack() as stack:
        url = f"{web.url}/{place}"
        if place == "name":
            url = f"http://good.example:{web.port}/"
        elif place == "connection":
            url = f"http://127.0.0.3:{stack.enter_context(_full())}/"
        elif place == "tls":
            listening = stack.enter_context(socket.create_server(("127.0.0.3", 0)))
            url = f"https://127.0.0.3:{listening.getsockname()[1]}/"
        taken = source(
            way, url, pace=Pace(window=300, silence=300, pause=pause), check=check if by == "check" else None
        )
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(take, taken)
            if place in ("connection", "tls", "pause"):
                time.sleep(0.3)
            else:
                assert waiting.wait(60)
            assert not running.done()
            started = time.monotonic()
            if by == "check":
                stop.set()
            else:
                taken.cancel()
            with pytest.raises(Stopped if by == "check" else errors.SourceBroken) as caught:
                running.result(timeout=60)
            assert time.monotonic() - started < 30
            assert by == "check" or "cancelled" in str(caught.value)
            over.set()


def test_a_cancelled_body_without_a_length_is_no_whole_one(web: WebServer, way: Net) -> None:
    over = threading.Event()

    def silent(handler: Any) -> None:
        handler.wfile.write(_answer("HTTP/1.0 200 OK"))
        over.wait(60)

    web.files["/x"] = silent
    taken = source(way, web.url + "/x", verified=True)

    def read() -> None:
        while taken.readinto(memoryview(bytearray(100))):
            pass

    with closing(taken), ThreadPoolExecutor(1) as threads:
        running = threads.submit(read)
        until(lambda: taken.received == 10)
        taken.cancel()
        with pytest.raises(errors.SourceBroken, match="cancel"):
            running.result(timeout=60)
    over.set()


# --- another Image service -------------------------------------------------------------------------------

ID = "3f0e2a7c-9b1d-4a63-8a55-0d7f4b7e6a11"
RECORD = {"id": ID, "status": "active", "size": len(DATA), "os_hash_algo": "sha512", "os_hash_value": "ab"}


def test_an_image_of_another_service_comes_with_its_record(web: WebServer) -> None:
    """Nothing allows its address but that the catalog names it."""
    way = Net(Filters(allowed_schemes=SCHEMES))
    file = Breaking(tags={}, cuts=[100_000])
    web.files |= {f"/image/v2/images/{ID}": json.dumps(RECORD).encode(), f"/image/v2/images/{ID}/file": file}
    for endpoint in ("/image", "/image/", "/image/v2", "/image/v2/"):
        web.seen.clear()
        there = RemoteImages(way, web.url + endpoint, "the token")
        assert there.record(ID) == RECORD
        assert take(there.data(ID, cap=CAP, verified=True, pace=PATIENT)) == DATA
        assert {one.headers["X-Auth-Token"] for one in web.seen} == {"the token"}
        file.cuts.append(1000)
    with pytest.raises(errors.UrlRefused):
        way.check(web.url)


@pytest.mark.parametrize("path", ["", "/file"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_token_goes_to_no_other_origin(web: WebServer, path: str, status: int) -> None:
    with serving(host="127.0.0.4") as other:
        way = Net(FRIENDS)
        web.files[f"/v2/images/{ID}{path}"] = web.leads(other.url + "/x", status)
        other.files["/x"] = json.dumps(RECORD).encode()
        there = RemoteImages(way, web.url, "the token")
        if path:
            take(there.data(ID, cap=CAP, verified=True))
        else:
            there.record(ID)
        assert len(other.seen) == 1
        assert not any("token" in f"{name}: {value}".lower() for name, value in other.seen[0].headers.items())


def test_an_endpoint_opens_no_other_host(web: WebServer) -> None:
    with trap("127.0.0.1") as inside:
        web.files[f"/v2/images/{ID}"] = web.leads(f"http://127.0.0.1:{inside.port}/")
        there = RemoteImages(Net(Filters(allowed_schemes=SCHEMES)), web.url, "the token")
        with pytest.raises(errors.UrlRefused):
            there.record(ID)
        assert inside.hits == 0


@pytest.mark.parametrize(
    ("filters", "endpoint"),
    [
        (Filters(allowed_ports=frozenset({80, 443})), "http://8.8.8.8:9292"),
        (Filters(allowed_schemes=frozenset({"https"})), "http://8.8.8.8"),
        (Filters(allowed_hosts=frozenset({"image.example"})), "http://8.8.8.8"),
        (Filters(disallowed_hosts=frozenset({"8.8.8.8"})), "http://8.8.8.8"),
        (Filters(), "http://169.254.169.254"),
        (Filters(), "http://user:password@8.8.8.8"),
        (Filters(), "http://2130706433"),
        (Filters(), "ftp://8.8.8.8"),
    ],
)
def test_an_endpoint_passes_the_filters(filters: Filters, endpoint: str) -> None:
    with pytest.raises(errors.UrlRefused):
        RemoteImages(Net(filters), endpoint, "the token").record(ID)


@pytest.mark.parametrize(
    ("answer", "words", "lasting"),
    [
        (_answer("HTTP/1.1 401 X", "Content-Length: 0"), "does not accept the token", True),
        (_answer("HTTP/1.1 403 X", "Content-Length: 0"), "does not allow", True),
        (_answer("HTTP/1.1 404 X", "Content-Length: 0"), "no such image", True),
        (_answer("HTTP/1.1 503 X", "Content-Length: 0"), "not available", False),
        (_answer("HTTP/1.1 500 X", "Content-Length: 0"), "answered 500", False),
        (_answer("HTTP/1.1 300 X", "Content-Length: 0"), "answered 300", True),
        (_answer(OK, "Content-Length: 10"), "not answer with an image", True),
        (_answer(OK, "Content-Length: 2", body=b"[]"), "not answer with an image", True),
        (_answer(OK, "Content-Length: 0", body=b""), "not answer with an image", True),
        (_answer(OK, "Content-Length: 100000", body=b"[" * 100_000), "not answer with an image", True),
        (_answer(OK, "Content-Length: 3", body=b'"\xff"'), "not answer with an image", True),
        (_answer(OK, "Content-Length: 1500000", body=b" " * 1_500_000), "1048576 bytes", False),
        (_answer(OK, "Content-Length: 20"), "broke off", False),
        (_answer(OK, "Content-Length: 2", "Content-Length: 3", body=b"{}"), "one size", False),
    ],
)
def test_why_there_is_no_record_is_told(web: WebServer, way: Net, answer: bytes, words: str, lasting: bool) -> None:
    web.files[f"/v2/images/{ID}"] = web.raw(answer)
    with pytest.raises(errors.SourceBroken, match=words) as caught:
        RemoteImages(way, web.url, "the token").record(ID)
    assert caught.value.lasting is lasting


def test_an_id_does_not_lead_elsewhere(web: WebServer, way: Net) -> None:
    web.seen.clear()
    with pytest.raises(errors.SourceBroken):
        RemoteImages(way, web.url, "the token").record("../../secret?x#y")
    assert [one.path for one in web.seen] == ["/v2/images/..%2F..%2Fsecret%3Fx%23y"]


# --- a proxy ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def proxying(status: int = 200, more: bytes = b"") -> Iterator[tuple[net.Proxy, list[str]]]:
    """A proxy of CONNECT, which connects to 127.0.0.3 for each address; and the heads of what it was asked."""
    asked: list[str] = []
    with socket.socket() as listening, ThreadPoolExecutor(8) as threads:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]

        def serve(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(4096)
                asked.append(head.decode())
                client.sendall(b"HTTP/1.1 %d X\r\n\r\n" % status + more)
                if status // 100 != 2:
                    return
                port_there = int(asked[-1].split()[1].rpartition(":")[2])
                with socket.create_connection(("127.0.0.3", port_there), timeout=60) as there:
                    ends = {client: there, there: client}
                    while True:
                        for one in select.select(list(ends), [], [], 60)[0]:
                            if not (data := one.recv(65536)):
                                return
                            ends[one].sendall(data)

        def accept() -> None:
            while True:
                try:
                    threads.submit(serve, listening.accept()[0])
                except OSError:
                    return

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield net.Proxy("localhost", port, {"Proxy-Authorization": "Basic eA=="}), asked
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()


@pytest.mark.needs("openssl")
def test_a_proxy_is_asked_for_the_address_that_was_checked(web: WebServer, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "public.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    web.files["/x"] = web.raw(_answer(OK, "Content-Length: 10"))
    web.seen.clear()
    found = {"public.example": ["8.8.4.4"], "six.example": ["2606:4700::1111"], "bad.example": ["8.8.4.4"]}
    with serving(host="127.0.0.3", tls=context) as secure, proxying() as (proxy, asked):
        secure.files["/x"] = b"secret"
        way = Net(
            Filters(allowed_schemes=SCHEMES), proxy=proxy, ca_file=str(cert), resolve=lambda name, port: found[name]
        )
        assert take(source(way, f"http://public.example:{web.port}/x")) == b"0123456789"
        assert take(source(way, f"https://public.example:{secure.port}/x")) == b"secret"
        assert take(source(way, f"http://six.example:{web.port}/x")) == b"0123456789"
        with pytest.raises(errors.SourceBroken):
            take(source(way, f"https://bad.example:{secure.port}/x"))
        lines = [head.split("\r\n")[0] for head in asked]
        assert lines == [
            f"CONNECT 8.8.4.4:{web.port} HTTP/1.1",
            f"CONNECT 8.8.4.4:{secure.port} HTTP/1.1",
            f"CONNECT [2606:4700::1111]:{web.port} HTTP/1.1",
            f"CONNECT 8.8.4.4:{secure.port} HTTP/1.1",
        ]
        assert all("Proxy-Authorization: Basic eA==" in head for head in asked)
        assert not any("Proxy-Authorization" in one.headers for one in [*web.seen, *secure.seen])
        assert [one.headers["Host"] for one in web.seen] == [f"public.example:{web.port}", f"six.example:{web.port}"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "0.0.0.0"]
)
def test_a_proxy_is_not_asked_for_a_forbidden_address(address: str) -> None:
    with proxying() as (proxy, asked):
        way = Net(Filters(allowed_schemes=SCHEMES), proxy=proxy, resolve=lambda name, port: [address])
        for url in ("http://evil.example/", "https://evil.example/", f"http://{net.parse('http://x').host}.example/"):
            with pytest.raises(errors.UrlRefused):
                source(way, url).open()
        assert asked == []


def test_private_hosts_are_reached_without_the_proxy(web: WebServer) -> None:
    web.files["/x"] = b"data"
    with proxying() as (proxy, asked):
        way = Net(FRIENDS, proxy=proxy)
        assert take(source(way, web.url + "/x")) == b"data"
        assert asked == []


@pytest.mark.parametrize("status", [403, 407, 502, 302, 101])
def test_a_proxy_that_refuses_is_a_failure(web: WebServer, status: int) -> None:
    with proxying(status) as (proxy, _):
        way = Net(Filters(allowed_schemes=SCHEMES), proxy=proxy, resolve=lambda name, port: ["8.8.4.4"])
        with pytest.raises(errors.SourceBroken, match="cannot be connected"):
            source(way, f"http://public.example:{web.port}/x").open()


def test_what_a_proxy_says_before_it_was_asked_is_no_answer(web: WebServer) -> None:
    with proxying(200, _answer(OK, "Content-Length: 10")) as (proxy, _):
        way = Net(Filters(allowed_schemes=SCHEMES), proxy=proxy, resolve=lambda name, port: ["8.8.4.4"])
        with pytest.raises(errors.SourceBroken):
            source(way, f"http://public.example:{web.port}/x").open()


def test_the_environment_names_no_proxy(web: WebServer, way: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files["/x"] = b"data"
    with trap() as elsewhere:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{elsewhere.port}")
        assert take(source(way, web.url + "/x")) == b"data"
        assert elsewhere.hits == 0
