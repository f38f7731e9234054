"""The versions of the API, and how the path or `Accept` selects one.

The minor version never changes behaviour (contract: api.md §1.1): it tells clients which routes exist.
"""

import json
import re
from typing import Any, Final

import falcon

from calotype.api.images import send
from calotype.api.request import service

CURRENT: Final = "v2.17"
#: Minor versions that this service offers, newest first; 2.14, 2.16 and 2.18 are the cache's.
OFFERED: Final = tuple(f"v2.{minor}" for minor in (17, 15, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0))
_IN_PATH: Final = frozenset(("v2", *OFFERED))
_IN_ACCEPT: Final = re.compile(r"application/vnd\.openstack\.images-(v2(?:\.\d+)?)")


def show(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /versions"""
    send(resp, _document(req))


def choices(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /"""
    resp.status = 300
    send(resp, _document(req))


def to_v2(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2"""
    resp.status = 302
    resp.location = f"{_base(req)}/v2/"  # escaped, because the host is the client's text


def route(req: falcon.Request) -> None:
    """Rewrite the version in the path, or in `Accept`, to the form that the routes have."""
    first, slash, rest = req.path[1:].partition("/")
    accepted = _IN_ACCEPT.search(req.get_header("Accept") or "")
    if accepted and accepted[1] in _IN_PATH and not re.match(r"v\d", first):
        req.path = f"/v2{req.path}"
    elif first in _IN_PATH:
        req.path = f"/v2{slash}{rest}"
    elif first == "versions":
        req.path = "/versions"
    elif first not in ("", "healthcheck", "openapi.json"):
        # Any request for an unknown version is answered with the list of versions.
        raise falcon.HTTPStatus(300, {"Content-Type": "application/json"}, json.dumps(_document(req)))


def _document(req: falcon.Request) -> dict[str, Any]:
    link = {"rel": "self", "href": f"{_base(req)}/v2/"}
    return {
        "versions": [
            {"id": version, "status": "CURRENT" if version == CURRENT else "SUPPORTED", "links": [link]}
            for version in OFFERED
        ]
    }


def _base(req: falcon.Request) -> str:
    public: str | None = service(req).conf.public_endpoint
    return (public or req.prefix).rstrip("/")
