"""Metadata definitions over HTTP: namespaces, what is in them, resource types (contract: api.md §13)."""

from collections.abc import Sequence
from typing import Any, Final, overload

import falcon

from calotype import errors
from calotype.api import metadef_schemas, metadef_views, schemas
from calotype.api.images import links, send
from calotype.api.listing import Params
from calotype.api.operation import Schema
from calotype.api.request import caller, choice, integer, json_object, no_body, params, path_text, service
from calotype.db.metadefs import OBJECT, PART_SORT_KEYS, PROPERTY, SORT_KEYS, TAG
from calotype.metadefs import namespaces, parts
from calotype.metadefs import resource_types as types

#: Read-only fields: answers have them, and requests must not set them.
_TIMES: Final = ("created_at", "updated_at")
_READ_ONLY: Final = ("self", "schema", *_TIMES)
#: Values of headers that mean true.
_TRUE: Final = ("true", "t", "1", "yes", "y", "on")


# --- namespaces ------------------------------------------------------------------------------------------


def index(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2/metadefs/namespaces"""
    no_body(req)
    wanted = params(req)
    visibility = _last(wanted, "visibility")
    if visibility is not None:
        choice(visibility, ("public", "private"), "visibility")
    limit, types_ = _limit(req, wanted), _last(wanted, "resource_types")
    conf = service(req).conf
    found, following = namespaces.list_(
        service(req),
        caller(req),
        limit=min(conf.limit_param_default, conf.api_limit_max) if limit is None else limit,
        **_order(wanted, SORT_KEYS, "desc"),
        visibility=visibility,
        resource_types=types_.split(",") if types_ is not None else None,
    )
    body: dict[str, Any] = {"namespaces": [metadef_views.definitions(one) for one in found]}
    rest = links(metadef_views.NAMESPACES, wanted, following) | {"schema": "/v2/schemas/metadefs/namespaces"}
    send(resp, body | rest)


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
    send(resp, metadef_views.namespace(namespaces.update(svc, ctx, _name(namespace), new)))


def delete(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}"""
    no_body(req)
    namespaces.delete(service(req), caller(req), _name(namespace))
    resp.status = 204


# --- objects ---------------------------------------------------------------------------------------------


def objects(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/objects"""
    no_body(req)
    wanted = params(req)
    limit, order = _limit(req, wanted, least=1), _order(wanted, PART_SORT_KEYS, "asc")
    found, following = parts.page(service(req), caller(req), _name(namespace), OBJECT, limit=limit, **order)
    body: dict[str, Any] = {"objects": [metadef_views.object_(namespace, one) for one in found]}
    rest = links(metadef_views.path(namespace, "objects"), wanted, following)
    send(resp, body | rest | {"schema": "/v2/schemas/metadefs/objects"})


def add_object(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """POST /v2/metadefs/namespaces/{namespace}/objects"""
    svc = service(req)
    new = metadef_views.to_object(_body(req, metadef_schemas.OBJECT), svc.now())
    made = parts.add(svc, caller(req), _name(namespace), OBJECT, new)
    _created(req, resp, metadef_views.object_(namespace, made), namespace, "objects", made.name)


def show_object(req: falcon.Request, resp: falcon.Response, namespace: str, object_name: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/objects/{object_name}"""
    no_body(req)
    found = parts.show(service(req), caller(req), _name(namespace), OBJECT, _name(object_name))
    send(resp, metadef_views.object_(namespace, found))


def change_object(req: falcon.Request, resp: falcon.Response, namespace: str, object_name: str) -> None:
    """PUT /v2/metadefs/namespaces/{namespace}/objects/{object_name}"""
    svc = service(req)
    new = metadef_views.to_object(_body(req, metadef_schemas.OBJECT), svc.now())
    changed = parts.change(svc, caller(req), _name(namespace), OBJECT, _name(object_name), new)
    send(resp, metadef_views.object_(namespace, changed))


def remove_object(req: falcon.Request, resp: falcon.Response, namespace: str, object_name: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/objects/{object_name}"""
    no_body(req)
    parts.remove(service(req), caller(req), _name(namespace), OBJECT, _name(object_name))
    resp.status = 204


def remove_objects(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/objects"""
    no_body(req)
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


def show_property(req: falcon.Request, resp: falcon.Response, namespace: str, property_name: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/properties/{property_name}"""
    no_body(req)
    svc, ctx, resource_type = service(req), caller(req), _resource_type(req)
    if resource_type is None:
        found = parts.show(svc, ctx, _name(namespace), PROPERTY, _name(property_name))
    else:
        found = parts.show_for(svc, ctx, _name(namespace), _name(property_name), resource_type)
    send(resp, metadef_views.property_(found))


def change_property(req: falcon.Request, resp: falcon.Response, namespace: str, property_name: str) -> None:
    """PUT /v2/metadefs/namespaces/{namespace}/properties/{property_name}"""
    svc = service(req)
    new = metadef_views.to_property(_body(req, metadef_schemas.PROPERTY), svc.now())
    send(
        resp,
        metadef_views.property_(parts.change(svc, caller(req), _name(namespace), PROPERTY, _name(property_name), new)),
    )


def remove_property(req: falcon.Request, resp: falcon.Response, namespace: str, property_name: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/properties/{property_name}"""
    no_body(req)
    parts.remove(service(req), caller(req), _name(namespace), PROPERTY, _name(property_name))
    resp.status = 204


def remove_properties(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/properties"""
    no_body(req)
    parts.clear(service(req), caller(req), _name(namespace), PROPERTY)
    resp.status = 204


# --- tags ------------------------------------------------------------------------------------------------


def tags(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/tags"""
    no_body(req)
    wanted = params(req)
    limit, order = _limit(req, wanted), _order(wanted, PART_SORT_KEYS, "desc")
    found, following = parts.page(service(req), caller(req), _name(namespace), TAG, limit=limit, **order)
    body: dict[str, Any] = {"tags": [{"name": one.name} for one in found]}
    rest = links(metadef_views.path(namespace, "tags"), wanted, following)
    send(resp, body | rest | {"schema": "/v2/schemas/metadefs/tags"})


def add_tags(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """POST /v2/metadefs/namespaces/{namespace}/tags"""
    svc = service(req)
    given = _body(req, metadef_schemas.TAG_NAMES)["tags"]
    append = (req.get_header("X-Openstack-Append") or "").strip().lower() in _TRUE
    new = [metadef_views.to_tag(one, svc.now()) for one in given]
    made = parts.add_tags(svc, caller(req), _name(namespace), new, append=append)
    resp.status = 201
    send(resp, {"tags": [{"name": one.name} for one in made]})


def show_tag(req: falcon.Request, resp: falcon.Response, namespace: str, tag_name: str) -> None:
    """GET /v2/metadefs/namespaces/{namespace}/tags/{tag_name}"""
    no_body(req)
    send(resp, metadef_views.tag(parts.show(service(req), caller(req), _name(namespace), TAG, _name(tag_name))))


def add_tag(req: falcon.Request, resp: falcon.Response, namespace: str, tag_name: str) -> None:
    """POST /v2/metadefs/namespaces/{namespace}/tags/{tag_name}"""
    no_body(req)
    svc = service(req)
    schemas.check(metadef_schemas.TAG, {"name": _name(tag_name)})
    made = parts.add(svc, caller(req), _name(namespace), TAG, metadef_views.to_tag({"name": tag_name}, svc.now()))
    _created(req, resp, metadef_views.tag(made), namespace, "tags", made.name)


def change_tag(req: falcon.Request, resp: falcon.Response, namespace: str, tag_name: str) -> None:
    """PUT /v2/metadefs/namespaces/{namespace}/tags/{tag_name}"""
    svc = service(req)
    new = metadef_views.to_tag(_body(req, metadef_schemas.TAG), svc.now())
    send(resp, metadef_views.tag(parts.change(svc, caller(req), _name(namespace), TAG, _name(tag_name), new)))


def remove_tag(req: falcon.Request, resp: falcon.Response, namespace: str, tag_name: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/tags/{tag_name}"""
    no_body(req)
    parts.remove(service(req), caller(req), _name(namespace), TAG, _name(tag_name))
    resp.status = 204


def remove_tags(req: falcon.Request, resp: falcon.Response, namespace: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/tags"""
    no_body(req)
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


def dissociate(req: falcon.Request, resp: falcon.Response, namespace: str, resource_type: str) -> None:
    """DELETE /v2/metadefs/namespaces/{namespace}/resource_types/{resource_type}"""
    no_body(req)
    types.remove(service(req), caller(req), _name(namespace), _name(resource_type))
    resp.status = 204


# --- what they share -------------------------------------------------------------------------------------


def _body(req: falcon.Request, schema: Schema) -> dict[str, Any]:
    values = json_object(req)
    for name in _READ_ONLY:
        if name in values and name in (*schema["properties"], *_TIMES):
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
    return _last(params(req), "resource_type") or None


@overload
def _last(wanted: Params, name: str) -> str | None: ...
@overload
def _last(wanted: Params, name: str, default: str) -> str: ...
def _last(wanted: Params, name: str, default: str | None = None) -> str | None:
    return wanted[name][-1] if name in wanted else default


def _limit(req: falcon.Request, wanted: Params, *, least: int = 0) -> int | None:
    """The most entries of a page; None, which means all, without the parameter."""
    text = _last(wanted, "limit")
    return None if text is None else min(integer(text, "limit", least=least), service(req).conf.api_limit_max)


def _order(wanted: Params, sort_keys: Sequence[str], direction: str) -> dict[str, Any]:
    return {
        "marker": _last(wanted, "marker"),
        "sort_key": choice(_last(wanted, "sort_key", "created_at"), sort_keys, "sort_key"),
        "descending": choice(_last(wanted, "sort_dir", direction), ("asc", "desc"), "sort_dir") == "desc",
    }
