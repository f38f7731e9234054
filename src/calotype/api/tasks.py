"""Tasks over HTTP: the deprecated `/v2/tasks`, and the tasks of an image (contract: api.md §3.6, §9)."""

from typing import Any, Final

import falcon

from calotype import errors
from calotype.api import schemas, views
from calotype.api.images import known_id, links, new_image, send
from calotype.api.operation import Parameter
from calotype.api.request import UUID, caller, choice, integer, json_object, no_body, params, service
from calotype.db.tasks import COLUMNS
from calotype.images import import_tasks, tasks
from calotype.model import TASK_STATUSES, TASK_TYPES

_FILTERS: Final = ("id", "type", "status", "owner", "image_id", "request_id", "user_id")
#: Sort keys that Glance accepts. Their values are equal for all tasks shown, so another key replaces them.
_UNSORTED: Final = {"deleted": "created_at", "deleted_at": "created_at"}

PARAMETERS: Final = (
    Parameter("limit", "Most tasks on a page; else as many as is configured", {"type": "integer", "minimum": 0}),
    Parameter("marker", "Id of the task after which the page begins"),
    Parameter(
        "sort_key", "Attribute to sort by", {"type": "string", "enum": [*COLUMNS, *_UNSORTED]}, default="created_at"
    ),
    Parameter("sort_dir", "Direction", {"type": "string", "enum": ["asc", "desc"]}, default="desc"),
    Parameter("type", "Only such tasks", {"type": "string", "enum": list(TASK_TYPES)}),
    Parameter("status", "Only such tasks", {"type": "string", "enum": list(TASK_STATUSES)}),
    *(Parameter(name, "Exactly this text") for name in _FILTERS if name not in ("type", "status")),
)


def index(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /v2/tasks"""
    svc = service(req)
    tasks.check_access(svc, caller(req))
    no_body(req)
    wanted = params(req)
    last = {name: values[-1] for name, values in wanted.items()}
    limit = integer(last["limit"], "limit") if "limit" in last else svc.conf.limit_param_default
    sort_key = choice(last.get("sort_key", "created_at"), (*COLUMNS, *_UNSORTED), "sort_key")
    marker = last.get("marker")
    if marker and not UUID.fullmatch(marker):
        raise errors.Invalid("Invalid marker format.")
    for name, allowed in (("status", TASK_STATUSES), ("type", TASK_TYPES)):
        if name in last:
            choice(last[name], allowed, name)
    found, following = tasks.list_(
        svc,
        caller(req),
        limit=min(limit, svc.conf.api_limit_max),
        marker=marker,
        sort_key=_UNSORTED.get(sort_key, sort_key),
        descending=choice(last.get("sort_dir", "desc"), ("asc", "desc"), "sort_dir") == "desc",
        # Ids of images are lower case, however a client writes them; paths accept both.
        filters={name: last[name].lower() if name == "image_id" else last[name] for name in _FILTERS if name in last},
    )
    body: dict[str, Any] = {"tasks": [views.task_stub(task) for task in found]}
    send(resp, body | links("/v2/tasks", wanted, following) | {"schema": "/v2/schemas/tasks"})


def show(req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
    """GET /v2/tasks/{task_id}"""
    svc = service(req)
    tasks.check_access(svc, caller(req))
    no_body(req)
    if not UUID.fullmatch(task_id):
        raise errors.NotFound(f"No task found with ID {task_id[:64]}")
    send(resp, views.task(tasks.show(svc, caller(req), task_id)))


def create(req: falcon.Request, resp: falcon.Response) -> None:
    """POST /v2/tasks"""
    svc, ctx = service(req), caller(req)
    tasks.check_access(svc, ctx)
    values = json_object(req)
    schemas.check(schemas.NEW_TASK, values)
    if values["type"] != import_tasks.KIND:
        raise errors.Invalid(
            f"Tasks of type {values['type']} are not created by this call, but by POST /v2/images/{{id}}/import and "
            "POST /v2/images/{id}/locations."
        )
    asked = values["input"]
    schemas.check(schemas.IMPORT_TASK, asked)
    properties = asked.get("image_properties", {})
    if asked.get("import_from_format"):
        properties = {"disk_format": asked["import_from_format"]} | properties
    made = import_tasks.create(svc, ctx, new_image(properties, req.context.schemas), asked["import_from"], asked)
    resp.location = f"{req.prefix}/v2/tasks/{made.id}"
    send(resp, views.task(tasks.shown(svc, ctx, made)))
    resp.status = 201


def of_image(req: falcon.Request, resp: falcon.Response, image_id: str) -> None:
    """GET /v2/images/{image_id}/tasks"""
    no_body(req)
    found = tasks.of_image(service(req), caller(req), known_id(image_id))
    send(resp, {"tasks": [views.image_task(task) for task in found]})
