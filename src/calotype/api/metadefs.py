"""Metadata definitions over HTTP: namespaces, what is in them, resource types (contract: api.md §13)."""

from collections.abc import Mapping
from typing import Any, Final

import falcon

from calotype import errors
from calotype.api import metadef_schemas, metadef_views, schemas
from calotype.api.images import links, send
from calotype.api.request import caller, choice, integer, json_object, no_body, params, path_text, service
from calotype.db.metadefs import OBJECT, PROPERTY, SORT_KEYS, TAG, TAG_SORT_KEYS
from calotype.metadefs import namespaces, parts
from calotype.metadefs import resource_types as types

#: What is told of a thing, and cannot be said of it.
_READ_ONLY: Final = ("self", "schema", "created_at", "updated_at")


# --- namespaces ------------------------------------------------------------------------------------------


def index(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2/metadefs/namespaces"""
    wanted = params(req)
    last = {name: values[-1] for name, values in wanted.items()}
    visibility = last.get("visibility")
    if visibility is not None:
        choice(visibility, ("public", "private"), "visibility")
    found, following = namespaces.list_(
        service(req),
        caller(req),
        **_paging(req, last, SORT_KEYS),
        visibility=visibility,
        resource_types=tuple(filter(None, last.get("resource_types", "").split(","))),
    )
    body: dict[str, Any] = {"namespaces": [metadef_views.listed(one) for one in found]}
    send(
        resp, body | links(metadef_views.NAMESPACES, wanted, following) | {"schema": "/v2/schemas/metadefs/namespaces"}
    )


def create(req: falcon.Request, resp: falcon.Response) -> None:
    """POST /v2/metadefs/namespaces"""
    svc, ctx = service(req), caller(req)
    new = metadef_views.to_definitions(_body(req, metadef_schemas.NAMESPACE), ctx.project or "", svc.now())
    made = namespaces.create(svc, ctx, new)
    resp.status = 201
    resp.location = req.prefix + metadef_views.path(made.namespace.name)
    send(resp, metadef_views.definitions(made))


def show(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}"""
    no_body(req)
    found = namespaces.show(service(req), caller(req), _name(namespace))
    send(resp, metadef_views.definitions(found, _resource_type(req)))


def update(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """PUT /v2/metadefs/namespaces/{namespace}"""
    svc, ctx = service(req), caller(req)
    new = metadef_views.to_namespace(_body(req, metadef_schemas.NAMESPACE), ctx.project or "", svc.now())
    send(resp, metadef_views.listed(namespaces.update(svc, ctx, _name(namespace), new)))


def delete(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}"""
    no_body(req)
    namespaces.delete(service(req), caller(req), _name(namespace))
    resp.status = 204


# --- objects ---------------------------------------------------------------------------------------------


def objects(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/objects"""
    found = parts.list_(service(req), caller(req), _name(namespace), OBJECT)
    body = {"objects": [metadef_views.object_(namespace, one) for one in found]}
    send(resp, body | {"schema": "/v2/schemas/metadefs/objects"})


def add_object(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """POST /v2/metadefs/namespaces/{namespace}/objects"""
    svc = service(req)
    new = metadef_views.to_object(_body(req, metadef_schemas.OBJECT), svc.now())
    made = parts.add(svc, caller(req), _name(namespace), OBJECT, new)
    _created(req, resp, metadef_views.object_(namespace, made), namespace, "objects", made.name)


def show_object(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/objects/{name}"""
    found = parts.show(service(req), caller(req), _name(namespace), OBJECT, _name(name))
    send(resp, metadef_views.object_(namespace, found))


def change_object(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """PUT /v2/metadefs/namespaces/{namespace}/objects/{name}"""
    svc = service(req)
    new = metadef_views.to_object(_body(req, metadef_schemas.OBJECT), svc.now())
    changed = parts.change(svc, caller(req), _name(namespace), OBJECT, _name(name), new)
    send(resp, metadef_views.object_(namespace, changed))


def remove_object(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/objects/{name}"""
    parts.remove(service(req), caller(req), _name(namespace), OBJECT, _name(name))
    resp.status = 204


def remove_objects(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/objects"""
    parts.clear(service(req), caller(req), _name(namespace), OBJECT)
    resp.status = 204


# --- properties ------------------------------------------------------------------------------------------


def properties(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/properties"""
    no_body(req)
    found = parts.list_(service(req), caller(req), _name(namespace), PROPERTY)
    send(resp, {"properties": metadef_views.properties(found)})


def add_property(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """POST /v2/metadefs/namespaces/{namespace}/properties"""
    svc = service(req)
    new = metadef_views.to_property(_body(req, metadef_schemas.PROPERTY), svc.now())
    made = parts.add(svc, caller(req), _name(namespace), PROPERTY, new)
    _created(req, resp, metadef_views.property_(made), namespace, "properties", made.name)


def show_property(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/properties/{name}"""
    svc, ctx, resource_type = service(req), caller(req), _resource_type(req)
    if resource_type is None:
        found = parts.show(svc, ctx, _name(namespace), PROPERTY, _name(name))
    else:
        found = parts.show_for(svc, ctx, _name(namespace), _name(name), resource_type)
    send(resp, metadef_views.property_(found))


def change_property(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """PUT /v2/metadefs/namespaces/{namespace}/properties/{name}"""
    svc = service(req)
    new = metadef_views.to_property(_body(req, metadef_schemas.PROPERTY), svc.now())
    send(resp, metadef_views.property_(parts.change(svc, caller(req), _name(namespace), PROPERTY, _name(name), new)))


def remove_property(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/properties/{name}"""
    parts.remove(service(req), caller(req), _name(namespace), PROPERTY, _name(name))
    resp.status = 204


def remove_properties(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/properties"""
    parts.clear(service(req), caller(req), _name(namespace), PROPERTY)
    resp.status = 204


# --- tags ------------------------------------------------------------------------------------------------


def tags(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/tags"""
    no_body(req)
    wanted = params(req)
    last = {name: values[-1] for name, values in wanted.items()}
    found, following = parts.list_tags(service(req), caller(req), _name(namespace), **_paging(req, last, TAG_SORT_KEYS))
    body: dict[str, Any] = {"tags": [{"name": one.name} for one in found]}
    rest = links(metadef_views.path(namespace, "tags"), wanted, following)
    send(resp, body | rest | {"schema": "/v2/schemas/metadefs/tags"})


def add_tags(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """POST /v2/metadefs/namespaces/{namespace}/tags"""
    svc = service(req)
    given = _body(req, metadef_schemas.TAG_NAMES)["tags"]
    append = (req.get_header("X-Openstack-Append") or "").strip().lower() == "true"
    new = [metadef_views.to_tag(one, svc.now()) for one in given]
    made = parts.add_tags(svc, caller(req), _name(namespace), new, append=append)
    resp.status = 201
    send(resp, {"tags": [{"name": one.name} for one in made]})


def show_tag(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/tags/{name}"""
    send(resp, metadef_views.tag(parts.show(service(req), caller(req), _name(namespace), TAG, _name(name))))


def add_tag(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """POST /v2/metadefs/namespaces/{namespace}/tags/{name}"""
    no_body(req)
    svc = service(req)
    schemas.check(metadef_schemas.TAG, {"name": _name(name)})
    made = parts.add(svc, caller(req), _name(namespace), TAG, metadef_views.to_tag({"name": name}, svc.now()))
    _created(req, resp, metadef_views.tag(made), namespace, "tags", made.name)


def change_tag(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """PUT /v2/metadefs/namespaces/{namespace}/tags/{name}"""
    svc = service(req)
    new = metadef_views.to_tag(_body(req, metadef_schemas.TAG), svc.now())
    send(resp, metadef_views.tag(parts.change(svc, caller(req), _name(namespace), TAG, _name(name), new)))


def remove_tag(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/tags/{name}"""
    parts.remove(service(req), caller(req), _name(namespace), TAG, _name(name))
    resp.status = 204


def remove_tags(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/tags"""
    parts.clear(service(req), caller(req), _name(namespace), TAG)
    resp.status = 204


# --- resource types --------------------------------------------------------------------------------------


def resource_types(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2/metadefs/resource_types"""
    no_body(req)
    found = types.types(service(req), caller(req))
    send(resp, {"resource_types": [metadef_views.resource_type(one) for one in found]})


def associations(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/resource_types"""
    no_body(req)
    found = types.list_(service(req), caller(req), _name(namespace))
    send(resp, {"resource_type_associations": [metadef_views.association(one) for one in found]})


def associate(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """POST /v2/metadefs/namespaces/{namespace}/resource_types"""
    svc = service(req)
    new = metadef_views.to_association(_body(req, metadef_schemas.ASSOCIATION), svc.now())
    made = types.add(svc, caller(req), _name(namespace), new)
    _created(req, resp, metadef_views.association(made), namespace, "resource_types", made.resource_type)


def dissociate(req: falcon.Request, resp: falcon.Response, namespace: str, name: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/resource_types/{name}"""
    no_body(req)
    types.remove(service(req), caller(req), _name(namespace), _name(name))
    resp.status = 204


# --- what they share -------------------------------------------------------------------------------------


def _body(req: falcon.Request, schema: schemas.Schema) -> dict[str, Any]:
    values = json_object(req)
    for name in _READ_ONLY:
        if name in values:
            raise errors.Forbidden(f"Attribute '{name}' is read-only.")
    schemas.check(schema, values)
    return values


def _created(req: falcon.Request, resp: falcon.Response, body: Any, *names: str) -> None:
    resp.status = 201
    resp.location = req.prefix + metadef_views.path(*names)
    send(resp, body)


def _name(text: str) -> str:
    return path_text(text, "The name")


def _resource_type(req: falcon.Request) -> str | None:
    return params(req).get("resource_type", [None])[-1]


def _paging(req: falcon.Request, last: Mapping[str, str], sort_keys: tuple[str, ...]) -> dict[str, Any]:
    conf = service(req).conf
    limit = integer(last["limit"], "limit") if "limit" in last else conf.limit_param_default
    return {
        "limit": min(limit, conf.api_limit_max),
        "marker": last.get("marker"),
        "sort_key": choice(last.get("sort_key", "created_at"), sort_keys, "sort_key"),
        "descending": choice(last.get("sort_dir", "desc"), ("asc", "desc"), "sort_dir") == "desc",
    }
