"""What the unmodified clients do with a refusal: they show the service's own sentence, and send no image data again.

openstacksdk repeats a request by itself after some statuses. Of a stream it then sends what the first request left: the
end of a file, or nothing. So such a status would make an active image of a part of the data.
"""

import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openstack as sdk
import pytest
from glanceclient import Client as Glance
from keystoneauth1 import session
from keystoneauth1.http_basic import HTTPBasicAuth

from tests.compat.test_clients import Shell, connect
from tests.keystone import Keystone
from tests.support import OCTETS, PASSWORD, Client, Service, running, tool

CONF = """\
[DEFAULT]
enabled_backends = disk:file
image_size_cap = 16777216
image_property_quota = 5
[glance_store]
default_backend = disk
[disk]
filesystem_store_datadir = {state}/disk
"""
#: More than the sockets between a client and the service hold, so that a part of it is left when the answer comes.
LARGE = 12 << 20
ELSEWHERE = str(uuid.uuid4())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    state = tmp_path_factory.mktemp("refusals")
    with running(state, CONF.format(state=state)) as started:
        yield started


@pytest.fixture(scope="module")
def openstack(place: Service) -> Iterator[Shell]:
    """The `openstack` command, as alice."""
    environment = {
        "OS_AUTH_TYPE": "http_basic",
        "OS_ENDPOINT": f"{place.url}/v2",
        "OS_USERNAME": "alice",
        "OS_PASSWORD": PASSWORD,
    }
    shell = Shell("openstack", environment)
    yield shell
    shell.stop()


@pytest.fixture
def alice(place: Service) -> Client:
    return place.client("alice")


@contextmanager
def broken(place: Service) -> Iterator[None]:
    """The store's directory is not there meanwhile."""
    disk, away = place.state / "disk", place.state / "away"
    disk.rename(away)
    try:
        yield
    finally:
        disk.rmdir() if disk.exists() else None
        away.rename(disk)


def puts(place: Service, since: int) -> list[str]:
    """The answers to requests with data, as the log tells of those that failed."""
    return re.findall(r"PUT /v2/images/\S+/file answered (\d+)", place.log[since:])


# --- nothing is sent again -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "pipe"])
@pytest.mark.needs("curl")
@pytest.mark.parametrize("client", ["openstacksdk", "glanceclient", "curl"])
def test_data_that_cannot_be_stored_just_now_is_sent_once(
    place: Service, alice: Client, tmp_path: Path, client: str, kind: str
) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"d" * LARGE)
    source: Any = file.open("rb") if kind == "file" else subprocess.Popen(["cat", file], stdout=subprocess.PIPE).stdout
    image_id = alice.queued()
    since = len(place.log)
    with broken(place):
        if client == "curl":
            command = [
                *(tool("curl"), "-sS", "--retry", "2", "--retry-delay", "1", "-u", f"alice:{PASSWORD}"),
                *("-H", "Content-Type: application/octet-stream", "-T", str(file) if kind == "file" else "-"),
                f"{place.url}/v2/images/{image_id}/file",
            ]
            with file.open("rb") as stdin:
                said = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=60).stdout
        elif client == "glanceclient":
            auth = session.Session(auth=HTTPBasicAuth(endpoint=place.url, username="alice", password=PASSWORD))
            with pytest.raises(Exception, match="507") as failure:
                Glance("2", session=auth).images.upload(image_id, source)
            said = str(failure.value)
        else:
            basic = {"endpoint": f"{place.url}/v2", "username": "alice", "password": PASSWORD}
            with (
                sdk.connect(
                    auth_type="http_basic", auth=basic, load_yaml_config=False, load_envvars=False
                ) as connection,
                pytest.raises(sdk.exceptions.HttpException, match="507") as failure,
            ):
                sdk.exceptions.raise_from_response(
                    connection.image.put(f"/images/{image_id}/file", data=source, headers={**OCTETS, "Accept": ""})
                )
            said = str(failure.value)
        source.close()
    assert "507 Insufficient Storage" in said
    assert "store" in said
    assert puts(place, since) == ["507"], "sent once"
    image = alice.show(image_id)
    assert (image["status"], image["size"]) == ("queued", None)
    assert alice.put(image_id, b"d" * LARGE).status_code == 204


def test_data_of_a_token_that_is_not_valid_any_more_is_sent_once(
    cloud: Service, keystone: Keystone, tmp_path: Path
) -> None:
    """After 401 keystoneauth gets a new token and sends the request again; so the answer to data is 403."""
    (tmp_path / "data").write_bytes(b"d" * LARGE)
    with connect(keystone, "alice") as connection, (tmp_path / "data").open("rb") as file:
        image = connection.image.create_image("old token", disk_format="raw", container_format="bare")
        plugin = connection.session.auth
        plugin.get_access(connection.session)._auth_token = keystone.token("bob", new=True)[:-9] + "forgotten"
        answer = connection.image.put(f"/images/{image.id}/file", data=file, headers=OCTETS)
        assert (answer.status_code, "WWW-Authenticate" in answer.headers) == (403, False)
        assert "token" in answer.text
        assert connection.image.get_image(image.id).status == "queued", (
            "other requests are sent again, with a new token"
        )
        connection.image.delete_image(image.id)


def test_who_names_nobody_is_still_asked_for_credentials(cloud: Service, place: Service) -> None:
    for service in (cloud, place):
        answer = service.client(None).put(ELSEWHERE, b"data")
        assert (answer.status_code, "WWW-Authenticate" in answer.headers) == (401, True)


# --- the sentence is shown -------------------------------------------------------------------------------


def test_the_reason_of_a_refused_upload_is_shown(place: Service, openstack: Shell, tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"no disk" * 1000)
    large.write_bytes(b"d" * (17 << 20))

    def upload(file: Path, disk_format: str = "raw", *more: Any) -> str:
        arguments = ("--disk-format", disk_format, "--file", file, *more)
        return str(openstack("image", "create", *arguments, "refused", fails=True))

    assert "has 5 bytes, and brings 7000." in upload(small, "raw", "--size", 5)  # 400
    assert "An image may have at most 16777216 bytes." in upload(large)  # 413
    assert re.search(r"415 Unsupported Media Type: .*qcow2", upload(small, "qcow2"))
    since = len(place.log)
    with broken(place):
        said = upload(small)
    assert re.search(r"507 Insufficient Storage: .*store", said)
    assert puts(place, since) == ["507"]


def test_the_reason_of_a_refused_change_is_shown(alice: Client, openstack: Shell) -> None:
    image_id = alice.active(b"data", name="victim", protected=True)
    for arguments, sentence in (
        (("create", "--min-ram", 1 << 40, "x"), "min_ram must be smaller than or equal to"),  # POST 400
        (("create", "--property", "os_glance_x=1", "x"), "Attribute 'os_glance_x' is reserved."),  # POST 403
        (("create", "--id", image_id, "x"), "409 Conflict: "),
        (("create", *(f"--property=p{n}=x" for n in range(6)), "x"), "413 Request Entity Too Large: "),
        (("set", "--min-disk", 1 << 40, image_id), "min_disk must be smaller than or equal to"),  # PATCH 400
        (("set", "--disk-format", "iso", image_id), "disk_format"),  # PATCH 403
        (("set", *(f"--property=p{n}=x" for n in range(6)), image_id), "413 Request Entity Too Large: "),
        (("delete", image_id), "protected"),  # DELETE 403
    ):
        said = openstack("image", *arguments, fails=True)
        assert sentence in said, (arguments, said)
        assert "&#x27;" not in said
