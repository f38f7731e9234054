"""What a project uses, and whose turn it is to decide by that.

A reservation is nothing but two columns of a job: bytes that its work will add to a project's usage, or may bring
back to it. They are counted as long as the job is there. So whoever finishes a job releases what it reserved, in the
transaction that adds the image's copy, or gives the work up.
"""

from functools import lru_cache

import sqlalchemy as sa

from calotype.db.compare import exactly, join_from, unindexed
from calotype.db.engine import Tx
from calotype.db.tables import image_locations, image_properties, images, jobs, projects

_PROJECT: sa.BindParameter[str] = sa.bindparam("project", type_=sa.String())
_JOB: sa.BindParameter[str] = sa.bindparam("job", type_=sa.String())

_OWN = exactly(images.c.owner, _PROJECT) & (images.c.deleted == sa.false())
_THERE = _OWN & images.c.status.not_in(("killed", "deleted", "pending_delete"))
_COPYING = sa.exists().where(
    image_properties.c.image_id == images.c.id,
    image_properties.c.name == "os_glance_importing_to_stores",
    image_properties.c.deleted == sa.false(),
    image_properties.c.value != "",
)
_COPIES = join_from(
    images,
    image_locations,
    # Each image's own: SQLite would look through all locations that are not deleted, for each image.
    (image_locations.c.image_id == images.c.id) & (unindexed(image_locations.c.deleted) == sa.false()),
)


def _sum(column: sa.Column[int]) -> sa.Select[tuple[int]]:
    return sa.select(sa.func.coalesce(sa.func.sum(column), 0))


_COUNT = sa.select(sa.func.count()).select_from(images)
#: Images that come back if a store says, to who deletes them and waits, that their data is in use.
_LEAVING = _COUNT.join(jobs, jobs.c.image_id == images.c.id).where(
    exactly(jobs.c.project, _PROJECT), jobs.c.kind == "delete", jobs.c.attempt == 1, jobs.c.state == "running",
    images.c.deleted == sa.true(),
)  # fmt: skip
_PARTS = {
    "stored": _sum(images.c.size).select_from(_COPIES).where(_THERE, images.c.size > 0),
    "reserved": _sum(jobs.c.reserved).where(exactly(jobs.c.project, _PROJECT), jobs.c.id != _JOB),
    "staged": _sum(images.c.size).where(
        _OWN, images.c.status.in_(("uploading", "importing")) | ((images.c.status == "active") & _COPYING)
    ),
    "images": sa.select(_COUNT.where(_THERE).scalar_subquery() + _LEAVING.scalar_subquery()),
    "uploading": _COUNT.where(
        _OWN, images.c.status.in_(("saving", "uploading", "importing")) | ((images.c.status == "active") & _COPYING)
    ),
}


def usage(tx: Tx, project: str, *parts: str, except_job: str = "") -> dict[str, int]:
    """What a project uses now, as far as it is asked for.

    `stored` is the bytes of all copies of its images, `reserved` what running work will add or bring back (but for
    the job `except_job`), `staged` the bytes that wait to be imported; `images` and `uploading` are numbers of images,
    all, with those whose delete may yet be undone, and those that data is coming for.
    """
    row = tx.execute(_statement(parts), {"project": project, "job": except_job}).one()
    return {name: int(row._mapping[name]) for name in parts}


@lru_cache
def _statement(parts: tuple[str, ...]) -> sa.Select[tuple[int, ...]]:
    return sa.select(*(_PARTS[name].scalar_subquery().label(name) for name in parts))


_TAKE = sa.update(projects).where(projects.c.id == _PROJECT).values(turn=projects.c.turn + 1)


def take_turn(tx: Tx, project: str) -> None:
    """Wait until nobody else decides by this project's usage; what is read from now on is theirs already.

    Until the end of the transaction. Take an image's row before, never after. A row is written and not just locked:
    a lock is known on its own node of a Galera cluster only, a write is refused to one of two.
    """
    if tx.dialect.name == "sqlite":
        return  # whoever may write here is the only one
    while not tx.execute(_TAKE, {"project": project}).rowcount:
        tx.execute(_insert(tx.dialect.name), {"id": project, "turn": 0})


def _insert(dialect: str) -> sa.Insert:
    from sqlalchemy.dialects import mysql, postgresql

    if dialect == "postgresql":
        return postgresql.insert(projects).on_conflict_do_nothing()
    # Waits for another one that inserts the row, and then has it locked as an update would.
    return mysql.insert(projects).on_duplicate_key_update(id=projects.c.id)
