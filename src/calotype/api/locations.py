"""Locations over HTTP (contract: api.md §8)."""

import re

import falcon

from calotype import errors
from calotype.api import views
from calotype.api.images import known_id, send
from calotype.api.request import caller, json_object, no_body, service
from calotype.images import locations
from calotype.images.locations import ALGORITHMS, Given


def add(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """POST /v2/images/{image_id}/locations"""
    found = json_object(req)
    if unknown := sorted(found.keys() - {"url", "validation_data"}):
        raise errors.Invalid(f"A location has a url and validation_data, and no {unknown[0][:64]!r}.")
    url = found.get("url")
    if not isinstance(url, str):
        raise errors.Invalid("A location needs a url, a string.")
    given = _given(found["validation_data"]) if found.get("validation_data") else None
    locations.add(service(req), caller(req), known_id(image_id), url, given)
    resp.status = 202


def index(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """GET /v2/images/{image_id}/locations"""
    no_body(req)
    found = locations.list_(service(req), caller(req), known_id(image_id))
    send(resp, [views.location(one) for one in found])


def _given(found: object) -> Given:
    if not isinstance(found, dict) or found.keys() != {"os_hash_algo", "os_hash_value"}:
        raise errors.Invalid("validation_data holds os_hash_algo and os_hash_value, and nothing else.")
    algo, value = found["os_hash_algo"], found["os_hash_value"]
    if not isinstance(algo, str) or algo not in ALGORITHMS:
        raise errors.Invalid(f"os_hash_algo is one of {', '.join(ALGORITHMS)}.")
    if not isinstance(value, str) or not re.fullmatch(f"[0-9A-Fa-f]{{{2 * ALGORITHMS[algo]}}}", value):
        raise errors.Invalid(f"os_hash_value of {algo} has {2 * ALGORITHMS[algo]} hexadecimal digits.")
    return Given(algo, value.lower())
