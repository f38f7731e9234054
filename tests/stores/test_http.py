"""Images on web servers: what of the contract a read-only driver has to keep, and what only this one does."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.buffers import Piece
from calotype.context import SERVICE
from calotype.net import Filters
from calotype.stores.base import Feature, Stored, Write
from calotype.stores.http import HttpStore
from tests.stores.suite import READING, Kit, content, write
from tests.stores.test_contract import defaults
from tests.webserver import WebServer, serving, trap

FILTERS = Filters(frozenset({"http", "https"}), private_hosts=frozenset({"127.0.0.3"}))


class Served(HttpStore):
    """With a way for the tests to put something where this store finds it."""

    def __init__(self, web: WebServer, **given: Any) -> None:
        super().__init__("web", defaults("http", filters=FILTERS, **given))
        self.web = web

    def begin(self, image_id: str, **_: Any) -> Write:
        return Uploaded(self.web, image_id)


class Uploaded:
    """`Write` of a file on the server."""

    window = 0

    def __init__(self, web: WebServer, image_id: str) -> None:
        self.web, self.image_id, self.data = web, image_id, b""

    def put(self, piece: Piece) -> None:
        self.data += piece.view

    def commit(self) -> Stored:
        self.web.files[f"/{self.image_id}"] = self.data
        return Stored(f"{self.web.url}/{self.image_id}", len(self.data))

    def abort(self) -> None: ...


@pytest.fixture(params=["", "no ranges", "no HEAD"])
def store(request: pytest.FixtureRequest) -> Iterator[Served]:
    with serving(host="127.0.0.3", ranges=request.param != "no ranges", heads=request.param != "no HEAD") as web:
        yield Served(web)


class Sites(Kit):
    """One web server, into which the tests put what is read."""

    def __init__(self, one: Served) -> None:
        self.one = one

    def store(self, name: str = "one") -> Served:
        return self.one


@pytest.mark.parametrize("check", READING, ids=[check.__name__ for check in READING])
def test_what_a_driver_that_takes_no_data_keeps_of_the_contract(store: Served, check: Callable[[Kit], None]) -> None:
    check(Sites(store))


@pytest.fixture
def plain() -> Iterator[Served]:
    with serving(host="127.0.0.3") as web:
        yield Served(web)


def test_it_takes_nothing_and_removes_nothing(plain: Served) -> None:
    url = write(plain, [b"abc"])
    with pytest.raises(errors.StoreReadOnly):
        HttpStore.begin(plain, "x", attempt="a-1", size=3, note=lambda _: None, ctx=SERVICE)
    plain.delete(url, ctx=SERVICE)
    plain.clean("x", "a-1", None)
    assert content(plain, url) == b"abc"
    assert {one.method for one in plain.web.seen} == {"GET"}
    assert {one.headers["Accept-Encoding"] for one in plain.web.seen} == {"identity"}
    assert plain.features == {Feature.READ, Feature.USER_URLS}


def test_what_is_not_there_is_missing(plain: Served) -> None:
    for attempt in (plain.size, plain.read):
        with pytest.raises(errors.Missing):
            attempt(f"{plain.web.url}/none", ctx=SERVICE)


def test_it_owns_urls_of_web_servers(plain: Served) -> None:
    for url in ("http://host/x", "HTTPS://host.example:8443/a/b?c=d", "http://user:pw@host/x", "http://[2001::1]/x"):
        assert plain.owns(url), url
    for url in ("", "file:///etc/passwd", "rbd://f/p/i/snap", "http:/x", "http://", "http://a b/", "http://h/#x",
                "http://0x7f.1/", "ftp://host/x", "http://u@h@i/x", "swift+http://h/x"):  # fmt: skip
        assert not plain.owns(url), url
        with pytest.raises(errors.StoreError):
            plain.read(url, ctx=SERVICE)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-99/100\r\nContent-Length: 5\r\n\r\nshort",
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 1-100/101\r\nContent-Length: 100\r\n\r\n" + bytes(100),
        b"HTTP/1.1 206 P\r\nContent-Length: 100\r\n\r\n" + bytes(100),
        b"HTTP/1.1 200 OK\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + bytes(99),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\n" + bytes(100),
        b"HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\n" + bytes(100),
        b"HTTP/1.1 302 Go\r\nContent-Length: 100\r\n\r\n" + bytes(100),
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 100\r\n\r\n" + bytes(100),
    ],
)
def test_a_body_that_is_not_what_it_should_be_never_ends_cleanly(plain: Served, raw: bytes) -> None:
    plain.web.files["/x"] = plain.web.raw(raw)
    with pytest.raises(errors.StoreError), closing(plain.read(f"{plain.web.url}/x", length=100, ctx=SERVICE)) as body:
        b"".join(body)


def test_a_server_that_stops_in_the_middle_is_waited_for_as_configured_or_until_it_is_cancelled(plain: Served) -> None:
    over = threading.Event()

    def stops(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        handler.wfile.flush()
        over.wait(20)

    plain.web.files["/x"] = stops
    url = f"{plain.web.url}/x"
    try:
        with closing(Served(plain.web, read_timeout=0.5).read(url, ctx=SERVICE)) as body:
            begun = time.monotonic()
            with pytest.raises(errors.StoreUnavailable) as found:
                list(body)
            assert 0.4 < time.monotonic() - begun < 15
            assert not isinstance(found.value, errors.Cancelled)
        with closing(plain.read(url, ctx=SERVICE)) as body, ThreadPoolExecutor(1) as thread:
            pieces = iter(body)
            assert next(pieces) == b"short"
            waiting = thread.submit(next, pieces)
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
            body.cancel()
            with pytest.raises(errors.Cancelled):
                waiting.result(15)
    finally:
        over.set()


def test_a_server_that_takes_no_connection_is_given_up_as_configured(plain: Served) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.3", 0))
        full.listen(0)
        clients = []
        try:
            for _ in range(4):  # more than the system holds ready
                clients.append(socket.socket())
                clients[-1].setblocking(False)
                clients[-1].connect_ex(full.getsockname())
            begun = time.monotonic()
            with pytest.raises(errors.StoreUnavailable):
                Served(plain.web, connect_timeout=0.5).size("http://{}:{}/x".format(*full.getsockname()), ctx=SERVICE)
            assert time.monotonic() - begun < 30  # the system would try for two minutes
        finally:
            for one in clients:
                one.close()


def test_a_redirect_is_filtered_when_data_is_read(plain: Served) -> None:
    with trap("127.0.0.1") as inside:
        url = write(plain, [b"abc"])
        assert plain.size(url, ctx=SERVICE) == 3
        plain.web.files["/" + url.rpartition("/")[2]] = plain.web.leads(f"http://127.0.0.1:{inside.port}/")
        for attempt in (plain.size, plain.read):
            with pytest.raises(errors.StoreError):
                attempt(url, ctx=SERVICE)
        assert inside.hits == 0


def test_a_user_in_an_old_location_goes_to_the_server_alone(plain: Served) -> None:
    url = write(plain, [b"abc"])
    assert content(plain, url.replace("http://", "http://u%40:p%3A@")) == b"abc"
    assert plain.web.seen[-1].headers["Authorization"] == "Basic dUA6cDo="
    assert "@" not in plain.web.seen[-1].headers["Host"]


def test_a_server_that_is_away_is_unavailable(plain: Served) -> None:
    with trap("127.0.0.3") as nobody:
        pass
    with pytest.raises(errors.StoreUnavailable):
        plain.read(f"http://127.0.0.3:{nobody.port}/x", ctx=SERVICE)


def test_options_that_cannot_be_kept_are_refused(plain: Served, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("rubbish")
    for given in (
        {"http_proxy_information": {"http": "proxy:3128"}},
        {"https_ca_certificates_file": "/none"},
        {"https_ca_certificates_file": str(tmp_path / "ca.pem")},
    ):
        with pytest.raises(errors.ConfigError):
            Served(plain.web, **given)
