"""Every sub-command of the unmodified clients that the routes serve, with Keystone; the others by name, with a reason.

Those for metadata definitions are in `test_metadefs.py`.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import openstack as sdk
import pytest
from glanceclient.v2 import shell as glance_commands

from tests import warm
from tests.keystone import Keystone
from tests.support import PASSWORD, USERS, Service

CACHE, IMPORT, URLS = (
    "there is no image cache yet",
    "it is in test_imports.py",
    "show_multiple_locations is not offered (OSSN-0090)",
)

#: Sub-commands that are not tried, and why. All others must be run, and succeed.
OPENSTACK_LATER = {
    "cached_image_clear": CACHE,
    "cached_image_delete": CACHE,
    "cached_image_list": CACHE,
    "cached_image_queue": CACHE,
    "image_import": IMPORT,
    "image_stage": IMPORT,
}
GLANCE_LATER = {
    "cache_clean": CACHE,
    "cache_clear": CACHE,
    "cache_delete": CACHE,
    "cache_list": CACHE,
    "cache_nodes_list": CACHE,
    "cache_prune": CACHE,
    "cache_queue": CACHE,
    "image_create_via_import": IMPORT,
    "image_import": IMPORT,
    "image_stage": IMPORT,
    "location_add": URLS,
    "location_delete": URLS,
    "location_update": URLS,
    "task_create": IMPORT,
}


class Shell:
    """One client in a process of its own, as the user that its environment names."""

    def __init__(self, client: str, environment: Mapping[str, str]) -> None:
        self.ran: set[str] = set()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        (theirs, commands), (answers, said) = os.pipe(), os.pipe()
        self._process = warm.start(
            "shells",
            [client],
            stdin=theirs,
            stdout=said,
            stderr=subprocess.DEVNULL,
            env=clean | dict(environment),
        )
        os.close(theirs)
        os.close(said)
        self._commands, self._answers = os.fdopen(commands, "w"), os.fdopen(answers)

    def __call__(self, *arguments: Any, fails: bool = False) -> Any:
        """What a command says; as values, if it was asked for JSON."""
        print(json.dumps([str(argument) for argument in arguments]), file=self._commands, flush=True)
        said = json.loads(self._answers.readline())
        assert (said["code"] != 0) == fails, (arguments, said)
        self.ran.add("_".join(str(word).replace("-", "_") for word in arguments if not str(word).startswith("-")))
        return json.loads(said["out"]) if arguments[-2:] == ("-f", "json") else said["out"] + said["err"]

    def missed(self, commands: set[str]) -> set[str]:
        return {name for name in commands if not any(f"{ran}_".startswith(f"{name}_") for ran in self.ran)}

    def stop(self) -> None:
        self._commands.close()
        self._process.wait(timeout=30)
        self._answers.close()


@pytest.fixture
def shells(cloud: Service, keystone: Keystone) -> Iterator[Any]:
    """Makes clients."""
    made: list[Shell] = []

    def make(client: str, user: str) -> Shell:
        made.append(Shell(client, keystone.environment(user)))
        return made[-1]

    yield make
    for shell in made:
        shell.stop()


def test_every_command_of_openstack_works(shells: Any, keystone: Keystone, tmp_path: Path) -> None:
    run, admin, bob = (shells("openstack", user) for user in ("alice", "admin", "bob"))
    data = tmp_path / "data"
    data.write_bytes(b"from the client" * 1000)
    made = run("image", "create", "--file", data, "--disk-format", "raw", "--shared", "clients", "-f", "json")
    image_id = made["id"]
    assert (made["status"], made["size"]) == ("active", len(data.read_bytes()))
    run("image", "set", "--property", "os_distro=debian", "--tag", "gold", "--min-disk", 1, image_id)
    shown = run("image", "show", image_id, "-f", "json")
    assert (shown["properties"]["os_distro"], shown["tags"], shown["min_disk"]) == ("debian", ["gold"], 1)
    run("image", "unset", "--property", "os_distro", "--tag", "gold", image_id)
    shown = run("image", "show", image_id, "-f", "json")
    assert ("os_distro" in shown["properties"], shown["tags"]) == (False, [])
    assert image_id in [row["ID"] for row in run("image", "list", "--name", "clients", "-f", "json")]
    run("image", "save", "--file", tmp_path / "copy", image_id)
    assert (tmp_path / "copy").read_bytes() == data.read_bytes()

    blue = keystone.project("blue")
    run("image", "add", "project", image_id, blue)
    assert run("image", "member", "get", image_id, blue, "-f", "json")["status"] == "pending"
    bob("image", "set", "--accept", "--project", blue, image_id)
    rows = run("image", "member", "list", image_id, "-f", "json")
    assert [(row["Member ID"], row["Status"]) for row in rows] == [(blue, "accepted")]
    assert image_id in [row["ID"] for row in bob("image", "list", "-f", "json")]
    run("image", "remove", "project", image_id, blue)
    bob("image", "show", image_id, fails=True)

    run("image", "set", "--deactivate", image_id)
    run("image", "save", "--file", tmp_path / "none", image_id, fails=True)
    run("image", "set", "--activate", image_id)
    run("image", "set", "--public", image_id, fails=True)
    admin("image", "set", "--public", image_id)
    run("image", "import", "info", "-f", "json")
    assert {"fast", "cheap"} <= {row["ID"] for row in run("image", "stores", "list", "-f", "json")}
    assert admin("image", "task", "list", "-f", "json") == []
    admin("image", "task", "show", "not-a-task", fails=True)
    run("image", "set", "--protected", image_id)
    run("image", "delete", image_id, fails=True)
    run("image", "set", "--unprotected", image_id)
    run("image", "delete", image_id)
    run("image", "show", image_id, fails=True)

    commands = {point.name for point in entry_points(group="openstack.image.v2")}
    later = {name for name in commands if name in OPENSTACK_LATER or name.startswith("image_metadef_")}  # test_metadefs
    for name in later & (run.ran | admin.ran):
        raise AssertionError(f"{name} works: take it off the list")
    admin.ran |= run.ran | bob.ran
    assert len(commands) >= 42
    assert admin.missed(commands - later) == set()


def test_every_command_of_glance_works(shells: Any, keystone: Keystone, tmp_path: Path) -> None:
    run, admin, bob, service = (shells("glance", user) for user in ("alice", "admin", "bob", "service"))
    data = tmp_path / "data"
    data.write_bytes(b"from the old client" * 1000)
    formats = ("--disk-format", "raw", "--container-format", "bare")
    image_id = "01234567-89ab-4def-8123-456789abcdef"
    run("image-create", "--name", "old", "--id", image_id, "--visibility", "shared", *formats)
    run("image-upload", "--file", data, image_id)
    assert "active" in run("image-show", image_id)
    run("image-update", "--property", "os_distro=debian", image_id)
    run("image-tag-update", image_id, "gold")
    assert image_id in run("image-list", "--tag", "gold", "--property-filter", "os_distro=debian")
    run("image-tag-delete", image_id, "gold")
    run("image-download", "--file", tmp_path / "copy", image_id)
    assert (tmp_path / "copy").read_bytes() == data.read_bytes()
    blue = keystone.project("blue")
    run("member-create", image_id, blue)
    assert "pending" in run("member-list", "--image-id", image_id)
    assert "pending" in run("member-get", image_id, blue)
    bob("member-update", image_id, blue, "accepted")
    assert image_id in bob("image-list")
    run("member-delete", image_id, blue)
    run("image-deactivate", image_id)
    run("image-download", "--file", tmp_path / "none", image_id, fails=True)
    run("image-reactivate", image_id)
    assert image_id not in run("image-tasks", image_id)
    assert "fast" in run("stores-info")
    assert "fast" in admin("stores-info", "--detail")
    admin("stores-delete", "--store", "fast", image_id, fails=True)  # it is the last copy
    run("import-info")
    run("explain", "image")
    run("usage")
    admin("task-list")
    admin("task-show", "not-a-task", fails=True)
    queued = "11234567-89ab-4def-8123-456789abcdef"
    run("image-create", "--name", "elsewhere", "--id", queued, *formats)
    # A member may add what lies in a web server, and none is a store here.
    run("add-location", "--url", "http://127.0.0.1/x", queued, fails=True)
    run("image-delete", image_id, queued)
    run("image-show", image_id, fails=True)

    commands = {name.removeprefix("do_") for name in vars(glance_commands) if name.startswith("do_")}
    later = {name for name in commands if name in GLANCE_LATER or name.startswith("md_")}  # test_metadefs
    admin.ran |= run.ran | bob.ran | service.ran
    assert len(commands) >= 60
    assert admin.missed(commands - later) == set()


def connect(keystone: Keystone, user: str) -> Any:
    """The SDK, as one user."""
    return sdk.connect(
        auth={
            "auth_url": keystone.url,
            "username": user,
            "password": PASSWORD,
            "project_name": USERS[user][0],
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        },
        region_name="RegionOne",
        load_yaml_config=False,
        load_envvars=False,
    )


def test_the_sdk_works(cloud: Service, keystone: Keystone, tmp_path: Path) -> None:
    connection = connect(keystone, "alice")
    with connection:
        (tmp_path / "data").write_bytes(b"by the SDK" * 5000)
        image = connection.create_image(
            "by sdk", filename=str(tmp_path / "data"), disk_format="raw", wait=True, tags=["a"]
        )
        assert image.status == "active"
        connection.image.update_image(image, os_distro="debian")
        assert connection.image.get_image(image.id).os_distro == "debian"
        assert image.id in [found.id for found in connection.image.images(tag=["a"])]
        assert (
            b"".join(connection.image.download_image(image, stream=True).iter_content(1 << 16)) == b"by the SDK" * 5000
        )
        connection.image.add_tag(image, "b")
        connection.image.remove_tag(image, "a")
        blue = keystone.project("blue")
        member = connection.image.add_member(image, member_id=blue)
        assert [found.member_id for found in connection.image.members(image)] == [member.member_id] == [blue]
        connection.image.remove_member(blue, image)
        connection.image.deactivate_image(image)
        connection.image.reactivate_image(image)
        assert {store.id for store in connection.image.stores()} >= {"fast", "cheap"}
        assert list(connection.image.image_tasks(image.id)) == []
        assert connection.delete_image(image.id, wait=True)
