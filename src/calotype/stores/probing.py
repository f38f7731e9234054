"""`Probes`: the health of each store, from a cache. `Breaker`: which stores are set aside because they failed requests.

A store is checked in a thread of its own, by one check at a time, so a store that hangs does not delay callers.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from calotype.stores.base import Health, Store

#: How long the result of a check is used, seconds.
REMEMBERED: Final = 1.0
#: How long a caller waits for new results of all stores together, seconds. If a store does not answer in this time,
#: later callers do not wait for it until it does.
WAITED_FOR: Final = 0.2
#: How long a store that failed is set aside, seconds: its copies are read only after those in other stores.
ASIDE: Final = 30.0

SILENT: Final = Health(ok=False, error="The store does not answer.")


class Probes:
    """The latest health of each store."""

    def __init__(self, stores: Iterable[Store]) -> None:
        self._probes = {store.name: _Probe(store) for store in stores}

    def health(self) -> Mapping[str, Health]:
        """The health of each store by name: at most a second old, or `SILENT`."""
        until = time.monotonic() + WAITED_FOR
        for probe in self._probes.values():
            probe.start()
        return {name: probe.result(until) for name, probe in self._probes.items()}

    def of(self, store: Store) -> Health:
        """The health of one store."""
        probe = self._probes[store.name]
        probe.start()
        return probe.result(time.monotonic() + WAITED_FOR)


class _Probe:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._found = SILENT
        self._until = 0.0  #: when the result expires
        self._running: threading.Event | None = None
        self._silent = False

    def start(self) -> None:
        """Start a check, unless one is running or the last result has not expired."""
        with self._lock:
            if self._running is None and time.monotonic() >= self._until:
                self._running = threading.Event()
                try:
                    threading.Thread(target=self._check, args=(self._running,), name="probe", daemon=True).start()
                except RuntimeError:  # the system gives no thread: the last result stays in use
                    self._running = None

    def result(self, until: float) -> Health:
        done = self._running
        if done is not None and not self._silent:
            done.wait(max(0.0, until - time.monotonic()))
        with self._lock:
            self._silent = self._running is not None and self._running is done
            return SILENT if self._silent else self._found

    def _check(self, done: threading.Event) -> None:
        try:
            found = self._store.check()
        except Exception:  # noqa: BLE001  # `check` must not raise; a driver that does counts as failed
            found = Health(ok=False, error="The store fails.")
        with self._lock:
            self._found = found
            self._until = time.monotonic() + REMEMBERED
            self._running = None
        done.set()


class Breaker:
    """Which stores failed less than `ASIDE` seconds ago, and have not worked since. They are set aside."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def failed(self, store: Store) -> None:
        self._until[store.name] = self._clock() + ASIDE

    def worked(self, store: Store) -> None:
        if self._until:
            self._until.pop(store.name, None)

    def is_aside(self, store: Store) -> bool:
        return self._clock() < self._until.get(store.name, 0.0)
