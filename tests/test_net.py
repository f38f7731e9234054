"""The guarded way out: who is never connected to, however the URL is written, resolved or redirected.

Refusals are asserted by traps that listen where a careless client would end up: they count no connection.
"""

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calotype import errors, net
from calotype.net import FetchLimit, Filters, NameLookups, Net
from tests.nameserver import NameServer, name_server
from tests.support import until
from tests.webserver import Trap, WebServer, certificate, serving, trap

SCHEMES = frozenset({"http", "https"})
ANY_PORT = Filters(allowed_schemes=SCHEMES)


def friends(*names: str, **more: Any) -> Filters:
    """Filters that let these hosts lie on this one."""
    return Filters(allowed_schemes=SCHEMES, private_hosts=frozenset(names), **more)


def fetch(way: Net, url: str, **more: Any) -> bytes:
    with closing(way.open(url, **more)) as answer:
        assert answer.status == 200
        return b"".join(answer)


@pytest.fixture(scope="module")
def traps() -> Iterator[list[Trap]]:
    """On this host's addresses, all on one port."""
    with trap("127.0.0.1") as first, trap("::1", first.port) as second, trap("127.0.0.2", first.port) as third:
        yield [first, second, third]


#: Hosts that lead, or that some client or other is led by, to this host, to private or to link-local addresses.
HOSTS = [
    *("127.0.0.1", "127.0.0.2", "127.1.2.3", "localhost", "LOCALHOST", "localhost.", "LocalHost.", "127.0.0.1."),
    *("[::1]", "[0:0:0:0:0:0:0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]", "[::]", "[::0]", "0.0.0.0", "0"),
    *("127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "0x7f.0x0.0x0.0x1", "0177.0.0.1"),
    *("017700000001", "0177.1", "127.0.0.01", "127.00.0.1", "00127.0.0.1", "4294967295", "0.0", "0x0", "00000000"),
    *("127.0.0.1.5", "1.2.3", "256.256.256.256", "127.0.0.256", "0xA9FEA9FE", "2852039166", "0251.0376.0251.0376"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[::ffff:0:127.0.0.1]"),
    *("[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[::ffff:10.0.0.1]", "[::ffff:0.0.0.0]"),
    *("[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::7f00:1]", "[64:ff9b::808:808]"),
    *("[2002:7f00:1::]", "[2002:7f00:0001::1]", "[2002:a9fe:a9fe::]", "[2002:a00:1::]", "[2002:808:808::1]"),
    *("[2001:0:7f00:1::]", "[2001:0000:4136:e378:8000:63bf:80ff:fffe]", "[2001:0:a9fe:a9fe:0:0:f5ff:fffe]"),
    *("169.254.169.254", "169.254.0.1", "169.254.170.2", "[fe80::1]", "[fe80::a9fe:a9fe]", "[fe80::1%25lo]"),
    *("[fe80::1%lo]", "[::1%lo]", "[::1%250]", "[fec0::1]", "[fd00:ec2::254]", "[fd00::1]", "[fc00::1]", "[fdff::1]"),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.0.170", "metadata.google.internal"),
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1", "192.168.255.255", "100.64.0.1"),
    *("198.18.0.1", "198.19.255.255", "192.0.2.1", "198.51.100.7", "203.0.113.9", "192.88.99.1", "240.0.0.1"),
    *("224.0.0.1", "239.255.255.250", "255.255.255.255", "[ff02::1]", "[ff05::2]", "[ff0e::1]", "0.1.2.3"),
    *("[100::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[4000::1]", "[2001:10::1]", "[2001:20::1]"),
    *("127%2e0%2e0%2e1", "%31%32%37.0.0.1", "local%68ost", "127.0.0.1%00.example.org", "127.0.0.1%23", "%6c"),
    *(
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "ⓛocalhost",
        "localho\u017ft",
        "\uff4cocalhost",
        "127\uff0e0\uff0e0\uff0e1",
        "bücher.example",
    ),
    *("user@127.0.0.1", "user:pw@127.0.0.1", "example.org@127.0.0.1", "127.0.0.1@example.org", ":@127.0.0.1", "@[::1]"),
    *("example.org:80@127.0.0.1", "127.0.0.1\\@example.org", "example.org\\@127.0.0.1", "127.0.0.1#@example.org"),
    *(
        "127.0.0.1\t",
        " 127.0.0.1",
        "127.0.0.1\r\nHost: x",
        "127.0.0.1\n",
        "127.0.0\t.1",
        "127.0.0.1\x00",
        "[127.0.0.1]",
    ),
    *("[::1", "::1", "[::1]]", "[[::1]]", "[v1.127.0.0.1]", "[::1].example.org", "", ".", "..", ".localhost"),
    *("a..b", "-.-", "local host", "localhost,example.org", "localhost;x", "localhost!", "a" * 64, "a." * 130 + "a"),
]


@pytest.mark.parametrize("host", HOSTS)
def test_no_way_of_writing_it_leads_inside(traps: list[Trap], host: str) -> None:
    """Names resolve to this host, as those of an attacker would."""
    way = Net(ANY_PORT, resolve=lambda name, port: ["127.0.0.1", "::1"])
    for scheme in ("http", "https"):
        with pytest.raises(errors.UrlRefused):
            way.open(f"{scheme}://{host}:{traps[0].port}/x", method="HEAD")
    assert [one.hits for one in traps] == [0, 0, 0]


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file:///etc/passwd",
            "ftp://example.org/x",
            "gopher://example.org/x",
            "data:,x",
            "javascript:1",
            "//example.org/x",
        ),
        *(
            "http:/example.org/x",
            "http:example.org",
            "http:///x",
            "http://",
            "https:\\\\example.org\\x",
            "unix:/run/x.sock",
        ),
        *("http://example.org:/x", "http://example.org:0/x", "http://example.org:65536/x", "http://example.org:-80/x"),
        *(
            "http://example.org:\uff18\uff10/x",
            "http://example.org:80:80/x",
            "http://example.org:0x50/x",
            "http://example.org: 80/x",
        ),
        *(
            "http://example.org/x#part",
            "http://example.org/a b",
            "http://example.org/\r\nX: y",
            "http://example.org/\\x",
        ),
        *("http+unix://%2frun%2fx.sock/x", "view-source:http://example.org", "", "x", "\x00http://example.org/x"),
        *(
            "http://example.org/ü",
            " http://example.org/",
            "http://example.org/\n",
            "HTTP//example.org",
            "http;//example.org",
        ),
    ],
)
def test_what_is_no_plain_url_of_http_is_refused(url: str) -> None:
    way = Net(ANY_PORT, resolve=lambda *_: pytest.fail("its host was looked up"))
    with pytest.raises(errors.UrlRefused):
        way.open(url)


#: What the name of an attacker may resolve to; the last ones hide among public addresses.
ANSWERS = [
    *(["127.0.0.1"], ["::1"], ["127.0.0.2"], ["0.0.0.0"], ["::"], ["10.0.0.1"], ["192.168.1.1"], ["172.16.5.5"]),
    *(["169.254.169.254"], ["fe80::1"], ["fe80::1%lo"], ["fd00::1"], ["::ffff:127.0.0.1"], ["::ffff:169.254.169.254"]),
    *(["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["2001:0:7f00:1::"], ["224.0.0.1"], ["ff02::1"], ["255.255.255.255"]),
    *(["100.64.0.1"], ["100.100.100.200"], ["fd00:ec2::254"], ["93.184.216.34", "127.0.0.1"]),
    *(["127.0.0.1", "93.184.216.34"], ["2606:4700::1111", "::1"], ["8.8.8.8", "169.254.169.254"]),
]


@pytest.mark.parametrize("addresses", ANSWERS, ids=",".join)
def test_a_name_is_refused_for_any_of_its_addresses(traps: list[Trap], addresses: list[str]) -> None:
    way = Net(ANY_PORT, resolve=lambda name, port: addresses)
    for url in (f"http://evil.example:{traps[0].port}/", f"https://evil.example:{traps[0].port}/"):
        with pytest.raises(errors.UrlRefused):
            way.check(url)
        with pytest.raises(errors.UrlRefused):
            way.open(url)
    assert [one.hits for one in traps] == [0, 0, 0]


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "fd00:ec2::254",
     "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:0.0.0.0", "168.63.129.16", "::169.254.1.1"],
)  # fmt: skip
def test_no_configuration_lets_anybody_to_link_local(address: str) -> None:
    filters = Filters(allowed_hosts=net.hosts(["friend.example", address]), private_hosts=net.hosts([address]))
    way = Net(filters, resolve=lambda name, port: [address])
    literal = f"[{address}]" if ":" in address else address
    for host in ("friend.example", literal):
        with pytest.raises(errors.UrlRefused):
            way.open(f"http://{host}/")


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450::1", "100.63.255.255", "172.32.0.1"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    Net(ANY_PORT, resolve=lambda name, port: [address]).check("http://example.org/image.qcow2?mirror=1")


def test_a_resolver_that_changes_its_mind_is_asked_once() -> None:
    """What was checked is connected to: the second answer would lead into the trap."""
    with serving(host="127.0.0.3") as server, trap("127.0.0.1", server.port) as inside:
        server.files["/x"] = b"data"
        answers = iter([["127.0.0.3"], ["127.0.0.1"], ["127.0.0.1"]])
        way = Net(friends("localhost"), resolve=lambda name, port: next(answers))
        # This host's own resolver says 127.0.0.1 of the name, so that asking it again would be seen as well.
        assert fetch(way, f"http://localhost:{server.port}/x") == b"data"
        assert server.seen[0].headers["Host"] == f"localhost:{server.port}"
        assert len(list(answers)) == 2
        assert inside.hits == 0


def test_a_name_that_was_public_when_it_was_checked_is_checked_again() -> None:
    with trap("127.0.0.1") as inside:
        answers = iter([["93.184.216.34"], ["127.0.0.1"]])
        way = Net(ANY_PORT, resolve=lambda name, port: next(answers))
        url = f"http://evil.example:{inside.port}/"
        way.check(url)
        with pytest.raises(errors.UrlRefused):
            way.open(url)
        assert inside.hits == 0


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as running:
        yield running


@pytest.fixture
def way(web: WebServer) -> Net:
    """Lets to `web`, and nowhere else on this host; all names are public but for inside.example."""
    return Net(
        friends("127.0.0.3"), resolve=lambda name, port: ["127.0.0.1" if name == "inside.example" else "8.8.8.8"]
    )


@pytest.mark.parametrize(
    "where",
    ["http://127.0.0.1:{port}/", "http://[::1]:{port}/", "http://127.0.0.2:{port}/", "//127.0.0.1:{port}/x",
     "http://inside.example:{port}/", "http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://0:{port}/",
     "http://[::ffff:127.0.0.1]:{port}/", "http://127.0.0.3@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@127.0.0.3/",
     "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/_x", "ftp://127.0.0.1:{port}/",
     "http://localhost%00.example:{port}/", "http:\\\\127.0.0.1:{port}\\", "https://127.0.0.1:{port}/", "//[::1]:{port}"],
)  # fmt: skip
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_leads_nowhere_that_a_url_may_not(
    traps: list[Trap], web: WebServer, way: Net, where: str, status: int
) -> None:
    web.files["/go"] = web.leads(where.format(port=traps[0].port), status)
    web.files["/first"] = web.leads("/go")
    for path in ("/go", "/first"):
        with pytest.raises((errors.UrlRefused, errors.FetchFailed)) as caught:
            way.open(web.url + path)
        assert isinstance(caught.value, errors.UrlRefused) or where.startswith("http:\\\\")
    assert [one.hits for one in traps] == [0, 0, 0]


def test_redirects_are_followed_and_end(web: WebServer, way: Net) -> None:
    web.files |= {"/a": web.leads("b"), "/b": web.leads("/dir/c?x=1"), "/dir/c?x=1": b"there"}
    assert fetch(way, web.url + "/a") == b"there"
    web.files["/round"] = web.leads("/round")
    with pytest.raises(errors.FetchFailed, match="times"):
        way.open(web.url + "/round")


@pytest.mark.parametrize("found", [OSError(), UnicodeError(), []])
def test_a_name_without_an_address_is_named(found: Any) -> None:
    def resolve(name: str, port: int) -> list[str]:
        if isinstance(found, list):
            return found
        raise found

    net = Net(Filters(), resolve=resolve)
    for ask in (net.check, net.open):
        with pytest.raises(errors.FetchFailed, match=r"nowhere\.example has no address"):
            ask("http://nowhere.example/x")


def test_credentials_stay_with_the_first_origin(web: WebServer) -> None:
    with serving(host="127.0.0.4") as other:
        way = Net(friends("127.0.0.3", "127.0.0.4"))
        web.files |= {"/here": web.leads("/there"), "/there": b"1", "/away": web.leads(other.url + "/x")}
        other.files |= {"/x": b"2", "/back": other.leads(web.url + "/there")}
        web.seen.clear()
        fetch(way, web.url + "/here", secrets={"Authorization": "Basic eA=="})
        fetch(way, web.url + "/away", secrets={"Authorization": "Basic eA=="})
        web.files["/away"] = web.leads(other.url + "/back")
        fetch(way, web.url + "/away", secrets={"Authorization": "Basic eA=="})
        assert ["Authorization" in one.headers for one in web.seen] == [True, True, True, True, False]
        assert not any("Authorization" in one.headers for one in other.seen)


@pytest.mark.parametrize(
    ("filters", "url"),
    [
        (Filters(allowed_schemes=frozenset({"https"})), "http://example.org/"),
        (Filters(disallowed_schemes=frozenset({"http"})), "http://example.org/"),
        (Filters(allowed_hosts=frozenset({"example.org"})), "http://example.com/"),
        (Filters(allowed_hosts=frozenset({"example.org"})), "http://www.example.org/"),
        (Filters(disallowed_hosts=frozenset({"example.org"})), "http://EXAMPLE.org./"),
        (Filters(disallowed_hosts=frozenset({"8.8.8.8"})), "http://example.org/"),
        (Filters(disallowed_hosts=net.hosts(["2606:4700:0::1"])), "http://[2606:4700::1]/"),
        (Filters(allowed_ports=frozenset({80, 443})), "http://example.org:8080/"),
        (Filters(allowed_ports=frozenset({8080})), "http://example.org/"),
        (Filters(disallowed_ports=frozenset({443})), "https://example.org/"),
        (Filters(allowed_hosts=frozenset({"example.org"}), disallowed_hosts=frozenset({"example.org"})), "http://example.org/"),
    ],
)  # fmt: skip
def test_filters_refuse_what_they_name(filters: Filters, url: str) -> None:
    with pytest.raises(errors.UrlRefused):
        Net(filters, resolve=lambda name, port: ["8.8.8.8"]).check(url)


def test_a_budget_ends_what_does_not_end(web: WebServer, way: Net) -> None:
    web.files["/long"] = bytes(5_000_000)
    with closing(way.open(web.url + "/long", budget=1_000_000)) as answer, pytest.raises(errors.OverLimit):
        for _ in answer:
            pass
    assert len(fetch(way, web.url + "/long", budget=5_000_000)) == 5_000_000


@pytest.mark.parametrize(
    "raw",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsh",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx",
     b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nshorts", b"rubbish\r\n\r\n", b"",
     b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"],
)  # fmt: skip
def test_what_breaks_off_or_is_no_http_is_an_error(web: WebServer, way: Net, raw: bytes) -> None:
    web.files["/raw"] = web.raw(raw)
    with pytest.raises(errors.FetchFailed):
        fetch(way, web.url + "/raw")


def test_chunks_are_put_together(web: WebServer, way: Net) -> None:
    web.files["/c"] = web.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert fetch(way, web.url + "/c") == b"abcde"


def test_who_is_silent_or_drips_is_given_up(web: WebServer) -> None:
    def silent(handler: Any) -> None:
        time.sleep(1.5)

    def drips_head(handler: Any) -> None:
        try:
            for byte in b"HTTP/1.1 200 OK\r\n" * 100:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            pass

    def drips_body(handler: Any) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(1000):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    def drips(what: bytes) -> Callable[[Any], None]:
        def answer(handler: Any) -> None:
            with contextlib.suppress(OSError):
                handler.wfile.write(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + what
                )
                for _ in range(1000):
                    handler.wfile.write(b"x")
                    time.sleep(0.02)

        return answer

    web.files |= {"/silent": silent, "/head": drips_head, "/body": drips_body}
    web.files |= {"/size": drips(b"1;"), "/trailers": drips(b"0\r\nX: ")}
    way = Net(friends("127.0.0.3"), connect_timeout=0.2, head_timeout=0.4, read_timeout=0.5)
    for path in ("/silent", "/head", "/body", "/size", "/trailers"):
        begun = time.monotonic()
        with pytest.raises(errors.FetchFailed):
            fetch(way, web.url + path)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("leads", ["//[", "http://[x]/", "http://[::1"])
def test_what_leads_nowhere_is_refused(web: WebServer, way: Net, leads: str) -> None:
    web.files["/away"] = web.leads(leads)
    with pytest.raises(errors.UrlRefused):
        fetch(way, web.url + "/away")


@pytest.mark.needs("openssl")
def test_certificates_are_verified_for_the_name(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "good.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    filters = friends("good.example", "bad.example", "127.0.0.3", "127.0.0.4")
    with serving(host="127.0.0.3", tls=context) as server:
        server.files |= {"/x": b"data", "/down": server.leads(f"http://good.example:{server.port}/x")}
        way = Net(filters, ca_file=str(cert), resolve=lambda name, port: ["127.0.0.3"])
        for host in ("good.example", "GOOD.example.", "127.0.0.3"):
            assert fetch(way, f"https://{host}:{server.port}/x") == b"data"
        with pytest.raises(errors.FetchFailed):
            fetch(way, f"https://bad.example:{server.port}/x")
        with pytest.raises(errors.FetchFailed):
            fetch(Net(filters, resolve=lambda name, port: ["127.0.0.3"]), f"https://good.example:{server.port}/x")
        insecure = Net(filters, insecure=True, resolve=lambda name, port: ["127.0.0.3"])
        assert fetch(insecure, f"https://bad.example:{server.port}/x") == b"data"
        with pytest.raises(errors.UrlRefused, match="unprotected"):
            way.open(f"https://good.example:{server.port}/down")


def test_ipv6_and_another_address_where_the_first_is_silent() -> None:
    with serving(host="::1") as server:
        server.files["/x"] = b"six"
        way = Net(friends("::1", "six.example"), resolve=lambda name, port: ["127.0.0.9", "::1"])
        assert fetch(way, f"http://[::1]:{server.port}/x") == b"six"
        assert server.seen[0].headers["Host"] == f"[::1]:{server.port}"
        assert fetch(way, f"http://six.example:{server.port}/x") == b"six"


# --- nobody waits without a limit ------------------------------------------------------------------------


def _drips(what: bytes, then: bytes = b"x") -> Callable[[Any], None]:
    """An answer that begins so and goes on byte by byte, for as long as somebody listens."""

    def answer(handler: Any) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(what)
            while True:
                handler.wfile.write(then)
                time.sleep(0.02)

    return answer


@contextlib.contextmanager
def _speechless(host: str) -> Iterator[tuple[int, int]]:
    """Two ports of a server: one that takes no connection any more, and one that takes them and says nothing."""
    with socket.socket() as full, socket.socket() as silent, contextlib.ExitStack() as queue:
        for one, backlog in ((full, 0), (silent, 8)):
            one.bind((host, 0))
            one.listen(backlog)
        for _ in range(4):
            filling = queue.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(full.getsockname())
        yield full.getsockname()[1], silent.getsockname()[1]


@pytest.mark.alone
def test_in_whatever_an_origin_is_slow_the_fetch_ends_in_time_and_others_go_on(web: WebServer) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
    web.files |= {
        "/head": _drips(b"HTTP/1.1 200 OK\r\nX: "),
        "/headers": _drips(head, b"X: y\r\n"),
        "/line": _drips(head + b"Transfer-Encoding: chunked\r\n\r\n1;"),
        "/trailers": _drips(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: "),
        "/chunks": _drips(head + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        "/body": _drips(head + b"Content-Length: 1000000\r\n\r\n"),
    }

    def slow_hop(number: int) -> Callable[[Any], None]:
        def answer(handler: Any) -> None:
            time.sleep(0.2)
            web.leads(f"/hop{number + 1}")(handler)

        return answer

    web.files |= {f"/hop{number}": slow_hop(number) for number in range(6)}
    resolving = threading.Event()

    def resolver(name: str, port: int) -> list[str]:
        if name == "slow.example":
            resolving.wait(20)
        return ["127.0.0.3"]

    private = friends("127.0.0.3", "127.0.0.5", "slow.example")
    way = Net(private, resolve=resolver, connect_timeout=0.5, head_timeout=0.5, read_timeout=0.5, fetch_timeout=0.7)
    insecure = replace(way, insecure=True, _tls=[])
    took: dict[str, float] = {}

    def ask(url: str) -> str:
        begun = time.monotonic()
        try:
            # As where a location is added: the first bytes are a part of it.
            with way.slot() as slot, closing((insecure if "https" in url else way).open(url, slot=slot)) as answer:
                for _ in answer:
                    pass
        except errors.FetchFailed as exc:
            return str(exc)
        finally:
            took[url] = time.monotonic() - begun
        return "it came"

    with _speechless("127.0.0.5") as (full, silent), serving(host="127.0.0.4") as other:
        urls = [web.url + path for path in web.files if path.lstrip("/").rstrip("0") in
                ("head", "headers", "line", "trailers", "chunks", "body", "hop")]  # fmt: skip
        urls += [f"http://127.0.0.5:{full}/", f"https://127.0.0.5:{full}/", f"http://127.0.0.5:{silent}/"]
        urls += [f"https://127.0.0.5:{silent}/", f"http://slow.example:{web.port}/"]
        assert len(urls) == 12
        with ThreadPoolExecutor(len(urls)) as threads:
            asked = [threads.submit(ask, url) for url in urls]
            other.files["/x"] = bytes(1 << 20)
            begun = time.monotonic()
            assert len(fetch(Net(friends("127.0.0.4")), other.url + "/x")) == 1 << 20
            assert time.monotonic() - begun < 0.6
            answers = [one.result() for one in asked]
        resolving.set()
    assert "it came" not in answers
    assert max(took.values()) < 1.5, took


@pytest.mark.alone
def test_a_tls_record_that_drips_in_is_not_waited_for_to_its_end() -> None:
    """Nor a handshake: what comes looks like one, and is never done."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.3", 0))
        listening.listen()
        over = threading.Event()

        def serve() -> None:
            taken, _ = listening.accept()
            with taken, contextlib.suppress(OSError):
                taken.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB
                while not over.wait(0.02):
                    taken.sendall(b"\x02")

        server = threading.Thread(target=serve)
        server.start()
        begun = time.monotonic()
        with pytest.raises(errors.FetchFailed):
            Net(friends("127.0.0.3"), connect_timeout=0.3).open(f"https://127.0.0.3:{listening.getsockname()[1]}/")
        assert time.monotonic() - begun < 1
        over.set()
        server.join()


def test_many_small_chunks_are_read_without_a_thread(web: WebServer, way: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    one = b"400\r\n" + bytes(1024) + b"\r\n"
    web.files["/small"] = web.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + one * 4096 + b"0\r\n\r\n")
    started: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(self), start(self))[1])
    assert len(fetch(way, web.url + "/small")) == 4 << 20
    assert [thread for thread in started if "process_request" not in thread.name] == []  # the server's own has this


def test_a_host_has_no_more_than_its_share_of_those_who_wait_whatever_it_is_called(web: WebServer) -> None:
    over = threading.Event()
    web.files |= {"/slow": lambda _: over.wait(20), "/x": b"data", "/away": web.leads("http://there.example/")}
    names = ("one.example", "two.example", "127.0.0.3")
    way = Net(friends(*names, "127.0.0.4"), resolve=lambda *_: ["127.0.0.3"], limit=FetchLimit(4, 2))
    with serving(host="127.0.0.4") as other, ThreadPoolExecutor(4) as threads:
        other.files |= {"/x": b"more", "/slow": web.files["/slow"]}

        def wait(server: WebServer, host: str) -> Any:
            return threads.submit(lambda: pytest.raises(errors.FetchFailed, way.open, url(server, host, "/slow")))

        def url(server: WebServer, host: str, path: str) -> str:
            return f"http://{host}:{server.port}{path}"

        web.seen.clear()
        waiting = [wait(web, host) for host in names[:2]]
        until(lambda: len(web.seen) == 2)
        with pytest.raises(errors.Busy, match="this server"):
            way.open(url(web, names[2], "/x"))
        assert fetch(way, other.url + "/x") == b"more"
        waiting += [wait(other, "127.0.0.4") for _ in range(2)]
        until(lambda: len(other.seen) == 3)
        with pytest.raises(errors.Busy, match="servers elsewhere"):
            way.open(other.url + "/x")
        over.set()
        for one in waiting:
            one.result()
        assert fetch(way, url(web, names[2], "/x")) == b"data"
        assert (way.limit._count, +way.limit._at) == (0, {})


def test_who_was_led_on_waits_no_more_where_he_came_from(web: WebServer) -> None:
    over = threading.Event()
    with serving(host="127.0.0.4") as slow, ThreadPoolExecutor(1) as threads:
        slow.files["/slow"] = lambda _: over.wait(20)
        web.files |= {"/away": web.leads(slow.url + "/slow"), "/x": b"data"}
        way = Net(friends("127.0.0.3", "127.0.0.4"), limit=FetchLimit(4, 1))
        led = threads.submit(lambda: pytest.raises(errors.FetchFailed, way.open, web.url + "/away"))
        until(lambda: slow.seen)
        assert fetch(way, web.url + "/x") == b"data"
        over.set()
        led.result()


def test_look_ups_that_hang_are_given_up_and_do_not_pile_up() -> None:
    over, asked = threading.Event(), []

    def resolver(name: str, port: int) -> list[str]:
        asked.append(name)
        if name.startswith("slow"):
            over.wait(20)
        return ["8.8.8.8"]

    way = Net(ANY_PORT, resolve=resolver, fetch_timeout=0.1, names=NameLookups(3))
    before = threading.active_count()
    for name in ("slow1", "slow1", "slow2", "slow1"):
        with pytest.raises(errors.FetchFailed, match="in time"):
            way.check(f"http://{name}.example/")
    assert asked == ["slow1.example", "slow2.example"]
    way.check("http://quick.example/")
    with pytest.raises(errors.FetchFailed):
        way.check("http://slow3.example/")
    with pytest.raises(errors.Busy):
        way.check("http://slow4.example/")
    assert threading.active_count() <= before + 3
    over.set()
    until(lambda: threading.active_count() == before)
    way.check("http://slow4.example/")


# --- a name server of an attacker ------------------------------------------------------------------------

#: Prefixes of NAT64 of an operator, one of each length, and a way to put an IPv4 address into them (RFC 6052, 2.4).
NAT64 = ["2001:db8::/32", "2001:db8:100::/40", "2001:db8:122::/48", "2001:db8:122:300::/56", "2001:db8:122:344::/64",
         "2001:db8:122:344::/96", "64:ff9b::/96", "fd64::/96"]  # fmt: skip


def embedded(prefix: str, address: str, suffix: int = 0) -> str:
    net6, four = ipaddress.IPv6Network(prefix), int(ipaddress.IPv4Address(address))
    if net6.prefixlen == 96:
        return str(ipaddress.IPv6Address(int(net6.network_address) | four))
    bits = "".join(f"{net6.network_address.packed[byte]:08b}" for byte in range(net6.prefixlen // 8)) + f"{four:032b}"
    bits = bits[:64] + "00000000" + bits[64:]
    return str(ipaddress.IPv6Address(int(bits.ljust(128, "0"), 2) | suffix))


def test_addresses_are_embedded_as_in_the_document() -> None:
    """The table of RFC 6052, 2.4."""
    table = ["2001:db8:c000:221::", "2001:db8:1c0:2:21::", "2001:db8:122:c000:2:2100::", "2001:db8:122:3c0:0:221::",
             "2001:db8:122:344:c0:2:2100::", "2001:db8:122:344::192.0.2.33", "64:ff9b::192.0.2.33"]  # fmt: skip
    for prefix, text in zip(NAT64, table, strict=False):
        address = ipaddress.IPv6Address(text)
        assert embedded(prefix, "192.0.2.33") == str(address)
        assert net.carried(address, net.nat64_prefix(prefix)) == ipaddress.IPv4Address("192.0.2.33")


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    with name_server() as running:
        yield running


INNER = ["127.0.0.1", "127.8.8.8", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1",
         "100.64.0.1", "255.255.255.255", "168.63.129.16"]  # fmt: skip


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("prefix", NAT64)
def test_an_address_in_the_operators_nat64_counts_as_what_it_carries(
    traps: list[Trap], names: NameServer, prefix: str, inner: str
) -> None:
    way = Net(replace(ANY_PORT, nat64_prefixes=frozenset({net.nat64_prefix(prefix)})), resolve=names.resolve)
    for suffix in (0, 1) if "/96" not in prefix else (0,):
        address = embedded(prefix, inner, suffix)
        names.names["evil.example"] = [[address]]
        for host in ("evil.example", f"[{address}]"):
            with pytest.raises(errors.UrlRefused):
                way.open(f"http://{host}:{traps[0].port}/")
    way.check(f"http://[{embedded(prefix, '8.8.8.8')}]/")
    assert [one.hits for one in traps] == [0, 0, 0]


def test_other_prefixes_and_bits_that_must_be_zero_open_nothing() -> None:
    public = embedded("2001:db8:122::/48", "8.8.8.8")
    with pytest.raises(errors.UrlRefused):
        Net(ANY_PORT).check(f"http://[{public}]/")
    with pytest.raises(errors.UrlRefused):
        Net(ANY_PORT).check("http://[64:ff9b::8.8.8.8]/")
    way = Net(replace(ANY_PORT, nat64_prefixes=frozenset({net.nat64_prefix("2001:db8:122::/48")})))
    way.check(f"http://[{public}]/")
    with pytest.raises(errors.UrlRefused):  # bits 64 to 71
        way.check(f"http://[{ipaddress.IPv6Address(int(ipaddress.IPv6Address(public)) | 1 << 56)}]/")
    with pytest.raises(errors.UrlRefused):
        way.check("http://[2001:db8:123:808:8:800::]/")


def test_an_address_of_a_disallowed_host_is_refused_in_each_disguise(names: NameServer) -> None:
    names.names["friend.example"] = [["::ffff:10.1.2.3"]]
    prefix = net.nat64_prefix("fd64::/96")
    filters = friends("friend.example", disallowed_hosts=net.hosts(["10.1.2.3"]), nat64_prefixes=frozenset({prefix}))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd64::a01:203", "2002:a01:203::1", "64:ff9b::a01:203"):
        names.names["friend.example"] = [[address]]
        with pytest.raises(errors.UrlRefused):
            Net(filters, resolve=names.resolve).check("http://friend.example/")
    names.names["friend.example"] = [["10.1.2.4"]]
    Net(filters, resolve=names.resolve).check("http://friend.example/")


@pytest.mark.parametrize("addresses", ANSWERS, ids=",".join)
def test_what_a_name_server_answers_is_checked_whole(
    traps: list[Trap], names: NameServer, addresses: list[str]
) -> None:
    names.names["evil.example"] = [[one.partition("%")[0] for one in addresses]]
    way = Net(ANY_PORT, resolve=names.resolve)
    for scheme in ("http", "https"):
        with pytest.raises(errors.UrlRefused):
            way.open(f"{scheme}://evil.example:{traps[0].port}/")
    assert [one.hits for one in traps] == [0, 0, 0]


@pytest.mark.parametrize("inside", ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "10.0.0.1"])
def test_a_name_server_that_changes_its_answers_leads_nowhere(
    traps: list[Trap], names: NameServer, web: WebServer, inside: str
) -> None:
    """It is asked once for each connection, and the address that was checked is connected to."""
    web.files["/x"] = b"data"
    web.seen.clear()
    way = Net(friends("friend.example"), resolve=names.resolve)
    names.names["friend.example"] = [["127.0.0.3"], [inside]]
    assert fetch(way, f"http://friend.example:{web.port}/x") == b"data"
    # A name that nothing allows to be private: public when it was checked, and then not.
    names.names["evil.example"] = [["8.8.8.8"], [inside]]
    way.check(f"http://evil.example:{traps[0].port}/")
    for _ in range(2):
        with pytest.raises(errors.UrlRefused):
            way.open(f"http://evil.example:{traps[0].port}/")
    # As the target of a redirect.
    names.names["evil.example"] = [[inside]]
    web.files["/go"] = web.leads(f"http://evil.example:{traps[0].port}/")
    with pytest.raises(errors.UrlRefused):
        Net(friends("127.0.0.3"), resolve=names.resolve).open(web.url + "/go")
    assert [one.hits for one in traps] == [0, 0, 0]


@pytest.mark.parametrize("hop", range(6))
def test_no_hop_of_a_chain_leads_inside(traps: list[Trap], web: WebServer, way: Net, hop: int) -> None:
    for number in range(hop):
        web.files[f"/chain{number}"] = web.leads(f"/chain{number + 1}", 307)
    for inside in (
        *("http://127.0.0.1:{port}/", "http://inside.example:{port}/", "http://[::1]:{port}/", "//127.0.0.2:{port}/"),
        *("http://localhost:{port}/", "http://127.0.0.3:0/", "http://127.0.0.3@127.0.0.1:{port}/", "ftp://127.0.0.3/"),
    ):
        web.files[f"/chain{hop}"] = web.leads(inside.format(port=traps[0].port))
        with pytest.raises((errors.UrlRefused, errors.FetchFailed)):
            way.open(web.url + "/chain0")
    assert [one.hits for one in traps] == [0, 0, 0]


# --- what the operator allows ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "host", "addresses", "passes"),
    [
        ("10.0.0.7", "10.0.0.7", [], True),
        ("10.0.0.7", "10.0.0.8", [], False),
        ("10.0.0.7", "intern.example", ["10.0.0.7"], False),
        ("127.0.0.1", "127.0.0.1", [], True),
        ("::1", "[::1]", [], True),
        ("[::1]", "[0:0::1]", [], True),
        ("fd00::7", "[fd00::7]", [], True),
        ("localhost", "localhost", ["127.0.0.1"], True),
        ("localhost", "LOCALHOST.", ["::1"], True),
        ("localhost", "localhost", ["10.0.0.1"], False),
        ("localhost", "localhost", ["127.0.0.1", "192.168.0.1"], False),
        ("localhost", "localhost", ["169.254.169.254"], False),
        ("mirror.example", "mirror.example", ["10.0.0.7"], False),
        ("mirror.example", "mirror.example", ["127.0.0.1"], False),
        ("mirror.example", "mirror.example", ["8.8.8.8"], True),
        ("mirror.example", "mirror.example", ["8.8.8.8", "10.0.0.7"], False),
        ("localhost.example", "localhost.example", ["127.0.0.1"], False),
        ("169.254.169.254", "169.254.169.254", [], False),
        ("fe80::1", "[fe80::1]", [], False),
        ("0.0.0.0", "0.0.0.0", [], False),
        ("::ffff:169.254.169.254", "[::ffff:169.254.169.254]", [], False),
    ],
)
def test_an_address_in_allowed_hosts_may_be_private_and_a_name_may_not(
    allowed: str, host: str, addresses: list[str], passes: bool
) -> None:
    way = Net(Filters(allowed_hosts=net.hosts([allowed])), resolve=lambda name, port: addresses)
    with contextlib.nullcontext() if passes else pytest.raises(errors.UrlRefused):
        way.check(f"http://{host}/")


def test_a_name_in_private_hosts_may_be_private_if_allowed_hosts_has_it_too() -> None:
    both = Filters(
        allowed_hosts=frozenset({"a.example", "b.example"}), private_hosts=frozenset({"a.example", "c.example"})
    )
    way = Net(both, resolve=lambda name, port: ["10.0.0.7"])
    way.check("http://a.example/")
    for host in ("b.example", "c.example"):
        with pytest.raises(errors.UrlRefused):
            way.check(f"http://{host}/")
