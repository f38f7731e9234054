"""What is told of each change of metadata definitions, in the transaction of the change; and of what is refused nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.app import App
from calotype.db import outbox
from calotype.db.engine import Tx, now, same_moment
from calotype.db.metadefs import OBJECT, PROPERTY, TAG
from calotype.metadefs import namespaces, resource_types
from calotype.metadefs import parts as definitions
from calotype.model import Association, Definitions, Event, MetadefObject, MetadefProperty, MetadefTag, Namespace
from tests.events.conftest import CONF
from tests.inprocess import ADMIN, ALICE, parts

DEFINITION = {"title": "T", "type": "array", "default": "d", "items": {"type": "string"}, "minItems": 1}
#: What is told of a definition, null where it does not say.
TOLD_OF_DEFINITION = {
    **dict.fromkeys("description minimum maximum enum pattern minLength maxLength confidential".split()),
    **dict.fromkeys("uniqueItems maxItems additionalItems".split()),
    **DEFINITION,
}
STAYS = {"deleted": False, "deleted_at": None}


def told(app: App) -> list[Event]:
    """What waits in the outbox, which is empty then."""

    def work(tx: Tx) -> list[Event]:
        found = outbox.next_events(tx, 1000)
        outbox.remove(tx, found)
        return found

    return app.db.write(work)


def types(app: App) -> list[str]:
    return [event.type.removeprefix("metadef_") for event in told(app)]


def payload(app: App) -> dict[str, Any]:
    """Of the only event that there is, as it is sent."""
    (event,) = told(app)
    assert event.priority == "INFO"
    found = json.loads(json.dumps(event.payload))
    assert isinstance(found, dict)
    return found


def space(name: str, **values: Any) -> Namespace:
    when = now()
    return Namespace(0, name, "red", when, when, **values)


def tag(name: str) -> MetadefTag:
    when = now()
    return MetadefTag(name, when, when)


@pytest.fixture
def name(app: App, request: pytest.FixtureRequest) -> str:
    """A namespace with a part of each kind, of which everything is told."""
    when = now()
    found = f"of {request.node.name}"[:80]
    new = Definitions(
        space(found),
        (Association("OS::T", when, when, prefix="p_"),),
        (MetadefProperty("p", DEFINITION, when, when),),
        (MetadefObject("o", {"p": DEFINITION}, when, when),),
        (tag("t"), tag("u")),
    )
    namespaces.create(app.service, ADMIN, new)
    created = ["namespace", "resource_type", "property", "object", "tag", "tag"]
    assert types(app) == [f"{one}.create" for one in created]
    return found


def test_each_change_is_told_by_its_name(app: App, name: str) -> None:
    svc, when = app.service, now()
    namespaces.update(svc, ADMIN, name, space(name, description="d"))
    definitions.add(svc, ADMIN, name, OBJECT, MetadefObject("new", {}, when, when))
    definitions.change(svc, ADMIN, name, OBJECT, "new", MetadefObject("newer", {}, when, when))
    definitions.remove(svc, ADMIN, name, OBJECT, "newer")
    assert types(app) == ["namespace.update", "object.create", "object.update", "object.delete"]
    definitions.add(svc, ADMIN, name, PROPERTY, MetadefProperty("new", DEFINITION, when, when))
    definitions.change(svc, ADMIN, name, PROPERTY, "new", MetadefProperty("new", {}, when, when))
    definitions.remove(svc, ADMIN, name, PROPERTY, "new")
    assert types(app) == ["property.create", "property.update", "property.delete"]
    definitions.add(svc, ADMIN, name, TAG, tag("new"))
    definitions.change(svc, ADMIN, name, TAG, "new", tag("newer"))
    definitions.remove(svc, ADMIN, name, TAG, "newer")
    assert types(app) == ["tag.create", "tag.update", "tag.delete"]
    resource_types.add(svc, ADMIN, name, Association("OS::New", when, when))
    resource_types.remove(svc, ADMIN, name, "OS::New")
    assert types(app) == ["resource_type.create", "resource_type.delete"]
    definitions.add_tags(svc, ADMIN, name, [tag("a"), tag("b")], append=True)
    definitions.add_tags(svc, ADMIN, name, [tag("a"), tag("c"), tag("d")], append=False)
    assert types(app) == ["tag.create"] * 5
    for kind, word in ((OBJECT, "objects"), (PROPERTY, "properties"), (TAG, "tags")):
        definitions.clear(svc, ADMIN, name, kind)
        definitions.clear(svc, ADMIN, name, kind)  # nothing is there, and nothing is told
        assert types(app) == [f"namespace.delete_{word}"]
    namespaces.delete(svc, ADMIN, name)
    assert types(app) == ["namespace.delete"]


def test_of_a_namespace_its_name_before_is_told(app: App, name: str) -> None:
    new = space(name[::-1], display_name="D", description="d", visibility="public", protected=True)
    changed = namespaces.update(app.service, ADMIN, name, new)
    moments = {
        "created_at": f"{changed.created_at.isoformat(timespec='seconds')}Z",
        "updated_at": f"{changed.updated_at.isoformat(timespec='seconds')}Z",
    }
    wanted = {
        "namespace": name[::-1],
        "namespace_old": name,
        "display_name": "D",
        "description": "d",
        "visibility": "public",
        "protected": True,
        "owner": "red",
    }
    assert payload(app) == wanted | moments | STAYS
    assert isinstance(namespaces.update(app.service, ADMIN, name[::-1], space(name[::-1])), Namespace)
    assert payload(app)["namespace_old"] == name[::-1]
    namespaces.delete(app.service, ADMIN, name[::-1])
    gone = payload(app)
    assert (gone["namespace"], gone["deleted"]) == (name[::-1], True)
    assert gone["deleted_at"].endswith("Z")


def test_payloads_of_what_is_in_a_namespace_are_those_of_the_contract(app: App, name: str) -> None:
    svc, when = app.service, now()
    moments = {
        "created_at": f"{when.isoformat(timespec='seconds')}Z",
        "updated_at": f"{when.isoformat(timespec='seconds')}Z",
    }
    new = MetadefObject("new", {"x": DEFINITION}, when, when, description="d", required=("x",))
    definitions.add(svc, ADMIN, name, OBJECT, new)
    of_object = {
        "namespace": name,
        "name": "new",
        "name_old": "new",
        "description": "d",
        "required": ["x"],
        "properties": [{"name": "x", **TOLD_OF_DEFINITION}],
    }
    assert payload(app) == of_object | moments | STAYS
    definitions.add(svc, ADMIN, name, PROPERTY, MetadefProperty("new", DEFINITION, when, when))
    assert payload(app) == {"namespace": name, "name": "new", "name_old": "new", **TOLD_OF_DEFINITION, **STAYS}
    definitions.add(svc, ADMIN, name, TAG, MetadefTag("new", when, when))
    assert payload(app) == {"namespace": name, "name": "new", "name_old": "new", **moments, **STAYS}
    resource_types.add(svc, ADMIN, name, Association("OS::New", when, when, prefix="x_", properties_target="meta"))
    of_link = {"namespace": name, "name": "OS::New", "name_old": "OS::New", "prefix": "x_", "properties_target": "meta"}
    assert payload(app) == of_link | moments | STAYS
    definitions.change(svc, ADMIN, name, TAG, "new", tag("newer"))
    assert (payload(app))["name_old"] == "new"
    definitions.change(svc, ADMIN, name, OBJECT, "new", MetadefObject("newer", {}, when, when))
    assert payload(app)["name_old"] == "new"
    definitions.remove(svc, ADMIN, name, OBJECT, "newer")
    gone = payload(app)
    assert (gone["name"], gone["deleted"], gone["deleted_at"][-1]) == ("newer", True, "Z")
    resource_types.remove(svc, ADMIN, name, "OS::New")
    assert payload(app)["deleted"] is True


def test_what_is_changed_keeps_its_age(app: App, name: str) -> None:
    svc, old = app.service, now() - timedelta(hours=1)
    definitions.add(svc, ADMIN, name, TAG, MetadefTag("aged", old, old))
    told(app)
    changed = definitions.change(svc, ADMIN, name, TAG, "aged", tag("renamed"))
    assert same_moment(changed.created_at, old)
    found = payload(app)
    assert found["created_at"] == f"{changed.created_at.isoformat(timespec='seconds')}Z"
    assert found["updated_at"] > found["created_at"]
    before = namespaces.show(svc, ADMIN, name).namespace
    replaced = namespaces.update(svc, ADMIN, name, replace(before, created_at=old, updated_at=now()))
    assert replaced.created_at == before.created_at


REFUSED: dict[str, Callable[[App, str], Any]] = {
    "a name that is taken": lambda app, name: namespaces.create(app.service, ADMIN, Definitions(space(name))),
    "a tag that is taken": lambda app, name: definitions.add(app.service, ADMIN, name, TAG, tag("t")),
    "tags of which one is taken": lambda app, name: definitions.add_tags(
        app.service, ADMIN, name, [tag("new"), tag("t")], append=True
    ),
    "a type that is associated": lambda app, name: resource_types.add(
        app.service, ADMIN, name, Association("OS::T", now(), now())
    ),
    "a rename onto another tag": lambda app, name: definitions.change(app.service, ADMIN, name, TAG, "t", tag("u")),
    "a part that is not there": lambda app, name: definitions.remove(app.service, ADMIN, name, OBJECT, "none"),
    "a namespace that is not there": lambda app, name: namespaces.delete(app.service, ADMIN, "none"),
    "somebody who may not": lambda app, name: definitions.clear(app.service, ALICE, name, TAG),
    "a nested part that is twice there": lambda app, name: namespaces.create(
        app.service, ADMIN, Definitions(space("new " + name[:70]), tags=(tag("t"), tag("t")))
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_of_what_is_refused_nothing_is_told(app: App, name: str, what: str) -> None:
    with pytest.raises((errors.Conflict, errors.NotFound, errors.Forbidden)):
        REFUSED[what](app, name)
    assert types(app) == []


def test_of_what_is_protected_nothing_is_told(app: App, name: str) -> None:
    namespaces.update(app.service, ADMIN, name, space(name, protected=True))
    told(app)
    for kind, part in ((OBJECT, "o"), (PROPERTY, "p"), (TAG, "t")):
        with pytest.raises(errors.Forbidden):
            definitions.remove(app.service, ADMIN, name, kind, part)
        with pytest.raises(errors.Forbidden):
            definitions.clear(app.service, ADMIN, name, kind)
    with pytest.raises(errors.Forbidden):
        resource_types.remove(app.service, ADMIN, name, "OS::T")
    with pytest.raises(errors.Forbidden):
        namespaces.delete(app.service, ADMIN, name)
    assert types(app) == []


@pytest.mark.parametrize(
    ("disabled", "left"),
    [
        ("metadef_tag", ["namespace.create", "object.create", "namespace.delete_tags"]),
        ("metadef_namespace", ["object.create", "tag.create"]),
        ("metadef_namespace.create, metadef_object", ["tag.create", "namespace.delete_tags"]),
        ("metadef", ["namespace.create", "object.create", "tag.create", "namespace.delete_tags"]),
    ],
)
def test_definitions_are_disabled_by_group_or_by_event(tmp_path: Path, disabled: str, left: list[str]) -> None:
    conf = CONF.replace("[DEFAULT]", f"[DEFAULT]\ndisabled_notifications = {disabled}")
    with parts(tmp_path, f"sqlite:///{tmp_path / 'db'}", conf) as app:
        new = Definitions(space("n"), objects=(MetadefObject("o", {}, now(), now()),), tags=(tag("t"),))
        namespaces.create(app.service, ADMIN, new)
        definitions.clear(app.service, ADMIN, "n", TAG)
        assert types(app) == left
