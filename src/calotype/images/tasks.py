"""Tasks: what users see of work that goes on after the answer. Whoever does the work moves its task along.

`begin`, `move` and `db/tasks.py`'s `progress` are for use-cases; each goes into the transaction that the work needs.
"""

from datetime import timedelta
from typing import Any
from uuid import uuid4

from calotype.context import Context
from calotype.db import tasks
from calotype.db.engine import Tx
from calotype.model import Task
from calotype.service import Service


def begin(svc: Service, tx: Tx, ctx: Context, kind: str, image_id: str, given: Any, *, status: str = "pending") -> Task:
    """A new task of the caller's project: `given` is what was asked for, as JSON. It must hold no secret."""
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
    return made


def move(svc: Service, tx: Tx, task_id: str, status: str, *, message: str | None = None, result: Any = None) -> bool:
    """Bring a task on, as `db/tasks.py` does; at its end it gets the time that it has left."""
    ends = status in ("success", "failure")
    until = svc.now() + timedelta(hours=svc.conf.task.task_time_to_live) if ends else None
    return tasks.move(tx, task_id, status, now=svc.now(), message=message, result=result, expires_at=until)
