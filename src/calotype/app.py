"""Puts the service together from a configuration: its parts, the middleware, the routes.

This is the only module that knows every part. Start reading here.
"""

import json
import logging
import re
import secrets
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import falcon
from oslo_config import cfg

from calotype import config, config_check, errors, insides, limits, logs, notifiers, policy
from calotype.api import body, openapi, proxies, versions
from calotype.api import errors as api_errors
from calotype.api.conditions import Conditions
from calotype.api.cors import Cors
from calotype.api.request import UUID, take_names_from_query
from calotype.api.routes import ROUTES, Route
from calotype.api.schemas import Schemas
from calotype.auth.base import Authenticator
from calotype.auth.basic import BasicAuth
from calotype.context import SERVICE, Context
from calotype.db import images, outbox, schema
from calotype.db.drivers import Settings, parse
from calotype.db.engine import Database, now
from calotype.db.leases import Leases
from calotype.events import Events
from calotype.images import places
from calotype.images.health import Health
from calotype.images.stream import check_hash_algo
from calotype.jobs.sender import Sender
from calotype.jobs.worker import Runner
from calotype.net import Net
from calotype.policy import Policy
from calotype.protections import Protections
from calotype.service import Service
from calotype.stores import registry
from calotype.transfers import Transfers

LOG = logging.getLogger(__name__)


class App:
    """A configured service. `wsgi` is the WSGI application; `start` and `stop` control its threads in each process."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.account = config_check.account(conf)
        config_check.refuse(self.account)
        config_check.check_libraries(conf)
        check_hash_algo(conf.hashing_algorithm)
        insides.check("oslo.context", "oslo.policy", "oslo.utils", "python", "SQLAlchemy")
        self.conf = conf
        self.db = database(conf)
        self.runner: Runner | None = None
        self.sender: Sender | None = None
        notifiers.build(conf)  # only to check the configuration: each process makes its own
        auth = authenticator(conf)  # first: it registers options that the policy reads
        policy = Policy(conf)
        self.service = Service(
            conf=conf,
            db=self.db,
            policy=policy,
            protections=Protections(conf, policy.passes),
            limits=limits.build(conf),
            stores=registry.build(conf),
            leases=Leases(self.db.background(), config.state_path(conf, "owners")),
            events=Events(
                conf,
                put=outbox.add,
                read=lambda tx, image_id: images.get(tx, SERVICE, image_id),
                now=now,
                nudge=lambda: self.sender.nudge() if self.sender else None,
            ),
            transfers=Transfers(
                conf.server.transfer_memory << 20,
                conf.server.transfers,
                directory=config.state_path(conf, "transfers"),
            ),
            net=Net(config.filters(conf), proxy=config.proxy(conf)),
            now=now,
            nudge=lambda: self.runner.nudge() if self.runner else None,
        )
        schemas = Schemas(conf.image_format.disk_formats, conf.image_format.container_formats)
        self.wsgi = _falcon(
            [
                Arrival(self.service, schemas, Health(self.service)),
                Cors(conf),
                Authentication(self.service, auth),
                Conditions(),
            ]
        )

    def prepare(self, *, wait: bool = True) -> None:
        """Wait for the database, and look at its schema and at the places of the stores; raises as `build` does."""
        config_check.tell(self.account, doubts(self.conf))
        # Closed, not just forgotten: a child that inherits an open SQLite file and closes it later loses the locks of
        # its own connections with it (POSIX drops a process's locks on a file at its first close).
        with closing(self.db):
            self.wait(patient=wait)
            places.recognise(self.service)
            places.prepare_staging(self.service)
            for unserved in places.unserved(self.service):
                LOG.error("%s", unserved)

    def wait(self, *, patient: bool = True) -> None:
        """Wait for the database, and look at its schema. Raises `ConfigError` and `Busy`."""
        self.db.wait(self.conf.database.max_retries if patient else 0, self.conf.database.retry_interval)
        schema.require_current(self.db)

    def start(self) -> None:
        """Start the threads that do jobs and send events. Call this after forking."""
        self.db.dispose()
        svc = replace(self.service, db=self.db.background())
        if found := notifiers.build(self.conf):
            self.sender = Sender(svc, found, self.conf.jobs.poll)
            self.sender.start()
        self.runner = Runner(svc, self.conf.jobs.poll)
        self.runner.start()

    def reload(self) -> None:
        """On SIGHUP, read the log options, the policy and the property protections again.

        A broken file changes nothing. The users file is checked by each request anyway.
        """
        try:
            self.conf.mutate_config_files()
        except Exception as exc:  # noqa: BLE001  # whatever is wrong with a file, what runs goes on
            LOG.error("the configuration cannot be read again; the old one stays: %s", errors.reason(exc))
        self.service.policy.reload()
        self.service.protections.reload()
        LOG.info("configuration, policy and property protections were looked at again")

    def stop(self) -> None:
        """Stop the threads, and release the leases of this process."""
        if self.runner is not None:
            self.runner.stop()
        if self.sender is not None:
            self.sender.stop()
        self.service.leases.close()
        self.db.close()  # closing makes SQLite move its log into the database file


def build(conf: cfg.ConfigOpts, *, wait: bool = True) -> App:
    """Make the service of a configuration, once its database answers.

    Raises `ConfigError` for what cannot be served safely. Without `wait`, also `Busy` if the database does not answer.
    """
    app = App(conf)
    app.prepare(wait=wait)
    return app


def database_file(conf: cfg.ConfigOpts) -> Path | None:
    """Where the database is if it is a file of SQLite's. Raises `ConfigError` for a URL without one."""
    if not conf.database.connection:
        return config.state_path(conf, "calotype.db")
    url = parse(conf.database.connection)
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database.startswith((":", "file:")):
        raise errors.ConfigError("[database] connection: SQLite needs a file that stays: sqlite:////PATH/OF/FILE.")
    return Path(url.database)


def problems(conf: cfg.ConfigOpts) -> list[str]:
    """What would stop the start, all of it: each part is tried by itself. Nothing is changed, and nobody is asked."""
    parts: list[Callable[[], object]] = [
        lambda: config_check.refuse(config_check.account(conf)),
        lambda: config_check.check_libraries(conf),
        lambda: check_hash_algo(conf.hashing_algorithm),
        lambda: database(conf),
        lambda: notifiers.build(conf),
        lambda: authenticator(conf),
        lambda: Policy(conf),
        lambda: Protections(conf, _passes(conf)),
        lambda: limits.build(conf),
        lambda: config.filters(conf),
        lambda: config.proxy(conf),
        lambda: registry.build(conf),
        lambda: App(conf),  # last, for what only shows when all is put together
    ]
    found: list[str] = []
    for part in parts:
        try:
            part()
        except (errors.CalotypeError, cfg.Error, ValueError) as exc:  # libraries' options have values, too
            found += str(exc).splitlines()
    return list(dict.fromkeys(found))


def _passes(conf: cfg.ConfigOpts) -> Callable[[Context, str], bool | None]:
    """What protections ask; with policy files that cannot be used, each rule is there, and passes nobody."""
    try:
        return Policy(conf).passes
    except errors.ConfigError:
        return lambda _ctx, _rule: False


def doubts(conf: cfg.ConfigOpts) -> tuple[str, ...]:
    """What does not look as it was meant, although it can be served: sentences about policy files."""
    return policy.examine(conf, Protections(conf, _passes(conf)).rules).doubts


def database(conf: cfg.ConfigOpts, *, patient: bool = False) -> Database:
    """The configured database, or SQLite in the state directory; `patient` waits for answers as long as they take."""
    file = database_file(conf)
    url = conf.database.connection if file is None or conf.database.connection else f"sqlite:///{file}"
    settings = Settings(**{field.name: conf.database[field.name] for field in fields(Settings)})
    return Database(url, replace(settings, response_timeout=None) if patient else settings)


def authenticator(conf: cfg.ConfigOpts) -> Authenticator:
    """The authenticator that the paste flavor names. Raises `ConfigError`."""
    if "keystone" in config.flavor(conf):
        insides.check("keystonemiddleware")
        from calotype.auth.keystone import KeystoneAuth

        return KeystoneAuth(conf)
    return BasicAuth(users_file(conf), parallel=conf.http_basic.verify_parallel)


def users_file(conf: cfg.ConfigOpts) -> Path:
    """The file with the users of HTTP basic authentication."""
    return Path(conf.http_basic.users_file or config.state_path(conf, "users.json"))


# --- HTTP ------------------------------------------------------------------------------------------------


class Arrival:
    """The outermost middleware: request ids, the parts that handlers use, the version in the path."""

    _ESCAPED_SLASH: Final = re.compile("%2f", re.IGNORECASE)

    def __init__(self, svc: Service, schemas: Schemas, health: Health) -> None:
        self._svc = svc
        self._schemas = schemas
        self._openapi = json.dumps(openapi.document(schemas)).encode()
        self._health = health
        self._behind_proxy: bool = svc.conf.oslo_middleware.enable_proxy_headers_parsing

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        req.context.service = self._svc
        req.context.schemas = self._schemas
        req.context.openapi = self._openapi
        req.context.health = self._health
        req.context.request_id = f"req-{secrets.token_hex(16)}"
        given = req.get_header("X-Openstack-Request-ID")
        most = self._svc.conf.max_request_id_length
        if given and most and len(given) > most:
            raise errors.HeaderTooLarge(f"X-Openstack-Request-ID may have at most {most} characters.")
        if given and given.isascii() and given.isprintable():
            req.context.request_id = given if given.startswith("req-") else f"req-{given}"
        req.env[logs.KEY] = logs.begin(req.context.request_id)
        proxies.check_host(req.env)
        if self._behind_proxy:
            proxies.believe(req.env)
        if req.method == "PUT" and req.get_header("Content-Range") is not None:
            # RFC 9110 §14.5: who does not know it would take a part for the whole.
            raise errors.Invalid("Content-Range is not accepted: send the whole of the content.")
        raw = str(req.env.get("RAW_URI") or req.env.get("REQUEST_URI") or "")
        if self._ESCAPED_SLASH.search(raw.partition("?")[0]):
            # No variable in a path may hold a slash, so a path with an escaped one matches no route.
            raise errors.NotFound("The resource could not be found.")
        if req.method not in falcon.HTTP_METHODS:
            raise errors.NotSupported(f"Method {req.method[:20]} is not known.")
        versions.route(req)

    def process_response(self, req: falcon.Request, resp: falcon.Response, _resource: object, _succeeded: bool) -> None:
        resp.set_header("X-Openstack-Request-ID", req.context.request_id)
        if resp.status_code >= 400:
            body.drain(req.env)
        if resp.stream is None:
            logs.end()  # else there may be more to log: then the server ends it, or the next request


class Authentication:
    """Middleware that finds the caller of each request, except for routes that are open."""

    _CREDENTIALS: Final = ("HTTP_X_AUTH_TOKEN", "HTTP_AUTHORIZATION")

    def __init__(self, svc: Service, auth: Authenticator) -> None:
        self._svc = svc
        self._auth = auth
        self._anonymous = svc.conf.allow_anonymous_access

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: Any, params: dict[str, Any]
    ) -> None:
        log = req.env[logs.KEY]
        if UUID.fullmatch(params.get("image_id", "")):
            log.resource_uuid = params["image_id"]
        if resource is None or resource.open:
            return
        if not all(params.values()):
            # No variable in a path may be empty.
            raise errors.NotFound("The resource could not be found.")
        take_names_from_query(req, params)
        ctx = self._caller(req, resp)
        logs.identify(log, ctx)
        if ctx.read_only and req.method not in ("GET", "HEAD"):
            raise errors.Forbidden("Read-only access")
        is_admin = not ctx.read_only and self._svc.policy.admit(ctx)
        req.context.caller = replace(ctx, request_id=req.context.request_id, is_admin=is_admin)
        req.context.delegation = partial(self._auth.delegation, req.env)

    def _caller(self, req: falcon.Request, resp: falcon.Response) -> Context:
        if self._anonymous and not any(name in req.env for name in self._CREDENTIALS):
            return Context(read_only=True)
        try:
            return self._auth.caller(req.env)
        except errors.Unauthenticated:
            resp.set_header("WWW-Authenticate", self._auth.challenge)
            raise


def _falcon(middleware: list[Any]) -> falcon.App[Any, Any]:
    application: falcon.App[Any, Any] = falcon.App(middleware=middleware)
    application.req_options.auto_parse_form_urlencoded = False
    application.req_options.strip_url_path_trailing_slash = False
    # For answers without a body, such as 202. glanceclient would parse an empty one that is said to be JSON.
    application.resp_options.default_media_type = "text/html; charset=UTF-8"
    application.add_error_handler(Exception, api_errors.handle)
    application.add_error_handler(falcon.HTTPError, api_errors.handle_http)
    paths: dict[str, list[Route]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, []).append(route)
    for path, routes in paths.items():
        application.add_route(path, _resource(routes))
    return application


def _resource(routes: list[Route]) -> object:
    """A resource for Falcon: an object with a responder for each method."""
    allowed = sorted(route.method for route in routes)
    responders: dict[str, Any] = {f"on_{route.method.lower()}": staticmethod(route.handler) for route in routes}
    responders.setdefault("on_options", staticmethod(partial(_refuse_method, allowed)))
    responders["open"] = routes[0].open  # a path is open for all of its methods, or for none
    return type("Resource", (), responders)()


def _refuse_method(allowed: list[str], _req: falcon.Request, _resp: falcon.Response, **_rest: str) -> None:
    raise falcon.HTTPMethodNotAllowed(allowed)
