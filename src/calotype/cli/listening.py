"""The address and certificate of `calotype serve`: checks them, and makes the URL for clients on this host."""

import ipaddress
import re
import ssl
from pathlib import Path
from typing import Final

from oslo_config import cfg

from calotype import errors

_IPV6: Final = re.compile(r"\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Za-z:.%]*\]?")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]*")


def check_listening(conf: cfg.ConfigOpts) -> None:
    """Raise `ConfigError` for an address or a certificate that should not be used."""
    tls = _tls(conf)
    host, _ = address(conf.server.bind)
    if not (tls or conf.server.allow_plain_http or _loopback(host)):
        raise errors.ConfigError(
            f"Listening on {host} without TLS would send passwords in the clear. Put a TLS proxy in front and "
            "listen on 127.0.0.1, set [server] tls_cert and tls_key, or insist with --allow-plain-http."
        )


def url(conf: cfg.ConfigOpts) -> str:
    """The URL for clients on this host. Raises `ConfigError`."""
    host, port = address(conf.server.bind)
    return f"{'https' if conf.server.tls_cert else 'http'}://{_reachable(host)}:{port}"


def _tls(conf: cfg.ConfigOpts) -> bool:
    files = [conf.server.tls_cert, conf.server.tls_key]
    if any(files) and not all(files):
        raise errors.ConfigError("[server] tls_cert and tls_key go together.")
    if all(files):
        _check_certificate(*files)
    return all(files)


def _check_certificate(cert: str, key: str) -> None:
    """Load both as the server will. Raises `ConfigError`."""
    for option, name in (("tls_cert", cert), ("tls_key", key)):
        try:
            with Path(name).open("rb"):
                pass
        except FileNotFoundError as exc:
            raise errors.ConfigError(f"[server] {option}: {name} does not exist.") from exc
        except OSError as exc:
            raise errors.ConfigError(f"[server] {option}: {name} cannot be read: {exc.strerror}.") from exc

    def encrypted() -> str:
        raise errors.ConfigError(
            f"[server] tls_key: {key} is encrypted, and nobody can be asked for the passphrase at a start: "
            f"decrypt it (openssl pkey -in {key} -out KEY), readable by the service alone."
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=encrypted)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            words = f"the key in {key} is not the one of the certificate in {cert}"
        else:
            words = f"{cert} and {key} are not a certificate and its key in PEM format ({exc.reason or exc})"
        raise errors.ConfigError(f"[server] tls_cert, tls_key: {words}.") from exc


def address(bind: str) -> tuple[str, int]:
    """Host and port. Raises `ConfigError`."""
    host, colon, port = bind.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if bare == host and _IPV6.fullmatch(bind):
        raise errors.ConfigError(
            f"{bind!r} is no HOST:PORT to listen on: an IPv6 address stands in brackets, as [::1]:9292."
        )
    if not (_NAME.fullmatch(bare) if bare == host else _is_ipv6(bare)):
        raise errors.ConfigError(f"{bind!r} is no HOST:PORT to listen on: {bare!r} is no name or address of a host.")
    if not colon or not bare or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise errors.ConfigError(f"{bind!r} is no HOST:PORT to listen on, as 127.0.0.1:9292.")
    return bare, int(port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> str:
    """The address that a client on this machine uses."""
    if host == "0.0.0.0":  # noqa: S104  # compared with, not listened on
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
