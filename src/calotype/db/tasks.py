"""Rows of tasks: what users see of work that goes on after the answer. The work itself is a job (`db/jobs.py`).

No query returns an expired task. `expire` marks the rows of such tasks later, so that a GET never writes.
"""

import json
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from calotype.context import Context
from calotype.db.clock import db_now
from calotype.db.compare import exactly, paged
from calotype.db.engine import Tx
from calotype.db.tables import task_info, tasks
from calotype.model import TASK_TRANSITIONS, Task

_SUMMARY: Final = [
    tasks.c[name]
    for name in "id type status owner created_at updated_at expires_at image_id request_id user_id".split()
]
_INFO: Final = [task_info.c.input, task_info.c.result, task_info.c.message]
_WHOLE: Final = sa.select(*_SUMMARY, *_INFO).select_from(
    tasks.outerjoin(task_info, task_info.c.task_id == tasks.c.id)  # a row of Glance's may lack the second half
)
#: What lists can be sorted by and filtered for.
COLUMNS: Final = tuple(column.name for column in _SUMMARY)


def add(tx: Tx, task: Task) -> None:
    """Write a new task."""
    values = {name: getattr(task, name) for name in COLUMNS}
    tx.execute(sa.insert(tasks).values(values | {"deleted": False}))
    info = {"input": _text(task.input), "result": _text(task.result), "message": task.message}
    tx.execute(sa.insert(task_info).values(info | {"task_id": task.id}))


def get(tx: Tx, ctx: Context, task_id: str, now: datetime) -> Task | None:
    """The task, if the caller sees it: it is of the caller's project, or the caller is an administrator."""
    row = tx.execute(_WHOLE.where(tasks.c.id == task_id, _visible(ctx, now))).first()
    return _task(row) if row is not None else None


def of_image(tx: Tx, ctx: Context, image_id: str, now: datetime) -> list[Task]:
    """The tasks of an image that the caller sees, oldest first."""
    statement = _WHOLE.where(tasks.c.image_id == image_id, _visible(ctx, now))
    return [_task(row) for row in tx.execute(statement.order_by(tasks.c.created_at, tasks.c.id))]


def page(
    tx: Tx,
    ctx: Context,
    *,
    limit: int,
    now: datetime,
    after: Task | None = None,
    sort_key: str = "created_at",
    descending: bool = True,
    filters: Mapping[str, Any] | None = None,
) -> list[Task]:
    """A part of the list: the tasks that the caller sees, those that follow one of them where `after` is given.

    Sorted by a column of `COLUMNS`, what has no value first when ascending; then by age and id, in the same direction.
    """
    keys = tuple(dict.fromkeys((sort_key, "created_at", "id")))
    statement = sa.select(*_SUMMARY).where(_visible(ctx, now))
    for name, value in (filters or {}).items():
        is_text = isinstance(tasks.c[name].type, sa.String)
        statement = statement.where(exactly(tasks.c[name], value) if is_text else tasks.c[name] == value)
    place = None if after is None else {name: getattr(after, name) for name in keys}
    return [_task(row) for row in tx.execute(paged(statement, tasks, keys, descending, place).limit(limit))]


def move(
    tx: Tx,
    task_id: str,
    status: str,
    *,
    now: datetime,
    message: str | None = None,
    result: Any = None,
    expires_at: datetime | None = None,
) -> bool:
    """Move a task to a status, and write its message and result; None leaves them as they are.

    Returns False, and changes nothing, if `TASK_TRANSITIONS` does not allow it.
    """
    statement = sa.update(tasks).where(
        tasks.c.id == task_id, tasks.c.status.in_(TASK_TRANSITIONS[status]), tasks.c.deleted == sa.false()
    )
    if not tx.execute(statement.values(status=status, updated_at=now, expires_at=expires_at)).rowcount:
        return False
    _set_info(tx, task_id, message, result)
    return True


def progress(tx: Tx, task_id: str, message: str, now: datetime) -> bool:
    """Write how far a task has come. False if it is no longer processing."""
    statement = sa.update(tasks).where(tasks.c.id == task_id, tasks.c.status == "processing")
    if not tx.execute(statement.values(updated_at=now)).rowcount:
        return False
    _set_info(tx, task_id, message, None)
    return True


def touch(tx: Tx, task_ids: Collection[str], *, now: datetime, before: datetime) -> int:
    """Write `now` into `updated_at` of those that have not ended and were touched `before`; returns how many."""
    living = tasks.c.id.in_(task_ids) & tasks.c.status.in_(("pending", "processing"))
    return int(tx.execute(sa.update(tasks).where(living, tasks.c.updated_at < before).values(updated_at=now)).rowcount)


def expire(tx: Tx) -> int:
    """Mark expired tasks as deleted; returns how many."""
    statement = sa.update(tasks).where(tasks.c.expires_at <= db_now(), tasks.c.deleted == sa.false())
    return int(tx.execute(statement.values(deleted=True, deleted_at=db_now())).rowcount)


def _set_info(tx: Tx, task_id: str, message: str | None, result: Any) -> None:
    values = {name: value for name, value in (("message", message), ("result", _text(result))) if value is not None}
    if values:
        tx.execute(sa.update(task_info).where(task_info.c.task_id == task_id).values(values))


def _visible(ctx: Context, now: datetime) -> sa.ColumnElement[bool]:
    living = (tasks.c.deleted == sa.false()) & (tasks.c.expires_at.is_(None) | (tasks.c.expires_at > now))
    if ctx.is_admin:
        return living
    return living & (exactly(tasks.c.owner, ctx.project) if ctx.project else sa.false())


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _value(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _task(row: Any) -> Task:
    values = dict(row._mapping)
    if "input" in values:
        values |= {"input": _value(row.input), "result": _value(row.result), "message": row.message or ""}
    return Task(**values | {"updated_at": row.updated_at or row.created_at})
