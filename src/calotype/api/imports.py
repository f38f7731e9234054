"""Interoperable import over HTTP (contract: api.md §6)."""

from collections.abc import Mapping

import falcon

from calotype import errors
from calotype.api import schemas
from calotype.api.images import known_id
from calotype.api.locations import parse_given
from calotype.api.request import UUID, caller, json_object, no_body, service
from calotype.auth.base import Delegation
from calotype.images import imports
from calotype.images.imports import Remote, Request


def start(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """POST /v2/images/{image_id}/import"""
    asked = json_object(req)
    schemas.check(schemas.NEW_IMPORT, asked)
    method = asked["method"]
    store = req.get_header("x-image-meta-store")
    named = asked.get("stores")
    if asked.get("all_stores") and (named is not None or store):
        raise errors.Invalid("all_stores and stores cannot be used together.")
    if store and named is not None:
        raise errors.Invalid("Stores cannot be named both in the body and in the header x-image-meta-store.")
    imports.start(
        service(req),
        caller(req),
        known_id(image_id),
        Request(
            method=method["name"],
            asked=asked,
            uri=method.get("uri"),
            remote=_remote(req, method) if method["name"] == imports.GLANCE_DOWNLOAD else None,
            given=parse_given(method) if "os_hash_algo" in method else None,
            stores=[store] if store else named,
            all_stores=asked.get("all_stores", False),
            all_must_succeed=asked.get("all_stores_must_succeed", True),
        ),
    )
    resp.status = 202


def _remote(req: falcon.Request, method: Mapping[str, str]) -> Remote | None:
    """The image in another region that is meant; the caller's own catalog tells where that region is."""
    if "glance_region" not in method or "glance_image_id" not in method:
        return None
    if not UUID.fullmatch(method["glance_image_id"]):
        raise errors.Invalid("The remote image id does not look like a UUID: see glance_image_id.")
    delegated: Delegation | None = req.context.delegation()
    if delegated is None:
        raise errors.Invalid("glance-download needs a Keystone that both regions share; here is none.")
    interface = method.get("glance_service_interface", "public")
    endpoint = delegated.endpoint("image", method["glance_region"], interface)
    return Remote(endpoint, method["glance_image_id"], delegated.token)


def cancel(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """POST /v2/images/{image_id}/actions/cancel_import"""
    no_body(req)
    imports.cancel(service(req), caller(req), known_id(image_id))
    resp.status = 202
