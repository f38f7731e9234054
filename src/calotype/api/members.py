"""Sharing over HTTP."""

import falcon

from calotype.api import schemas, views
from calotype.api.images import known_id, send
from calotype.api.request import caller, json_object, no_body, path_text, service
from calotype.images import sharing


def index(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """GET /v2/images/{image_id}/members"""
    no_body(req)
    found = sharing.list_(service(req), caller(req), known_id(image_id))
    send(resp, {"members": [views.member(member) for member in found], "schema": "/v2/schemas/members"})


def add(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """POST /v2/images/{image_id}/members"""
    values = json_object(req)
    schemas.check(schemas.NEW_MEMBER, values)
    send(resp, views.member(sharing.add(service(req), caller(req), known_id(image_id), values["member"])))


def show(req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
    """GET /v2/images/{image_id}/members/{member_id}"""
    no_body(req)
    member_id = path_text(member_id, "The member")
    send(resp, views.member(sharing.show(service(req), caller(req), known_id(image_id), member_id)))


def update(req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
    """PUT /v2/images/{image_id}/members/{member_id}"""
    values = json_object(req)
    schemas.check(schemas.MEMBER_STATUS, values)
    found = sharing.set_status(
        service(req), caller(req), known_id(image_id), path_text(member_id, "The member"), values["status"]
    )
    send(resp, views.member(found))


def remove(req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
    """DELETE /v2/images/{image_id}/members/{member_id}"""
    no_body(req)
    sharing.remove(service(req), caller(req), known_id(image_id), path_text(member_id, "The member"))
    resp.status = 204
