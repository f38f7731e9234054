"""The one guarded way out to URLs that a user named: what may be asked, who is connected to, how much is read.

One strict parser reads a URL, and what it found is what is used: no second parser can see another host in it. A name
is resolved once, each of its addresses is checked, and a checked address is connected to; TLS is verified for the
name. Each redirect goes through the same. Nothing here knows images or stores; `stores/http.py` reads through it.
"""

import contextlib
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Final
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from calotype import __version__, errors

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: The addresses of a name, as text; raises `OSError`.
Resolver = Callable[[str, int], Iterable[str]]

_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS: Final = 5
_MOST_ADDRESSES: Final = 4  #: How many of a name's addresses are tried.
_PIECE: Final = 1 << 20
#: What urllib3, and what is beneath it, raise for what a server or the way to it does.
_FAILURES: Final = (OSError, ValueError, HTTPException, urllib3.exceptions.HTTPError)

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?"
)
_PLAIN: Final = re.compile(r"[!-~]+")  # what a URL is made of: printable ASCII without the space
_LABEL: Final = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*{_LABEL}")
#: Last labels that some resolver or other takes for a number, and the name for an IPv4 address.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _nets(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


#: Nobody is ever sent here, whatever is configured: this host, link-local (metadata services among it), multicast,
#: reserved; and metadata services of clouds at other addresses.
_NEVER: Final = _nets(
    *("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "100.100.100.200/32", "168.63.129.16/32"),
    *("::/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128"),
)
#: What Python may take for public and is not, or not in each version.
_PRIVATE4: Final = _nets("192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "100.64.0.0/10")
#: The public half of IPv6, and what in it is not public or stands for an IPv4 address (Teredo, 6to4).
_PUBLIC6: Final = ipaddress.ip_network("2000::/3")
_PRIVATE6: Final = _nets("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
#: Networks whose addresses end in an IPv4 address: compatible, mapped, NAT64.
_ENDS_IN_IPV4: Final = _nets("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in its parts. `host` is lower-case without brackets and final dot; `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def netloc(self) -> str:
        """Host and port as in a URL and in the header `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS.get(self.scheme) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"


@dataclass(frozen=True, slots=True)
class Filters:
    """What the operator decided. Hosts are names or addresses, as `parse` writes them; an empty `allowed_…` is any.

    Hosts in `allowed_hosts` and `private_hosts` may lie at private addresses and on this host, all others may not.
    """

    allowed_schemes: Container[str] = frozenset()
    disallowed_schemes: Container[str] = frozenset()
    allowed_hosts: frozenset[str] = frozenset()
    disallowed_hosts: frozenset[str] = frozenset()
    allowed_ports: Container[int] = frozenset()
    disallowed_ports: Container[int] = frozenset()
    private_hosts: frozenset[str] = frozenset()

    def check(self, target: Target) -> None:
        """Raise `UrlRefused` unless scheme, host and port are allowed. Looks at the text only."""
        for what, value, allowed, disallowed in (
            ("scheme", target.scheme, self.allowed_schemes, self.disallowed_schemes),
            ("host", target.host, self.allowed_hosts, self.disallowed_hosts),
            ("port", target.port, self.allowed_ports, self.disallowed_ports),
        ):
            if (allowed and value not in allowed) or value in disallowed:
                raise errors.UrlRefused(f"The {what} of the URL is not one that this service connects to.")

    def check_address(self, target: Target, address: Address) -> None:
        """Raise `UrlRefused` unless this address of the target's host may be connected to."""
        private = target.host not in self.allowed_hosts | self.private_hosts
        if forbidden(address, private=private) or str(address) in self.disallowed_hosts:
            raise errors.UrlRefused("The host of the URL has an address that this service does not connect to.")


def hosts(texts: Iterable[str]) -> frozenset[str]:
    """Configured hosts in the form in which `parse` writes them. Raises `UrlRefused`."""
    return frozenset(_host(text if ":" not in text or text.startswith("[") else f"[{text}]") for text in texts)


def parse(url: str) -> Target:
    """The parts of a URL with a host. Raises `UrlRefused` for one that two readers might read in two ways."""
    found = _URL.fullmatch(url) if _PLAIN.fullmatch(url) and "\\" not in url else None
    if found is None:
        raise errors.UrlRefused(
            "The URL is not of the form scheme://host[:port]/path[?query]: plain ASCII, without user, password, "
            "fragment or escapes in the host."
        )
    scheme = found["scheme"].lower()
    port = int(found["port"]) if found["port"] else _PORTS.get(scheme, 0)
    if not 0 < port < 65536:
        raise errors.UrlRefused("The URL has no port that there is.")
    return Target(scheme, _host(found["host"]), port, (found["path"] or "/") + (found["query"] or ""))


def _joined(base: str, leads: str) -> str:
    try:
        return urljoin(base, leads)
    except ValueError as exc:  # of what has a host that Python cannot read
        raise errors.UrlRefused("The URL leads to one that cannot be read.") from exc


def _host(text: str) -> str:
    refused = errors.UrlRefused("The URL's host is neither a name nor an address in its usual form.")
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError as exc:
            raise refused from exc
    host = text.lower().removesuffix(".")
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv4Address(host))
    if not _NAME.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise refused
    return host


def forbidden(address: Address, *, private: bool = True) -> bool:
    """Whether nobody may be sent to this address; without `private` only those that are never allowed."""
    if any(one in net for one in (address, *_inner(address)) for net in _NEVER):
        return True
    if not private:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not address.is_global or any(address in net for net in _PRIVATE4)
    return address not in _PUBLIC6 or any(address in net for net in _PRIVATE6)


def _inner(address: Address) -> Iterator[Address]:
    """Addresses that this one may stand for."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if any(address in net for net in _ENDS_IN_IPV4) and not address.is_loopback:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour:
        yield address.sixtofour
    yield from address.teredo or ()


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, by this system's resolver and its time-outs."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Net:
    """A way out with its rules. Shared by threads; knows no proxies and keeps no cookies. Times are in seconds.

    A server gets `connect_timeout` to take the connection, `head_timeout` for the whole head of its answer,
    `read_timeout` for each next byte, and must send `min_rate` bytes a second while it is waited for.
    """

    filters: Filters
    ca_file: str | None = None
    insecure: bool = False  #: whether certificates go unverified
    resolve: Resolver = resolve
    connect_timeout: float = 10.0
    head_timeout: float = 30.0
    read_timeout: float = 30.0
    min_rate: int = 1024
    _tls: list[ssl.SSLContext] = field(default_factory=list, repr=False, compare=False)

    def prepare(self) -> None:
        """Read the certificates. Raises `OSError`."""
        self._context()

    def check(self, url: str) -> None:
        """Raise `UrlRefused` for a URL that `open` would not connect to, `FetchFailed` when its name has no address."""
        self._addresses(self._target(url))

    def open(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        budget: int | None = None,
    ) -> "Answer":
        """The answer to a request, whatever its status; its body is still to be read, at most `budget` bytes of it.

        `secrets` are headers that go to the origin of `url` alone. Raises `UrlRefused` for this URL or one that it
        leads to, `FetchFailed` for everything that keeps the answer from coming.
        """
        target = self._target(url)
        sent = dict(secrets or {})
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._ask(method, target, {**(headers or {}), **sent}, budget)
            leads = answer.headers.get("Location") if answer.status in _REDIRECTS else None
            if leads is None:
                return answer
            answer.close()
            # What is left of a user's text and a server's is parsed again, strictly.
            after = self._target(_joined(target.url, leads))
            if target.scheme == "https" and after.scheme != "https":
                raise errors.UrlRefused("The URL leads from https to an unprotected one.")
            if after.origin != target.origin:
                sent = {}
            target = after
        raise errors.FetchFailed(f"The URL leads on more than {_MOST_REDIRECTS} times.")

    def _target(self, url: str) -> Target:
        target = parse(url)
        if target.scheme not in _PORTS:
            raise errors.UrlRefused("Only http and https can be fetched.")
        self.filters.check(target)
        return target

    def _addresses(self, target: Target) -> list[Address]:
        """Where to connect to; all of them are allowed."""
        try:
            found = [ipaddress.ip_address(target.host)]
        except ValueError:
            try:
                found = [ipaddress.ip_address(text) for text in self.resolve(target.host, target.port)]
            except (OSError, ValueError) as exc:  # UnicodeError is a ValueError
                raise errors.FetchFailed("The URL's host has no address.") from exc
        for address in found:
            self.filters.check_address(target, address)
        if not found:
            raise errors.FetchFailed("The URL's host has no address.")
        return found[:_MOST_ADDRESSES]

    def _ask(self, method: str, target: Target, headers: Mapping[str, str], budget: int | None) -> "Answer":
        failure: Exception | None = None
        for address in self._addresses(target):
            connection = self._connection(target, address)
            with _watched(connection, self.connect_timeout + self.head_timeout):
                try:
                    connection.connect()
                except _FAILURES as exc:
                    connection.close()
                    failure = exc
                    continue
                return self._exchange(connection, method, target, headers, budget)
        raise errors.FetchFailed("The URL's host cannot be connected to.") from failure

    def _exchange(
        self, connection: HTTPConnection, method: str, target: Target, headers: Mapping[str, str], budget: int | None
    ) -> "Answer":
        usual = {"Host": target.netloc, "User-Agent": f"calotype/{__version__}", "Accept": "*/*"}
        try:
            sock = connection.sock
            assert sock is not None
            sock.settimeout(self.read_timeout)
            connection.request(
                method,
                target.path,
                headers={**usual, **headers, "Accept-Encoding": "identity", "Connection": "close"},
                preload_content=False,
                decode_content=False,
            )
            response = connection.getresponse()
            return Answer(connection, sock, response, method, budget, self.min_rate, self.read_timeout)
        except _FAILURES as exc:
            connection.close()
            raise errors.FetchFailed("The URL's server did not answer as HTTP servers do.") from exc
        except BaseException:
            connection.close()
            raise

    def _connection(self, target: Target, address: Address) -> HTTPConnection:
        if target.scheme == "http":
            return HTTPConnection(str(address), target.port, timeout=self.connect_timeout)
        return HTTPSConnection(
            str(address),
            target.port,
            timeout=self.connect_timeout,
            ssl_context=self._context(),
            server_hostname=target.host,
        )

    def _context(self) -> ssl.SSLContext:
        if not self._tls:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._tls.append(context)
        return self._tls[0]


@contextlib.contextmanager
def _watched(connection: HTTPConnection, seconds: float, sock: socket.socket | None = None) -> Iterator[None]:
    """End whatever the connection waits for after this time; `FetchFailed` then, even if that looked like an end.

    Once the head of an answer is there a connection may know its socket no longer; then it is given.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        found = sock or connection.sock
        if found is not None:
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)

    watch = threading.Timer(seconds, end)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
        if late.is_set():
            connection.close()
            raise errors.FetchFailed("The URL's server is too slow.")


class Answer:
    """An answer whose body is still to come. Iterate once; close it, whether it was read or not."""

    status: int
    headers: Mapping[str, str]
    size: int | None  #: bytes of the body as announced, None where they are not

    def __init__(
        self,
        connection: HTTPConnection,
        sock: socket.socket,
        response: urllib3.HTTPResponse,
        method: str,
        budget: int | None,
        min_rate: int,
        patience: float,
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        length = self.headers.get("Content-Length", "")
        chunked = "Transfer-Encoding" in self.headers
        self.size = int(length) if re.fullmatch("[0-9]{1,18}", length) and not chunked else None
        self._connection = connection
        self._sock = sock
        self._response = response
        self._chunked = chunked
        self._empty = method == "HEAD"
        self._budget = budget
        self._min_rate = min_rate
        self._patience = patience
        if self.headers.get("Content-Encoding", "identity") != "identity":
            self.close()
            raise errors.FetchFailed("The URL's server sends what nobody asked for: compressed data.")

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces. Raises `FetchFailed` rather than end early, `OverLimit` beyond the budget."""
        seen, waited = 0, 0.0
        while not self._empty:
            begun = time.monotonic()
            try:
                piece = self._read()
            except _FAILURES as exc:
                raise errors.FetchFailed("The URL's server broke off.") from exc
            waited += time.monotonic() - begun
            if not piece:
                break
            seen += len(piece)
            if self._budget is not None and seen > self._budget:
                raise errors.OverLimit(f"The URL has more than the {self._budget} bytes that are allowed.")
            if waited > self._patience and seen < waited * self._min_rate:
                raise errors.FetchFailed("The URL's server is too slow.")
            yield piece
        if not self._empty and self.size not in (None, seen):
            raise errors.FetchFailed(f"The URL's server sent {seen} of {self.size} bytes.")

    def _read(self) -> bytes:
        if not self._chunked:
            return self._response.read1(_PIECE)  # one wait, which the socket ends
        # Sizes and trailers of chunks come byte by byte, if a server wants, and without end.
        with _watched(self._connection, self._patience, self._sock):
            return self._response.read1(_PIECE)

    def close(self) -> None:
        self._response.close()
        self._connection.close()
