"""Keystone: what a token says of who asks, by keystonemiddleware.

The middleware is asked beside the request, with a small WSGI environment that holds nothing of the client's but its
tokens: it wraps no answer, which would lose sendfile, and no header field of a client can pass for its own. What it
found is remembered for a few seconds in this process; behind that it keeps tokens in memcached as it is configured to.
"""

import hashlib
import io
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from keystoneauth1 import exceptions as ksa
from keystoneauth1 import loading
from keystonemiddleware import auth_token
from oslo_config import cfg

from calotype import errors
from calotype.context import Context

LOG = logging.getLogger(__name__)

_GROUP: Final = "keystone_authtoken"
#: Seconds that Keystone may take for an answer where the operator says nothing; the library's default is for ever.
_PATIENCE: Final = 10.0
_MOST: Final = 10_000  #: tokens remembered, some 10 MiB at most
_LONGEST: Final = 8_000  #: characters of a token; web servers before Keystone take a longer one for a broken request

#: What the WSGI environment of a question holds beside tokens, method and path.
_QUESTION: Final[Mapping[str, Any]] = {
    "QUERY_STRING": "",
    # Access rules are for paths of the API. What stands before these is a proxy's to say, or whoever sends its headers.
    "SCRIPT_NAME": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


def register(conf: cfg.ConfigOpts) -> None:
    """Make the options of `[keystone_authtoken]` known, but for those of the kind of credentials chosen."""
    for group, options in auth_token.list_opts():
        conf.register_opts(options, group=group)
    conf.set_default("http_connect_timeout", _PATIENCE, group=_GROUP)
    conf.set_default("service_type", "image", group=_GROUP)
    conf.set_default("service_token_roles_required", True, group=_GROUP)


class KeystoneAuth:
    """Validates `X-Auth-Token` and `X-Service-Token`. Shared by threads; talks to nobody before the first request."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        register(conf)
        options = conf[_GROUP]
        # To decide later, as some tell it to, would take a Keystone that is away for a token that is wrong.
        fixed = {"delay_auth_decision": "false"}
        if not options.memcached_servers:
            fixed |= {"token_cache_time": "-1"}  # its own memory would keep a revoked token for minutes
        try:
            auth_url = _auth_url(conf)
            where = options.www_authenticate_uri or auth_url
            self._ask: Any = _Middleware(_confirm, {"oslo_config_config": conf, "www_authenticate_uri": where, **fixed})
        except Exception as exc:  # libraries for credentials raise all sorts; whichever it is, nobody could be known
            raise errors.ConfigError(
                f"[{_GROUP}] must say where Keystone is and who this service is (auth_url, www_authenticate_uri, "
                "auth_type = password, username, password, project_name, user_domain_name, project_domain_name): "
                f"{errors.reason(exc)}"
            ) from exc
        self.challenge = f'Keystone uri="{where}"'
        self._keeps = conf.keystone.remember if options.token_cache_time >= 0 else 0.0
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[float, Context]] = {}
        self._forgetting = threading.Lock()
        self._asking = threading.BoundedSemaphore(max(1, conf.server.threads // 2))

    def caller(self, environ: Mapping[str, Any]) -> Context:
        """The caller behind a request. Raises `Unauthenticated`; `Busy` while Keystone cannot be asked."""
        token, service_token = environ.get("HTTP_X_AUTH_TOKEN", ""), environ.get("HTTP_X_SERVICE_TOKEN", "")
        if not token:
            raise errors.Unauthenticated("This request needs a token: X-Auth-Token.")
        if max(len(token), len(service_token)) > _LONGEST or not (token + service_token).isascii():
            raise errors.Unauthenticated("The token is none of Keystone's.")
        key = hashlib.blake2b(f"{token}\n{service_token}".encode(), key=self._key, digest_size=32).digest()
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        if not self._asking.acquire(blocking=False):
            # While Keystone hangs, half of the threads go on serving those who are known and those who wait for bytes.
            raise errors.Busy("Too many requests wait for Keystone; try again later.")
        try:
            found = self._validate(environ, token, service_token)
        finally:
            self._asking.release()
        ctx = _context(found)
        if (keeps := min(self._keeps, _lifetime(found))) > 0:
            self._remember(key, time.monotonic() + keeps, ctx)
        return ctx

    def _validate(self, environ: Mapping[str, Any], token: str, service_token: str) -> dict[str, Any]:
        """The environment as the middleware left it for the next application."""
        asked = {
            **_QUESTION,
            "REQUEST_METHOD": environ.get("REQUEST_METHOD", "GET"),
            "PATH_INFO": environ.get("PATH_INFO", "/"),
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "HTTP_X_AUTH_TOKEN": token,
        }
        if service_token:
            asked["HTTP_X_SERVICE_TOKEN"] = service_token
        answers: list[str] = []
        try:
            tuple(self._ask(asked, lambda status, _headers, _exc=None: answers.append(status)))
        except Exception as exc:  # what nobody foresaw in an answer of Keystone's comes out as KeyError and the like
            raise errors.Busy("Keystone cannot be asked who you are; try again later.") from exc
        if answers[-1].startswith("401"):
            raise errors.Unauthenticated("The token is wrong, or has expired.")
        if not answers[-1].startswith("200"):
            raise errors.Busy("Keystone cannot be asked who you are; try again later.")
        return asked

    def _remember(self, key: bytes, until: float, ctx: Context) -> None:
        with self._forgetting:
            if len(self._known) >= _MOST:
                for oldest in list(self._known)[: _MOST // 10 + 1]:
                    del self._known[oldest]
            self._known[key] = (until, ctx)


class _Middleware(auth_token.AuthProtocol):  # type: ignore[misc]  # it has no types
    def fetch_token(self, token: str, **more: Any) -> Any:
        """What Keystone says of a token. A 404 which is not its own is of something before it that misses it."""
        try:
            return super().fetch_token(token, **more)
        except auth_token.InvalidToken as exc:
            if isinstance(exc.__context__, ksa.NotFound) and not _by_keystone(exc.__context__.response):
                raise auth_token.ServiceError("The answer is not Keystone's.") from exc
            raise


def _by_keystone(answer: Any) -> bool:
    try:
        return "error" in answer.json()
    except (ValueError, TypeError):
        return False


def _confirm(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """What the middleware calls when it is content."""
    start_response("200 OK", [])
    return []


def _auth_url(conf: cfg.ConfigOpts) -> str:
    """Where the credentials are for. Raises for a kind of credentials that there is not, or one without."""
    group = conf[_GROUP].auth_section or _GROUP
    loading.register_auth_conf_options(conf, group)
    if not conf[group].auth_type:
        raise errors.ConfigError("auth_type is not set")
    conf.register_opts(loading.get_auth_plugin_conf_options(conf[group].auth_type), group=group)
    if not conf[group].auth_url:
        raise errors.ConfigError("auth_url is not set")
    return str(conf[group].auth_url)


def _context(found: Mapping[str, Any]) -> Context:
    """The caller that the tokens name.

    They are looked at themselves, because the header fields made of them mix up what is the user's and what the
    service's (the system scope), and a role with a comma in its name with two roles.
    """
    user, service = found["keystone.token_auth"].user, found["keystone.token_auth"].service
    return Context(
        user=user.user_id,
        project=user.project_id,
        roles=_roles(user),
        service_roles=_roles(service) if service is not None else frozenset(),
        user_domain=user.user_domain_id,
        project_domain=user.project_domain_id,
        domain=user.domain_id,
        system_scope="all" if user.system_scoped and user.system.get("all") else None,
    )


def _roles(token: Any) -> frozenset[str]:
    return frozenset(role.lower() for role in token.role_names)


def _lifetime(found: Mapping[str, Any]) -> float:
    """Seconds for which the answer would be the same for another request with these tokens."""
    said = found["keystone.token_info"]["token"]
    rules = (said.get("application_credential") or {}).get("access_rules")
    if rules is not None or said.get("bind"):
        return 0.0  # it depends on more than the tokens
    asked = found["keystone.token_auth"]
    remaining = [_remaining(token) for token in (asked.user, asked.service) if token is not None]
    if asked.service is not None and remaining[0] <= 0:
        del remaining[0]  # Keystone let it pass with the service's
    return min(remaining)


def _remaining(token: Any) -> float:
    """Seconds until a token expires."""
    return float((token.expires - datetime.now(UTC)).total_seconds()) if token.expires is not None else 0.0
