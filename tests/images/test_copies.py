"""Downloads of images with several copies, of which some fail."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from calotype import errors
from calotype.app import App
from calotype.db import images as db_images
from calotype.db.engine import now
from calotype.images import data, lifecycle
from calotype.images.lifecycle import NewImage
from calotype.stores.base import Store
from calotype.stores.memory import MemoryStore
from tests.inprocess import ALICE, CONF, Pieces, parts
from tests.stores.suite import write

CONTENT = bytes(range(256)) * 1000


class Failing:
    """`Body` of which `good` bytes come, then an error; where `error` is None, the end."""

    def __init__(self, body: Any, good: int, error: Exception | None) -> None:
        self.body, self.good, self.error = body, good, error
        self.size = body.size
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield b"".join(self.body)[: self.good]
        if self.error:
            raise self.error

    def file(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True
        self.body.close()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    conf = CONF.replace("two:file", "two:file, red:memory, blue:memory")
    with parts(tmp_path, f"sqlite:///{tmp_path}/db", conf) as made:
        yield made


def store(app: App, name: str) -> MemoryStore:
    found = app.service.stores.get(name)
    assert isinstance(found, MemoryStore)
    return found


def two_copies(app: App, second: bytes = CONTENT) -> str:
    image_id = lifecycle.create(app.service, ALICE, NewImage(disk_format="raw", container_format="bare")).id
    data.upload(app.service, ALICE, image_id, Pieces([CONTENT]), store_name="red", size=None)
    url = write(store(app, "blue"), [second], image_id)
    with app.db.write_once() as tx:
        db_images.add_location(tx, image_id, url, {"store": "blue"}, now())
    return image_id


def read(app: App, image_id: str, offset: int = 0) -> bytes:
    download = data.prepare(app.service, ALICE, image_id)
    with closing(data.open_(app.service, ALICE, download, offset=offset)) as body:
        return b"".join(body)


def break_off(app: App, monkeypatch: pytest.MonkeyPatch, good: int, error: Exception | None) -> list[Failing]:
    """Let the copy in store red fail after so many bytes. The bodies that were given out."""
    real, given = store(app, "red").read, []

    def fails(*arguments: Any, **more: Any) -> Failing:
        given.append(Failing(real(*arguments, **more), good, error))
        return given[-1]

    monkeypatch.setattr(store(app, "red"), "read", fails)
    return given


@pytest.mark.parametrize("error", [errors.StoreUnavailable("gone", "red"), None], ids=["error", "early end"])
@pytest.mark.parametrize("offset", [0, 1000])
def test_a_copy_that_fails_in_the_middle_is_continued_by_the_next_one(
    app: App, monkeypatch: pytest.MonkeyPatch, error: Exception | None, offset: int
) -> None:
    image_id = two_copies(app)
    given = break_off(app, monkeypatch, 100_000, error)
    assert read(app, image_id, offset) == CONTENT[offset:]
    assert [one.closed for one in given] == [True]


def test_a_copy_of_another_size_continues_nothing(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = two_copies(app, CONTENT + b"more")
    break_off(app, monkeypatch, 100_000, errors.StoreUnavailable("gone", "red"))
    with pytest.raises(errors.StoreError):
        read(app, image_id)


def test_a_store_that_failed_is_asked_after_the_others(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id, asked = two_copies(app), []

    def refuses(*_: Any, **__: Any) -> Store:
        asked.append(1)
        raise errors.StoreUnavailable("down", "red")

    monkeypatch.setattr(store(app, "red"), "read", refuses)
    for _ in range(3):
        assert read(app, image_id) == CONTENT
    assert len(asked) == 1
