"""openstack-image-manager, a tool that keeps a list of images and imports by URL those that a cloud lacks.

It is installed into an environment of its own (`make .image-manager/ready`, which `make test` does).
"""

import os
import subprocess
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.images import samples
from tests.keystone import Keystone, TokenClient
from tests.support import Service
from tests.webserver import WebServer, serving

HOME = Path(os.environ.get("CALOTYPE_IMAGE_MANAGER") or Path(__file__).parents[2] / ".image-manager")
_IMAGE = """\
  - name: {name}
    enable: true
    format: qcow2
    login: debian
    min_ram: 64
    multi: false
    status: active
    visibility: public
    tags: [kept]
    meta:
      architecture: x86_64
      hw_disk_bus: virtio
      hypervisor_type: qemu
      os_distro: debian
      os_purpose: generic
      replace_frequency: never
      uuid_validity: none
      provided_until: none
    versions:
      - version: "1"
        url: {url}
        build_date: 2026-01-02
"""


class Manager:
    """The tool with a list of images in a file."""

    def __init__(self, keystone: Keystone, directory: Path) -> None:
        self._list = directory / "images.yml"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        self._environment = clean | keystone.environment("admin")

    def run(self, images: dict[str, str]) -> tuple[int, str]:
        """The exit code, and what the tool said, after it was told of images by their names and URLs."""
        entries = [_IMAGE.format(name=name, url=url) for name, url in images.items()]
        self._list.write_text("images:\n" + "".join(entries))
        done = subprocess.run(
            [HOME / "venv/bin/openstack-image-manager", "--images", self._list, "--prefetch", "never"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self._environment, timeout=300,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


def fetched(web: WebServer) -> list[str]:
    """What was downloaded: the tool itself only looks by HEAD whether a file is there."""
    return [request.path for request in web.seen if request.method == "GET"]


@pytest.mark.needs("image-manager")
def test_what_is_missing_is_imported_once_and_a_url_that_fails_is_told(
    cloud: Service, keystone: Keystone, tmp_path: Path
) -> None:
    manager, admin = Manager(keystone, tmp_path), TokenClient(cloud.url, keystone.token("admin"))

    def found(name: str) -> list[dict[str, Any]]:
        return list(admin.get(f"/v2/images?name={name}").json()["images"])

    def away(handler: BaseHTTPRequestHandler) -> None:
        status = 200 if handler.command == "HEAD" else 404
        handler.wfile.write(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        handler.close_connection = True

    with serving(host="127.0.0.3") as web:
        web.files |= {"/good.qcow2": samples.qcow2(), "/away.qcow2": away}
        good = {"Good": f"{web.url}/good.qcow2"}
        code, said = manager.run(good)
        assert code == 0, said
        (image,) = found("Good%201")
        assert (image["status"], image["visibility"], image["min_ram"]) == ("active", "public", 64)
        assert {"kept", "managed_by_osism", "os:debian"} <= set(image["tags"])
        assert (image["os_distro"], image["image_source"]) == ("debian", good["Good"])
        assert admin.file(image["id"]).content == web.files["/good.qcow2"]
        assert fetched(web) == ["/good.qcow2"]

        code, said = manager.run(good)
        assert code == 0, said
        assert found("Good%201") == [image]
        assert fetched(web) == ["/good.qcow2"]

        code, said = manager.run(good | {"Away": f"{web.url}/away.qcow2"})
        assert code == 1, said
        assert "Image Away 1 seems stuck in queued state" in said
        (failed,) = found("Away%201")
        assert failed["status"] == "queued"
        (task,) = admin.get(f"/v2/images/{failed['id']}/tasks").json()["tasks"]
        assert task["status"] == "failure"
        assert "404" in task["message"]
        assert found("Good%201") == [image]
