"""Every sub-command for metadata definitions of the unmodified clients, and the SDK, with Keystone."""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from glanceclient.v2 import shell as glance_commands

from tests.compat.test_clients import connect, shells
from tests.keystone import Keystone
from tests.support import Service

__all__ = ["shells"]


def name_in(row: dict[str, Any]) -> Any:
    """The first column, which each list heads by another word."""
    return next(iter(row.values()))


SPEED = {"description": "How fast it is", "minimum": 1}


def test_every_command_of_openstack_for_metadata_definitions_works(shells: Any) -> None:
    admin, bob = shells("openstack", "admin"), shells("openstack", "bob")

    def ask(*words: Any, by: Any = admin, **more: Any) -> Any:
        return by("image", "metadef", *words, **more)

    made = ask("namespace", "create", "--display-name", "Disks", "--public", "--protected", "Osc::Disks", "-f", "json")
    assert (made["display_name"], made["visibility"], made["protected"]) == ("Disks", "public", True)
    ask("namespace", "create", "Osc::Disks", fails=True)
    ask("namespace", "delete", "Osc::Disks", fails=True)
    ask("namespace", "set", "--unprotected", "--description", "All of them", "--public", "--tag", "fast", "Osc::Disks")
    shown = ask("namespace", "show", "Osc::Disks", "-f", "json")
    assert (shown["description"], shown["tags"], shown.get("protected", False)) == (
        "All of them",
        [{"name": "fast"}],
        False,
    )
    assert "Osc::Disks" in [name_in(row) for row in ask("namespace", "list", "-f", "json", by=bob)]
    ask("namespace", "set", "--private", "Osc::Disks", by=bob, fails=True)

    ask("resource", "type", "association", "create", "--properties-target", "image", "Osc::Disks", "Osc::Image")
    rows = ask("resource", "type", "association", "list", "Osc::Disks", "-f", "json")
    assert [name_in(row) for row in rows] == ["Osc::Image"]
    assert "Osc::Image" in json.dumps(ask("resource", "type", "list", "-f", "json", by=bob))
    listed = ask("namespace", "list", "--resource-types", "Osc::Image", "--visibility", "public", "-f", "json")
    assert [name_in(row) for row in listed] == ["Osc::Disks"]

    schema = json.dumps(SPEED)
    named = ("--name", "speed", "--title", "Speed", "--type", "integer", "--schema", schema)
    made = ask("property", "create", *named, "Osc::Disks", "-f", "json")
    assert (made["name"], made["type"], made["minimum"], made["description"]) == (
        "speed",
        "integer",
        1,
        "How fast it is",
    )
    ask("property", "set", "--title", "How fast", "Osc::Disks", "speed")
    shown = ask("property", "show", "Osc::Disks", "speed", "-f", "json", by=bob)
    assert (shown["title"], shown["minimum"]) == ("How fast", 1)
    assert [name_in(row) for row in ask("property", "list", "Osc::Disks", "-f", "json")] == ["speed"]

    made = ask("object", "create", "--namespace", "Osc::Disks", "mirror", "-f", "json")
    assert (made["name"], made["namespace_name"]) == ("mirror", "Osc::Disks")
    ask("object", "update", "Osc::Disks", "mirror", "--name", "stripe")
    assert ask("object", "show", "Osc::Disks", "stripe", "-f", "json", by=bob)["name"] == "stripe"
    assert [name_in(row) for row in ask("object", "list", "Osc::Disks", "-f", "json")] == ["stripe"]
    ask("object", "property", "show", "Osc::Disks", "stripe", "copies", fails=True)  # the command makes none
    assert "Property copies not found in object stripe." in ask(
        "object", "property", "show", "Osc::Disks", "stripe", "copies", fails=True
    )

    ask("namespace", "unset", "--tag", "fast", "Osc::Disks")
    ask("namespace", "set", "--tag", "cheap", "Osc::Disks")
    ask("namespace", "unset", "--all-tags", "Osc::Disks")
    # The SDK remembers tags that it added for as long as its process lives.
    assert not ask("namespace", "show", "Osc::Disks", "-f", "json", by=shells("openstack", "admin")).get("tags")
    ask("object", "delete", "Osc::Disks", "stripe")
    ask("property", "delete", "Osc::Disks", "speed")
    ask("resource", "type", "association", "delete", "Osc::Disks", "Osc::Image")
    assert ask("resource", "type", "association", "list", "Osc::Disks", "-f", "json") == []
    ask("namespace", "delete", "Osc::Disks")
    ask("namespace", "show", "Osc::Disks", fails=True)

    commands = {point.name for point in entry_points(group="openstack.image.v2") if "_metadef_" in point.name}
    assert len(commands) >= 21
    admin.ran |= bob.ran
    assert admin.missed(commands) == set()


def test_every_command_of_glance_for_metadata_definitions_works(shells: Any, tmp_path: Path) -> None:
    run, bob = shells("glance", "admin"), shells("glance", "bob")
    run(
        "md-namespace-create",
        "--display-name",
        "Old disks",
        "--visibility",
        "public",
        "--protected",
        "False",
        "Old::Disks",
    )
    run("md-namespace-update", "--description", "All of them", "--visibility", "public", "Old::Disks")
    assert "All of them" in bob("md-namespace-show", "Old::Disks")
    bob("md-namespace-update", "--description", "mine", "Old::Disks", fails=True)
    (tmp_path / "new.json").write_text(
        json.dumps(
            {
                "namespace": "Old::Imported",
                "visibility": "public",
                "resource_type_associations": [{"name": "Old::Image", "prefix": "old_"}],
                "properties": {"speed": {"title": "Speed", "type": "integer"}},
                "objects": [{"name": "mirror", "properties": {"copies": {"title": "Copies", "type": "integer"}}}],
                "tags": [{"name": "fast"}],
            }
        )
    )
    run("md-namespace-import", "--file", tmp_path / "new.json")
    assert "old_speed" in run("md-namespace-show", "--resource-type", "Old::Image", "Old::Imported")
    listed = bob("md-namespace-list", "--resource-types", "Old::Image", "--visibility", "public")
    assert "Old::Imported" in listed
    assert "Old::Disks" not in listed

    run("md-resource-type-associate", "--name", "Old::Image", "--prefix", "disk_", "Old::Disks")
    assert "Old::Image" in bob("md-resource-type-list")
    assert "disk_" in run("md-namespace-resource-type-list", "Old::Disks")
    run("md-resource-type-deassociate", "Old::Disks", "Old::Image")
    assert "disk_" not in run("md-namespace-resource-type-list", "Old::Disks")

    title = ("--title", "Speed", "--type", "integer", "--schema", json.dumps(SPEED))
    run("md-property-create", "--name", "speed", *title, "Old::Disks")
    run(
        "md-property-update",
        "--title",
        "How fast",
        "--name",
        "pace",
        "--schema",
        json.dumps(SPEED),
        "Old::Disks",
        "speed",
    )
    assert "How fast" in bob("md-property-show", "Old::Disks", "pace")
    assert "pace" in run("md-property-list", "Old::Disks")
    run("md-property-delete", "Old::Disks", "pace")
    run("md-property-create", "--name", "speed", *title, "Old::Disks")
    run("md-namespace-properties-delete", "Old::Disks")
    run("md-property-show", "Old::Disks", "speed", fails=True)

    copies = json.dumps({"properties": {"copies": {"title": "Copies", "type": "integer"}}, "required": ["copies"]})
    run("md-object-create", "--name", "mirror", "--schema", copies, "Old::Disks")
    run("md-object-update", "--name", "stripe", "--schema", copies, "Old::Disks", "mirror")
    assert "copies" in bob("md-object-show", "Old::Disks", "stripe")
    assert "Copies" in run("md-object-property-show", "Old::Disks", "stripe", "copies")
    assert "stripe" in run("md-object-list", "Old::Disks")
    run("md-object-delete", "Old::Disks", "stripe")
    run("md-object-create", "--name", "mirror", "--schema", copies, "Old::Disks")
    run("md-namespace-objects-delete", "Old::Disks")
    run("md-object-show", "Old::Disks", "mirror", fails=True)

    run("md-tag-create", "--name", "fast", "Old::Disks")
    run("md-tag-update", "--name", "quick", "Old::Disks", "fast")
    assert "quick" in bob("md-tag-show", "Old::Disks", "quick")
    # The client gives up over a header of its own, whatever service there is.
    said = run("md-tag-create-multiple", "--names", "cheap, dear", "--append", "Old::Disks", fails=True)
    assert "quote_from_bytes" in said
    run("md-tag-create-multiple", "--names", "one,two", "--delim", ",", "Old::Disks")
    listed = run("md-tag-list", "Old::Disks")
    assert "quick" not in listed
    assert "two" in listed
    run("md-tag-delete", "Old::Disks", "one")
    run("md-namespace-tags-delete", "Old::Disks")
    assert "two" not in run("md-tag-list", "Old::Disks")
    run("md-namespace-delete", "Old::Disks")
    run("md-namespace-delete", "Old::Imported")
    run("md-namespace-show", "Old::Disks", fails=True)

    commands = {name.removeprefix("do_") for name in vars(glance_commands) if name.startswith("do_md_")}
    assert len(commands) >= 29
    run.ran |= bob.ran
    assert run.missed(commands) == set()


def test_the_sdk_knows_metadata_definitions(cloud: Service, keystone: Keystone) -> None:
    connection = connect(keystone, "admin")
    with connection:
        image = connection.image
        made = image.create_metadef_namespace(namespace="Sdk::Disks", visibility="public", display_name="Disks")
        assert (made.display_name, made.is_protected) == ("Disks", False)
        assert image.update_metadef_namespace(made, display_name="All disks").display_name == "All disks"
        assert image.get_metadef_namespace("Sdk::Disks").display_name == "All disks"
        assert "Sdk::Disks" in [found.namespace for found in image.metadef_namespaces(limit=1)]  # page by page

        speed = image.create_metadef_property("Sdk::Disks", name="speed", title="Speed", type="integer", minimum=1)
        assert (speed.name, speed.minimum) == ("speed", 1)
        image.update_metadef_property(speed, "Sdk::Disks", name="speed", title="How fast", type="integer")
        assert image.get_metadef_property("speed", "Sdk::Disks").title == "How fast"
        assert [found.name for found in image.metadef_properties("Sdk::Disks")] == ["speed"]

        copies = {"copies": {"title": "Copies", "type": "integer"}}
        mirror = image.create_metadef_object("Sdk::Disks", name="mirror", properties=copies, required=["copies"])
        assert mirror.required == ["copies"]
        image.update_metadef_object("mirror", "Sdk::Disks", name="stripe")
        assert image.get_metadef_object("stripe", "Sdk::Disks").name == "stripe"
        assert [found.name for found in image.metadef_objects("Sdk::Disks")] == ["stripe"]

        link = image.create_metadef_resource_type_association("Sdk::Disks", name="Sdk::Image", prefix="d_")
        assert link.prefix == "d_"
        assert [found.name for found in image.metadef_resource_type_associations("Sdk::Disks")] == ["Sdk::Image"]
        assert "Sdk::Image" in [found.name for found in image.metadef_resource_types()]
        image.delete_metadef_resource_type_association("Sdk::Image", "Sdk::Disks")

        namespace = image.get_metadef_namespace("Sdk::Disks")
        image.add_tag_to_metadef_namespace(namespace, "fast")
        image.add_tag_to_metadef_namespace(namespace, "cheap")
        image.remove_tag_from_metadef_namespace(namespace, "fast")
        image.remove_tags_from_metadef_namespace(namespace)
        image.delete_metadef_object("stripe", "Sdk::Disks")
        image.delete_metadef_property("speed", "Sdk::Disks")
        image.delete_all_metadef_properties("Sdk::Disks")
        image.delete_all_metadef_objects("Sdk::Disks")
        for name in [name for name in dir(image) if name.startswith("get_metadef_") and name.endswith("_schema")]:
            assert getattr(image, name)().properties, name
        image.delete_metadef_namespace("Sdk::Disks")
        assert image.get_metadef_namespace_schema().name == "namespace"
