"""Metadata definitions in the tables: what others wrote is read, what goes goes whole, and how much reading costs."""

import itertools
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from calotype import errors
from calotype.api import metadef_views
from calotype.context import Context
from calotype.db import metadefs, tables
from calotype.db.engine import Database
from calotype.db.metadefs import OBJECT, PROPERTY, TAG
from calotype.model import Association, Definitions, MetadefObject, MetadefProperty, MetadefTag, Namespace
from tests.inprocess import ADMIN, ALICE, BOB

NOON = datetime(2026, 2, 3, 12)
NOBODY = Context("req-4", "someone", None, frozenset({"reader"}))
DEFINITION = {"title": "CPUs", "type": "integer"}
_PARTS = (
    tables.metadef_namespace_resource_types,
    tables.metadef_objects,
    tables.metadef_properties,
    tables.metadef_tags,
)


@pytest.fixture
def db(module_db: Database) -> Database:
    """The database of this file, without definitions."""
    with module_db.write_once() as tx:
        for table in (*_PARTS, tables.metadef_namespaces, tables.metadef_resource_types):
            tx.execute(sa.delete(table))
    return module_db


def namespace(name: str, **values: Any) -> Namespace:
    return Namespace(0, name, values.pop("owner", "red"), NOON, NOON, **values)


def fill(db: Database, name: str, parts: int = 1, **values: Any) -> int:
    """A namespace with some parts of each kind; its number."""
    with db.write_once() as tx:
        made = metadefs.add(tx, namespace(name, **values)).id
        for n in range(parts):
            metadefs.add_association(tx, made, Association(f"OS::{n}", NOON, NOON, prefix="x_"))
            metadefs.add_parts(tx, OBJECT, made, [MetadefObject(f"o{n}", {"p": DEFINITION}, NOON, NOON)])
            metadefs.add_parts(tx, PROPERTY, made, [MetadefProperty(f"p{n}", DEFINITION, NOON, NOON)])
            metadefs.add_parts(tx, TAG, made, [MetadefTag(f"t{n}", NOON, NOON)])
    return made


def write(db: Database, table: sa.Table, *rows: dict[str, Any]) -> None:
    with db.write_once() as tx:
        for row in rows:
            tx.execute(sa.insert(table).values(**{"created_at": NOON, **row}))


def counts(db: Database, made: int) -> list[int]:
    """How many rows each table of parts has for a namespace."""
    with db.read_once() as tx:
        return [
            tx.execute(sa.select(sa.func.count()).select_from(table).where(table.c.namespace_id == made)).scalar_one()
            for table in _PARTS
        ]


# --- what others wrote -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("null", {}),
        ("", {}),
        ("{", {}),
        ("[1]", {}),
        ('"text"', {}),
        ("{}", {}),
        ('{"p": null, "q": [], "r": {}}', {"p": {}, "q": {}, "r": {}}),
        ('{"p": {"name": "p", "title": "T", "type": "string"}}', {"p": {"title": "T", "type": "string"}}),
        ('{"p": {"title": "T", "enum": null, "default": ""}}', {"p": {"title": "T", "default": ""}}),
        ('{"p": {"title": "T", "minimum": NaN}}', {"p": {"title": "T"}}),
    ],
)
def test_an_object_is_read_whatever_its_column_holds(db: Database, text: str, wanted: dict[str, Any]) -> None:
    made = fill(db, f"object {text}", parts=0)
    row = {"namespace_id": made, "name": "o", "json_schema": text}
    write(db, tables.metadef_objects, row | {"required": None})
    with db.read_once() as tx:
        found = metadefs.part(tx, OBJECT, made, "o")
        (listed,) = metadefs.parts(tx, OBJECT, made)
    assert found == listed
    assert found
    assert (found.properties, found.required, found.description) == (wanted, (), None)
    assert found.updated_at == NOON
    assert metadef_views.object_("n", found)["properties"] == wanted


@pytest.mark.parametrize(("text", "wanted"), [("null", {}), ("x", {}), ("[]", {}), ('{"name": "q", "title": "T"}', {"title": "T"})])  # fmt: skip
def test_a_property_is_read_whatever_its_column_holds(db: Database, text: str, wanted: dict[str, Any]) -> None:
    made = fill(db, f"property {text}", parts=0)
    write(db, tables.metadef_properties, {"namespace_id": made, "name": "p", "json_schema": text})
    with db.read_once() as tx:
        found = metadefs.part(tx, PROPERTY, made, "p")
    assert found
    assert (found.name, found.definition, found.updated_at) == ("p", wanted, NOON)


@pytest.mark.parametrize(("text", "wanted"), [(None, ()), ("", ()), ("a", ("a",)), ("a,b", ("a", "b"))])
def test_required_is_a_list_with_commas(db: Database, text: str | None, wanted: tuple[str, ...]) -> None:
    made = fill(db, f"required {text}", parts=0)
    write(
        db,
        tables.metadef_objects,
        {"namespace_id": made, "name": "o", "json_schema": "{}", "required": text},
    )
    with db.read_once() as tx:
        found = metadefs.part(tx, OBJECT, made, "o")
    assert found
    assert found.required == wanted


def test_what_has_no_value_is_shown_as_private_not_protected_and_as_old_as_it_is(db: Database) -> None:
    write(db, tables.metadef_namespaces, {"namespace": "bare", "owner": "red"})
    with db.read_once() as tx:
        found = metadefs.get(tx, ALICE, "bare")
        assert found
        assert (found.visibility, found.protected, found.updated_at) == ("private", False, NOON)
        assert metadefs.get_definitions(tx, ALICE, "bare") == Definitions(found)
        assert metadefs.get(tx, BOB, "bare") is None
        assert [one.namespace.name for one in metadefs.page(tx, ALICE, limit=9, visibility="private")] == ["bare"]
        assert metadefs.page(tx, ALICE, limit=9, visibility="public") == []
        assert metadefs.page(tx, BOB, limit=9) == []


def test_a_namespace_is_read_as_its_parts_are_each(db: Database) -> None:
    made = fill(db, "one", parts=12)  # so many that their numbers sort otherwise as texts
    odd = {"namespace_id": made, "created_at": NOON + timedelta(days=1)}
    text = '{"title": "quotes \\" and \\\\, \\u00fc\u00fc", "enum": [null]}'
    write(db, tables.metadef_properties, odd | {"name": 'a "b" \\ ü', "json_schema": text})
    write(db, tables.metadef_properties, odd | {"name": "broken", "json_schema": "{"})
    write(db, tables.metadef_objects, odd | {"name": "o", "json_schema": "null", "description": "", "required": None})
    write(db, tables.metadef_tags, odd | {"name": "newer", "updated_at": NOON + timedelta(days=2)})
    fill(db, "other", parts=1)
    with db.read_once() as tx:
        links = tuple(metadefs.associations(tx, made))
        properties, objects, tags = (tuple(metadefs.parts(tx, kind, made)) for kind in (PROPERTY, OBJECT, TAG))  # type: ignore[arg-type, var-annotated]
        found = metadefs.get_definitions(tx, ALICE, "one")
        assert found
        assert (found.associations, found.properties, found.objects, found.tags) == (links, properties, objects, tags)
        assert found.namespace == metadefs.get(tx, ALICE, "one")
        assert metadefs.page(tx, ALICE, limit=9, sort_key="id", descending=False, with_parts=True)[0] == found
        assert metadefs.page(tx, ALICE, limit=9, sort_key="id", descending=False)[0] == Definitions(
            found.namespace, links
        )
        assert metadefs.get_definitions(tx, BOB, "one") is None
        assert metadefs.get_definitions(tx, ADMIN, "one") == found


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("key", metadefs.SORT_KEYS)
def test_pages_hold_each_namespace_once_whatever_has_no_value(db: Database, key: str, descending: bool) -> None:
    name = f"pages {key} {descending}"
    rows = [
        {"updated_at": moment, "visibility": visibility, "protected": protected, "display_name": text, "description": text}
        for moment, visibility, protected, text in itertools.product(
            (None, NOON), (None, "public"), (None, False, True), (None, "text")
        )
    ]  # fmt: skip
    write(db, tables.metadef_namespaces, *(
        {"namespace": f"{name} {number:02}", "owner": name, **row} for number, row in enumerate(rows)
    ))  # fmt: skip
    ctx = Context("req-5", "one", name, frozenset())
    with db.read_once() as tx:
        everything = metadefs.page(tx, ctx, limit=1000, sort_key=key, descending=descending)
        seen: list[Definitions] = []
        while page := metadefs.page(
            tx, ctx, limit=1, sort_key=key, descending=descending, after=seen[-1].namespace if seen else None
        ):
            seen += page
            assert len(seen) <= len(everything)
    assert seen == everything
    assert {f"{name} {number:02}" for number in range(len(rows))} <= {one.namespace.name for one in seen}


# --- who sees what ---------------------------------------------------------------------------------------


def test_projects_are_told_apart_to_the_letter_and_whoever_has_none_sees_what_is_public(db: Database) -> None:
    owners = ("red", "Red", "red ", "blue")
    for number, owner in enumerate(owners):
        for visibility in ("public", "private"):
            fill(db, f"{visibility} {number}", 0, owner=owner, visibility=visibility)
    public = {f"public {number}" for number in range(4)}
    with db.read_once() as tx:
        for ctx, mine in ((ALICE, {"private 0"}), (BOB, {"private 3"}), (NOBODY, set())):
            assert {one.namespace.name for one in metadefs.page(tx, ctx, limit=99)} == public | mine
            assert {f"private {n}" for n in range(4) if metadefs.get(tx, ctx, f"private {n}")} == mine
        assert len(metadefs.page(tx, ADMIN, limit=99)) == 8


# --- what goes -------------------------------------------------------------------------------------------


def test_with_a_namespace_goes_all_that_is_in_it_and_nothing_else(db: Database) -> None:
    one, other = fill(db, "one", parts=3), fill(db, "other", parts=2)
    with db.write_once() as tx:
        metadefs.remove(tx, one)
    assert counts(db, one) == [0, 0, 0, 0]
    assert counts(db, other) == [2, 2, 2, 2]
    with db.read_once() as tx:
        assert metadefs.by_id(tx, one) is None
        assert [kind.name for kind in metadefs.resource_types(tx)] == ["OS::0", "OS::1", "OS::2"]


def test_parts_are_removed_by_kind_and_by_name(db: Database) -> None:
    one, other = fill(db, "one", parts=3), fill(db, "other", parts=2)
    with db.write_once() as tx:
        metadefs.remove_parts(tx, OBJECT, one)
        assert metadefs.remove_part(tx, TAG, one, "t1")
        assert not metadefs.remove_part(tx, TAG, one, "t1")
        assert metadefs.remove_association(tx, one, "OS::1")
        assert not metadefs.remove_association(tx, one, "OS::1")
    assert counts(db, one) == [2, 0, 3, 2]
    assert counts(db, other) == [2, 2, 2, 2]


def test_a_name_that_is_taken_is_a_conflict_and_leaves_the_rest_of_the_transaction_in_force(db: Database) -> None:
    one = fill(db, "one")
    other = fill(db, "other")
    with db.write_once() as tx:
        metadefs.add_parts(tx, TAG, one, [MetadefTag("kept", NOON, NOON)])
        with pytest.raises(errors.Conflict):
            metadefs.add(tx, namespace("one"))
        with pytest.raises(errors.Conflict):
            metadefs.add_parts(tx, TAG, one, [MetadefTag("new", NOON, NOON), MetadefTag("t0", NOON, NOON)])
        with pytest.raises(errors.Conflict):
            metadefs.update_part(tx, TAG, one, "t0", MetadefTag("kept", NOON, NOON))
        with pytest.raises(errors.Conflict):
            metadefs.add_association(tx, one, Association("OS::0", NOON, NOON))
        found = metadefs.by_id(tx, other)
        assert found
        with pytest.raises(errors.Conflict):
            metadefs.update(tx, Namespace(other, "one", "red", NOON, NOON))
    with db.read_once() as tx:
        assert [tag.name for tag in metadefs.parts(tx, TAG, one)] == ["t0", "kept"]
        assert metadefs.by_id(tx, other) == found


# --- whether a change is in force ------------------------------------------------------------------------


def test_a_part_is_held_as_it_was_written_and_when(db: Database) -> None:
    made = fill(db, "one")
    later = NOON + timedelta(seconds=2)
    for kind, there, others in (
        (TAG, MetadefTag("t0", NOON, NOON), [MetadefTag("t0", NOON, later), MetadefTag("x", NOON, NOON), MetadefTag("T0", NOON, NOON)]),
        (PROPERTY, MetadefProperty("p0", DEFINITION, NOON, NOON), [MetadefProperty("p0", {}, NOON, NOON)]),
        (
            OBJECT,
            MetadefObject("o0", {"p": DEFINITION}, NOON, NOON),
            [
                MetadefObject("o0", {}, NOON, NOON),
                MetadefObject("o0", {"p": DEFINITION}, NOON, NOON, description="d"),
                MetadefObject("o0", {"p": DEFINITION}, NOON, NOON, required=("p",)),
            ],
        ),
    ):  # fmt: skip
        with db.read_once() as tx:
            assert metadefs.has_part(tx, kind, made, there)  # type: ignore[arg-type]
            assert not [other for other in others if metadefs.has_part(tx, kind, made, other)]  # type: ignore[arg-type]


def test_a_list_goes_on_behind_a_namespace_that_has_gone(db: Database) -> None:
    for number in range(3):
        fill(db, f"{number}", parts=0)
    for key, descending in (("id", False), ("created_at", True), ("description", False)):
        with db.write_once() as tx:
            first, *rest = metadefs.page(tx, ADMIN, limit=9, sort_key=key, descending=descending)
            metadefs.remove(tx, first.namespace.id)
            after = first.namespace
            assert metadefs.page(tx, ADMIN, limit=9, after=after, sort_key=key, descending=descending) == rest
        fill(db, first.namespace.name, parts=0)


# --- what it costs ---------------------------------------------------------------------------------------


def test_statements_that_find_a_namespace_are_built_once(db: Database) -> None:
    def look() -> int:
        with db.write_once() as tx:
            for ctx in (ADMIN, ALICE, NOBODY):
                assert metadefs.get(tx, ctx, "none") is metadefs.get(tx, ctx, "none", lock=True) is None
        return metadefs._named_namespace.cache_info().misses

    assert look() == look()


def test_reading_n_namespaces_costs_a_fixed_number_of_statements(db: Database) -> None:
    for number in range(12):
        fill(db, f"{number:02}", parts=1 if number else 40)
    statements: list[str] = []
    event.listen(db.reads, "before_cursor_execute", lambda *a: statements.append(a[2]))

    def cost(limit: int) -> int:
        statements.clear()
        with db.read_once() as tx:
            found = metadefs.page(tx, ADMIN, limit=limit)
            assert len(found) == limit
            assert all(one.associations for one in found)
        return len([one for one in statements if one.startswith("SELECT")])

    assert cost(1) == cost(12) == 1

    def show(name: str) -> int:
        statements.clear()
        with db.read_once() as tx:
            found = metadefs.get_definitions(tx, ADMIN, name)
            assert found
            assert found.objects
        return len([one for one in statements if one.startswith("SELECT")])

    assert show("00") == show("01") == 1
