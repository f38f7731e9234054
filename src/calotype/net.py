"""The one guarded way out to URLs that a user named: what may be asked, who is connected to, how much is read.

One strict parser reads a URL, and what it found is what is used: no second parser can see another host in it. A name
is resolved once, each of its addresses is checked, and a checked address is connected to; TLS is verified for the
name. Each redirect goes through the same. Nothing here knows images or stores; `stores/http.py` reads through it.

Nobody waits without a limit: a fetch has one time limit for all that comes before the body, and so many may wait at
once, of them so many for one host. No thread watches over that: a socket is told before each wait how long it may be.
"""

import contextlib
import ipaddress
import math
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection

from calotype import __version__, errors

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: The addresses of a name, as text; raises `OSError`.
Resolver = Callable[[str, int], Iterable[str]]

_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS: Final = 5
_MOST_ADDRESSES: Final = 4  #: How many of a name's addresses are tried.
_PIECE: Final = 1 << 20
#: How many may wait for fetches in one process, and of those for one host, unless somebody says otherwise.
FETCHES: Final = 256
FETCHES_OF_HOST: Final = 64
#: How long a server may take for a connection, and for its head and each next piece, unless somebody says otherwise.
CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 30.0
#: What urllib3, and what is beneath it, raise for what a server or the way to it does.
_FAILURES: Final = (OSError, ValueError, HTTPException, urllib3.exceptions.HTTPError)

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?"
)
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%[01][0-9A-Fa-f]|%7[Ff]")
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


def is_well_formed(url: str) -> bool:
    """Whether a URL of any scheme can be read.

    Brackets hold an address, a port is one, a percent sign begins an escape, and none of a control character.
    """
    try:
        parts = urlsplit(url)
        if parts.hostname is not None and ":" in parts.hostname:
            ipaddress.IPv6Address(parts.hostname)
        if parts.netloc.rpartition("@")[2].count(":") > 1 and ":" not in (parts.hostname or ""):
            return False
        return parts.port != 0 and not _BAD_ESCAPE.search(url)  # the port is a number of at most 16 bits, or an error
    except ValueError:
        return False


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


class FetchSlot:
    """The right to wait for a fetch: until when (`time.monotonic`), and at which servers."""

    def __init__(self, limit: "FetchLimit", until: float) -> None:
        self._limit = limit
        self.until = until
        self._places: tuple[str, ...] = ()

    def remaining(self, most: float) -> float:
        """Seconds that may be waited now, at most so many. Raises `FetchFailed` when the time is over."""
        remaining = min(most, self.until - time.monotonic())
        if remaining <= 0:
            raise errors.FetchFailed("The URL's server is too slow.")
        return remaining

    def go(self, *places: str) -> None:
        """Wait at these places, a host and its address, and no more at those before. Raises `Busy`."""
        self._places = self._limit.move(self._places, places)


class FetchLimit:
    """How many may wait for fetches at once, in all and at one place. Shared by threads.

    So a server that does not answer costs no more than its share, and all of them together no more than theirs.
    """

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._lock = threading.Lock()
        self._count = 0
        self._at: Counter[str] = Counter()

    @contextlib.contextmanager
    def slot(self, seconds: float) -> Iterator[FetchSlot]:
        """A place for the length of the block, and a time limit. Raises `Busy` when there is no place."""
        with self._lock:
            if self._count >= self._most:
                raise errors.Busy("Too many wait for servers elsewhere; try again later.")
            self._count += 1
        slot = FetchSlot(self, time.monotonic() + seconds)
        try:
            yield slot
        finally:
            slot.go()
            with self._lock:
                self._count -= 1

    def move(self, before: tuple[str, ...], after: tuple[str, ...]) -> tuple[str, ...]:
        with self._lock:
            self._at.subtract(before)
            if full := any(self._at[place] >= self._each for place in after):
                after = ()
            self._at.update(after)
            for place in before:
                if not self._at[place]:
                    del self._at[place]
        if full:
            raise errors.Busy("Too many wait for this server; try again later.")
        return after


class NameLookups:
    """Looks names up in threads beside, since nothing ends a look-up early. Shared by threads.

    Who waits for one goes on when his time is over; the look-up ends by itself, and until then others who ask for the
    same name wait for it. There are never more of them than `most`.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], _Lookup] = {}

    def find(self, resolve: Resolver, host: str, port: int, seconds: float) -> list[str]:
        """The addresses of a name. Raises what `resolve` raises, `Busy`, and `FetchFailed` when it takes too long."""
        with self._lock:
            lookup = self._running.get((host, port))
            if lookup is None:
                if len(self._running) >= self._most:
                    raise errors.Busy("Too many names are being looked up; try again later.")
                lookup = self._running[host, port] = _Lookup()
                try:
                    threading.Thread(target=self._run, args=(lookup, resolve, host, port), daemon=True).start()
                except RuntimeError as exc:
                    del self._running[host, port]
                    raise errors.Busy("There is no thread to look a name up with; try again later.") from exc
        if not lookup.done.wait(seconds):
            raise errors.FetchFailed("The URL's host was not found in time.")
        if lookup.failure is not None:
            raise lookup.failure
        return lookup.found

    def _run(self, lookup: "_Lookup", resolve: Resolver, host: str, port: int) -> None:
        try:
            lookup.found = list(resolve(host, port))
        except Exception as exc:  # noqa: BLE001  # for those who wait
            lookup.failure = exc
        finally:
            with self._lock:
                del self._running[host, port]
            lookup.done.set()


class _Lookup:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.found: list[str] = []
        self.failure: Exception | None = None


class _DeadlineSocket:
    """A socket that waits for nothing beyond a moment, which is moved on, nor for any one thing too long."""

    until = 0.0  #: `time.monotonic`

    def _set_timeout(self: Any) -> None:
        remaining = self.until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the time is over")
        self.settimeout(remaining)

    def recv_into(self: Any, *arguments: Any) -> Any:
        self._set_timeout()
        return super().recv_into(*arguments)  # type: ignore[misc]

    def sendall(self: Any, *arguments: Any) -> Any:
        self._set_timeout()
        return super().sendall(*arguments)  # type: ignore[misc]


class _Socket(_DeadlineSocket, socket.socket):
    pass


class _TlsSocket(_DeadlineSocket, ssl.SSLSocket):
    pass


class _Wire(HTTPConnection):
    """A connection to an address, of sockets that end what they wait for."""

    def __init__(self, address: Address, port: int, until: float) -> None:
        super().__init__(str(address), port)
        self._until = until
        self._family = socket.AF_INET6 if address.version == 6 else socket.AF_INET

    def connect(self) -> None:
        sock = _Socket(self._family, socket.SOCK_STREAM)
        self.sock = sock
        sock.until = self._until
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock._set_timeout()
        sock.connect((self.host, self.port))

    def secure(self, context: ssl.SSLContext, name: str) -> None:
        """Speak TLS from here on, to a server with a certificate for that name."""
        assert isinstance(self.sock, _Socket)
        self.sock._set_timeout()
        self.sock = wrapped = context.wrap_socket(self.sock, server_hostname=name)
        assert isinstance(wrapped, _TlsSocket)
        wrapped.until = self._until


@dataclass(frozen=True, slots=True)
class Net:
    """A way out with its rules. Shared by threads; knows no proxies and keeps no cookies. Times are in seconds.

    A fetch gets `fetch_timeout` for all that comes before the body, redirects and look-ups of names included. In it a
    server gets `connect_timeout` to take the connection, TLS included, and `head_timeout` for the whole head of its
    answer. Then it has `read_timeout` for each next piece, and must send `min_rate` bytes a second while it is waited
    for.
    """

    filters: Filters
    ca_file: str | None = None
    insecure: bool = False  #: whether certificates go unverified
    resolve: Resolver = resolve
    connect_timeout: float = CONNECT_TIMEOUT
    head_timeout: float = READ_TIMEOUT
    read_timeout: float = READ_TIMEOUT
    fetch_timeout: float = 60.0
    min_rate: int = 1024
    limit: FetchLimit = field(default_factory=lambda: FetchLimit(FETCHES, FETCHES_OF_HOST), compare=False)
    names: NameLookups = field(default_factory=lambda: NameLookups(FETCHES), compare=False)
    _tls: list[ssl.SSLContext] = field(default_factory=list, repr=False, compare=False)

    def prepare(self) -> None:
        """Read the certificates. Raises `OSError`."""
        self._context()

    def slot(self) -> contextlib.AbstractContextManager[FetchSlot]:
        """One wait for several fetches, within the time of one. Raises `Busy` when too many wait already."""
        return self.limit.slot(self.fetch_timeout)

    def check(self, url: str) -> None:
        """Raise `UrlRefused` for a URL that `open` would not connect to, `FetchFailed` when its name has no address.

        `Busy` when too many wait already.
        """
        with self.slot() as slot:
            self._addresses(self._target(url), slot)

    def open(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        budget: int | None = None,
        slot: FetchSlot | None = None,
    ) -> "Answer":
        """The answer to a request, whatever its status; its body is still to be read, at most `budget` bytes of it.

        `secrets` are headers that go to the origin of `url` alone. With a `slot` the caller goes on waiting for the
        body, until the end of that. Raises `UrlRefused` for this URL or one that it leads to, `FetchFailed` for
        everything that keeps the answer from coming, `Busy` when too many wait already.
        """
        target = self._target(url)
        if slot is not None:
            return self._follow(slot, method, target, headers or {}, secrets or {}, budget, slot.until)
        with self.slot() as mine:
            return self._follow(mine, method, target, headers or {}, secrets or {}, budget, None)

    def _follow(
        self,
        slot: FetchSlot,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        secrets: Mapping[str, str],
        budget: int | None,
        until: float | None,
    ) -> "Answer":
        sent = dict(secrets)
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._ask(slot, method, target, {**headers, **sent}, budget, until)
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

    def _addresses(self, target: Target, slot: FetchSlot) -> list[Address]:
        """Where to connect to; all of them are allowed."""
        try:
            found = [ipaddress.ip_address(target.host)]
        except ValueError:
            slot.go(target.host)
            seconds = slot.remaining(self.fetch_timeout)
            try:
                texts = self.names.find(self.resolve, target.host, target.port, seconds)
                found = [ipaddress.ip_address(text) for text in texts]
            except (OSError, ValueError) as exc:  # UnicodeError is a ValueError
                raise errors.FetchFailed("The URL's host has no address.") from exc
        for address in found:
            self.filters.check_address(target, address)
        if not found:
            raise errors.FetchFailed("The URL's host has no address.")
        return found[:_MOST_ADDRESSES]

    def _ask(
        self,
        slot: FetchSlot,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        budget: int | None,
        until: float | None,
    ) -> "Answer":
        failure: Exception | None = None
        for address in self._addresses(target, slot):
            # A server at its address has no larger share under many names.
            slot.go(*{target.host, str(address)})
            wire = _Wire(address, target.port, time.monotonic() + slot.remaining(self.connect_timeout))
            try:
                wire.connect()
                if target.scheme == "https":
                    wire.secure(self._context(), target.host)
            except _FAILURES as exc:
                wire.close()
                failure = exc
                continue
            except BaseException:
                wire.close()
                raise
            return self._exchange(slot, wire, method, target, headers, budget, until)
        raise errors.FetchFailed("The URL's host cannot be connected to.") from failure

    def _exchange(
        self,
        slot: FetchSlot,
        wire: _Wire,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        budget: int | None,
        until: float | None,
    ) -> "Answer":
        usual = {"Host": target.netloc, "User-Agent": f"calotype/{__version__}", "Accept": "*/*"}
        try:
            sock = wire.sock
            assert isinstance(sock, _DeadlineSocket)
            sock.until = time.monotonic() + slot.remaining(self.head_timeout)
            wire.request(
                method,
                target.path,
                headers={**usual, **headers, "Accept-Encoding": "identity", "Connection": "close"},
                preload_content=False,
                decode_content=False,
            )
            response = wire.getresponse()
            return Answer(wire, sock, response, method, budget, self.min_rate, self.read_timeout, until)
        except TimeoutError as exc:
            wire.close()
            raise errors.FetchFailed("The URL's server is too slow.") from exc
        except _FAILURES as exc:
            wire.close()
            raise errors.FetchFailed("The URL's server did not answer as HTTP servers do.") from exc
        except BaseException:
            wire.close()
            raise

    def _context(self) -> ssl.SSLContext:
        if not self._tls:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.sslsocket_class = _TlsSocket
            if self.insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._tls.append(context)
        return self._tls[0]


class Answer:
    """An answer whose body is still to come. Iterate once; close it, whether it was read or not."""

    status: int
    headers: Mapping[str, str]
    size: int | None  #: bytes of the body as announced, None where they are not

    def __init__(
        self,
        wire: _Wire,
        sock: _DeadlineSocket,
        response: urllib3.HTTPResponse,
        method: str,
        budget: int | None,
        min_rate: int,
        patience: float,
        until: float | None,
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        length = self.headers.get("Content-Length", "")
        chunked = "Transfer-Encoding" in self.headers
        self.size = int(length) if re.fullmatch("[0-9]{1,18}", length) and not chunked else None
        self._wire = wire
        self._sock = sock
        self._response = response
        self._empty = method == "HEAD"
        self._budget = budget
        self._min_rate = min_rate
        self._patience = patience
        self._until = math.inf if until is None else until
        self._closing = threading.Lock()
        if self.headers.get("Content-Encoding", "identity") != "identity":
            self.close()
            raise errors.FetchFailed("The URL's server sends what nobody asked for: compressed data.")

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces. Raises `FetchFailed` rather than end early, `OverLimit` beyond the budget."""
        seen, waited = 0, 0.0
        while not self._empty:
            begun = time.monotonic()
            # For the whole of it: sizes and trailers of chunks come byte by byte, if a server wants, and without end.
            self._sock.until = min(begun + self._patience, self._until)
            try:
                piece = self._response.read1(_PIECE)
            except _FAILURES as exc:
                raise errors.FetchFailed("The URL's server broke off, or is too slow.") from exc
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

    def cancel(self) -> None:
        """End the connection, from any thread: whoever waits for a piece gets `FetchFailed` at once."""
        with self._closing, contextlib.suppress(OSError):
            # The plain method, as TLS must not be touched from here. It wakes whoever waits; closing would not.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # type: ignore[arg-type]  # each one is a socket

    def close(self) -> None:
        with self._closing:  # so that nobody shuts down what has the same descriptor by then
            self._response.close()
            self._wire.close()
