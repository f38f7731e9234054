"""Health checks, for load balancers: files of the operator, the database, the default store, the job runner.

A check that takes time runs in a thread of its own. Its result is cached for a second, and it has failed if there is no
result after two seconds. So many load balancers at once cost nothing, and a database that hangs lets no request hang.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from calotype import errors
from calotype.db.leases import LEASE
from calotype.service import Service
from calotype.stores.probing import SILENT

#: How long a result is cached, and how long to wait for one, seconds.
CACHE_SECONDS: Final = 1.0
TIMEOUT: Final = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The health of one part. `reason` has no host, path or credential in it."""

    name: str
    healthy: bool
    reason: str


class Health:
    """The checks that `[healthcheck] backends` names. Raises `ConfigError` for wrong names or pairs."""

    def __init__(self, svc: Service) -> None:
        self._conf = svc.conf.healthcheck
        self._wanted: tuple[str, ...] = tuple(dict.fromkeys(self._conf.backends))
        self._by_port = _pairs(self._conf.disable_by_file_paths)
        self._files: dict[str, Callable[[int], str]] = {
            "disable_by_file": lambda _port: _disabled([self._conf.disable_by_file_path]),
            "disable_by_files_ports": lambda port: _disabled(self._by_port.get(port, ())),
            "enable_by_files": lambda _port: _enabled(self._conf.enable_by_file_paths),
        }
        self._probes = {
            "database": _Probe(lambda: _database(svc)),
            "store": _Probe(lambda: _store(svc)),
            "runner": _Probe(lambda: _runner(svc)),
        }
        if unknown := [name for name in self._wanted if name not in self._files and name not in self._probes]:
            raise errors.ConfigError(f"[healthcheck] backends: there is none named {unknown[0]!r}.")
        if {"disable_by_file", "enable_by_files"} <= set(self._wanted):
            raise errors.ConfigError("[healthcheck] backends: disable_by_file and enable_by_files exclude each other.")

    def check(self, port: int) -> tuple[bool, list[Finding]]:
        """Whether all configured checks succeed, and their findings; with `detailed`, findings of all checks.

        Takes two seconds at most.
        """
        wanted = list(self._wanted)
        if self._conf.detailed:
            wanted += [name for name in self._probes if name not in wanted]
        deadline = time.monotonic() + TIMEOUT
        probes = [self._probes[name] for name in wanted if name in self._probes]
        for probe in probes:
            probe.start()
        found = []
        for name in wanted:
            reason = self._probes[name].result(deadline) if name in self._probes else self._files[name](port)
            found.append(Finding(name, not reason, reason))
        return all(one.healthy for one in found if one.name in self._wanted), found


class _Probe:
    """Runs a check in a thread of its own, one at a time. `ask` returns what is wrong, or an empty text."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._done: threading.Event | None = None
        self._reason = ""
        self._since = -CACHE_SECONDS

    def start(self) -> None:
        with self._lock:
            running = self._done is not None and not self._done.is_set()
            if not running and time.monotonic() - self._since >= CACHE_SECONDS:
                self._done = threading.Event()
                threading.Thread(target=self._run, args=(self._done,), name="health", daemon=True).start()

    def result(self, deadline: float) -> str:
        done = self._done
        if done is None or not done.wait(max(0.0, deadline - time.monotonic())):
            return "does not answer"
        return self._reason

    def _run(self, done: threading.Event) -> None:
        try:
            self._reason = self._ask()
        except Exception as exc:  # noqa: BLE001  # whatever it is, the check failed
            self._reason = "does not answer" if isinstance(exc, errors.Busy) else "fails"
        finally:
            self._since = time.monotonic()
            done.set()


def _database(svc: Service) -> str:
    svc.db.check()
    return ""


def _store(svc: Service) -> str:
    found = svc.stores.health()[svc.stores.default]
    if found is SILENT:
        return "does not answer"
    return "" if found.ok else "does not work"


def _runner(svc: Service) -> str:
    age = svc.leases.runner_heartbeat_age()
    return "" if age is not None and age < LEASE.total_seconds() else "no process on this host works off jobs"


def _disabled(paths: Sequence[str | None]) -> str:
    return "DISABLED BY FILE" if any(path and Path(path).exists() for path in paths) else ""


def _enabled(paths: Sequence[str]) -> str:
    return "" if all(Path(path).exists() for path in paths) else "FILE PATH MISSING"


def _pairs(pairs: Sequence[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for pair in pairs:
        port, _, path = pair.partition(":")
        if not port.strip().isdigit() or not path:
            raise errors.ConfigError(f"[healthcheck] disable_by_file_paths: {pair!r} is no port:path.")
        found.setdefault(int(port), []).append(path)
    return found
