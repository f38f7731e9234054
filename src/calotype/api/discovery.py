"""Information about this service: import methods, stores, usage, schemas; and the removal of a copy from a store."""

import falcon

from calotype import errors
from calotype.api import views
from calotype.api.images import known_id, send
from calotype.api.request import caller, no_body, service
from calotype.images import imports, quota, stores


def import_info(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2/info/import"""
    no_body(req)
    offered = imports.enabled_methods(service(req))
    methods = {"description": "Import methods available.", "type": "array", "value": offered}
    send(resp, {"import-methods": methods})


def stores_info(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2/info/stores"""
    no_body(req)
    send(resp, {"stores": [views.store(facts) for facts in stores.list_(service(req))]})


def stores_detail(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2/info/stores/detail"""
    no_body(req)
    send(resp, {"stores": [views.store(facts) for facts in stores.details(service(req), caller(req))]})


def usage_info(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2/info/usage"""
    no_body(req)
    found = quota.report(service(req), caller(req))
    send(resp, {"usage": {name: {"usage": use, "limit": limit} for name, (use, limit) in found.items()}})


def remove_copy(req: falcon.Request, resp: falcon.Response, store_id: str, image_id: str) -> None:
    """DELETE /v2/stores/{store_id}/{image_id}"""
    no_body(req)
    stores.remove_copy(service(req), caller(req), store_id, known_id(image_id))
    resp.status = 204


def openapi(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /openapi.json"""
    no_body(req)
    resp.content_type = "application/json"
    resp.data = req.context.openapi


def metadef_schema(req: falcon.Request, resp: falcon.Response, name: str) -> None:
    """GET /v2/schemas/metadefs/{name}"""
    schema(req, resp, f"metadefs/{name}")


def schema(req: falcon.Request, resp: falcon.Response, name: str) -> None:
    """GET /v2/schemas/{name}"""
    no_body(req)
    served = req.context.schemas.served
    if name not in served:
        raise errors.NotFound(f"There is no schema named {name[:64]!r}.")
    send(resp, served[name])
