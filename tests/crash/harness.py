"""kill -9 under load, restart, check: again and again on one state directory with one journal.

`journal.py` remembers what was asked for and acknowledged, `load.py` are the clients and the moment of the kill,
`oracle.py` says what must be there afterwards.
"""

import contextlib
import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import sqlalchemy as sa

from calotype.db import tables
from tests.crash.journal import MIB, Entry, Journal
from tests.crash.load import Aim, Load, some_aim
from tests.crash.oracle import PLACES, below, check, debris, misread, settle
from tests.stores.ceph import Cephs
from tests.stores.remote_toy import RemoteToys
from tests.stores.suite import Kit
from tests.stores.swift_kit import Swifts
from tests.stores.test_contract import KITS
from tests.support import Client, Service

#: The drivers to choose from. Those whose data ends with the process say so by `Kit.configured`.
STORES: dict[str, Callable[[Path], Kit]] = {**KITS, "rbd": Cephs, "swift": Swifts, "toy": RemoteToys}


@dataclass
class Summary:
    kills: int = 0
    checked: int = 0
    slowest_recovery: float = 0.0
    slowest_start: float = 0.0
    cut: Counter[str] = field(default_factory=Counter)


class Crashes:
    """Rounds of load, kill, restart and check on one state directory with one journal.

    `kit` is that of the driver, whose store `one` the service has. `database` is the URL of one with tables; SQLite in
    the state directory when empty.
    """

    def __init__(
        self, state: Path, seed: int, kit: Kit, *, database: str = "", images: int = 150, bytes_: int = 256 * MIB
    ) -> None:
        self.kit = kit
        configured = kit.configured()
        self.service = Service(state, configured.conf, database=database, environment=configured.environment)
        self.summary = Summary()
        self._rng = random.Random(seed)
        self._images, self._bytes = images, bytes_
        state.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(state / "journal.jsonl")
        self._log_seen = 0
        self._others: frozenset[str] = frozenset()

    def round(self) -> None:
        """One kill, or two when the recovery is killed as well. Raises `AssertionError` with all that is wrong."""
        rng = self._rng
        if self.service.process is None:
            self.service.arguments = self._some_workers()
            self.service.start()
        self.kill(some_aim(rng))
        self.service.arguments = self._some_workers()
        if rng.random() < 0.25:
            self._killed_while_starting(rng.uniform(0.3, 1.5))
        self.recover()

    def kill(self, aim: Aim) -> None:
        """Load the service and kill it."""
        load = Load(
            self.service,
            self.journal,
            self._rng,
            full=self._full(),
            reads_outlive_deletes=self.kit.reads_outlive_deletes,
        )
        load.run(aim)
        self._gone()
        self.summary.kills += 1
        self.summary.cut.update(_under_way(self.service, self.kit))

    def recover(self, *, others: frozenset[str] = frozenset()) -> None:
        """Start after a kill and check everything; of the images that it cannot have touched, some."""
        self._others = others or self._others
        begin = time.monotonic()
        self.service.start()
        self.summary.slowest_start = max(self.summary.slowest_start, time.monotonic() - begin)
        took, left = settle(self.service, self.kit, self.kit.recovery)
        self.summary.slowest_recovery = max(self.summary.slowest_recovery, took)
        self._log_seen, log = len(self.service.log), self.service.log[self._log_seen :]
        if "Traceback" in log:
            left.append(f"the service logged a traceback:\n{log[-4000:]}")
        journal, client = self.journal, self.service.client("alice")
        quiet = [entry for entry in journal.entries.values() if entry.id not in journal.touched]
        entries = [entry for entry in journal.entries.values() if entry.id in journal.touched]
        entries += self._rng.sample(quiet, min(40, len(quiet)))
        self._compare(client, entries, left)
        self._trim(client)

    def finish(self) -> None:
        """The last check asks about every image that there ever was; then the service ends in peace."""
        self._compare(self.service.client("alice"), list(self.journal.entries.values()), [])
        assert misread(self.service, self.kit, self.journal) == []
        assert self.service.stop() == 0
        assert debris(self.service, self.kit) == []

    def _compare(self, client: Client, entries: list[Entry], problems: list[str]) -> None:
        problems += check(client, self.journal, entries, self._others)
        problems += [*self.journal.problems, *debris(self.service, self.kit)]
        assert not problems, "\n".join(problems[:50])
        self.journal.touched.clear()
        self.summary.checked += len(entries)

    def line(self) -> str:
        one = self.summary
        cut = ", ".join(f"{count} {what}" for what, count in sorted(one.cut.items()))
        return (
            f"{one.kills} kills, {self.journal.acknowledged} acknowledged requests, {one.checked} images checked, "
            f"slowest recovery {one.slowest_recovery:.2f} s (start {one.slowest_start:.2f} s); left by the kills: {cut}"
        )

    def _killed_while_starting(self, after: float) -> None:
        timer = threading.Timer(after, self.service.kill)
        timer.start()
        with contextlib.suppress(RuntimeError):  # It ended before it came up.
            self.service.start()
        timer.join()
        self.service.kill()
        self._gone()
        self.summary.kills += 1

    def _some_workers(self) -> tuple[str, ...]:
        return ("--workers", "2") if self._rng.random() < 0.5 else ()

    def _gone(self) -> None:
        """Wait until the kernel is done with the whole group."""
        assert self.service.process is not None
        end = time.monotonic() + 5
        while left := _alive(self.service.process.pid):
            assert time.monotonic() < end, f"processes outlived the kill: {left}"
            time.sleep(0.005)

    def _full(self) -> bool:
        living = self.journal.living()
        return len(living) > self._images or sum(e.content.size for e in living if e.content) > self._bytes

    def _trim(self, client: Client) -> None:
        """Delete some, that neither the disk fills up nor checking takes for ever."""
        while self._full():
            entry = self._rng.choice(self.journal.living())
            self.journal.write("trim", entry.id)
            assert client.delete(entry.id).status_code == 204
            entry.deleted = True


def _alive(group: int) -> list[int]:
    alive = []
    for process in psutil.process_iter(["pid", "status"]):
        with contextlib.suppress(ProcessLookupError):
            # Whoever became a zombie is dead; its parent is init, which may take its time.
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.info["pid"]) == group:
                alive.append(process.info["pid"])
    return alive


def _under_way(service: Service, kit: Kit) -> Counter[str]:
    """What the kill interrupted. SQLite is read from a copy, as opening it would begin to recover it."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as copy:
        for path in service.state.glob("calotype.db*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, copy)
        with below(service.database or f"sqlite:///{copy}/calotype.db") as tx:
            found.update(f"{kind}s" for kind in tx.execute(sa.select(tables.jobs.c.kind)).scalars())
            known = {url for _, url in tx.execute(PLACES)}
    there = kit.things()
    found["parts"] += sum(thing.url is None for thing in there)
    found["final objects without a record"] += sum(thing.url is not None and thing.url not in known for thing in there)
    return +found
