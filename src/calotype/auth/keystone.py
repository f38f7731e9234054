"""`KeystoneAuth`: finds the caller of a request by its Keystone token, with keystonemiddleware.

The middleware does not wrap the application: wrapping answers would lose sendfile. It is called with a small WSGI
environment of its own, which has the client's tokens and nothing else, so no header field of a client can be taken for
one of the middleware's. The result is remembered in this process for a few seconds. The middleware itself keeps tokens
in memcached, if it is configured to.
"""

import hashlib
import io
import json
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

from calotype import errors, net
from calotype.auth.base import Delegation
from calotype.context import Context

LOG = logging.getLogger(__name__)

_GROUP: Final = "keystone_authtoken"
#: How long Keystone may take for an answer, seconds, unless the operator sets it; the library's default is for ever.
_TIMEOUT: Final = 10.0
_MAX_REMEMBERED: Final = 10_000  #: tokens, some 10 MiB
_MAX_TOKEN: Final = 8_000  #: characters; web servers in front of Keystone refuse a request with a longer token

#: The WSGI environment for the middleware, to which tokens, method and path are added.
_QUESTION: Final[Mapping[str, Any]] = {
    "QUERY_STRING": "",
    # Access rules are about paths of the API. A prefix comes from a proxy, or from a client that sends its headers.
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
    """Register the options of `[keystone_authtoken]`, except for those of the chosen kind of credentials."""
    for group, options in auth_token.list_opts():
        conf.register_opts(options, group=group)
    conf.set_default("http_connect_timeout", _TIMEOUT, group=_GROUP)
    conf.set_default("service_type", "image", group=_GROUP)
    conf.set_default("service_token_roles_required", True, group=_GROUP)


class KeystoneAuth:
    """Validates `X-Auth-Token` and `X-Service-Token`. Threads share it; it does not contact Keystone until then."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        register(conf)
        options = conf[_GROUP]
        # Some configurations delay the decision; then an unreachable Keystone would look like a wrong token.
        fixed = {"delay_auth_decision": "false"}
        if not options.memcached_servers:
            fixed |= {"token_cache_time": "-1"}  # else it would accept a revoked token for minutes, from its own memory
        try:
            auth_url = _auth_url(conf)
            where = options.www_authenticate_uri or auth_url
            for name, url in (("auth_url", auth_url), ("www_authenticate_uri", where)):
                if not net.is_web_url(url):
                    raise errors.ConfigError(f"{name} is no URL of http or https")
            self._ask: Any = _Middleware(_confirm, {"oslo_config_config": conf, "www_authenticate_uri": where, **fixed})
        except Exception as exc:  # libraries for credentials raise many kinds; after any of them no caller is known
            raise errors.ConfigError(
                f"[{_GROUP}] must say where Keystone is and who this service is (auth_url, www_authenticate_uri, "
                "auth_type = password, username, password, project_name, user_domain_name, project_domain_name): "
                f"{errors.reason(exc)}"
            ) from exc
        self.challenge = f'Keystone uri="{where}"'
        self._remember_for = conf.keystone.remember if options.token_cache_time >= 0 else 0.0
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[float, Context]] = {}
        self._lock = threading.Lock()
        self._asking = threading.BoundedSemaphore(max(1, conf.server.threads // 2))

    def caller(self, environ: Mapping[str, Any]) -> Context:
        """The caller of a request. Raises `Unauthenticated`; `Busy` while Keystone cannot be asked."""
        token, service_token = environ.get("HTTP_X_AUTH_TOKEN", ""), environ.get("HTTP_X_SERVICE_TOKEN", "")
        if not token:
            raise errors.Unauthenticated("This request needs a token: X-Auth-Token.")
        if max(len(token), len(service_token)) > _MAX_TOKEN or not (token + service_token).isascii():
            raise errors.Unauthenticated("The token is none of Keystone's.")
        key = hashlib.blake2b(f"{token}\n{service_token}".encode(), key=self._key, digest_size=32).digest()
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        if not self._asking.acquire(blocking=False):
            # While Keystone hangs, half of the threads still serve remembered callers and transfers.
            raise errors.Busy("Too many requests wait for Keystone; try again later.")
        try:
            found = self._validate(environ, token, service_token)
        finally:
            self._asking.release()
        ctx = _context(found)
        if (seconds := min(self._remember_for, _lifetime(found))) > 0:
            self._remember(key, time.monotonic() + seconds, ctx)
        return ctx

    def delegation(self, environ: Mapping[str, Any]) -> Delegation | None:
        """The caller's token and catalog. Keystone, or memcached, is asked again: catalogs are not remembered."""
        token = environ.get("HTTP_X_AUTH_TOKEN", "")
        found = self._validate(environ, token, "")
        try:
            catalog = json.loads(found.get("HTTP_X_SERVICE_CATALOG") or "[]")
        except ValueError:
            catalog = []
        return Delegation(token, [one for one in catalog if isinstance(one, dict)])

    def _validate(self, environ: Mapping[str, Any], token: str, service_token: str) -> dict[str, Any]:
        """The environment that the middleware would hand to the application, with what it found."""
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
        except Exception as exc:  # a malformed answer of Keystone's is raised as KeyError and the like
            raise errors.Busy("Keystone cannot be asked who you are; try again later.") from exc
        if answers[-1].startswith("401"):
            raise errors.Unauthenticated("The token is wrong, or has expired.")
        if not answers[-1].startswith("200"):
            raise errors.Busy("Keystone cannot be asked who you are; try again later.")
        return asked

    def _remember(self, key: bytes, until: float, ctx: Context) -> None:
        with self._lock:
            if len(self._known) >= _MAX_REMEMBERED:
                for oldest in list(self._known)[: _MAX_REMEMBERED // 10 + 1]:
                    del self._known[oldest]
            self._known[key] = (until, ctx)


class _Middleware(auth_token.AuthProtocol):  # type: ignore[misc]  # it has no types
    def fetch_token(self, token: str, **more: Any) -> Any:
        """As the original, but a 404 that is not Keystone's own means that a proxy does not reach Keystone."""
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
    """The application that the middleware calls when the token is valid."""
    start_response("200 OK", [])
    return []


def _auth_url(conf: cfg.ConfigOpts) -> str:
    """The URL that the credentials are for. Raises for an unknown kind of credentials, or if there is no URL."""
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

    This reads the tokens, not the header fields that the middleware makes of them: those confuse the system scope of
    the user with that of the service, and a role with a comma in its name with two roles.
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
    """For how many seconds the result holds for other requests with these tokens."""
    said = found["keystone.token_info"]["token"]
    rules = (said.get("application_credential") or {}).get("access_rules")
    if rules is not None or said.get("bind"):
        return 0.0  # the result depends on the request as well
    asked = found["keystone.token_auth"]
    remaining = [_remaining(token) for token in (asked.user, asked.service) if token is not None]
    if asked.service is not None and remaining[0] <= 0:
        del remaining[0]  # Keystone accepted the expired token because of the service token
    return min(remaining)


def _remaining(token: Any) -> float:
    """Seconds until a token expires."""
    return float((token.expires - datetime.now(UTC)).total_seconds()) if token.expires is not None else 0.0
