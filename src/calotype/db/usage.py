"""What a project uses of its quotas, and the lock that a transaction takes before it decides by that.

A reservation is two columns of a job: the project, and the bytes that the job will add to its usage, or may bring back
to it. It counts while the job exists. So the transaction that removes the job, because the copy was added or the work
given up, releases the reservation as well.
"""

from functools import lru_cache

import sqlalchemy as sa

from calotype.db.compare import exactly, join_from, unindexed
from calotype.db.engine import Tx
from calotype.db.tables import image_locations, image_properties, images, jobs, projects

_PROJECT: sa.BindParameter[str] = sa.bindparam("project", type_=sa.String())
_JOB: sa.BindParameter[str] = sa.bindparam("job", type_=sa.String())

_OWNED = exactly(images.c.owner, _PROJECT) & (images.c.deleted == sa.false())
_STORED = _OWNED & images.c.status.not_in(("killed", "deleted", "pending_delete"))
_COPYING = sa.exists().where(
    image_properties.c.image_id == images.c.id,
    image_properties.c.name == "os_glance_importing_to_stores",
    image_properties.c.deleted == sa.false(),
    image_properties.c.value != "",
)
_COPIES = join_from(
    images,
    image_locations,
    # The locations of each image alone: for each image, SQLite would scan all locations that are not deleted.
    (image_locations.c.image_id == images.c.id) & (unindexed(image_locations.c.deleted) == sa.false()),
)


def _sum(column: sa.Column[int]) -> sa.Select[tuple[int]]:
    return sa.select(sa.func.coalesce(sa.func.sum(column), 0))


_COUNT = sa.select(sa.func.count()).select_from(images)
#: Images that are being deleted. They come back if the store answers that their data is in use.
_DELETING = _COUNT.join(jobs, jobs.c.image_id == images.c.id).where(
    exactly(jobs.c.project, _PROJECT), jobs.c.kind == "delete", jobs.c.attempt == 1, jobs.c.state == "running",
    images.c.deleted == sa.true(),
)  # fmt: skip
_PARTS = {
    "stored": _sum(images.c.size).select_from(_COPIES).where(_STORED, images.c.size > 0),
    "reserved": _sum(jobs.c.reserved).where(exactly(jobs.c.project, _PROJECT), jobs.c.id != _JOB),
    "staged": _sum(images.c.size).where(
        _OWNED, images.c.status.in_(("uploading", "importing")) | ((images.c.status == "active") & _COPYING)
    ),
    "images": sa.select(_COUNT.where(_STORED).scalar_subquery() + _DELETING.scalar_subquery()),
    "uploading": _COUNT.where(
        _OWNED, images.c.status.in_(("saving", "uploading", "importing")) | ((images.c.status == "active") & _COPYING)
    ),
}


def usage(tx: Tx, project: str, *parts: str, except_job: str = "") -> dict[str, int]:
    """What a project uses now; `parts` names what to return of this:

    - `stored`: bytes of all copies of its images;
    - `reserved`: bytes that jobs will add or bring back, without those of the job `except_job`;
    - `staged`: bytes that wait to be imported;
    - `images`: the number of its images, with those whose delete may yet be undone;
    - `uploading`: the number of images whose data is arriving.
    """
    row = tx.execute(_statement(parts), {"project": project, "job": except_job}).one()
    return {name: int(row._mapping[name]) for name in parts}


@lru_cache
def _statement(parts: tuple[str, ...]) -> sa.Select[tuple[int, ...]]:
    return sa.select(*(_PARTS[name].scalar_subquery().label(name) for name in parts))


_LOCK = sa.update(projects).where(projects.c.id == _PROJECT).values(turn=projects.c.turn + 1)


def lock_project(tx: Tx, project: str) -> None:
    """Keep other transactions from deciding by this project's usage until this one ends; wait for one that does.

    What is read afterwards includes what the others wrote. Lock an image's row before this, never after. This writes
    the row instead of locking it: a Galera node does not know the locks of another, but refuses one of two writes.
    """
    if tx.dialect.name == "sqlite":
        return  # it has one writer at a time anyway
    while not tx.execute(_LOCK, {"project": project}).rowcount:
        tx.execute(_insert(tx.dialect.name), {"id": project, "turn": 0})


def _insert(dialect: str) -> sa.Insert:
    from sqlalchemy.dialects import mysql, postgresql

    if dialect == "postgresql":
        return postgresql.insert(projects).on_conflict_do_nothing()
    # Waits for another transaction that inserts the row, and then holds its lock as an update would.
    return mysql.insert(projects).on_duplicate_key_update(id=projects.c.id)
