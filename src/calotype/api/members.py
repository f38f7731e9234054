"""Sharing over HTTP."""

from typing import Any

import falcon

from calotype import errors
from calotype.api import views
from calotype.api.images import known_id, send
from calotype.api.request import caller, json_object, no_body, path_text, service
from calotype.images import sharing
from calotype.model import MAX_NAME, MEMBER_STATUSES


def index(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """GET /v2/images/{image_id}/members"""
    no_body(req)
    found = sharing.list_(service(req), caller(req), known_id(image_id))
    send(resp, {"members": [views.member(member) for member in found], "schema": "/v2/schemas/members"})


def add(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """POST /v2/images/{image_id}/members"""
    project = _text(json_object(req), "member")
    if len(project) > MAX_NAME:
        raise errors.Invalid(f"A member has at most {MAX_NAME} characters.")
    send(resp, views.member(sharing.add(service(req), caller(req), known_id(image_id), project)))


def show(req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
    """GET /v2/images/{image_id}/members/{member_id}"""
    no_body(req)
    member_id = path_text(member_id, "The member")
    send(resp, views.member(sharing.show(service(req), caller(req), known_id(image_id), member_id)))


def update(req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
    """PUT /v2/images/{image_id}/members/{member_id}"""
    status = _text(json_object(req), "status")
    if status not in MEMBER_STATUSES:
        raise errors.Invalid(f"A member's status is one of {', '.join(MEMBER_STATUSES)}.")
    member_id = path_text(member_id, "The member")
    send(resp, views.member(sharing.answer(service(req), caller(req), known_id(image_id), member_id, status)))


def remove(req: falcon.Request, resp: falcon.Response, image_id: str, member_id: str) -> None:
    """DELETE /v2/images/{image_id}/members/{member_id}"""
    no_body(req)
    sharing.remove(service(req), caller(req), known_id(image_id), path_text(member_id, "The member"))
    resp.status = 204


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise errors.Invalid(f"The body must be an object with a non-empty string {name!r}.")
    return value
