"""Power is lost, what was not synced is gone, and the service starts on what is left: nothing acknowledged is missing.

A machine runs under load on a disk that records the order of all that is done to it, the journal's lines among it
(`disk.py`). Afterwards power is lost at many points of the record: each time the disk keeps what it must and some of
what it may keep, the service is started on that, and the oracle compares with what had been acknowledged by then. The
next run begins on what one of the losses left, or a kill -9, so that recoveries are cut short as well.
"""

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests import warm
from tests.crash.disk import OUTSIDE, Change, Disk, Mounted, Name, Sync
from tests.crash.journal import Content, Journal
from tests.crash.load import Aim, Load
from tests.crash.oracle import check, debris, settle
from tests.stores.suite import Kit
from tests.stores.test_contract import Files
from tests.support import PASSWORD, Service

_CUTS_PER_RUN = 10


class Machine(Service):
    """A service whose state directory does not exist before its first start, nor the directory of its store."""

    def __init__(self, state: Path) -> None:
        super().__init__(state, users=False)
        self.conf = f"[glance_store]\nfilesystem_store_datadir = {self.images}\n"

    def _launch(self, arguments: Sequence[str]) -> warm.Process:
        with (self.state / "serve.log").open("ab") as log:
            return warm.start("calotype", arguments, stdout=log, stderr=log)

    @property
    def home(self) -> Path:
        return self.state / "lib" / "calotype"

    @property
    def images(self) -> Path:
        return self.home / "data" / "one"

    @property
    def kit(self) -> Kit:
        return Files(self.images.parent)

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.home / 'calotype.db'}"

    @property
    def place(self) -> tuple[str | Path, ...]:
        return ("--config-file", self.state / "calotype.conf", "--state-dir", self.home)


@dataclass
class Summary:
    cuts: int = 0
    runs: int = 0
    changes: int = 0
    checked: int = 0
    slowest_recovery: float = 0.0


class PowerCuts:
    """Runs of one machine, each followed by losses of power, in an empty directory. `close` it at the end."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.summary = Summary()
        self._rng = random.Random(seed)
        self._directory = directory / "disk"
        self._machine = Machine(self._directory / "machine")
        self._disk = Disk.empty()

    def run(self, cuts: int) -> None:
        """Lose power so many times. Raises `AssertionError` with all that is wrong after one of them."""
        while self.summary.cuts < cuts:
            begun = len(self._disk.changes)
            try:
                self._record()
            except AssertionError as exc:
                raise AssertionError(f"run {self.summary.runs}, under load\n> {exc}") from exc
            choose = self._moments(begun)
            left = self._disk
            for _ in range(min(_CUTS_PER_RUN, cuts - self.summary.cuts)):
                moment = choose()
                left = self._disk.until(moment).survivors(self._rng)
                try:
                    self._examine(left)
                except AssertionError as exc:
                    where = f"run {self.summary.runs}, cut {self.summary.cuts}: power was lost after {moment} of "
                    last = "\n".join(repr(change)[:200] for change in self._disk.changes[max(0, moment - 12) : moment])
                    raise AssertionError(
                        f"{where}{len(self._disk.changes)} changes\n> {exc}\nat last:\n{last}"
                    ) from exc
            # What the page cache of a killed service holds is as unsynced as before.
            self._disk = left if self._rng.random() < 0.5 else self._disk.until(self._killed(begun, choose))

    def line(self) -> str:
        one = self.summary
        return (
            f"{one.cuts} losses of power in {one.runs} runs with {one.changes} changes of the disk, "
            f"{one.checked} images checked, slowest recovery {one.slowest_recovery:.2f} s"
        )

    def _record(self) -> None:
        """One run of the machine, from its start to a kill -9."""
        self.summary.runs += 1
        before = len(self._disk.changes)
        with self._mounted(self._disk) as (mounted, journal):
            machine = self._machine
            machine.arguments = ("--workers", "2") if self._rng.random() < 0.5 else ()
            self._start()
            if "admin" not in journal.users:
                cloud = yaml.safe_load((machine.home / "clouds.yaml").read_text())["clouds"]["calotype"]
                journal.user("admin", cloud["auth"]["password"])
            self._add_user(journal, "alice" if "alice" not in journal.users else f"user-{self.summary.runs}")
            if self._rng.random() < 0.5:  # Else the recovery has company.
                _, problems = settle(machine, machine.kit)
                assert not problems, "\n".join(problems)
            load = Load(machine, journal, self._rng, full=len(journal.living()) > 25, content=_some_content)
            load.run(Aim(self._rng.uniform(0.4, 1.0)), clients=4)
            assert not journal.problems, "\n".join(journal.problems)
            journal.close()
            self._disk = mounted.end()
        self.summary.changes += len(self._disk.changes) - before

    def _examine(self, disk: Disk) -> None:
        """Start on what is left, and compare with what had been acknowledged."""
        self.summary.cuts += 1
        with self._mounted(disk) as (_, journal):
            machine = self._machine
            seen = len(machine.log) if (machine.state / "serve.log").exists() else 0
            self._start()
            took, problems = settle(machine, machine.kit)
            self.summary.slowest_recovery = max(self.summary.slowest_recovery, took)
            for name, password in list(journal.users.items())[-2:]:  # The file is one, and passwords cost time.
                answer = machine.client(name, password).get("/v2/images")
                if answer.status_code != 200:
                    problems.append(f"the user {name} is lost: {answer.status_code}")
            if "alice" in journal.users and not problems:
                problems += check(machine.client("alice"), journal, list(journal.entries.values()))
                problems += debris(machine, machine.kit)
            if "Traceback" in machine.log[seen:]:
                problems.append(f"the service logged a traceback:\n{machine.log[seen:][-4000:]}")
            self.summary.checked += len(journal.entries)
            assert not problems, "\n".join(problems[:20])

    def _start(self) -> None:
        try:
            self._machine.start()
        except RuntimeError as exc:
            raise AssertionError(str(exc)) from exc

    @contextlib.contextmanager
    def _mounted(self, disk: Disk) -> Iterator[tuple[Mounted, Journal]]:
        mounted = Mounted(disk, self._directory)
        try:
            machine = self._machine
            if not machine.state.exists():
                machine.state.mkdir()
                _sync(machine.state.parent)
            with contextlib.closing(Journal(self._directory / OUTSIDE)) as journal:
                yield mounted, journal
        finally:
            if self._machine.process is not None and self._machine.process.poll() is None:
                self._machine.kill()
            mounted.close()

    def _add_user(self, journal: Journal, name: str) -> None:
        # With --yes, because the user may be there, though the power was lost before the journal had its line.
        command = ["user", "add", name, "--project", "red", "--yes", *map(str, self._machine.place)]
        warm.run("calotype", command, env={**os.environ, "CALOTYPE_PASSWORD": PASSWORD}).check_returncode()
        journal.user(name, PASSWORD)

    def _killed(self, begun: int, choose: Callable[[], int]) -> int:
        """When the service is killed: more often than not just after a stored file lost its name."""
        changes = self._disk.changes
        gone = [at for at in range(begun, len(changes)) if "." not in _removed(changes[at])]
        return self._rng.choice(gone) + 1 if gone and self._rng.random() < 0.7 else choose()

    def _moments(self, begun: int) -> Callable[[], int]:
        """Chooses when power is lost: just after what counts, which are answers, names and syncs, or at any time."""
        changes, outside = self._disk.changes, self._disk.outside
        every = range(begun, len(changes))
        told = [at for at in every if getattr(changes[at], "inode", 0) == outside]
        users = [at for at in told if b'"what": "user"' in getattr(changes[at], "data", b"")]
        recovery = range(begun, told[0]) if told else every
        names = [at for at in every if isinstance(changes[at], Name)]
        syncs = [at for at in every if isinstance(changes[at], Sync)]
        kinds = [kind for kind in (told, told, users, names, syncs, recovery, recovery, every) if kind]
        return lambda: self._rng.choice(self._rng.choice(kinds)) + 1


def _removed(change: Change) -> str:
    """The name that is gone; temporary ones have a dot, and so has what stands for none."""
    match change:
        case Name(((_, name, 0),)):
            return name
    return "."


def _some_content(rng: random.Random) -> Content:
    return Content(rng.getrandbits(62), rng.choice([0, 1, 511, 513, rng.randrange(64 << 10), rng.randrange(400 << 10)]))


def _sync(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY)
    os.fsync(number)
    os.close(number)
