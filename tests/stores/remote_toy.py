"""The toy's backend in a process of its own, and a driver that asks it: data that outlives whoever writes it.

The driver comes to a service as one of another package does, by an entry point. So the crash harness can run on it:
`make crash ARGS="--store toy"`.
"""

import multiprocessing
import os
import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, ClassVar

from oslo_config import cfg

from tests.stores.suite import Configured, Kit, Thing
from tests.stores.toy import Backend, Failed, ToyStore

_METHODS = ("create", "append", "sync", "rename", "remove", "get", "piece", "room_now", "sizes")
_ROOM = 1 << 30


class _Manager(BaseManager):
    """Where the backend lives, or a client of that."""


_served: list[Backend] = []


def _backend() -> Backend:
    """The one of this process."""
    if not _served:
        _served.append(Backend(room=_ROOM))
    return _served[0]


_Manager.register("backend", callable=_backend, exposed=_METHODS)


class RemoteBackend:
    """A `Backend` as its clients see it."""

    def __init__(self, toy_port: int, toy_key: str) -> None:
        self._port = toy_port
        self._key = toy_key
        self._lock = threading.Lock()
        self._connected: tuple[int, Any] | None = None

    def __getattr__(self, method: str) -> Any:
        def ask(*arguments: Any) -> Any:
            sent = (one for one in arguments if not isinstance(one, threading.Event))  # an event stays in its process
            try:
                return getattr(self._proxy(), method)(*sent)
            except (OSError, EOFError) as exc:
                raise Failed("gone") from exc

        return ask

    def _proxy(self) -> Any:
        with self._lock:
            if self._connected is None or self._connected[0] != os.getpid():  # a child has connections of its own
                manager = _Manager(("127.0.0.1", self._port), self._key.encode())
                manager.connect()
                self._connected = (os.getpid(), manager.backend())  # type: ignore[attr-defined]
            return self._connected[1]


class RemoteToyStore(ToyStore):
    """The driver of type `toy`."""

    options: ClassVar[Sequence[cfg.Opt]] = [cfg.IntOpt("toy_port"), cfg.StrOpt("toy_key", secret=True)]
    timeouts: ClassVar[Collection[str]] = ()

    def __init__(self, name: str, options: Mapping[str, Any], *, description: str = "", weight: int = 0) -> None:
        backend: Any = RemoteBackend(options["toy_port"], options["toy_key"])
        super().__init__(name, backend, frozenset())
        self.description = description
        self.weight = weight


class RemoteToys(Kit):
    """A backend that a kill of the service does not end."""

    reads_outlive_deletes = False

    def __init__(self, path: Path) -> None:
        self._key = secrets.token_hex(16)
        # Not forked: whoever asks for a kit has threads.
        self._manager = _Manager(("127.0.0.1", 0), self._key.encode(), ctx=multiprocessing.get_context("spawn"))
        self._manager.start()
        self._port = self._manager.address[1]  # type: ignore[index]
        self._site = path / "site"
        package = self._site / "toy-1.dist-info"
        package.mkdir(parents=True, exist_ok=True)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
        entry = f"[calotype.stores]\ntoy = {__name__}:{RemoteToyStore.__name__}\n"
        (package / "entry_points.txt").write_text(entry)

    def store(self, name: str = "one") -> RemoteToyStore:
        return RemoteToyStore(name, self.access)

    def things(self) -> list[Thing]:
        sizes: dict[str, int] = RemoteBackend(**self.access).sizes()
        return [
            Thing(key, None if key.endswith(".part") else f"toy://{key}", size)
            for key, size in sizes.items()
            if key.startswith("one/")
        ]

    def configured(self) -> Configured:
        here = str(Path(__file__).parents[2])
        path = os.pathsep.join([str(self._site), here, *filter(None, [os.environ.get("PYTHONPATH")])])
        options = {name: str(value) for name, value in self.access.items()}
        return Configured("toy", options, {"PYTHONPATH": path})

    @property
    def access(self) -> Mapping[str, Any]:
        """How the backend is reached: the options of the driver."""
        return {"toy_port": self._port, "toy_key": self._key}

    def close(self) -> None:
        self._manager.shutdown()
