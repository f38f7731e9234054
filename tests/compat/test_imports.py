"""Imports with the unmodified clients, with Keystone: each method and each option for stores."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compat.test_clients import connect, shells
from tests.keystone import Keystone
from tests.support import Service, until
from tests.webserver import WebServer, serving

__all__ = ["shells"]

FORMATS = ("--disk-format", "raw", "--container-format", "bare")
DATA = b"by an import" * 1000
ALL = {"fast", "cheap", "brief"}


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(host="127.0.0.3") as server:
        server.files["/disk"] = DATA
        yield server


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return path


def test_openstack_imports_by_each_method(shells: Any, web: WebServer, data: Path, tmp_path: Path) -> None:
    run, admin = shells("openstack", "alice"), shells("openstack", "admin")

    def stores(image_id: str) -> set[str]:
        """Where the image is, once its import is over."""
        until(lambda: not run("image", "show", image_id, "-f", "json")["properties"].get("os_glance_import_task"), 60)
        shown = run("image", "show", image_id, "-f", "json")
        assert shown["status"] == "active", shown
        return set(shown["properties"]["stores"].split(","))

    def create() -> str:
        return str(run("image", "create", *FORMATS, "imported", "-f", "json")["id"])

    assert set(run("image", "import", "info", "-f", "json")["import-methods"]) >= {"glance-direct"}
    image_id = str(run("image", "create", "--import", "--file", data, *FORMATS, "at once", "-f", "json")["id"])
    assert stores(image_id) == {"fast"}
    run("image", "save", "--file", tmp_path / "copy", image_id)
    assert (tmp_path / "copy").read_bytes() == DATA
    image_id = create()
    run("image", "stage", "--file", data, image_id)
    run("image", "import", image_id, "--store", "cheap", "brief")
    assert stores(image_id) == {"cheap", "brief"}
    image_id = create()
    run("image", "import", "--method", "web-download", "--uri", web.url + "/disk", image_id)
    assert stores(image_id) == {"fast"}
    admin("image", "import", image_id, "--method", "copy-image", "--store", "cheap")
    assert stores(image_id) == {"fast", "cheap"}
    admin("image", "import", "--method", "copy-image", "--all-stores", "--disallow-failure", image_id)
    assert stores(image_id) == ALL
    image_id = create()
    run("image", "import", "--method", "web-download", "--uri", web.url + "/disk", "--all-stores", "--allow-failure",
        image_id)  # fmt: skip
    assert stores(image_id) == ALL
    source, image_id = image_id, create()
    run("image", "import", "--method", "glance-download", "--remote-region", "RegionOne", "--remote-image", source,
        "--remote-service-interface", "public", image_id)  # fmt: skip
    assert stores(image_id) == {"fast"}
    image_id = create()
    run("image", "import", "--method", "web-download", "--uri", "http://127.0.0.4/", image_id)  # it hides the 400
    assert run("image", "show", image_id, "-f", "json")["status"] == "queued"


def test_glance_imports_by_each_method(shells: Any, web: WebServer, data: Path) -> None:
    run, admin = shells("glance", "alice"), shells("glance", "admin")

    def stores(image_id: str) -> set[str]:
        until(lambda: "os_glance_import_task" not in run("image-show", image_id), 60)
        shown = rows(run("image-show", image_id))
        assert shown["status"] == "active", shown
        return set(shown["stores"].split(","))

    def id_of(said: str) -> str:
        return rows(said)["id"]

    assert "web-download" in run("import-info")
    image_id = id_of(run("image-create-via-import", "--file", data, *FORMATS, "--name", "one"))
    assert stores(image_id) == {"fast"}
    uri = web.url + "/disk"
    by_url = ("image-create-via-import", "--import-method", "web-download", "--uri", uri, *FORMATS)
    assert stores(id_of(run(*by_url, "--store", "cheap"))) == {"cheap"}
    assert stores(id_of(run(*by_url, "--stores", "cheap,fast"))) == {"cheap", "fast"}
    assert stores(id_of(run(*by_url, "--all-stores", "True"))) == ALL
    queued = id_of(run("image-create", *FORMATS))
    run("image-stage", "--file", data, queued)
    run(
        "image-import", "--import-method", "glance-direct", "--stores", "fast,cheap", "--allow-failure", "False", queued
    )
    assert stores(queued) == {"cheap", "fast"}
    admin("image-import", "--import-method", "copy-image", "--stores", "brief", image_id)
    assert stores(image_id) == {"fast", "brief"}
    admin("image-import", "--import-method", "copy-image", "--all-stores", "True", image_id)
    assert stores(image_id) == ALL
    assert "success" in run("image-tasks", image_id)
    queued = id_of(run("image-create", *FORMATS))
    run("image-import", "--import-method", "glance-download", "--remote-region", "RegionOne",
        "--remote-image-id", image_id, queued)  # fmt: skip
    assert stores(queued) == {"fast"}
    task = {"import_from": uri, "import_from_format": "raw", "image_properties": {"name": "by task"}}
    assert "pending" in admin("task-create", "--type", "import", "--input", json.dumps(task))


def rows(table: str) -> dict[str, str]:
    """A table of two columns."""
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("|")]
    return {row[1]: row[2] for row in cells if len(row) == 4}


def test_the_sdk_imports(cloud: Service, keystone: Keystone, web: WebServer, data: Path) -> None:
    with connect(keystone, "alice") as connection, connect(keystone, "admin") as admin:
        info = connection.image.get_import_info()
        assert info.import_methods["value"][:2] == ["glance-direct", "web-download"]
        image = connection.create_image("by import", filename=str(data), disk_format="raw", use_import=True, wait=True)
        until(lambda: connection.image.get_image(image.id).status == "active", 60)
        assert b"".join(connection.image.download_image(image, stream=True).iter_content(1 << 16)) == DATA
        image = connection.create_image("x", filename=str(data), disk_format="raw", all_stores=True, wait=True)
        until(lambda: connection.image.get_image(image.id).status == "active", 60)
        image = connection.image.create_image("fetched", disk_format="raw", container_format="bare")
        connection.image.import_image(image, method="web-download", uri=web.url + "/disk", stores=["cheap"])
        until(lambda: connection.image.get_image(image.id).status == "active", 60)
        found = admin.image.get_image(image.id)
        admin.image.import_image(found, method="copy-image", all_stores=True, all_stores_must_succeed=False)
        until(lambda: set(connection.image.get_image(image.id).properties["stores"].split(",")) == ALL, 60)
        tasks = [task.type for task in connection.image.image_tasks(image.id)]
        assert "api_image_import" in tasks
        image = connection.image.create_image("staged", disk_format="raw", container_format="bare")
        connection.image.stage_image(image, data=b"staged by the SDK")
        connection.image.import_image(image)
        until(lambda: connection.image.get_image(image.id).status == "active", 60)
