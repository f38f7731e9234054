"""Fetches URLs that a user named, guarded against requests to hosts that the service must not reach (SSRF).

One strict parser reads a URL, and only its result is used, so no second parser can see another host in it. A name is
resolved once, each of its addresses is checked, and the connection goes to a checked address. TLS is verified for the
name. A redirect goes through the same checks. `wire.py` is the connection. Nothing here knows images or stores;
`stores/http.py` and `images/sources.py` use it.

A proxy is used only if an option names it. It is asked to connect to the address that was checked here.

No wait is unlimited. A fetch has one time limit for everything before the body. The number of threads that wait is
limited, in all and for each host. No thread supervises this: each wait on a socket gets the remaining time as timeout.
"""

import base64
import contextlib
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from calotype import __version__, errors
from calotype.wire import FAILURES, Address, Answer, Heed, Wire, tls_context

#: The addresses of a name, as text; raises `OSError`.
Resolver = Callable[[str, int], Iterable[str]]

_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS: Final = 5
_MOST_ADDRESSES: Final = 4  #: How many addresses of a name are tried.
#: How long a thread waits for a look-up before it asks whether it should, seconds.
_SLICE: Final = 0.5
#: Defaults: how many threads of a process may wait for fetches, and how many of them for one host.
FETCHES: Final = 256
FETCHES_OF_HOST: Final = 64
#: Defaults, seconds: for the connection; and for the head of the answer, and for each piece of the body.
CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 30.0

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?"
)
_WEB: Final = re.compile(r"https?://[^/?#]", re.IGNORECASE)
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%[01][0-9A-Fa-f]|%7[Ff]")
_PLAIN: Final = re.compile(r"[!-~]+")  # the characters of a URL: printable ASCII without the space
_LABEL: Final = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*{_LABEL}")
#: If the last label of a name looks like this, some resolvers take the name for an IPv4 address.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _nets(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


#: Addresses that are refused whatever is configured: this host, link-local (metadata services among them), multicast,
#: reserved, and metadata services of clouds at other addresses.
_NEVER: Final = _nets(
    *("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "100.100.100.200/32", "168.63.129.16/32"),
    *("::/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128"),
)
#: Networks that are not public, but that some version of Python takes for public.
_PRIVATE4: Final = _nets("192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "100.64.0.0/10")
#: The public part of IPv6; and networks in it that are not public or stand for an IPv4 address (Teredo, 6to4).
_PUBLIC6: Final = ipaddress.ip_network("2000::/3")
_PRIVATE6: Final = _nets("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
#: Networks whose addresses end in an IPv4 address: compatible, mapped, NAT64.
_ENDS_IN_IPV4: Final = _nets("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
_NAT64_LENGTHS: Final = frozenset({32, 40, 48, 56, 64, 96})


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL. `host` is in lower case, without brackets and final dot; `path` includes the query."""

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
    """Which URLs the operator allows. Hosts are as `parse` writes them; an empty `allowed_…` allows all.

    Hosts in `private_hosts` may have private addresses and be this host. So may an address in `allowed_hosts`, and
    `localhost` there may be this host. A name in `allowed_hosts` may not: who owns the name decides where it leads.
    """

    allowed_schemes: Container[str] = frozenset()
    disallowed_schemes: Container[str] = frozenset()
    allowed_hosts: frozenset[str] = frozenset()
    disallowed_hosts: frozenset[str] = frozenset()
    allowed_ports: Container[int] = frozenset()
    disallowed_ports: Container[int] = frozenset()
    private_hosts: frozenset[str] = frozenset()
    nat64_prefixes: frozenset[ipaddress.IPv6Network] = frozenset()  #: their addresses count as what they carry

    def check(self, target: Target) -> None:
        """Raise `UrlRefused` unless scheme, host and port are allowed. Resolves no name."""
        for what, value, allowed, disallowed in (
            ("scheme", target.scheme, self.allowed_schemes, self.disallowed_schemes),
            ("host", target.host, self.allowed_hosts, self.disallowed_hosts),
            ("port", target.port, self.allowed_ports, self.disallowed_ports),
        ):
            if (allowed and value not in allowed) or value in disallowed:
                raise errors.UrlRefused(f"The {what} of the URL is not one that this service connects to.")

    def check_address(self, target: Target, address: Address) -> None:
        """Raise `UrlRefused` unless this address of the target's host may be connected to."""
        for one in self._counts_as(address):
            private = not self._may_be_private(target.host, one)
            if forbidden(one, private=private) or not self.disallowed_hosts.isdisjoint(map(str, (one, *_inner(one)))):
                raise errors.UrlRefused("The host of the URL has an address that this service does not connect to.")

    def is_public(self, address: Address) -> bool:
        """Whether an address belongs to the Internet, and not to a network of the operator."""
        return not any(map(forbidden, self._counts_as(address)))

    def _may_be_private(self, host: str, address: Address) -> bool:
        if host in self.private_hosts:
            return True
        return host in self.allowed_hosts and (address.is_loopback if host == "localhost" else _is_address(host))

    def _counts_as(self, address: Address) -> list[Address]:
        return [carried(address, prefix) for prefix in self.nat64_prefixes if address in prefix] or [address]


def hosts(texts: Iterable[str]) -> frozenset[str]:
    """Configured hosts in the form in which `parse` writes them. Raises `UrlRefused`."""
    return frozenset(_host(text if ":" not in text or text.startswith("[") else f"[{text}]") for text in texts)


def parse(url: str) -> Target:
    """Parse a URL with a host. Raises `UrlRefused` for one that another parser might read differently."""
    found = _URL.fullmatch(url) if _PLAIN.fullmatch(url) and "\\" not in url else None
    if found is None:
        raise errors.UrlRefused(
            "The URL must have a scheme and a host, and may have a port, a path and a query: plain ASCII, without "
            "user, password, fragment or escapes in the host."
        )
    scheme = found["scheme"].lower()
    port = int(found["port"]) if found["port"] else _PORTS.get(scheme, 0)
    if not 0 < port < 65536:
        raise errors.UrlRefused("The URL has no port that there is.")
    return Target(scheme, _host(found["host"]), port, (found["path"] or "/") + (found["query"] or ""))


def is_well_formed(url: str) -> bool:
    """Whether a URL of any scheme is well-formed.

    Brackets must contain an address, the port must be valid, and a percent sign must begin an escape, which must not
    stand for a control character.
    """
    try:
        parts = urlsplit(url)
        if parts.hostname is not None and ":" in parts.hostname:
            ipaddress.IPv6Address(parts.hostname)
        if parts.netloc.rpartition("@")[2].count(":") > 1 and ":" not in (parts.hostname or ""):
            return False
        return parts.port != 0 and not _BAD_ESCAPE.search(url)  # `port` raises unless it is a number of 16 bits
    except ValueError:
        return False


def is_web_url(url: str) -> bool:
    """Whether this is a well-formed URL of http or https with a host, as an option may have it."""
    return bool(_WEB.match(url)) and is_well_formed(url)


def _joined(base: str, leads: str) -> str:
    try:
        return urljoin(base, leads)
    except ValueError as exc:  # raised for a host that Python cannot parse
        raise errors.UrlRefused("The URL leads to one that cannot be read.") from exc


def nat64_prefix(text: str) -> ipaddress.IPv6Network:
    """A prefix of NAT64 (RFC 6052). Raises `ValueError` for one that there cannot be, or that has other meanings."""
    prefix = ipaddress.IPv6Network(text)
    if prefix.prefixlen not in _NAT64_LENGTHS:
        raise ValueError(f"{text} has a length that no prefix of NAT64 has: 32, 40, 48, 56, 64 or 96")
    if any(prefix.overlaps(net) for net in (*_NEVER, *_ENDS_IN_IPV4[:2]) if net.version == 6):
        raise ValueError(f"{text} has addresses that mean something else")
    return prefix


def carried(address: Address, prefix: ipaddress.IPv6Network) -> Address:
    """The IPv4 address that an address in a prefix of NAT64 stands for.

    It is the unspecified address, which nobody may connect to, if bits 64 to 71 are set: RFC 6052 keeps them zero.
    """
    data = address.packed
    if prefix.prefixlen < 96 and data[8]:
        return ipaddress.IPv4Address(0)
    start = prefix.prefixlen // 8
    bits = data[12:] if prefix.prefixlen == 96 else (data[:8] + data[9:])[start : start + 4]
    return ipaddress.IPv4Address(bits)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


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
    """Whether connections to this address are refused. Without `private`, private addresses are not refused."""
    if any(one in net for one in (address, *_inner(address)) for net in _NEVER):
        return True
    if not private:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not address.is_global or any(address in net for net in _PRIVATE4)
    return address not in _PUBLIC6 or any(address in net for net in _PRIVATE6)


def _inner(address: Address) -> Iterator[Address]:
    """The IPv4 addresses that this one contains."""
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
class Proxy:
    """A proxy of HTTP that lets us connect to addresses, by CONNECT."""

    host: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  #: the credentials for it, if it wants any

    @classmethod
    def parse(cls, url: str) -> Self:
        """`http://[user:password@]host[:port]`; the port is 3128 without one. Raises `ValueError`."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("a proxy is of the form http://[user:password@]host[:port]")
        headers = {}
        if parts.username is not None:
            given = base64.b64encode(unquote_to_bytes(parts.netloc.rpartition("@")[0])).decode()
            headers["Proxy-Authorization"] = f"Basic {given}"
        return cls(parts.hostname, parts.port or 3128, headers)


class FetchSlot:
    """The right to wait for a fetch until a deadline (`time.monotonic`). `FetchLimit` counts waits for each server."""

    def __init__(self, limit: "FetchLimit", until: float, heed: Heed | None = None) -> None:
        """`heed` is called about twice a second while the fetch waits; what it raises ends the fetch."""
        self._limit = limit
        self.until = until
        self.heed = heed
        self._places: tuple[str, ...] = ()

    def remaining(self, most: float) -> float:
        """The seconds until the deadline, but not more than `most`. Raises `FetchFailed` if it has passed."""
        remaining = min(most, self.until - time.monotonic())
        if remaining <= 0:
            raise errors.FetchFailed("The URL's server is too slow.")
        return remaining

    def go(self, *places: str) -> None:
        """Count as waiting for `places`, a host and its address, and no longer for the previous ones. Raises `Busy`."""
        self._places = self._limit.move(self._places, places)


class FetchLimit:
    """Limits how many threads wait for fetches: `most` in all, `each` for one host or address. Thread-safe.

    So one server that does not answer occupies at most `each` threads.
    """

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._lock = threading.Lock()
        self._count = 0
        self._at: Counter[str] = Counter()

    @contextlib.contextmanager
    def slot(self, seconds: float, heed: Heed | None = None) -> Iterator[FetchSlot]:
        """Hold a slot for the length of the block, with a deadline in `seconds`. Raises `Busy` if all are taken."""
        with self._lock:
            if self._count >= self._most:
                raise errors.Busy("Too many wait for servers elsewhere; try again later.")
            self._count += 1
        slot = FetchSlot(self, time.monotonic() + seconds, heed)
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
    """Resolves names in threads of their own, because a look-up cannot be cancelled. Thread-safe.

    A caller stops waiting when its time is over, while the look-up goes on. Other callers that ask for the same name
    meanwhile wait for the same look-up. At most `most` look-ups run at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], _Lookup] = {}

    def find(self, resolve: Resolver, host: str, port: int, seconds: float, heed: Heed | None = None) -> list[str]:
        """The addresses of a name.

        Raises what `resolve` and `heed` raise, `Busy`, and `FetchFailed` after `seconds`.
        """
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
        until = time.monotonic() + seconds
        while not lookup.done.wait(min(_SLICE, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                raise errors.FetchFailed("The URL's host was not found in time.")
            if heed is not None:
                heed()
        if lookup.failure is not None:
            raise lookup.failure
        return lookup.found

    def _run(self, lookup: "_Lookup", resolve: Resolver, host: str, port: int) -> None:
        try:
            lookup.found = list(resolve(host, port))
        except Exception as exc:  # noqa: BLE001  # `find` raises it in the threads that wait
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


@dataclass(frozen=True, slots=True)
class Net:
    """Fetches URLs within the filters. Thread-safe; keeps no cookies. Times are in seconds.

    With a `proxy`, connections to public addresses go through it. Those to other addresses, which the operator has
    allowed for some hosts, do not. The environment is not asked for proxies.

    `fetch_timeout` limits everything before the body, look-ups of names and redirects included. Within it,
    `connect_timeout` limits the connection with its TLS handshake, and `head_timeout` the head of the answer. After
    that, `read_timeout` limits each piece of the body, and the server must send at least `min_rate` bytes a second.
    Only time spent waiting for the server counts for this rate.
    """

    filters: Filters
    ca_file: str | None = None
    insecure: bool = False  #: whether certificates are not verified
    proxy: Proxy | None = None
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
        """Load the CA certificates. Raises `OSError`."""
        self._context()

    def trusting(self, url: str) -> "Net":
        """The same, but the host of this URL, which no user chose, may have a private address. Raises `UrlRefused`."""
        private = self.filters.private_hosts | {parse(url).host}
        return replace(self, filters=replace(self.filters, private_hosts=private))

    def slot(self) -> contextlib.AbstractContextManager[FetchSlot]:
        """A slot for several fetches that share one `fetch_timeout`. Raises `Busy` if too many threads wait."""
        return self.limit.slot(self.fetch_timeout)

    def check(self, url: str) -> None:
        """Raise `UrlRefused` for a URL that `open` would refuse, `FetchFailed` if its name has no address.

        Raises `Busy` if too many threads wait.
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
        heed: Heed | None = None,
    ) -> Answer:
        """Send a request and return the answer, whatever its status. Its body, at most `budget` bytes, is not read yet.

        `secrets` are headers that are sent to the origin of `url` only. With a `slot` its deadline holds for the body
        as well. `heed` is called about twice a second while anything waits, the body too; what it raises ends the
        fetch. (A `slot` has its own.) Raises `UrlRefused` for this URL or one that it redirects to, `FetchFailed` if
        there is no answer, and `Busy` if too many threads wait.
        """
        target = self._target(url)
        if slot is not None:
            return self._follow(slot, method, target, headers or {}, secrets or {}, budget, slot.until)
        with self.limit.slot(self.fetch_timeout, heed) as mine:
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
    ) -> Answer:
        sent = dict(secrets)
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._ask(slot, method, target, {**headers, **sent}, budget, until)
            leads = answer.headers.get("Location") if answer.status in _REDIRECTS else None
            if leads is None:
                return answer
            answer.close()
            # The redirect, joined to the URL before it, goes through the strict parser again.
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
        """The addresses to try. Each one was checked."""
        try:
            found = [ipaddress.ip_address(target.host)]
        except ValueError:
            slot.go(target.host)
            seconds = slot.remaining(self.fetch_timeout)
            try:
                texts = self.names.find(self.resolve, target.host, target.port, seconds, slot.heed)
                found = [ipaddress.ip_address(text) for text in texts]
            except (OSError, ValueError) as exc:  # UnicodeError is a ValueError
                raise errors.FetchFailed(f"The URL's host {target.host} has no address.") from exc
        for address in found:
            self.filters.check_address(target, address)
        if not found:
            raise errors.FetchFailed(f"The URL's host {target.host} has no address.")
        return found[:_MOST_ADDRESSES]

    def _ask(
        self,
        slot: FetchSlot,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        budget: int | None,
        until: float | None,
    ) -> Answer:
        failure: Exception | None = None
        for address in self._addresses(target, slot):
            # Counted by address as well: a server with many names gets no larger share.
            slot.go(*{target.host, str(address)})
            until_connected = time.monotonic() + slot.remaining(self.connect_timeout)
            try:
                wire = self._connect(target, address, until_connected, slot)
            except FAILURES as exc:
                failure = exc
                continue
            return self._exchange(slot, wire, method, target, headers, budget, until)
        raise errors.FetchFailed("The URL's host cannot be connected to.") from failure

    def _connect(self, target: Target, address: Address, until: float, slot: FetchSlot) -> Wire:
        """A connection to a checked address of the target. Raises `FAILURES`."""
        proxy = self.proxy if self.proxy and self.filters.is_public(address) else None
        if proxy is None:
            wire = Wire(address, target.port, until, slot.heed)
        else:
            found = self.names.find(resolve, proxy.host, proxy.port, slot.remaining(self.connect_timeout), slot.heed)
            wire = Wire(ipaddress.ip_address(found[0]), proxy.port, until, slot.heed)
        try:
            wire.connect()
            if proxy is not None:
                host = f"[{address}]" if address.version == 6 else str(address)
                wire.tunnel(f"{host}:{target.port}", proxy.headers)
            if target.scheme == "https":
                wire.secure(self._context(), target.host)
        except BaseException:
            wire.close()
            raise
        return wire

    def _exchange(
        self,
        slot: FetchSlot,
        wire: Wire,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        budget: int | None,
        until: float | None,
    ) -> Answer:
        usual = {"Host": target.netloc, "User-Agent": f"calotype/{__version__}", "Accept": "*/*"}
        try:
            wire.set_deadline(time.monotonic() + slot.remaining(self.head_timeout))
            return wire.ask(
                method,
                target.path,
                {**usual, **headers, "Accept-Encoding": "identity", "Connection": "close"},
                url=target.url,
                budget=budget,
                min_rate=self.min_rate,
                patience=self.read_timeout,
                until=until,
            )
        except TimeoutError as exc:
            wire.close()
            raise errors.FetchFailed("The URL's server is too slow.") from exc
        except FAILURES as exc:
            wire.close()
            raise errors.FetchFailed("The URL's server did not answer as HTTP servers do.") from exc
        except BaseException:
            wire.close()
            raise

    def _context(self) -> ssl.SSLContext:
        if not self._tls:
            self._tls.append(tls_context(self.ca_file, insecure=self.insecure))
        return self._tls[0]
