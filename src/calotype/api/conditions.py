"""Conditions of requests: `If-Match` and `If-None-Match` of RFC 9110 §13.

Image data has an entity tag, and whoever sends it calls `unchanged`. Nothing else has one. So `Conditions` can tell by
the headers alone: a list of tags in `If-Match` names none that there is. Dates are not compared, as nothing has
`Last-Modified` (§13.1.3, §13.1.4).
"""

from typing import Any, Final

import falcon

from calotype import errors

_SAFE: Final = ("GET", "HEAD")


class Conditions:
    """Refuses requests about what has no entity tag, before anything is changed. Comes after the authentication."""

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: Any, params: dict[str, Any]
    ) -> None:
        if resource is None or resource.open or not hasattr(resource, f"on_{req.method.lower()}"):
            return
        is_data = (req.uri_template or "").endswith("/file")
        if is_data and req.method in _SAFE:
            return
        # Data is sent to an image that has none. Of everything else that is named here it is taken that it exists.
        _check_match(req, None, exists=not is_data)
        if req.method not in _SAFE and not is_data and "*" in _tags(req, "If-None-Match"):
            raise _failed("If-None-Match")


def unchanged(req: falcon.Request, etag: str | None, *, exists: bool) -> bool:
    """Whether the client of a GET or HEAD has these bytes already. Raises `PreconditionFailed` for another `If-Match`.

    `etag` is the strong entity tag of the data, None where it has none; `exists` is whether there is data.
    """
    _check_match(req, etag, exists=exists)
    known = [tag.removeprefix("W/") for tag in _tags(req, "If-None-Match")]  # compared weakly
    return (exists and "*" in known) or etag in known


def _check_match(req: falcon.Request, etag: str | None, *, exists: bool) -> None:
    if req.get_header("If-Match") is None:
        return
    wanted = _tags(req, "If-Match")
    if not (exists and "*" in wanted) and etag not in wanted:
        raise _failed("If-Match")


def _tags(req: falcon.Request, name: str) -> list[str]:
    return [tag.strip() for tag in (req.get_header(name) or "").split(",")]


def _failed(name: str) -> errors.PreconditionFailed:
    return errors.PreconditionFailed(f"The condition {name} does not hold; nothing was changed.")
