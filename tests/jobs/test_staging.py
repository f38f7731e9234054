"""The sweep of the staging directory: what nobody will import goes, and what a Glance has staged stays."""

from pathlib import Path

import pytest

from calotype import errors
from calotype.app import App
from calotype.db import images as db_images
from calotype.images import imports, lifecycle
from calotype.images.lifecycle import NewImage
from calotype.jobs import chores
from tests.inprocess import ALICE, Pieces, now

pytestmark = pytest.mark.any_database


def queued(app: App) -> str:
    return lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare")).id


def test_staged_data_that_an_image_waits_for_stays(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "_STAGED_AGE", -1.0)
    directory = Path(app.service.stores.staging.directory)
    ours, glances, copying, given_up = (queued(app) for _ in range(4))
    none = "99999999-2222-4333-8444-555555555555"
    imports.stage(app.service, ALICE, ours, Pieces([b"data"]), size=4)
    with app.db.write_once() as tx:
        db_images.move(tx, glances, "queued", "uploading", now=now())
        db_images.put_properties(tx, copying, {imports.LOCK: "a task of Glance's"}, now=now())
    for name in (glances, copying, given_up, none, "notes.txt"):
        (directory / name).write_bytes(b"data")
    chores.sweep_staging(app.service)
    assert {path.name for path in directory.iterdir()} == {".calotype-store", ours, glances, copying, "notes.txt"}


def test_a_staging_directory_that_is_lost_keeps_nobody_from_sweeping(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost() -> object:
        raise errors.StoreUnavailable("its directory is gone", "staging")

    monkeypatch.setattr(app.service.stores.staging, "entries", lost)
    chores.sweep_staging(app.service)
    assert "the staging directory cannot be swept" in caplog.text
