"""The drivers here keep the contract. A new driver is a `Kit` more, and passes all of `suite.py`."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calotype.stores.base import Store
from calotype.stores.file import FileStore
from calotype.stores.memory import MemoryStore
from calotype.stores.registry import DRIVERS
from tests.stores.s3 import Buckets
from tests.stores.suite import CHECKS, ID, Configured, Kit, Thing


def defaults(kind: str, **given: Any) -> dict[str, Any]:
    return {option.dest: option.default for option in DRIVERS[kind].options} | given


def file_store(path: Path, name: str = "one", **given: Any) -> FileStore:
    """One whose directory is known as its own."""
    store = FileStore(name, defaults("file", filesystem_store_datadir=str(path / name), **given))
    store.identity = f"identity-of-{name}"
    if store.found_identity() is None:
        store.establish(store.identity)
    return store


class Files(Kit):
    """Directories. How they outlast lost power is tested in `tests/crash/test_power.py`, on a disk that loses it."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.options = options

    def store(self, name: str = "one") -> FileStore:
        return file_store(self.path, name, **self.options)

    def things(self) -> list[Thing]:
        directory, found = self.path / "one", []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(directory):
                if entry.name in (".calotype-store", ".quarantine"):
                    continue
                with contextlib.suppress(FileNotFoundError):  # a service may be at work
                    size, temporary = entry.stat().st_size, entry.name.endswith((".part", ".aside"))
                    found.append(Thing(entry.name, None if temporary else f"file://{entry.path}", size))
        return found

    def configured(self) -> Configured:
        return Configured("file", {"filesystem_store_datadir": str(self.path / "one")})

    @contextlib.contextmanager
    def full(self, store: Store) -> Iterator[None]:
        assert isinstance(store, FileStore)
        reserve, store._reserve = store._reserve, 1 << 60
        yield
        store._reserve = reserve

    @contextlib.contextmanager
    def broken(self, store: Store) -> Iterator[None]:
        assert isinstance(store, FileStore)
        away = store.directory.rename(self.path / "away")
        store.directory.touch()
        try:
            yield
        finally:
            store.directory.unlink()
            away.rename(store.directory)

    def truncate(self, store: Store, url: str) -> None:
        with (self.path / "one" / ID).open("r+b") as file:
            file.truncate(file.seek(-1, 2))


class Memories(Kit):
    """Dictionaries, which cannot fail."""

    def __init__(self, _: Path) -> None:
        self.stores: dict[str, MemoryStore] = {}

    def store(self, name: str = "one") -> MemoryStore:
        return self.stores.setdefault(name, MemoryStore(name, defaults("memory")))

    def things(self) -> list[Thing]:
        return [Thing(url, url, len(data)) for url, (_, data) in self.store()._objects.items()]

    @contextlib.contextmanager
    def full(self, store: Store) -> Iterator[None]:
        assert isinstance(store, MemoryStore)
        room, store._room = store._room, store._used()
        yield
        store._room = room

    def truncate(self, store: Store, url: str) -> None:
        assert isinstance(store, MemoryStore)
        attempt, data = store._objects[url]
        store._objects[url] = attempt, data[:-1]


KITS: dict[str, Callable[[Path], Kit]] = {
    "file": Files,
    "thin file": lambda path: Files(path, filesystem_thin_provisioning=True),
    "memory": Memories,
    "s3": Buckets,
}
#: Those whose backend is a server.
SLOW = {"s3"}


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
@pytest.mark.parametrize("kit", [pytest.param(kit, marks=pytest.mark.slow) if kit in SLOW else kit for kit in KITS])
def test_a_driver_keeps_the_contract(kit: str, check: Callable[[Kit], None], tmp_path: Path) -> None:
    with contextlib.closing(KITS[kit](tmp_path)) as made:
        check(made)
