"""What a proxy says of the request as its client sent it: scheme, host, prefix, address.

Believed only with `[oslo_middleware] enable_proxy_headers_parsing`: whoever can reach the service could say so, too.
"""

import re
from collections.abc import MutableMapping
from typing import Any, Final

_HOST: Final = re.compile(r"[\w.-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", re.ASCII)
_PREFIX: Final = re.compile(r"(/[\w.~%-]+)+", re.ASCII)
_PORTS: Final = {"http": "80", "https": "443"}


def believe(env: MutableMapping[str, Any]) -> None:
    """Put what the headers say in the place of what the server found out. Nonsense is passed over.

    `Forwarded` (RFC 7239) counts in the place of the others where it is there. Of a list the first counts: what the
    client's own proxy said.
    """
    forwarded = str(env.get("HTTP_FORWARDED", ""))
    if forwarded:
        pairs = (part.partition("=") for part in _first(forwarded).split(";"))
        said = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    else:
        said = {name: _first(str(env.get(f"HTTP_X_FORWARDED_{name.upper()}", ""))) for name in ("proto", "host", "for")}
    scheme = said.get("proto", "").lower()
    if scheme in _PORTS:
        env["wsgi.url_scheme"] = scheme
    host = said.get("host", "")
    if _HOST.fullmatch(host):
        env["HTTP_HOST"] = host
    port = _first(str(env.get("HTTP_X_FORWARDED_PORT", "")))
    host = str(env.get("HTTP_HOST", ""))
    if re.fullmatch(r"[0-9]{1,5}", port) and host and not re.search(r":[0-9]*$", host.rpartition("]")[2]):
        env["HTTP_HOST"] = host if port == _PORTS.get(env["wsgi.url_scheme"]) else f"{host}:{port}"
    if address := _address(said.get("for", "")):
        env["REMOTE_ADDR"] = address
    prefix = _first(str(env.get("HTTP_X_FORWARDED_PREFIX", ""))).rstrip("/")
    if _PREFIX.fullmatch(prefix):
        env["SCRIPT_NAME"] = prefix + str(env.get("SCRIPT_NAME", ""))


def _first(value: str) -> str:
    return value.partition(",")[0].strip()


def _address(node: str) -> str:
    """The address in a node of RFC 7239: without brackets and port."""
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\w+)?|([0-9.]+)(?::\w+)?|([0-9A-Fa-f:.]+)", node, re.ASCII)
    return next(filter(None, found.groups()), "") if found else ""
