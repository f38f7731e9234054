"""The reference of the API: each of its examples is typed into a shell, against a running service."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from calotype.auth import basic
from tests.docs import console
from tests.images import samples
from tests.support import PASSWORD, running, second_copy
from tests.webserver import serving

PAGES = sorted((Path(__file__).parent / "pages").glob("*.md"))
#: Who types the examples: name → (project, role).
USERS = {
    "admin": ("admin", "admin"),
    "alice": ("web", "member"),
    "bob": ("lab", "member"),
    "nova": ("service", "service"),
}
CONF = """\
[DEFAULT]
enabled_backends = fast:file, cheap:file, mirrors:http
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = {state}/fast
store_description = Solid state disks
weight = 200
[cheap]
filesystem_store_datadir = {state}/cheap
[mirrors]
store_description = Web servers
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.1
"""


@dataclass(frozen=True)
class Place:
    """Where the examples are typed."""

    directory: Path  #: with the files that they name
    environment: dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home, state = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("state")
    disk = samples.qcow2(size=10 << 30)
    (home / "ubuntu-24.04.qcow2").write_bytes(disk)
    users = {name: basic.make_user(name, project, (role,), PASSWORD) for name, (project, role) in USERS.items()}
    basic.write_users(state / "users.json", users)
    with serving(files={"/ubuntu-24.04.qcow2": disk}) as mirror, running(state, CONF.format(state=state)) as service:
        old = service.client("alice").active(disk, name="debian-12", disk_format="qcow2")
        second_copy(service, old)
        yield Place(
            home,
            {
                "HOME": str(home),
                "PATH": os.environ["PATH"],
                "IMAGES": service.url,
                "MIRROR": mirror.url,
                "PASSWORD": PASSWORD,
            },
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_answer_what_is_shown(page: Path, place: Place) -> None:
    steps = console.steps(page.read_text())
    outputs = console.play(steps, place.directory, place.environment)
    for step, got in zip(steps, outputs, strict=True):
        assert not (found := console.differences(step.shown, got)), f"$ {step.command}\n{found}"
