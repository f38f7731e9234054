"""Uploads whose image changes at the wrong moment."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from calotype import errors
from calotype.app import App
from calotype.images import data, lifecycle
from calotype.images.lifecycle import NewImage
from calotype.model import Change
from calotype.transfers import Transfers
from tests.inprocess import ALICE, Pieces, backlog, parts
from tests.support import names


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Iterator[App]:
    with parts(tmp_path, database_url) as made:
        yield made


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (Change("replace", "disk_format", "qcow2"), errors.ContentRejected),
        (Change("replace", "disk_format", None), errors.Invalid),
    ],
)
def test_data_is_inspected_for_the_format_that_the_image_has_when_it_is_taken(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, error: type[Exception]
) -> None:
    """A PATCH comes between the first look at the image and the moment from which its formats are fixed."""
    image = lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare"))
    chosen = app.service.stores.for_writing(None)

    def meanwhile(_name: str | None) -> object:
        lifecycle.update(app.service, ALICE, image.id, [change])
        return chosen

    monkeypatch.setattr(app.service.stores, "for_writing", meanwhile)
    with pytest.raises(error):
        data.upload(app.service, ALICE, image.id, Pieces([b"no qcow2" * 1000]), store_name=None, size=None)
    assert lifecycle.show(app.service, ALICE, image.id).status == "queued"
    assert names(tmp_path / "one") == []
    assert backlog(app) == 0


def test_an_upload_that_finds_no_place_is_refused_before_anything_is_read_or_changed(app: App) -> None:
    def body() -> Iterator[bytes]:
        read.append(True)
        yield b"data"

    read: list[bool] = []
    svc = replace(app.service, transfers=Transfers(64 << 20, 1, patience=0))
    made = lifecycle.create(svc, ALICE, NewImage(disk_format="raw", container_format="bare"))
    image = lifecycle.show(svc, ALICE, made.id)
    with svc.transfers.slot(), pytest.raises(errors.Busy):
        data.upload(svc, ALICE, image.id, Pieces(body()), store_name=None, size=None)
    assert lifecycle.show(svc, ALICE, image.id) == image
    assert (read, backlog(app)) == ([], 0)
    data.upload(svc, ALICE, image.id, Pieces(body()), store_name=None, size=None)
    assert lifecycle.show(svc, ALICE, image.id).status == "active"
