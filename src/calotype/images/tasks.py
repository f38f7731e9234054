"""Use-cases for tasks: what users see of work that goes on after the answer.

`show`, `list_` and `of_image` are for callers, and redact what they return, as `shown` does. `begin`, `move`, and
`progress` in `db/tasks.py`, are for the use-cases that do the work: they call them in the transactions of that work.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

from calotype import errors
from calotype.context import SERVICE, Context
from calotype.db import images as db_images
from calotype.db import tasks
from calotype.db.engine import Tx
from calotype.images.redaction import redacted
from calotype.model import Task
from calotype.policy import no_image
from calotype.service import Service


def check_access(svc: Service, ctx: Context) -> None:
    """Raise `Forbidden` for callers that may not use the tasks API. To be called before anything else."""
    svc.policy.check(ctx, "tasks_api_access", {"project_id": ctx.project, "owner": ctx.project})


def show(svc: Service, ctx: Context, task_id: str) -> Task:
    """One task. Raises `NotFound`."""
    check_access(svc, ctx)
    found = svc.db.read(lambda tx: tasks.get(tx, ctx, task_id, svc.now()))
    if found is None:
        raise errors.NotFound(f"No task found with ID {task_id}")
    return shown(svc, ctx, found)


def list_(
    svc: Service,
    ctx: Context,
    *,
    limit: int,
    marker: str | None,
    sort_key: str,
    descending: bool,
    filters: Mapping[str, str],
) -> tuple[list[Task], str | None]:
    """A page of tasks, without input, result and message, and the marker of the next one if there is one.

    Raises `Invalid` for a marker that does not exist.
    """
    check_access(svc, ctx)
    now = svc.now()

    def work(tx: Tx) -> list[Task]:
        after = tasks.get(tx, ctx, marker, now) if marker else None
        if marker and after is None:
            raise errors.Invalid(f"There is no task {marker} to begin after.")
        return tasks.page(
            tx,
            ctx,
            limit=limit + 1,  # is there a next page?
            now=now,
            after=after,
            sort_key=sort_key,
            descending=descending,
            filters=filters,
        )

    found = svc.db.snapshot(work) if limit else []
    return found[:limit], found[limit - 1].id if len(found) > limit else None


def of_image(svc: Service, ctx: Context, image_id: str) -> list[Task]:
    """The tasks of an image that belong to the caller's project. Raises `NotFound`."""

    def work(tx: Tx) -> list[Task]:
        image = db_images.get(tx, ctx, image_id)
        if image is None:
            raise no_image(image_id)
        svc.policy.check_image(ctx, "get_image", image)
        return tasks.of_image(tx, ctx, image.id, svc.now())

    return [shown(svc, ctx, task) for task in svc.db.snapshot(work)]


def shown(svc: Service, ctx: Context, task: Task) -> Task:
    """The task without what the caller may not see."""
    target = {"project_id": task.owner, "owner": task.owner, "image_id": task.image_id}
    locations = svc.policy.allows(ctx, "fetch_image_location", target)
    return replace(
        task,
        input=redacted(task.input, locations=locations),
        result=redacted(task.result, locations=locations),
        message=redacted(task.message, locations=locations),
    )


def begin(svc: Service, tx: Tx, ctx: Context, kind: str, image_id: str, given: Any, *, status: str = "pending") -> Task:
    """Add a task of the caller's project. `given` is its input, as JSON, and must have no secret in it."""
    now = svc.now()
    made = Task(
        id=str(uuid4()),
        type=kind,
        status=status,
        owner=ctx.project or "",
        created_at=now,
        updated_at=now,
        image_id=image_id,
        request_id=ctx.request_id[:64],  # as long as the columns are
        user_id=ctx.user[:64] if ctx.user else None,
        input=given,
    )
    tasks.add(tx, made)
    svc.events.task(tx, made, "task.create")
    if status != "pending":
        svc.events.task(tx, made, f"task.{status}")
    return made


def is_stored(svc: Service, tx: Tx, task: Task) -> bool:
    """Whether the transaction that added the task was committed."""
    return tasks.get(tx, SERVICE, task.id, svc.now()) is not None


def move(svc: Service, tx: Tx, task_id: str, status: str, *, message: str | None = None, result: Any = None) -> bool:
    """Move a task to a status, as `db/tasks.py` does, and send the event. At its end it gets its `expires_at`."""
    ends = status in ("success", "failure")
    until = svc.now() + timedelta(hours=svc.conf.task.task_time_to_live) if ends else None
    moved = tasks.move(tx, task_id, status, now=svc.now(), message=message, result=result, expires_at=until)
    if moved and svc.events.wants(f"task.{status}") and (task := tasks.get(tx, SERVICE, task_id, svc.now())):
        svc.events.task(tx, task, f"task.{status}")
    return moved
