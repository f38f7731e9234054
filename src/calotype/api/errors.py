"""Answers errors: one table has the HTTP status of each. No other module knows the status of an error.

The body follows `Accept` (contract: api.md §1.3). A failure is logged once, here, with its cause.

For requests that carry image data a second table, `FOR_DATA`, replaces statuses that make clients repeat a request.
"""

import json
import logging
import re
from html import escape
from typing import Final

import falcon

from calotype import errors

LOG = logging.getLogger(__name__)

#: The first class that matches decides.
STATUS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (errors.Unauthenticated, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Gone, 410),
    (errors.Conflict, 409),
    (errors.PreconditionFailed, 412),
    (errors.OverLimit, 413),
    (errors.UnsupportedMedia, 415),
    (errors.ContentRejected, 415),
    (errors.RangeUnsatisfiable, 416),
    (errors.HeaderTooLarge, 431),
    (errors.NotSupported, 501),
    (errors.Busy, 503),
    (errors.Invalid, 400),
    (errors.StoreFull, 413),
    (errors.InUse, 409),
    (errors.AlreadyStored, 409),
    (errors.StoreReadOnly, 410),
    (errors.StoreUnavailable, 503),
    (errors.StoreError, 500),
)

#: Replacements of statuses for requests that carry image data.
#:
#: openstacksdk repeats a request after 503; keystoneauth after 429 and 503; curl after these and 408, 500, 502 and 504.
#: When openstacksdk repeats an upload, it sends only what the first request left of the stream: the end of a file, or
#: nothing. The service would take this for the whole image. By RFC 4918 §11.5, 507 means that the server cannot store
#: the data at present, and that a client must not repeat the request unless its user asks for it.
FOR_DATA: Final = {500: 507, 503: 507}

_DATA_PATH: Final = re.compile(r"/v2/images/[^/]+/(file|stage)")
_TITLES: Final = {
    300: "Multiple Choices",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    412: "Precondition Failed",
    413: "Request Entity Too Large",
    415: "Unsupported Media Type",
    416: "Request Range Not Satisfiable",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    507: "Insufficient Storage",
}


def status_of(exc: Exception) -> int:
    """The HTTP status for an error of ours; 500 for any other exception."""
    return next((status for kind, status in STATUS if isinstance(exc, kind)), 500)


def _answer_of(req: falcon.Request, exc: Exception) -> int:
    """The HTTP status for this error and this request, which may carry image data."""
    status = status_of(exc)
    if req.method != "PUT" or not _DATA_PATH.fullmatch(req.path):
        return status
    if status == 401 and req.get_header("X-Auth-Token") is not None:
        return 403  # After 401 keystoneauth gets a new token and repeats the request with the rest of the stream.
    return FOR_DATA.get(status, status)


def handle(req: falcon.Request, resp: falcon.Response, exc: Exception, params: dict[str, object]) -> None:
    """Falcon's error handler for everything that our code raises."""
    status = _answer_of(req, exc)
    # Escaped, so that a line break in a path cannot forge a line of the log.
    image_id = ascii(params.get("image_id", "-"))[1:-1]
    facts = (
        ascii(req.method[:20])[1:-1],
        ascii(req.path[:200])[1:-1],
        status,
        image_id,
        getattr(exc, "store", "") or "-",
    )
    if status >= 500 and not isinstance(exc, errors.CalotypeError):
        LOG.error("%s %s answered %d; image %s, store %s: unforeseen", *facts, exc_info=exc)
    elif status >= 500 and status != 501:
        LOG.error("%s %s answered %d; image %s, store %s: %s", *facts, errors.reason(exc))
    elif isinstance(exc, errors.StoreError | errors.BodyBroken | errors.ContentRejected):
        LOG.warning("%s %s answered %d; image %s, store %s: %s", *facts, errors.reason(exc))
    message = str(exc) if isinstance(exc, errors.CalotypeError) else "The service failed; the log tells why."
    if isinstance(exc, errors.RangeUnsatisfiable):
        resp.set_header("Content-Range", f"bytes */{exc.size}")
    if status == 503:
        resp.set_header("Retry-After", "5")
    if status != 401:
        resp.delete_header("WWW-Authenticate")
    render(req, resp, status, message)


def handle_http(req: falcon.Request, resp: falcon.Response, exc: falcon.HTTPError, _params: dict[str, object]) -> None:
    """Falcon's error handler for its own refusals (no route, wrong method): they get our form."""
    for name, value in dict(exc.headers or {}).items():
        # Falcon lists OPTIONS, which it would answer itself. Here OPTIONS is refused.
        if name.lower() == "allow":
            value = ", ".join(method for method in value.split(", ") if method != "OPTIONS")
        resp.set_header(name, value)
    status = exc.status_code
    render(req, resp, status, exc.description or _EXPLAIN.get(status, exc.title or ""))


def render(req: falcon.Request, resp: falcon.Response, status: int, message: str) -> None:
    """Fill in an error answer, in the form that the client accepts."""
    title = _TITLES.get(status, "Error")
    resp.status = status
    resp.data = None
    resp.stream = None
    for name in ("ETag", "Content-MD5", "Accept-Ranges", "Content-Length"):
        resp.delete_header(name)  # it was set for the content that is not sent
    if status != 416:
        resp.delete_header("Content-Range")
    accept = req.get_header("Accept") or ""
    if "application/json" in accept:
        body = {
            "message": f"{escape(message, quote=False)}<br /><br />\n\n\n",
            "code": f"{status} {title}",
            "title": title,
        }
        resp.content_type = "application/json"
        resp.text = json.dumps(body)
    elif "text/plain" in accept and "text/html" not in accept:
        resp.content_type = "text/plain; charset=UTF-8"
        resp.text = f"{status} {title}\n\n{message}\n"
    else:
        # Also without `Accept`, or with an empty one, as openstacksdk sends it with data. openstacksdk and glanceclient
        # both show the sentence of an HTML page. openstacksdk drops plain text; glanceclient fails on JSON. Both accept
        # quotes that are not escaped.
        resp.content_type = "text/html; charset=UTF-8"
        resp.text = (
            f"<html>\n <head>\n  <title>{status} {title}</title>\n </head>\n <body>\n"
            f"  <h1>{status} {title}</h1>\n  {escape(message, quote=False)}<br /><br />\n </body>\n</html>"
        )


_EXPLAIN: Final = {
    404: "The resource could not be found.",
    405: "The method is not allowed for this resource.",
}
