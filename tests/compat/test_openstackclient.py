"""The real `openstack` command against a service that was started as a stranger would, with what it prints."""

import filecmp
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import databases, warm
from tests.compat import images
from tests.support import Service

pytestmark = [pytest.mark.any_database, pytest.mark.needs("qemu-img", "mke2fs", "xorriso", "sfdisk")]

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, database_kind: str) -> Iterator[Service]:
    """A service without users, nor a configuration but for its database: its first start makes everything."""
    database = databases.for_service(database_kind)
    service = Service(tmp_path_factory.mktemp("fresh") / "state", users=False, database=database).start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def openstack(fresh: Service) -> Run:
    """Runs the client with exactly the environment that the service printed."""
    printed = re.search(r"^\s*export (.*)$", fresh.log, re.MULTILINE)
    assert printed, fresh.log
    exports = dict(part.split("=", 1) for part in shlex.split(printed[1]))
    assert set(exports) == {"OS_CLIENT_CONFIG_FILE", "OS_CLOUD"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OS_")} | exports

    def run(*arguments: str | Path, fails: bool = False) -> Any:
        done = warm.run("openstack", list(map(str, arguments)), env=environment, timeout=120)
        assert (done.returncode != 0) == fails, done.stderr
        if "json" in arguments:
            return json.loads(done.stdout)
        return done.stdout + done.stderr

    return run


KINDS = {"iso": images.iso, "raw": images.raw, "qcow2": images.qcow2}


@pytest.mark.parametrize("kind", KINDS)
def test_real_images_go_in_and_come_out_unchanged(openstack: Run, kind: str, tmp_path: Path) -> None:
    file = KINDS[kind]()
    made = openstack(
        "image", "create", "--file", file, "--disk-format", kind, "--container-format", "bare", kind, "-f", "json"
    )
    shown = openstack("image", "show", kind, "-f", "json")
    assert made["id"] == shown["id"]
    assert shown["status"] == "active"
    assert shown["size"] == file.stat().st_size
    assert shown["virtual_size"] == (images.raw() if kind != "iso" else file).stat().st_size
    openstack("image", "save", "--file", tmp_path / "copy", kind)
    assert filecmp.cmp(file, tmp_path / "copy", shallow=False)


def test_a_life_of_an_image(openstack: Run) -> None:
    image_id = openstack("image", "create", "--private", "--min-disk", "1", "life", "-f", "json")["id"]
    openstack(
        "image",
        "set",
        "--name",
        "renamed",
        "--property",
        "os_distro=debian",
        "--tag",
        "golden",
        "--protected",
        image_id,
    )
    shown = openstack("image", "show", "renamed", "-f", "json")
    assert shown["properties"]["os_distro"] == "debian"
    assert shown["tags"] == ["golden"]
    assert image_id in openstack("image", "list", "--tag", "golden", "--private")
    assert "protected" in openstack("image", "delete", "renamed", fails=True)
    openstack("image", "unset", "--tag", "golden", "--property", "os_distro", "renamed")
    openstack("image", "set", "--unprotected", "--shared", "renamed")
    assert "os_distro" not in openstack("image", "show", "renamed", "-f", "json")["properties"]
    openstack("image", "add", "project", "renamed", "somebody")
    assert openstack("image", "member", "list", "renamed", "-f", "json")[0]["Member ID"] == "somebody"
    openstack("image", "remove", "project", "renamed", "somebody")
    openstack("image", "delete", "renamed")
    assert image_id not in openstack("image", "list")


def test_deactivate_and_reactivate(openstack: Run, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"some data")
    openstack(
        "image", "create", "--file", tmp_path / "data", "--disk-format", "raw", "--container-format", "bare", "switched"
    )
    openstack("image", "set", "--deactivate", "switched")
    assert openstack("image", "show", "switched", "-f", "json")["status"] == "deactivated"
    openstack("image", "set", "--activate", "switched")
    assert openstack("image", "show", "switched", "-f", "json")["status"] == "active"


def test_discovery_and_versions(openstack: Run) -> None:
    assert openstack("image", "stores", "list", "-f", "json") == [{"ID": "local", "Description": None, "Default": True}]
    openstack("image", "import", "info")


def test_the_files_of_the_first_start_are_private(fresh: Service) -> None:
    assert os.stat(fresh.state).st_mode & 0o777 == 0o700
    for name in ("users.json", "clouds.yaml"):
        assert os.stat(fresh.state / name).st_mode & 0o777 == 0o600
    password = re.search(r"password: (\S+)", (fresh.state / "clouds.yaml").read_text())
    assert password
    assert password[1] not in fresh.log


def test_the_password_survives_a_restart_on_another_address(fresh: Service, openstack: Run) -> None:
    from tests.support import free_port

    before = (fresh.state / "clouds.yaml").read_text()
    fresh.stop()
    old, fresh.port = fresh.port, free_port()
    fresh.start()
    assert (fresh.state / "clouds.yaml").read_text() == before.replace(str(old), str(fresh.port))
    openstack("image", "list")
