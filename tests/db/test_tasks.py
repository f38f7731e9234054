"""Tasks in the database: who sees them, in which order, where they may go, when they are gone."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product
from uuid import uuid4

import pytest
import sqlalchemy as sa

from calotype.context import Context
from calotype.db import tables as t
from calotype.db import tasks
from calotype.db.engine import Database, now
from calotype.model import Task
from tests import databases
from tests.inprocess import ADMIN, ALICE, BOB

NOON = datetime(2026, 2, 3, 12)
NOBODY = Context("req-4", "someone", None, frozenset({"reader"}))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database(databases.synced(database_url))
    yield found
    found.close()


def task(**values: object) -> Task:
    made = Task(str(uuid4()), "location_import", "pending", "red", NOON, NOON, input={"image_id": "x"})
    return replace(made, **values)  # type: ignore[arg-type]


def write(database: Database, *found: Task) -> None:
    with database.write_once() as tx:
        for one in found:
            tasks.add(tx, one)


def test_a_task_comes_back_as_it_was_written(database: Database) -> None:
    whole = task(
        image_id=str(uuid4()),
        request_id="req-7",
        user_id="alice",
        result={"a": [1, None]},
        message="half",
        expires_at=NOON + timedelta(hours=1),
    )
    write(database, whole)
    with database.read_once() as tx:
        assert tasks.get(tx, ALICE, whole.id, NOON) == whole


def test_a_row_without_its_second_half_and_one_with_text_that_is_no_json_are_shown(database: Database) -> None:
    bare, odd = task(), task()
    write(database, bare, odd)
    with database.write_once() as tx:
        tx.execute(sa.delete(t.task_info).where(t.task_info.c.task_id == bare.id))
        tx.execute(sa.update(t.task_info).where(t.task_info.c.task_id == odd.id).values(input="{'no': json"))
        assert tasks.get(tx, ALICE, bare.id, NOON) == replace(bare, input=None)
        assert tasks.get(tx, ALICE, odd.id, NOON) == replace(odd, input="{'no': json")


def test_only_the_owners_project_and_an_admin_see_a_task_and_only_an_admin_one_that_is_nobodys(
    database: Database,
) -> None:
    image_id = str(uuid4())
    own, nobodys, alike = (task(image_id=image_id, owner=owner) for owner in ("red", "", "Red"))
    write(database, own, nobodys, alike)
    seen = {
        ALICE: {own.id},
        BOB: set(),
        NOBODY: set(),
        ADMIN: {own.id, nobodys.id, alike.id},
    }
    with database.read_once() as tx:
        for ctx, ids in seen.items():
            assert {one.id for one in tasks.of_image(tx, ctx, image_id, NOON)} == ids
            assert {one.id for one in tasks.page(tx, ctx, limit=10, now=NOON)} == ids
            assert {one.id for one in (own, nobodys, alike) if tasks.get(tx, ctx, one.id, NOON)} == ids


def test_pages_walk_the_whole_list_once_whatever_it_is_sorted_by(database: Database) -> None:
    minute = timedelta(minutes=1)
    every = [
        task(
            created_at=NOON + (number % 3) * minute,
            updated_at=NOON + (number % 2) * minute,
            expires_at=None if number % 3 else NOON + (1 + number % 2) * minute,
            image_id=None if number % 2 else str(uuid4()),
            type=("import", "location_import")[number % 2],
            user_id=(None, "u1", "u2")[number % 3],
        )
        for number in range(12)
    ]
    write(database, *every)
    for sort_key, descending in product(tasks.COLUMNS, (True, False)):
        walked: list[Task] = []
        with database.read_once() as tx:
            while found := tasks.page(
                tx,
                ADMIN,
                limit=5,
                now=NOON,
                after=walked[-1] if walked else None,
                sort_key=sort_key,
                descending=descending,
            ):
                walked += found
        assert sorted(one.id for one in walked) == sorted(one.id for one in every)
        values = [getattr(one, sort_key) for one in walked]
        unset = [value is None for value in values]
        assert unset == sorted(unset, reverse=not descending)
        there = [value for value in values if value is not None]
        assert there == sorted(there, reverse=descending)


def test_a_list_is_filtered_by_columns(database: Database) -> None:
    one, other = task(status="success"), task(type="import")
    write(database, one, other)
    with database.read_once() as tx:
        assert [found.id for found in tasks.page(tx, ADMIN, limit=9, now=NOON, filters={"status": "success"})] == [
            one.id
        ]
        assert [found.id for found in tasks.page(tx, ADMIN, limit=9, now=NOON, filters={"type": "import"})] == [
            other.id
        ]
        assert not tasks.page(tx, ADMIN, limit=9, now=NOON, filters={"type": "import", "status": "success"})


def test_a_task_goes_forward_only_and_ends_once(database: Database) -> None:
    forward = {"pending": {"processing", "failure"}, "processing": {"success", "failure"}}
    for start, status in product(("pending", "processing", "success", "failure"), repeat=2):
        one = task(status=start)
        write(database, one)
        with database.write_once() as tx:
            moved = tasks.move(tx, one.id, status, now=NOON, message="why", result={"n": 1})
            found = tasks.get(tx, ALICE, one.id, NOON)
        assert moved == (status in forward.get(start, set()))
        assert found == (replace(one, status=status, message="why", result={"n": 1}) if moved else one)


def test_a_task_tells_how_far_it_is_only_while_it_is_being_worked_on(database: Database) -> None:
    for status in ("pending", "processing", "success", "failure"):
        one = task(status=status)
        write(database, one)
        with database.write_once() as tx:
            assert tasks.progress(tx, one.id, "half", NOON) == (status == "processing")
            found = tasks.get(tx, ALICE, one.id, NOON)
        assert found is not None
        assert found.message == ("half" if status == "processing" else "")


def test_an_expired_task_is_found_by_nobody_and_marked_by_the_sweep(database: Database) -> None:
    hour = timedelta(hours=1)
    ended, lasting = task(status="processing", image_id="i"), task(image_id="i")
    write(database, ended, lasting)
    with database.write_once() as tx:
        assert tasks.move(tx, ended.id, "success", now=NOON, expires_at=NOON + hour)
        assert tasks.get(tx, ADMIN, ended.id, NOON + hour / 2) is not None
        later = NOON + hour
        assert tasks.get(tx, ADMIN, ended.id, later) is None
        assert [one.id for one in tasks.of_image(tx, ADMIN, "i", later)] == [lasting.id]
        assert [one.id for one in tasks.page(tx, ADMIN, limit=9, now=later)] == [lasting.id]
        due = sa.update(t.tasks).where(t.tasks.c.id == ended.id)
        tx.execute(due.values(expires_at=now() + hour))
        assert tasks.expire(tx) == 0
        tx.execute(due.values(expires_at=now() - hour))
        assert tasks.expire(tx) == 1
        assert tasks.expire(tx) == 0
        assert not tasks.move(tx, ended.id, "failure", now=later)
