"""Image records over HTTP."""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import falcon

from calotype import errors
from calotype.api import listing, patch, views
from calotype.api.request import UUID, caller, json_body, json_object, no_body, params, path_text, service
from calotype.api.schemas import Schemas
from calotype.images import imports, lifecycle, locations
from calotype.images.lifecycle import NewImage
from calotype.model import HIDDEN_PROPERTIES, MAX_NAME, RESERVED_PREFIX, Image
from calotype.service import Service

#: The attributes that a client may set when it creates an image, besides custom properties.
SETTABLE: Final = tuple(
    "id name visibility protected os_hidden owner container_format disk_format min_disk min_ram tags".split()
)
_READ_ONLY: Final = lifecycle.READ_ONLY - {"id"}


def create(req: falcon.Request, resp: falcon.Response) -> None:
    """POST /v2/images"""
    svc = service(req)
    values = json_object(req)
    image = lifecycle.create(svc, caller(req), new_image(values, req.context.schemas))
    resp.status = 201
    resp.location = f"{req.prefix}/v2/images/{image.id}"
    resp.set_header("OpenStack-image-store-ids", ",".join(store.name for store in svc.stores))
    resp.set_header("OpenStack-image-import-methods", ",".join(imports.enabled_methods(svc)))
    _entity(req, resp, image)


def show(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """GET /v2/images/{image_id}"""
    no_body(req)
    _entity(req, resp, lifecycle.show(service(req), caller(req), known_id(image_id)))


def index(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2/images"""
    no_body(req)
    svc = service(req)
    wanted = params(req)
    query = listing.query(wanted, default_limit=svc.conf.limit_param_default, most=svc.conf.api_limit_max)
    images, marker = lifecycle.list_(svc, caller(req), query)
    rest = links("/v2/images", wanted, marker) | {"schema": "/v2/schemas/images"}
    urls = locations.direct_urls(svc, caller(req), images)
    entities = b", ".join([_json(svc, image, urls.get(image.id)) for image in images])
    _send(resp, b'{"images": [' + entities + b"], " + json.dumps(rest).encode()[1:])


def update(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """PATCH /v2/images/{image_id}"""
    media_type = (req.content_type or "").partition(";")[0].strip().lower()
    if media_type not in (patch.V20, patch.V21):
        resp.set_header("Accept-Patch", patch.ACCEPTED)
        raise errors.UnsupportedMedia(f"Send a patch as {patch.V21} or {patch.V20}.")
    changes = patch.changes(json_body(req), media_type, req.context.schemas)
    _entity(req, resp, lifecycle.update(service(req), caller(req), known_id(image_id), changes))


def delete(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """DELETE /v2/images/{image_id}"""
    no_body(req)
    lifecycle.delete(service(req), caller(req), known_id(image_id))
    resp.status = 204


def deactivate(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """POST /v2/images/{image_id}/actions/deactivate"""
    no_body(req)
    lifecycle.deactivate(service(req), caller(req), known_id(image_id))
    resp.status = 204


def reactivate(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """POST /v2/images/{image_id}/actions/reactivate"""
    no_body(req)
    lifecycle.reactivate(service(req), caller(req), known_id(image_id))
    resp.status = 204


def add_tag(req: falcon.Request, resp: falcon.Response, image_id: str, tag: str) -> None:
    """PUT /v2/images/{image_id}/tags/{tag}"""
    no_body(req)
    if not 0 < len(path_text(tag, "The tag")) <= MAX_NAME:
        raise errors.Invalid(f"A tag has 1 to {MAX_NAME} characters.")
    lifecycle.add_tag(service(req), caller(req), known_id(image_id), tag)
    resp.status = 204


def remove_tag(req: falcon.Request, resp: falcon.Response, image_id: str, tag: str) -> None:
    """DELETE /v2/images/{image_id}/tags/{tag}"""
    no_body(req)
    lifecycle.remove_tag(service(req), caller(req), known_id(image_id), path_text(tag, "The tag"))
    resp.status = 204


def known_id(image_id: str) -> str:
    """The id, if it is a valid one. Raises `NotFound` for any other text."""
    if not UUID.fullmatch(image_id):
        raise errors.NotFound(f"No image found with ID {image_id[:64]}")
    return image_id


def links(path: str, wanted: Mapping[str, list[str]], marker: str | None) -> dict[str, str]:
    """The links to the first page of a list, and to the page after `marker`, with the same parameters."""
    same = "&".join(
        f"{quote(name)}={quote(value, safe=':,')}"
        for name, values in wanted.items()
        if name != "marker"
        for value in values
    )
    found = {"first": path + (f"?{same}" if same else "")}
    if marker is not None:
        found["next"] = f"{path}?" + (f"{same}&" if same else "") + f"marker={quote(marker, safe=':')}"
    return found


def send(resp: falcon.Response, body: Any) -> None:
    """A JSON answer."""
    _send(resp, json.dumps(body).encode())


def _send(resp: falcon.Response, text: bytes) -> None:
    resp.content_type = "application/json"
    resp.data = text


def _entity(req: falcon.Request, resp: falcon.Response, image: Image) -> None:
    svc = service(req)
    urls = locations.direct_urls(svc, caller(req), [image])
    _send(resp, _json(svc, image, urls.get(image.id)))


def _json(svc: Service, image: Image, direct_url: str | None) -> bytes:
    """The JSON of an image. It is cached for a cached record, unless it has a location, which only services see."""
    remembered = image.memo if direct_url is None else None
    text: bytes | None = None if remembered is None else remembered.get("json")
    if text is None:
        copies = svc.stores.by_preference(image.locations)
        text = json.dumps(views.image(image, [store.name for store, _ in copies], direct_url)).encode()
        if remembered is not None:
            remembered["json"] = text
    return text


def new_image(values: Mapping[str, Any], schemas: Schemas) -> NewImage:
    """What the body of a create asks for. Raises `Forbidden` for attributes that nobody may set, `Invalid`."""
    for name in values:
        if name in _READ_ONLY:
            raise errors.Forbidden(f"Attribute '{name}' is read-only.")
        if name in lifecycle.RESERVED or name in HIDDEN_PROPERTIES or name.startswith(RESERVED_PREFIX):
            raise errors.Forbidden(f"Attribute '{name}' is reserved.")
    schemas.check_image(values)
    columns = {name: values[name] for name in SETTABLE if name in values}
    if "owner" in columns:
        columns["owner"] = columns["owner"] or ""  # an explicit null means no owner
    return NewImage(**columns, properties={name: value for name, value in values.items() if name not in columns})
