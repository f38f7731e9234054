"""How stores are, from memory: each is asked in a thread of its own, one question at a time, and never waited for long.

`Probes.health` is what callers see. A store that fails requests is left aside for a while: `Breaker` remembers that.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from calotype.stores.base import Health, Store

#: Seconds for which an answer counts.
REMEMBERED: Final = 1.0
#: Seconds that one caller waits for all stores together, when answers are old. One that does not answer is not waited
#: for again before it does.
WAITED_FOR: Final = 0.2
#: Seconds for which a store that failed is asked after all others.
ASIDE: Final = 30.0

SILENT: Final = Health(ok=False, error="The store does not answer.")


class Probes:
    """What was heard of each store last."""

    def __init__(self, stores: Iterable[Store]) -> None:
        self._probes = {store.name: _Probe(store) for store in stores}

    def health(self) -> Mapping[str, Health]:
        """Of each store, by name: not older than a second, or that it does not answer."""
        until = time.monotonic() + WAITED_FOR
        for probe in self._probes.values():
            probe.begin()
        return {name: probe.result(until) for name, probe in self._probes.items()}

    def of(self, store: Store) -> Health:
        """The same of one store."""
        probe = self._probes[store.name]
        probe.begin()
        return probe.result(time.monotonic() + WAITED_FOR)


class _Probe:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._found = SILENT
        self._until = 0.0  #: when the answer is old
        self._asked: threading.Event | None = None
        self._silent = False

    def begin(self) -> None:
        """Ask, unless the answer is there or on its way."""
        with self._lock:
            if self._asked is None and time.monotonic() >= self._until:
                self._asked = threading.Event()
                try:
                    threading.Thread(target=self._ask, args=(self._asked,), name="probe", daemon=True).start()
                except RuntimeError:  # the system gives no thread just now: what was heard last counts
                    self._asked = None

    def result(self, until: float) -> Health:
        asked = self._asked
        if asked is not None and not self._silent:
            asked.wait(max(0.0, until - time.monotonic()))
        with self._lock:
            self._silent = self._asked is not None and self._asked is asked
            return SILENT if self._silent else self._found

    def _ask(self, asked: threading.Event) -> None:
        try:
            found = self._store.check()
        except Exception:  # noqa: BLE001  # a driver that breaks its promise is not well
            found = Health(ok=False, error="The store fails.")
        with self._lock:
            self._found = found
            self._until = time.monotonic() + REMEMBERED
            self._asked = None
        asked.set()


class Breaker:
    """Which stores failed a short time ago, and have not worked since: they are set aside for a while."""

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
