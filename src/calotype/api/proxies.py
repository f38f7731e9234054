"""The URL that a client used, by the header `Host` and the headers of proxies; also the client's address.

Links in answers are made of it, so it is validated. Headers of proxies are used only with `[oslo_middleware]
enable_proxy_headers_parsing`, because any client that reaches the service directly could send them as well.
"""

import ipaddress
import re
from collections.abc import MutableMapping
from typing import Any, Final

from calotype import errors

_HOST: Final = re.compile(r"(?:[\w.-]+|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{0,5}))?", re.ASCII)
_WHOLE: Final = re.compile(r"https?://(?P<host>[^/?#]*)", re.IGNORECASE)
_PREFIX: Final = re.compile(r"(/(?!\.{1,2}(/|$))[\w.~%-]+)+", re.ASCII)
_PORTS: Final = {"http": "80", "https": "443"}


def believe(env: MutableMapping[str, Any]) -> None:
    """Set scheme, host, prefix and address in `env` from a proxy's headers. Raises `Invalid` for malformed ones.

    An unknown scheme or address is ignored. If there is a `Forwarded` header (RFC 7239), the X-Forwarded headers for
    scheme, host and address are ignored. Of a list the first item is used: the proxy nearest to the client wrote it.
    """
    forwarded = str(env.get("HTTP_FORWARDED", ""))
    if forwarded:
        pairs = (part.partition("=") for part in _first(forwarded).split(";"))
        values = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    else:
        values = {
            name: _first(str(env.get(f"HTTP_X_FORWARDED_{name.upper()}", ""))) for name in ("proto", "host", "for")
        }
    scheme = values.get("proto", "").lower()
    if scheme in _PORTS:
        env["wsgi.url_scheme"] = scheme
    if host := values.get("host", ""):
        _refuse_unless(_is_host(host), "The host that the proxy names")
        env["HTTP_HOST"] = host
    port = _first(str(env.get("HTTP_X_FORWARDED_PORT", "")))
    _refuse_unless(not port or _is_host(f"x:{port}"), "X-Forwarded-Port")
    host = str(env.get("HTTP_HOST", ""))
    if port and host and not re.search(r":[0-9]*$", host.rpartition("]")[2]):
        env["HTTP_HOST"] = host if port == _PORTS.get(env["wsgi.url_scheme"]) else f"{host}:{port}"
    if address := _address(values.get("for", "")):
        env["REMOTE_ADDR"] = address
    prefix = _first(str(env.get("HTTP_X_FORWARDED_PREFIX", ""))).rstrip("/")
    if prefix:
        _refuse_unless(bool(_PREFIX.fullmatch(prefix)), "X-Forwarded-Prefix")
        env["SCRIPT_NAME"] = prefix + str(env.get("SCRIPT_NAME", ""))


def check_host(env: MutableMapping[str, Any]) -> None:
    """Raise `Invalid` unless `Host` is a name or an address, with or without a port (RFC 9112 §3.2).

    A client of HTTP/1.0 need not name one. If the request line has a whole URL, its host replaces `Host` (§3.2.2).
    """
    host = env.get("HTTP_HOST")
    if host is not None or env.get("SERVER_PROTOCOL") not in ("HTTP/1.0", "HTTP/0.9"):
        _refuse_unless(_is_host(host or ""), "The header Host")
    if whole := _WHOLE.match(str(env.get("RAW_URI") or env.get("REQUEST_URI") or "")):
        _refuse_unless(_is_host(whole["host"]), "The host in the URL of the request")
        env["HTTP_HOST"] = whole["host"]


def _is_host(text: str) -> bool:
    found = _HOST.fullmatch(text)
    if found is None or int(found["port"] or 0) > 65535:
        return False
    try:
        return found["ipv6"] is None or bool(ipaddress.IPv6Address(found["ipv6"]))
    except ValueError:
        return False


def _refuse_unless(fine: bool, what: str) -> None:
    if not fine:
        raise errors.Invalid(f"{what} is missing or malformed.")


def _first(value: str) -> str:
    return value.partition(",")[0].strip()


def _address(node: str) -> str:
    """The address in a node of RFC 7239: without brackets and port."""
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\w+)?|([0-9.]+)(?::\w+)?|([0-9A-Fa-f:.]+)", node, re.ASCII)
    return next(filter(None, found.groups()), "") if found else ""
