"""`GET /healthcheck`, for load balancers: no credentials, no version in the path."""

import ipaddress
import json
import re

import falcon

from calotype import errors
from calotype.api.request import service
from calotype.images.health import Finding, Health

_PROXIED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix")


def show(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /healthcheck: 200 `OK`, or 503 with what fails; as JSON if the client accepts that."""
    _check_source(req)
    health: Health = req.context.health
    detailed: bool = service(req).conf.healthcheck.detailed
    port = str(req.env.get("SERVER_PORT", ""))  # on a Unix socket gunicorn takes it from the header Host
    well, found = health.check(int(port) if re.fullmatch("[0-9]{1,5}", port) else 0)
    resp.status = 200 if well else 503
    if "application/json" in (req.get_header("Accept") or ""):
        resp.content_type = "application/json; charset=UTF-8"
        reasons = [one.reason or "OK" for one in found]
        resp.text = json.dumps(
            {"detailed": True, "healthy": well, "reasons": [_entry(one) for one in found]}
            if detailed
            else {"detailed": False, "reasons": reasons}
        )
        return
    resp.content_type = "text/plain; charset=UTF-8"
    if detailed:
        resp.text = "\n".join(f"{one.name}: {one.reason or 'OK'}" for one in found)
    else:
        resp.text = "OK" if well else "\n".join(_words(one) for one in found if not one.healthy)


def _entry(one: Finding) -> dict[str, object]:
    return {"class": one.name, "healthy": one.healthy, "reason": one.reason or "OK"}


def _words(one: Finding) -> str:
    return one.reason if one.reason.isupper() else f"{one.name} {one.reason}"


def _check_source(req: falcon.Request) -> None:
    """Raise `NotFound` for clients that are not allowed."""
    conf = service(req).conf.healthcheck
    nothing = errors.NotFound("The resource could not be found.")
    if conf.ignore_proxied_requests and any(req.get_header(name) for name in _PROXIED):
        raise nothing
    if conf.allowed_source_ranges:
        try:
            address = ipaddress.ip_address(req.remote_addr)
        except ValueError as exc:  # raised for a Unix socket, which has no address
            raise nothing from exc
        if not any(address in ipaddress.ip_network(one) for one in conf.allowed_source_ranges):
            raise nothing
