"""What stores can do, what they are configured to and how they are: what follows for uploads, downloads and locations."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.app import App
from calotype.images import data, lifecycle, locations
from calotype.images.lifecycle import NewImage
from calotype.service import Service
from calotype.stores.access import Settings
from calotype.stores.base import Feature, Health, Store
from calotype.stores.memory import MemoryStore
from calotype.stores.registry import Stores
from tests.inprocess import ALICE, Pieces, backlog, make_active, parts
from tests.stores.test_contract import defaults


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with parts(tmp_path, f"sqlite:///{tmp_path / 'c.db'}") as app:
        yield app


def with_store(app: App, store: Store, **settings: Any) -> Service:
    """The service with this store besides."""
    before = app.service.stores
    stores = Stores([*before, store], "one", {store.name: Settings(**settings)}, staging=before.staging)
    return replace(app.service, stores=stores)


def queued(app: App) -> str:
    return lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare")).id


class Fails(MemoryStore):
    """A store that takes no byte, and says so."""

    def check(self) -> Health:
        return Health(ok=False, error="It is out of order.")

    def begin(self, *_: Any, **__: Any) -> Any:
        raise errors.StoreUnavailable("It is out of order.", self.name)


def test_an_upload_that_finds_no_place_or_no_store_that_works_changes_nothing(app: App) -> None:
    svc, image_id = with_store(app, Fails("ill", defaults("memory")), max_uploads=1), queued(app)
    access = svc.stores.access(svc.stores.for_writing("ill"))
    with access.upload_slot():
        assert access._uploads
        access._uploads._patience = 0
        with pytest.raises(errors.StoreBusy):
            data.upload(svc, ALICE, image_id, Pieces([b"abc"]), store_name="ill", size=3)
    for _ in range(2):  # it fails, and is refused
        with pytest.raises(errors.StoreUnavailable):
            data.upload(svc, ALICE, image_id, Pieces([b"abc"]), store_name="ill", size=3)
        assert lifecycle.show(svc, ALICE, image_id).status == "queued"
    assert backlog(app) == 0
    data.upload(svc, ALICE, image_id, Pieces([b"abc"]), store_name="one", size=3)


def test_a_store_that_cannot_be_read_is_passed_over(app: App) -> None:
    image_id = make_active(app)
    for store in app.service.stores:
        store.features = frozenset({Feature.WRITE})
    with pytest.raises(errors.StoreUnavailable, match="None of the image's copies"):
        data.open_(app.service, ALICE, data.prepare(app.service, ALICE, image_id))


def test_users_add_locations_only_where_users_name_the_urls(app: App) -> None:
    class Bucket(MemoryStore):
        """One whose URLs are of https, and which is the operator's all the same."""

        def owns(self, url: str) -> bool:
            return url.startswith("https://bucket/")

    class Web(Bucket):
        features = frozenset({Feature.READ, Feature.USER_URLS})

        def owns(self, url: str) -> bool:
            return url.startswith("https://")

    url, image_id = "https://bucket/x", queued(app)
    svc = with_store(app, Bucket("bucket", defaults("memory")))
    with pytest.raises(errors.Forbidden, match="no store of type http"):
        locations._store(svc, ALICE, url)
    both = Stores([*svc.stores, Web("web", defaults("memory"))], "one", staging=svc.stores.staging)
    svc = replace(svc, stores=both)
    with pytest.raises(errors.Forbidden, match="Only services"):
        locations.add(svc, ALICE, image_id, url, None)
    assert locations._store(svc, ALICE, "https://elsewhere/x").name == "web"
