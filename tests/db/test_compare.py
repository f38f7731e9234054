"""Names that differ in case or in blanks at the end are different names, whatever a database's collation says."""

from dataclasses import replace

import pytest

from calotype.context import SERVICE, Context
from calotype.db import images, members, pages
from calotype.db.engine import Database, now
from calotype.db.record_cache import RecordCache
from calotype.model import Image, Query

ID = "00000000-0000-4000-8000-000000000001"
ALIKE = ("Demo", "DEMO", "demo ", "demo  ", "démo")


def add(db: Database, owner: str, **values: object) -> Image:
    image = Image(ID, "n", "queued", "shared", owner, now(), now())
    image = replace(image, **values)  # type: ignore[arg-type]
    with db.write_once() as tx:
        images.add(tx, image)
    return image


def member_of(project: str) -> Context:
    return Context("r", "u", project, frozenset({"member"}))


@pytest.mark.parametrize("project", ALIKE)
def test_projects_alike_see_nothing_of_each_other(db: Database, project: str) -> None:
    add(db, "demo")
    with db.read_once() as tx:
        assert images.get(tx, member_of("demo"), ID)
        assert images.get(tx, member_of(project), ID) is None
        for visibility in (None, "all", "shared"):
            query = Query(limit=5, visibility=visibility, member_status="all")
            assert len(pages.page(tx, RecordCache(), member_of("demo"), query)) == 1
            assert pages.page(tx, RecordCache(), member_of(project), query) == []


@pytest.mark.parametrize("project", ALIKE)
def test_members_alike_are_not_the_member(db: Database, project: str) -> None:
    add(db, "owner")
    with db.write_once() as tx:
        members.add(tx, ID, "demo", now())
    with db.read_once() as tx:
        assert images.get(tx, member_of("demo"), ID)
        assert images.get(tx, member_of(project), ID) is None
        assert members.get(tx, ID, project) is None


def test_removing_a_tag_leaves_those_alike(db: Database) -> None:
    before = add(db, "demo", tags=("Tag", "tag"))
    with db.write_once() as tx:
        images.save(tx, before, replace(before, tags=("Tag",), updated_at=now()))
    with db.read_once() as tx:
        found = images.get(tx, SERVICE, ID)
    assert found
    assert found.tags == ("Tag",)
