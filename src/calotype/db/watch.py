"""How long a value has not changed, measured on the watcher's own monotonic clock.

The clocks of hosts and of database nodes are set and differ, so none of them can tell how long a process has been
silent. A watcher observes a value again and again, and adds up for how long it has seen the same one.
"""

import threading
import time
from collections.abc import Callable, Hashable, Mapping

#: The most seconds that one observation adds: a little more than lies between two heartbeats. So an outage, or a pause
#: of the watcher, counts as one step, and the watched process has time to change its value.
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
        """Observe the present values. A key that is missing is forgotten."""
        with self._lock:
            now = self._clock()
            passed = min(max(now - self._observed_at, 0.0), self._step)
            self._observed_at = now
            before, self._seen = self._seen, {}
            for key, value in present.items():
                old, age = before.get(key, (value, -passed))
                self._seen[key] = (value, age + passed if old == value else 0.0)

    def age(self, key: Hashable) -> float:
        """For how many observed seconds the value of a key has not changed; 0 for an unknown key."""
        with self._lock:
            return self._seen[key][1] if key in self._seen else 0.0
