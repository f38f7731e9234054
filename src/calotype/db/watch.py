"""How long something has not changed, as a watcher sees it on a clock of its own.

Hosts' clocks are set, and differ; so is a database's, and nodes of a cluster have one each. Who waits for a silent
process asks none of them: it looks again and again, and counts how long it has seen the same.
"""

import threading
import time
from collections.abc import Callable, Hashable, Mapping

#: What one look adds at most, seconds: a little more than lies between two beats of a process. Looks that fail add
#: nothing, so after an outage, or a pause of the watcher, whoever is watched has time to be heard first.
LONGEST_STEP = 6.0


class Watch:
    """Values by key, and for how many seconds each has been seen unchanged. May be shared by threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, step: float = LONGEST_STEP) -> None:
        self._clock = clock
        self._step = step
        self._lock = threading.Lock()
        self._observed_at = 0.0
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}

    def observe(self, present: Mapping[Hashable, Hashable]) -> None:
        """What there is now. A key that is not there is forgotten."""
        with self._lock:
            now = self._clock()
            passed = min(max(now - self._observed_at, 0.0), self._step)
            self._observed_at = now
            before, self._seen = self._seen, {}
            for key, value in present.items():
                old, age = before.get(key, (value, -passed))
                self._seen[key] = (value, age + passed if old == value else 0.0)

    def age(self, key: Hashable) -> float:
        """For how long its value has not changed, as far as anybody looked; 0 for what was not seen."""
        with self._lock:
            return self._seen[key][1] if key in self._seen else 0.0
