"""A service whose images are in a real Swift: every way that data comes and goes."""

import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from calotype.db import tables
from calotype.db.engine import Database
from tests.stores.suite import Configured
from tests.stores.swift_kit import Swifts
from tests.support import OCTETS, Client, Service, running, until

pytestmark = pytest.mark.needs("swift")

DATA = random.Random(3).randbytes(2_500_000)
CONF = """\
[DEFAULT]
enabled_backends = deep:swift, own:swift, disk:file
enabled_import_methods = glance-direct, copy-image
[glance_store]
default_backend = deep
[deep]
{deep}
[own]
{deep}
swift_store_multi_tenant = true
[disk]
filesystem_store_datadir = {state}/disk
[jobs]
poll = 0.1
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swifts]:
    made = Swifts(tmp_path_factory.mktemp("kit"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(kit: Swifts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    state = tmp_path_factory.mktemp("state")
    configured: Configured = kit.configured()
    deep = "\n".join(f"{name} = {value}" for name, value in configured.options.items())
    with running(state, CONF.format(deep=deep, state=state)) as service:
        yield service


def stores_of(client: Client, image_id: str) -> set[str]:
    return set(client.get(f"/v2/images/{image_id}").json().get("stores", "").split(",")) - {""}


def is_left(kit: Swifts, image_id: str) -> list[str]:
    return [name for name in kit.direct.names(kit.container()) if name.startswith(image_id)]


def test_images_are_uploaded_read_copied_imported_and_deleted(place: Service, kit: Swifts) -> None:
    client = place.client("admin")
    image_id = client.queued()
    chunks = (DATA[start : start + 100_000] for start in range(0, len(DATA), 100_000))  # of unknown size
    assert client.put(image_id, chunks).status_code == 204
    assert kit.direct.is_static(f"/{kit.container()}/{image_id}")
    path = f"/v2/images/{image_id}/file"
    assert client.get(path).content == DATA
    part = client.get(path, headers={"Range": "bytes=1023990-1024009"})
    assert (part.status_code, part.content) == (206, DATA[1023990:1024010])

    wanted = {"method": {"name": "copy-image"}, "stores": ["disk"]}
    assert client.request("POST", f"/v2/images/{image_id}/import", json=wanted).status_code == 202
    until(lambda: stores_of(client, image_id) == {"deep", "disk"})
    assert client.request("DELETE", f"/v2/stores/deep/{image_id}").status_code == 204
    assert is_left(kit, image_id) == []
    assert client.request("POST", f"/v2/images/{image_id}/import", json={**wanted, "stores": ["deep"]}).ok
    until(lambda: stores_of(client, image_id) == {"deep", "disk"})
    assert kit.direct.ask("GET", f"/{kit.container()}/{image_id}").content == DATA

    imported = client.queued()
    assert client.request("PUT", f"/v2/images/{imported}/stage", data=DATA, headers=OCTETS).status_code == 204
    wanted = {"method": {"name": "glance-direct"}, "stores": ["deep", "disk"]}
    assert client.request("POST", f"/v2/images/{imported}/import", json=wanted).status_code == 202
    until(lambda: client.get(f"/v2/images/{imported}").json()["status"] == "active")
    assert client.get(f"/v2/images/{imported}/file").content == DATA

    for one in (image_id, imported):
        assert client.delete(one).status_code == 204
        until(lambda one=one: is_left(kit, one) == [])


def test_who_may_read_a_projects_container_are_the_members(place: Service, kit: Swifts) -> None:
    client = place.client()
    image_id = client.queued()
    assert client.put(image_id, b"abc", x_image_meta_store="own").status_code == 204
    owner = client.get(f"/v2/images/{image_id}").json()["owner"]
    path = f"/{kit.container()}_{image_id}"

    def readers() -> str | None:
        return kit.direct.ask("HEAD", path, account=f"AUTH_{owner}").headers.get("X-Container-Read")

    assert readers() is None
    member = uuid.uuid4().hex
    assert client.request("POST", f"/v2/images/{image_id}/members", json={"member": member}).ok
    assert readers() == f"{member}:*"
    patch = [{"op": "replace", "path": "/visibility", "value": "community"}]
    media = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
    assert client.request("PATCH", f"/v2/images/{image_id}", json=patch, headers=media).ok
    assert readers() == "*:*"
    patch[0]["value"] = "shared"
    assert client.request("PATCH", f"/v2/images/{image_id}", json=patch, headers=media).ok
    assert client.request("DELETE", f"/v2/images/{image_id}/members/{member}").ok
    assert readers() is None
    assert client.delete(image_id).status_code == 204
    assert kit.direct.ask("HEAD", path, account=f"AUTH_{owner}").status_code == 404


def test_a_delete_while_swift_is_away_is_answered_and_done_later(tmp_path: Path) -> None:
    kit = Swifts(tmp_path)
    given = {**kit.configured().options, "swift_store_auth_address": f"{kit.proxy.url}/auth/v1.0"}
    conf = Configured("swift", given).conf + "[jobs]\npoll = 0.1\n"
    try:
        with running(tmp_path / "state", conf) as service:
            client = service.client()
            image_id = client.queued()
            assert client.put(image_id, DATA).status_code == 204
            with kit.proxy.set(refuses=True):
                assert client.delete(image_id).status_code == 204
                assert client.get("/v2/info/stores/detail").status_code in (200, 403)
                assert client.get("/healthcheck").ok
            assert is_left(kit, image_id)
            db = Database(service.database_url)
            with db.write_once() as tx:  # it would be tried again in some minutes
                tx.execute(sa.update(tables.jobs).values(due_at=tables.jobs.c.created_at))
            db.close()
            until(lambda: is_left(kit, image_id) == [])
    finally:
        kit.close()


def test_a_client_gets_the_rest_after_the_store_broke_off(tmp_path: Path) -> None:
    kit = Swifts(tmp_path)
    given = {**kit.configured().options, "swift_store_auth_address": f"{kit.proxy.url}/auth/v1.0"}
    try:
        with running(tmp_path / "state", Configured("swift", given).conf) as service:
            client = service.client()
            image_id = client.queued()
            assert client.put(image_id, DATA).status_code == 204
            kit.proxy.plant("GET", image_id, times=2, cut=700_000)
            assert client.get(f"/v2/images/{image_id}/file").content == DATA
            assert kit.proxy.count("GET", image_id) == 3
    finally:
        kit.close()
