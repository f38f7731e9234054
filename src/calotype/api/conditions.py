"""Conditions of requests: `If-Match` and `If-None-Match` of RFC 9110 §13.

Only image data has an entity tag; the handler that sends it calls `unchanged`. For all other resources `Conditions` can
decide by the headers alone: no tag in `If-Match` can be right. Dates are not compared, because nothing has
`Last-Modified` (§13.1.3, §13.1.4).
"""

from typing import Any, Final

import falcon

from calotype import errors

_SAFE: Final = ("GET", "HEAD")


class Conditions:
    """Checks the conditions of requests for resources without an entity tag, before anything is changed.

    Comes after the authentication.
    """

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: Any, params: dict[str, Any]
    ) -> None:
        if resource is None or resource.open or not hasattr(resource, f"on_{req.method.lower()}"):
            return
        is_data = (req.uri_template or "").endswith("/file")
        if is_data and req.method in _SAFE:
            return
        # An image that data is uploaded to has none yet. All other resources are assumed to exist.
        _check_match(req, None, exists=not is_data)
        if req.method not in _SAFE and not is_data and "*" in _tags(req, "If-None-Match"):
            raise _failed("If-None-Match")


def unchanged(req: falcon.Request, etag: str | None, *, exists: bool) -> bool:
    """Whether the client of a GET or HEAD has these bytes already. Raises `PreconditionFailed` if `If-Match` fails.

    `etag` is the strong entity tag of the data, None where it has none; `exists` is whether there is data.
    """
    _check_match(req, etag, exists=exists)
    known = [tag.removeprefix("W/") for tag in _tags(req, "If-None-Match")]  # compared weakly
    return (exists and "*" in known) or etag in known


def _check_match(req: falcon.Request, etag: str | None, *, exists: bool) -> None:
    if req.get_header("If-Match") is None:
        return
    tags = _tags(req, "If-Match")
    if not (exists and "*" in tags) and etag not in tags:
        raise _failed("If-Match")


def _tags(req: falcon.Request, name: str) -> list[str]:
    return [tag.strip() for tag in (req.get_header(name) or "").split(",")]


def _failed(name: str) -> errors.PreconditionFailed:
    return errors.PreconditionFailed(f"The condition {name} does not hold; nothing was changed.")
