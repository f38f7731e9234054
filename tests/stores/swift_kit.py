"""The kit of the `swift` driver: a container for each store in a real Swift, reached through a proxy."""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calotype.buffers import Budget
from calotype.stores.base import Store
from calotype.stores.registry import DRIVERS
from calotype.stores.swift import SwiftStore
from tests.stores.suite import Configured, Kit, Thing
from tests.stores.swift_server import KEY, USER, Direct, Proxy, Swift, swift

#: Segments of the smallest size, so that the suite's objects have several.
SMALL = {"swift_store_large_object_size": 1, "swift_store_large_object_chunk_size": 1}


def options(**given: Any) -> dict[str, Any]:
    defaults = {option.dest: option.default for option in DRIVERS["swift"].options}
    usual = {
        "swift_store_user": USER,
        "swift_store_key": KEY,
        "swift_store_auth_version": "1",
        "swift_store_create_container_on_put": True,
        "part_memory": Budget(64 << 20),
    }
    return {**defaults, **usual, **SMALL, **given}


class Swifts(Kit):
    """Containers of one Swift."""

    reads_outlive_deletes = False
    read_timeout = 4.0  # on a busy machine Swift may take a second
    patience = 20.0
    rounds = 2
    recovery = 20.0

    def __init__(self, _: Path, server: Swift | None = None, direct: Direct | None = None, **given: Any) -> None:
        self.server = server or swift()
        self.proxy = Proxy(self.server.port)
        self.direct = direct or Direct(self.server)
        self.unique = f"kit-{uuid.uuid4().hex[:12]}"
        self.given = given
        self._heads: dict[tuple[str, str], Mapping[str, str]] = {}  # an image never changes

    def store(self, name: str = "one", **more: Any) -> SwiftStore:
        given = {
            "swift_store_auth_address": f"{self.proxy.url}/auth/v1.0",
            "swift_store_container": self.container(name),
            "connect_timeout": self.read_timeout,
            "read_timeout": self.read_timeout,
        }
        store = SwiftStore(name, options(**{**given, **self.given, **more}))
        store.network.pause = 0.01
        return store

    def container(self, name: str = "one") -> str:
        return f"{self.unique}-{name}"

    def things(self) -> list[Thing]:
        container = self.container()
        found, segments, heads = [], set(), {}
        listing = self.direct.listing(container)
        names = [entry["name"] for entry in listing]
        for entry in listing:
            name = entry["name"]
            if "." in name:
                continue
            key = name, entry["last_modified"]
            head = heads[key] = self._heads.get(key) or self.direct.ask("HEAD", f"/{container}/{name}").headers
            found.append(Thing(name, f"swift+config://ref1/{container}/{name}", int(head.get("Content-Length", 0))))
            attempt = head.get("X-Object-Meta-Calotype-Attempt")
            if "X-Static-Large-Object" in head or "X-Object-Manifest" in head:
                segments |= {one for one in names if one.startswith(f"{name}.{attempt}-")}
        self._heads = heads
        return found + [Thing(name) for name in names if "." in name and name not in segments]

    def configured(self) -> Configured:
        given = {
            "swift_store_auth_address": f"{self.server.url}/auth/v1.0",
            "swift_store_auth_version": "1",
            "swift_store_user": USER,
            "swift_store_key": KEY,
            "swift_store_container": self.container(),
            "swift_store_create_container_on_put": "true",
            **{name: str(value) for name, value in SMALL.items()},
        }
        return Configured("swift", given)

    def close(self) -> None:
        self.proxy.close()

    @contextlib.contextmanager
    def full(self, store: Store) -> Iterator[None]:
        path = f"/{self.container()}"
        self.direct.put(path)
        used = int(self.direct.ask("HEAD", path).headers["X-Container-Bytes-Used"])
        self.direct.ask("POST", path, headers={"X-Container-Meta-Quota-Bytes": str(used + 1)})
        try:
            yield
        finally:
            self.direct.ask("POST", path, headers={"X-Container-Meta-Quota-Bytes": ""})

    @contextlib.contextmanager
    def broken(self, store: Store) -> Iterator[None]:
        with self.proxy.set(status=500):
            yield

    @contextlib.contextmanager
    def hanging(self, store: Store) -> Iterator[None]:
        with self.proxy.silence():
            yield

    def truncate(self, store: Store, url: str) -> None:
        path = f"/{self.container()}/{url.rpartition('/')[2]}"
        data = self.direct.ask("GET", path).content
        self.direct.put(path, data[:-1])
