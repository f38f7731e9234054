"""Locations over HTTP (contract: api.md §8)."""

import re
from collections.abc import Mapping

import falcon

from calotype import errors
from calotype.api import schemas, views
from calotype.api.images import known_id, send
from calotype.api.request import caller, json_object, no_body, service
from calotype.images import locations
from calotype.images.locations import ALGORITHMS, Given


def add(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """POST /v2/images/{image_id}/locations"""
    found = json_object(req)
    schemas.check(schemas.NEW_LOCATION, found)
    given = parse_given(found["validation_data"]) if found.get("validation_data") else None
    locations.add(service(req), caller(req), known_id(image_id), found["url"], given)
    resp.status = 202


def index(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """GET /v2/images/{image_id}/locations"""
    no_body(req)
    found = locations.list_(service(req), caller(req), known_id(image_id))
    send(resp, [views.location(one) for one in found])


def parse_given(found: Mapping[str, str]) -> Given:
    """The hash in `os_hash_algo` and `os_hash_value`. Raises `Invalid` for one of the wrong length."""
    algo, value = found["os_hash_algo"], found["os_hash_value"]
    if not re.fullmatch(f"[0-9A-Fa-f]{{{2 * ALGORITHMS[algo]}}}", value):
        raise errors.Invalid(f"os_hash_value of {algo} has {2 * ALGORITHMS[algo]} hexadecimal digits.")
    return Given(algo, value.lower())
