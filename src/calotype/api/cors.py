"""Cross-origin requests: what a browser may do here for a page of another origin (Fetch standard, `[cors]`).

oslo.middleware has the same options, but it makes a WebOb request and response for each request. This costs more than
showing an image.
"""

from typing import Final

import falcon
from oslo_config import cfg

#: Headers that every page may send.
_SIMPLE: Final = (
    "accept accept-language content-type cache-control content-language expires last-modified pragma"
).split()


class Cors:
    """Answers preflight requests, which have no credentials, and tells browsers which origins may read an answer."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        options = conf.cors
        self._origins = frozenset(options.allowed_origin or ())
        self._credentials: bool = options.allow_credentials
        self._methods = frozenset(options.allow_methods)
        self._headers = frozenset([*_SIMPLE, *(name.lower() for name in options.allow_headers)])
        self._exposed = ",".join(options.expose_headers)
        self._max_age: int = options.max_age

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        if not self._origins or req.method != "OPTIONS":
            return
        wanted = req.get_header("Access-Control-Request-Method")
        if wanted is None or req.get_header("Origin") is None:
            return
        names = [name.strip() for name in (req.get_header("Access-Control-Request-Headers") or "").split(",")]
        named = [name for name in names if name]
        if self._origin(req) and wanted in self._methods and self._headers.issuperset(map(str.lower, named)):
            resp.set_header("Access-Control-Allow-Methods", wanted)
            if named:
                resp.set_header("Access-Control-Allow-Headers", ",".join(named))
            if self._max_age:
                resp.set_header("Access-Control-Max-Age", str(self._max_age))
        else:
            req.context.cross_origin = False  # without the headers in the answer the browser refuses the request
        resp.complete = True

    def process_response(self, req: falcon.Request, resp: falcon.Response, _resource: object, _succeeded: bool) -> None:
        if not self._origins:
            return
        resp.append_header("Vary", "Origin")
        origin = self._origin(req)
        if origin is None or getattr(req.context, "cross_origin", True) is False:
            return
        resp.set_header("Access-Control-Allow-Origin", origin)
        if self._credentials and origin != "*":  # browsers refuse credentials together with *
            resp.set_header("Access-Control-Allow-Credentials", "true")
        if self._exposed and not resp.complete:
            resp.set_header("Access-Control-Expose-Headers", self._exposed)

    def _origin(self, req: falcon.Request) -> str | None:
        """The value of Access-Control-Allow-Origin for this request; None if it has no origin that is allowed."""
        origin = req.get_header("Origin")
        if origin is None or origin in self._origins:
            return origin
        return "*" if "*" in self._origins else None
