"""The reference of the API is what the code makes, and each of its examples is typed into a shell."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from calotype.api.routes import ROUTES
from calotype.auth import basic
from tests.docs import console, reference, samples
from tests.images.samples import qcow2
from tests.support import PASSWORD, running, second_copy
from tests.webserver import serving

pytestmark = pytest.mark.needs("curl", "jq")

PAGES = {page.name: page for page in reference.sources() if page.sections}
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
    disk = qcow2(size=10 << 30)
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


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_of_a_page_answer_what_is_shown(name: str, place: Place) -> None:
    steps = [step for section in PAGES[name].sections for step in console.steps(section.text)]
    outputs = console.play(steps, place.directory, place.environment)
    for step, got in zip(steps, outputs, strict=True):
        assert not (found := console.differences(step.shown, got)), f"$ {step.command}\n{found}"


def test_every_route_has_an_example_that_asks_for_it() -> None:
    sections = [(section.method, section.path) for page in PAGES.values() for section in page.sections]
    assert sorted(sections) == sorted((route.method, route.path) for route in ROUTES)
    for page in PAGES.values():
        variables: dict[str, str] = {}
        for section in page.sections:
            asked = list(requests(console.steps(section.text), variables))
            path = re.sub(r"{\w+}", "[^/]+", section.path)
            found = [one for one in asked if one[0] == section.method and re.fullmatch(path, one[1])]
            assert found, f"no example of {section.method} {section.path} with its answer: {asked}"


def requests(steps: list[console.Step], variables: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Method and path of each request whose answer is shown; `variables` are those that a session sets to a URL."""
    for step in steps:
        if found := re.fullmatch(r'(\w+)="(\$IMAGES/[^"]*)"', step.command):
            variables[found[1]] = found[2]
        words = shlex.split(step.command)
        if words[0] != "curl" or not step.shown.startswith("HTTP/"):
            continue
        by_option = {"-I": "HEAD", "-T": "PUT", "--json": "POST"}
        method = next((by_option[word] for word in words if word in by_option), "GET")
        if "-X" in words:
            method = words[words.index("-X") + 1]
        url = next(word for word in words if word.startswith("$"))
        for name, value in variables.items():
            url = re.sub(rf"^\${name}\b", lambda _, value=value: value, url)
        yield method, url.removeprefix("$IMAGES").partition("?")[0]


def test_the_pages_are_what_the_code_makes() -> None:
    pages = reference.pages(json.loads(samples.openapi_document()))
    assert {path: path.read_text() for path in reference.DIRECTORY.iterdir()} == pages, "run: make samples"


def test_each_heading_of_a_page_is_another_one() -> None:
    for path in reference.DIRECTORY.iterdir():
        anchors = [reference.slug(one) for one in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)]
        assert len(set(anchors)) == len(anchors), path.name


@pytest.mark.parametrize(
    ("shown", "got"),
    [
        ("active", "active\n"),
        ("HTTP/1.1 204 No Content", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nDate: now\r\n\r\n"),
        ('HTTP/1.1 200 OK\nETag: "1f…"\n\n{"id": "…", …}', 'HTTP/1.1 200 OK\netag: "1f2"\n\n{"id": "x", "a": 1}'),
        ('HTTP/1.1 200 OK\n\n[{"a": …}, "b…", …]', 'HTTP/1.1 200 OK\n\n[{"a": [1]}, "bc", 2, 3]'),
    ],
)
def test_an_example_that_is_right_passes(shown: str, got: str) -> None:
    assert console.differences(shown, got) == []


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 1}', '{"a": 1, "b": …}'),
        ('{"a": 1}', '{"b": …, …}'),
        ('{"a": 1, "b": 2}', '{"a": 1}'),
        ('{"a": 1}', "{}"),
        ('{"a": "xyz"}', '{"a": "x…w"}'),
        ('{"a": null}', '{"a": "…"}'),
        ("[1, 2]", "[1]"),
        ("[1]", "[1, 2, …]"),
        ("[1, 2]", "[2, …]"),
        ('{"a": 1}', ""),
        ("", '{"a": 1}'),
    ],
)
def test_an_example_that_is_wrong_fails(body: str, shown: str) -> None:
    start = "HTTP/1.1 200 OK\nA: b\n\n"
    assert console.differences(start + body, start + body) == []
    assert console.differences(start + shown, start + body)
    assert console.differences(start.replace("200", "201") + body, start + body)
    assert console.differences(start.replace("A: b", "A: c") + body, start + body)
    assert console.differences(start.replace("A", "B") + body, start + body)
